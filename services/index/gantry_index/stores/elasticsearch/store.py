"""The index store for many machines: Elasticsearch.

There are documents for instances (including tombstones), series and studies. Attributes are matched by the keyword field `terms`, with
path + 0x1F + value. Attributes of sequence items are nested documents `items`, one per item with everything below it, so that several keys
can be matched in the same item.

Every write is compare-and-set. If another reader has written an instance since it was read (one SOP Instance UID in studies of two
partitions), the event is decided again. A bulk request is not atomic. Dead uploads are therefore written first, and the cursor last. A
study records the sequence up to which its counts include its instances (`applied`); if that differs from its instances after a crash, they
are counted again.

The outbox rows of a batch are written before its instances. After a crash in between, the same events are decided again, and new changes
are added to an existing row. A row that was not written in one uninterrupted run of this process is compared with the instances before it
is published, because another reader may have written one of them in the meantime.

The other modules: `cluster` has the client and its indices, `mappings` the mappings and ids, `writing` the writes of a batch, and `search`
the queries.
"""

import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from gantry.events.v1.events_pb2 import Decision, StudyChanged
from gantry.index.v1.index_pb2 import InstanceRecord
from gantry_index.stores.elasticsearch.cluster import Cluster, answered, opened, unpacked
from gantry_index.stores.elasticsearch.mappings import KEY_FIELDS, MAPPINGS, OUTBOX_MAPPING, dead_id, pack_id
from gantry_index.stores.elasticsearch.search import ORDER, Searching
from gantry_index.stores.elasticsearch.writing import Writing
from gantry_index.stores.port import Batch, Counts, Dead, Decide, Fragment, IndexStore, OutboxRow, Page, Place, Present, Scope, name_of
from gantry_standard import errors
from gantry_standard.dicom.collections import is_study
from gantry_standard.query.levels import Level
from gantry_standard.query.matching import Query

MOST_UNDISTURBED = 100_000
"""Largest number of outbox rows that are remembered as not needing a comparison."""


