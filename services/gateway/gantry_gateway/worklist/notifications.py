"""Notification connections: WebSockets on which subscribers receive event reports.

One reader of the stream REPORTS per gateway distributes the reports to the connections of this gateway. Every open connection of an
AE title gets every report. A connection whose send buffer is full, or that has missed reports, reads the stream on its own until it
has caught up with the reader. Nothing is queued: a client that stops reading loses no reports and takes no memory but its send buffer.

Source: PS3.18 §8.10, §11.13.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from urllib.parse import urlsplit

import orjson
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gantry.events.v1.events_pb2 import EventReport
from gantry_gateway.http import cors, problems
from gantry_gateway.http.request import Gateway, Request
from gantry_gateway.worklist.subscriber_cursors import QUIET_S, Cursors
from gantry_gateway.worklist.websocket_protocol import GantryWebSocketProtocol, protocol_of, text_frame
from gantry_runtime import call_context, telemetry
from gantry_runtime.events import streams
from gantry_runtime.events.streams import REPORTS, Message
from gantry_runtime.process import end_tasks, run_together
from gantry_standard import errors
from gantry_standard.workitems import GLOBAL_SUBSCRIPTION, SOP_CLASS_UID, is_valid_ae_title

log = logging.getLogger(__name__)

STORE_S = 5.0
"""Seconds between two updates of the stored cursors. Reports of this time may be sent again after a gateway was killed."""
RETRY_S = 0.2
CATCH_UP_BATCH = 100
SCP_STATUS_CHANGE = 4


class Connection:
    """One open WebSocket of an AE title.

    Attributes:
        caller: of the handshake.
        position: sequence on REPORTS up to which reports were handled for it, while it is not live.
        is_live: whether the reader of the gateway sends reports to it.
        behind: set when it is not live any more.
        stored_cursor: sequence in the stored cursor.
        stored_s: monotonic time when the cursor was stored.
    """

    def __init__(self, ae_title: str, protocol: GantryWebSocketProtocol, position: int) -> None:
        self.ae_title = ae_title
        self.id = uuid.uuid4().hex[:12]
        self.protocol = protocol
        self.caller = call_context.caller()
        self.position = position
        self.is_live = False
        self.behind = asyncio.Event()
        self.stored_cursor = position
        self.stored_s = time.monotonic()

    def may_receive(self, report: EventReport) -> bool:
        """Return whether the caller may see the workitem of a report. Reports for all subscribers are about no workitem."""
        return not self.caller.is_restricted or _is_for_everybody(report) or self.caller.may_see_referrer(report.study_instance_uids)

    def try_send(self, frame: bytes, sequence: int) -> bool:
        """Write a report unless the send buffer is full or the connection closed; return whether it was written."""
        if not self.protocol.try_send(frame):
            return False
        self.protocol.last_sent = sequence
        self.protocol.ping_soon()
        return True


class Hub:
    """Reads REPORTS and sends each report to the connections of its recipients."""

    def __init__(self, gateway: Gateway) -> None:
        self._js = gateway.nats.jetstream()
        self._most_connections = gateway.settings.websocket_max_connections
        self._cursors = Cursors(self._js)
        self._connections: dict[str, set[Connection]] = {}
        self.position = -1
        """Sequence up to which reports are distributed; -1 before the stream is read."""
        self.count = 0
        """Number of connections, handshakes included."""

    async def run(self, fallback_ae_titles: Sequence[str]) -> None:
        """Run the tasks of the hub until one of them ends. Errors as `run_together`."""
        await run_together(
            {
                "follow reports": self.follow(),
                "note cursors": self.note(),
                "begin fallback AE titles": self.begin_fallbacks(fallback_ae_titles),
            }
        )

    async def begin(self, ae_title: str) -> None:
        """Create the cursor of an AE title at the end of REPORTS, unless it has one.

        Raises:
            errors.Unavailable: NATS does not answer.
        """
        _, end = await self._state()
        await self._cursors.begin(ae_title, end)

    async def begin_fallbacks(self, ae_titles: Sequence[str]) -> None:
        """Create the cursors of the fallback AE titles as soon as there is a stream (PS3.4 §CC.2.4.3); then block."""
        waiting = list(ae_titles)
        while waiting:
            try:
                await self.begin(waiting[-1])
                waiting.pop()
            except errors.Unavailable as error:
                log.debug("no stream of reports yet", extra={"reason": error.message})
                await asyncio.sleep(RETRY_S)
        await asyncio.Event().wait()

    @asynccontextmanager
    async def connected(self, ae_title: str, protocol: GantryWebSocketProtocol) -> AsyncIterator[Connection]:
        """Add a connection while the context is open. `keep_up` must send it the reports that it has missed.

        Raises:
            errors.Unavailable: NATS does not answer.
        """
        # Counted before the first await, so that concurrent handshakes cannot exceed the limit
        self.count += 1
        try:
            async with self._opened(ae_title, protocol) as connection:
                yield connection
        finally:
            self.count -= 1

    @asynccontextmanager
    async def _opened(self, ae_title: str, protocol: GantryWebSocketProtocol) -> AsyncIterator[Connection]:
        _, end = await self._state()
        connection = Connection(ae_title, protocol, end)
        connection.position = connection.stored_cursor = await self._cursors.open(ae_title, connection.id, end)
        protocol.delivered = connection.position
        protocol.reached = lambda: max(self.position, connection.position) if connection.is_live else connection.position
        connection.behind.set()
        self._connections.setdefault(ae_title, set()).add(connection)
        telemetry.WEBSOCKETS.inc()
        try:
            yield connection
        finally:
            telemetry.WEBSOCKETS.dec()
            connection.is_live = False
            self._connections[ae_title].discard(connection)
            if not self._connections[ae_title]:
                del self._connections[ae_title]
            with suppress(errors.Unavailable):
                await self._cursors.close(ae_title, connection.id, protocol.delivered)

    def connection(self, ae_title: str, handshake: Scope) -> ASGIApp:
        """Return an ASGI application that serves one notification connection from its handshake to its end.

        Raises:
            errors.Overloaded: this gateway has `GANTRY_WEBSOCKET_MAX_CONNECTIONS` connections.
        """
        if self.count >= self._most_connections:
            raise errors.Overloaded("this gateway has the maximum number of notification connections", retry_after_s=5)
        protocol = protocol_of(handshake["state"])

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            async with self.connected(ae_title, protocol) as connection:
                await send({"type": "websocket.accept", "subprotocol": next(iter(scope.get("subprotocols", [])), None)})
                await _serve(self, connection, receive)

        return serve

    async def follow(self) -> None:
        """Read the stream from its end on and distribute the reports, until cancelled."""
        while True:
            try:
                _, end = await self._state()
                self._continue_at(end)
                async with aclosing(streams.read_from(self._js, REPORTS, end)) as batches:
                    async for batch in batches:
                        for message in batch:
                            self._fan_out(message)
                            self.position = message.sequence
            except errors.GantryError as error:
                log.warning("reports interrupted", extra={"reason": error.message})
            except Exception:
                log.exception("reports interrupted")
            await asyncio.sleep(RETRY_S)

    async def keep_up(self, connection: Connection) -> None:
        """Send the missed reports to a connection whenever it is behind, until it is closed."""
        while connection.protocol.is_open:
            await connection.behind.wait()
            connection.behind.clear()
            while not connection.is_live and connection.protocol.is_open:
                try:
                    await self._catch_up(connection)
                except errors.GantryError as error:
                    log.debug("catching up interrupted", extra={"reason": error.message})
                    await asyncio.sleep(RETRY_S)
                except Exception:
                    # The client still sees an open connection, so sending must be tried again after any error
                    log.exception("catching up interrupted")
                    await asyncio.sleep(RETRY_S)

    async def note(self) -> None:
        """Store the cursors of the connections every `STORE_S` seconds, until cancelled."""
        while True:
            await asyncio.sleep(STORE_S)
            for ae_title, connections in list(self._connections.items()):
                due = [c for c in connections if _is_due(c)]
                if not due:
                    continue
                try:
                    await self._cursors.note(ae_title, [(c.id, c.protocol.delivered) for c in due])
                except errors.Unavailable as error:
                    log.debug("cursor not stored", extra={"reason": error.message})
                    break
                except Exception:
                    # The cursors of other AE titles must still be stored
                    log.exception("cursor not stored", extra={"ae_title": ae_title})
                    continue
                for connection in due:
                    connection.stored_cursor, connection.stored_s = connection.protocol.delivered, time.monotonic()

    def _continue_at(self, end: int) -> None:
        """Continue at `end`. Each connection reads the reports between the former position and `end` on its own."""
        for connections in self._connections.values():
            for connection in connections:
                if connection.is_live:
                    connection.is_live, connection.position = False, max(self.position, connection.position)
                    connection.behind.set()
        self.position = end

    def _fan_out(self, message: Message) -> None:
        report = EventReport.FromString(message.data)
        frame = text_frame(report.dicom_json)
        titles = list(self._connections) if _is_for_everybody(report) else report.ae_titles
        for ae_title in titles:
            for connection in self._connections.get(ae_title, ()):
                if not connection.is_live or message.sequence <= connection.position or not connection.may_receive(report):
                    continue
                if not connection.try_send(frame, message.sequence):
                    connection.is_live, connection.position = False, message.sequence - 1
                    connection.behind.set()

    async def _catch_up(self, connection: Connection) -> None:
        """Send the reports after the connection's position; make it live when it has caught up with the reader."""
        if self._is_level(connection):
            return
        first, end = await self._state()
        connection.position = min(connection.position, end)
        if first > connection.position + 1:
            if not await _send(connection, text_frame(_dropped(connection.position)), first - 1):
                return
            connection.position = first - 1
        async with aclosing(streams.read_from(self._js, REPORTS, connection.position, batch=CATCH_UP_BATCH)) as batches:
            async for batch in batches:
                for message in batch:
                    report = EventReport.FromString(message.data)
                    is_recipient = connection.ae_title in report.ae_titles or _is_for_everybody(report)
                    is_recipient = is_recipient and connection.may_receive(report)
                    if is_recipient and not await _send(connection, text_frame(report.dicom_json), message.sequence):
                        return
                    connection.position = message.sequence
                if not batch or self._is_level(connection):
                    return

    def _is_level(self, connection: Connection) -> bool:
        connection.is_live = 0 <= self.position <= connection.position
        return connection.is_live

    async def _state(self) -> tuple[int, int]:
        try:
            return await streams.stream_state(self._js, REPORTS)
        except errors.NotFound as error:
            raise errors.Unavailable("there is no stream of reports yet: workflow has not been started") from error


