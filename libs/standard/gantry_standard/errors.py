"""The errors that Gantry raises on purpose, grouped by what the caller can do.

GantryError
├── RequestError            fix the request
│   ├── BadRequest          syntax or a parameter is wrong (400)
│   ├── NotAcceptable       nothing that the client accepts can be produced (406)
│   ├── PayloadTooLarge     more than a documented limit (413)
│   ├── UnsupportedMediaType  Content-Type of the request (415)
│   └── CorruptInstance     bytes that are not the data set they claim to be (400; in a store: a reason of that instance)
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
    └── OutOfResources      no room left, failure reason A700 (503)

A message names the thing, what was found and what was expected. It never holds patient attributes or pixel data.
To add an error: a class here, one row in the gateway's `problems.py` and one in `gantry_runtime/rpc_errors.py`.

Source: PS3.18 §8.5.
"""


class GantryError(Exception):
    """An error with a sentence that a caller may read.

    Args:
        message: what was found and what was expected.
        warning: text of a Warning header that PS3.18 wants with this error, without "299 <service>: ".
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
    """The request, or its answer, passes a documented limit."""


class UnsupportedMediaType(RequestError):
    """The Content-Type of the request is not one that this resource takes."""


class CorruptInstance(RequestError):
    """Bytes that are not the data set they claim to be."""


class ResourceError(GantryError):
    """Something else must be asked for."""


class NotFound(ResourceError):
    """There is no such resource."""


class Gone(ResourceError):
    """The resource is known to have been deleted."""


class Conflict(ResourceError):
    """The current state of the resource forbids it."""


class Forbidden(ResourceError):
    """The request is refused."""


class MethodNotAllowed(ResourceError):
    """The resource does not have this method."""


class Unsupported(ResourceError):
    """This server does not offer it."""


class RetryLater(GantryError):
    """The same request may succeed later.

    Args:
        retry_after_s: seconds for a Retry-After header.
    """

    def __init__(self, message: str, *, warning: str = "", retry_after_s: int = 1) -> None:
        super().__init__(message, warning=warning)
        self.retry_after_s = retry_after_s


class Unavailable(RetryLater):
    """A part of the suite, or one of its stores, does not answer."""


class Overloaded(RetryLater):
    """A queue is full."""


class OutOfResources(RetryLater):
    """There is no room left (failure reason A700)."""
