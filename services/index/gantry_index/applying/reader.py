"""Applies the stream STORE to the index store: parse, decide, apply, notify.

All events that wait on the stream are one batch and one group commit. An event that cannot be parsed is poison: it is recorded and passed,
and its pack stays unknown, so that blob announces it again. After any other failure the batch is tried again.
"""

import asyncio
import hashlib
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from gantry.blob.v1.blob_pb2 import PutObjectRequest, Range, ReadRequest, ReadTrailerRequest, StoredInstance
from gantry.events.v1 import events_pb2
from gantry.events.v1.events_pb2 import (
    Decision,
    IndexLease,
    InstancesDeleted,
    InstancesRestored,
    InstancesStored,
    InstancesSwept,
    RecordsChanged,
)
from gantry_index.applying.changes import Changes
from gantry_index.applying.decide import (
    Decisions,
    DeletedEvent,
    Event,
    OnDuplicate,
    RestoredEvent,
    StoredEvent,
    SweptEvent,
    decide,
    uploads_of,
)
from gantry_index.stores.port import Batch, Dead, IndexStore, Place, PoisonEvent, Present, place_of
from gantry_runtime import call_context, logs, telemetry
from gantry_runtime.events import leases, streams
from gantry_runtime.process import end_tasks
from gantry_runtime.rpc import rpc_errors
from gantry_runtime.stored_instances import collection_of
from gantry_standard import errors
from gantry_standard.dicom.collections import is_study

if TYPE_CHECKING:
    from gantry.blob.v1.blob_pb2_grpc import BlobServiceAsyncStub

log = logging.getLogger(__name__)

ALL = "all"
"""Name of the reader that reads all partitions."""
NOTICES = "notices"
"""Key for a problem of core NATS, beside the names of readers."""
BLOB_TIMEOUT_S = 10.0
HEARTBEAT_S = 0.5
LOCATIONS_PER_DECISION = 10_000

KIND_NAMES = {
    Decision.KIND_REFUSED: "refused",
    Decision.KIND_DELETED: "deleted",
    Decision.KIND_REPLACED: "replaced",
    Decision.KIND_REDUNDANT: "redundant",
    Decision.KIND_RESTORED: "restored",
    Decision.KIND_SWEPT: "swept",
}
OUTCOME_NAMES = {
    events_pb2.OUTCOME_NEW: "new",
    events_pb2.OUTCOME_SAME: "same",
    events_pb2.OUTCOME_DUPLICATE: "duplicate",
    events_pb2.OUTCOME_REPLACED: "replaced",
}
# The label lookup is too expensive to repeat for each instance.
_STORED = {outcome: telemetry.INSTANCES_STORED.labels(name) for outcome, name in OUTCOME_NAMES.items()}
_STORE_EVENTS_APPLIED = telemetry.EVENTS_APPLIED.labels("store")


class Poison(Exception):
    """An event that cannot be parsed, or whose pack cannot be read."""


LONGEST_WAIT_S = 5.0
"""Longest time in seconds between two attempts to apply a batch that fails with an unexpected exception."""


