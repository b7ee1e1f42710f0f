"""The port through which gateway and renderer read stored bytes, and its two adapters.

`StreamedReader` reads from blob with calls. `MappedReader` maps the files of a directory that it shares with blob.
"""

import asyncio
import mmap
import os
import re
import time
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gantry.blob.v1 import blob_pb2
from gantry_runtime.byte_bounded_cache import CountBoundedCache
from gantry_runtime.rpc import rpc_errors
from gantry_runtime.rpc.channels import CHUNK_BYTES
from gantry_standard import errors

if TYPE_CHECKING:
    from gantry.blob.v1.blob_pb2_grpc import BlobServiceAsyncStub

Ranges = Sequence[tuple[int, int]]
"""(offset, length) pairs in bytes."""

STREAM_S = 3600.0
"""Deadline of one read call in seconds. It is long because the consumer sets the pace."""

MESSAGE_S = 30.0
"""Longest wait in seconds for the next message of a read call."""

READY_BYTES = 8 << 20
"""Largest number of bytes that `MappedReader.ready` returns. To check whether they are warm takes about 1 µs per PROBE_BYTES."""

PROBE_BYTES = 64 << 10
"""Distance between the bytes that are probed to learn whether a range is in the page cache. The kernel reads ahead 128 KiB."""

WARM_S = 1.0
"""Seconds for which a range counts as warm (in the page cache) after it was probed."""

MOST_WARM = 4096
"""Largest number of ranges of one object for which the result of the probe is remembered."""

READ_AHEAD_BYTES = 4 << 20
"""Number of bytes of a cold range that are read ahead at once."""

# A segment begins with a letter or digit. So ".." and hidden files are no keys, and the names of temporary files can never be keys.
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,199}(/[A-Za-z0-9][A-Za-z0-9._~-]{0,199})*")


class BlobReader(Protocol):
    """Reads ranges of immutable objects.

    Ranges are read in the given order; the concatenation of the yielded chunks is the concatenation of the ranges. A chunk has at most
    1 MiB. Chunks are read-only and stay valid as long as they are referenced. An object that does not exist raises `errors.NotFound`
    before the first chunk, a range beyond the end of the object `errors.BadRequest`, a store that does not answer `errors.Unavailable`.
    """

    def read(self, object_key: str, ranges: Ranges) -> AsyncIterator[bytes | memoryview]:
        """Yield the bytes of the ranges in chunks."""
        ...

    def ready(self, object_key: str, ranges: Ranges) -> list[memoryview] | None:
        """Return the bytes of the ranges if that is possible without waiting, as views of at most 1 MiB each; else None."""
        ...

    def path(self, object_key: str) -> str | None:
        """Return the path of the object's file on this machine, for another process to map; None if there is no such file."""
        ...


def check_object_key(object_key: str) -> None:
    """Check that a string is an object key: segments separated by "/", of letters, digits and `._~-`, that begin with a letter or digit.

    Raises:
        errors.BadRequest: it is not a key, or is longer than 800 characters.
    """
    if len(object_key) > 800 or not _KEY.fullmatch(object_key):
        raise errors.BadRequest(f"object key {object_key[:100]!r}: expected segments of letters, digits and ._~- separated by /")


def object_path(directory: Path, object_key: str) -> Path:
    """Return the path of an object in the directory store. It is never outside the directory.

    Raises:
        errors.BadRequest: it is not a key.
    """
    check_object_key(object_key)
    return directory / object_key


def coalesced(ranges: Ranges) -> list[tuple[int, int]]:
    """Return the ranges in the same order. Adjacent ranges are joined, empty ones are omitted."""
    joined: list[tuple[int, int]] = []
    for offset, length in ranges:
        if length == 0:
            continue
        if joined and sum(joined[-1]) == offset:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((offset, length))
    return joined


def check_ranges(object_key: str, size_bytes: int, ranges: Ranges) -> None:
    """Check that ranges lie within the object.

    Raises:
        errors.BadRequest: a range reaches beyond the end of the object.
    """
    for offset, length in ranges:
        if offset < 0 or length < 0 or offset + length > size_bytes:
            raise errors.BadRequest(f"{object_key} has {size_bytes} bytes: range {offset}+{length} is not within it")


