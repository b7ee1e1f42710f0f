"""The WebSocket protocol of uvicorn with additions for notification connections, which ASGI does not offer.

* The application gets the protocol object as `scope["state"]["websocket"]`.
* A frame is written at once if the send buffer is not full. All connections share the bytes of a frame.
* A pong confirms the delivery of everything that was written before its ping.
* A connection without a pong is aborted. Unmodified uvicorn would wait for the send buffer, which never drains if the peer does not read.
"""

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

PING_INTERVAL_S = 20.0
PING_TIMEOUT_S = 20.0
PING_SOON_S = 0.5
"""Most seconds between a report and the next ping, so that the report soon counts as delivered."""

UNREADABLE = b"400 Bad Request: the handshake has a payload, or its path or a header field is longer than 8,192 bytes\n"
UNREADABLE_HANDSHAKE = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncross-origin-resource-policy: cross-origin\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(UNREADABLE), UNREADABLE)
)


def text_frame(payload: bytes) -> bytes:
    """Return a text message as one unmasked frame (RFC 6455 §5.2)."""
    size = len(payload)
    if size < 126:
        head = bytes((0x81, size))
    elif size < 65_536:
        head = b"\x81\x7e" + size.to_bytes(2, "big")
    else:
        head = b"\x81\x7f" + size.to_bytes(8, "big")
    return head + payload


class GantryWebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection. The class is passed to uvicorn as `ws=`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ping_interval, self.ping_timeout = PING_INTERVAL_S, PING_TIMEOUT_S
        self.reached: Callable[[], int] = _nothing
        """Returns the sequence up to which all reports for this peer are written."""
        self.delivered = 0
        """Sequence up to which all reports are delivered: the value of `reached` at the last ping with a pong."""
        self.last_sent = 0
        """Sequence of the last report that was written for this peer."""
        self._covered = 0

    @property
    def is_open(self) -> bool:
        """Whether frames can still be sent."""
        return self.handshake_complete and not (self.close_sent or self.disconnected or self.transport.is_closing())

    def try_send(self, frame: bytes) -> bool:
        """Write a frame unless the send buffer is full or the connection closed; return whether it was written."""
        if not self.writable.is_set() or not self.is_open:
            return False
        self.transport.write(frame)
        return True

    async def drained(self) -> None:
        """Wait until the send buffer has space, or the connection is closed."""
        await self.writable.wait()

    def ping_soon(self) -> None:
        """Send a ping within `PING_SOON_S`, unless a pong is already awaited."""
        timer = self.ping_timer
        if timer is None or self.pending_ping_payload is not None:
            return
        due = self.loop.time() + PING_SOON_S
        if timer.when() > due:
            timer.cancel()
            self.ping_timer = self.loop.call_at(due, self.send_keepalive_ping)

    def data_received(self, data: bytes) -> None:
        """Answer a handshake that the websockets library cannot parse. uvicorn would leave its connection open without an answer."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated and not self.transport.is_closing():
            self.transport.write(UNREADABLE_HANDSHAKE)
            self.transport.close()

    def handle_connect(self, event: Any) -> None:
        """Handle a handshake; pass this object to the application."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            self.scope["state"]["websocket"] = self

    async def send(self, message: Any) -> None:
        """Send a message of the application. Mark a refused handshake as complete, as uvicorn would otherwise log an error."""
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True

    def send_keepalive_ping(self) -> None:
        """Send a ping; remember the sequence that its pong will confirm."""
        self._covered = self.reached()
        super().send_keepalive_ping()

    def handle_pong(self, event: Any) -> None:
        """Handle a pong: everything that was written before its ping is delivered."""
        awaited = self.pending_ping_payload
        super().handle_pong(event)
        if awaited is not None and self.pending_ping_payload is None:
            self.delivered = max(self.delivered, self._covered)
            if self.last_sent > self.delivered:
                self.ping_soon()

    def keepalive_timeout(self) -> None:
        """Abort the connection; if the peer has stopped reading, its send buffer would never drain."""
        super().keepalive_timeout()
        self.transport.abort()


def _nothing() -> int:
    return 0


def protocol_of(state: dict[str, Any]) -> GantryWebSocketProtocol:
    """Return the protocol of a connection.

    Raises:
        RuntimeError: the server does not use `GantryWebSocketProtocol`.
    """
    protocol = state.get("websocket")
    if not isinstance(protocol, GantryWebSocketProtocol):
        raise RuntimeError("uvicorn was not given ws=GantryWebSocketProtocol")
    return protocol
