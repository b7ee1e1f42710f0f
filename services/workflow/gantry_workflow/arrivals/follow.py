"""Creates workitems for arriving studies by the operator's rules (`arrivals/rules.py`).

A study has arrived when index publishes on the stream CHANGES that it has settled: no upload of an instance came for
`GANTRY_STUDY_SETTLED_S`. The process that holds the lease follows that stream. Its cursor stays before the oldest study that is still to
be processed, so no study is lost if the process dies. A study may be processed twice: the UID of a workitem is computed from the rule
and what matched, so the second time the workitem exists.

Index has applied what it publishes on CHANGES, so the metadata can be read at once. A deletion is not an arrival, and no workitem is
created for what was deleted meanwhile.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson
from google.protobuf.message import DecodeError

from gantry.blob.v1.blob_pb2 import Range, ReadRequest
from gantry.events.v1.events_pb2 import InstancesStored, StudyChanged, WorkitemState
from gantry.index.v1 import index_pb2
from gantry_runtime import telemetry
from gantry_runtime.events import leases, streams
from gantry_runtime.events.streams import CHANGES, STORE, JetStreamContext, Message
from gantry_runtime.rpc import rpc_errors
from gantry_standard import errors
from gantry_standard.dicom.collections import is_study
from gantry_standard.workitems import SCHEDULED
from gantry_workflow.arrivals.rules import INPUT_INFORMATION, Reference, Rule, make
from gantry_workflow.settings import WorkflowSettings
from gantry_workflow.streams.report_writer import BUCKET
from gantry_workflow.streams.workitems import Workitems
from gantry_workflow.workitems import transactions
from gantry_workflow.workitems.dataset import Dataset, read, text
from gantry_workflow.workitems.transactions import Decision

if TYPE_CHECKING:
    from gantry.blob.v1.blob_pb2_grpc import BlobServiceAsyncStub
    from gantry.index.v1.index_pb2_grpc import IndexServiceAsyncStub

log = logging.getLogger(__name__)

CURSOR = "settled"
"""Key of the cursor on CHANGES."""
STORE_CURSOR = "arrived"
"""Key of the cursor on STORE, which an earlier version followed. Rules are tried once on the studies after it; then it is cleared."""
SETTLED = streams.SUBJECTS["StudySettled"].format(uid=">")
STORE_QUIET_S = 30.0
"""Seconds before such a study is processed, as it may still be arriving."""
LEASE = "workflow.arrivals"
LOOK_S = 0.5
"""Seconds between two checks for due studies while no message arrives."""
CURSOR_S = 1.0
RETRY_S = 1.0
"""Seconds until a study is tried again if index or blob does not answer, or index has not applied its uploads."""
RPC_S = 60.0
CONCURRENCY = 4
"""Studies that are processed at the same time."""
MAX_WAITING = 10_000
"""Most studies that wait to be processed; with more, the stream is not read on."""
MAX_INPUTS = 20_000
"""Most input instances of one workitem, so that its data set usually stays below MAX_DATASET_BYTES; with more, none is created."""
LARGEST_JSON_BYTES = 64 << 20
"""Most bytes of metadata of an instance; an instance with more matches no rule."""

SERIES_INSTANCE_UID, SOP_INSTANCE_UID = "0020000E", "00080018"


@dataclass
class Waiting:
    """A study that has settled and is still to be processed.

    Attributes:
        first: sequence on CHANGES of the first message about it.
        due_s: monotonic time from which on it may be processed.
        applied: sequence on STORE that index must have applied before; 0 for none.
    """

    first: int
    due_s: float
    applied: int = 0


@dataclass
class MatchedInstances:
    """What matched in one study.

    Attributes:
        instances: (index of the rule, UIDs of the study, series or instance that a workitem is for) → the attributes that the rule
            needs of the first matching instance. The first has the lowest series number, then the lowest instance number.
    """

    instances: dict[tuple[int, tuple[str, ...]], Dataset] = field(default_factory=dict)


async def begin(js: JetStreamContext, has_rules: bool) -> None:
    """Set the cursor to the end of CHANGES if there are rules and no cursor; clear it if there are no rules.

    Retries until NATS answers. It is called before requests are served, so that rules apply to everything stored after the first start
    with rules.
    """
    while True:
        try:
            bucket = await streams.open_bucket(js, BUCKET)
            stored_cursor, revision = await bucket.get(CURSOR)
            if has_rules and not stored_cursor:
                await bucket.replace(CURSOR, str(await _end(js)).encode(), revision)
            elif stored_cursor and not has_rules:
                await bucket.put(CURSOR, b"")
            if not has_rules and (await bucket.get(STORE_CURSOR))[0]:
                await bucket.put(STORE_CURSOR, b"")
            return
        except errors.Conflict:
            log.debug("another process has set the cursor")
        except errors.GantryError as error:
            log.warning("waiting for streams", extra={"reason": error.message})
        await asyncio.sleep(LOOK_S)


async def _end(js: JetStreamContext) -> int:
    try:
        return (await streams.stream_state(js, CHANGES))[1]
    except errors.NotFound:
        return 0


class Arrivals:
    """Follows which studies have settled and creates workitems, while this process holds the lease."""

    def __init__(
        self,
        js: JetStreamContext,
        index: "IndexServiceAsyncStub",
        blob: "BlobServiceAsyncStub",
        rules: Sequence[Rule],
        settings: WorkflowSettings,
    ) -> None:
        self._js = js
        self._index = index
        self._blob = blob
        self._rules = rules
        self._settings = settings
        self._workitems = Workitems(js)
        self._waiting: dict[str, Waiting] = {}

    async def lead(self, holder: str) -> None:
        """Acquire the lease and follow the stream while it is held; repeat until cancelled.

        Args:
            holder: identifies this process in the lease.
        """
        await leases.hold_lease(self._js, LEASE, holder, self._work)

    async def _work(self) -> None:
        while True:
            try:
                await self._follow()
            except errors.GantryError as error:
                log.warning("arrivals interrupted", extra={"reason": error.message})
            except Exception:
                log.exception("arrivals interrupted")
            await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        """Follow the stream from the cursor on until cancelled.

        Raises:
            errors.Conflict: the stream ends before the cursor: index must create it again.
            errors.Unavailable: NATS does not answer.
        """
        bucket = await streams.open_bucket(self._js, BUCKET)
        cursor = position = int((await bucket.get(CURSOR))[0] or b"0")
        self._waiting = {}
        stored_s = 0.0
        await self._note_left_on_store(bucket, cursor)
        from_store = set(self._waiting)
        async with aclosing(streams.read_from(self._js, CHANGES, cursor, [SETTLED], wait_s=LOOK_S)) as batches:
            async for batch in batches:
                for message in batch:
                    self._note(message)
                    position = message.sequence
                await self._work_on_arrived()
                while len(self._waiting) >= MAX_WAITING:
                    await asyncio.sleep(LOOK_S)
                    await self._work_on_arrived()
                if from_store and from_store.isdisjoint(self._waiting):
                    await bucket.put(STORE_CURSOR, b"")
                    from_store = set()
                reached = min((study.first - 1 for study in self._waiting.values()), default=position)
                if reached != cursor and time.monotonic() - stored_s > CURSOR_S:
                    await bucket.put(CURSOR, str(reached).encode())
                    cursor, stored_s = reached, time.monotonic()

    async def _note_left_on_store(self, bucket: streams.Bucket, cursor: int) -> None:
        """Add the studies after the cursor that an earlier version left on STORE; it did not try rules on them.

        They may be missing on CHANGES, as an earlier version of index may have applied their uploads.

        Raises:
            errors.Unavailable: NATS does not answer.
        """
        stored_cursor, _ = await bucket.get(STORE_CURSOR)
        if not stored_cursor:
            return
        after = int(stored_cursor)
        try:
            first, last = await streams.stream_state(self._js, STORE)
        except errors.NotFound:
            first, last = 1, 0
        if after >= last or first > last:
            await bucket.put(STORE_CURSOR, b"")
            return
        due_s = time.monotonic() + STORE_QUIET_S
        async with aclosing(streams.read_from(self._js, STORE, after, wait_s=LOOK_S)) as batches:
            async for batch in batches:
                for message in batch:
                    if message.subject.endswith(".stored") and (uid := _study_of(InstancesStored, message)):
                        self._waiting[uid] = Waiting(cursor + 1, due_s, message.sequence)
                if batch and batch[-1].sequence >= last:
                    break
        log.info("studies left by an earlier version", extra={"studies": len(self._waiting)})
        if not self._waiting:
            await bucket.put(STORE_CURSOR, b"")

    def _note(self, message: Message) -> None:
        if uid := _study_of(StudyChanged, message):
            study = self._waiting.setdefault(uid, Waiting(message.sequence, 0.0))
            study.due_s = time.monotonic()

    async def _work_on_arrived(self) -> None:
        """Process some of the studies that are due, in the order in which they settled."""
        now_s = time.monotonic()
        due = [uid for uid, study in self._waiting.items() if study.due_s <= now_s][: 4 * CONCURRENCY]
        free = asyncio.Semaphore(CONCURRENCY)

        async def work(uid: str) -> None:
            async with free:
                if await self._has_worked_on(uid, self._waiting[uid].applied):
                    del self._waiting[uid]
                else:
                    self._waiting[uid].due_s = time.monotonic() + RETRY_S

        async with asyncio.TaskGroup() as group:
            for uid in due:
                group.create_task(work(uid))

    async def _has_worked_on(self, uid: str, applied: int) -> bool:
        """Create the workitems of a study; return False if it must be tried again."""
        try:
            if applied and await self._applied(uid) < applied:
                return False
            await self._make_workitems(uid)
        except (errors.NotFound, errors.Gone):
            log.info("arrived study was deleted", extra={"study_instance_uid": uid})
        except errors.RetryLater as error:
            log.warning("arrived study is tried again", extra={"study_instance_uid": uid, "reason": error.message})
            return False
        except Exception:
            log.exception("rules failed for arrived study", extra={"study_instance_uid": uid})
            telemetry.RULE_WORKITEMS.labels("failed").inc()
        return True

    async def _applied(self, uid: str) -> int:
        with rpc_errors.translated("index"):
            request = index_pb2.GetAppliedSequenceRequest(collection=uid)
            return int((await self._index.GetAppliedSequence(request, timeout=RPC_S)).sequence)

    async def _make_workitems(self, uid: str) -> None:
        matched = await self._match(uid)
        if not matched.instances:
            return
        inputs = await self._inputs(uid)
        below: dict[tuple[str, ...], list[Reference]] = {}
        for reference in inputs:
            uids = (reference.study_instance_uid, reference.series_instance_uid, reference.sop_instance_uid)
            for depth in (1, 2, 3):
                below.setdefault(uids[:depth], []).append(reference)
        for (number, key), instance in matched.instances.items():
            outcome = await self._make_workitem(self._rules[number], key, instance, below.get(key, []))
            telemetry.RULE_WORKITEMS.labels(outcome).inc()

    async def _match(self, uid: str) -> MatchedInstances:
        """Try the rules on the metadata of all instances of a study.

        Raises:
            errors.NotFound, errors.Gone: there is no such study, or it was deleted.
            errors.RetryLater: index or blob does not answer.
        """
        matched = MatchedInstances()
        request = index_pb2.GetMetadataRequest(scope=index_pb2.Scope(collection=uid))
        with rpc_errors.translated("index"):
            async for answer in self._index.GetMetadata(request, timeout=RPC_S):
                encoded = [fragment.dicom_json or await self._large(fragment) for fragment in answer.fragments]
                await asyncio.to_thread(_match, self._rules, uid, encoded, matched)
        return matched

    async def _large(self, fragment: index_pb2.MetadataFragment) -> bytes:
        location = fragment.location
        if location.length > LARGEST_JSON_BYTES:
            log.error("metadata too large for rules", extra={"sop_instance_uid": fragment.sop_instance_uid, "size_bytes": location.length})
            return b"{}"
        chunks = bytearray()
        request = ReadRequest(object=location.object, ranges=[Range(offset=location.offset, length=location.length)])
        with rpc_errors.translated("blob"):
            async for answer in self._blob.Read(request, timeout=RPC_S):
                chunks += answer.data
        return bytes(chunks)

    async def _inputs(self, uid: str) -> list[Reference]:
        request = index_pb2.GetInstancesRequest(scope=index_pb2.Scope(collection=uid))
        references: list[Reference] = []
        with rpc_errors.translated("index"):
            async for answer in self._index.GetInstances(request, timeout=RPC_S):
                references += [
                    Reference(
                        record.stored.study_instance_uid,
                        record.stored.series_instance_uid,
                        record.stored.sop_class_uid,
                        record.stored.sop_instance_uid,
                    )
                    for record in answer.records
                ]
        return references

    async def _make_workitem(self, rule: Rule, uids: tuple[str, ...], instance: Dataset, inputs: Sequence[Reference]) -> str:
        """Create one workitem; return created, updated, kept (unchanged) or failed.

        If the workitem exists and is SCHEDULED, its input is replaced by the present one. A claimed, final or deleted one is unchanged.

        Args:
            uids: Study, Series and SOP Instance UID of what the workitem is for, as far as the level of the rule needs.
            instance: attributes of the first matching instance.
            inputs: the instances that are its input.

        Raises:
            errors.RetryLater: NATS does not answer.
        """
        uid = rule.workitem_uid(*uids)
        facts = {"rule": rule.name, "workitem_uid": uid, "study_instance_uid": uids[0]}
        outcome = "kept"

        def decide(state: WorkitemState | None, _: int) -> Decision:
            nonlocal outcome
            if state is None:
                outcome = "created"
                return transactions.create(None, uid, workitem, strict=False)
            outcome = "kept"
            if state.deleted or state.procedure_step_state != SCHEDULED:
                return Decision(None)
            if read(state.dicom_json).get(INPUT_INFORMATION) == workitem[INPUT_INFORMATION]:
                return Decision(None)
            outcome = "updated"
            return transactions.update(state, uid, "", {INPUT_INFORMATION: workitem[INPUT_INFORMATION]})

        try:
            if len(inputs) > MAX_INPUTS:
                raise errors.PayloadTooLarge(f"the input has {len(inputs)} instances, expected at most {MAX_INPUTS}")
            workitem = await asyncio.to_thread(make, rule, instance, inputs, self._settings.workitem_rules_url)
            await self._workitems.change(uid, decide, "rule", is_new=True)
        except errors.RequestError as error:
            log.error("rule created no workitem", extra={**facts, "reason": error.message})
            return "failed"
        log.info("rule applied to arrived study", extra={**facts, "outcome": outcome})
        return outcome


def _study_of(kind: type[StudyChanged | InstancesStored], message: Message) -> str:
    """Return the Study Instance UID in a message; "" if it is about a non-patient resource, or cannot be parsed."""
    try:
        collection = str(kind.FromString(message.data).collection)
        return collection if is_study(collection) else ""
    except DecodeError:
        log.error("event cannot be parsed, passed", extra={"sequence": message.sequence, "subject": message.subject})
        return ""


def _match(rules: Sequence[Rule], study_instance_uid: str, encoded: Sequence[bytes], matched: MatchedInstances) -> None:
    """Try rules on instances in order and add what matched to `matched`. It is called in a thread.

    Args:
        encoded: DICOM JSON of the instances, with a byte 0x00 where the base URL goes.
    """
    for dicom_json in encoded:
        instance: Dataset = orjson.loads(dicom_json.replace(b"\0", b""))
        uids = (study_instance_uid, text(instance, SERIES_INSTANCE_UID), text(instance, SOP_INSTANCE_UID))
        for number, rule in enumerate(rules):
            key = (number, uids[: ("study", "series", "instance").index(rule.level) + 1])
            if key not in matched.instances and rule.matches(instance):
                matched.instances[key] = {tag: element for tag, element in instance.items() if tag in rule.needs}
