"""The client's side of local calls: the part of grpc.aio's channel and calls that generated stubs and our code use."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio

from gantry_runtime import call_context
from gantry_runtime.rpc.addresses import LOCAL
from gantry_runtime.rpc.local.frames import (
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
    Connection,
    Ending,
    Inflow,
    Outflow,
    ending_of,
    error_of,
    tune,
)

CONNECT_AGAIN_S = 0.05
CONNECT_S = 5.0


class _Client(Connection):
    """The connection of a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[int, _Unary | Stream] = {}
        self._numbers = itertools.count(1)

    def begin(self, call: "_Unary | Stream", name: bytes, request: Sequence[Bytes] | None) -> int:
        """Send the first frame of a call; return the call's number."""
        number = next(self._numbers) & 0xFFFFFFFF
        self.calls[number] = call
        if context := call_context.encoded():
            beginning = bytes((len(name) | HAS_CONTEXT,)) + name + CONTEXT_LENGTH.pack(len(context)) + context
        else:
            beginning = bytes((len(name),)) + name
        self.send(CALL if request is None else CALL_WITH_REQUEST, number, (beginning, *(request or ())))
        return number

    def frame(self, kind: int, call: int, body: Bytes) -> None:
        """Pass a frame to its call. A frame of a call that has ended is dropped."""
        if kind in (RESULT, STATUS):
            call_state = self.calls.pop(call, None)
            if call_state is not None:
                call_state.ended(OK if kind == RESULT else ending_of(body), body if kind == RESULT else None)
        elif isinstance(stream := self.calls.get(call), Stream):
            stream.frame_received(kind, body)

    def connection_lost(self, exc: Exception | None) -> None:
        """End every call with UNAVAILABLE."""
        super().connection_lost(exc)
        calls, self.calls = self.calls, {}
        for call in calls.values():
            call.ended(GONE, None)

    def forget(self, number: int) -> None:
        """Cancel a call at the server."""
        if self.calls.pop(number, None) is not None:
            self.send(CANCEL, number)


class _Unary:
    """A call with one request and one response; `future` has the response."""

    def __init__(self, deserialize: Callable[[Bytes], Any]) -> None:
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._deserialize = deserialize
        self._timer: asyncio.TimerHandle | None = None
        self._sent: tuple[_Client, int] | None = None
        self.future.add_done_callback(self._done)

    def expire_after(self, timeout_s: float) -> None:
        """End the call with DEADLINE_EXCEEDED after `timeout_s` seconds."""
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self.ended, LATE, None)

    def send(self, client: _Client, name: bytes, request: Sequence[Bytes]) -> None:
        """Send the request."""
        if not self.future.done():
            self._sent = client, client.begin(self, name, request)

    def ended(self, ending: Ending, body: Bytes | None) -> None:
        """Set the response, or the error that `ending` describes, as result of the future."""
        if self.future.done():
            return
        try:
            if body is None:
                self.future.set_exception(error_of(ending))
            else:
                self.future.set_result(self._deserialize(body))
        except Exception as error:
            self.future.set_exception(error)

    def _done(self, future: "asyncio.Future[Any]") -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._sent is not None:
            self._sent[0].forget(self._sent[1])


