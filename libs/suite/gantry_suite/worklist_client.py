"""An asyncio client of the Worklist service (UPS-RS): workitems, subscriptions, and event reports across reconnections.

    async with WorklistClient("http://127.0.0.1:8080/dicom-web") as worklist:
        await worklist.subscribe("MY_MODEL")
        async for event in worklist.events("MY_MODEL"):
            print(event.workitem_uid, event.procedure_step_state)

It uses PS3.18 chapter 11 and nothing else, so it works with any origin server. A data set is a DICOM JSON object, a dict from tag to
element; `value`, `items` and `element` read and write it by keyword. A refusal is an error of `gantry_standard.errors`, with the server's
text in `message` and its Warning in `warning`. `docs/worklist-client.md` is the manual.

Source: PS3.18 chapter 11, §8.10; PS3.4 CC.2.
"""

import asyncio
import hashlib
import logging
import random
import re
import ssl
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from gantry_runtime.byte_bounded_cache import CountBoundedCache
from gantry_standard import errors
from gantry_standard.dicom.pydicom_tables import tag_of
from gantry_standard.workitems import CANCELED, COMPLETED, FILTERED_SUBSCRIPTION, GLOBAL_SUBSCRIPTION, IN_PROGRESS, SCHEDULED, vr_of

log = logging.getLogger(__name__)

DataSet = dict[str, Any]
"""A DICOM JSON object: tag of 8 upper-case hexadecimal digits to {"vr": …, "Value": […]}."""