class Reader:
    """Applies events of STORE. `lock` is held for each batch; code that holds it pauses all readers of this process."""

    def __init__(
        self,
        store: IndexStore,
        blob: "BlobServiceAsyncStub",
        client: streams.Client,
        on_duplicate: OnDuplicate = "reject",
        settled_s: float = 30.0,
    ) -> None:
        self.store = store
        self.lock = asyncio.Lock()
        self.changes = Changes(store, client, self.lock, settled_s)
        self._problems = {"": "index has not read the stream yet"}
        """By name of a reader, the problem that keeps it from applying events; under "" the problem of all readers."""
        self.applied = 0
        self._blob = blob
        self._client = client
        self._js = client.jetstream()
        self._on_duplicate = on_duplicate
        self._poisoned: dict[str, set[str]] = {}

    @property
    def problem(self) -> str:
        """The problem that keeps a reader of this process from applying events; "" if there is none."""
        return next((problem for problem in self._problems.values() if problem), "")

    @problem.setter
    def problem(self, problem: str) -> None:
        self._problems[""] = problem

    async def follow(self, reader: str, subjects: Sequence[str]) -> None:
        """Apply the stream from the reader's cursor on, without end. The reader ALL returns when the stream or the store does not answer.

        Args:
            reader: its name.
            subjects: of its events.
        """
        try:
            await self._follow(reader, subjects)
        finally:
            if reader != ALL:
                # Another process may read the partition now, and reports its problems.
                self._problems.pop(reader, None)

    async def _follow(self, reader: str, subjects: Sequence[str]) -> None:
        while True:
            try:
                cursor = await self.store.cursor(reader)
                self.applied = max(self.applied, cursor)
                self._poisoned[reader] = await self.store.poisoned()
                await self.changes.join(reader, cursor)
                self.problem = self._problems[reader] = ""
                async for messages in streams.read_from(self._js, streams.STORE, cursor, subjects, ticks=False):
                    if messages:
                        await self.apply(reader, messages)
                    elif await streams.describe_stream(self._js, streams.STORE) is None:
                        raise errors.Unavailable("the stream STORE does not exist")
            except errors.Conflict as error:
                self._problems[reader] = error.message
                log.error("stream does not fit the index", extra={"reason": error.message})
                await asyncio.sleep(1)
            except errors.RetryLater as error:
                self._problems[reader] = error.message
                await asyncio.sleep(0.1)
                if reader == ALL:
                    return
            finally:
                self.changes.leave(reader)

    async def apply(self, reader: str, messages: Sequence[streams.Message]) -> None:
        """Apply one batch. If an event of it is poison, apply the events one by one."""
        try:
            decisions = await self._apply_when_possible(reader, messages)
        except (Poison, errors.CorruptInstance) as error:
            if len(messages) > 1:
                for message in messages:
                    await self.apply(reader, [message])
                return
            await self._pass(reader, messages[0], error)
            self.applied = max(self.applied, messages[-1].sequence)
            return
        self.applied = max(self.applied, messages[-1].sequence)
        await self._tell(decisions)

    async def _apply_when_possible(self, reader: str, messages: Sequence[streams.Message]) -> Decisions:
        """Apply one batch; retry until it succeeds.

        Raises:
            Poison, errors.CorruptInstance: an event of the batch cannot be parsed.
        """
        wait_s = 0.2
        while True:
            try:
                async with self.lock:
                    decisions = await self._apply(reader, messages)
                self._problems[reader] = ""
                return decisions
            except errors.RetryLater as error:
                self._problems[reader] = error.message
                log.warning("batch waits", extra={"reason": error.message, "sequence": messages[0].sequence})
                await asyncio.sleep(0.2)
            except (Poison, errors.CorruptInstance):
                raise
            except Exception as error:
                self._problems[reader] = f"events from {messages[0].sequence} on cannot be applied: {type(error).__name__}"
                log.exception("batch waits", extra={"sequence": messages[0].sequence})
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _apply(self, reader: str, messages: Sequence[streams.Message]) -> Decisions:
        batch = [await self._event(message) for message in messages]
        uploads = [upload for event in batch for upload in uploads_of(event)]
        uids, places = list(dict.fromkeys(uid for uid, _ in uploads)), list(dict.fromkeys(place for _, place in uploads))
        sequence = messages[-1].sequence
        poisoned = self._poisoned.get(reader)
        healed = [name for message in messages if (name := name_of(message)) in poisoned] if poisoned else []
        settling = {
            event.event.collection: event.sequence
            for event in batch
            if isinstance(event, StoredEvent) and _is_upload(event) and is_study(event.event.collection)
        }
        removed = self.changes.to_remove(settling)
        decisions = Decisions()

        def store_batch(present: Mapping[str, Present]) -> Batch:
            decided = _batch(reader, sequence, decisions, present)
            return replace(
                decided, healed=healed, outbox=decisions.outbox(reader), settling=settling, published=removed[0], settled=removed[1]
            )

        def decide_at_once(present: Mapping[str, Present], dead: Mapping[Place, Dead]) -> Batch | None:
            nonlocal decisions
            decisions = decide(batch, present, dead, self._on_duplicate)
            # Decision objects must be durable before their decisions are applied.
            return None if decisions.dead else store_batch(present)

        is_restoring = any(isinstance(event, RestoredEvent) for event in batch)
        if is_restoring or not await self.store.decided(uids, places, decide_at_once):
            present, dead = await self.store.present(uids, places)
            batch = [await self._with_facts(event, present) if isinstance(event, RestoredEvent) else event for event in batch]
            decisions = decide(batch, present, dead, self._on_duplicate)
            await self._keep(decisions, messages[-1])
            await self.store.apply(store_batch(present))
        self.changes.removed(*removed)
        # With Elasticsearch, an attempt that failed after the instances were written has left rows of which nothing is decided again
        has_rows = bool(decisions.study_changes) or self.store.name != "sqlite"
        self.changes.applied(reader, sequence, has_rows, settling)
        if poisoned:
            poisoned.difference_update(healed)
        _STORE_EVENTS_APPLIED.inc(len(batch))
        for message in messages:
            logs.applied(log, call_context.of_headers(message.headers), message.subject, time.time() - message.time_s)
        return decisions

    async def _event(self, message: streams.Message) -> Event:
        sequence, time_s = message.sequence, int(message.time_s)
        try:
            match message.subject.rpartition(".")[2]:
                case "stored":
                    return await self._stored(sequence, InstancesStored.FromString(message.data), time_s)
                case "deleted":
                    return DeletedEvent(sequence, InstancesDeleted.FromString(message.data), time_s)
                case "restored":
                    return RestoredEvent(sequence, InstancesRestored.FromString(message.data), {}, time_s)
                case "swept":
                    return SweptEvent(sequence, InstancesSwept.FromString(message.data), time_s)
        except DecodeError as error:
            raise Poison("the data is not a message of the kind that its subject names") from error
        raise Poison(f"unknown subject {message.subject}")

    async def _stored(self, sequence: int, event: InstancesStored, time_s: int) -> StoredEvent:
        instances: Sequence[StoredInstance] = event.instances
        try:
            if event.facts_in_pack:
                announced = {instance.location.offset for instance in event.instances}
                trailer = await read_trailer(self._blob, event.object)
                instances = [instance for instance in trailer if instance.location.offset in announced]
                if len(instances) != len(announced):
                    raise Poison(f"{event.object} has {len(instances)} of the {len(announced)} announced instances")
            large = {instance.part_number: await read_json(self._blob, instance) for instance in instances if not instance.dicom_json}
        except (errors.NotFound, errors.RequestError) as error:
            raise Poison(error.message) from error
        return StoredEvent(sequence, event, instances, large, time_s)

    async def _with_facts(self, event: RestoredEvent, present: Mapping[str, Present]) -> RestoredEvent:
        """Read the facts of the uploads to restore, from the packs that their tombstones name. Uploads without bytes are omitted."""
        wanted = {place for _, place in uploads_of(event)}
        lie_in = {
            present[uid].stored.location.object if uid in present and present[uid].place == place else place[0]
            for uid, place in uploads_of(event)
        }
        facts: dict[Place, tuple[StoredInstance, bytes]] = {}
        for object_key in sorted(lie_in):
            try:
                for stored in await read_trailer(self._blob, object_key):
                    if (place := place_of(stored)) in wanted:
                        facts[place] = (stored, stored.dicom_json or await read_json(self._blob, stored))
            except (errors.NotFound, errors.CorruptInstance) as error:
                log.warning("nothing to restore", extra={"object": object_key, "reason": error.message})
        return RestoredEvent(event.sequence, event.event, facts, event.time_s)

    async def _keep(self, decisions: Decisions, message: streams.Message) -> None:
        """Write decision objects. A retry writes the same objects again."""
        for kind, locations, uids in decisions.to_keep():
            for start in range(0, len(locations), LOCATIONS_PER_DECISION):
                part = slice(start, start + LOCATIONS_PER_DECISION)
                decision = Decision(kind=kind, locations=locations[part], uids=uids[part], sequence=message.sequence)
                await keep_decision(self._blob, decision, datetime.fromtimestamp(message.time_s, UTC))

    async def _tell(self, decisions: Decisions) -> None:
        """Send outcomes to waiting requests, and changed records to gateways. These messages may be lost: the store has the same facts."""
        for subject, outcomes in decisions.outcomes:
            await self._say(subject, outcomes.SerializeToString())
            for outcome in outcomes.outcomes:
                _STORED[outcome.outcome].inc()
        for collection, uids in decisions.changed.items():
            for start in range(0, len(uids), 1000):
                changed = RecordsChanged(collection=collection, sop_instance_uids=uids[start : start + 1000])
                await self._say(streams.SUBJECTS["RecordsChanged"], changed.SerializeToString())
        for subject in decisions.applied:
            await self._say(subject, IndexLease(applied_sequence=self.applied).SerializeToString())

    async def _say(self, subject: str, data: bytes) -> None:
        """Publish on core NATS; wait while NATS does not accept messages. A message that NATS can never accept is logged and dropped."""
        while True:
            try:
                await streams.say(self._client, subject, data)
                return
            except errors.RetryLater as error:
                self._problems[NOTICES] = error.message
                log.warning("notification waits", extra={"reason": error.message, "subject": subject})
                await asyncio.sleep(0.2)
                self._problems[NOTICES] = ""
            except errors.BadRequest as error:
                log.error("notification dropped", extra={"reason": error.message, "subject": subject})
                return

    async def _pass(self, reader: str, message: streams.Message, error: Exception) -> None:
        log.error("event passed", extra={"sequence": message.sequence, "subject": message.subject}, exc_info=error)
        telemetry.EVENTS_POISON.labels("store").inc()
        name = name_of(message)
        pack = name.partition(" ")[0] if message.subject.endswith(".stored") else ""
        poison = PoisonEvent(message.sequence, f"{type(error).__name__}: {error}", name, pack)
        while True:
            with suppress(errors.RetryLater):
                await self.store.apply(Batch(reader, message.sequence, poison=[poison]))
                self._poisoned.setdefault(reader, set()).add(name)
                self._problems[reader] = ""
                return
            await asyncio.sleep(0.2)

    async def heartbeat(self) -> None:
        """Publish a heartbeat every HEARTBEAT_S seconds while index has no problem."""
        while True:
            if not self.problem and self._client.is_connected:
                lease = IndexLease(applied_sequence=self.applied).SerializeToString()
                with suppress(Exception):
                    await self._client.publish(streams.SUBJECTS["IndexLease"], lease)
            await asyncio.sleep(HEARTBEAT_S)


