"""Writes one batch of changes to Elasticsearch: first the instances, then the summaries of their studies and series."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from gantry.events.v1.events_pb2 import Decision, StudyChanged
from gantry.index.v1.index_pb2 import InstanceRecord
from gantry_index.levels.summary import (
    INSTANCE_NUMBER,
    SERIES_NUMBER,
    Attributes,
    SeriesSummary,
    StudySummary,
    decoded,
    level_terms,
    not_terms_of,
    parsing,
    sort_number,
    tabulated,
)
from gantry_index.stores.elasticsearch.cluster import Cluster, answered, packed, unpacked
from gantry_index.stores.elasticsearch.mappings import (
    MAPPINGS,
    change_id,
    dead_id,
    name_of,
    pack_id,
    poison_id,
    series_id,
    settling_id,
    term_fields,
)
from gantry_index.stores.port import DUE_KINDS, NUMBER_ABSENT, Batch, Change, Move, OutboxRow, PoisonEvent, Put, Remove
from gantry_runtime import telemetry
from gantry_runtime.stored_instances import INLINE_JSON_BYTES, collection_of
from gantry_standard import errors
from gantry_standard.dicom.collections import is_study
from gantry_standard.query import terms


class Writing:
    """Applies one batch: first the instances, then the documents that depend on them."""

    def __init__(self, cluster: Cluster, batch: Batch) -> None:
        self._cluster = cluster
        self._batch = batch
        self._added: defaultdict[str, list[tuple[str, str, Attributes]]] = defaultdict(list)
        self._recount: set[str] = set()
        self._last: defaultdict[str, int] = defaultdict(int, batch.versions)
        self.is_undisturbed = True
        """Whether none of the outbox rows existed before."""

    async def run(self) -> None:
        batch = self._batch
        fields = ["collection", "deleted", "version"]
        before = await self._cluster.get(
            "instances", [sop for sop, change in batch.changes.items() if not isinstance(change, Move)], fields
        )
        before |= await self._cluster.get("instances", [sop for sop, change in batch.changes.items() if isinstance(change, Move)])
        self._check(before)
        operations: list[dict[str, Any]] = []
        for sop, change in batch.changes.items():
            operations += self._instance(sop, change, before.get(sop))
        versions = {collection: version for collection, version in batch.versions.items() if is_study(collection)}
        keeping = asyncio.create_task(self._write_outbox(), name="outbox")
        try:
            studies = await self._cluster.get("studies", sorted({*self._added, *self._recount, *versions}))
        finally:
            await keeping
        for study, version in versions.items():
            if study not in studies or studies[study]["_source"]["applied"] < version:
                self._recount.add(study)
        for study, doc in studies.items():
            if study in self._added and doc["_source"]["applied"] >= min(batch.changes[sop].version for _, sop, _ in self._added[study]):
                self._recount.add(study)
        # A replaced upload is marked as dead before its replacement is written, and a restored instance is written before its mark as dead
        # is removed. So the same events give the same decisions after a crash in between.
        await self._cluster.bulk(self._deaths(), refresh=False)
        touched = {*self._added, *self._recount}
        await self._cluster.bulk(operations, refresh=bool(self._recount) or not touched)
        if not touched:
            await self._cluster.bulk(self._facts(), refresh=False)
            return
        follow_up: list[dict[str, Any]] = self._facts()
        for study in sorted(touched):
            if study in self._recount:
                follow_up += await self._recounted(study, studies.get(study))
            else:
                follow_up += await self._increased(study, studies.get(study))
        await self._cluster.bulk(follow_up, refresh=False)
        changed = [self._cluster.index(kind) for kind in MAPPINGS]
        await answered(self._cluster.client.indices.refresh(index=changed))

    async def _write_outbox(self) -> None:
        """Write the outbox rows, before the instances that they refer to."""
        index = self._cluster.outbox
        rows = {change_id(one.sequence): one for one in self._batch.outbox}
        operations: list[dict[str, Any]] = []
        for name, one in rows.items():
            operations += [{"create": {"_index": index, "_id": name}}, _row(one)]
        for study, sequence in self._batch.settling.items():
            action = {"_index": index, "_id": settling_id(study), "version": sequence, "version_type": "external"}
            document = {"kind": "settling", "reader": self._batch.reader, "study": study, "sequence": sequence}
            operations += [{"index": action}, document]
        existing = await self._cluster.bulk(operations, refresh=False)
        if not existing:
            return
        self.is_undisturbed = False
        docs = await self._cluster.get_from(index, existing)
        operations = []
        for name in existing:
            before = unpacked(docs[name]["_source"]["data"]) if name in docs else b""
            operations += [{"index": {"_index": index, "_id": name}}, _row(replace(rows[name], data=_both(before, rows[name].data)))]
        await self._cluster.bulk(operations, refresh=False)

    def outbox_removals(self) -> list[dict[str, Any]]:
        """Return the operations that remove published rows and settlings."""
        index = self._cluster.outbox
        operations: list[dict[str, Any]] = [{"delete": {"_index": index, "_id": change_id(sequence)}} for sequence in self._batch.published]
        for study, sequence in self._batch.settled.items():
            # If the study has a later upload, the document has a higher version and is not removed.
            action = {"_index": index, "_id": settling_id(study), "version": sequence, "version_type": "external_gte"}
            operations.append({"delete": action})
        return operations

    def _check(self, before: Mapping[str, dict[str, Any]]) -> None:
        """Compare the stored versions with those on which the decisions were made.

        Raises:
            errors.Unavailable: a version differs.
        """
        for sop, seen in self._batch.seen.items():
            if (change := self._batch.changes.get(sop)) is None:
                continue
            source = before[sop]["_source"] if sop in before else {"version": 0}
            is_applied = source["version"] == change.version and source["collection"] == collection_of(change.stored)
            if source["version"] != seen and not is_applied:
                raise errors.Unavailable(f"instance {sop} is no longer at version {seen}")

    def _deaths(self) -> list[dict[str, Any]]:
        """Return the operations for uploads that are dead from now on."""
        index = self._cluster.index("meta")
        operations: list[dict[str, Any]] = []
        for place, one in self._batch.dead.items():
            if one is not None:
                due = {"due": one.decided_s} if one.kind in DUE_KINDS else {}
                document = {"name": name_of(place), "lies_in": one.object, "decided": one.decided_s, **due}
                operations += [
                    {"index": {"_index": index, "_id": dead_id(place)}},
                    {"kind": "dead", "value": Decision.Kind.Name(one.kind), **document},
                ]
        return operations

    def _facts(self) -> list[dict[str, Any]]:
        """Return the operations for restored uploads, packs and poison events."""
        documents = {pack_id(key): {"kind": "pack", "value": ""} for key in self._batch.packs}
        documents |= {poison_id(one.name or str(one.sequence)): _poison(one) for one in self._batch.poison}
        index = self._cluster.index("meta")
        operations: list[dict[str, Any]] = [
            {"delete": {"_index": index, "_id": dead_id(place)}} for place, one in self._batch.dead.items() if one is None
        ]
        operations += [{"delete": {"_index": index, "_id": poison_id(name)}} for name in self._batch.healed]
        for name, document in documents.items():
            operations += [{"index": {"_index": index, "_id": name}}, document]
        return operations

    def _instance(self, sop: str, change: Change, before: dict[str, Any] | None) -> list[dict[str, Any]]:
        stored, collection = change.stored, collection_of(change.stored)
        if before and before["_source"]["version"] >= change.version:
            return []
        record = packed(InstanceRecord(stored=stored, version=change.version).SerializeToString())
        action = {"_index": self._cluster.index("instances"), "_id": sop}
        if isinstance(change, Move):
            if before is None:
                return []
            self._last[collection] = max(self._last[collection], change.version)
            return _compared(action, before, {**before["_source"], "record": record, "version": change.version})
        self._last[collection] = max(self._last[collection], change.version)
        if before and not before["_source"]["deleted"]:
            self._recount |= {one for one in (before["_source"]["collection"], collection) if is_study(one)}
        document: dict[str, Any] = {
            "collection": collection,
            "series": stored.series_instance_uid,
            "sop": sop,
            "number": 0,
            "version": change.version,
            "deleted": isinstance(change, Remove),
            "record": record,
            "attributes": "",
            "fragment": "",
        }
        if isinstance(change, Put):
            with parsing(sop):
                dataset = decoded(change.dicom_json)
                attributes = tabulated(dataset)
                number = sort_number(attributes, INSTANCE_NUMBER, NUMBER_ABSENT)
                derived = terms.derive(dataset, not_terms_of(collection))
            for limit, left_out in derived.left_out.items():
                telemetry.TERMS_LEFT_OUT.labels(limit).inc(left_out)
            inline = len(change.dicom_json) <= INLINE_JSON_BYTES or not stored.dicom_json_location.object
            document |= {
                "number": number,
                "attributes": packed(orjson.dumps(attributes)),
                "fragment": packed(change.dicom_json) if inline else "",
                **term_fields(derived.terms),
            }
            if is_study(collection):
                self._added[collection].append((stored.series_instance_uid, sop, attributes))
        return _compared(action, before, document)

    async def _increased(self, study: str, before: dict[str, Any] | None) -> list[dict[str, Any]]:
        summary = StudySummary.from_json(unpacked(before["_source"]["summary"])) if before else StudySummary()
        added = self._added[study]
        ids = {series_id(study, series): series for series, _, _ in added}
        docs = await self._cluster.get("series", list(ids))
        by_series = {
            series: SeriesSummary.from_json(unpacked(docs[one]["_source"]["summary"])) if one in docs else SeriesSummary()
            for one, series in ids.items()
        }
        return self._gathered(study, summary, by_series, added, before, docs)

    async def _recounted(self, study: str, before: dict[str, Any] | None) -> list[dict[str, Any]]:
        live: list[tuple[str, str, Attributes]] = []
        query = {"bool": {"filter": [{"term": {"collection": study}}, {"term": {"deleted": False}}]}}
        async for page in self._cluster.pages("instances", query, [{"sop": "asc"}], ["series", "sop", "attributes"]):
            live += [(source["series"], source["sop"], orjson.loads(unpacked(source["attributes"]))) for source in page]
        by_series = {series: SeriesSummary() for series, _, _ in live}
        known = list(StudySummary.from_json(unpacked(before["_source"]["summary"])).modalities) if before else []
        docs = await self._cluster.get("series", [series_id(study, series) for series in {*known, *by_series}])
        operations: list[dict[str, Any]] = [
            {"delete": {"_index": self._cluster.index("series"), "_id": one}}
            for one, doc in docs.items()
            if doc["_source"]["series"] not in by_series
        ]
        if live:
            return operations + self._gathered(study, StudySummary(), by_series, live, before, docs)
        return operations + ([{"delete": {"_index": self._cluster.index("studies"), "_id": study}}] if before else [])

    def _gathered(
        self,
        study: str,
        summary: StudySummary,
        by_series: dict[str, SeriesSummary],
        added: list[tuple[str, str, Attributes]],
        before: dict[str, Any] | None,
        series_before: Mapping[str, dict[str, Any]],
    ) -> list[dict[str, Any]]:
        for series, sop, attributes in added:
            summary.add(sop, attributes)
            by_series[series].add(sop, attributes)
        operations: list[dict[str, Any]] = []
        for series, of_series in by_series.items():
            summary.modalities[series] = of_series.modality
            own = {"study": study, "series": series, "number": sort_number(of_series.gathered.elements, SERIES_NUMBER, NUMBER_ABSENT)}
            one = series_id(study, series)
            operations += self._level("series", one, series_before.get(one), of_series, own)
        applied = max(self._last[study], before["_source"]["applied"] if before else 0)
        # The study is written last: until its field `applied` is updated, its instances count as not applied.
        return operations + self._level(
            "studies", study, before, summary, {"study": study, "sort_key": summary.sort_key, "applied": applied}
        )

    def _level(
        self, kind: str, one: str, before: dict[str, Any] | None, summary: StudySummary | SeriesSummary, own: dict[str, Any]
    ) -> list[dict[str, Any]]:
        attributes = summary.attributes()
        document = {
            **own,
            "summary": packed(summary.to_json()),
            "attributes": packed(orjson.dumps(attributes)),
            **term_fields(level_terms(attributes)),
        }
        return _compared({"_index": self._cluster.index(kind), "_id": one}, before, document)


def _row(one: OutboxRow) -> dict[str, Any]:
    """Return the document of a row of the outbox."""
    return {
        "kind": "change",
        "reader": one.reader,
        "study": one.collection,
        "sequence": one.sequence,
        "data": packed(one.data),
    }


def _both(before: bytes, now: bytes) -> bytes:
    """Return a row with the changes that it has, and the further changes of the same event when it was decided again.

    For an instance in both, the kind in the existing row is used, because the first decision was made on the state before the event.
    """
    both, new = StudyChanged.FromString(before), StudyChanged.FromString(now)
    both.collection = new.collection
    versions = {one.sop_instance_uid: one.version for change in new.changes for one in change.instances}
    known: set[str] = set()
    for change in both.changes:
        for one in change.instances:
            one.version = versions.get(one.sop_instance_uid, one.version)
            known.add(one.sop_instance_uid)
    for change in new.changes:
        if missing := [one for one in change.instances if one.sop_instance_uid not in known]:
            same = next((one for one in both.changes if one.id == change.id), None)
            if same is None:
                same = both.changes.add(id=change.id, kind=change.kind, sequence=change.sequence, time_s=change.time_s)
            same.instances.extend(missing)
    return both.SerializeToString()


def _poison(one: PoisonEvent) -> dict[str, Any]:
    """Return the document of a poison event."""
    named = {"name": one.name, "lies_in": one.pack} if one.name else {}
    return {"kind": "poison", "value": one.reason, **named}


def _compared(action: dict[str, Any], before: Mapping[str, Any] | None, document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the operation that writes a document if it has not changed since it was read."""
    if before is None:
        return [{"create": action}, document]
    return [{"index": {**action, "if_seq_no": before["_seq_no"], "if_primary_term": before["_primary_term"]}}, document]