DICOM_JSON = "application/dicom+json"
RETRY_S = 30.0
"""Seconds for which a request is repeated while the server does not respond, or answers 503."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
"""Pauses between attempts double from the first to the longest. Each is shortened by up to half at random, so that many clients do not
reconnect at once."""
REMEMBERED_REPORTS = 20_000
"""Number of recent event reports that are remembered, to drop repetitions. A server repeats reports that it sent shortly before a
connection broke."""
LARGEST_REPORT_BYTES = 16 << 20
PAGE = 500
"""Rows per search request of `scheduled`."""
HANDSHAKE_S = 10.0
PING_S = 20.0
"""Seconds between two pings of an idle connection, and for the pong. A dead connection is detected after at most twice this time."""

STATUSES: dict[int, type[errors.GantryError]] = {
    400: errors.BadRequest,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    406: errors.NotAcceptable,
    409: errors.Conflict,
    410: errors.Gone,
    413: errors.PayloadTooLarge,
    415: errors.UnsupportedMediaType,
    429: errors.Overloaded,
    501: errors.Unsupported,
    502: errors.Unavailable,
    503: errors.Unavailable,
    504: errors.Unavailable,
}
"""The error class of each status; other statuses are a GantryError."""


class EventType(IntEnum):
    """Event Type ID (0000,1002); PS3.4 Table CC.2.4-1."""

    STATE_REPORT = 1
    CANCEL_REQUESTED = 2
    PROGRESS_REPORT = 3
    SCP_STATUS_CHANGE = 4
    ASSIGNED = 5


@dataclass(frozen=True, slots=True)
class Event:
    """One event report.

    Attributes:
        event_type: an EventType, or the number of an unknown type.
        workitem_uid: of the workitem; in SCP_STATUS_CHANGE the server's value.
        message_id: (0000,0110); the same if the report is repeated.
        data_set: the whole report.
    """

    event_type: int
    workitem_uid: str
    message_id: int
    data_set: DataSet

    @property
    def procedure_step_state(self) -> str:
        """SCHEDULED, IN PROGRESS, COMPLETED or CANCELED in a state report; "" in others."""
        return str(value(self.data_set, "ProcedureStepState") or "")

    @property
    def input_readiness_state(self) -> str:
        """INCOMPLETE, UNAVAILABLE or READY in a state report; "" in others."""
        return str(value(self.data_set, "InputReadinessState") or "")


def new_uid() -> str:
    """Return a new unique UID (PS3.5 §B.2)."""
    return f"2.25.{uuid.uuid4().int}"


def now() -> str:
    """Return the current time as a DT in UTC."""
    return datetime.now(UTC).strftime("%Y%m%d%H%M%S.%f+0000")


def element(keyword: str, *values: Any) -> DataSet:
    """Return a data set with one attribute; without values it is empty. Join several with `|`.

    Raises:
        KeyError: no attribute has this keyword.
    """
    tag = tag_of(keyword)
    made: DataSet = {"vr": vr_of(tag)}
    if values:
        made["Value"] = list(values)
    return {tag: made}


def code(code_value: str, coding_scheme_designator: str, code_meaning: str) -> DataSet:
    """Return an item of a code sequence (PS3.3 Table 8.8-1)."""
    return (
        element("CodeValue", code_value)
        | element("CodingSchemeDesignator", coding_scheme_designator)
        | element("CodeMeaning", code_meaning)
    )


def value(data_set: DataSet, keyword: str) -> Any:
    """Return the first value of an attribute; None if it is absent or empty."""
    values = data_set.get(tag_of(keyword), {}).get("Value")
    return values[0] if values else None


def items(data_set: DataSet, keyword: str) -> list[DataSet]:
    """Return the items of a sequence; [] if it is absent or empty."""
    return list(data_set.get(tag_of(keyword), {}).get("Value") or [])


def performed_procedure(
    workitem: DataSet,
    *,
    started: str = "",
    outputs: Sequence[DataSet] = (),
    station: DataSet | None = None,
    procedure: DataSet | None = None,
) -> DataSet:
    """Return the attributes that COMPLETED requires: performer, procedure, times and results (PS3.4 Table CC.2.5-3).

    Args:
        workitem: as retrieved. Its scheduled station and procedure are the defaults.
        started: DT; default: now. The end is now.
        outputs: items of Output Information Sequence, as `references` makes them; empty if there are no results.
        station, procedure: codes.

    Raises:
        errors.BadRequest: neither the workitem nor the caller names a station or a procedure.
    """
    stations = [station] if station else items(workitem, "ScheduledStationNameCodeSequence")
    procedures = [procedure] if procedure else items(workitem, "ScheduledWorkitemCodeSequence")
    for keyword, codes in (("Station Name", stations), ("Workitem", procedures)):
        if not codes:
            raise errors.BadRequest(f"the workitem has no Scheduled {keyword} Code Sequence: say by which code it was performed")
    end = now()
    performed = (
        element("PerformedStationNameCodeSequence", *stations)
        | element("PerformedWorkitemCodeSequence", *procedures)
        | element("PerformedProcedureStepStartDateTime", started or end)
        | element("PerformedProcedureStepEndDateTime", end)
        | element("OutputInformationSequence", *outputs)
    )
    return element("UnifiedProcedureStepPerformedProcedureSequence", performed)


def references(instances: Sequence[DataSet], url: str) -> list[DataSet]:
    """Return items that reference instances, one item per series (PS3.3 Table 10-3b).

    Args:
        instances: each with Study, Series and SOP Instance UID and SOP Class UID, for example search results or metadata.
        url: DICOMweb root from which they can be retrieved.
    """
    series: dict[tuple[str, str], list[DataSet]] = {}
    for instance in instances:
        series.setdefault((value(instance, "StudyInstanceUID"), value(instance, "SeriesInstanceUID")), []).append(
            element("ReferencedSOPClassUID", value(instance, "SOPClassUID"))
            | element("ReferencedSOPInstanceUID", value(instance, "SOPInstanceUID"))
        )
    return [
        element("TypeOfInstances", "DICOM")
        | element("StudyInstanceUID", study_instance_uid)
        | element("SeriesInstanceUID", series_instance_uid)
        | element("ReferencedSOPSequence", *referenced)
        | element(
            "WADORSRetrievalSequence",
            element("RetrieveURL", f"{url.rstrip('/')}/studies/{study_instance_uid}/series/{series_instance_uid}"),
        )
        for (study_instance_uid, series_instance_uid), referenced in series.items()
    ]


class _Unanswered(Exception):
    """A request had no response, or 503: it may or may not have taken effect."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class _Answer:
    response: httpx.Response
    was_repeated: bool
    """An earlier attempt had no response, so it may have taken effect."""


