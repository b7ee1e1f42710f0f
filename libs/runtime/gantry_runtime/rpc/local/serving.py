"""The server's side of local calls: runs the registered handlers when frames arrive."""

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
from gantry_runtime.rpc.local.frames import (
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
    Connection,
    Inflow,
    Outflow,
    status_of,
    tune,
)
from gantry_standard import errors

log = logging.getLogger(__name__)


class Services:
    """Collects the handlers that `add_…Servicer_to_server` registers, in place of a grpc.aio.Server.

    Args:
        as_bytes: names of unary methods whose handlers take the request as serialised bytes.
    """

    def __init__(self, as_bytes: frozenset[str] = frozenset()) -> None:
        self.handlers: dict[bytes, tuple[str, Any]] = {}
        self.as_bytes = as_bytes

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Any) -> None:
        """Do nothing: the same handlers are registered by `add_registered_method_handlers`."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Register the handlers of a service."""
        for name, handler in handlers.items():
            self.handlers[f"/{service}/{name}".encode()] = (name, handler)


class _Serving(Connection):
    """The server's side of a connection."""

    def __init__(self, services: Services, connections: "set[_Serving]") -> None:
        super().__init__()
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self._services = services
        self._connections = connections
        self._in: dict[int, Inflow] = {}
        self._out: dict[int, Outflow] = {}

    def connection_made(self, transport: Any) -> None:
        """Add this connection to the open connections."""
        super().connection_made(transport)
        tune(transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the calls of this connection."""
        super().connection_lost(exc)
        self._connections.discard(self)
        for number in list(self.tasks):
            self._cancel(number)

    def frame(self, kind: int, call: int, body: Bytes) -> None:
        """Start a call, or pass the frame to the call that it belongs to."""
        if kind in (CALL, CALL_WITH_REQUEST):
            self._begin(call, body, has_request=kind == CALL_WITH_REQUEST)
        elif kind == CANCEL:
            self._cancel(call)
        elif kind == TAKEN and (out := self._out.get(call)) is not None:
            out.taken(int.from_bytes(body, "little"))
        elif kind in (MESSAGE, END) and (flow := self._in.get(call)) is not None:
            if kind == MESSAGE:
                flow.arrive(body)
            else:
                flow.end()

    def _cancel(self, number: int) -> None:
        if (task := self.tasks.get(number)) is not None:
            task.cancel()
        if (out := self._out.get(number)) is not None:
            out.end()

    def _begin(self, number: int, body: Bytes, has_request: bool) -> None:
        at = 1 + (body[0] & ~HAS_CONTEXT)
        name, handler = self._services.handlers.get(bytes(body[1:at]), ("", None))
        if handler is None:
            self.send(STATUS, number, (status_of((grpc.StatusCode.UNIMPLEMENTED, "there is no such method", ())),))
            return
        context = b""
        if body[0] & HAS_CONTEXT:
            begin = at + CONTEXT_LENGTH.size
            at = begin + CONTEXT_LENGTH.unpack_from(body, at)[0]
            context = bytes(body[begin:at])
        if not has_request:
            self._in[number] = Inflow(self, number)
        task = asyncio.create_task(self._run(number, name, handler, context, memoryview(body)[at:]))
        self.tasks[number] = task
        task.add_done_callback(lambda _: self._forget(number))

    def _forget(self, number: int) -> None:
        self.tasks.pop(number, None)
        self._in.pop(number, None)
        self._out.pop(number, None)

    async def _run(self, number: int, name: str, handler: Any, context: bytes, body: memoryview) -> None:
        begin, status = time.perf_counter(), "CANCELLED"
        try:
            if context:
                # Set in this call's task only.
                CURRENT.set(call_context.decoded(context))
            argument = self._argument(number, name, handler, body)
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

    def _argument(self, number: int, name: str, handler: Any, body: memoryview) -> Any:
        if handler.request_streaming:
            return _requests(self._in[number], handler.request_deserializer)
        return body if name in self._services.as_bytes else handler.request_deserializer(body)


async def _requests(flow: Inflow, deserialize: Callable[[Bytes], Any]) -> AsyncIterator[Any]:
    while (message := await flow.take()) is not None:
        yield deserialize(message)


@asynccontextmanager
async def serving(services: Services, address: str, drain_s: float) -> AsyncIterator[None]:
    """Serve local calls while the context is open. Only processes of the same user can connect.

    Args:
        services: the handlers.
        address: LOCAL and the path of the socket. An existing socket is replaced.
        drain_s: seconds that running calls have to end when the context closes.

    Raises:
        OSError: the socket cannot be created.
    """
    path = Path(address.removeprefix(LOCAL))
    connections: set[_Serving] = set()
    # The socket has a temporary name until its permissions are set, so that no other user can connect.
    temporary = path.with_name(f"{path.name}.new")
    server = await asyncio.get_running_loop().create_unix_server(lambda: _Serving(services, connections), str(temporary))
    temporary.chmod(0o600)
    temporary.rename(path)
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
