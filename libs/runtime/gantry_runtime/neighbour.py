"""RPC between processes of one machine: gRPC's services, stubs and errors over a Unix socket, without gRPC's transport.

A call over grpcio costs its two processes half a millisecond of CPU together, and more with half a megabyte in it; one of these costs
a tenth of that (docs/decisions/0100-neighbours.md). Generated stubs and servicers are used as they are: `Channel` gives a stub what it
needs of a grpc.aio.Channel, `Services` collects what `add_…Servicer_to_server` registers. Calls raise grpc.aio.AioRpcError as theirs do.

On the wire each frame is HEADER (length of the payload, kind, number of the call) and its payload. A call begins with CALL; one with a
single request carries it there. A single answer is RESULT; anything else ends with STATUS. Of a stream, at most WINDOW_BYTES and one
message wait untaken at the receiver: it says TAKEN when they are taken. Calls end with their connection, as the processes do.
"""

import asyncio
import itertools
import json
import logging
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio

from gantry_runtime import rpc_errors, telemetry
from gantry_runtime.addresses import LOCAL
from gantry_runtime.process import end_tasks
from gantry_standard import errors

log = logging.getLogger(__name__)

MOST_FRAME_BYTES = 64 << 20
WINDOW_BYTES = 2 << 20
SCRATCH_BYTES = 64 << 10
JOINED_BYTES = 16 << 10
"""Frames up to this length are joined with their header before they are written."""

SOCKET_BYTES = 1 << 20
CONNECT_AGAIN_S = 0.05
CONNECT_S = 5.0

HEADER = struct.Struct("<IBI")
CALL, CALL_WITH_REQUEST, MESSAGE, END, CANCEL, TAKEN, RESULT, STATUS = range(1, 9)

