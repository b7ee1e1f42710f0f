"""What belongs to a request and travels with every call that is made for it: request id, trace context, caller.

It is a context variable, so tasks, threads (`threads.Threads`) and everything below a handler have it. Between processes it is one field of
a local frame, metadata of gRPC, or headers of a NATS message (the caller is not in those: what is on a stream is a fact, not a request).

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
    """Facts about the request that a piece of work is done for.

    Attributes:
        request_id: of the HTTP request; "" for work that belongs to none.
        traceparent: as the client sent it; "" where it sent none.
        caller: who made the request.
    """

    request_id: str = ""
    traceparent: str = ""
    caller: Caller = ANONYMOUS


NONE = CallContext()
CURRENT: ContextVar[CallContext] = ContextVar("call context", default=NONE)


def caller() -> Caller:
    """Return who made the request that is being answered; ANONYMOUS for work that belongs to none."""
    return CURRENT.get().caller


@contextmanager
def entered(context: CallContext) -> Iterator[None]:
    """Do what is inside for this request."""
    token = CURRENT.set(context)
    try:
        yield
    finally:
        CURRENT.reset(token)


def encoded() -> bytes:
    """Return the current context as one field of a frame; b"" where there is none."""
    context = CURRENT.get()
    if context is NONE:
        return b""
    return f"{context.request_id}\n{context.traceparent}\n".encode("ascii") + callers.encoded(context.caller)


def decoded(data: bytes) -> CallContext:
    """Return the context that `encoded` wrote.

    Raises:
        ValueError: it is none.
    """
    request_id, traceparent, caller = data.split(b"\n", 2)
    return CallContext(request_id.decode("ascii"), traceparent.decode("ascii"), callers.decoded(caller))


def grpc_metadata() -> tuple[tuple[str, str], ...] | None:
    """Return the current context as metadata of a gRPC call; None where there is none."""
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
    """Return the context of a gRPC call.

    Raises:
        ValueError: it cannot be read.
    """
    told = {name: value.decode("ascii") if isinstance(value, bytes) else value for name, value in metadata if name in _GRPC_NAMES}
    if not told:
        return NONE
    caller = callers.decoded(told.get(GRPC_CALLER, "").encode("ascii"))
    return CallContext(told.get(GRPC_REQUEST_ID, ""), told.get(GRPC_TRACEPARENT, ""), caller)


_GRPC_NAMES = frozenset((GRPC_REQUEST_ID, GRPC_TRACEPARENT, GRPC_CALLER))


def headers() -> dict[str, str]:
    """Return the headers of a NATS message that is published for the current request."""
    context = CURRENT.get()
    if context is NONE:
        return {}
    fields = ((REQUEST_ID_HEADER, context.request_id), (TRACEPARENT_HEADER, context.traceparent))
    return {name: value for name, value in fields if value}


def of_headers(fields: Mapping[str, str]) -> CallContext:
    """Return the request that a NATS message was published for, without its caller; NONE where it was for none."""
    if not fields or REQUEST_ID_HEADER not in fields:
        return NONE
    return CallContext(fields[REQUEST_ID_HEADER], fields.get(TRACEPARENT_HEADER, ""))