def name_of(message: streams.Message) -> str:
    """Return the message id of an event. For InstancesStored it begins with the key of the pack, and is always the same."""
    return message.headers.get("Nats-Msg-Id", "")


def _is_upload(event: StoredEvent) -> bool:
    """Return whether an event announces uploads. Otherwise it announces copies in another pack, which do not change a study."""
    return any(not instance.HasField("origin") for instance in event.instances)


def _batch(reader: str, sequence: int, decisions: Decisions, present: Mapping[str, Present]) -> Batch:
    """Return the batch of decisions that were made with `present`."""
    versions: dict[str, int] = {}
    for known in present.values():
        collection = collection_of(known.stored)
        versions[collection] = max(versions.get(collection, 0), known.version)
    seen = {uid: present[uid].version if uid in present else 0 for uid in decisions.changes}
    return Batch(reader, sequence, decisions.changes, decisions.dead, decisions.packs, versions, seen=seen)


async def read_trailer(blob: "BlobServiceAsyncStub", key: str) -> list[StoredInstance]:
    """Return the facts of a pack."""
    instances: list[StoredInstance] = []
    with rpc_errors.translated("blob"):
        async for answer in blob.ReadTrailer(ReadTrailerRequest(object=key), timeout=BLOB_TIMEOUT_S):
            instances += answer.instances
    return instances


