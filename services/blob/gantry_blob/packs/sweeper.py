"""The sweeper takes away the bytes of what was deleted, replaced or stored twice, once the undo window has passed.

Each pack goes through the same steps, and each of them may be repeated, so that a crash at any point is finished by the next run:

    sweeps/{pack}   what is to go is written down
    given up        announced to index (InstancesSwept), which decides in stream order: what was restored in time stays
    copied          what is left of the pack goes into a new one, which index is told of as of any pack; records move there
    trash/          once index knows every instance elsewhere, and readers had time to hear of it, the pack gets a key in the trash
    removed         after another time

Index is asked as of the end of the stream, always; where it does not answer so, the run ends. What index does not know is never touched,
but packs without trailer that are a day old. One blob process of all sweeps at a time (lease); two at once do no harm.
Decision 0050.
"""

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from gantry.blob.v1 import blob_pb2
from gantry.events.v1 import events_pb2
from gantry.index.v1 import index_pb2
from gantry_blob.packs import pack
from gantry_blob.packs.announcer import Announcer
from gantry_blob.packs.copy import copy_instance, name_of
from gantry_blob.stores.port import ObjectEntry, ObjectStore
from gantry_blob.threads import in_thread
from gantry_runtime import telemetry
from gantry_runtime.events.streams import SUBJECTS, Publisher, partition_of
from gantry_runtime.rpc import rpc_errors
from gantry_runtime.stored_instances import COPY_SUFFIX, collection_of
from gantry_runtime.threads import Threads
from gantry_standard import errors

if TYPE_CHECKING:
    from gantry.index.v1.index_pb2_grpc import IndexServiceAsyncStub

log = logging.getLogger(__name__)

LEASE = "blob.sweeper"
JOURNAL = "sweeps/"
TRASH = "trash/"
INDEX_S = 30.0
DAY_S = 86_400.0
MOST_DUE = 10_000
DESCRIBED = 1000
PER_EVENT = 500
"""Keeps an InstancesSwept below 256 KiB."""

Name = tuple[str, int]
Condition = index_pb2.UploadState


@dataclass(frozen=True)
class SweeperTimes:
    """Seconds.

    Attributes:
        every_s: between two runs.
        after_s: between a decision and the end of the bytes: the undo window.
        settle_s: between a copy and the end of the pack that was copied, so that nobody reads there any more.
        trash_s: in the trash.
        broken_s: age at which a pack without trailer goes.
    """

    every_s: float = 600
    after_s: float = 604_800
    settle_s: float = 60
    trash_s: float = DAY_S
    broken_s: float = DAY_S


