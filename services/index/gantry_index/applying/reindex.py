"""Builds an index generation from the object store alone.

The last decision about an upload, by its sequence, says whether the upload is dead. All other uploads in packs are live. An upload that was
copied is read from the pack with the copy. The result has the same decisions, so that reindexing twice, or while the system runs, does not
change any response.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gantry.blob.v1.blob_pb2 import ListObjectsRequest, Location, ReadRequest, StoredInstance
from gantry.events.v1.events_pb2 import Decision, InstanceUids
from gantry_index.applying.decide import is_same, without_json
from gantry_index.applying.reader import BLOB_TIMEOUT_S, keep_decision, read_json, read_trailer
from gantry_index.stores.port import Batch, Change, Dead, IndexStore, Place, Put, Remove, place_of
from gantry_runtime.rpc import rpc_errors
from gantry_runtime.stored_instances import COPY_SUFFIX
from gantry_standard import errors
from gantry_standard.dicom.collections import is_study

if TYPE_CHECKING:
    from gantry.blob.v1.blob_pb2_grpc import BlobServiceAsyncStub

log = logging.getLogger(__name__)
CHUNK = 500
LIST_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a rebuild."""

    packs_read: int
    packs_total: int
    instances: int


class Rebuild:
    """One run of a reindex.

    Args:
        built: the new generation.
        blob: the object store.
        versions_from: the store from which an instance takes its version if the upload name is the same; None if there is none.
        version: of all other instances.
    """

    def __init__(self, built: IndexStore, blob: "BlobServiceAsyncStub", versions_from: IndexStore | None, version: int) -> None:
        self._built = built
        self._blob = blob
        self._old = versions_from
        self._version = max(version, 1)
        self._last: dict[Place, _Last] = {}
        self._deleted: dict[str, tuple[int, StoredInstance]] = {}
        self._copied: dict[Place, str] = {}
        self._now = datetime.now(UTC)
        self._instances = 0

    async def run(self) -> AsyncIterator[Progress]:
        """Fill the new generation. Yields after every pack."""
        await self._read_decisions()
        packs = await self._packs()
        for pack in packs:
            if pack.endswith(COPY_SUFFIX):
                self._copied |= {place_of(instance): pack for instance in await self._trailer(pack)}
        for number, pack in enumerate(packs, 1):
            instances = [instance for instance in await self._trailer(pack) if self._copied.get(place_of(instance), pack) == pack]
            for start in range(0, len(instances), CHUNK):
                await self._take(instances[start : start + CHUNK])
            await self._built.apply(Batch("", 0, packs=[pack]))
            yield Progress(number, len(packs), self._instances)
        await self._bury()
        dead = [(place, last.dead) for place, last in self._last.items() if last.dead.kind != Decision.KIND_RESTORED]
        for start in range(0, len(dead), 10 * CHUNK):
            await self._built.apply(Batch("", 0, dead=dict(dead[start : start + 10 * CHUNK])))
        yield Progress(len(packs), len(packs), self._instances)

    async def _trailer(self, pack: str) -> list[StoredInstance]:
        try:
            return await read_trailer(self._blob, pack)
        except (errors.NotFound, errors.CorruptInstance) as error:
            log.warning("pack skipped", extra={"object": pack, "reason": error.message})
            return []

    async def _list(self, prefix: str) -> list[str]:
        keys: list[str] = []
        with rpc_errors.translated("blob"):
            async for answer in self._blob.ListObjects(ListObjectsRequest(prefix=prefix), timeout=LIST_TIMEOUT_S):
                keys += [entry.object for entry in answer.objects]
        return keys

    async def _packs(self) -> list[str]:
        """Return the packs that the old store knows, oldest first; all packs if there is no old store."""
        packs = sorted(await self._list("packs/"))
        if self._old is None:
            return packs
        unknown: set[str] = set()
        for start in range(0, len(packs), CHUNK):
            unknown.update(await self._old.unknown_packs(packs[start : start + CHUNK]))
        return [pack for pack in packs if pack not in unknown]

    async def _read_decisions(self) -> None:
        for key in await self._list("decisions/"):
            data = bytearray()
            with rpc_errors.translated("blob"):
                async for answer in self._blob.Read(ReadRequest(object=key), timeout=BLOB_TIMEOUT_S):
                    data += answer.data
            decision = Decision.FromString(bytes(data))
            for number, location in enumerate(decision.locations):
                place = location.object, location.offset
                if (before := self._last.get(place)) is None or before.sequence <= decision.sequence:
                    uids = decision.uids[number] if number < len(decision.uids) else before.uids if before else None
                    self._last[place] = _Last(decision.sequence, Dead(decision.kind, _seconds(decision.decided), location.object), uids)
                elif before.uids is None and number < len(decision.uids):
                    self._last[place] = replace(before, uids=decision.uids[number])

    async def _take(self, instances: Sequence[StoredInstance]) -> None:
        uids = [instance.sop_instance_uid for instance in instances]
        present, _ = await self._built.present(uids, [])
        known = {uid: instance.stored for uid, instance in present.items()}
        old, _ = await self._old.present(uids, []) if self._old else ({}, {})
        changes: dict[str, Change] = {}
        refused: dict[Decision.Kind.ValueType, list[Location]] = {}
        for instance in instances:
            uid, place = instance.sop_instance_uid, place_of(instance)
            last = self._last.get(place)
            if last is not None and last.dead.kind != Decision.KIND_RESTORED:
                self._last[place] = last = replace(last, dead=replace(last.dead, object=instance.location.object))
                if last.is_tombstone:
                    self._note_deleted(last.sequence, without_json(instance))
                continue
            if uid in known:
                if place_of(known[uid]) != place:
                    kind = Decision.KIND_REDUNDANT if is_same(known[uid], instance) else Decision.KIND_REFUSED
                    dead = Dead(kind, int(self._now.timestamp()), instance.location.object)
                    self._last[place] = _Last(self._version, dead, None)
                    refused.setdefault(kind, []).append(Location(object=place[0], offset=place[1]))
                continue
            before = old.get(uid)
            version = before.version if before and before.place == place else self._version
            dicom_json = instance.dicom_json or await read_json(self._blob, instance)
            known[uid] = without_json(instance)
            changes[uid] = Put(known[uid], dicom_json, version)
        for kind, locations in refused.items():
            await keep_decision(self._blob, Decision(kind=kind, locations=locations, sequence=self._version), self._now)
        await self._built.apply(Batch("", 0, changes))
        self._instances += len(changes)

    def _note_deleted(self, sequence: int, stored: StoredInstance) -> None:
        """Record a deleted upload. For several with one UID, the last one is used."""
        before = self._deleted.get(stored.sop_instance_uid)
        if before is None or before[0] <= sequence:
            self._deleted[stored.sop_instance_uid] = sequence, stored

    async def _bury(self) -> None:
        """Write tombstones for deleted instances that were not stored again, so that they stay Gone even if their bytes were removed."""
        for place, last in self._last.items():
            if last.is_tombstone and last.uids is not None:
                before = self._deleted.get(last.uids.sop_instance_uid)
                if before is None or before[0] < last.sequence:
                    self._note_deleted(last.sequence, _without_bytes(place, last.uids))
        deleted = list(self._deleted.items())
        for start in range(0, len(deleted), CHUNK):
            part = dict(deleted[start : start + CHUNK])
            present, _ = await self._built.present(list(part), [])
            old, _ = await self._old.present(list(part), []) if self._old else ({}, {})
            changes: dict[str, Change] = {
                uid: Remove(stored, old[uid].version if uid in old else self._version)
                for uid, (_, stored) in part.items()
                if uid not in present
            }
            await self._built.apply(Batch("", 0, changes))


@dataclass(frozen=True, slots=True)
class _Last:
    """The last decision about an upload, and its UIDs if any decision named them."""

    sequence: int
    dead: Dead
    uids: InstanceUids | None

    @property
    def is_tombstone(self) -> bool:
        return self.dead.kind in (Decision.KIND_DELETED, Decision.KIND_SWEPT) and self.uids is not None


def _without_bytes(place: Place, uids: InstanceUids) -> StoredInstance:
    return StoredInstance(
        study_instance_uid=uids.collection if is_study(uids.collection) else "",
        resource="" if is_study(uids.collection) else uids.collection,
        series_instance_uid=uids.series_instance_uid,
        sop_instance_uid=uids.sop_instance_uid,
        location=Location(object=place[0], offset=place[1]),
    )


def _seconds(decided: str) -> int:
    return int(datetime.fromisoformat(decided).timestamp())
