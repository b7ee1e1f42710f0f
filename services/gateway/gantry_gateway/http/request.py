"""The request that handlers get, and the `Gateway` with the connections and settings that they use.

The query is read as PS3.18 §8.3.1 requires: names are case-sensitive, `+` is a plus sign, the order of parameters is preserved.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope

from gantry_gateway.content.sources import Retrieval
from gantry_gateway.http.access import EVERYBODY, Access
from gantry_gateway.settings import GatewaySettings
from gantry_standard import errors

if TYPE_CHECKING:
    from gantry.blob.v1.blob_pb2_grpc import BlobServiceAsyncStub
    from gantry.index.v1.index_pb2_grpc import IndexServiceAsyncStub
    from gantry.renderer.v1.renderer_pb2_grpc import RendererServiceAsyncStub
    from gantry.workflow.v1.workflow_pb2_grpc import WorkflowServiceAsyncStub
    from gantry_runtime.events.streams import Client, Inbox

T = TypeVar("T")


class Notifications(Protocol):
    """Event reports over WebSockets: the methods that the handlers of the Worklist service use."""

    async def begin(self, ae_title: str) -> None:
        """Create the cursor of an AE title at the end of REPORTS, unless it has one.

        Raises:
            errors.Unavailable: NATS does not answer.
        """

    def connection(self, ae_title: str, handshake: Scope) -> ASGIApp:
        """Return an ASGI application that serves one notification connection from its handshake to its end.

        Raises:
            errors.Overloaded: this gateway has `GANTRY_WEBSOCKET_MAX_CONNECTIONS` connections.
        """


@dataclass
class Gateway:
    """Connections, settings and sources that exist as long as the gateway; `main.py` creates it.

    `inbox` and `notifications` need NATS. They are None until NATS has answered for the first time: use them through `answered`.
    """

    settings: GatewaySettings
    blob: "BlobServiceAsyncStub"
    index: "IndexServiceAsyncStub"
    renderer: "RendererServiceAsyncStub"
    workflow: "WorkflowServiceAsyncStub"
    nats: "Client"
    retrieval: Retrieval
    access: Access = EVERYBODY
    inbox: "Inbox | None" = None
    """Receives the outcomes of store requests from index."""
    notifications: Notifications | None = None


def answered(part: T | None) -> T:
    """Return a part of the gateway that needs NATS.

    Raises:
        errors.Unavailable: NATS has not answered yet.
    """
    if part is None:
        raise errors.Unavailable("NATS does not answer")
    return part


class ClientGone(Exception):
    """The client disconnected before the whole request was received, or before the response was sent."""


class Request:
    """One HTTP request, or the handshake of a WebSocket, whose method is GET."""

    __slots__ = ("_headers", "_query", "base_url", "gateway", "method", "params", "path", "receive", "scope")

    def __init__(self, scope: Scope, receive: Receive, gateway: Gateway, params: dict[str, str], base_url: str) -> None:
        self.scope = scope
        self.receive = receive
        self.gateway = gateway
        self.params = params
        self.method: str = scope.get("method", "GET")
        self.path: str = scope["path"]
        self.base_url = base_url
        """URL of the DICOMweb root for this client, without a slash at the end."""
        self._headers: dict[str, str] | None = None
        self._query: list[tuple[str, str]] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Header fields by lower-case name; the values of repeated fields are joined by ", "."""
        if self._headers is None:
            joined: dict[str, str] = {}
            for raw_name, raw_value in self.scope["headers"]:
                name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
                joined[name] = f"{joined[name]}, {value}" if name in joined else value
            self._headers = joined
        return self._headers

    @property
    def query(self) -> list[tuple[str, str]]:
        """Parameters in order, percent-decoded as UTF-8; a name without "=" has the value ""."""
        if self._query is None:
            self._query = parse_query(self.scope["query_string"])
        return self._query

    @property
    def accept(self) -> str:
        """The Accept header; "" if it is missing."""
        return self.headers.get("accept", "")

    def parameter(self, name: str) -> str | None:
        """Return the value of a parameter that may occur at most once; None if it is missing.

        Raises:
            errors.BadRequest: it occurs more than once.
        """
        values = [value for key, value in self.query if key == name]
        if len(values) > 1:
            raise errors.BadRequest(f"parameter {name} occurs {len(values)} times, expected once")
        return values[0] if values else None

    async def chunks(self, most_bytes: int | None = None) -> AsyncIterator[bytes]:
        """Yield the body as it is received.

        Args:
            most_bytes: maximum of bytes; None for no limit.

        Raises:
            ClientGone: the client disconnected before the end of the body.
            errors.PayloadTooLarge: the body, or Content-Length, is more than `most_bytes`.
            errors.BadRequest: no byte was received for `GANTRY_UPLOAD_IDLE_S` seconds.
        """
        idle_s = self.gateway.settings.upload_idle_s
        said = self.headers.get("content-length", "")
        size = int(said) if most_bytes is not None and said.isdecimal() else 0
        if most_bytes is not None and size > most_bytes:
            raise errors.PayloadTooLarge(f"the payload has {size} bytes, expected at most {most_bytes}")
        size = 0
        while True:
            try:
                async with asyncio.timeout(idle_s):
                    message = await self.receive()
            except TimeoutError:
                raise errors.BadRequest(f"no byte of the payload was received for {idle_s:g} s") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            if body := message.get("body", b""):
                size += len(body)
                if most_bytes is not None and size > most_bytes:
                    raise errors.PayloadTooLarge(f"the payload has more than {most_bytes} bytes")
                yield body
            if not message.get("more_body", False):
                return

    async def body(self, most_bytes: int) -> bytes:
        """Return the whole body. Errors as `chunks`."""
        return b"".join([chunk async for chunk in self.chunks(most_bytes)])


def parse_query(query_string: bytes) -> list[tuple[str, str]]:
    """Split a query at `&` and the first `=`, and percent-decode names and values. `+` is not decoded.

    Raises:
        errors.BadRequest: a name or value is not UTF-8.

    Source: PS3.18 §8.3.1.
    """
    pairs = []
    for parameter in query_string.decode("latin-1").split("&"):
        if parameter:
            name, _, value = parameter.partition("=")
            try:
                pairs.append((unquote(name, errors="strict"), unquote(value, errors="strict")))
            except UnicodeDecodeError:
                raise errors.BadRequest("a query parameter is not UTF-8 after percent-decoding") from None
    return pairs