class Sweeper:
    """Runs in every blob process; `run` is to be called while holding the lease LEASE."""

    def __init__(
        self,
        store: ObjectStore,
        announcer: Announcer,
        publisher: Publisher,
        index: "IndexServiceAsyncStub",
        pool: Threads,
        times: SweeperTimes = SweeperTimes(),
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._announcer = announcer
        self._publisher = publisher
        self._index = index
        self._pool = pool
        self._times = times
        self._now = now
        self._looked_for_broken = float("-inf")

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            try:
                await self.sweep()
                telemetry.SWEEPER_LAST_RUN.set(self._now())
            except errors.GantryError as error:
                log.warning("sweep ended early", extra={"reason": error.message})
            await asyncio.sleep(self._times.every_s)

    async def sweep(self) -> None:
        """Take every pack as far as it can go now.

        Raises:
            errors.Unavailable: index, NATS or the object store does not answer.
        """
        begun = await self._go_on()
        await self._begin(begun)
        await self._remove_broken()
        await self._empty_trash()

    async def _go_on(self) -> set[str]:
        """Go on with what was begun; return the packs that are not finished."""
        begun: set[str] = set()
        for entry in await in_thread(self._pool, _all, self._store, JOURNAL):
            data = await in_thread(self._pool, pack.read_bytes, self._store, entry.key, 0, entry.size_bytes)
            try:
                sweep = blob_pb2.Sweep.FromString(data)
            except DecodeError:
                log.error("journal of the sweeper cannot be read", extra={"object": entry.key})
                continue
            if not await self._advance(sweep):
                begun.add(sweep.object)
        return begun

    async def _begin(self, begun: set[str]) -> None:
        """Begin with every pack that holds something due, but those that are begun."""
        after = ""
        while True:
            request = index_pb2.ListDueRequest(before_s=_whole(self._now() - self._times.after_s), after_object=after, limit=MOST_DUE)
            with rpc_errors.translated("index"):
                due = list((await self._index.ListDue(request, timeout=INDEX_S)).uploads)
            groups = [(key, list(uploads)) for key, uploads in itertools.groupby(due, lambda upload: upload.object)]
            if len(due) == MOST_DUE and len(groups) > 1:
                groups.pop()  # It may have more.
            for key, uploads in groups:
                after = key
                if key not in begun:
                    await self._begin_one(key, [upload.name for upload in uploads])
            if len(due) < MOST_DUE:
                return

    async def _begin_one(self, key: str, names: Sequence[blob_pb2.Location]) -> None:
        with rpc_errors.translated("index"):
            unknown = await self._index.FilterUnknownPacks(index_pb2.FilterUnknownPacksRequest(objects=[key]), timeout=INDEX_S)
        if unknown.objects:
            return
        sweep = blob_pb2.Sweep(object=key, locations=names)
        await self._write_down(sweep)
        await self._advance(sweep)

    async def _write_down(self, sweep: blob_pb2.Sweep) -> None:
        await in_thread(self._pool, self._store.put, JOURNAL + sweep.object, sweep.SerializeToString(), True)

    async def _advance(self, sweep: blob_pb2.Sweep) -> bool:
        """Take one pack as far as it can go now; return whether it is finished."""
        try:
            trailer = await in_thread(self._pool, pack.read_trailer, self._store, sweep.object)
            is_finished = await self._advance_pack(sweep, list(trailer.instances))
        except errors.NotFound:
            is_finished = True
        except errors.CorruptInstance as error:
            log.error("pack cannot be swept", extra={"object": sweep.object, "reason": error.message})
            is_finished = True
        except errors.OutOfResources as error:
            log.warning("no room to copy what is left of a pack", extra={"object": sweep.object, "reason": error.message})
            is_finished = False
        if is_finished:
            await in_thread(self._pool, self._store.remove, JOURNAL + sweep.object)
        return is_finished

    async def _advance_pack(self, sweep: blob_pb2.Sweep, instances: list[blob_pb2.StoredInstance]) -> bool:
        await self._give_up(instances, {(name.object, name.offset) for name in sweep.locations})
        left = await self._left(instances)
        if len(left) == len(instances):
            return True
        if left and not await self._is_elsewhere(sweep, left):
            return False
        await self._to_trash(sweep.object)
        log.info("pack swept", extra={"object": sweep.object, "instances": len(instances), "left": len(left), "into": sweep.into})
        return True

    async def _give_up(self, instances: list[blob_pb2.StoredInstance], names: set[Name]) -> None:
        """Announce that the bytes of uploads are given up, of those that are dead still."""
        states = await self._states(instances)
        due: dict[str, list[events_pb2.NamedUpload]] = {}
        for instance, state in zip(instances, states, strict=True):
            if name_of(instance) in names and state.condition == Condition.CONDITION_DEAD:
                due.setdefault(collection_of(instance), []).append(_named(instance))
        for collection, uploads in due.items():
            subject = SUBJECTS["InstancesSwept"].format(partition=partition_of(collection))
            for begin in range(0, len(uploads), PER_EVENT):
                part = uploads[begin : begin + PER_EVENT]
                event = events_pb2.InstancesSwept(collection=collection, instances=part)
                await self._publisher.publish(subject, event.SerializeToString(), f"swept {secrets.token_hex(16)}")
                telemetry.SWEEPER_INSTANCES.inc(len(part))

    async def _left(self, instances: list[blob_pb2.StoredInstance]) -> list[blob_pb2.StoredInstance]:
        """Return the instances whose bytes are not given up."""
        states = await self._states(instances)
        return [one for one, state in zip(instances, states, strict=True) if state.condition != Condition.CONDITION_SWEPT]

    async def _states(self, instances: Sequence[blob_pb2.StoredInstance]) -> list[index_pb2.UploadState]:
        """Return what index knows of uploads at the end of the stream."""
        states: list[index_pb2.UploadState] = []
        for begin in range(0, len(instances), DESCRIBED):
            part = instances[begin : begin + DESCRIBED]
            uploads = [index_pb2.UploadName(sop_instance_uid=one.sop_instance_uid, location=_location(one)) for one in part]
            with rpc_errors.translated("index"):
                answer = await self._index.DescribeUploads(index_pb2.DescribeUploadsRequest(uploads=uploads), timeout=INDEX_S)
            states += answer.uploads
        return states

    async def _is_elsewhere(self, sweep: blob_pb2.Sweep, left: list[blob_pb2.StoredInstance]) -> bool:
        """See to it that nobody needs a pack for what is left of it; return whether that is so."""
        copied = await self._copied(sweep.into)
        states = await self._states(left)
        missing = [
            one for one, state in zip(left, states, strict=True) if name_of(one) not in copied and state.object in ("", sweep.object)
        ]
        if missing:
            sweep.into = pack.new_key(COPY_SUFFIX)
            await self._write_down(sweep)
            await in_thread(self._pool, _copy, self._store, sweep, missing)
            telemetry.SWEEPER_PACKS.labels("copied").inc()
            copied = {name_of(one) for one in missing}
            states = await self._states(left)
        if any(name_of(one) in copied and state.object == sweep.object for one, state in zip(left, states, strict=True)):
            await self._announcer.announce(sweep.into, None)
            states = await self._states(left)
        if any(state.object in ("", sweep.object) for state in states):
            log.warning("index does not know where the rest of a pack lies now", extra={"object": sweep.object, "into": sweep.into})
            return False
        return not sweep.into or self._now() - pack.time_of(sweep.into) >= self._times.settle_s

    async def _copied(self, key: str) -> set[Name]:
        if not key:
            return set()
        try:
            trailer = await in_thread(self._pool, pack.read_trailer, self._store, key)
        except errors.NotFound:
            return set()
        return {name_of(one) for one in trailer.instances}

    async def _to_trash(self, key: str) -> None:
        await in_thread(self._pool, self._store.move, key, f"{TRASH}{_whole(self._now() * 1e6):014x}/{key}")
        telemetry.SWEEPER_PACKS.labels("trashed").inc()

    async def _remove_broken(self) -> None:
        """Take away what has no trailer, is old, and was never announced. Once a day."""
        if time.monotonic() - self._looked_for_broken < min(DAY_S, self._times.broken_s):
            return
        packs = self._store.list(pack.PREFIX)
        while keys := await in_thread(self._pool, _next_keys, packs):
            old = [key for key in keys if 0 < pack.time_of(key) < self._now() - self._times.broken_s]
            if not old:
                continue
            with rpc_errors.translated("index"):
                answer = await self._index.FilterUnknownPacks(index_pb2.FilterUnknownPacksRequest(objects=old), timeout=INDEX_S)
            for key in answer.objects:
                await self._remove_if_broken(key)
        self._looked_for_broken = time.monotonic()

    async def _remove_if_broken(self, key: str) -> None:
        try:
            await in_thread(self._pool, pack.read_trailer, self._store, key)
        except errors.CorruptInstance as error:
            await self._to_trash(key)
            log.warning("pack without trailer swept", extra={"object": key, "reason": error.message})
        except errors.NotFound:
            return

    async def _empty_trash(self) -> None:
        """Remove what has been in the trash long enough."""
        for entry in await in_thread(self._pool, _all, self._store, TRASH):
            since_s = _microseconds(entry.key.removeprefix(TRASH).partition("/")[0]) / 1e6
            if 0 < since_s <= self._now() - self._times.trash_s:
                await in_thread(self._pool, self._store.remove, entry.key)
                telemetry.SWEEPER_PACKS.labels("removed").inc()
                telemetry.SWEEPER_BYTES.inc(entry.size_bytes)
                log.info("removed from the trash", extra={"object": entry.key, "bytes": entry.size_bytes})


def _copy(store: ObjectStore, sweep: blob_pb2.Sweep, instances: list[blob_pb2.StoredInstance]) -> None:
    """Write a pack that holds these instances of another one. Blocks."""
    writer = pack.PackWriter(store.create(sweep.into), "", replaces=sweep.object)
    try:
        for instance in instances:
            copy_instance(store, instance, writer)
        writer.seal()
        writer.commit()
    finally:
        writer.abort()


def _location(instance: blob_pb2.StoredInstance) -> blob_pb2.Location:
    object_key, offset = name_of(instance)
    return blob_pb2.Location(object=object_key, offset=offset)


def _named(instance: blob_pb2.StoredInstance) -> events_pb2.NamedUpload:
    return events_pb2.NamedUpload(
        series_instance_uid=instance.series_instance_uid, sop_instance_uid=instance.sop_instance_uid, location=_location(instance)
    )


def _all(store: ObjectStore, prefix: str) -> list[ObjectEntry]:
    return list(store.list(prefix))


def _next_keys(packs: Iterator[ObjectEntry]) -> list[str]:
    return [entry.key for entry in itertools.islice(packs, DESCRIBED)]


def _whole(number: float) -> int:
    return max(0, int(number))


def _microseconds(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return 0
