"""A client of the Worklist service (UPS-RS) for Python: workitems, subscriptions, and event reports that do not stop.

    async with WorklistClient("http://127.0.0.1:8080/dicom-web") as worklist:
        await worklist.subscribe("MY_MODEL")
        async for event in worklist.events("MY_MODEL"):
            print(event.workitem_uid, event.procedure_step_state)

It speaks PS3.18 chapter 11 and nothing else, so it works with any origin server. A data set is a DICOM JSON object, a dict from tag to
element; `value`, `items` and `element` read and write it by keyword. What a server refuses is raised as an error of
`gantry_standard.errors`, with the server's sentence in `message` and its Warning in `warning`. `docs/worklist-client.md` is the manual.

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
"""Seconds for which a request is tried again while the server does not answer, or answers 503."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
"""Pauses between two attempts double from the first to the longest; each is up to half shorter, so that a crowd does not come at once."""
REMEMBERED_REPORTS = 20_000
"""Event reports whose repetition is noticed. What a server repeats is what came shortly before a connection broke."""
LARGEST_REPORT_BYTES = 16 << 20
PAGE = 500
"""Rows that `scheduled` asks for at once."""
HANDSHAKE_S = 10.0
PING_S = 20.0
"""Seconds between two pings of an idle connection, and for the answer: one that is dead is noticed after at most two of these."""

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
"""What a status means to the caller; other statuses are a plain GantryError."""


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
        event_type: an EventType, or the number of one that this client does not know.
        workitem_uid: of a workitem; of SCP_STATUS_CHANGE what the server says there.
        message_id: (0000,0110); the same when the report is repeated.
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
    """Return a UID that nobody else has (PS3.5 §B.2)."""
    return f"2.25.{uuid.uuid4().int}"


def now() -> str:
    """Return the time as a DT in UTC."""
    return datetime.now(UTC).strftime("%Y%m%d%H%M%S.%f+0000")


def element(keyword: str, *values: Any) -> DataSet:
    """Return a data set with one attribute; without values it is empty. Join several with `|`.

    Raises:
        KeyError: there is no attribute of this keyword.
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
    """Return the first value of an attribute; None where it is absent or empty."""
    values = data_set.get(tag_of(keyword), {}).get("Value")
    return values[0] if values else None


def items(data_set: DataSet, keyword: str) -> list[DataSet]:
    """Return the items of a sequence; [] where it is absent or empty."""
    return list(data_set.get(tag_of(keyword), {}).get("Value") or [])


def performed_procedure(
    workitem: DataSet,
    *,
    started: str = "",
    outputs: Sequence[DataSet] = (),
    station: DataSet | None = None,
    procedure: DataSet | None = None,
) -> DataSet:
    """Return the attribute that COMPLETED needs: who did what, when, and what came out (PS3.4 Table CC.2.5-3).

    Args:
        workitem: as retrieved; station and procedure are those that it was scheduled for, where others are not given.
        started: DT; now where it is not given. The end is now.
        outputs: items of Output Information Sequence, as `references` makes them; none where nothing came out.
        station, procedure: codes.

    Raises:
        errors.BadRequest: the workitem schedules no station or no procedure, and none was given.
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
    """Return items that reference instances, one for each series (PS3.3 Table 10-3b).

    Args:
        instances: each with its Study, Series and SOP Instance UID and SOP Class UID, such as rows of a search or metadata.
        url: DICOMweb root at which they can be retrieved.
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
    """A request got no answer, or 503: it may or may not have been done."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class _Answer:
    response: httpx.Response
    was_repeated: bool
    """An attempt before it was not answered, so it may have been done by that one."""


