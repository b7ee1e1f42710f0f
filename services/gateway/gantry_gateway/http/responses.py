"""The ASGI responses: `Immediate` where the whole body is there, `Streamed` where it comes in pieces.

Starlette's responses are not used on these paths: a frame is answered in a tenth of a millisecond, and a stream ends as soon as
the client is gone.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing

from starlette.types import Message, Receive, Scope, Send

from gantry_runtime.process import end_tasks

Headers = list[tuple[bytes, bytes]]
Piece = bytes | memoryview
"""Bytes of a body, as they are sent."""


def headers(**fields: str) -> Headers:
    """Return header fields; `content_type` becomes content-type, empty ones are left out."""
    return [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in fields.items() if value]


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
    await end_tasks([sending])


Response = Immediate | Streamed