CODES = {code.value[0]: code for code in grpc.StatusCode}
Bytes = bytes | bytearray | memoryview
Ending = tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]
OK: Ending = (grpc.StatusCode.OK, "", ())
GONE: Ending = (grpc.StatusCode.UNAVAILABLE, "the connection ended", ())
LATE: Ending = (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", ())
ABANDONED: Ending = (grpc.StatusCode.CANCELLED, "the call was cancelled", ())


class _Wire(asyncio.BufferedProtocol):
    """One side of a connection: cuts what comes into frames, writes frames."""

    def __init__(self) -> None:
        self.transport: Any = None
        self._scratch = bytearray(SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._filled = 0
        self._payload: memoryview | None = None
        self._received = 0
        self._head = (0, 0, 0)
        self._is_writable = asyncio.Event()
        self._is_writable.set()

    def connection_made(self, transport: Any) -> None:
        """Take the transport."""
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of who waits for the transport."""
        self.transport = None
        self._is_writable.set()

    def pause_writing(self) -> None:
        """Make senders of streams wait."""
        self._is_writable.clear()

    def resume_writing(self) -> None:
        """Let them go on."""
        self._is_writable.set()

    async def writable(self) -> None:
        """Wait until the transport takes more."""
        await self._is_writable.wait()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go: straight into a long payload, else into the scratch buffer."""
        if self._payload is not None:
            return self._payload[self._received :]
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Cut off the frames that are whole."""
        if self._payload is not None:
            self._received += nbytes
            if self._received < len(self._payload):
                return
            payload, self._payload = self._payload, None
            self.frame(self._head[1], self._head[2], payload.toreadonly())
            return
        self._filled += nbytes
        at = 0
        while self._filled - at >= HEADER.size:
            length, kind, call = HEADER.unpack_from(self._scratch, at)
            end = at + HEADER.size + length
            if end > self._filled:
                if end - at > SCRATCH_BYTES:
                    self._begin_long(length, kind, call, at + HEADER.size)
                    return
                break
            self.frame(kind, call, self._view[at + HEADER.size : end].tobytes())
            at = end
        if at:
            rest = self._filled - at
            self._scratch[:rest] = self._scratch[at : self._filled]
            self._filled = rest

    def _begin_long(self, length: int, kind: int, call: int, at: int) -> None:
        if length > MOST_FRAME_BYTES:
            log.error("a neighbour sent a frame that is too long", extra={"bytes": length})
            self.transport.abort()
            return
        self._payload, self._head = memoryview(bytearray(length)), (length, kind, call)
        self._received = self._filled - at
        self._payload[: self._received] = self._view[at : self._filled]
        self._filled = 0

    def send(self, kind: int, call: int, pieces: Sequence[Bytes] = ()) -> None:
        """Write a frame; without a connection it is lost, as the call is."""
        if self.transport is None or self.transport.is_closing():
            return
        length = sum(map(len, pieces))
        header = HEADER.pack(length, kind, call)
        if length <= JOINED_BYTES:
            self.transport.write(b"".join((header, *pieces)))
        else:
            self.transport.writelines((header, *pieces))

    def frame(self, kind: int, call: int, payload: Bytes) -> None:
        """Take one frame."""
        raise NotImplementedError


class _Inflow:
    """Messages of a stream that have come and were not taken yet."""

    def __init__(self, wire: _Wire, number: int) -> None:
        self.is_ended = False
        self._wire = wire
        self._number = number
        self._waiting: deque[Bytes] = deque()
        self._taken = 0
        self._arrived: asyncio.Future[None] | None = None

    def arrive(self, message: Bytes) -> None:
        """Take a message from the wire."""
        self._waiting.append(message)
        self._wake()

    def end(self) -> None:
        """No more will come."""
        self.is_ended = True
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    async def take(self) -> Bytes | None:
        """Return the next message, None behind the last one."""
        while not self._waiting:
            if self.is_ended:
                return None
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived
        message = self._waiting.popleft()
        self._taken += len(message)
        if self._taken >= WINDOW_BYTES // 4 and not self.is_ended:
            self._wire.send(TAKEN, self._number, (self._taken.to_bytes(8, "little"),))
            self._taken = 0
        return message


class _Outflow:
    """Sends the messages of a stream as fast as they are taken."""

    def __init__(self, wire: _Wire, number: int) -> None:
        self.is_ended = False
        self._wire = wire
        self._number = number
        self._untaken = 0
        self._room: asyncio.Future[None] | None = None

    def taken(self, size: int) -> None:
        """Hear that the other side took messages."""
        self._untaken -= size
        self._wake()

    def end(self) -> None:
        """Let go of who waits."""
        self.is_ended = True
        self._wake()

    def _wake(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def send(self, pieces: Sequence[Bytes]) -> None:
        """Send a message when there is room for it. Nothing is sent after the end."""
        while self._untaken >= WINDOW_BYTES and not self.is_ended:
            self._room = asyncio.get_running_loop().create_future()
            await self._room
        await self._wire.writable()
        if not self.is_ended:
            self._untaken += sum(map(len, pieces))
            self._wire.send(MESSAGE, self._number, pieces)


def _status(ending: Ending) -> bytes:
    code, details, metadata = ending
    told = [[name, value.decode("latin-1") if isinstance(value, bytes) else value] for name, value in metadata]
    return json.dumps([code.value[0], details, told]).encode()


def _ending(payload: Bytes) -> Ending:
    code, details, metadata = json.loads(bytes(payload))
    told = tuple((name, value.encode("latin-1") if name.endswith("-bin") else value) for name, value in metadata)
    return CODES.get(code, grpc.StatusCode.UNKNOWN), details, told


def _error(ending: Ending) -> grpc.aio.AioRpcError:
    code, details, metadata = ending
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details)


# The calling side ------------------------------------------------------------------------------------------------------------


class _Client(_Wire):
    """The connection of a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[int, _Unary | Stream] = {}
        self._numbers = itertools.count(1)

    def begin(self, call: "_Unary | Stream", name: bytes, request: Sequence[Bytes] | None) -> int:
        """Begin a call; return its number."""
        number = next(self._numbers) & 0xFFFFFFFF
        self.calls[number] = call
        head = bytes((len(name),)) + name
        self.send(CALL if request is None else CALL_WITH_REQUEST, number, (head, *(request or ())))
        return number

    def frame(self, kind: int, call: int, payload: Bytes) -> None:
        """Give a frame to its call; that of one which has ended here is dropped."""
        if kind in (RESULT, STATUS):
            found = self.calls.pop(call, None)
            if found is not None:
                found.ended(OK if kind == RESULT else _ending(payload), payload if kind == RESULT else None)
        elif isinstance(stream := self.calls.get(call), Stream):
            stream.heard(kind, payload)

    def connection_lost(self, exc: Exception | None) -> None:
        """End every call."""
        super().connection_lost(exc)
        calls, self.calls = self.calls, {}
        for call in calls.values():
            call.ended(GONE, None)

    def forget(self, number: int) -> None:
        """Tell the server that nobody waits any more."""
        if self.calls.pop(number, None) is not None:
            self.send(CANCEL, number)


class _Unary:
    """A call with one request and one answer; `future` has the answer."""

    def __init__(self, deserialize: Callable[[bytes], Any]) -> None:
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._deserialize = deserialize
        self._timer: asyncio.TimerHandle | None = None
        self._sent: tuple[_Client, int] | None = None
        self.future.add_done_callback(self._done)

    def expire_after(self, timeout_s: float) -> None:
        """End it when the time is over."""
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self.ended, LATE, None)

    def send(self, client: _Client, name: bytes, request: Sequence[Bytes]) -> None:
        """Send the request."""
        if not self.future.done():
            self._sent = client, client.begin(self, name, request)

    def ended(self, ending: Ending, payload: Bytes | None) -> None:
        """Take the answer or the error."""
        if self.future.done():
            return
        try:
            if payload is None:
                self.future.set_exception(_error(ending))
            else:
                self.future.set_result(self._deserialize(bytes(payload)))
        except Exception as error:
            self.future.set_exception(error)

    def _done(self, future: "asyncio.Future[Any]") -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._sent is not None:
            self._sent[0].forget(self._sent[1])


class Stream:
    """A call with a stream of requests, of answers, or of both; what our code uses of grpc.aio's calls."""

    def __init__(self, deserialize: Callable[[bytes], Any], serialize: Callable[[Any], bytes] | None) -> None:
        self._deserialize = deserialize
        self._serialize = serialize
        self._timer: asyncio.TimerHandle | None = None
        self._sent: tuple[_Client, int] | None = None
        self._ending: Ending | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._in: _Inflow | None = None
        self._out: _Outflow | None = None

    def begin(self, channel: "Channel", name: bytes, request: Sequence[Bytes] | None, timeout_s: float | None, is_waiting: bool) -> None:
        """Send its beginning, now or as soon as there is a connection."""
        if timeout_s is not None:
            self._timer = asyncio.get_running_loop().call_later(timeout_s, self._give_up, LATE)
        if (client := channel.client) is not None:
            self._send(client, name, request)
        else:
            self._connecting = asyncio.create_task(self._connect(channel, name, request, is_waiting))

    async def _connect(self, channel: "Channel", name: bytes, request: Sequence[Bytes] | None, is_waiting: bool) -> None:
        try:
            client = await channel.connected(is_waiting)
        except OSError:
            self.ended(GONE, None)
            return
        if self._ending is None:
            self._send(client, name, request)

    def _send(self, client: _Client, name: bytes, request: Sequence[Bytes] | None) -> None:
        number = client.begin(self, name, request)
        self._sent, self._in, self._out = (client, number), _Inflow(client, number), _Outflow(client, number)

    def heard(self, kind: int, payload: Bytes) -> None:
        """Take a frame of this call."""
        if kind == MESSAGE and self._in is not None:
            self._in.arrive(payload)
        elif kind == TAKEN and self._out is not None:
            self._out.taken(int.from_bytes(payload, "little"))

    def ended(self, ending: Ending, payload: Bytes | None) -> None:
        """Take the status, and an answer that stands alone."""
        if self._ending is not None:
            return
        self._ending = ending
        if self._timer is not None:
            self._timer.cancel()
        if self._in is not None and self._out is not None:
            if payload is not None:
                self._in.arrive(payload)
            self._in.end()
            self._out.end()

    def _give_up(self, ending: Ending) -> None:
        sent, is_over = self._sent, self._ending is not None
        self.ended(ending, None)
        if not is_over and sent is not None:
            sent[0].forget(sent[1])

    def cancel(self) -> bool:
        """End it here and at the server; say whether it was running."""
        was_running = self._ending is None
        self._give_up(ABANDONED)
        if self._connecting is not None:
            self._connecting.cancel()
        return was_running

    def _fail(self) -> None:
        if self._ending is not None and self._ending[0] is not grpc.StatusCode.OK:
            raise _error(self._ending)

    async def wait_for_connection(self) -> None:
        """Wait until the beginning is sent. Raises grpc.aio.AioRpcError where it cannot be."""
        if self._connecting is not None:
            await asyncio.wait({self._connecting})
        self._fail()

    async def write(self, message: Any) -> None:
        """Send a request.

        Raises:
            grpc.aio.AioRpcError: the call has failed; it says why.
            asyncio.InvalidStateError: it has ended well.
        """
        await self.write_pieces((self._serialize(message) if self._serialize else message,))

    async def write_pieces(self, pieces: Sequence[Bytes]) -> None:
        """Send a request that is serialised already. Raises as `write` does."""
        await self.wait_for_connection()
        if self._out is not None:
            await self._out.send(pieces)
        self._fail()
        if self._ending is not None:
            raise asyncio.InvalidStateError("the call has ended")

    async def done_writing(self) -> None:
        """Say that no more requests follow."""
        await self.wait_for_connection()
        if self._ending is None and self._sent is not None:
            self._sent[0].send(END, self._sent[1])

    async def read(self) -> Any:
        """Return the next answer, grpc.aio.EOF behind the last one. Raises grpc.aio.AioRpcError where the call failed."""
        await self.wait_for_connection()
        message = await self._in.take() if self._in is not None else None
        if message is not None:
            return self._deserialize(bytes(message))
        self._fail()
        return grpc.aio.EOF

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Yield the answers."""
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    def __await__(self) -> Generator[Any, None, Any]:
        """Return the answer of a call that has one."""
        return self.read().__await__()


class Channel:
    """What generated stubs use of a grpc.aio.Channel. Nothing connects before the first call; it reconnects by itself.

    Args:
        path: of the server's socket.
        as_pieces: methods that are called with a request that is serialised already, in pieces.
    """

    def __init__(self, path: str, as_pieces: frozenset[str] = frozenset()) -> None:
        self._path = path
        self._as_pieces = as_pieces
        self._connection: _Client | None = None
        self._connecting: asyncio.Task[_Client] | None = None

    @property
    def client(self) -> _Client | None:
        """The connection, where there is one."""
        found = self._connection
        return found if found is not None and found.transport is not None and not found.transport.is_closing() else None

    async def connected(self, is_waiting: bool) -> _Client:
        """Return the connection, made where there is none.

        Args:
            is_waiting: try again for as long as it takes.

        Raises:
            OSError: there is no server.
        """
        while True:
            if (client := self.client) is not None:
                return client
            if self._connecting is None or self._connecting.done():
                self._connecting = asyncio.create_task(self._connect())
            try:
                return await asyncio.shield(self._connecting)
            except OSError:
                if not is_waiting:
                    raise
                await asyncio.sleep(CONNECT_AGAIN_S)

    async def _connect(self) -> _Client:
        async with asyncio.timeout(CONNECT_S):
            transport, client = await asyncio.get_running_loop().create_unix_connection(_Client, self._path)
        _tune(transport)
        self._connection = client
        return client

    def unary_unary(self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any) -> Any:
        """Return what makes a call of one request and one answer."""
        name, is_pieces = method.encode(), method.rpartition("/")[2] in self._as_pieces

        def call(request: Any, timeout: float | None = None, wait_for_ready: bool = False, **_: Any) -> "asyncio.Future[Any]":
            made = _Unary(response_deserializer)
            if timeout is not None:
                made.expire_after(timeout)
            pieces = request if is_pieces else (request_serializer(request),)
            if (client := self.client) is not None:
                made.send(client, name, pieces)
            else:
                connecting = asyncio.create_task(self._send_later(made, name, pieces, wait_for_ready))
                made.future.add_done_callback(lambda _: connecting.cancel())
            return made.future

        return call

    async def _send_later(self, call: _Unary, name: bytes, pieces: Sequence[Bytes], is_waiting: bool) -> None:
        try:
            client = await self.connected(is_waiting)
        except OSError:
            call.ended(GONE, None)
        else:
            call.send(client, name, pieces)

    def unary_stream(self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any) -> Any:
        """Return what makes a call of one request and a stream of answers."""

        def call(request: Any, timeout: float | None = None, wait_for_ready: bool = False, **_: Any) -> Stream:
            made = Stream(response_deserializer, None)
            made.begin(self, method.encode(), (request_serializer(request),), timeout, wait_for_ready)
            return made

        return call

    def stream_stream(self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any) -> Any:
        """Return what makes a call of a stream of requests; they are written, not given as an iterator."""

        def call(timeout: float | None = None, wait_for_ready: bool = False, **_: Any) -> Stream:
            made = Stream(response_deserializer, request_serializer)
            made.begin(self, method.encode(), None, timeout, wait_for_ready)
            return made

        return call

    stream_unary = stream_stream

    def close(self) -> None:
        """End the connection and every call."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None and self._connection.transport is not None:
            self._connection.transport.abort()


def _tune(transport: Any) -> None:
    """Ask for buffers in which a message of an instance has room; the system gives what it allows."""
    found = transport.get_extra_info("socket")
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        found.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)
    transport.set_write_buffer_limits(high=WINDOW_BYTES)


