"""Who makes a request of this gateway: the port `Access`, and the only adapter of today.

What a caller may see is enforced by the services, where the data is (docs/decisions/0125-callers.md).
"""

from typing import Protocol

from starlette.types import Scope

from gantry_runtime.callers import ANONYMOUS, Caller


class Access(Protocol):
    """Knows who makes a request."""

    async def caller_of(self, scope: Scope) -> Caller:
        """Return the caller of an HTTP request or of a WebSocket handshake.

        Called once for each, before its handler; what it learns holds as long as the request or the connection.

        Raises:
            errors.GantryError: the request is refused with this error.
        """
        ...


class Everybody:
    """Access: everybody is the anonymous caller, who may do everything."""

    async def caller_of(self, scope: Scope) -> Caller:
        """See Access."""
        return ANONYMOUS


EVERYBODY = Everybody()