def _is_due(connection: Connection) -> bool:
    has_news = min(connection.protocol.delivered, connection.protocol.last_sent) > connection.stored_cursor
    return has_news or time.monotonic() - connection.stored_s > QUIET_S


def _is_for_everybody(report: EventReport) -> bool:
    return report.event_type_id == SCP_STATUS_CHANGE and not report.ae_titles


async def _send(connection: Connection, frame: bytes, sequence: int) -> bool:
    """Wait until the send buffer has space and write a report; return False if the connection is closed."""
    while True:
        await connection.protocol.drained()
        if connection.try_send(frame, sequence):
            return True
        if not connection.protocol.is_open:
            return False


def _dropped(position: int) -> bytes:
    """Return the SCP Status Change for a subscriber whose missed reports are no longer on the stream.

    It reports a COLD START of the subscription list, so the subscriber should search the worklist again (PS3.4 §CC.2.4.3).
    """
    return orjson.dumps(
        {
            "00000002": {"vr": "UI", "Value": [SOP_CLASS_UID]},
            "00000110": {"vr": "US", "Value": [1 + position % 65_535]},
            "00001000": {"vr": "UI", "Value": [GLOBAL_SUBSCRIPTION]},
            "00001002": {"vr": "US", "Value": [SCP_STATUS_CHANGE]},
            "00741242": {"vr": "CS", "Value": ["RESTARTED"]},
            "00741244": {"vr": "CS", "Value": ["WARM START"]},
            "00741246": {"vr": "CS", "Value": ["COLD START"]},
        }
    )