@asynccontextmanager
async def channel(address: str, as_pieces: frozenset[str] = frozenset()) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel to an address that begins with LOCAL."""
    opened = Channel(address.removeprefix(LOCAL), as_pieces)
    try:
        yield cast(grpc.aio.Channel, opened)
    finally:
        opened.close()


# The serving side ------------------------------------------------------------------------------------------------------------


class Services:
    """Collects handlers as a grpc.aio.Server does.

    Args:
        as_bytes: methods of one request and one answer whose handlers take the request as the bytes that came.
    """

    def __init__(self, as_bytes: frozenset[str] = frozenset()) -> None:
        self.handlers: dict[bytes, tuple[str, Any]] = {}
        self.as_bytes = as_bytes

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Any) -> None:
        """Ignore them: the same handlers are registered by name."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Take the handlers of a service."""
        for name, handler in handlers.items():
            self.handlers[f"/{service}/{name}".encode()] = (name, handler)


class _Serving(_Wire):
    """The server's side of a connection."""

    def __init__(self, services: Services, connections: "set[_Serving]") -> None:
        super().__init__()
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self._services = services
        self._connections = connections
        self._in: dict[int, _Inflow] = {}
        self._out: dict[int, _Outflow] = {}

    def connection_made(self, transport: Any) -> None:
        """Join those that are served."""
        super().connection_made(transport)
        _tune(transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what nobody waits for any more."""
        super().connection_lost(exc)
        self._connections.discard(self)
        for number in list(self.tasks):
            self._cancel(number)

    def frame(self, kind: int, call: int, payload: Bytes) -> None:
        """Begin a call, or give the frame to the one that it belongs to."""
        if kind in (CALL, CALL_WITH_REQUEST):
            self._begin(call, payload, has_request=kind == CALL_WITH_REQUEST)
        elif kind == CANCEL:
            self._cancel(call)
        elif kind == TAKEN and (out := self._out.get(call)) is not None:
            out.taken(int.from_bytes(payload, "little"))
        elif kind in (MESSAGE, END) and (flow := self._in.get(call)) is not None:
            if kind == MESSAGE:
                flow.arrive(payload)
            else:
                flow.end()

    def _cancel(self, number: int) -> None:
        if (task := self.tasks.get(number)) is not None:
            task.cancel()
        if (out := self._out.get(number)) is not None:
            out.end()

    def _begin(self, number: int, payload: Bytes, has_request: bool) -> None:
        size = payload[0]
        name, handler = self._services.handlers.get(bytes(payload[1 : 1 + size]), ("", None))
        if handler is None:
            self.send(STATUS, number, (_status((grpc.StatusCode.UNIMPLEMENTED, "there is no such method", ())),))
            return
        if not has_request:
            self._in[number] = _Inflow(self, number)
        task = asyncio.create_task(self._run(number, name, handler, memoryview(payload)[1 + size :]))
        self.tasks[number] = task
        task.add_done_callback(lambda _: self._forget(number))

    def _forget(self, number: int) -> None:
        self.tasks.pop(number, None)
        self._in.pop(number, None)
        self._out.pop(number, None)

    async def _run(self, number: int, name: str, handler: Any, payload: memoryview) -> None:
        begin = time.perf_counter()
        try:
            argument = self._argument(number, name, handler, payload)
            if handler.response_streaming:
                inner = handler.stream_stream or handler.unary_stream
                out = self._out[number] = _Outflow(self, number)
                async with aclosing(inner(argument, None)) as messages:
                    async for message in messages:
                        await out.send((handler.response_serializer(message),))
                self.send(STATUS, number, (_status(OK),))
            else:
                inner = handler.stream_unary or handler.unary_unary
                self.send(RESULT, number, (handler.response_serializer(await inner(argument, None)),))
        except errors.GantryError as error:
            ending = rpc_errors.status_of(error), error.message, rpc_errors.trailing_metadata(error)
            self.send(STATUS, number, (_status(ending),))
        except Exception:
            log.exception("rpc failed", extra={"method": name})
            self.send(STATUS, number, (_status((grpc.StatusCode.INTERNAL, f"{name} failed", ())),))
        finally:
            telemetry.RPC_SECONDS.labels(name).observe(time.perf_counter() - begin)

    def _argument(self, number: int, name: str, handler: Any, payload: memoryview) -> Any:
        if handler.request_streaming:
            return _requests(self._in[number], handler.request_deserializer)
        return payload if name in self._services.as_bytes else handler.request_deserializer(bytes(payload))


async def _requests(flow: _Inflow, deserialize: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    while (message := await flow.take()) is not None:
        yield deserialize(bytes(message))


@asynccontextmanager
async def serving(services: Services, address: str, drain_s: float) -> AsyncIterator[None]:
    """Serve while the context is open, to the user that the process runs as.

    Args:
        address: LOCAL and the path of the socket, which is made anew.
        drain_s: seconds that running calls have to end when the context closes.

    Raises:
        OSError: the socket cannot be made.
    """
    path = Path(address.removeprefix(LOCAL))
    connections: set[_Serving] = set()
    with suppress(FileNotFoundError):
        path.unlink()
    # Made under another name, so that nobody can connect before it is ours alone.
    made = path.with_name(f"{path.name}.new")
    server = await asyncio.get_running_loop().create_unix_server(lambda: _Serving(services, connections), str(made))
    made.chmod(0o600)
    made.rename(path)
    try:
        yield
    finally:
        server.close()
        running = [task for connection in connections for task in connection.tasks.values()]
        if running:
            await asyncio.wait(running, timeout=drain_s)
            await end_tasks(task for task in running if not task.done())
        for connection in list(connections):
            if connection.transport is not None:
                connection.transport.close()
