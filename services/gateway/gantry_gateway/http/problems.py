"""Errors over HTTP: the status of each error, and the Status Report in the response.

Source: PS3.18 §8.5, §8.6.3.
"""

import html
from http import HTTPStatus

import orjson
from starlette.responses import Response

from gantry_standard import errors

STATUS: dict[type[errors.GantryError], int] = {
    errors.BadRequest: 400,
    errors.CorruptInstance: 400,
    errors.NotAcceptable: 406,
    errors.PayloadTooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.NotFound: 404,
    errors.Gone: 410,
    errors.Conflict: 409,
    errors.Forbidden: 403,
    errors.MethodNotAllowed: 405,
    errors.Unsupported: 501,
    errors.Unavailable: 503,
    errors.Overloaded: 503,
    errors.OutOfResources: 503,
}


LONGEST_MESSAGE = 1000
"""Characters of a message. Some messages repeat what the client sent, which may have 64 KiB."""


def bounded(message: str) -> str:
    """Return a message, cut where it is too long."""
    return message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}..."


def status_of(error: errors.GantryError) -> int:
    """Return the HTTP status of an error; 500 if STATUS has no row for it."""
    return next((STATUS[cls] for cls in type(error).__mro__ if cls in STATUS), 500)


def status_report(status: int, message: str, accept: str, headers: dict[str, str] | None = None) -> Response:
    """Return a response with a readable body: JSON or plain text if the client accepts it, else HTML.

    Args:
        accept: the Accept header of the request. An error body is sent even if no type is acceptable.

    Source: PS3.18 §8.6.3.
    """
    phrase, message = HTTPStatus(status).phrase, bounded(message)
    if "application/json" in accept or "application/dicom+json" in accept:
        body = orjson.dumps({"status": status, "error": phrase, "message": message})
        return Response(body, status, headers, "application/json")
    if "text/plain" in accept:
        return Response(f"{status} {phrase}: {message}\n", status, headers, "text/plain")
    text = f"<!doctype html><title>{status} {phrase}</title><h1>{status} {phrase}</h1><p>{html.escape(message)}</p>\n"
    return Response(text, status, headers, "text/html")


def warning(service: str, text: str, code: str = "299") -> str:
    """Return the value of a Warning header field. Characters other than printable ASCII are replaced by "?".

    Args:
        service: the base URL.
        text: of the warning.
        code: 299, or a DICOM status such as A700.

    Source: PS3.18 §8.4.3.
    """
    printable = "".join(character if " " <= character <= "~" else "?" for character in bounded(text))
    return f"{code} {service}: {printable}"


def problem(error: errors.GantryError, accept: str, service: str, allow: str = "") -> Response:
    """Return the response to an error.

    Args:
        accept: the Accept header of the request.
        service: the base URL, for a Warning header.
        allow: the Allow header; "" for none.
    """
    headers: dict[str, str] = {}
    if error.warning:
        headers["Warning"] = warning(service, error.warning)
    if isinstance(error, errors.OutOfResources):
        headers["Warning"] = warning(service, error.message, "A700")
    if isinstance(error, errors.RetryLater):
        headers["Retry-After"] = str(error.retry_after_s)
    if allow:
        headers["Allow"] = allow
    return status_report(status_of(error), error.message, accept, headers)
