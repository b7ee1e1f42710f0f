"""Response bodies: one stored representation, a range of it, or multipart; with Content-Length, or streamed without it."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

from gantry_gateway.content.stored_content import AT_ONCE_BYTES, Content, Relocate, read, ready
from gantry_gateway.http import problems
from gantry_gateway.http.conditional import ByteRange, RangeNotSatisfiable, requested_range
from gantry_gateway.http.request import Request
from gantry_gateway.http.responses import Chunk, Headers, Immediate, Response, Streamed, headers
from gantry_runtime.blob_reader import BlobReader
from gantry_standard.http import multipart_writer

MAX_HELD_PARTS = 4096
"""Most parts of a response whose headers are held in memory. With more parts they are computed twice: for the length, and to be sent."""

GATHER_BYTES = 4 << 20
"""Most bytes of a rendition that are gathered before the status line, so that small responses have a Content-Length."""

GATHER_S = 0.5
"""Seconds after which the status line is sent even if few bytes are gathered, as proxies time out."""

RANGED_S = 10.0
"""The same for a range request, which needs the length of the whole representation."""

PAUSE_PARTS = 256
"""Number of parts that are measured before other tasks may run."""


JOINED_BYTES = 64 << 10
"""Responses of at most this size are joined into one chunk."""


async def gathered(status: int, fields: Headers, chunks: AsyncGenerator[Chunk, None]) -> Response:
    """Return a response of chunks: with Content-Length if they end within `GATHER_BYTES` and `GATHER_S`, else streamed.

    Raises the error of the first chunks, if they fail.
    """
    first, ended = await _gather(chunks, GATHER_BYTES, GATHER_S)
    if not ended:
        return Streamed(status, fields, first, chunks)
    size = sum(len(chunk) for chunk in first)
    return Immediate(status, [*fields, (b"content-length", str(size).encode())], first or [b""])


async def _gather(chunks: AsyncGenerator[Chunk, None], most_bytes: int, most_s: float) -> tuple[list[Chunk], bool]:
    """Return the first chunks, and whether they are all. The time limit does not interrupt a chunk that is being awaited."""
    first: list[Chunk] = []
    size, end = 0, time.monotonic() + most_s
    try:
        async for chunk in chunks:
            first.append(chunk)
            size += len(chunk)
            if size > most_bytes or time.monotonic() > end:
                return first, False
    except BaseException:
        await chunks.aclose()
        raise
    return first, True


def not_modified(etag: str, content_location: str = "") -> Immediate:
    """Return 304."""
    return Immediate(304, headers(etag=etag, content_location=content_location), [])


@dataclass(frozen=True, slots=True)
class Part:
    """A stored representation of one resource.

    Attributes:
        content_type: as sent, with the transfer-syntax parameter.
        content_location: URL of the resource.
    """

    content_type: str
    content_location: str
    content: Content


def single_part_headers(part_content_type: str, content_location: str, etag: str, content_length: int | None = None) -> Headers:
    """Return the header fields of a representation that is the whole payload."""
    return headers(
        content_type=part_content_type,
        content_length="" if content_length is None else str(content_length),
        content_location=content_location,
        accept_ranges="bytes",
        etag=etag,
        vary="Accept",
        cache_control="private, no-cache",
    )


def _byte_range(request: Request, etag: str, size: int) -> ByteRange | None:
    """Return the requested range of a GET, None for the whole representation. Raises RangeNotSatisfiable."""
    ranged = request.headers.get("range", "")
    if not ranged or request.method != "GET":
        return None
    return requested_range(ranged, request.headers.get("if-range", ""), etag, size)


def _not_satisfiable(request: Request, etag: str, size: int) -> Immediate:
    message = f"the range begins after the end of the representation, which has {size} bytes"
    report = problems.status_report(416, message, request.accept)
    return Immediate(416, [*headers(content_range=f"bytes */{size}", etag=etag), *report.raw_headers], [bytes(report.body)])


async def single_part(request: Request, reader: BlobReader, part: Part, etag: str, relocate: Relocate) -> Response:
    """Return one stored representation, or the requested range of it."""
    content, status, content_range = part.content, 200, ""
    if request.method == "HEAD":
        return Immediate(200, single_part_headers(part.content_type, part.content_location, etag, content.length), [])
    if content.bits and "range" in request.headers:
        # The bytes of a frame that does not begin at a byte boundary are shifted, so they are not a range of the object
        return await generated(request, part.content_type, part.content_location, etag, _chunks_only(reader, content, relocate))
    try:
        byte_range = _byte_range(request, etag, content.length)
    except RangeNotSatisfiable:
        return _not_satisfiable(request, etag, content.length)
    if byte_range is not None:
        content_range = f"bytes {byte_range.first}-{byte_range.last}/{content.length}"
        content, status, relocate = content.cut(byte_range.first, byte_range.length), 206, _relocate_range(relocate, byte_range)
    fields = single_part_headers(part.content_type, part.content_location, etag, content.length)
    if content_range:
        fields.append((b"content-range", content_range.encode()))
    if (views := ready(reader, [content])) is not None:
        return Immediate(status, fields, views[0] or [b""])
    return await begun(status, fields, _chunks_only(reader, content, relocate))


async def generated(request: Request, content_type: str, content_location: str, etag: str, chunks: AsyncGenerator[Chunk, None]) -> Response:
    """Return one representation that is computed while it is sent; the requested range if the whole has at most `GATHER_BYTES`.

    Raises the error of the first chunks, if they fail.
    """
    ranged = "range" in request.headers
    first, ended = await _gather(chunks, GATHER_BYTES, RANGED_S if ranged else GATHER_S)
    if not ended:
        fields = [field for field in single_part_headers(content_type, content_location, etag) if field[0] != b"accept-ranges"]
        return Streamed(200, fields, first, chunks)
    size = sum(len(chunk) for chunk in first)
    try:
        byte_range = _byte_range(request, etag, size)
    except RangeNotSatisfiable:
        return _not_satisfiable(request, etag, size)
    if byte_range is None:
        return Immediate(200, single_part_headers(content_type, content_location, etag, size), first or [b""])
    fields = single_part_headers(content_type, content_location, etag, byte_range.length)
    fields.append((b"content-range", f"bytes {byte_range.first}-{byte_range.last}/{size}".encode()))
    return Immediate(206, fields, list(cut_chunks(first, byte_range.first, byte_range.length)))


def cut_chunks(chunks: Iterable[Chunk], first: int, length: int) -> Iterator[memoryview]:
    """Yield `length` bytes from byte `first` on of consecutive chunks."""
    for chunk in chunks:
        taken = memoryview(chunk)[first : first + length]
        first, length = max(first - len(chunk), 0), length - len(taken)
        if taken:
            yield taken


def _relocate_range(relocate: Relocate, byte_range: ByteRange) -> Relocate:
    async def ask(index: int) -> Content:
        return (await relocate(index)).cut(byte_range.first, byte_range.length)

    return ask


async def _chunks_only(reader: BlobReader, content: Content, relocate: Relocate) -> AsyncGenerator[Chunk, None]:
    async with aclosing(read(reader, [content], relocate)) as chunks:
        async for _, chunk in chunks:
            yield chunk


async def begun(status: int, fields: Headers, chunks: AsyncGenerator[Chunk, None]) -> Response:
    """Return a streamed response once its first chunk is available, so that an error before it still determines the status."""
    try:
        first = await anext(chunks, b"")
    except BaseException:
        await chunks.aclose()
        raise
    return Streamed(status, fields, [first], chunks)


def multipart_headers(media_type: str, boundary: str, etag: str, length: int | None = None, warning: str = "") -> Headers:
    """Return the header fields of a multipart response."""
    return headers(
        content_type=multipart_writer.content_type(media_type, boundary),
        content_length="" if length is None else str(length),
        etag=etag,
        vary="Accept",
        cache_control="private, no-cache",
        warning=warning,
    )


async def multipart(
    request: Request,
    reader: BlobReader,
    media_type: str,
    parts: Iterable[Part],
    number_of_parts: int,
    etag: str,
    relocate: Relocate,
    status: int = 200,
) -> Response:
    """Return stored representations, one part each, with Content-Length.

    Args:
        media_type: of the root part.
        parts: iterated twice if there are more than `MAX_HELD_PARTS`.
        relocate: called with the index of a part.
    """
    boundary = multipart_writer.new_boundary()
    closing = multipart_writer.closing(boundary, empty=number_of_parts == 0)
    if number_of_parts > MAX_HELD_PARTS:
        length = await _measured(_with_heads(parts, boundary)) + len(closing)
        return await _many(request, reader, multipart_headers(media_type, boundary, etag, length), parts, boundary, relocate, status)
    headed = list(_with_heads(parts, boundary))
    length = sum(len(head) + content.length for head, content in headed) + len(closing)
    fields = multipart_headers(media_type, boundary, etag, length)
    if request.method == "HEAD":
        return Immediate(status, fields, [])
    if length <= AT_ONCE_BYTES and headed and (views := ready(reader, [content for _, content in headed])) is not None:
        bodies: list[Chunk] = []
        for (head, _), chunks_of_part in zip(headed, views, strict=True):
            bodies.append(head)
            bodies.extend(chunks_of_part)
        bodies.append(closing)
        # For a small response one write is cheaper than several
        return Immediate(status, fields, [b"".join(bodies)] if length <= JOINED_BYTES else bodies)
    return await begun(status, fields, _multipart_chunks(reader, headed, closing, relocate))


async def _many(
    request: Request, reader: BlobReader, fields: Headers, parts: Iterable[Part], boundary: str, relocate: Relocate, status: int
) -> Response:
    if request.method == "HEAD":
        return Immediate(status, fields, [])
    chunks = _multipart_chunks(reader, _with_heads(parts, boundary), multipart_writer.closing(boundary), relocate)
    return await begun(status, fields, chunks)


async def _measured(headed: Iterable[tuple[bytes, Content]]) -> int:
    """Return the number of bytes of all parts with their headers, without blocking the event loop."""
    length = 0
    for index, (head, content) in enumerate(headed):
        length += len(head) + content.length
        if index % PAUSE_PARTS == 0:
            await asyncio.sleep(0)
    return length


def _with_heads(parts: Iterable[Part], boundary: str) -> Iterable[tuple[bytes, Content]]:
    for index, part in enumerate(parts):
        head = multipart_writer.part_head(boundary, part.content_type, part.content_location, part.content.length, index == 0)
        yield head, part.content


async def _multipart_chunks(
    reader: BlobReader, headed: Iterable[tuple[bytes, Content]], closing: bytes, relocate: Relocate
) -> AsyncGenerator[Chunk, None]:
    """Yield headers and bytes of the parts in order. The first header is yielded after the first bytes were read."""
    heads: deque[bytes] = deque()

    def contents() -> Iterable[Content]:
        for head, content in headed:
            heads.append(head)
            yield content

    sent = 0
    async with aclosing(read(reader, contents(), relocate)) as chunks:
        async for index, chunk in chunks:
            while sent <= index:
                yield heads.popleft()
                sent += 1
            yield chunk
    for head in heads:
        yield head
    yield closing
