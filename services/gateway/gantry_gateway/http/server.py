"""The HTTP server: uvicorn with bounded request headers, responses in one write, no signal handlers, and an orderly stop."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gantry_runtime.process import Process

MAX_HEAD_BYTES = 256 << 10
"""Most bytes of request line and header fields; more is 431. They are counted per read of the socket, so slightly more may be accepted."""

MAX_TARGET_BYTES = 65_535
"""Most bytes of path and query that the parser accepts; more is 414. A list of a thousand UIDs fits."""

MAX_MESSAGE_BYTES = 64 << 10
"""Most bytes of a WebSocket message; a longer one closes the connection with 1009. Messages of subscribers are ignored."""

_CONTROL = bytes([*range(9), *range(10, 32), 127])
_OF_THE_CONNECTION = (b"connection", b"transfer-encoding")
_WITHOUT_BODY = (204, 304)
TICK_S = 0.1
BACKLOG = 2048
KEEP_ALIVE_S = 75
"""Seconds; more than the idle timeout of common load balancers (60 s), so that they close connections first."""


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with a limit for request line and header fields."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url = b""
        self._head_bytes = 0
        self._is_in_head = True

    def on_message_begin(self) -> None:
        """Begin to count the bytes of request line and header fields."""
        self._head_bytes, self._is_in_head = 0, True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop counting."""
        self._is_in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Handle bytes of the socket."""
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse("431 Request Header Fields Too Large", f"request line and headers have more than {MAX_HEAD_BYTES} bytes")

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not a request: 414 if the path is too long, else 400."""
        if len(self.url) > MAX_TARGET_BYTES:
            self._refuse("414 URI Too Long", f"path and query have more than {MAX_TARGET_BYTES} bytes")
        else:
            self._refuse("400 Bad Request", "this is no HTTP/1.1 request")

    def _refuse(self, status: str, message: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # A response is being sent; other bytes would corrupt it
            self.transport.abort()
            return
        body = f"{status}: {message}\n"
        fields = (
            f"content-type: text/plain\r\ncross-origin-resource-policy: cross-origin\r\ncontent-length: {len(body)}\r\nconnection: close"
        )
        self.transport.write(f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n{body}".encode())
        self.transport.close()


def write_whole(send: Send, status: int, fields: Sequence[tuple[bytes, bytes]], bodies: Sequence[bytes | memoryview]) -> bool:
    """Send a response whose body is in memory in one write, without ASGI messages, which take a sixth of the time of a small response.

    Args:
        send: of the request, from uvicorn.
        fields: header fields, names in lower case.
        bodies: not sent for HEAD.

    Returns:
        Whether the response was written. If not, nothing was written, and ASGI messages must be used: `send` is not uvicorn's, the client
        has disconnected or has not read preceding bytes, or the length of the response is not known.

    Raises:
        RuntimeError: a field has a control character, or Content-Length differs from the length of the bodies; nothing was written.
    """
    cycle = getattr(send, "__self__", None)
    if not isinstance(cycle, RequestResponseCycle) or cycle.disconnected or cycle.flow.write_paused or cycle.response_started:
        return False
    head, length = [STATUS_LINE[status]], -1
    for name, value in (*cycle.default_headers, *fields):
        head += (name, b": ", value, b"\r\n")
        if name == b"content-length":
            length = int(value)
        elif name in _OF_THE_CONNECTION:
            return False
    if cycle.scope["method"] == "HEAD" or status in _WITHOUT_BODY:
        bodies = ()
    elif length < 0:
        return False
    elif length != sum(map(len, bodies)):
        raise RuntimeError("Content-Length differs from the length of the body")
    if not cycle.keep_alive:
        head += (b"connection", b": ", b"close", b"\r\n")
    head.append(b"\r\n")
    joined = b"".join(head)
    line_breaks = len(head) // 4 + 2
    if len(joined.translate(None, _CONTROL)) != len(joined) - 2 * line_breaks:
        raise RuntimeError("a header field holds a control character")
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    cycle.transport.writelines((joined, *bodies))
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: the process has its own."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self.told_to_exit = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and set `up`."""
        await super().startup(sockets)
        self.up.set()

    async def main_loop(self) -> None:
        """Tick as uvicorn does, but end at once when `told_to_exit` is set, not at the next tick."""
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + 1) % 864_000
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self.told_to_exit.wait()


@asynccontextmanager
async def serving(
    app: ASGIApp,
    host: str,
    port: int,
    drain_s: float,
    ws_protocol: type | None = None,
    is_shared: bool = False,
    process: Process | None = None,
) -> AsyncIterator[int]:
    """Serve HTTP and WebSockets while the context is open.

    Args:
        port: 0 for a free port.
        drain_s: seconds for running requests to end when the context closes; new requests are refused then.
        ws_protocol: uvicorn's WebSocket protocol, or a subclass; None refuses upgrades.
        is_shared: other processes may listen on the same port; the kernel gives each connection to one of them.
        process: is ended if the server ends by itself.

    Yields:
        The port.

    Raises:
        OSError: the address cannot be listened on.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=is_shared)
    config = uvicorn.Config(
        app,
        http=BoundedHttp,
        ws=ws_protocol if ws_protocol is not None else "none",
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws_per_message_deflate=False,
        ws_max_size=MAX_MESSAGE_BYTES,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, int(drain_s)),
        backlog=BACKLOG,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="uvicorn")
    up = asyncio.create_task(server.up.wait())
    await asyncio.wait({task, up}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        up.cancel()
        listener.close()
        await task
    try:
        with process.guarded(task) if process is not None else contextlib.nullcontext():
            yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        server.told_to_exit.set()
        await asyncio.wait([task])
        if process is None:
            # With a process, `guarded` has already reported the error
            task.result()