class Stream:
    """A call with a stream of requests, of responses, or of both. It has the methods of grpc.aio's calls that our code uses."""

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
        """Send the first frame, as soon as there is a connection.

        Args:
            name: path of the method.
            request: the serialised request; None for a stream of requests.
            timeout_s: deadline of the whole call; None for no deadline.
            is_waiting: retry until there is a connection.
        """
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

    def frame_received(self, kind: int, body: Bytes) -> None:
        """Handle a frame of this call."""
        if kind == MESSAGE and self._in is not None:
            self._in.arrive(body)
        elif kind == TAKEN and self._out is not None:
            self._out.taken(int.from_bytes(body, "little"))

    def ended(self, ending: Ending, body: Bytes | None) -> None:
        """Record the status, and the response of a call that has a single one."""
        if self._ending is not None:
            return
        self._ending = ending
        if self._timer is not None:
            self._timer.cancel()
        if self._in is not None and self._out is not None:
            if body is not None:
                self._in.arrive(body)
            self._in.end()
            self._out.end()

    def _give_up(self, ending: Ending) -> None:
        sent, is_over = self._sent, self._ending is not None
        self.ended(ending, None)
        if not is_over and sent is not None:
            sent[0].forget(sent[1])

    def cancel(self) -> bool:
        """End the call here and at the server; return whether it was running."""
        was_running = self._ending is None
        self._give_up(ABANDONED)
        if self._connecting is not None:
            self._connecting.cancel()
        return was_running

    def _fail(self) -> None:
        if self._ending is not None and self._ending[0] is not grpc.StatusCode.OK:
            raise error_of(self._ending)

    async def wait_for_connection(self) -> None:
        """Wait until the first frame is sent.

        Raises:
            grpc.aio.AioRpcError: there is no server, or the call has failed.
        """
        if self._connecting is not None:
            await asyncio.wait({self._connecting})
        self._fail()

    async def write(self, message: Any) -> None:
        """Send a request.

        Raises:
            grpc.aio.AioRpcError: the call has failed; the error says why.
            asyncio.InvalidStateError: the call has ended with OK.
        """
        await self.write_buffers((self._serialize(message) if self._serialize else message,))

    async def write_buffers(self, buffers: Sequence[Bytes]) -> None:
        """Send a serialised request, given in consecutive buffers. Raises the same errors as `write`."""
        await self.wait_for_connection()
        if self._out is not None:
            await self._out.send(buffers)
        self._fail()
        if self._ending is not None:
            raise asyncio.InvalidStateError("the call has ended")

    async def done_writing(self) -> None:
        """Tell the server that no more requests follow."""
        await self.wait_for_connection()
        if self._ending is None and self._sent is not None:
            self._sent[0].send(END, self._sent[1])

    async def read(self) -> Any:
        """Return the next response; grpc.aio.EOF after the last one.

        Raises:
            grpc.aio.AioRpcError: the call has failed.
        """
        await self.wait_for_connection()
        message = await self._in.take() if self._in is not None else None
        if message is not None:
            return self._deserialize(message)
        self._fail()
        return grpc.aio.EOF

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Yield the responses."""
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    def __await__(self) -> Generator[Any, None, Any]:
        """Return the response of a call that has a single one."""
        return self.read().__await__()


class Channel:
    """The methods of grpc.aio.Channel that generated stubs use. It connects at the first call, and again after a connection is lost.

    Args:
        path: of the server's socket.
        as_buffers: names of unary methods that are called with a serialised request, as a list of buffers.
    """

    def __init__(self, path: str, as_buffers: frozenset[str] = frozenset()) -> None:
        self._path = path
        self._as_buffers = as_buffers
        self._connection: _Client | None = None
        self._connecting: asyncio.Task[_Client] | None = None

    @property
    def client(self) -> _Client | None:
        """The open connection; None if there is none."""
        connection = self._connection
        return connection if connection is not None and connection.transport is not None and not connection.transport.is_closing() else None

    async def connected(self, is_waiting: bool) -> _Client:
        """Return the open connection; connect if there is none.

        Args:
            is_waiting: retry without limit.

        Raises:
            OSError: there is no server, and `is_waiting` is false.
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
        """Return a function that makes a call with one request and one response."""
        name, is_buffers = method.encode(), method.rpartition("/")[2] in self._as_buffers

        def call(request: Any, timeout: float | None = None, wait_for_ready: bool = False, **_: Any) -> "asyncio.Future[Any]":
            unary = _Unary(response_deserializer)
            if timeout is not None:
                unary.expire_after(timeout)
            buffers = request if is_buffers else (request_serializer(request),)
            if (client := self.client) is not None:
                unary.send(client, name, buffers)
            else:
                connecting = asyncio.create_task(self._send_later(unary, name, buffers, wait_for_ready))
                unary.future.add_done_callback(lambda _: connecting.cancel())
            return unary.future

        return call

    async def _send_later(self, call: _Unary, name: bytes, buffers: Sequence[Bytes], is_waiting: bool) -> None:
        try:
            client = await self.connected(is_waiting)
        except OSError:
            call.ended(GONE, None)
        else:
            call.send(client, name, buffers)

    def unary_stream(self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any) -> Any:
        """Return a function that makes a call with one request and a stream of responses."""

        def call(request: Any, timeout: float | None = None, wait_for_ready: bool = False, **_: Any) -> Stream:
            stream = Stream(response_deserializer, None)
            stream.begin(self, method.encode(), (request_serializer(request),), timeout, wait_for_ready)
            return stream

        return call

    def stream_stream(self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any) -> Any:
        """Return a function that makes a call with a stream of requests. Requests are sent with `write`, not given as an iterator."""

        def call(timeout: float | None = None, wait_for_ready: bool = False, **_: Any) -> Stream:
            stream = Stream(response_deserializer, request_serializer)
            stream.begin(self, method.encode(), None, timeout, wait_for_ready)
            return stream

        return call

    stream_unary = stream_stream

    def close(self) -> None:
        """Close the connection; all its calls fail."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None and self._connection.transport is not None:
            self._connection.transport.abort()


@asynccontextmanager
async def channel(address: str, as_buffers: frozenset[str] = frozenset()) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel to an address that begins with LOCAL."""
    opened = Channel(address.removeprefix(LOCAL), as_buffers)
    try:
        yield cast(grpc.aio.Channel, opened)
    finally:
        opened.close()
