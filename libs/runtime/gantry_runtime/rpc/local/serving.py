"""The serving side: what `add_…Servicer_to_server` registers, called as frames come."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from gantry_runtime import call_context
from gantry_runtime.call_context import CURRENT
from gantry_runtime.process import end_tasks
from gantry_runtime.rpc import rpc_errors
from gantry_runtime.rpc.accounts import account
from gantry_runtime.rpc.addresses import LOCAL
from gantry_runtime.rpc.local.wire import (
    CALL,
    CALL_WITH_REQUEST,
    CANCEL,
    CONTEXT_LENGTH,
    END,
    HAS_CONTEXT,
    MESSAGE,
    OK,
    RESULT,
    STATUS,
    TAKEN,
    Bytes,
    Inflow,
    Outflow,
    Wire,
    status_of,
    tune,
)
from gantry_standard import errors

log = logging.getLogger(__name__)


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


class _Serving(Wire):
    """The server's side of a connection."""

    def __init__(self, services: Services, connections: "set[_Serving]") -> None:
        super().__init__()
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self._services = services
        self._connections = connections
        self._in: dict[int, Inflow] = {}
        self._out: dict[int, Outflow] = {}

    def connection_made(self, transport: Any) -> None:
        """Join those that are served."""
        super().connection_made(transport)
        tune(transport)
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
        at = 1 + (payload[0] & ~HAS_CONTEXT)
        name, handler = self._services.handlers.get(bytes(payload[1:at]), ("", None))
        if handler is None:
            self.send(STATUS, number, (status_of((grpc.StatusCode.UNIMPLEMENTED, "there is no such method", ())),))
            return
        context = b""
        if payload[0] & HAS_CONTEXT:
            begin = at + CONTEXT_LENGTH.size
            at = begin + CONTEXT_LENGTH.unpack_from(payload, at)[0]
            context = bytes(payload[begin:at])
        if not has_request:
            self._in[number] = Inflow(self, number)
        task = asyncio.create_task(self._run(number, name, handler, context, memoryview(payload)[at:]))
        self.tasks[number] = task
        task.add_done_callback(lambda _: self._forget(number))

    def _forget(self, number: int) -> None:
        self.tasks.pop(number, None)
        self._in.pop(number, None)
        self._out.pop(number, None)

    async def _run(self, number: int, name: str, handler: Any, context: bytes, payload: memoryview) -> None:
        begin, status = time.perf_counter(), "CANCELLED"
        try:
            if context:
                # Of this call's task alone.
                CURRENT.set(call_context.decoded(context))
            argument = self._argument(number, name, handler, payload)
            if handler.response_streaming:
                inner = handler.stream_stream or handler.unary_stream
                out = self._out[number] = Outflow(self, number)
                async with aclosing(inner(argument, None)) as messages:
                    async for message in messages:
                        await out.send((handler.response_serializer(message),))
                self.send(STATUS, number, (status_of(OK),))
            else:
                inner = handler.stream_unary or handler.unary_unary
                self.send(RESULT, number, (handler.response_serializer(await inner(argument, None)),))
            status = "OK"
        except errors.GantryError as error:
            ending = rpc_errors.status_of(error), error.message, rpc_errors.trailing_metadata(error)
            status = ending[0].name
            self.send(STATUS, number, (status_of(ending),))
        except Exception:
            status = "INTERNAL"
            log.exception("rpc failed", extra={"method": name})
            self.send(STATUS, number, (status_of((grpc.StatusCode.INTERNAL, f"{name} failed", ())),))
        finally:
            account(name, status, begin)

    def _argument(self, number: int, name: str, handler: Any, payload: memoryview) -> Any:
        if handler.request_streaming:
            return _requests(self._in[number], handler.request_deserializer)
        return payload if name in self._services.as_bytes else handler.request_deserializer(payload)


async def _requests(flow: Inflow, deserialize: Callable[[Bytes], Any]) -> AsyncIterator[Any]:
    while (message := await flow.take()) is not None:
        yield deserialize(message)


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
