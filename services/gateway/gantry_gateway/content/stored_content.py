"""Stored bytes that are sent unchanged: their location, and reading them through the port BlobReader.

Chunks are sent as they are read; they are not joined.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from itertools import islice

from gantry.blob.v1.blob_pb2 import Location, StoredInstance
from gantry_gateway.http.responses import Chunk
from gantry_runtime.blob_reader import BlobReader
from gantry_runtime.frame_locations import locate_frame
from gantry_standard import errors

AT_ONCE_BYTES = 8 << 20
"""Most bytes that are requested from `BlobReader.ready` for one response."""

BATCH = 256
"""Most contents in one read of an object."""


@dataclass(frozen=True, slots=True)
class Content:
    """A sequence of bytes of one object.

    Attributes:
        ranges: (offset, length) in bytes, in order.
        length: bytes that are sent.
        shift: number of bits at the beginning of the first range that belong to the preceding frame; only for 1-bit frames.
        bits: number of bits that are sent, if the content does not begin or end at a byte boundary; 0 for whole bytes.
    """

    object_key: str
    ranges: tuple[tuple[int, int], ...]
    length: int
    shift: int = 0
    bits: int = 0

    def cut(self, first: int, length: int) -> "Content":
        """Return the content of `length` bytes from byte `first` on. The content must consist of whole bytes."""
        ranges: list[tuple[int, int]] = []
        skip, left = first, length
        for offset, size in self.ranges:
            if left == 0:
                break
            take = min(max(size - skip, 0), left)
            if take:
                ranges.append((offset + skip, take))
            left -= take
            skip = max(skip - size, 0)
        return Content(self.object_key, tuple(ranges), length)


def content_at(location: Location) -> Content:
    """Return all bytes of a location."""
    return Content(location.object, ((location.offset, location.length),), location.length)


def served_content(stored: StoredInstance) -> Content:
    """Return the served form of an instance: the PS3.10 file that clients receive as stored."""
    ranges = tuple((byte_range.offset, byte_range.length) for byte_range in stored.layout.wire)
    return Content(stored.location.object, ranges, sum(length for _, length in ranges))


def frame_content(stored: StoredInstance, frame_number: int) -> Content:
    """Return the bytes of one frame as stored; the fragments of a frame are concatenated.

    Args:
        frame_number: from 1, within the instance.

    Raises:
        errors.NotAcceptable: the frames are not separate in the stored form, as in a video.

    Source: PS3.18 §8.7.3.3.1 note 2 for frames of 1-bit pixels: the first pixel is bit 0 of the first byte.
    """
    ranges, bit_offset, bits = locate_frame(stored, frame_number)
    if bit_offset or bits & 7:
        return Content(stored.location.object, ranges, (bits + 7) >> 3, bit_offset, bits)
    length = ranges[0][1] if len(ranges) == 1 else sum(length for _, length in ranges)
    return Content(stored.location.object, ranges, length)


class Shifter:
    """Shifts the bits of a 1-bit frame so that its first pixel is bit 0 (the least significant bit) of the first byte."""

    def __init__(self, shift: int, bits: int) -> None:
        self._shift = shift
        self._left = (bits + 7) >> 3
        self._last_mask = 0xFF >> (-bits % 8)
        self._carry = b""

    def push(self, chunk: Chunk) -> bytes:
        """Take a chunk; return the bytes that are complete."""
        data = self._carry + bytes(chunk)
        whole = max(len(data) - 1, 0) if self._shift else len(data)
        self._carry = data[whole:] if self._shift else b""
        return self._finish(self._moved(data)[:whole])

    def end(self) -> bytes:
        """Return the remaining byte after the last chunk, b"" if there is none."""
        return self._finish(self._moved(self._carry)[: self._left]) if self._left and self._carry else b""

    def _moved(self, data: bytes) -> bytes:
        return (int.from_bytes(data, "little") >> self._shift).to_bytes(len(data), "little") if self._shift else data

    def _finish(self, data: bytes) -> bytes:
        data = data[: self._left]
        self._left -= len(data)
        if data and self._left == 0 and self._last_mask != 0xFF:
            data = data[:-1] + bytes([data[-1] & self._last_mask])
        return data


def ready(reader: BlobReader, contents: list[Content]) -> list[list[Chunk]] | None:
    """Return the chunks of each content if all can be read without waiting, else None."""
    if sum(content.length for content in contents) > AT_ONCE_BYTES:
        return None
    if len(contents) == 1:
        views = reader.ready(contents[0].object_key, contents[0].ranges) if contents[0].length else []
        return None if views is None else [_shifted(contents[0], views)]
    object_key = contents[0].object_key
    if any(content.object_key != object_key for content in contents):
        return None
    views = reader.ready(object_key, _ranges(contents))
    if views is None:
        return None
    ready_views: list[list[memoryview]] = [[] for _ in contents]
    for index, chunk in _dealt(contents, iter(views)):
        ready_views[index].append(chunk)
    return [_shifted(content, chunks) for content, chunks in zip(contents, ready_views, strict=True)]


def _shifted(content: Content, views: list[memoryview]) -> list[Chunk]:
    if not content.bits:
        return list(views)
    shifter = Shifter(content.shift, content.bits)
    return [*[shifter.push(view) for view in views], shifter.end()]


def _dealt(contents: list[Content], views: Iterator[memoryview]) -> Iterator[tuple[int, memoryview]]:
    """Split chunks of a read, each of which may have bytes of several contents; yield (index of the content, its bytes)."""
    dealer = _Dealer(contents)
    for view in views:
        yield from dealer.deal(view)


class _Dealer:
    """Assigns the bytes of a read to the contents in order."""

    def __init__(self, contents: list[Content]) -> None:
        self._sizes = [sum(length for _, length in content.ranges) for content in contents]
        self._index = 0
        self._left = self._sizes[0] if contents else 0

    def deal(self, chunk: Chunk) -> Iterator[tuple[int, memoryview]]:
        """Yield (index of the content, its bytes)."""
        view = memoryview(chunk)
        while view.nbytes:
            while self._left == 0:
                self._index += 1
                self._left = self._sizes[self._index]
            taken = view[: self._left]
            self._left -= len(taken)
            view = view[len(taken) :]
            yield self._index, taken


@asynccontextmanager
async def _closing(chunks: AsyncIterator[Chunk]) -> AsyncIterator[AsyncIterator[Chunk]]:
    """Close the iterator of a read when the context ends, if the iterator can be closed."""
    try:
        yield chunks
    finally:
        if (close := getattr(chunks, "aclose", None)) is not None:
            await close()


def _ranges(contents: Iterable[Content]) -> list[tuple[int, int]]:
    return [byte_range for content in contents for byte_range in content.ranges if byte_range[1]]


async def _read_group(reader: BlobReader, contents: list[Content]) -> AsyncGenerator[tuple[int, Chunk], None]:
    """Read contents of one object with one call; yield (index of the content, chunk)."""
    ranges = _ranges(contents)
    if not ranges:
        return
    dealer = _Dealer(contents)
    shifters = [Shifter(content.shift, content.bits) if content.bits else None for content in contents]
    current = 0
    try:
        async with _closing(reader.read(contents[0].object_key, ranges)) as chunks:
            async for chunk in chunks:
                for index, taken in dealer.deal(chunk):
                    if index != current and (last := shifters[current]) is not None:
                        yield current, last.end()
                    current = index
                    shifter = shifters[index]
                    yield index, taken if shifter is None else shifter.push(taken)
    except errors.BadRequest as error:
        # A range outside of the object is an error of the server, not of the client
        raise errors.GantryError(f"the index and the objects disagree: {error.message}") from error
    if (last := shifters[current]) is not None:
        yield current, last.end()


Relocate = Callable[[int], Awaitable[Content]]
"""Asks index for the present content with this index; raises errors.NotFound or errors.Gone if the instance was deleted."""


async def read(reader: BlobReader, contents: Iterable[Content], relocate: Relocate) -> AsyncGenerator[tuple[int, Chunk], None]:
    """Yield (index of the content, chunk), in order. Contents without bytes yield nothing.

    If an object does not exist any more, because its instances were copied to a new one, `relocate` is called once for each of its
    contents.

    Raises:
        errors.Unavailable: the object of the new location does not exist either, the instance was replaced, or the object was removed
            while it was read.
    """
    source, begin = iter(contents), 0
    while batch := list(islice(source, BATCH)):
        for first, group in _groups(batch):
            begun = False
            try:
                async with aclosing(_read_group(reader, group)) as chunks:
                    async for index, chunk in chunks:
                        begun = True
                        yield begin + first + index, chunk
            except errors.NotFound as error:
                if begun:
                    raise errors.Unavailable("the object of an instance was removed while it was read") from error
                async with aclosing(_read_moved(reader, group, begin + first, relocate)) as moved:
                    async for indexed_chunk in moved:
                        yield indexed_chunk
        begin += len(batch)


async def _read_moved(
    reader: BlobReader, contents: list[Content], begin: int, relocate: Relocate
) -> AsyncGenerator[tuple[int, Chunk], None]:
    for index, content in enumerate(contents, begin):
        now = await _moved(content, index, relocate)
        try:
            async with aclosing(_read_group(reader, [now])) as chunks:
                async for _, chunk in chunks:
                    yield index, chunk
        except errors.NotFound as error:
            raise errors.Unavailable("the object of an instance does not exist at the location in the index") from error


async def _moved(content: Content, index: int, relocate: Relocate) -> Content:
    now = await relocate(index)
    if now.length != content.length:
        raise errors.Unavailable("an instance was replaced while it was read")
    return now


def _groups(batch: list[Content]) -> Iterator[tuple[int, list[Content]]]:
    """Yield (index of the first, contents) for each run of contents in the same object."""
    begin = 0
    for end in range(1, len(batch) + 1):
        if end == len(batch) or batch[end].object_key != batch[begin].object_key:
            yield begin, batch[begin:end]
            begin = end
