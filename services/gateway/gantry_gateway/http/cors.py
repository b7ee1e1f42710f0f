"""Cross-origin requests (CORS): which browser pages may read responses of this server.

By default only pages of local origins may; `GANTRY_CORS_ORIGINS` sets others. Access-Control-Allow-Origin is never `*`.
"""

from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import Scope

from gantry_gateway.settings import GatewaySettings

METHODS = b"GET, HEAD, POST, PUT, DELETE, OPTIONS"
REQUEST_HEADERS = b"Accept, Authorization, Content-Type, Range, If-None-Match, If-Match, If-Range, Cache-Control, X-Request-ID"
EXPOSED = (
    b"Accept-Ranges, Allow, Content-Disposition, Content-Encoding, Content-Length, Content-Location, Content-Range, Date, ETag, Location, "
    b"Retry-After, Warning, X-Request-ID"
)
LONGEST_ORIGIN = 300
"""Characters of an origin: scheme, host and port. An allowed one is repeated in the answer."""
LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1"}


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def is_preflight(scope: Scope) -> bool:
    """Return whether an OPTIONS request is a CORS preflight, and not Retrieve Capabilities."""
    return scope["method"] == "OPTIONS" and bool(_header(scope, b"access-control-request-method"))


def allows(origin: str, settings: GatewaySettings) -> bool:
    """Return whether pages of this origin may read responses."""
    if len(origin) > LONGEST_ORIGIN:
        return False
    if not settings.cors_origins:
        try:
            return urlsplit(origin).hostname in LOCAL_HOSTS
        except ValueError:
            return False
    return "*" in settings.cors_origins or origin in settings.cors_origins


def headers(scope: Scope, settings: GatewaySettings) -> list[tuple[bytes, bytes]]:
    """Return the header fields of every response."""
    out = [(b"cross-origin-resource-policy", b"cross-origin"), (b"x-content-type-options", b"nosniff"), (b"vary", b"Origin")]
    origin = _header(scope, b"origin")
    if origin and allows(origin.decode("latin-1"), settings):
        out += [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED)]
    return out


def preflight(scope: Scope, settings: GatewaySettings) -> Response:
    """Answer a preflight: 204, without CORS headers if the origin is not allowed."""
    if not allows(_header(scope, b"origin").decode("latin-1"), settings):
        return Response(status_code=204)
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": METHODS.decode(),
            "Access-Control-Allow-Headers": REQUEST_HEADERS.decode(),
            "Access-Control-Max-Age": "600",
        },
    )