class WorklistClient:
    """The Worklist service of one origin server.

    Requests are repeated for `retry_s` seconds while the server does not respond; every request can be repeated safely. So a restart of
    the server, or of a gateway in front of it, causes a delay and no error.

    Args:
        url: DICOMweb root, such as https://host/dicom-web.
        headers: sent with every request and handshake, such as Authorization.
        tls: for https and wss; None: the system's certificate authorities.
        timeout_s: seconds for one response.
        retry_s: seconds; 0: no request is repeated.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = 30.0,
        retry_s: float = RETRY_S,
    ) -> None:
        self.url = url.rstrip("/")
        self._headers = dict(headers or {})
        self._tls = tls
        self._retry_s = retry_s
        self._http = httpx.AsyncClient(
            headers=self._headers, timeout=httpx.Timeout(timeout_s, connect=5), trust_env=False, verify=tls if tls is not None else True
        )
        self._connections: set[ClientConnection] = set()
        self._is_closed = False

    async def __aenter__(self) -> Self:
        """Open the client. It connects with the first request."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the client and every notification connection; iterations over `events` end."""
        self._is_closed = True
        for connection in list(self._connections):
            await connection.close()
        await self._http.aclose()

    async def create(self, workitem: DataSet, uid: str = "") -> str:
        """Create a workitem (§11.4).

        Args:
            uid: of the workitem; default: a new UID.

        Returns:
            Its UID.

        Raises:
            errors.Conflict: a workitem with this UID exists.
            errors.BadRequest: an attribute is missing or not allowed.
        """
        made = uid or new_uid()
        answer = await self._request("POST", "/workitems", made, workitem)
        if answer.response.status_code != 409 or uid or not answer.was_repeated:
            self._check(answer)
        return made

    async def get(self, uid: str) -> DataSet:
        """Retrieve a workitem (§11.5).

        Raises:
            errors.NotFound, errors.Gone: the workitem does not exist, or was deleted.
        """
        response = self._check(await self._request("GET", f"/workitems/{quote(uid)}"))
        (workitem,) = response.json()
        return dict(workitem)

    async def search(self, keys: Mapping[str, str] | None = None, *, limit: int | None = None, offset: int = 0) -> list[DataSet]:
        """Search workitems (§11.9). Results reflect all earlier changes.

        Args:
            keys: keyword or tag, and the value to match, such as {"ProcedureStepState": "SCHEDULED", "WorklistLabel": "AI*"}; also
                includefield and fuzzymatching.
            limit: maximum number of rows; a server may have a lower maximum.

        Returns:
            Rows of one page. Repeat with a larger `offset` until a page is empty.
        """
        parameters = {**(keys or {}), "offset": str(offset), **({} if limit is None else {"limit": str(limit)})}
        query = str(httpx.QueryParams(parameters))
        response = self._check(await self._request("GET", "/workitems", query, headers={"Cache-Control": "no-cache"}))
        return [dict(row) for row in response.json()] if response.content else []

    async def update(self, uid: str, changes: DataSet, transaction_uid: str = "") -> None:
        """Change attributes of a workitem (§11.6). A sequence is replaced as a whole.

        Args:
            transaction_uid: returned by `claim`; empty for a SCHEDULED workitem.

        Raises:
            errors.BadRequest: an attribute may not be changed, another performer has claimed the workitem, or it is final.
            errors.Conflict: its state does not allow the change.
        """
        self._check(await self._request("POST", f"/workitems/{quote(uid)}", transaction_uid, changes))

    async def claim(self, uid: str, transaction_uid: str = "") -> str:
        """Claim a workitem: change its state to IN PROGRESS (§11.7).

        Args:
            transaction_uid: default: a new UID. Pass a stored one to claim again after a crash.

        Returns:
            The Transaction UID, which every later change needs. Store it where it survives a crash.

        Raises:
            errors.Conflict: another performer has claimed it, or its state is final.
            errors.NotFound, errors.Gone: the workitem does not exist, or was deleted.
        """
        wanted = transaction_uid or new_uid()
        answer = await self._change_state(uid, IN_PROGRESS, wanted)
        # C302: this client has claimed it already (IN PROGRESS with the same Transaction UID). C300: final.
        if answer.response.status_code == 409 and value(await self.get(uid), "ProcedureStepState") == IN_PROGRESS:
            return wanted
        if answer.response.status_code == 400 and "Transaction UID is incorrect" in answer.response.headers.get("warning", ""):
            raise errors.Conflict(f"workitem {uid} is claimed by another, or final", warning=_warning(answer.response))
        self._check(answer)
        return wanted

    async def report_progress(
        self, uid: str, transaction_uid: str, percent: float, description: str = "", *, contact_uri: str = "", contact_name: str = ""
    ) -> None:
        """Report the progress of a claimed workitem.

        Args:
            percent: 0 to 100.
            contact_uri: how to contact the performer, such as https://host/jobs/7 or tel:+31….
        """
        told = element("ProcedureStepProgress", f"{percent:g}")
        if description:
            told |= element("ProcedureStepProgressDescription", description)
        if contact_uri:
            contact = element("ContactURI", contact_uri) | (element("ContactDisplayName", contact_name) if contact_name else {})
            told |= element("ProcedureStepCommunicationsURISequence", contact)
        await self.update(uid, element("ProcedureStepProgressInformationSequence", told), transaction_uid)

    async def complete(self, uid: str, transaction_uid: str, performed: DataSet | None = None) -> None:
        """Complete a claimed workitem.

        Args:
            performed: written first, as `performed_procedure` makes it; not needed if it was written before.

        Raises:
            errors.Conflict: an attribute that COMPLETED requires is missing (the message names it), or the state is not IN PROGRESS.
            errors.BadRequest: the Transaction UID differs from that of the claim.
        """
        if performed is not None:
            try:
                await self.update(uid, performed, transaction_uid)
            except errors.BadRequest:
                # An attempt without a response, or one before a crash, has completed it: nothing is left to do.
                if value(await self.get(uid), "ProcedureStepState") != COMPLETED:
                    raise
        self._check(await self._change_state(uid, COMPLETED, transaction_uid))

    async def cancel(self, uid: str, transaction_uid: str, reason: str = "", discontinuation: DataSet | None = None) -> None:
        """Cancel a workitem that this client has claimed.

        Args:
            reason: Reason For Cancellation.
            discontinuation: code of the reason; default: chosen by the server.

        Raises:
            errors.Conflict: the state is not IN PROGRESS.
            errors.BadRequest: the Transaction UID differs from that of the claim.
        """
        if reason or discontinuation:
            progress = dict(next(iter(items(await self.get(uid), "ProcedureStepProgressInformationSequence")), {}))
            progress |= element("ReasonForCancellation", reason) if reason else {}
            progress |= element("ProcedureStepDiscontinuationReasonCodeSequence", discontinuation) if discontinuation else {}
            await self.update(uid, element("ProcedureStepProgressInformationSequence", progress), transaction_uid)
        self._check(await self._change_state(uid, CANCELED, transaction_uid))

    async def request_cancellation(
        self, uid: str, reason: str = "", *, discontinuation: DataSet | None = None, contact_uri: str = "", contact_name: str = ""
    ) -> None:
        """Request the cancellation of a workitem (§11.8). An unclaimed workitem is cancelled; otherwise its performer is notified.

        Raises:
            errors.Conflict: it is completed, or its performer cannot be notified.
        """
        asked = element("ReasonForCancellation", reason) if reason else {}
        asked |= element("ProcedureStepDiscontinuationReasonCodeSequence", discontinuation) if discontinuation else {}
        asked |= element("ContactURI", contact_uri) if contact_uri else {}
        asked |= element("ContactDisplayName", contact_name) if contact_name else {}
        self._check(await self._request("POST", f"/workitems/{quote(uid)}/cancelrequest", data_set=asked or None))

    async def subscribe(
        self,
        ae_title: str,
        workitem_uid: str = GLOBAL_SUBSCRIPTION,
        *,
        filter: Mapping[str, str] | None = None,
        deletion_lock: bool = False,
    ) -> str:
        """Subscribe an AE title (§11.10). Subscribing again is not an error.

        Args:
            workitem_uid: one workitem, or the whole worklist.
            filter: keyword or tag, and the value to match: subscribes to the matching workitems of the worklist.
            deletion_lock: final workitems are not deleted before the AE title unsubscribes.

        Returns:
            The URL of the notification connection, from the response.

        Raises:
            errors.NotFound: the workitem does not exist.
            errors.Forbidden: the server does not support this.
        """
        path, query = _subscriber(workitem_uid, ae_title, filter, {"deletionlock": "true"} if deletion_lock else {})
        response = self._check(await self._request("POST", path, query))
        return str(response.headers.get("content-location", ""))

    async def unsubscribe(self, ae_title: str, workitem_uid: str = GLOBAL_SUBSCRIPTION, *, filter: Mapping[str, str] | None = None) -> None:
        """End a subscription (§11.11). Ending one to the worklist also ends those to its workitems.

        Args:
            filter: that of the subscription. The standard allows one filtered subscription per AE title, Gantry several.

        Raises:
            errors.NotFound: there is no such subscription.
        """
        answer = await self._request("DELETE", *_subscriber(workitem_uid, ae_title, filter))
        if answer.response.status_code != 404 or not answer.was_repeated:
            self._check(answer)

    async def suspend(self, ae_title: str, workitem_uid: str = GLOBAL_SUBSCRIPTION) -> None:
        """Stop subscribing to new workitems of the worklist; subscriptions to existing workitems remain (§11.12)."""
        path, _ = _subscriber(workitem_uid, ae_title)
        answer = await self._request("POST", f"{path}/suspend")
        if answer.response.status_code != 404 or not answer.was_repeated:
            self._check(answer)

    async def events(
        self, ae_title: str, *, within_s: float | None = None, tell: Callable[[str], None] | None = None
    ) -> AsyncGenerator[Event, None]:
        """Yield the event reports of an AE title as they arrive, without end (§8.10, §11.13).

        A broken connection is opened again, after pauses that double up to LONGEST_PAUSE_S. Repeated reports are dropped. Reports of one
        workitem arrive in order. After an SCP_STATUS_CHANGE reports may be missing: search again.

        Args:
            within_s: seconds for the first connection; default: no limit.
            tell: called with a sentence for each connection that is opened or lost.

        Raises:
            errors.Unavailable: no connection could be opened within `within_s`.
            errors.GantryError: the server refuses the connection (a status below 500), for example an unknown resource or AE title.
        """
        async with aclosing(self._reports(ae_title, within_s, tell or log.info)) as reports:
            async for event in reports:
                if event is not None:
                    yield event

    async def scheduled(self, ae_title: str, keys: Mapping[str, str] | None = None) -> AsyncGenerator[DataSet, None]:
        """Subscribe and yield each workitem that can be claimed: first existing ones, then new ones, without end.

        A workitem may be yielded more than once while nobody has claimed it; `claim` decides. The subscription remains when the loop ends:
        the server continues to store reports until `unsubscribe`. After each lost connection and each SCP Status Change the worklist is
        searched again, so no workitem is missed even if the server stores no reports for absent subscribers.

        Args:
            keys: what to match, as in `search`; default: all that are SCHEDULED and READY.

        Raises:
            errors.GantryError: the server refuses the subscription, the connection or the search.
        """
        wanted = {"ProcedureStepState": SCHEDULED, "InputReadinessState": "READY", **(keys or {})}
        try:
            await self.subscribe(ae_title, filter=keys)
        except (errors.Forbidden, errors.BadRequest, errors.Unsupported):
            # A server may refuse filtered subscriptions or some keys: subscribe to the whole worklist instead.
            await self.subscribe(ae_title)
        async with aclosing(self._reports(ae_title, None, log.info)) as reports:
            async for event in reports:
                if event is None or event.event_type == EventType.SCP_STATUS_CHANGE:
                    uids = await self._uids(wanted)
                elif event.procedure_step_state == SCHEDULED:
                    uids = await self._uids({**wanted, "SOPInstanceUID": event.workitem_uid})
                else:
                    continue
                for uid in uids:
                    with suppress(errors.NotFound, errors.Gone):
                        workitem = await self.get(uid)
                        if value(workitem, "ProcedureStepState") == SCHEDULED:
                            yield workitem

    async def _uids(self, keys: Mapping[str, str]) -> list[str]:
        """Return the UIDs of all matching workitems, from all pages."""
        uids: dict[str, None] = {}
        while rows := await self.search(keys, limit=PAGE, offset=len(uids)):
            before = len(uids)
            uids |= {str(value(row, "SOPInstanceUID")): None for row in rows}
            if len(rows) < PAGE or len(uids) == before:
                break
        return list(uids)

    async def _reports(self, ae_title: str, within_s: float | None, tell: Callable[[str], None]) -> AsyncGenerator[Event | None, None]:
        """Yield event reports, and None when a connection was opened, before its reports."""
        channel = f"ws{self.url.removeprefix('http')}/subscribers/{quote(ae_title, safe='')}"
        seen = _Seen(REMEMBERED_REPORTS)
        begin, was_connected, pause_s = time.monotonic(), False, FIRST_PAUSE_S
        while not self._is_closed:
            try:
                connection = await self._connect(channel)
            except _Unanswered as unanswered:
                if within_s is not None and not was_connected and time.monotonic() - begin + pause_s > within_s:
                    raise errors.Unavailable(f"{channel} cannot be opened: {unanswered}") from unanswered
                pause_s = max(pause_s, min(unanswered.retry_after_s, LONGEST_PAUSE_S))
            else:
                tell(f"connected to {channel}")
                was_connected, pause_s = True, FIRST_PAUSE_S
                async with aclosing(self._received(connection, seen)) as received:
                    yield None
                    async for event in received:
                        yield event
                if not self._is_closed:
                    tell(f"connection to {channel} lost, opening it again")
            if not self._is_closed:
                await asyncio.sleep(pause_s * random.uniform(0.5, 1))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _received(self, connection: ClientConnection, seen: "_Seen") -> AsyncGenerator[Event, None]:
        """Yield the new reports of one connection until it ends; then close it."""
        self._connections.add(connection)
        try:
            async for message in connection:
                if (event := _event(message, seen)) is not None:
                    yield event
        except ConnectionClosed as closed:
            log.info("notification connection lost", extra={"reason": str(closed)})
        finally:
            self._connections.discard(connection)
            with suppress(OSError, TimeoutError):
                await connection.close()

    async def _connect(self, channel: str) -> ClientConnection:
        """Open a notification connection.

        Raises:
            _Unanswered: a later attempt may succeed.
            errors.GantryError: a later attempt would fail too.
        """
        try:
            return await connect(
                channel,
                additional_headers=self._headers,
                ssl=self._tls if self._tls is not None and channel.startswith("wss") else None,
                open_timeout=HANDSHAKE_S,
                ping_interval=PING_S,
                ping_timeout=PING_S,
                close_timeout=2,
                max_size=LARGEST_REPORT_BYTES,
                proxy=None,
            )
        except InvalidStatus as refused:
            cls = STATUSES.get(refused.response.status_code, errors.GantryError)
            if refused.response.status_code < 500 and not issubclass(cls, errors.RetryLater):
                sentence = (refused.response.body or b"").decode(errors="replace").strip()
                raise cls(f"{channel} is refused with {refused.response.status_code}: {sentence[:500]}") from refused
            retry_after = refused.response.headers.get("Retry-After", "")
            raise _Unanswered(str(refused), float(retry_after) if retry_after.isdecimal() else 0.0) from refused
        except (OSError, TimeoutError, InvalidHandshake, InvalidMessage, EOFError) as error:
            raise _Unanswered(str(error) or type(error).__name__) from error

    async def _change_state(self, uid: str, state: str, transaction_uid: str) -> _Answer:
        wanted = element("TransactionUID", transaction_uid) | element("ProcedureStepState", state)
        return await self._request("PUT", f"/workitems/{quote(uid)}/state", data_set=wanted)

    async def _request(
        self, method: str, path: str, query: str = "", data_set: DataSet | None = None, headers: Mapping[str, str] | None = None
    ) -> _Answer:
        """Send a request, and repeat it while there is no response.

        Raises:
            errors.Unavailable: there was none within `retry_s`; the request may or may not have taken effect.
        """
        loop = asyncio.get_running_loop()
        end, pause_s, was_repeated = loop.time() + self._retry_s, FIRST_PAUSE_S, False
        while True:
            try:
                return _Answer(await self._send(method, f"{self.url}{path}{'?' if query else ''}{query}", data_set, headers), was_repeated)
            except _Unanswered as unanswered:
                pause_s = max(pause_s, min(unanswered.retry_after_s, LONGEST_PAUSE_S))
                if loop.time() + pause_s > end:
                    raise errors.Unavailable(f"{method} {self.url}{path}: {unanswered}") from unanswered
                was_repeated = True
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _send(self, method: str, url: str, data_set: DataSet | None, headers: Mapping[str, str] | None) -> httpx.Response:
        sent = {"Accept": DICOM_JSON, **(headers or {})}
        content = None
        if data_set is not None:
            sent["Content-Type"] = DICOM_JSON
            content = orjson.dumps([dict(sorted(data_set.items()))])
        try:
            response = await self._http.request(method, url, content=content, headers=sent)
        except httpx.TransportError as error:
            raise _Unanswered(f"{type(error).__name__} {error}".strip()) from error
        if issubclass(STATUSES.get(response.status_code, errors.GantryError), errors.RetryLater):
            retry_after = response.headers.get("retry-after", "")
            raise _Unanswered(_sentence(response), float(retry_after) if retry_after.isdecimal() else 0.0)
        return response

    def _check(self, answer: _Answer) -> httpx.Response:
        """Return a successful response.

        Raises:
            errors.GantryError: the response is an error; the class tells what the caller can do.
        """
        response = answer.response
        if response.is_success:
            return response
        raise STATUSES.get(response.status_code, errors.GantryError)(_sentence(response), warning=_warning(response))


