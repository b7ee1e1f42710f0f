"""ASGI responses: `Immediate` with a body in memory, `Streamed` with a body that is computed while it is sent.

Starlette's responses are not used here, because they take more CPU time (a frame is answered in 0.1 ms), and because a stream must end
as soon as the client disconnects.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing

from starlette.types import Message, Receive, Scope, Send

from gantry_runtime.process import end_tasks

Headers = list[tuple[bytes, bytes]]
Chunk = bytes | memoryview
"""Consecutive bytes of a body, which are sent together."""


def headers(**fields: str) -> Headers:
    """Return ASGI header fields. An argument `content_type` becomes the field content-type; fields with an empty value are left out."""
    return [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in fields.items() if value]


class Immediate:
    """A response with a body in memory."""

    __slots__ = ("bodies", "headers", "status")

    def __init__(self, status: int, fields: Headers, bodies: Sequence[Chunk]) -> None:
        self.status = status
        self.headers = fields
        self.bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        bodies = () if scope["method"] == "HEAD" else self.bodies
        for body in bodies[:-1]:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": bodies[-1] if bodies else b"", "more_body": False})


class Streamed:
    """A response whose body is computed while it is sent.

    `first` has the first chunks, which exist before the status line is sent, so that an error in them still determines the status. When
    the client disconnects, the generator of chunks is closed, which ends its reads and calls.
    """

    __slots__ = ("chunks", "first", "headers", "status")

    def __init__(self, status: int, fields: Headers, first: Iterable[Chunk], chunks: AsyncGenerator[Chunk, None]) -> None:
        self.status = status
        self.headers = fields
        self.first = first
        self.chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        async with aclosing(self.chunks):
            await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._send_body(send))
                watching = tasks.create_task(_cancel_when_gone(receive, sending))
                sending.add_done_callback(lambda _: watching.cancel())

    async def _send_body(self, send: Send) -> None:
        for chunk in self.first:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        async for chunk in self.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _cancel_when_gone(receive: Receive, sending: "asyncio.Task[None]") -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()
    await end_tasks([sending])


Response = Immediate | Streamed
