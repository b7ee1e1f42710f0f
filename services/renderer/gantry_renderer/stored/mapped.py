"""Frames that a worker reads from the memory-mapped files of the directory store; they are not sent through the pool."""

import mmap
import os
from collections import OrderedDict
from dataclasses import dataclass

from gantry_renderer.stored.frames import aligned
from gantry_runtime.frame_locations import FrameLocation
from gantry_standard import errors

MOST_FILES = 64
"""Most files that a worker keeps mapped."""


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """A frame in a file, as an argument of a job.

    Attributes:
        path: of the object that holds the frame.
        is_native: the frame is uncompressed and can be decoded from the mapped file without a copy.
    """

    path: str
    place: FrameLocation
    is_native: bool


class FrameFiles:
    """Maps objects; above MOST_FILES the least recently used one is dropped."""

    def __init__(self) -> None:
        self._views: OrderedDict[str, memoryview] = OrderedDict()

    def load(self, frame: StoredFrame) -> bytes | memoryview:
        """Return the bit stream of a frame without item headers, or its native values from bit 0 on.

        Raises:
            NotFound: the object does not exist any more.
            BadRequest: a range extends beyond the end of the object.
        """
        view = self._view(frame.path)
        for offset, length in frame.place.ranges:
            if offset + length > len(view):
                raise errors.BadRequest(f"an object has {len(view)} bytes: range {offset}+{length} is not within it")
        pieces = [view[offset : offset + length] for offset, length in frame.place.ranges]
        if frame.is_native and frame.place.is_aligned and len(pieces) == 1:
            return pieces[0]
        return aligned(frame.place, b"".join(pieces))

    def _view(self, path: str) -> memoryview:
        if (view := self._views.get(path)) is not None:
            self._views.move_to_end(path)
            return view
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise errors.NotFound("the object is no more") from error
        try:
            view = memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ)) if os.fstat(fd).st_size else memoryview(b"")
        finally:
            os.close(fd)
        self._views[path] = view
        if len(self._views) > MOST_FILES:
            self._views.popitem(last=False)
        return view
