"""The call context: request id, trace context and caller of a request. It travels with every call that is made for the request.

Within a process it is a context variable, so the tasks and threads (`threads.Threads`) of a request have it. Between processes it is a
field of a local frame, metadata of a gRPC call, or headers of a NATS message. Headers do not contain the caller, because a message on a
stream reports a fact and is not a request.

Source: W3C Trace Context for `traceparent`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from gantry_runtime import callers
from gantry_runtime.callers import ANONYMOUS, Caller

REQUEST_ID_HEADER = "Gantry-Request-Id"
TRACEPARENT_HEADER = "traceparent"
GRPC_REQUEST_ID = "gantry-request-id"
GRPC_TRACEPARENT = "traceparent"
GRPC_CALLER = "gantry-caller"


@dataclass(frozen=True, slots=True)
class CallContext:
    """Facts about a request.

    Attributes:
        request_id: of the HTTP request; "" for work that does not belong to a request.
        traceparent: as the client sent it; "" if it sent none.
        caller: who made the request.
    """

    request_id: str = ""
    traceparent: str = ""
    caller: Caller = ANONYMOUS


NONE = CallContext()
CURRENT: ContextVar[CallContext] = ContextVar("call context", default=NONE)


def caller() -> Caller:
    """Return the caller of the current request; ANONYMOUS for work that does not belong to a request."""
    return CURRENT.get().caller


@contextmanager
def entered(context: CallContext) -> Iterator[None]:
    """Make a call context the current one while this context manager is open."""
    token = CURRENT.set(context)
    try:
        yield
    finally:
        CURRENT.reset(token)


def encoded() -> bytes:
    """Return the current call context as a field of a local frame; b"" if there is none."""
    context = CURRENT.get()
    if context is NONE:
        return b""
    return f"{context.request_id}\n{context.traceparent}\n".encode("ascii") + callers.encoded(context.caller)


def decoded(data: bytes) -> CallContext:
    """Return the call context that `encoded` wrote.

    Raises:
        ValueError: the bytes are not a call context.
    """
    request_id, traceparent, caller = data.split(b"\n", 2)
    return CallContext(request_id.decode("ascii"), traceparent.decode("ascii"), callers.decoded(caller))


def grpc_metadata() -> tuple[tuple[str, str], ...] | None:
    """Return the current call context as metadata of a gRPC call; None if there is none."""
    context = CURRENT.get()
    if context is NONE:
        return None
    fields = (
        (GRPC_REQUEST_ID, context.request_id),
        (GRPC_TRACEPARENT, context.traceparent),
        (GRPC_CALLER, callers.encoded(context.caller).decode("ascii")),
    )
    return tuple(field for field in fields if field[1])


def of_grpc_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> CallContext:
    """Return the call context in the metadata of a gRPC call; NONE if there is none.

    Raises:
        ValueError: the metadata cannot be parsed.
    """
    fields = {name: value.decode("ascii") if isinstance(value, bytes) else value for name, value in metadata if name in _GRPC_NAMES}
    if not fields:
        return NONE
    caller = callers.decoded(fields.get(GRPC_CALLER, "").encode("ascii"))
    return CallContext(fields.get(GRPC_REQUEST_ID, ""), fields.get(GRPC_TRACEPARENT, ""), caller)


_GRPC_NAMES = frozenset((GRPC_REQUEST_ID, GRPC_TRACEPARENT, GRPC_CALLER))


def headers() -> dict[str, str]:
    """Return the headers of a NATS message that is published for the current request; empty if there is no request."""
    context = CURRENT.get()
    if context is NONE:
        return {}
    fields = ((REQUEST_ID_HEADER, context.request_id), (TRACEPARENT_HEADER, context.traceparent))
    return {name: value for name, value in fields if value}


def of_headers(fields: Mapping[str, str]) -> CallContext:
    """Return the call context, without caller, in the headers of a NATS message; NONE if it was not published for a request."""
    if not fields or REQUEST_ID_HEADER not in fields:
        return NONE
    return CallContext(fields[REQUEST_ID_HEADER], fields.get(TRACEPARENT_HEADER, ""))
