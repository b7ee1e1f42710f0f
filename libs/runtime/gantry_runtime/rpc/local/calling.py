"""The calling side: what generated stubs use of grpc.aio."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio

from gantry_runtime import call_context
from gantry_runtime.rpc.addresses import LOCAL
from gantry_runtime.rpc.local.wire import (
    ABANDONED,
    CALL,
    CALL_WITH_REQUEST,
    CANCEL,
    CONTEXT_LENGTH,
    END,
    GONE,
    HAS_CONTEXT,
    LATE,
    MESSAGE,
    OK,
    RESULT,
    STATUS,
    TAKEN,
    Bytes,
    Ending,
    Inflow,
    Outflow,
    Wire,
    ending_of,
    error_of,
    tune,
)

CONNECT_AGAIN_S = 0.05
CONNECT_S = 5.0


class _Client(Wire):
    """The connection of a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[int, _Unary | Stream] = {}
        self._numbers = itertools.count(1)

    def begin(self, call: "_Unary | Stream", name: bytes, request: Sequence[Bytes] | None) -> int:
        """Begin a call; return its number."""
        number = next(self._numbers) & 0xFFFFFFFF
        self.calls[number] = call
        if context := call_context.encoded():
            head = bytes((len(name) | HAS_CONTEXT,)) + name + CONTEXT_LENGTH.pack(len(context)) + context
        else:
            head = bytes((len(name),)) + name
        self.send(CALL if request is None else CALL_WITH_REQUEST, number, (head, *(request or ())))
        return number

    def frame(self, kind: int, call: int, payload: Bytes) -> None:
        """Give a frame to its call; that of one which has ended here is dropped."""
        if kind in (RESULT, STATUS):
            found = self.calls.pop(call, None)
            if found is not None:
                found.ended(OK if kind == RESULT else ending_of(payload), payload if kind == RESULT else None)
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

    def __init__(self, deserialize: Callable[[Bytes], Any]) -> None:
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
                self.future.set_exception(error_of(ending))
            else:
                self.future.set_result(self._deserialize(payload))
        except Exception as error:
            self.future.set_exception(error)

    def _done(self, future: "asyncio.Future[Any]") -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._sent is not None:
            self._sent[0].forget(self._sent[1])


class Stream:
    """A call with a stream of requests, of answers, or of both; what our code uses of grpc.aio's calls."""

    def __init__(self, deserialize: Callable[[Bytes], Any], serialize: Callable[[Any], bytes] | None) -> None:
        self._deserialize = deserialize
        self._serialize = serialize
        self._timer: asyncio.TimerHandle | None = None
        self._sent: tuple[_Client, int] | None = None
        self._ending: Ending | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._in: Inflow | None = None
        self._out: Outflow | None = None

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
        self._sent, self._in, self._out = (client, number), Inflow(client, number), Outflow(client, number)

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
            raise error_of(self._ending)

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
            return self._deserialize(message)
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
        tune(transport)
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


@asynccontextmanager
async def channel(address: str, as_pieces: frozenset[str] = frozenset()) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel to an address that begins with LOCAL."""
    opened = Channel(address.removeprefix(LOCAL), as_pieces)
    try:
        yield cast(grpc.aio.Channel, opened)
    finally:
        opened.close()