def cut(ranges: Ranges, most_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
    """Yield the ranges, split into ranges of at most `most_bytes` bytes."""
    for offset, length in ranges:
        for begin in range(0, length, most_bytes):
            yield offset + begin, min(most_bytes, length - begin)


class StreamedReader:
    """Reads from blob with the call Read, in messages of at most 1 MiB."""

    def __init__(self, stub: "BlobServiceAsyncStub") -> None:
        self._stub = stub

    def ready(self, object_key: str, ranges: Ranges) -> list[memoryview] | None:
        """Return None: every read needs a call."""
        return None

    def path(self, object_key: str) -> str | None:
        """Return None: the object may be on another machine."""
        return None

    async def read(self, object_key: str, ranges: Ranges) -> AsyncIterator[bytes | memoryview]:
        """Yield the bytes of the ranges, one chunk per message."""
        joined = coalesced(ranges)
        if not joined:
            return
        request = blob_pb2.ReadRequest(object=object_key, ranges=[blob_pb2.Range(offset=o, length=n) for o, n in joined])
        with rpc_errors.translated("blob"):
            call = self._stub.Read(request, timeout=STREAM_S)
            try:
                while True:
                    try:
                        async with asyncio.timeout(MESSAGE_S):
                            message = await call.read()
                    except TimeoutError as error:
                        raise errors.Unavailable("blob does not answer") from error
                    if not isinstance(message, blob_pb2.ReadResponse):  # grpc.aio.EOF
                        break
                    yield message.data
            finally:
                call.cancel()


class _Mapping:
    """One object of the directory, mapped read-only. The map exists as long as a view of it; it is never closed explicitly."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        self.size = os.fstat(self._fd).st_size
        # An empty file cannot be mapped.
        self.view = memoryview(mmap.mmap(self._fd, 0, prot=mmap.PROT_READ) if self.size else b"")
        self._found_warm: dict[tuple[int, int], float] = {}

    def is_warm(self, offset: int, length: int) -> bool:
        """Return whether a range is in the page cache, or was less than WARM_S seconds ago. One byte in PROBE_BYTES is probed."""
        now = time.monotonic()
        if now - self._found_warm.get((offset, length), -WARM_S) < WARM_S:
            return True
        if is_warm := self._is_warm(offset, length):
            if len(self._found_warm) == MOST_WARM:
                self._found_warm.clear()
            self._found_warm[offset, length] = now
        return is_warm

    def _is_warm(self, offset: int, length: int) -> bool:
        probe = [bytearray(1)]
        last = offset + length - 1
        try:
            return all(os.preadv(self._fd, probe, at, os.RWF_NOWAIT) == 1 for at in (*range(offset, last, PROBE_BYTES), last))
        except OSError:  # BlockingIOError: cold; EOPNOTSUPP: this file system cannot tell.
            return False

    def warm(self, offset: int, length: int) -> None:
        """Read a range into the page cache. Blocks, but releases the interpreter lock, which access to the mapped pages would not do."""
        scratch = [bytearray(min(length, CHUNK_BYTES))]
        end = offset + length
        while offset < end and (count := os.preadv(self._fd, scratch, offset)):
            offset += count


class MappedReader:
    """Reads objects of the directory store by mapping their files, without a copy and without a call. To be used from one event loop.

    Args:
        directory: of the objects, shared with blob.
        stub: of blob, called for objects that are not in the directory.
        most_maps: largest number of mapped objects, two file descriptors each. The least recently used one is dropped first.
    """

    def __init__(self, directory: Path, stub: "BlobServiceAsyncStub", most_maps: int = 256) -> None:
        self._directory = directory
        self._streamed = StreamedReader(stub)
        self._maps = CountBoundedCache[str, _Mapping](most_maps)

    def ready(self, object_key: str, ranges: Ranges) -> list[memoryview] | None:
        """Return views of the map if all ranges are in the page cache and have at most READY_BYTES together; else None."""
        mapping = self._mapping(object_key)
        joined = coalesced(ranges)
        if mapping is None or sum(length for _, length in joined) > READY_BYTES:
            return None
        for offset, length in joined:
            if offset < 0 or offset + length > mapping.size or not mapping.is_warm(offset, length):
                return None
        return [mapping.view[offset : offset + length] for offset, length in cut(joined)]

    def path(self, object_key: str) -> str | None:
        """Return the path of the object's file; None if there is none."""
        return None if self._mapping(object_key) is None else str(object_path(self._directory, object_key))

    async def read(self, object_key: str, ranges: Ranges) -> AsyncIterator[bytes | memoryview]:
        """Yield views of the map. Ranges that are not in the page cache are read ahead in a thread."""
        mapping = self._mapping(object_key)
        if mapping is None:
            async for chunk in self._streamed.read(object_key, ranges):
                yield chunk
            return
        check_ranges(object_key, mapping.size, ranges)
        for ahead_offset, ahead_length in cut(coalesced(ranges), READ_AHEAD_BYTES):
            for offset, length in cut([(ahead_offset, ahead_length)]):
                if not mapping.is_warm(offset, length):
                    await asyncio.to_thread(mapping.warm, offset, ahead_offset + ahead_length - offset)
                yield mapping.view[offset : offset + length]

    def _mapping(self, object_key: str) -> _Mapping | None:
        if mapping := self._maps.get(object_key):
            return mapping
        try:
            mapping = _Mapping(object_path(self._directory, object_key))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise errors.Unavailable(f"{object_key} cannot be mapped: {error.strerror}") from error
        return self._maps.put(object_key, mapping)