async def read_json(blob: "BlobServiceAsyncStub", instance: StoredInstance) -> bytes:
    """Return the DICOM JSON of an instance from its pack.

    Raises:
        Poison: the instance has no DICOM JSON.
    """
    location = instance.dicom_json_location
    if not location.object:
        raise Poison(f"{instance.sop_instance_uid} is announced without DICOM JSON")
    request = ReadRequest(object=location.object, ranges=[Range(offset=location.offset, length=location.length)])
    data = bytearray()
    with rpc_errors.translated("blob"):
        async for answer in blob.Read(request, timeout=BLOB_TIMEOUT_S):
            data += answer.data
    return bytes(data)


async def keep_decision(blob: "BlobServiceAsyncStub", decision: Decision, time: datetime) -> None:
    """Write a decision object. Its key has a digest of its content, so that a retry writes the same object."""
    decision.decided = time.strftime("%Y-%m-%dT%H:%M:%SZ")
    data = decision.SerializeToString(deterministic=True)
    name = f"{KIND_NAMES[decision.kind]}-{decision.sequence:020d}-{hashlib.sha256(data).hexdigest()[:16]}"
    with rpc_errors.translated("blob"):
        await blob.PutObject(PutObjectRequest(object=f"decisions/{time:%Y/%m/%d}/{name}", data=data), timeout=BLOB_TIMEOUT_S)


REINDEX_LEASE = "index.reindex"
"""While a process holds this lease, no other process reads a partition."""
PAUSE_TIMEOUT_S = 60.0