class WorklistClient:
    """The Worklist service of one origin server.

    Requests are tried again for `retry_s` seconds while the server does not answer; every request is one that may be repeated. So a
    restart of the server, or of a gateway in front of it, is a delay and no error.

    Args:
        url: DICOMweb root, such as https://host/dicom-web.
        headers: sent with every request and handshake, such as Authorization.
        tls: for https and wss; the system's authorities where it is None.
        timeout_s: for one answer.
        retry_s: 0: nothing is tried again.
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
        """Open the client. Nothing connects before the first request."""
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
            uid: of the workitem; a new one where it is not given.

        Returns:
            Its UID.

        Raises:
            errors.Conflict: there is a workitem of this UID.
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
            errors.NotFound, errors.Gone: there is no such workitem, or no longer.
        """
        response = self._check(await self._request("GET", f"/workitems/{quote(uid)}"))
        (workitem,) = response.json()
        return dict(workitem)

    async def search(self, keys: Mapping[str, str] | None = None, *, limit: int | None = None, offset: int = 0) -> list[DataSet]:
        """Search workitems (§11.9); what was changed before is found.

        Args:
            keys: keyword or tag to what it must match, such as {"ProcedureStepState": "SCHEDULED", "WorklistLabel": "AI*"}; also
                includefield and fuzzymatching.
            limit: most rows; a server may have a lower maximum.

        Returns:
            Rows of one page. A full page may be followed by another: ask with a larger `offset` until one is empty.
        """
        parameters = {**(keys or {}), "offset": str(offset), **({} if limit is None else {"limit": str(limit)})}
        query = str(httpx.QueryParams(parameters))
        response = self._check(await self._request("GET", "/workitems", query, headers={"Cache-Control": "no-cache"}))
        return [dict(row) for row in response.json()] if response.content else []

    async def update(self, uid: str, changes: DataSet, transaction_uid: str = "") -> None:
        """Change attributes of a workitem (§11.6). A sequence is replaced as a whole.

        Args:
            transaction_uid: what `claim` returned; none for a workitem that is SCHEDULED.

        Raises:
            errors.BadRequest: an attribute may not be changed, or the workitem is another's, or final.
            errors.Conflict: it is not in the state that this needs.
        """
        self._check(await self._request("POST", f"/workitems/{quote(uid)}", transaction_uid, changes))

    async def claim(self, uid: str, transaction_uid: str = "") -> str:
        """Claim a workitem: it becomes IN PROGRESS and this client's (§11.7).

        Args:
            transaction_uid: a new one where it is not given. One that was kept may be used again after a crash.

        Returns:
            The Transaction UID, the key to every later change: keep it where it survives a crash.

        Raises:
            errors.Conflict: another one has claimed it, or it is in a final state.
            errors.NotFound, errors.Gone: there is no such workitem, or no longer.
        """
        wanted = transaction_uid or new_uid()
        answer = await self._change_state(uid, IN_PROGRESS, wanted)
        # C302: the right Transaction UID of a workitem that is IN PROGRESS, so it is ours already. C300: final.
        if answer.response.status_code == 409 and value(await self.get(uid), "ProcedureStepState") == IN_PROGRESS:
            return wanted
        if answer.response.status_code == 400 and "Transaction UID is incorrect" in answer.response.headers.get("warning", ""):
            raise errors.Conflict(f"workitem {uid} is claimed by another, or final", warning=_warning(answer.response))
        self._check(answer)
        return wanted

    async def report_progress(
        self, uid: str, transaction_uid: str, percent: float, description: str = "", *, contact_uri: str = "", contact_name: str = ""
    ) -> None:
        """Tell how far a claimed workitem is.

        Args:
            percent: 0 to 100.
            contact_uri: where its performer can be reached, such as https://host/jobs/7 or tel:+31….
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
            performed: set first, as `performed_procedure` makes it; not needed where it was set before.

        Raises:
            errors.Conflict: what COMPLETED needs is missing (the message names it), or it is not in progress.
            errors.BadRequest: the Transaction UID is not that of the claim.
        """
        if performed is not None:
            try:
                await self.update(uid, performed, transaction_uid)
            except errors.BadRequest:
                # Completed by an attempt that was not answered, or by one before a crash: then nothing is left to do.
                if value(await self.get(uid), "ProcedureStepState") != COMPLETED:
                    raise
        self._check(await self._change_state(uid, COMPLETED, transaction_uid))

    async def cancel(self, uid: str, transaction_uid: str, reason: str = "", discontinuation: DataSet | None = None) -> None:
        """Cancel a workitem that this client has claimed.

        Args:
            reason: Reason For Cancellation.
            discontinuation: the code of why it ended; the server fills one in where it is not given.

        Raises:
            errors.Conflict: it is not in progress.
            errors.BadRequest: the Transaction UID is not that of the claim.
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
        """Ask for a workitem to be cancelled (§11.8). One that nobody has claimed is; of another its performer is told.

        Raises:
            errors.Conflict: it is completed, or nobody would hear of it.
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
        """Subscribe an AE title (§11.10). To subscribe again is no error.

        Args:
            workitem_uid: one workitem, or the whole worklist.
            filter: keyword or tag to what it must match: then to those of the worklist that match.
            deletion_lock: final workitems are kept until it unsubscribes.

        Returns:
            The URL of the notification connection, as the server says it.

        Raises:
            errors.NotFound: there is no such workitem.
            errors.Forbidden: the server does not offer this.
        """
        path, query = _subscriber(workitem_uid, ae_title, filter, {"deletionlock": "true"} if deletion_lock else {})
        response = self._check(await self._request("POST", path, query))
        return str(response.headers.get("content-location", ""))

    async def unsubscribe(self, ae_title: str, workitem_uid: str = GLOBAL_SUBSCRIPTION, *, filter: Mapping[str, str] | None = None) -> None:
        """End a subscription (§11.11); that to the worklist ends those to its workitems too.

        Args:
            filter: the one that was subscribed with. The standard knows one filtered subscription of an AE title; Gantry several.

        Raises:
            errors.NotFound: there is none.
        """
        answer = await self._request("DELETE", *_subscriber(workitem_uid, ae_title, filter))
        if answer.response.status_code != 404 or not answer.was_repeated:
            self._check(answer)

    async def suspend(self, ae_title: str, workitem_uid: str = GLOBAL_SUBSCRIPTION) -> None:
        """Subscribe to no further workitems of the worklist; subscriptions to those there are stay (§11.12)."""
        path, _ = _subscriber(workitem_uid, ae_title)
        answer = await self._request("POST", f"{path}/suspend")
        if answer.response.status_code != 404 or not answer.was_repeated:
            self._check(answer)

    async def events(
        self, ae_title: str, *, within_s: float | None = None, tell: Callable[[str], None] | None = None
    ) -> AsyncGenerator[Event, None]:
        """Yield the event reports of an AE title as they come, for ever (§8.10, §11.13).

        A connection that breaks is opened again, after pauses that double up to LONGEST_PAUSE_S; a report that the server repeats then
        is dropped. Reports of one workitem come in order. After an SCP_STATUS_CHANGE reports may have been missed: search again.

        Args:
            within_s: seconds for the first connection; without it the server is waited for as long as it takes.
            tell: hears of each connection made and lost, in a sentence.

        Raises:
            errors.Unavailable: there was no connection within `within_s`.
            errors.GantryError: the server refuses the connection (a status below 500): it does not know this resource, or this AE title.
        """
        async with aclosing(self._reports(ae_title, within_s, tell or log.info)) as reports:
            async for event in reports:
                if event is not None:
                    yield event

    async def scheduled(self, ae_title: str, keys: Mapping[str, str] | None = None) -> AsyncGenerator[DataSet, None]:
        """Subscribe and yield each workitem that can be claimed: those that are there, then those that come, for ever.

        A workitem may be yielded more than once while nobody claims it; `claim` decides who has it. The subscription stays when the loop
        is left: the server goes on keeping reports for it until `unsubscribe`. After each loss of the connection,
        and each SCP Status Change, the worklist is searched again, so that none is missed whatever the server keeps for its subscribers.

        Args:
            keys: what it must match, as in `search`; without them all that are SCHEDULED and READY.

        Raises:
            errors.GantryError: the server refuses the subscription, the connection or the search.
        """
        wanted = {"ProcedureStepState": SCHEDULED, "InputReadinessState": "READY", **(keys or {})}
        try:
            await self.subscribe(ae_title, filter=keys)
        except (errors.Forbidden, errors.BadRequest, errors.Unsupported):
            # Filtered subscriptions may be refused, and some keys can be searched for only: then to the whole worklist.
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
        """Return the workitems that match, of all pages."""
        uids: dict[str, None] = {}
        while rows := await self.search(keys, limit=PAGE, offset=len(uids)):
            before = len(uids)
            uids |= {str(value(row, "SOPInstanceUID")): None for row in rows}
            if len(rows) < PAGE or len(uids) == before:
                break
        return list(uids)

    async def _reports(self, ae_title: str, within_s: float | None, tell: Callable[[str], None]) -> AsyncGenerator[Event | None, None]:
        """Yield event reports, and None for each connection that was made, before its reports."""
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
        """Yield what comes on one connection that was not seen before, until it ends; close it."""
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
            _Unanswered: it may be possible later.
            errors.GantryError: it will not.
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
        """Send a request, again while it gets no answer.

        Raises:
            errors.Unavailable: it got none within `retry_s`; it may or may not have been done.
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
        """Return a good response.

        Raises:
            errors.GantryError: it is none; the class says what can be done.
        """
        response = answer.response
        if response.is_success:
            return response
        raise STATUSES.get(response.status_code, errors.GantryError)(_sentence(response), warning=_warning(response))


class _Seen:
    """The last reports, so that one that is repeated is noticed.

    A repeated report has the Message ID of the first and says the same; Message IDs alone (16 bits) begin again after some while.
    """

    def __init__(self, size: int) -> None:
        self._digests = CountBoundedCache[bytes, bool](size)

    def is_new(self, report: bytes) -> bool:
        """Note a report; say whether it was not noted before."""
        digest = hashlib.blake2b(report, digest_size=16).digest()
        if self._digests.get(digest):
            return False
        return self._digests.put(digest, True)


def _event(message: str | bytes, seen: _Seen) -> Event | None:
    """Read a report; None for one that is repeated, or is none."""
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
        # A comma or an equals sign in a value is encoded twice: for the list, and for the query (§11.10.1.2).
        query["filter"] = ",".join(f"{quote(key, safe='')}={quote(wanted, safe='*?')}" for key, wanted in filter.items())
    target = FILTERED_SUBSCRIPTION if filter else workitem_uid
    return f"/workitems/{quote(target)}/subscribers/{quote(ae_title, safe='')}", str(httpx.QueryParams(query))


def _sentence(response: httpx.Response) -> str:
    """Return what the server says of an error."""
    message = response.text.strip()
    if "json" in response.headers.get("content-type", ""):
        with suppress(ValueError, AttributeError, TypeError):
            message = str(response.json().get("message", message))
    return f"{response.status_code} {response.reason_phrase}: {message[:2000]}".removesuffix(": ")


def _warning(response: httpx.Response) -> str:
    """Return the text of the first Warning header, without "299 <service>: "."""
    return re.sub(r"^\d{3} \S+ ?", "", str(next(iter(response.headers.get_list("warning")), "")))
