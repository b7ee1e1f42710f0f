"""Errors of ours over gRPC: one row per error, both ways.

The class travels by name in the trailing metadata, so the client raises what the server raised.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import grpc.aio

from gantry_standard import errors

ERROR_KEY = "gantry-error"
WARNING_KEY = "gantry-warning-bin"
RETRY_KEY = "gantry-retry-after-s"
BROKEN_SEND = "Internal error from Core"
"""What grpcio says when a stream that is still sent to was ended by the server, before it has seen the server's status."""

STATUS: dict[type[errors.GantryError], grpc.StatusCode] = {
    errors.BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotAcceptable: grpc.StatusCode.INVALID_ARGUMENT,
    errors.PayloadTooLarge: grpc.StatusCode.OUT_OF_RANGE,
    errors.UnsupportedMediaType: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CorruptInstance: grpc.StatusCode.DATA_LOSS,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Gone: grpc.StatusCode.NOT_FOUND,
    errors.Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.MethodNotAllowed: grpc.StatusCode.UNIMPLEMENTED,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.OutOfResources: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
CLASSES = {cls.__name__: cls for cls in STATUS}


def status_of(error: errors.GantryError) -> grpc.StatusCode:
    """Return the gRPC status of an error of ours."""
    return STATUS.get(_row(error), grpc.StatusCode.INTERNAL)


def _row(error: errors.GantryError) -> type[errors.GantryError]:
    """Return the class with a row that an error is; what derives from one travels as that one."""
    return next((cls for cls in type(error).__mro__ if cls in STATUS), type(error))


def trailing_metadata(error: errors.GantryError) -> tuple[tuple[str, str | bytes], ...]:
    """Return the metadata that lets the client raise the same error."""
    metadata: list[tuple[str, str | bytes]] = [(ERROR_KEY, _row(error).__name__)]
    if error.warning:
        metadata.append((WARNING_KEY, error.warning.encode()))
    if isinstance(error, errors.RetryLater):
        metadata.append((RETRY_KEY, str(error.retry_after_s)))
    return tuple(metadata)


def error_from(call: grpc.aio.AioRpcError, service: str) -> errors.GantryError:
    """Return the error that the server raised, or what a failure of the call itself means.

    Args:
        call: what the stub raised.
        service: name of the service called, for the message.
    """
    metadata = dict(call.trailing_metadata() or ())
    cls = CLASSES.get(str(metadata.get(ERROR_KEY, "")))
    message = call.details() or ""
    warning = metadata.get(WARNING_KEY, b"")
    text = warning.decode() if isinstance(warning, bytes) else str(warning)
    if cls is not None and issubclass(cls, errors.RetryLater):
        return cls(message, warning=text, retry_after_s=int(str(metadata.get(RETRY_KEY, "1"))))
    if cls is not None:
        return cls(message, warning=text)
    if call.code() is grpc.StatusCode.INTERNAL and message == BROKEN_SEND:
        return errors.Unavailable(f"{service} ended the call while it was sent to")
    if call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return errors.Unavailable(f"{service} does not answer")
    return errors.GantryError(f"{service} failed: {call.code().name}")


@contextmanager
def translated(service: str) -> Iterator[None]:
    """Raise what the called service raised, instead of AioRpcError. Goes round a call or an `async for` over one."""
    try:
        yield
    except grpc.aio.AioRpcError as call:
        raise error_from(call, service) from call
