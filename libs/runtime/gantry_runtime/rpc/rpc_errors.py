"""Translates the errors of `gantry_standard.errors` to gRPC statuses and back, with one row per error.

The trailing metadata contains the name of the class, so that the client raises the same error as the server.
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
"""Message of grpcio when the server ended a stream while the client was still sending, and the server's status has not arrived yet."""

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
    """Return the gRPC status of an error: that of its row, else INTERNAL."""
    return STATUS.get(_row(error), grpc.StatusCode.INTERNAL)


def _row(error: errors.GantryError) -> type[errors.GantryError]:
    """Return the class of an error, or its nearest base class that has a row in STATUS."""
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
    """Return the error that the server raised, or an error of our own when the call itself failed.

    Args:
        call: the exception that the stub raised.
        service: name of the called service, for the message.
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
        return errors.Unavailable(f"{service} ended the call before it had received the whole request")
    if call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return errors.Unavailable(f"{service} does not answer")
    return errors.GantryError(f"{service} failed: {call.code().name}")


@contextmanager
def translated(service: str) -> Iterator[None]:
    """Raise the error of the called service instead of AioRpcError. Put a call, or an `async for` over its messages, inside.

    Args:
        service: name of the called service, for the message.
    """
    try:
        yield
    except grpc.aio.AioRpcError as call:
        raise error_from(call, service) from call
