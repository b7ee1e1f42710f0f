"""The sweeper removes the bytes of deleted, replaced and redundant uploads after the undo window.

Each pack passes through these steps. Every step can be repeated, so the next run continues after a crash:

    sweeps/{pack}   the uploads to remove are written to an object (the journal)
    given up        InstancesSwept is published. Index applies it in stream order, so an upload that was restored in time is retained
    copied          the remaining instances are copied to a new pack, which is announced as usual. Index records their new location
    trash/          when index has another location for every remaining instance, and readers have had time to switch, the pack is moved
                    to a key in the trash
    removed         after a further time the pack is removed from the trash

Index is always asked for its state at the end of the stream; if it cannot answer that, the run ends. Packs that index does not know are
not touched, except packs without trailer that are a day old. A lease ensures that one blob process sweeps at a time; two at once would do
no harm. Decision 0050.
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
from gantry_blob.packs.copy import copy_instance, upload_name_of
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
"""Number of uploads in one InstancesSwept, which keeps the event below 256 KiB."""

Name = tuple[str, int]
Condition = index_pb2.UploadState


@dataclass(frozen=True)
class SweeperTimes:
    """Times in seconds.

    Attributes:
        every_s: between two runs.
        after_s: the undo window, from a decision of index until the bytes may be removed.
        settle_s: between copying and the removal of the copied pack, so that no read of it is still running.
        trash_s: in the trash.
        broken_s: age at which a pack without trailer is removed.
    """

    every_s: float = 600
    after_s: float = 604_800
    settle_s: float = 60
    trash_s: float = DAY_S
    broken_s: float = DAY_S


class Sweeper:
    """Removes bytes that are no longer needed. `run` may be called only while this process holds the lease LEASE."""

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
        """Sweep every `every_s` seconds, without end."""
        while True:
            try:
                await self.sweep()
                telemetry.SWEEPER_LAST_RUN.set(self._now())
            except errors.GantryError as error:
                log.warning("sweep ended early", extra={"reason": error.message})
            await asyncio.sleep(self._times.every_s)

    async def sweep(self) -> None:
        """Advance every pack as far as possible now.

        Raises:
            errors.Unavailable: index, NATS or the object store does not answer.
        """
        begun = await self._go_on()
        await self._begin(begun)
        await self._remove_broken()
        await self._empty_trash()

    async def _go_on(self) -> set[str]:
        """Continue the sweeps in the journal; return the packs that are not finished."""
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
        """Begin to sweep every pack with due uploads, except those in `begun`."""
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
        """Advance one pack as far as possible now; return whether it is finished."""
        try:
            trailer = await in_thread(self._pool, pack.read_trailer, self._store, sweep.object)
            is_finished = await self._advance_pack(sweep, list(trailer.instances))
        except errors.NotFound:
            is_finished = True
        except errors.CorruptInstance as error:
            log.error("pack cannot be swept", extra={"object": sweep.object, "reason": error.message})
            is_finished = True
        except errors.OutOfResources as error:
            log.warning("no disk space to copy the rest of a pack", extra={"object": sweep.object, "reason": error.message})
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
        """Publish InstancesSwept for those of the named uploads that are still deleted, replaced or redundant."""
        states = await self._states(instances)
        due: dict[str, list[events_pb2.NamedUpload]] = {}
        for instance, state in zip(instances, states, strict=True):
            if upload_name_of(instance) in names and state.condition == Condition.CONDITION_DEAD:
                due.setdefault(collection_of(instance), []).append(_named(instance))
        for collection, uploads in due.items():
            subject = SUBJECTS["InstancesSwept"].format(partition=partition_of(collection))
            for begin in range(0, len(uploads), PER_EVENT):
                part = uploads[begin : begin + PER_EVENT]
                event = events_pb2.InstancesSwept(collection=collection, instances=part)
                await self._publisher.publish(subject, event.SerializeToString(), f"swept {secrets.token_hex(16)}")
                telemetry.SWEEPER_INSTANCES.inc(len(part))

    async def _left(self, instances: list[blob_pb2.StoredInstance]) -> list[blob_pb2.StoredInstance]:
        """Return the instances whose bytes are still needed."""
        states = await self._states(instances)
        return [instance for instance, state in zip(instances, states, strict=True) if state.condition != Condition.CONDITION_SWEPT]

    async def _states(self, instances: Sequence[blob_pb2.StoredInstance]) -> list[index_pb2.UploadState]:
        """Return the states of uploads in index at the end of the stream, in the order of `instances`."""
        states: list[index_pb2.UploadState] = []
        for begin in range(0, len(instances), DESCRIBED):
            part = instances[begin : begin + DESCRIBED]
            uploads = [index_pb2.UploadName(sop_instance_uid=stored.sop_instance_uid, location=_location(stored)) for stored in part]
            with rpc_errors.translated("index"):
                answer = await self._index.DescribeUploads(index_pb2.DescribeUploadsRequest(uploads=uploads), timeout=INDEX_S)
            states += answer.uploads
        return states

    async def _is_elsewhere(self, sweep: blob_pb2.Sweep, left: list[blob_pb2.StoredInstance]) -> bool:
        """Copy the remaining instances of a pack if necessary; return whether index has another location for all of them."""
        copied = await self._copied(sweep.into)
        states = await self._states(left)
        missing = [
            stored
            for stored, state in zip(left, states, strict=True)
            if upload_name_of(stored) not in copied and state.object in ("", sweep.object)
        ]
        if missing:
            sweep.into = pack.new_key(COPY_SUFFIX)
            await self._write_down(sweep)
            await in_thread(self._pool, _copy, self._store, sweep, missing)
            telemetry.SWEEPER_PACKS.labels("copied").inc()
            copied = {upload_name_of(stored) for stored in missing}
            states = await self._states(left)
        if any(upload_name_of(stored) in copied and state.object == sweep.object for stored, state in zip(left, states, strict=True)):
            await self._announcer.announce(sweep.into, None)
            states = await self._states(left)
        if any(state.object in ("", sweep.object) for state in states):
            log.warning("index has no new location for the rest of a pack", extra={"object": sweep.object, "into": sweep.into})
            return False
        return not sweep.into or self._now() - pack.time_of(sweep.into) >= self._times.settle_s

    async def _copied(self, key: str) -> set[Name]:
        if not key:
            return set()
        try:
            trailer = await in_thread(self._pool, pack.read_trailer, self._store, key)
        except errors.NotFound:
            return set()
        return {upload_name_of(stored) for stored in trailer.instances}

    async def _to_trash(self, key: str) -> None:
        await in_thread(self._pool, self._store.move, key, f"{TRASH}{_whole(self._now() * 1e6):014x}/{key}")
        telemetry.SWEEPER_PACKS.labels("trashed").inc()

    async def _remove_broken(self) -> None:
        """Once a day, remove old packs that have no trailer and were never announced."""
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
        """Remove the packs that have been in the trash for `trash_s` seconds."""
        for entry in await in_thread(self._pool, _all, self._store, TRASH):
            since_s = _microseconds(entry.key.removeprefix(TRASH).partition("/")[0]) / 1e6
            if 0 < since_s <= self._now() - self._times.trash_s:
                await in_thread(self._pool, self._store.remove, entry.key)
                telemetry.SWEEPER_PACKS.labels("removed").inc()
                telemetry.SWEEPER_BYTES.inc(entry.size_bytes)
                log.info("removed from the trash", extra={"object": entry.key, "bytes": entry.size_bytes})


def _copy(store: ObjectStore, sweep: blob_pb2.Sweep, instances: list[blob_pb2.StoredInstance]) -> None:
    """Write a new pack with these instances of another pack. Blocks."""
    writer = pack.PackWriter(store.create(sweep.into), "", replaces=sweep.object)
    try:
        for instance in instances:
            copy_instance(store, instance, writer)
        writer.seal()
        writer.commit()
    finally:
        writer.abort()


def _location(instance: blob_pb2.StoredInstance) -> blob_pb2.Location:
    object_key, offset = upload_name_of(instance)
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