class ElasticsearchStore:
    """IndexStore in indices `{prefix}-{kind}-{generation}`, read through aliases `{prefix}-{kind}`."""

    name = "elasticsearch"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._outdated = ""
        self._undisturbed: set[int] = set()
        """Sequences of outbox rows whose changes were all applied by this process, without interruption."""

    @classmethod
    async def opened(cls, url: str, prefix: str) -> "ElasticsearchStore":
        """Connect, and create the indices if they do not exist.

        Raises:
            errors.Unavailable: Elasticsearch does not answer.
        """
        client = await opened(url)
        store = cls(Cluster(client, prefix))
        try:
            if not await answered(client.indices.exists_alias(name=f"{prefix}-meta")):
                await store.swap(await store.build())
            await store.outdated()
            await store._cluster.create_outbox(OUTBOX_MAPPING)
        except BaseException:
            await client.close()
            raise
        return store

    async def outdated(self) -> str:
        """See IndexStore. Indices of an older program do not have all fields."""
        missing: list[str] = []
        for kind, mapping in MAPPINGS.items():
            mappings = await answered(self._cluster.client.indices.get_mapping(index=self._cluster.index(kind)))
            fields = {name for index in mappings.body.values() for name in index["mappings"].get("properties", ())}
            missing += [f"{kind}.{name}" for name in sorted(mapping.keys() - fields)]
        self._outdated = (
            f"the indices {self._cluster.prefix}-* have no {', '.join(missing)}: an older program made them."
            " Stop every index process of that program and run gantry reindex"
            if missing
            else ""
        )
        return self._outdated

    def _check_current(self) -> None:
        if self._outdated:
            raise errors.Unavailable(self._outdated)

    async def generation(self) -> str:
        """See IndexStore."""
        return await self._meta("generation")

    async def _meta(self, name: str) -> str:
        documents = await self._cluster.get("meta", [name])
        return str(documents[name]["_source"]["value"]) if name in documents else ""

    async def follow(self, generation: str, sequence: int) -> None:
        """See IndexStore."""
        index = self._cluster.index("meta")
        operations: list[dict[str, Any]] = []
        for name in _cursor_names():
            operations.append({"delete": {"_index": index, "_id": name}})
        for name, value in (("followed", str(sequence)), ("generation", generation)):
            operations += [{"index": {"_index": index, "_id": name}}, {"kind": "meta", "value": value}]
        await self._cluster.bulk(operations, refresh=False)

    async def cursor(self, reader: str) -> int:
        """See IndexStore."""
        return (await self.cursors([reader]))[reader]

    async def cursors(self, readers: Sequence[str]) -> dict[str, int]:
        """See IndexStore."""
        documents = await self._cluster.get("meta", ["followed", *(f"cursor {reader}" for reader in readers)])
        values = {name: int(doc["_source"]["value"]) for name, doc in documents.items()}
        return {reader: values.get(f"cursor {reader}", values.get("followed", 0)) for reader in readers}

    async def high_water(self) -> int:
        """See IndexStore."""
        documents = await self._cluster.get("meta", [*_cursor_names(), "followed"])
        return max((int(doc["_source"]["value"]) for doc in documents.values()), default=0)

    async def present(self, sop_instance_uids: Sequence[str], places: Sequence[Place]) -> tuple[dict[str, Present], dict[Place, Dead]]:
        """See IndexStore."""
        docs = await self._cluster.get("instances", sop_instance_uids, ["record", "deleted"])
        present_by_uid = {uid: _present(doc["_source"]) for uid, doc in docs.items()}
        by_id = {dead_id(place): place for place in places}
        dead = await self._cluster.get("meta", list(by_id))
        return present_by_uid, {by_id[name]: _dead(doc["_source"]) for name, doc in dead.items()}

    async def decided(self, sop_instance_uids: Sequence[str], places: Sequence[Place], decide: Decide) -> bool:
        """See IndexStore."""
        batch = decide(*await self.present(sop_instance_uids, places))
        if batch is None:
            return False
        await self.apply(batch)
        return True

    async def apply(self, batch: Batch) -> None:
        """See IndexStore."""
        writing = Writing(self._cluster, batch)
        await writing.run()
        operations = writing.outbox_removals()
        if batch.reader:
            operations += [
                {"index": {"_index": self._cluster.index("meta"), "_id": f"cursor {batch.reader}"}},
                {"kind": "cursor", "value": str(batch.sequence)},
            ]
        await self._cluster.bulk(operations, refresh=False)
        self._undisturbed.difference_update(batch.published)
        if writing.is_undisturbed and len(self._undisturbed) < MOST_UNDISTURBED:
            self._undisturbed.update(one.sequence for one in batch.outbox)

    async def search(self, query: Query) -> Page:
        """See IndexStore."""
        self._check_current()
        return await Searching(self._cluster, query).page()

    async def records(self, scope: Scope) -> AsyncIterator[list[bytes]]:
        """See IndexStore."""
        async for sources in self._sources(scope, ["record"]):
            yield [unpacked(source["record"]) for source in sources]

    async def fragments(self, scope: Scope) -> AsyncIterator[list[Fragment]]:
        """See IndexStore."""
        async for sources in self._sources(scope, ["record", "fragment"]):
            yield [_fragment(source) for source in sources]

    async def _sources(self, scope: Scope, fields: list[str]) -> AsyncIterator[list[dict[str, Any]]]:
        self._check_current()
        if scope.sop_instance_uid:
            yield [await self._one(scope, [*fields, "collection", "series", "deleted"])]
            return
        if scope.hides(scope.collection):
            raise errors.NotFound(f"{name_of(scope)} is not here")
        is_empty = True
        async for series in self._series(scope):
            live = {"bool": {"filter": [*_within(scope.collection, series), {"term": {"deleted": False}}]}}
            async for sources in self._cluster.pages("instances", live, ORDER[Level.INSTANCE], fields):
                is_empty = False
                yield sources
        if is_empty:
            await self._missing(scope)

    async def _series(self, scope: Scope) -> AsyncIterator[str]:
        """Yield the series of a study in their order; for a non-patient resource one series without a name."""
        if not is_study(scope.collection):
            if not scope.series_instance_uid:
                yield ""
            return
        where = [{"term": {"study": scope.collection}}]
        if scope.series_instance_uid:
            where.append({"term": {"series": scope.series_instance_uid}})
        async for page in self._cluster.pages("series", {"bool": {"filter": where}}, ORDER[Level.SERIES], ["study", "series"]):
            for series in page:
                yield series["series"]

    async def _one(self, scope: Scope, fields: list[str]) -> dict[str, Any]:
        uid = scope.sop_instance_uid
        source = (await self._cluster.get("instances", [uid], fields)).get(uid, {}).get("_source")
        if (
            source is None
            or (scope.collection and scope.collection != source["collection"])
            or (scope.series_instance_uid and scope.series_instance_uid != source["series"])
            or scope.hides(source["collection"])
        ):
            raise errors.NotFound(f"instance {uid} is not here")
        if source["deleted"]:
            raise errors.Gone(f"instance {uid} was deleted")
        return dict(source)

    async def _missing(self, scope: Scope) -> None:
        query = {"bool": {"filter": _within(scope.collection, scope.series_instance_uid)}}
        tombstones = await answered(self._cluster.client.count(index=self._cluster.index("instances"), query=query))
        if tombstones["count"]:
            raise errors.Gone(f"{name_of(scope)} was deleted")
        raise errors.NotFound(f"{name_of(scope)} is not here")

    async def state(self, scope: Scope) -> bytes:
        """See IndexStore. Always empty, because it would cost a request to Elasticsearch, as the fragments do."""
        return b""

    async def tombstones(self, uid: str, visible_studies: frozenset[str] | None = None) -> AsyncIterator[list[Present]]:
        """See IndexStore."""
        self._check_current()
        named = [{"term": {field: uid}} for field in KEY_FIELDS[Level.INSTANCE]]
        filters: list[dict[str, Any]] = [{"term": {"deleted": True}}]
        if visible_studies is not None:
            filters.append({"terms": {"collection": sorted(visible_studies)}})
        query = {"bool": {"filter": filters, "should": named, "minimum_should_match": 1}}
        async for page in self._cluster.pages("instances", query, [{"sop": "asc"}], ["record", "deleted"]):
            yield [_present(source) for source in page]

    async def due(self, before_s: int, after_object: str, limit: int) -> list[tuple[Place, Dead]]:
        """See IndexStore."""
        await answered(self._cluster.client.indices.refresh(index=self._cluster.index("meta")))
        query = {"bool": {"filter": [{"range": {"due": {"lt": before_s}}}, {"range": {"lies_in": {"gt": after_object}}}]}}
        due: list[tuple[Place, Dead]] = []
        order = [{"lies_in": "asc"}, {"name": "asc"}]
        async for page in self._cluster.pages("meta", query, order, ["value", "name", "lies_in", "decided"]):
            due += [(_named(source["name"]), _dead(source)) for source in page]
            if len(due) >= limit:
                break
        return due[:limit]

    async def unknown_packs(self, objects: Sequence[str]) -> list[str]:
        """See IndexStore."""
        known = await self._cluster.get("meta", [pack_id(key) for key in objects], False)
        poisoned = {pack for _, pack in await self._poison()}
        return [key for key in objects if pack_id(key) not in known or key in poisoned]

    async def poisoned(self) -> set[str]:
        """See IndexStore."""
        return {name for name, _ in await self._poison()}

    async def _poison(self) -> list[tuple[str, str]]:
        """Return the name and the pack of each poison event that has a name."""
        await answered(self._cluster.client.indices.refresh(index=self._cluster.index("meta")))
        query = {"bool": {"filter": [{"term": {"kind": "poison"}}, {"exists": {"field": "name"}}]}}
        pages = self._cluster.pages("meta", query, [{"name": "asc"}], ["name", "lies_in"])
        return [(source["name"], source["lies_in"]) async for page in pages for source in page]

    async def outbox_rows(self, windows: Mapping[str, tuple[int, int]], limit: int) -> list[OutboxRow]:
        """See IndexStore."""
        await answered(self._cluster.client.indices.refresh(index=self._cluster.outbox))
        each = [
            {"bool": {"filter": [{"term": {"reader": reader}}, {"range": {"sequence": {"gt": above, "lte": up_to}}}]}}
            for reader, (above, up_to) in windows.items()
        ]
        query = {"bool": {"filter": [{"term": {"kind": "change"}}], "should": each, "minimum_should_match": 1}}
        response = await answered(
            self._cluster.client.search(
                index=self._cluster.outbox,
                query=query,
                sort=[{"sequence": "asc"}],
                size=limit,
                source_includes=["reader", "sequence", "study", "data"],
                track_total_hits=False,
            )
        )
        sources = [hit["_source"] for hit in response["hits"]["hits"]]
        rows = [OutboxRow(source["reader"], source["sequence"], source["study"], unpacked(source["data"])) for source in sources]
        return [row if row.sequence in self._undisturbed else await self._applied(row) for row in rows]

    async def _applied(self, row: OutboxRow) -> OutboxRow:
        """Return a row with only those of its changes that were applied."""
        message = StudyChanged.FromString(row.data)
        uids = [one.sop_instance_uid for change in message.changes for one in change.instances]
        docs = await self._cluster.get("instances", uids, ["collection", "version"])
        versions = {uid: doc["_source"]["version"] for uid, doc in docs.items() if doc["_source"]["collection"] == row.collection}
        kept = StudyChanged(collection=message.collection)
        for change in message.changes:
            if applied := [one for one in change.instances if versions.get(one.sop_instance_uid, -1) >= one.version]:
                one = kept.changes.add(id=change.id, kind=change.kind, sequence=change.sequence, time_s=change.time_s)
                one.instances.extend(applied)
        return OutboxRow(row.reader, row.sequence, row.collection, kept.SerializeToString())

    async def settling(self, reader: str) -> dict[str, int]:
        """See IndexStore."""
        await answered(self._cluster.client.indices.refresh(index=self._cluster.outbox))
        query = {"bool": {"filter": [{"term": {"kind": "settling"}}, {"term": {"reader": reader}}]}}
        pages = self._cluster.pages_of(self._cluster.outbox, query, [{"study": "asc"}], ["study", "sequence"])
        return {source["study"]: source["sequence"] async for page in pages for source in page}

    async def counts(self) -> Counts:
        """See IndexStore."""
        everything: dict[str, Any] = {"match_all": {}}
        queries = (
            ("studies", everything),
            ("series", everything),
            ("instances", {"term": {"deleted": False}}),
            ("meta", {"term": {"kind": "poison"}}),
        )
        totals = [
            (await answered(self._cluster.client.count(index=self._cluster.index(kind), query=query)))["count"] for kind, query in queries
        ]
        return Counts(*totals)

    async def build(self) -> "ElasticsearchStore":
        """See IndexStore."""
        generation = f"{time.strftime('%Y%m%d%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"
        cluster = Cluster(self._cluster.client, self._cluster.prefix, generation)
        await cluster.create(MAPPINGS)
        return ElasticsearchStore(cluster)

    async def swap(self, built: IndexStore) -> None:
        """See IndexStore."""
        if not isinstance(built, ElasticsearchStore):
            raise TypeError("an Elasticsearch store takes over what an Elasticsearch store built")
        client, prefix = self._cluster.client, self._cluster.prefix
        for kind in MAPPINGS:
            await answered(client.indices.refresh(index=built._cluster.index(kind)))
        actions: list[dict[str, Any]] = []
        for kind in MAPPINGS:
            actions += [{"remove_index": {"index": index}} for index in await self._cluster.behind(f"{prefix}-{kind}")]
            actions.append({"add": {"index": built._cluster.index(kind), "alias": f"{prefix}-{kind}"}})
        await answered(client.indices.update_aliases(actions=actions))
        self._outdated = ""

    async def close(self) -> None:
        """See IndexStore."""
        await self._cluster.client.close()


def _within(collection: str, series_instance_uid: str) -> list[dict[str, Any]]:
    """Return the filters of instances for a collection, and for one of its series if the scope names it."""
    clauses = [{"term": {"collection": collection}}]
    return [*clauses, {"term": {"series": series_instance_uid}}] if series_instance_uid else clauses


def _cursor_names() -> list[str]:
    return ["cursor all", *(f"cursor {number}" for number in range(64))]


def _named(name: str) -> Place:
    object_key, _, offset = name.rpartition(" ")
    return object_key, int(offset)


def _dead(source: Mapping[str, Any]) -> Dead:
    return Dead(Decision.Kind.Value(source["value"]), source["decided"], source["lies_in"])


def _present(source: Mapping[str, Any]) -> Present:
    record = InstanceRecord.FromString(unpacked(source["record"]))
    return Present(record.stored, record.version, source["deleted"])


def _fragment(source: Mapping[str, Any]) -> Fragment:
    record = InstanceRecord.FromString(unpacked(source["record"]))
    dicom_json = unpacked(source["fragment"])
    location = b"" if dicom_json else record.stored.dicom_json_location.SerializeToString()
    return Fragment(record.stored.sop_instance_uid, record.version, dicom_json, location)