class _Seen:
    """The most recent reports, to recognise repetitions.

    A repeated report has the Message ID and the content of the first. Message IDs alone do not suffice: they have 16 bits and start again.
    """

    def __init__(self, size: int) -> None:
        self._digests = CountBoundedCache[bytes, bool](size)

    def is_new(self, report: bytes) -> bool:
        """Record a report. Return whether it is new."""
        digest = hashlib.blake2b(report, digest_size=16).digest()
        if self._digests.get(digest):
            return False
        return self._digests.put(digest, True)


def _event(message: str | bytes, seen: _Seen) -> Event | None:
    """Read a report; None if it is a repetition or not a report."""
    encoded = message.encode() if isinstance(message, str) else message
    try:
        data_set: DataSet = orjson.loads(encoded)
        event = Event(
            event_type=int(data_set["00001002"]["Value"][0]),
            workitem_uid=str(data_set["00001000"]["Value"][0]),
            message_id=int(data_set["00000110"]["Value"][0]),
            data_set=data_set,
        )
    except (ValueError, KeyError, IndexError, TypeError):
        log.warning("a message on a notification connection is no event report", extra={"size_bytes": len(encoded)})
        return None
    return event if seen.is_new(encoded) else None


def _subscriber(
    workitem_uid: str, ae_title: str, filter: Mapping[str, str] | None = None, parameters: Mapping[str, str] | None = None
) -> tuple[str, str]:
    """Return path and query of a subscription."""
    query = dict(parameters or {})
    if filter:
        # Commas and equals signs in values are encoded twice: for the filter list and for the query (§11.10.1.2).
        query["filter"] = ",".join(f"{quote(key, safe='')}={quote(wanted, safe='*?')}" for key, wanted in filter.items())
    target = FILTERED_SUBSCRIPTION if filter else workitem_uid
    return f"/workitems/{quote(target)}/subscribers/{quote(ae_title, safe='')}", str(httpx.QueryParams(query))


def _sentence(response: httpx.Response) -> str:
    """Return the server's text of an error."""
    message = response.text.strip()
    if "json" in response.headers.get("content-type", ""):
        with suppress(ValueError, AttributeError, TypeError):
            message = str(response.json().get("message", message))
    return f"{response.status_code} {response.reason_phrase}: {message[:2000]}".removesuffix(": ")


def _warning(response: httpx.Response) -> str:
    """Return the text of the first Warning header, without "299 <service>: "."""
    return re.sub(r"^\d{3} \S+ ?", "", str(next(iter(response.headers.get_list("warning")), "")))
