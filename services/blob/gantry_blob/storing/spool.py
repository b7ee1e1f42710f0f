"""Bytes of a request that wait for its end: in memory while they are few, else in a temporary file.

Source: PS3.18 §8.6.1.2: bulkdata and the metadata that refer to it are parts of one payload.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from pathlib import Path

from gantry_runtime.rpc.channels import CHUNK_BYTES
from gantry_standard import errors

IN_MEMORY_BYTES = 1 << 20
CHECK_EVERY_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class SpooledBytes:
    """A run of bytes in a spool; a `gantry_standard.bitstreams.still.Source`."""

    spool: "Spool"
    offset: int
    length: int

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from `offset` on; fewer than `length` at the end."""
        return self.spool.read(self.offset + offset, max(0, min(length, self.length - offset)))

    def part(self, offset: int, length: int) -> "SpooledBytes":
        """Return a run within this one."""
        return SpooledBytes(self.spool, self.offset + offset, length)

    def chunks(self) -> Iterator[bytes]:
        """Yield all bytes, in pieces of at most 1 MiB."""
        for begin in range(0, self.length, CHUNK_BYTES):
            yield self.read(begin, CHUNK_BYTES)


class Spool:
    """Bytes written one after another and read anywhere. Methods block; one thread at a time.

    Args:
        directory: of the temporary file; None: that of the system.
        reserve: part of the file system that is left free, 0 to 1.
    """

    def __init__(self, directory: Path | None, reserve: float) -> None:
        self.length = 0
        self._directory = str(directory or tempfile.gettempdir())
        self._reserve = reserve
        self._unchecked_until = IN_MEMORY_BYTES
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES, dir=self._directory)  # noqa: SIM115 closed by `close`

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            errors.OutOfResources: too little room is left.
        """
        if self.length + len(data) > self._unchecked_until:
            self._check_room()
        with _no_room_told():
            self._file.seek(self.length)
            self._file.write(data)
        self.length += len(data)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes that were written."""
        with _no_room_told():  # what is buffered may be written first
            self._file.seek(offset)
            return self._file.read(length)

    def since(self, offset: int) -> SpooledBytes:
        """Return what was written from `offset` on."""
        return SpooledBytes(self, offset, self.length - offset)

    def close(self) -> None:
        """Forget everything."""
        self._file.close()

    def _check_room(self) -> None:
        disk = os.statvfs(self._directory)
        if disk.f_bavail < disk.f_blocks * self._reserve:
            raise errors.OutOfResources(f"less than {self._reserve:.0%} of the disk is free", retry_after_s=60)
        self._unchecked_until = self.length + CHECK_EVERY_BYTES


@contextmanager
def _no_room_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            raise errors.OutOfResources("no room left for what waits for the end of its request", retry_after_s=60) from error
        raise
