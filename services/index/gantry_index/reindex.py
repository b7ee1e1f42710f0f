"""Builds a generation of the index store from the object store alone.

Decisions name places that are dead; what is left in the packs is live. The same decisions come out again, so that reindexing twice, or
on a live system, changes no answer.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gantry.blob.v1.blob_pb2 import ListObjectsRequest, Location, ReadRequest, StoredInstance
from gantry.events.v1.events_pb2 import Decision
from gantry_index.decide import is_same
from gantry_index.reader import BLOB_TIMEOUT_S, KIND_NAMES, keep_decision, read_json, read_trailer
from gantry_index.store import Batch, IndexStore, Place, Put, Remove
from gantry_runtime import rpc_errors
from gantry_standard import errors

if TYPE_CHECKING:
    from gantry.blob.v1.blob_pb2_grpc import BlobServiceAsyncStub

log = logging.getLogger(__name__)
CHUNK = 500
LIST_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rebuild is."""

    packs_read: int
    packs_total: int
    instances: int


class Rebuild:
    """One run. `versions_from` is the store whose versions stay where a place is the same; None on a store that knows nothing."""

    def __init__(self, built: IndexStore, blob: "BlobServiceAsyncStub", versions_from: IndexStore | None, version: int) -> None:
        self._built = built
        self._blob = blob
        self._old = versions_from
        self._version = max(version, 1)
        self._dead: dict[Place, Decision.Kind.ValueType] = {}
        self._deleted: dict[str, StoredInstance] = {}
        self._instances = 0

    async def run(self) -> AsyncIterator[Progress]:
        """Fill the new generation; yields after every pack."""
        await self._read_decisions()
        packs = await self._packs()
        for number, pack in enumerate(packs, 1):
            try:
                instances = await read_trailer(self._blob, pack)
            except (errors.NotFound, errors.CorruptInstance) as error:
                log.warning("pack skipped", extra={"object": pack, "reason": error.message})
                continue
            for start in range(0, len(instances), CHUNK):
                await self._take(instances[start : start + CHUNK])
            await self._built.apply(Batch("", 0, packs=[pack]))
            yield Progress(number, len(packs), self._instances)
        await self._bury()
        places = list(self._dead.items())
        for start in range(0, len(places), 10 * CHUNK):
            await self._built.apply(Batch("", 0, dead=dict(places[start : start + 10 * CHUNK])))
        yield Progress(len(packs), len(packs), self._instances)

    async def _list(self, prefix: str) -> list[str]:
        found: list[str] = []
        with rpc_errors.translated("blob"):
            async for answer in self._blob.ListObjects(ListObjectsRequest(prefix=prefix), timeout=LIST_TIMEOUT_S):
                found += [entry.object for entry in answer.objects]
        return found

    async def _packs(self) -> list[str]:
        """Return the packs that have been decided, oldest first; all of them where nobody knows."""
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
            for location in decision.locations:
                self._dead[location.object, location.offset] = decision.kind

    async def _take(self, instances: Sequence[StoredInstance]) -> None:
        uids = [instance.sop_instance_uid for instance in instances]
        present, _ = await self._built.present(uids, [])
        known = {uid: one.stored for uid, one in present.items()}
        old, _ = await self._old.present(uids, []) if self._old else ({}, {})
        changes: dict[str, Put | Remove] = {}
        refused: dict[Decision.Kind.ValueType, list[Location]] = {}
        for instance in instances:
            uid, place = instance.sop_instance_uid, (instance.location.object, instance.location.offset)
            if place in self._dead:
                if self._dead[place] == Decision.KIND_DELETED:
                    self._deleted[uid] = _without_json(instance)
                continue
            if uid in known:
                if (known[uid].location.object, known[uid].location.offset) != place:
                    kind = Decision.KIND_REDUNDANT if is_same(known[uid], instance) else Decision.KIND_REFUSED
                    self._dead[place] = kind
                    refused.setdefault(kind, []).append(instance.location)
                continue
            before = old.get(uid)
            version = before.version if before and before.place == place else self._version
            dicom_json = instance.dicom_json or await read_json(self._blob, instance)
            known[uid] = _without_json(instance)
            changes[uid] = Put(known[uid], dicom_json, version)
        for kind, locations in refused.items():
            await keep_decision(self._blob, Decision(kind=kind, locations=locations), KIND_NAMES[kind], self._version, datetime.now(UTC))
        await self._built.apply(Batch("", 0, changes))
        self._instances += len(changes)

    async def _bury(self) -> None:
        """Leave tombstones of what was deleted and not stored again, so that it stays Gone."""
        deleted = list(self._deleted.items())
        for start in range(0, len(deleted), CHUNK):
            part = dict(deleted[start : start + CHUNK])
            present, _ = await self._built.present(list(part), [])
            old, _ = await self._old.present(list(part), []) if self._old else ({}, {})
            changes: dict[str, Put | Remove] = {
                uid: Remove(stored, old[uid].version if uid in old else self._version) for uid, stored in part.items() if uid not in present
            }
            await self._built.apply(Batch("", 0, changes))


def _without_json(instance: StoredInstance) -> StoredInstance:
    kept = StoredInstance()
    kept.CopyFrom(instance)
    kept.ClearField("dicom_json")
    return kept
