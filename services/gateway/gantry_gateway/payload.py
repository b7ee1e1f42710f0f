"""Payloads and the ASGI responses that send them: at once where everything is there, else in pieces.

Starlette's responses are not used on these paths: a frame is answered in a tenth of a millisecond, and a stream ends as soon as
the client is gone.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from starlette.types import Message, Receive, Scope, Send

from gantry_gateway.conditional import RangeNotSatisfiable, Span, requested_span
from gantry_gateway.request import Request
from gantry_gateway.stored_content import AT_ONCE_BYTES, AskAgain, Content, Piece, read, ready
from gantry_runtime.blob_reader import BlobReader
from gantry_standard import multipart_writer

Headers = list[tuple[bytes, bytes]]

MOST_MEASURED_PARTS = 4096
"""Parts of an answer up to which its Content-Length is computed; longer ones go in chunks."""

GATHER_BYTES = 4 << 20
"""Bytes of a rendition that are gathered before the status line, so that small answers have a Content-Length."""


def headers(**fields: str) -> Headers:
    """Return header fields; `content_type` becomes content-type, empty ones are left out."""
    return [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in fields.items() if value]


JOINED_BYTES = 64 << 10
"""Answers up to this size are joined into one piece."""


class Immediate:
    """A response whose body is there."""

    __slots__ = ("bodies", "headers", "status")

    def __init__(self, status: int, fields: Headers, bodies: Sequence[Piece]) -> None:
        self.status = status
        self.headers = fields
        self.bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        bodies = () if scope["method"] == "HEAD" else self.bodies
        for body in bodies[:-1]:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": bodies[-1] if bodies else b"", "more_body": False})


class Streamed:
    """A response whose body comes in pieces. `first` is there already, so that a failure before it still has a status of its own.

    When the client goes away the pieces are closed, and with them what is read or computed for them.
    """

    __slots__ = ("first", "headers", "pieces", "status")

    def __init__(self, status: int, fields: Headers, first: Iterable[Piece], pieces: AsyncGenerator[Piece, None]) -> None:
        self.status = status
        self.headers = fields
        self.first = first
        self.pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with aclosing(self.pieces):
            await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._send_body(send))
                watching = tasks.create_task(_cancel_when_gone(receive, sending))
                sending.add_done_callback(lambda _: watching.cancel())

    async def _send_body(self, send: Send) -> None:
        for piece in self.first:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        async for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _cancel_when_gone(receive: Receive, sending: "asyncio.Task[None]") -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()
    sending.cancel()


Response = Immediate | Streamed


async def gathered(status: int, fields: Headers, pieces: AsyncGenerator[Piece, None]) -> Response:
    """Return a response of pieces: with Content-Length when they end within `GATHER_BYTES`, else streamed.

    Raises whatever making the first of them raises.
    """
    first: list[Piece] = []
    size = 0
    try:
        async for piece in pieces:
            first.append(piece)
            size += len(piece)
            if size > GATHER_BYTES:
                return Streamed(status, fields, first, pieces)
    except BaseException:
        await pieces.aclose()
        raise
    return Immediate(status, [*fields, (b"content-length", str(size).encode())], first or [b""])


def not_modified(etag: str, content_location: str = "") -> Immediate:
    """Return 304."""
    return Immediate(304, headers(etag=etag, content_location=content_location), [])


@dataclass(frozen=True, slots=True)
class Part:
    """A representation of one resource.

    Attributes:
        content_type: with its transfer-syntax parameter, as it shall be sent.
        content_location: URL of the resource.
    """

    content_type: str
    content_location: str
    content: Content


async def single_part(request: Request, reader: BlobReader, part: Part, etag: str, ask_again: AskAgain) -> Response:
    """Return one stored representation, or the range of it that the request asks for."""
    content, status, content_range = part.content, 200, ""
    ranged = request.headers.get("range", "")
    if ranged and not content.bits:
        try:
            span = requested_span(ranged, request.headers.get("if-range", ""), etag, content.length)
        except RangeNotSatisfiable:
            fields = headers(content_range=f"bytes */{content.length}", content_length="0", etag=etag)
            return Immediate(416, fields, [b""])
        if span is not None:
            content_range = f"bytes {span.first}-{span.last}/{content.length}"
            content, status, ask_again = content.cut(span.first, span.length), 206, _cut_again(ask_again, span)
    fields = headers(
        content_type=part.content_type,
        content_length=str(content.length),
        content_location=part.content_location,
        content_range=content_range,
        accept_ranges="" if content.bits else "bytes",
        etag=etag,
        vary="Accept",
        cache_control="private, no-cache",
    )
    if (views := ready(reader, [content])) is not None:
        return Immediate(status, fields, views[0] or [b""])
    return await _begun(status, fields, _pieces_only(reader, content, ask_again))


def _cut_again(ask_again: AskAgain, span: Span) -> AskAgain:
    async def ask(index: int) -> Content:
        return (await ask_again(index)).cut(span.first, span.length)

    return ask


async def _pieces_only(reader: BlobReader, content: Content, ask_again: AskAgain) -> AsyncGenerator[Piece, None]:
    async with aclosing(read(reader, [content], ask_again)) as pieces:
        async for _, piece in pieces:
            yield piece


async def _begun(status: int, fields: Headers, pieces: AsyncGenerator[Piece, None]) -> Response:
    """Return a streamed response after its first piece has come."""
    try:
        first = await anext(pieces, b"")
    except BaseException:
        await pieces.aclose()
        raise
    return Streamed(status, fields, [first], pieces)


def multipart_headers(media_type: str, boundary: str, etag: str, length: int | None = None, warning: str = "") -> Headers:
    """Return the header fields of a multipart answer."""
    return headers(
        content_type=multipart_writer.content_type(media_type, boundary),
        content_length="" if length is None else str(length),
        etag=etag,
        vary="Accept",
        cache_control="private, no-cache",
        warning=warning,
    )


async def multipart(
    reader: BlobReader,
    media_type: str,
    parts: Iterable[Part],
    number_of_parts: int,
    etag: str,
    ask_again: Callable[[int], Awaitable[Content]],
    status: int = 200,
) -> Response:
    """Return stored representations, one part each, with a Content-Length up to `MOST_MEASURED_PARTS` parts."""
    boundary = multipart_writer.new_boundary()
    closing = multipart_writer.closing(boundary, empty=number_of_parts == 0)
    if number_of_parts > MOST_MEASURED_PARTS:
        pieces = _multipart_pieces(reader, _with_heads(parts, boundary), closing, ask_again)
        return await _begun(status, multipart_headers(media_type, boundary, etag), pieces)
    headed = list(_with_heads(parts, boundary))
    length = sum(len(head) + content.length for head, content in headed) + len(closing)
    fields = multipart_headers(media_type, boundary, etag, length)
    if length <= AT_ONCE_BYTES and headed and (views := ready(reader, [content for _, content in headed])) is not None:
        bodies: list[Piece] = []
        for (head, _), pieces_of_part in zip(headed, views, strict=True):
            bodies.append(head)
            bodies.extend(pieces_of_part)
        bodies.append(closing)
        # One small write costs less than several.
        return Immediate(status, fields, [b"".join(bodies)] if length <= JOINED_BYTES else bodies)
    return await _begun(status, fields, _multipart_pieces(reader, headed, closing, ask_again))


def _with_heads(parts: Iterable[Part], boundary: str) -> Iterable[tuple[bytes, Content]]:
    for index, part in enumerate(parts):
        head = multipart_writer.part_head(boundary, part.content_type, part.content_location, part.content.length, index == 0)
        yield head, part.content


async def _multipart_pieces(
    reader: BlobReader, headed: Iterable[tuple[bytes, Content]], closing: bytes, ask_again: AskAgain
) -> AsyncGenerator[Piece, None]:
    """Yield heads and bytes in order; the first head comes after the first bytes were read."""
    heads: list[bytes] = []

    def contents() -> Iterable[Content]:
        for head, content in headed:
            heads.append(head)
            yield content

    sent = 0
    async with aclosing(read(reader, contents(), ask_again)) as pieces:
        async for index, piece in pieces:
            while sent <= index:
                yield heads[sent]
                heads[sent] = b""
                sent += 1
            yield piece
    for head in heads[sent:]:
        yield head
    yield closing
