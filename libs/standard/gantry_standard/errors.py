"""The errors that Gantry raises on purpose, grouped by what the caller can do.

GantryError
├── RequestError            fix the request
│   ├── BadRequest          syntax or a parameter is wrong (400)
│   ├── NotAcceptable       nothing that the client accepts can be produced (406)
│   ├── PayloadTooLarge     more than a documented limit (413)
│   ├── UnsupportedMediaType  Content-Type of the request (415)
│   └── CorruptInstance     the bytes are not a valid data set (400; in a store: the reason of that instance)
├── ResourceError           ask for something else
│   ├── NotFound            (404)
│   ├── Gone                known to have been deleted (410)
│   ├── Conflict            the current state forbids it (409)
│   ├── Forbidden           (403)
│   ├── MethodNotAllowed    (405)
│   └── Unsupported         this server does not offer it (501)
└── RetryLater              the same request may succeed later
    ├── Unavailable         a part of the suite, or a store, does not answer (503)
    ├── Overloaded          a queue is full (503)
    └── OutOfResources      the disk is full, failure reason A700 (503)

A message names the object, the actual and the expected value. It never contains patient attributes or pixel data.
To add an error: a class here, one row in the gateway's `problems.py` and one in `gantry_runtime/rpc/rpc_errors.py`.

Source: PS3.18 §8.5.
"""


class GantryError(Exception):
    """An error with a message for the client.

    Args:
        message: the actual and the expected value.
        warning: text of the Warning header that PS3.18 requires with this error, without "299 <service>: ".
    """

    def __init__(self, message: str, *, warning: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.warning = warning


class RequestError(GantryError):
    """The request must be changed."""


class BadRequest(RequestError):
    """The syntax or a parameter of the request is wrong."""


class NotAcceptable(RequestError):
    """Nothing that the client accepts can be produced."""


class PayloadTooLarge(RequestError):
    """The request, or its response, exceeds a documented limit."""


class UnsupportedMediaType(RequestError):
    """This resource does not accept the Content-Type of the request."""


class CorruptInstance(RequestError):
    """The bytes are not a valid data set."""


class ResourceError(GantryError):
    """The client must request something else."""


class NotFound(ResourceError):
    """There is no such resource."""


class Gone(ResourceError):
    """The resource is known to have been deleted."""


class Conflict(ResourceError):
    """The current state of the resource does not allow the request."""


class Forbidden(ResourceError):
    """The request is refused."""


class MethodNotAllowed(ResourceError):
    """The resource does not have this method."""


class Unsupported(ResourceError):
    """This server does not support the request."""


class RetryLater(GantryError):
    """The same request may succeed later.

    Args:
        retry_after_s: seconds for a Retry-After header.
    """

    def __init__(self, message: str, *, warning: str = "", retry_after_s: int = 1) -> None:
        super().__init__(message, warning=warning)
        self.retry_after_s = retry_after_s


class Unavailable(RetryLater):
    """A service, or one of its stores, does not respond."""


class Overloaded(RetryLater):
    """A queue is full."""


class OutOfResources(RetryLater):
    """The disk is full (failure reason A700)."""
