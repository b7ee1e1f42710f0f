"""WebSockets as uvicorn speaks them, with what a notification connection needs and ASGI does not show.

* The application gets the protocol itself, as `scope["state"]["websocket"]`.
* A frame can be written at once, when the peer keeps up; the same bytes serve all connections.
* A pong tells what the peer has: everything that was written before the ping that it answers.
* A peer that does not pong is cut at once. Stock uvicorn waits for a buffer that never drains, when the peer stopped reading.
"""

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

PING_INTERVAL_S = 20.0
PING_TIMEOUT_S = 20.0
PING_SOON_S = 0.5
"""Seconds after which a ping follows a report, so that it soon counts as delivered."""


def text_frame(payload: bytes) -> bytes:
    """Return a text message in one unmasked frame (RFC 6455 §5.2)."""
    size = len(payload)
    if size < 126:
        head = bytes((0x81, size))
    elif size < 65_536:
        head = b"\x81\x7e" + size.to_bytes(2, "big")
    else:
        head = b"\x81\x7f" + size.to_bytes(8, "big")
    return head + payload


class GantryWebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection. Give the class to uvicorn as `ws=`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ping_interval, self.ping_timeout = PING_INTERVAL_S, PING_TIMEOUT_S
        self.reached: Callable[[], int] = _nothing
        """Sequence up to which everything for this peer is written."""
        self.delivered = 0
        """What `reached` was when the last ping was sent that a pong has answered."""
        self.last_sent = 0
        """Sequence of the last report that was written for this peer."""
        self._covered = 0

    @property
    def is_open(self) -> bool:
        """Whether frames can still be sent."""
        return self.handshake_complete and not (self.close_sent or self.disconnected or self.transport.is_closing())

    def try_send(self, frame: bytes) -> bool:
        """Write a frame unless the peer is behind or gone; return whether it was written."""
        if not self.writable.is_set() or not self.is_open:
            return False
        self.transport.write(frame)
        return True

    async def drained(self) -> None:
        """Wait until the peer has taken what was written, or is gone."""
        await self.writable.wait()

    def ping_soon(self) -> None:
        """Ping within `PING_SOON_S`, unless a pong is awaited already."""
        timer = self.ping_timer
        if timer is None or self.pending_ping_payload is not None:
            return
        due = self.loop.time() + PING_SOON_S
        if timer.when() > due:
            timer.cancel()
            self.ping_timer = self.loop.call_at(due, self.send_keepalive_ping)

    def handle_connect(self, event: Any) -> None:
        """Give the application this protocol."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            self.scope["state"]["websocket"] = self

    async def send(self, message: Any) -> None:
        """Send what the application says. uvicorn logs an error after each refused handshake unless it counts as complete."""
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True

    def send_keepalive_ping(self) -> None:
        """Note what the pong will confirm."""
        self._covered = self.reached()
        super().send_keepalive_ping()

    def handle_pong(self, event: Any) -> None:
        """Take what was written before the ping as delivered."""
        awaited = self.pending_ping_payload
        super().handle_pong(event)
        if awaited is not None and self.pending_ping_payload is None:
            self.delivered = max(self.delivered, self._covered)
            if self.last_sent > self.delivered:
                self.ping_soon()

    def keepalive_timeout(self) -> None:
        """Cut the connection: a peer that stopped reading would hold its buffer for ever."""
        super().keepalive_timeout()
        self.transport.abort()


def _nothing() -> int:
    return 0


def protocol_of(state: dict[str, Any]) -> GantryWebSocketProtocol:
    """Return the protocol of a connection.

    Raises:
        RuntimeError: the server was not given `GantryWebSocketProtocol`.
    """
    protocol = state.get("websocket")
    if not isinstance(protocol, GantryWebSocketProtocol):
        raise RuntimeError("uvicorn was not given ws=GantryWebSocketProtocol")
    return protocol
