"""Frames that a worker reads by itself from the files of the directory store, mapped: no byte of them passes through the pool."""

import mmap
import os
from collections import OrderedDict
from dataclasses import dataclass

from gantry_renderer.stored.frames import aligned
from gantry_runtime.frame_places import FramePlace
from gantry_standard import errors

MOST_FILES = 64
"""Files that a worker keeps mapped."""


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """A frame as a job is given it.

    Attributes:
        path: of the object.
        is_native: its bytes are plain values, which need not be copied to be decoded.
    """

    path: str
    place: FramePlace
    is_native: bool


class FrameFiles:
    """Maps objects; the one used longest ago goes first."""

    def __init__(self) -> None:
        self._views: OrderedDict[str, memoryview] = OrderedDict()

    def load(self, frame: StoredFrame) -> bytes | memoryview:
        """Return the bare bit stream of a frame, or its native values from bit 0 on.

        Raises:
            NotFound: the object is no more.
            BadRequest: a range reaches beyond its end.
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
