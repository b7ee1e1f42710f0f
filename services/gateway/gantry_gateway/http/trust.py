"""What is believed of a request: its Host, the headers of proxies, and the page that sent it.

* A listener on a loopback address answers for its own names only. Else a web page could read the archive: its server lets the name of the
  page point to 127.0.0.1, and the browser then takes the gateway for that server (DNS rebinding).
* Forwarding headers count only where the connection comes from a trusted proxy.
* A browser sends simple POST requests and WebSocket handshakes of any page without asking first. Origin says which page it is.

Source: RFC 9110 §7.2, RFC 7239, RFC 6454, Fetch Metadata Request Headers.
"""

import ipaddress
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.types import Scope

from gantry_gateway.http import cors
from gantry_gateway.http.urls import AUTHORITY
from gantry_gateway.settings import GatewaySettings
from gantry_standard import errors

LONGEST_HOST = 261
"""Characters of a host name of 255, a colon and a port."""

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))


def is_loopback(host: str) -> bool:
    """Return whether a name or address means this machine only."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def name_of(authority: str) -> str:
    """Return the host of HOST or HOST:PORT in lower case, an IPv6 address without brackets; "" where there is none."""
    if not AUTHORITY.fullmatch(authority):
        return ""
    return (urlsplit(f"//{authority}").hostname or "").rstrip(".")


class Trust:
    """The rules of one gateway. What a header or an address means is remembered, as most requests repeat it."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._proxies = settings.proxy_networks()
        names = {name_of(host) for host in (*settings.allowed_hosts, urlsplit(settings.public_url).netloc, settings.host) if host}
        self._names = names - {"", "0.0.0.0", "::"}
        self._takes_any_host = "*" in settings.allowed_hosts or not (is_loopback(settings.host) or settings.allowed_hosts)
        self._is_own_host = lru_cache(256)(self._read_host)
        self._is_proxy = lru_cache(1024)(self._read_address)

    def check(self, scope: Scope, method: str, base_url: str) -> None:
        """Look at the Host of a request, and at the page that sent it where the request may change something.

        Args:
            method: of the request, or another word for a WebSocket handshake.
            base_url: of the answer; its authority is where the client takes the gateway to be.

        Raises:
            errors.Forbidden: the host is none of ours, or a page of another site sent the request.
        """
        is_safe = method in SAFE_METHODS
        origin = site = None
        for name, value in scope["headers"]:
            if name == b"host":
                if not self._takes_any_host and (len(value) > LONGEST_HOST or not self._is_own_host(value)):
                    raise errors.Forbidden(
                        "this server does not answer for the host of the request; GANTRY_ALLOWED_HOSTS names further hosts"
                    )
            elif is_safe:
                continue
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
        if not is_safe and (origin is not None or site is not None):
            self._check_page(origin, site, base_url)

    def _check_page(self, origin: bytes | None, site: bytes | None, base_url: str) -> None:
        # A page cannot set either header itself. `none` is the user: a bookmark, the address bar.
        if site in (b"same-origin", b"none"):
            return
        if origin is None:
            is_allowed = site not in (b"cross-site", b"same-site")
        else:
            text = origin.decode("latin-1")
            is_allowed = cors.allows(text, self._settings) or text == "/".join(base_url.split("/", 3)[:3])
        if not is_allowed:
            raise errors.Forbidden("a page of another origin sent the request; GANTRY_CORS_ORIGINS names the origins that may")

    def believes(self, scope: Scope) -> bool:
        """Return whether the connection comes from a proxy whose forwarding headers count."""
        client = scope.get("client")
        return client is not None and self._is_proxy(client[0])

    def _read_host(self, value: bytes) -> bool:
        if not value:
            return True  # of a client that names none; browsers always do
        name = name_of(value.decode("latin-1"))
        return bool(name) and (name in self._names or is_loopback(name))

    def _read_address(self, text: str) -> bool:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._proxies)
