"""Makes workitems of what arrives, as the operator's rules say (`workitem_rules.py`).

A study has arrived when index says on the stream CHANGES that it has settled: no instance of it came for a while. One process follows
that stream behind a lease; its cursor is before the oldest study that is not worked on yet, so that nothing is forgotten whenever it dies.
What it does may be done again: the UID of a workitem follows from the rule and what matched, so that a second time it is there already.

What is on CHANGES is applied in index, so its metadata can be read at once. Deletions are no arrivals, and of what has been deleted
meanwhile nothing is made.
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
"""Key of the cursor on STORE, which an earlier version followed. What comes after it is tried once more, then it is forgotten."""
SETTLED = streams.SUBJECTS["StudySettled"].format(uid=">")
STORE_QUIET_S = 30.0
"""Seconds that such a study is waited for: it may be arriving still."""
LEASE = "workflow.arrivals"
LOOK_S = 0.5
"""Seconds between two looks for studies that have arrived, while nothing comes."""
CURSOR_S = 1.0
RETRY_S = 1.0
"""Seconds after which a study is looked at again when index or blob does not answer, or is not that far."""
RPC_S = 60.0
CONCURRENCY = 4
"""Studies that are worked on at once."""
MAX_WAITING = 10_000
"""Studies that are waited for at once; with more the stream is not read on."""
MAX_INPUTS = 20_000
"""Most instances of one workitem's input, so that its data set mostly stays below MAX_DATASET_BYTES; of more no workitem is made."""
LARGEST_JSON_BYTES = 64 << 20
"""Larger metadata of an instance is not looked at: it matches no rule."""

SERIES_INSTANCE_UID, SOP_INSTANCE_UID = "0020000E", "00080018"


@dataclass
class Waiting:
    """A study that has settled and is not worked on yet.

    Attributes:
        first: sequence on CHANGES of the first message that it has settled.
        due_s: monotonic time at which it is looked at.
        applied: sequence on STORE that index must have applied before.
    """

    first: int
    due_s: float
    applied: int = 0


@dataclass
class Found:
    """What matched in one study: for each rule and what a workitem of it is for, what the rule needs of the first instance.

    The first is that of the least series number, then instance number.
    """

    instances: dict[tuple[int, tuple[str, ...]], Dataset] = field(default_factory=dict)


async def begin(js: JetStreamContext, has_rules: bool) -> None:
    """Let arrivals count from now on, where they do not already; without rules forget from where they counted.

    Waits for NATS as long as it takes. Called before requests are served, so that what is stored after a start with rules counts.
    """
    while True:
        try:
            bucket = await streams.open_bucket(js, BUCKET)
            noted, revision = await bucket.get(CURSOR)
            if has_rules and not noted:
                await bucket.replace(CURSOR, str(await _end(js)).encode(), revision)
            elif noted and not has_rules:
                await bucket.put(CURSOR, b"")
            if not has_rules and (await bucket.get(STORE_CURSOR))[0]:
                await bucket.put(STORE_CURSOR, b"")
            return
        except errors.Conflict:
            log.debug("another process has begun")
        except errors.GantryError as error:
            log.warning("waiting for streams", extra={"reason": error.message})
        await asyncio.sleep(LOOK_S)


async def _end(js: JetStreamContext) -> int:
    try:
        return (await streams.stream_state(js, CHANGES))[1]
    except errors.NotFound:
        return 0