async def _serve(hub: Hub, connection: Connection, receive: Receive) -> None:
    """Send reports until the client disconnects. Its messages are ignored: event reports have no response (§8.10.5)."""
    sending = asyncio.create_task(hub.keep_up(connection), name="keep up")
    sending.add_done_callback(partial(_abort, connection))
    try:
        while (await receive())["type"] != "websocket.disconnect":
            pass
    finally:
        await end_tasks([sending])


def _abort(connection: Connection, sending: "asyncio.Task[None]") -> None:
    """Abort a connection whose sender failed; otherwise the client would see an open connection without reports."""
    if not sending.cancelled() and sending.exception() is not None:
        log.error("notification connection failed", extra={"ae_title": connection.ae_title}, exc_info=sending.exception())
        connection.protocol.transport.abort()


@asynccontextmanager
async def running(gateway: Gateway) -> AsyncIterator["asyncio.Task[None]"]:
    """Distribute reports while the context is open. `main.py` enters it once per gateway.

    Yields:
        A task that ends only if one of the tasks of the hub ends.
    """
    hub = gateway.notifications = Hub(gateway)
    task = asyncio.create_task(hub.run(gateway.settings.fallback_ae_titles), name="notifications")
    try:
        yield task
    finally:
        await end_tasks([task])
        gateway.notifications = None


async def open_connection(request: Request) -> ASGIApp:
    """Answer the handshake of a notification connection (PS3.18 §8.10.4)."""
    _check_origin(request)
    ae_title = _requester(request)
    if request.gateway.notifications is None:
        raise errors.Unavailable("this gateway has no connection to NATS yet")
    return request.gateway.notifications.connection(ae_title, request.scope)


def _requester(request: Request) -> str:
    """Return the AE title of a handshake.

    Raises:
        errors.BadRequest: it has no valid AE title.
    """
    given = request.params.get("aetitle") or request.parameter("requester") or ""
    if not is_valid_ae_title(given):
        raise errors.BadRequest("a notification connection needs an AE title: 1 to 16 printable ASCII characters, no backslash")
    return given.strip()


def _check_origin(request: Request) -> None:
    """Refuse pages of other origins. CORS does not apply to WebSockets, so a browser would let any page connect.

    Raises:
        errors.Forbidden: the origin of the page is neither this server nor allowed.
    """
    origin, host = request.headers.get("origin", ""), request.headers.get("host", "")
    if origin and _authority(origin) != host and not cors.allows(origin, request.gateway.settings):
        raise errors.Forbidden("pages of this origin may not open notification connections")


def _authority(origin: str) -> str:
    """Return the host and port of an origin; "" if it is not a URL."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


async def not_upgraded(request: Request) -> Response:
    """Answer a GET of a notification connection that is not a complete WebSocket handshake: 400 (PS3.18 §8.10.4)."""
    message = "this resource is a WebSocket: send Connection: Upgrade, Upgrade: websocket, Sec-WebSocket-Key and Sec-WebSocket-Version: 13"
    return problems.status_report(400, message, request.accept, {"Upgrade": "websocket", "Connection": "Upgrade"})