class Partitions:
    """Distributes the partitions of STORE evenly over the index processes, with one lease per partition."""

    def __init__(self, reader: Reader, client: streams.Client) -> None:
        self._reader = reader
        self._js = client.jetstream()
        self._me = uuid.uuid4().hex
        self._member = leases.Lease(self._js, f"index.member.{self._me}", self._me)
        self._is_member = False
        self._is_pausing_others = False
        self._held: dict[int, tuple[leases.Lease, asyncio.Task[None]]] = {}

    async def keep(self) -> None:
        """Acquire, renew and release leases, without end. When the reader of a partition ends, its exception is raised.

        Raises:
            RuntimeError: the reader of a partition ended without an exception.
        """
        try:
            while True:
                with suppress(errors.RetryLater):
                    await self._look()
                await self._until_next_look()
        finally:
            for partition in list(self._held):
                await self._drop(partition)
            await self._member.release()

    async def _until_next_look(self) -> None:
        """Wait RENEW_S seconds; raise as soon as a reader has ended."""
        readers = [task for _, task in self._held.values()]
        if not readers:
            await asyncio.sleep(leases.RENEW_S)
            return
        ended, _ = await asyncio.wait(readers, timeout=leases.RENEW_S, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
            raise RuntimeError(f"the reader of {task.get_name()} ended")

    async def _look(self) -> None:
        for partition, (lease, _) in list(self._held.items()):
            if not await lease.renew():
                await self._drop(partition)
        self._is_member = await (self._member.renew() if self._is_member else self._member.acquire())
        if self._is_pausing_others:
            return
        held = await leases.leases_held(self._js)
        members = max(1, sum(key.startswith("index.member.") for key in held))
        share = 0 if REINDEX_LEASE in held else math.ceil(streams.PARTITIONS / members)
        for partition in range(streams.PARTITIONS):
            if len(self._held) >= share:
                break
            if partition not in self._held and f"index.partition.{partition}" not in held:
                await self._take(partition)
        for partition in list(self._held)[share:]:
            await self._drop(partition)

    async def _take(self, partition: int) -> None:
        lease = leases.Lease(self._js, f"index.partition.{partition}", self._me)
        if await lease.acquire():
            follow = self._reader.follow(str(partition), [f"store.{partition}.>"])
            self._held[partition] = (lease, asyncio.create_task(follow, name=f"partition {partition}"))

    async def _drop(self, partition: int) -> None:
        lease, task = self._held.pop(partition)
        await end_tasks([task])
        await lease.release()

    @asynccontextmanager
    async def others_paused(self) -> AsyncIterator[Callable[[], None]]:
        """Stop all other processes from reading while the context is open. The caller locks the readers of this process.

        Yields:
            A function that raises errors.Conflict if other processes may have begun to read again.

        Raises:
            errors.Conflict: another process reindexes, or a process did not stop reading in time.
            errors.Unavailable: NATS does not answer.
        """
        lease = leases.Lease(self._js, REINDEX_LEASE, self._me)
        if not await lease.acquire():
            raise errors.Conflict("another process reindexes, or NATS does not answer")
        self._is_pausing_others = True
        renewing = asyncio.create_task(self._renew(lease), name="reindex lease")

        def check() -> None:
            if renewing.done():
                raise errors.Conflict("the lease for reindexing was lost: other processes may have continued to read")

        try:
            await self._until_others_stopped()
            yield check
        finally:
            self._is_pausing_others = False
            await end_tasks([renewing])
            await lease.release()

    async def check_nobody_reads(self) -> None:
        """Check that no other process reads a partition. Leases of a killed process have time to expire.

        Raises:
            errors.Conflict: another process reads a partition.
            errors.Unavailable: NATS does not answer.
        """
        try:
            async with asyncio.timeout(2 * leases.LEASE_S):
                await self._until_nobody_else_reads()
        except TimeoutError as error:
            raise errors.Conflict("an index process of an older program reads the stream: stop it, then reindex") from error

    async def _renew(self, lease: leases.Lease) -> None:
        """Renew a lease until it is lost."""
        is_held = True
        while is_held:
            await asyncio.sleep(leases.RENEW_S)
            is_held = await lease.renew()

    async def _until_others_stopped(self) -> None:
        try:
            async with asyncio.timeout(PAUSE_TIMEOUT_S):
                await self._until_nobody_else_reads()
        except TimeoutError as error:
            raise errors.Conflict(f"another index process has not stopped reading within {PAUSE_TIMEOUT_S:.0f} s") from error

    async def _until_nobody_else_reads(self) -> None:
        while True:
            held = {key for key in await leases.leases_held(self._js) if key.startswith("index.partition.")}
            if held <= {f"index.partition.{partition}" for partition in self._held}:
                return
            await asyncio.sleep(leases.RENEW_S / 2)
