"""Stores bytes of a request until its end: up to IN_MEMORY_BYTES in memory, more in a temporary file.

Source: PS3.18 §8.6.1.2: bulkdata and the metadata that refers to it are parts of one payload.
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
    """Consecutive bytes in a spool. It is a `gantry_standard.bitstreams.still.Source`."""

    spool: "Spool"
    offset: int
    length: int

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from `offset` on; fewer than `length` at the end."""
        return self.spool.read(self.offset + offset, max(0, min(length, self.length - offset)))

    def part(self, offset: int, length: int) -> "SpooledBytes":
        """Return a range of these bytes."""
        return SpooledBytes(self.spool, self.offset + offset, length)

    def chunks(self) -> Iterator[bytes]:
        """Yield all bytes in chunks of at most 1 MiB."""
        for begin in range(0, self.length, CHUNK_BYTES):
            yield self.read(begin, CHUNK_BYTES)


class Spool:
    """Bytes that are written in sequence and read at any offset. Methods block; used by one thread at a time.

    Args:
        directory: for the temporary file; None for the system's directory.
        reserve: fraction of the file system that is left free, 0 to 1.
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
            errors.OutOfResources: too little disk space is left.
        """
        if self.length + len(data) > self._unchecked_until:
            self._check_room()
        with _disk_full_reported():
            self._file.seek(self.length)
            self._file.write(data)
        self.length += len(data)

    def read(self, offset: int, length: int) -> bytes:
        """Return written bytes; fewer than `length` at the end.

        Raises:
            errors.OutOfResources: too little disk space is left to write buffered bytes first.
        """
        with _disk_full_reported():
            self._file.seek(offset)
            return self._file.read(length)

    def since(self, offset: int) -> SpooledBytes:
        """Return the bytes from `offset` to the end."""
        return SpooledBytes(self, offset, self.length - offset)

    def close(self) -> None:
        """Discard all bytes."""
        self._file.close()

    def _check_room(self) -> None:
        disk = os.statvfs(self._directory)
        if disk.f_bavail < disk.f_blocks * self._reserve:
            raise errors.OutOfResources(f"less than {self._reserve:.0%} of the disk is free", retry_after_s=60)
        self._unchecked_until = self.length + CHECK_EVERY_BYTES


@contextmanager
def _disk_full_reported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            raise errors.OutOfResources("no disk space left for metadata and bulkdata of a store request", retry_after_s=60) from error
        raise
