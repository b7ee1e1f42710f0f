"""A request as the handlers see it, and what they may use.

The query is kept as PS3.18 §8.3.1 reads it: names are case sensitive, `+` is a plus sign, order is kept.
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
    """Event reports over WebSockets, as the handlers of the Worklist service use them."""

    async def begin(self, ae_title: str) -> None:
        """Let the reports of an AE title count from now on, where they do not already.

        Raises:
            errors.Unavailable: NATS does not answer.
        """

    def connection(self, ae_title: str, handshake: Scope) -> ASGIApp:
        """Return what serves one notification connection from its handshake to its end.

        Raises:
            errors.Overloaded: this gateway has as many connections as it may.
        """


@dataclass
class Gateway:
    """What lives as long as the gateway does; main.py fills it.

    The last two need NATS. They are None until NATS has answered for the first time: use them through `answered`.
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
    """Where index tells the outcomes of a store."""
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
    """The client went away before the whole request was here."""


class Request:
    """One HTTP request, or the handshake of a WebSocket, which is a GET."""

    __slots__ = ("_headers", "_query", "base_url", "gateway", "method", "params", "path", "receive", "scope")

    def __init__(self, scope: Scope, receive: Receive, gateway: Gateway, params: dict[str, str], base_url: str) -> None:
        self.scope = scope
        self.receive = receive
        self.gateway = gateway
        self.params = params
        self.method: str = scope.get("method", "GET")
        self.path: str = scope["path"]
        self.base_url = base_url
        """URL of the DICOMweb root as this client knows it, without a slash at the end."""
        self._headers: dict[str, str] | None = None
        self._query: list[tuple[str, str]] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Header fields, names in lower case; repeated ones joined by ", "."""
        if self._headers is None:
            joined: dict[str, str] = {}
            for raw_name, raw_value in self.scope["headers"]:
                name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
                joined[name] = f"{joined[name]}, {value}" if name in joined else value
            self._headers = joined
        return self._headers

    @property
    def query(self) -> list[tuple[str, str]]:
        """Parameters in order, percent-decoded as UTF-8; a bare name has the value ""."""
        if self._query is None:
            self._query = parse_query(self.scope["query_string"])
        return self._query

    @property
    def accept(self) -> str:
        """The Accept header; "" where it is missing."""
        return self.headers.get("accept", "")

    def parameter(self, name: str) -> str | None:
        """Return the value of a parameter that may stand once.

        Raises:
            errors.BadRequest: it stands more than once.
        """
        values = [value for key, value in self.query if key == name]
        if len(values) > 1:
            raise errors.BadRequest(f"parameter {name} stands {len(values)} times, expected once")
        return values[0] if values else None

    async def chunks(self, most_bytes: int | None = None) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Raises:
            ClientGone: it ended before it was whole.
            errors.PayloadTooLarge: it has, or Content-Length says that it has, more than `most_bytes`.
            errors.BadRequest: nothing came for `upload_idle_s`.
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
                raise errors.BadRequest(f"no byte of the payload came for {idle_s:g} s") from None
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
        """Return the whole body.

        Raises:
            errors.PayloadTooLarge: it has more than `most_bytes`.
        """
        return b"".join([piece async for piece in self.chunks(most_bytes)])


def parse_query(query_string: bytes) -> list[tuple[str, str]]:
    """Split a query at `&` and the first `=`, then percent-decode. `+` stays.

    Raises:
        errors.BadRequest: a value is not UTF-8.

    Source: PS3.18 §8.3.1.
    """
    pairs = []
    for piece in query_string.decode("latin-1").split("&"):
        if piece:
            name, _, value = piece.partition("=")
            try:
                pairs.append((unquote(name, errors="strict"), unquote(value, errors="strict")))
            except UnicodeDecodeError:
                raise errors.BadRequest("a query parameter is not UTF-8 after percent-decoding") from None
    return pairs