class Arrivals:
    """Follows which studies have settled and makes workitems, while this process holds the lease."""

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
        """Work whenever this process holds the lease, for ever."""
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
        """Follow the stream from the cursor on, for ever.

        Raises:
            errors.Conflict: the stream ends before the cursor: index has to make it anew.
            errors.Unavailable: NATS does not answer.
        """
        bucket = await streams.open_bucket(self._js, BUCKET)
        cursor = position = int((await bucket.get(CURSOR))[0] or b"0")
        self._waiting = {}
        noted_s = 0.0
        await self._note_left_on_store(bucket, cursor)
        left = set(self._waiting)
        async with aclosing(streams.read_from(self._js, CHANGES, cursor, [SETTLED], wait_s=LOOK_S)) as batches:
            async for batch in batches:
                for message in batch:
                    self._note(message)
                    position = message.sequence
                await self._work_on_arrived()
                while len(self._waiting) >= MAX_WAITING:
                    await asyncio.sleep(LOOK_S)
                    await self._work_on_arrived()
                if left and left.isdisjoint(self._waiting):
                    await bucket.put(STORE_CURSOR, b"")
                    left = set()
                reached = min((study.first - 1 for study in self._waiting.values()), default=position)
                if reached != cursor and time.monotonic() - noted_s > CURSOR_S:
                    await bucket.put(CURSOR, str(reached).encode())
                    cursor, noted_s = reached, time.monotonic()

    async def _note_left_on_store(self, bucket: streams.Bucket, cursor: int) -> None:
        """Wait for the studies that came after the cursor on STORE of an earlier version, which has not tried rules on them.

        Their uploads may have been applied before index published anything on CHANGES.

        Raises:
            errors.Unavailable: NATS does not answer.
        """
        noted, _ = await bucket.get(STORE_CURSOR)
        if not noted:
            return
        after = int(noted)
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
        log.info("studies of an earlier version", extra={"studies": len(self._waiting)})
        if not self._waiting:
            await bucket.put(STORE_CURSOR, b"")

    def _note(self, message: Message) -> None:
        if uid := _study_of(StudyChanged, message):
            study = self._waiting.setdefault(uid, Waiting(message.sequence, 0.0))
            study.due_s = time.monotonic()

    async def _work_on_arrived(self) -> None:
        """Work on some studies that are due, those that came first before others."""
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
        """Make the workitems of a study; return False where that is to be tried again."""
        try:
            if applied and await self._applied(uid) < applied:
                return False
            await self._make_workitems(uid)
        except (errors.NotFound, errors.Gone):
            log.info("what arrived is gone", extra={"study_instance_uid": uid})
        except errors.RetryLater as error:
            log.warning("arrival waits", extra={"study_instance_uid": uid, "reason": error.message})
            return False
        except Exception:
            log.exception("arrival failed", extra={"study_instance_uid": uid})
            telemetry.RULE_WORKITEMS.labels("failed").inc()
        return True

    async def _applied(self, uid: str) -> int:
        with rpc_errors.translated("index"):
            request = index_pb2.GetAppliedSequenceRequest(collection=uid)
            return int((await self._index.GetAppliedSequence(request, timeout=RPC_S)).sequence)

    async def _make_workitems(self, uid: str) -> None:
        found = await self._match(uid)
        if not found.instances:
            return
        inputs = await self._inputs(uid)
        below: dict[tuple[str, ...], list[Reference]] = {}
        for one in inputs:
            uids = (one.study_instance_uid, one.series_instance_uid, one.sop_instance_uid)
            for depth in (1, 2, 3):
                below.setdefault(uids[:depth], []).append(one)
        for (number, key), instance in found.instances.items():
            outcome = await self._make_workitem(self._rules[number], key, instance, below.get(key, []))
            telemetry.RULE_WORKITEMS.labels(outcome).inc()

    async def _match(self, uid: str) -> Found:
        """Look through the metadata of a study.

        Raises:
            errors.NotFound, errors.Gone: there is no such study (any more).
            errors.RetryLater: index or blob does not answer.
        """
        found = Found()
        request = index_pb2.GetMetadataRequest(scope=index_pb2.Scope(collection=uid))
        with rpc_errors.translated("index"):
            async for answer in self._index.GetMetadata(request, timeout=RPC_S):
                encoded = [fragment.dicom_json or await self._large(fragment) for fragment in answer.fragments]
                await asyncio.to_thread(_match, self._rules, uid, encoded, found)
        return found

    async def _large(self, fragment: index_pb2.MetadataFragment) -> bytes:
        place = fragment.location
        if place.length > LARGEST_JSON_BYTES:
            log.error("metadata too large for rules", extra={"sop_instance_uid": fragment.sop_instance_uid, "size_bytes": place.length})
            return b"{}"
        pieces = bytearray()
        request = ReadRequest(object=place.object, ranges=[Range(offset=place.offset, length=place.length)])
        with rpc_errors.translated("blob"):
            async for answer in self._blob.Read(request, timeout=RPC_S):
                pieces += answer.data
        return bytes(pieces)

    async def _inputs(self, uid: str) -> list[Reference]:
        request = index_pb2.GetInstancesRequest(scope=index_pb2.Scope(collection=uid))
        found: list[Reference] = []
        with rpc_errors.translated("index"):
            async for answer in self._index.GetInstances(request, timeout=RPC_S):
                found += [
                    Reference(
                        record.stored.study_instance_uid,
                        record.stored.series_instance_uid,
                        record.stored.sop_class_uid,
                        record.stored.sop_instance_uid,
                    )
                    for record in answer.records
                ]
        return found

    async def _make_workitem(self, rule: Rule, uids: tuple[str, ...], instance: Dataset, inputs: Sequence[Reference]) -> str:
        """Make one workitem; return created, updated, kept or failed.

        One that nobody has claimed gets the input as it is now; one that somebody has stays as it is.

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
                return transactions.create(None, uid, made, strict=False)
            outcome = "kept"
            if state.deleted or state.procedure_step_state != SCHEDULED:
                return Decision(None)
            if read(state.dicom_json).get(INPUT_INFORMATION) == made[INPUT_INFORMATION]:
                return Decision(None)
            outcome = "updated"
            return transactions.update(state, uid, "", {INPUT_INFORMATION: made[INPUT_INFORMATION]})

        try:
            if len(inputs) > MAX_INPUTS:
                raise errors.PayloadTooLarge(f"the input has {len(inputs)} instances, at most {MAX_INPUTS} are possible")
            made = await asyncio.to_thread(make, rule, instance, inputs, self._settings.workitem_rules_url)
            await self._workitems.change(uid, decide, "rule", is_new=True)
        except errors.RequestError as error:
            log.error("rule made no workitem", extra={**facts, "reason": error.message})
            return "failed"
        log.info("arrival", extra={**facts, "outcome": outcome})
        return outcome


def _study_of(kind: type[StudyChanged | InstancesStored], message: Message) -> str:
    """Return the study that a message is about; "" where it is about a non-patient resource, or cannot be parsed."""
    try:
        collection = str(kind.FromString(message.data).collection)
        return collection if is_study(collection) else ""
    except DecodeError:
        log.error("event passed", extra={"sequence": message.sequence, "subject": message.subject})
        return ""


def _match(rules: Sequence[Rule], study_instance_uid: str, encoded: Sequence[bytes], found: Found) -> None:
    """Try rules on instances, in their order. Runs in a thread."""
    for one in encoded:
        instance: Dataset = orjson.loads(one.replace(b"\0", b""))
        uids = (study_instance_uid, text(instance, SERIES_INSTANCE_UID), text(instance, SOP_INSTANCE_UID))
        for number, rule in enumerate(rules):
            key = (number, uids[: ("study", "series", "instance").index(rule.level) + 1])
            if key not in found.instances and rule.matches(instance):
                found.instances[key] = {tag: element for tag, element in instance.items() if tag in rule.needs}
