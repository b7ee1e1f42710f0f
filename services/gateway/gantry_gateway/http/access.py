"""The caller of a request: the port `Access`, and its only adapter.

The services that have the data enforce what a caller may see (docs/decisions/0125-callers.md).
"""

from typing import Protocol

from starlette.types import Scope

from gantry_runtime.callers import ANONYMOUS, Caller


class Access(Protocol):
    """Determines the caller of a request."""

    async def caller_of(self, scope: Scope) -> Caller:
        """Return the caller of an HTTP request or of a WebSocket handshake.

        It is called once for each, before the handler. The result is used for the whole request or connection.

        Raises:
            errors.GantryError: the request is refused with this error.
        """
        ...


class Everybody:
    """Implements Access: every request has the anonymous caller, who may do everything."""

    async def caller_of(self, scope: Scope) -> Caller:
        """Return the anonymous caller."""
        return ANONYMOUS


EVERYBODY = Everybody()
