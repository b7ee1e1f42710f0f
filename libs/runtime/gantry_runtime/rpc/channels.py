"""The server and the channels of all calls between services, over gRPC or over local sockets.

Processes of one machine may use Unix sockets instead of gRPC's transport, which costs ten times as much CPU. Their addresses are
`local:PATH` (`rpc.local`). Handlers raise errors of `gantry_standard.errors`; `Interceptor` translates them to gRPC statuses. Clients put
each call inside `rpc_errors.translated(service)` and always pass `timeout=`.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from gantry_runtime import call_context
from gantry_runtime.call_context import CURRENT, CallContext
from gantry_runtime.rpc import rpc_errors
from gantry_runtime.rpc.accounts import account
from gantry_runtime.rpc.addresses import LOCAL
from gantry_runtime.rpc.local import calling
from gantry_runtime.rpc.local import serving as neighbours
from gantry_standard import errors

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
"""Largest number of bytes of an instance in one message."""

OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    # The UIDs of the 1,000 studies that a restricted caller may see are about 64 KiB.
    ("grpc.max_metadata_size", 128 << 10),
    ("grpc.absolute_max_metadata_size", 256 << 10),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Calls that have arrived and do not run yet. By default gRPC cancels some of them above 1,000.
    ("grpc.server.max_pending_requests", 10_000),
    ("grpc.server.max_pending_requests_hard_limit", 20_000),
    ("grpc.so_reuseport", 0),
]


class Interceptor(grpc.aio.ServerInterceptor):
    """Sets the `call_context` for handlers, and translates their errors.

    Errors of `gantry_standard.errors` get the status of their row in `rpc_errors.STATUS`. Any other exception is logged and becomes
    INTERNAL.

    Args:
        as_bytes: names of unary methods whose handlers take the request as serialised bytes.
    """

    def __init__(self, as_bytes: frozenset[str] = frozenset()) -> None:
        self._as_bytes = as_bytes

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of the method that is called."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(getattr(handler_call_details, "method", "")).rsplit("/", 1)[-1]
        made_for = _context_of(handler_call_details)
        if handler.response_streaming:
            inner = handler.stream_stream or handler.unary_stream
            make: Any = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
            return make(_streaming(inner, method, made_for), handler.request_deserializer, handler.response_serializer)
        inner = handler.stream_unary or handler.unary_unary
        make_unary: Any = grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        deserializer = None if method in self._as_bytes else handler.request_deserializer
        return make_unary(_unary(inner, method, made_for), deserializer, handler.response_serializer)


def _context_of(details: grpc.HandlerCallDetails) -> CallContext | None:
    """Return the call context in the metadata of a call; None if it cannot be parsed."""
    try:
        return call_context.of_grpc_metadata(getattr(details, "invocation_metadata", None) or ())
    except ValueError:
        return None


def _enter(made_for: CallContext | None) -> None:
    """Set the call context of the task that serves a call. The task, and with it the context, ends with the call.

    Raises:
        errors.BadRequest: the context in the metadata could not be parsed.
    """
    if made_for is None:
        raise errors.BadRequest("the metadata of the call cannot be read")
    if made_for is not call_context.NONE:
        CURRENT.set(made_for)


def _unary(inner: Any, method: str, made_for: CallContext | None) -> Any:
    async def call(request: Any, context: Any) -> Any:
        begin, status = time.perf_counter(), "OK"
        try:
            _enter(made_for)
            return await inner(request, context)
        except errors.GantryError as error:
            status = rpc_errors.status_of(error).name
            await _abort(context, error)
        except Exception as error:
            status = "INTERNAL"
            await _internal(context, method, error)
        except BaseException:
            status = "CANCELLED"
            raise
        finally:
            account(method, status, begin)

    return call


def _streaming(inner: Any, method: str, made_for: CallContext | None) -> Any:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        begin, status = time.perf_counter(), "OK"
        try:
            _enter(made_for)
            async for message in inner(request, context):
                yield message
        except errors.GantryError as error:
            status = rpc_errors.status_of(error).name
            await _abort(context, error)
        except Exception as error:
            status = "INTERNAL"
            await _internal(context, method, error)
        except BaseException:
            status = "CANCELLED"
            raise
        finally:
            account(method, status, begin)

    return call


async def _abort(context: Any, error: errors.GantryError) -> None:
    await context.abort(rpc_errors.status_of(error), error.message, rpc_errors.trailing_metadata(error))


async def _internal(context: Any, method: str, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    log.exception("rpc failed", extra={"method": method})
    await context.abort(grpc.StatusCode.INTERNAL, f"{method} failed")


@asynccontextmanager
async def serving(
    register: Callable[[grpc.aio.Server], None], listen: str, drain_s: float = 5, as_bytes: frozenset[str] = frozenset()
) -> AsyncIterator[int]:
    """Serve gRPC while the context is open.

    Args:
        register: adds the servicers.
        listen: HOST:PORT; port 0 takes a free one. `,local:PATH` may follow: a socket for neighbours.
        drain_s: seconds that running calls have to end when the context closes.
        as_bytes: see Interceptor.

    Yields:
        The port.
    """
    address, _, nearby = listen.partition(",")
    server = grpc.aio.server(interceptors=[Interceptor(as_bytes)], options=OPTIONS)
    register(server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        if nearby:
            services = neighbours.Services(as_bytes)
            register(cast(grpc.aio.Server, services))
            async with neighbours.serving(services, nearby, drain_s):
                yield port
        else:
            yield port
    finally:
        await server.stop(drain_s)


async def send_serialised(call: Any, buffers: Sequence[bytes | memoryview], service: str) -> None:
    """Send one serialised request of a streaming call. Wait while the send window is full.

    Args:
        call: the streaming call.
        buffers: the serialised message, in consecutive parts.
        service: name of the called service, for the message of an error.

    Raises:
        errors.GantryError: the call has ended; the error says why.
    """
    with rpc_errors.translated(service):
        if isinstance(call, calling.Stream):
            await call.write_buffers(buffers)
            return
        await call.wait_for_connection()
    try:
        # The same as write(), except that write() replaces the server's status by INTERNAL when the server ends the call while a message
        # is being sent (grpc.aio, _StreamRequestMixin._write). The reason would be lost.
        await call._cython_call.send_serialized_message(b"".join(buffers))
    except (cygrpc.InternalError, cygrpc.UsageError, asyncio.InvalidStateError):
        raise await _failure(call, service) from None


async def _failure(call: Any, service: str) -> errors.GantryError:
    """Return the error with which a server ended a call."""
    code, details = await call.code(), await call.details()
    if code is grpc.StatusCode.OK:
        return errors.GantryError(f"{service} ended a call before it had received all requests")
    metadata = await call.trailing_metadata()
    return rpc_errors.error_from(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details), service)


class _Channel:
    """A channel for a stub. It adds the `call_context` to each call; some methods take a serialised request as a list of buffers.

    An interceptor of grpc.aio could add the context as well, but it costs a task and an object per call, and it hides the stream that
    `send_serialised` needs.
    """

    def __init__(self, opened: grpc.aio.Channel, methods: frozenset[str]) -> None:
        self._opened = opened
        self._methods = methods

    def unary_unary(self, method: str, request_serializer: Any = None, **others: Any) -> Any:
        serializer = b"".join if method.rsplit("/", 1)[-1] in self._methods else request_serializer
        return _with_context(self._opened.unary_unary(method, request_serializer=serializer, **others))

    def unary_stream(self, *arguments: Any, **others: Any) -> Any:
        return _with_context(self._opened.unary_stream(*arguments, **others))

    def stream_unary(self, *arguments: Any, **others: Any) -> Any:
        return _with_context(self._opened.stream_unary(*arguments, **others))

    def stream_stream(self, *arguments: Any, **others: Any) -> Any:
        return _with_context(self._opened.stream_stream(*arguments, **others))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)


def _with_context(make_call: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **others: Any) -> Any:
        return make_call(*arguments, metadata=call_context.grpc_metadata(), **others)

    return call


@asynccontextmanager
async def channel(address: str, as_buffers: frozenset[str] = frozenset()) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel to HOST:PORT or `local:PATH`. It connects at the first call, and again after a connection is lost.

    Args:
        address: of the service.
        as_buffers: names of unary methods that are called with a serialised request, as a list of buffers.
    """
    if address.startswith(LOCAL):
        async with calling.channel(address, as_buffers) as nearby:
            yield nearby
        return
    opened = grpc.aio.insecure_channel(address, options=OPTIONS)
    try:
        yield cast(grpc.aio.Channel, _Channel(opened, as_buffers))
    finally:
        await opened.close()
