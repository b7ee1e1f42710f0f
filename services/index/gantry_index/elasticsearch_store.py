"""The index store for many machines: Elasticsearch.

Documents: instances (tombstones are documents too), series and studies. What can be matched is a keyword `terms` of path + 0x1F + value;
attributes of sequence items are nested documents `items`, one per item with everything below it, so that keys meet in the same item.

Every document is compared and set: an instance that another reader wrote since it was looked at (one SOP Instance UID in studies of two
partitions) is decided again. A bulk is not atomic: what is dead is written first; a study says up to which sequence its instances are in
its counts (`applied`); where that disagrees with its instances after a crash, it is counted anew. The cursor is written last.
"""

import base64
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import orjson
from elasticsearch import ApiError, AsyncElasticsearch, NotFoundError, TransportError

from gantry.events.v1.events_pb2 import Decision
from gantry.index.v1.index_pb2 import InstanceRecord
from gantry_index.rows import Identity, levels_needed, needs_metadata, row, workitem_row
from gantry_index.store import (
    DUE_KINDS,
    INLINE_JSON_BYTES,
    NUMBER_ABSENT,
    PAGE,
    Batch,
    Change,
    Counts,
    Dead,
    Decide,
    Fragment,
    IndexStore,
    Move,
    Page,
    Place,
    Present,
    Put,
    Remove,
    Scope,
    WorkitemDocument,
)
from gantry_index.summary import (
    INSTANCE_NUMBER,
    NOT_TERMS_OF_INSTANCE,
    SERIES_NUMBER,
    SERIES_UID,
    SOP_UID,
    STUDY_UID,
    Attributes,
    SeriesSummary,
    StudySummary,
    decoded,
    level_terms,
    sort_number,
    start_of,
    tabulated,
    workitem_terms,
)
from gantry_runtime import telemetry
from gantry_standard import errors, terms
from gantry_standard.levels import Level
from gantry_standard.matching import MatchKey, Operation, Query, group_keys
from gantry_standard.terms import PER_FRAME_FUNCTIONAL_GROUPS, Term

T = TypeVar("T")
JOIN_MAXIMUM = 10_000
"""Most studies or series that keys of another level may match."""
SEPARATOR, AFTER_SEPARATOR = "\x1f", "\x20"
TIMEOUT_S = 30.0
BULK_BYTES = 512 << 10
"""Body of one bulk request."""

KEYWORD = {"type": "keyword"}
MATCHED = {"type": "keyword", "doc_values": False}
KEPT = {"type": "binary"}
TERMS = {
    "terms": MATCHED,
    "items": {"type": "nested", "properties": {"path": MATCHED, "terms": MATCHED}},
}
SETTINGS = {
    "number_of_shards": 1,
    "auto_expand_replicas": "0-1",
    "refresh_interval": "-1",
    "max_result_window": 110_000,
    "mapping": {"nested_objects": {"limit": 20_000}},
}
MAPPINGS: dict[str, dict[str, Any]] = {
    "instances": {
        "study": KEYWORD,
        "series": KEYWORD,
        "sop": KEYWORD,
        "number": {"type": "long"},
        "version": {"type": "long", "index": False},
        "deleted": {"type": "boolean"},
        "record": KEPT,
        "attributes": KEPT,
        "fragment": KEPT,
        **TERMS,
    },
    "series": {"study": KEYWORD, "series": KEYWORD, "number": {"type": "long"}, "summary": KEPT, "attributes": KEPT, **TERMS},
    "studies": {
        "study": KEYWORD,
        "sort_key": KEYWORD,
        "applied": {"type": "long", "index": False},
        "summary": KEPT,
        "attributes": KEPT,
        **TERMS,
    },
    "meta": {
        "kind": KEYWORD,
        "value": {"type": "keyword", "index": False, "doc_values": False},
        # Of what is dead: its name and where it lies; when that was decided, twice where its bytes go after a time.
        "name": KEYWORD,
        "lies_in": KEYWORD,
        "decided": {"type": "long", "index": False, "doc_values": False},
        "due": {"type": "long"},
    },
}
WORKITEM_MAPPING = {
    "uid": KEYWORD,
    "sort_key": KEYWORD,
    "deleted": {"type": "boolean"},
    "dicom_json": KEPT,
    "value": {"type": "keyword", "index": False, "doc_values": False},
    **TERMS,
}
KIND = {Level.STUDY: "studies", Level.SERIES: "series", Level.INSTANCE: "instances"}
UID_FIELD = {STUDY_UID: "study", SERIES_UID: "series", SOP_UID: "sop"}
KEY_FIELDS = {Level.STUDY: ("study",), Level.SERIES: ("study", "series"), Level.INSTANCE: ("study", "series", "sop")}
ORDER: dict[Level, list[Any]] = {
    Level.STUDY: [{"sort_key": "desc"}, {"study": "asc"}],
    Level.SERIES: [{"number": "asc"}, {"series": "asc"}, {"study": "asc"}],
    Level.INSTANCE: [{"number": "asc"}, {"sop": "asc"}],
}


async def _answered(call: Awaitable[T]) -> T:
    """Await a call and translate what it may raise."""
    try:
        return await call
    except (TransportError, ApiError) as error:
        raise errors.Unavailable(f"Elasticsearch failed: {type(error).__name__}") from error


def _packed(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unpacked(text: str) -> bytes:
    return base64.b64decode(text)


def _term_fields(found: Iterable[Term]) -> dict[str, Any]:
    """Return the fields `terms` and `items` of a document."""
    plain: list[str] = []
    items: dict[int, tuple[str, list[str]]] = {}
    for term in found:
        text = term.path + SEPARATOR + term.value
        if not term.root:
            plain.append(text)
            continue
        items.setdefault(term.root, (term.path.partition(".")[0], []))[1].append(text)
        if term.item != term.root:
            items.setdefault(term.item, (term.path.rpartition(".")[0], []))[1].append(text)
    return {"terms": plain, "items": [{"path": path, "terms": texts} for path, texts in items.values()]}


def _comparison(key: MatchKey, field: str) -> list[dict[str, Any]]:
    prefix = key.term_path + SEPARATOR
    if key.operation is Operation.EQUAL:
        return [{"terms": {field: [prefix + value for value in key.values]}}]
    if key.operation is Operation.ALL:
        return [{"term": {field: prefix + value}} for value in key.values]
    if key.operation is Operation.PATTERN:
        return [{"wildcard": {field: {"value": (prefix + key.values[0]).replace("\\", "\\\\")}}}]
    bounds = {"gte": prefix + key.low, **({"lte": prefix + key.high} if key.high else {"lt": key.term_path + AFTER_SEPARATOR})}
    return [{"range": {field: bounds}}]


def _group_query(group: Sequence[MatchKey]) -> dict[str, Any]:
    """Return the query for keys that must match together; ABSENT ones are of no item."""
    filters: list[dict[str, Any]] = []
    absent: list[dict[str, Any]] = []
    wanted = [key for key in group if key.operation is not Operation.ABSENT]
    nested = len(group[0].path) > 1 and group[0].path[0] != PER_FRAME_FUNCTIONAL_GROUPS
    for key in group:
        if key.operation is Operation.ABSENT:
            present = {"prefix": {"items.terms" if nested else "terms": key.term_path + SEPARATOR}}
            absent.append({"nested": {"path": "items", "query": present}} if nested else present)
    if wanted and nested:
        same_path = len({key.path[:-1] for key in wanted}) == 1
        path = ".".join(wanted[0].path[:-1]) if same_path else wanted[0].path[0]
        inner = [{"term": {"items.path": path}}, *(clause for key in wanted for clause in _comparison(key, "items.terms"))]
        filters.append({"nested": {"path": "items", "query": {"bool": {"filter": inner}}}})
    else:
        filters += [clause for key in wanted for clause in _comparison(key, "terms")]
    return {"bool": {"filter": filters, "must_not": absent}}


def _bounded(operations: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Split a bulk into bodies of about BULK_BYTES, an action and its document together."""
    parts: list[list[dict[str, Any]]] = []
    size = BULK_BYTES
    for operation in operations:
        is_action = "_index" in next(iter(operation.values()), ()) if len(operation) == 1 else False
        if is_action and size >= BULK_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(operation)
        size += len(orjson.dumps(operation))
    return parts


class _Cluster:
    """One client, and the names under which a generation's indices are found."""

    def __init__(self, client: AsyncElasticsearch, prefix: str, generation: str = "") -> None:
        self.client = client
        self.prefix = prefix
        self.generation = generation

    def index(self, kind: str) -> str:
        """Return an index of this generation, or the alias for that of the current one."""
        return f"{self.prefix}-{kind}" + (f"-{self.generation}" if self.generation else "")

    async def create(self, mappings: Mapping[str, dict[str, Any]]) -> None:
        """Create the indices of this generation."""
        for kind, properties in mappings.items():
            mapping = {"dynamic": "strict", "properties": properties}
            await _answered(self.client.indices.create(index=self.index(kind), settings=SETTINGS, mappings=mapping))

    async def bulk(self, operations: list[dict[str, Any]], *, refresh: bool) -> None:
        """Write; an external version that is not newer is as good as written.

        Raises:
            errors.Unavailable: Elasticsearch is busy, or another writer was faster: read again.
            ValueError: a document cannot be written, ever.
        """
        parts = _bounded(operations)
        for number, part in enumerate(parts, 1):
            await self._bulk(part, refresh=refresh and number == len(parts))

    async def _bulk(self, operations: list[dict[str, Any]], *, refresh: bool) -> None:
        answer = await _answered(self.client.bulk(operations=operations, refresh=refresh))
        if not answer["errors"]:
            return
        by_version = {action["index"]["_id"] for action in operations if "version" in action.get("index", ())}
        for item in answer["items"]:
            (result,) = item.values()
            status = result["status"]
            if status < 400 or (status == 409 and result["_id"] in by_version) or status == 404:
                continue
            if status in (409, 429, 503):
                raise errors.Unavailable(f"Elasticsearch: {result['error']['type']}")
            raise ValueError(f"Elasticsearch refused a document: {result['error']['type']}")

    async def get(self, kind: str, ids: Sequence[str], source: bool | list[str] = True) -> dict[str, dict[str, Any]]:
        """Return the documents that are there, by id; as of now, not as of the last refresh."""
        found: dict[str, dict[str, Any]] = {}
        for start in range(0, len(ids), PAGE):
            docs = [{"_index": self.index(kind), "_id": one, "_source": source} for one in ids[start : start + PAGE]]
            answer = await _answered(self.client.mget(docs=docs))
            if any("error" in doc for doc in answer["docs"]):
                raise errors.Unavailable("Elasticsearch could not read a document")
            found.update({doc["_id"]: doc for doc in answer["docs"] if doc["found"]})
        return found

    async def pages(self, kind: str, query: dict[str, Any], sort: list[Any], source: list[str]) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield the sources of all hits in order, PAGE at a time."""
        after: list[Any] | None = None
        while True:
            answer = await _answered(
                self.client.search(
                    index=self.index(kind),
                    query=query,
                    sort=sort,
                    size=PAGE,
                    source_includes=source,
                    search_after=after,
                    track_total_hits=False,
                )
            )
            hits = answer["hits"]["hits"]
            if hits:
                yield [hit["_source"] for hit in hits]
            if len(hits) < PAGE:
                return
            after = hits[-1]["sort"]


async def _opened(url: str) -> AsyncElasticsearch:
    client = AsyncElasticsearch([part.strip() for part in url.split(",")], request_timeout=TIMEOUT_S, retry_on_timeout=False)
    try:
        await _answered(client.info())
    except errors.Unavailable:
        await client.close()
        raise
    return client


class ElasticsearchStore:
    """IndexStore in indices `{prefix}-{kind}-{generation}`, read through aliases `{prefix}-{kind}`."""

    name = "elasticsearch"

    def __init__(self, cluster: _Cluster) -> None:
        self._cluster = cluster

    @classmethod
    async def opened(cls, url: str, prefix: str) -> "ElasticsearchStore":
        """Connect, and create the indices when they are not there.

        Raises:
            errors.Unavailable: Elasticsearch does not answer.
            errors.Conflict: the indices were made by another version of this program.
        """
        client = await _opened(url)
        store = cls(_Cluster(client, prefix))
        try:
            if not await _answered(client.indices.exists_alias(name=f"{prefix}-meta")):
                await store.swap(await store.build())
            await store._check_format()
        except BaseException:
            await client.close()
            raise
        return store

    async def _check_format(self) -> None:
        found = await _answered(self._cluster.client.indices.get_mapping(index=[self._cluster.index(kind) for kind in MAPPINGS]))
        fields = {name for index in found.body.values() for name in index["mappings"].get("properties", ())}
        if missing := {name for mapping in MAPPINGS.values() for name in mapping} - fields:
            names = ", ".join(sorted(missing))
            raise errors.Conflict(
                f"the indices {self._cluster.prefix}-* have no {names}: an older program made them; delete them and reindex"
            )

    async def generation(self) -> str:
        """See IndexStore."""
        return await self._meta("generation")

    async def _meta(self, name: str) -> str:
        found = await self._cluster.get("meta", [name])
        return str(found[name]["_source"]["value"]) if name in found else ""

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
        found = await self._cluster.get("meta", ["followed", *(f"cursor {reader}" for reader in readers)])
        values = {name: int(doc["_source"]["value"]) for name, doc in found.items()}
        return {reader: values.get(f"cursor {reader}", values.get("followed", 0)) for reader in readers}

    async def high_water(self) -> int:
        """See IndexStore."""
        found = await self._cluster.get("meta", [*_cursor_names(), "followed"])
        return max((int(doc["_source"]["value"]) for doc in found.values()), default=0)

    async def present(self, sop_instance_uids: Sequence[str], places: Sequence[Place]) -> tuple[dict[str, Present], dict[Place, Dead]]:
        """See IndexStore."""
        docs = await self._cluster.get("instances", sop_instance_uids, ["record", "deleted"])
        found = {uid: _present(doc["_source"]) for uid, doc in docs.items()}
        by_id = {_dead_id(place): place for place in places}
        dead = await self._cluster.get("meta", list(by_id))
        return found, {by_id[name]: _dead(doc["_source"]) for name, doc in dead.items()}

    async def decided(self, sop_instance_uids: Sequence[str], places: Sequence[Place], decide: Decide) -> bool:
        """See IndexStore."""
        batch = decide(*await self.present(sop_instance_uids, places))
        if batch is None:
            return False
        await self.apply(batch)
        return True

    async def apply(self, batch: Batch) -> None:
        """See IndexStore."""
        writing = _Writing(self._cluster, batch)
        await writing.run()
        if batch.reader:
            await self._cluster.bulk(
                [
                    {"index": {"_index": self._cluster.index("meta"), "_id": f"cursor {batch.reader}"}},
                    {"kind": "cursor", "value": str(batch.sequence)},
                ],
                refresh=False,
            )

    async def search(self, query: Query) -> Page:
        """See IndexStore."""
        return await _Searching(self._cluster, query).page()

    async def records(self, scope: Scope) -> AsyncIterator[list[bytes]]:
        """See IndexStore."""
        async for sources in self._sources(scope, ["record"]):
            yield [_unpacked(source["record"]) for source in sources]

    async def fragments(self, scope: Scope) -> AsyncIterator[list[Fragment]]:
        """See IndexStore."""
        async for sources in self._sources(scope, ["record", "fragment"]):
            yield [_fragment(source) for source in sources]

    async def _sources(self, scope: Scope, fields: list[str]) -> AsyncIterator[list[dict[str, Any]]]:
        if scope.sop_instance_uid:
            yield [await self._one(scope, [*fields, "study", "series", "deleted"])]
            return
        where = [{"term": {"study": scope.study_instance_uid}}]
        if scope.series_instance_uid:
            where.append({"term": {"series": scope.series_instance_uid}})
        found = False
        query: dict[str, Any] = {"bool": {"filter": where}}
        async for page in self._cluster.pages("series", query, ORDER[Level.SERIES], ["study", "series"]):
            for series in page:
                found = True
                live = {"bool": {"filter": [{"term": {field: series[field]}} for field in series] + [{"term": {"deleted": False}}]}}
                async for sources in self._cluster.pages("instances", live, ORDER[Level.INSTANCE], fields):
                    yield sources
        if not found:
            await self._missing(scope, query)

    async def _one(self, scope: Scope, fields: list[str]) -> dict[str, Any]:
        uid = scope.sop_instance_uid
        source = (await self._cluster.get("instances", [uid], fields)).get(uid, {}).get("_source")
        if (
            source is None
            or (scope.study_instance_uid and scope.study_instance_uid != source["study"])
            or (scope.series_instance_uid and scope.series_instance_uid != source["series"])
        ):
            raise errors.NotFound(f"instance {uid} is not here")
        if source["deleted"]:
            raise errors.Gone(f"instance {uid} was deleted")
        return dict(source)

    async def _missing(self, scope: Scope, query: dict[str, Any]) -> None:
        what = f"series {scope.series_instance_uid}" if scope.series_instance_uid else f"study {scope.study_instance_uid}"
        tombstones = await _answered(self._cluster.client.count(index=self._cluster.index("instances"), query=query))
        if tombstones["count"]:
            raise errors.Gone(f"{what} was deleted")
        raise errors.NotFound(f"{what} is not here")

    async def state(self, scope: Scope) -> bytes:
        """See IndexStore. It would be a request to Elasticsearch like the one for the fragments."""
        return b""

    async def tombstones(self, uid: str) -> AsyncIterator[list[Present]]:
        """See IndexStore."""
        named = [{"term": {field: uid}} for field in UID_FIELD.values()]
        query = {"bool": {"filter": [{"term": {"deleted": True}}], "should": named, "minimum_should_match": 1}}
        async for page in self._cluster.pages("instances", query, [{"sop": "asc"}], ["record", "deleted"]):
            yield [_present(source) for source in page]

    async def due(self, before_s: int, after_object: str, limit: int) -> list[tuple[Place, Dead]]:
        """See IndexStore."""
        await _answered(self._cluster.client.indices.refresh(index=self._cluster.index("meta")))
        query = {"bool": {"filter": [{"range": {"due": {"lt": before_s}}}, {"range": {"lies_in": {"gt": after_object}}}]}}
        found: list[tuple[Place, Dead]] = []
        order = [{"lies_in": "asc"}, {"name": "asc"}]
        async for page in self._cluster.pages("meta", query, order, ["value", "name", "lies_in", "decided"]):
            found += [(_named(source["name"]), _dead(source)) for source in page]
            if len(found) >= limit:
                break
        return found[:limit]

    async def unknown_packs(self, objects: Sequence[str]) -> list[str]:
        """See IndexStore."""
        known = await self._cluster.get("meta", [_pack_id(key) for key in objects], False)
        return [key for key in objects if _pack_id(key) not in known]

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
            (await _answered(self._cluster.client.count(index=self._cluster.index(kind), query=query)))["count"] for kind, query in queries
        ]
        return Counts(*totals)

    async def build(self) -> "ElasticsearchStore":
        """See IndexStore."""
        generation = f"{time.strftime('%Y%m%d%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"
        cluster = _Cluster(self._cluster.client, self._cluster.prefix, generation)
        await cluster.create(MAPPINGS)
        return ElasticsearchStore(cluster)

    async def swap(self, built: IndexStore) -> None:
        """See IndexStore."""
        if not isinstance(built, ElasticsearchStore):
            raise TypeError("an Elasticsearch store takes over what an Elasticsearch store built")
        client, prefix = self._cluster.client, self._cluster.prefix
        for kind in MAPPINGS:
            await _answered(client.indices.refresh(index=built._cluster.index(kind)))
        actions: list[dict[str, Any]] = []
        for kind in MAPPINGS:
            try:
                old = (await client.indices.get_alias(name=f"{prefix}-{kind}")).body
            except NotFoundError:
                old = {}
            except (TransportError, ApiError) as error:
                raise errors.Unavailable("Elasticsearch does not answer") from error
            actions += [{"remove_index": {"index": index}} for index in old]
            actions.append({"add": {"index": built._cluster.index(kind), "alias": f"{prefix}-{kind}"}})
        await _answered(client.indices.update_aliases(actions=actions))

    async def close(self) -> None:
        """See IndexStore."""
        await self._cluster.client.close()


def _cursor_names() -> list[str]:
    return ["cursor all", *(f"cursor {number}" for number in range(64))]


def _dead_id(place: Place) -> str:
    return f"dead {place[0]} {place[1]}"


def _name(place: Place) -> str:
    """Return a name whose order is that of places."""
    return f"{place[0]} {place[1]:020d}"


def _named(name: str) -> Place:
    object_key, _, offset = name.rpartition(" ")
    return object_key, int(offset)


def _dead(source: Mapping[str, Any]) -> Dead:
    return Dead(Decision.Kind.Value(source["value"]), source["decided"], source["lies_in"])


def _present(source: Mapping[str, Any]) -> Present:
    record = InstanceRecord.FromString(_unpacked(source["record"]))
    return Present(record.stored, record.version, source["deleted"])


def _pack_id(key: str) -> str:
    return f"pack {key}"


def _fragment(source: Mapping[str, Any]) -> Fragment:
    record = InstanceRecord.FromString(_unpacked(source["record"]))
    dicom_json = _unpacked(source["fragment"])
    location = b"" if dicom_json else record.stored.dicom_json_location.SerializeToString()
    return Fragment(record.stored.sop_instance_uid, record.version, dicom_json, location)


class _Writing:
    """Applies one batch: first instances, then what follows from them."""

    def __init__(self, cluster: _Cluster, batch: Batch) -> None:
        self._cluster = cluster
        self._batch = batch
        self._added: defaultdict[str, list[tuple[str, str, Attributes]]] = defaultdict(list)
        self._recount: set[str] = set()
        self._last: defaultdict[str, int] = defaultdict(int, batch.versions)

    async def run(self) -> None:
        batch = self._batch
        fields = ["study", "deleted", "version"]
        before = await self._cluster.get(
            "instances", [sop for sop, change in batch.changes.items() if not isinstance(change, Move)], fields
        )
        before |= await self._cluster.get("instances", [sop for sop, change in batch.changes.items() if isinstance(change, Move)])
        self._check(before)
        operations: list[dict[str, Any]] = []
        for sop, change in batch.changes.items():
            operations += self._instance(sop, change, before.get(sop))
        studies = await self._cluster.get("studies", sorted({*self._added, *self._recount, *batch.versions}))
        for study, version in batch.versions.items():
            if study not in studies or studies[study]["_source"]["applied"] < version:
                self._recount.add(study)
        for study, doc in studies.items():
            if study in self._added and doc["_source"]["applied"] >= min(batch.changes[sop].version for _, sop, _ in self._added[study]):
                self._recount.add(study)
        # What is dead comes before what takes its place, and what lives again before it is dead no more: after a crash between, the same
        # events decide the same.
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
        await _answered(self._cluster.client.indices.refresh(index=changed))

    def _check(self, before: Mapping[str, dict[str, Any]]) -> None:
        """Compare what is there with what the decisions were made on."""
        for sop, seen in self._batch.seen.items():
            if (change := self._batch.changes.get(sop)) is None:
                continue
            source = before[sop]["_source"] if sop in before else {"version": 0}
            is_applied = source["version"] == change.version and source["study"] == change.stored.study_instance_uid
            if source["version"] != seen and not is_applied:
                raise errors.Unavailable(f"instance {sop} is no longer at version {seen}")

    def _deaths(self) -> list[dict[str, Any]]:
        """Return the operations for what is dead from now on."""
        index = self._cluster.index("meta")
        operations: list[dict[str, Any]] = []
        for place, one in self._batch.dead.items():
            if one is not None:
                due = {"due": one.decided_s} if one.kind in DUE_KINDS else {}
                document = {"name": _name(place), "lies_in": one.object, "decided": one.decided_s, **due}
                operations += [
                    {"index": {"_index": index, "_id": _dead_id(place)}},
                    {"kind": "dead", "value": Decision.Kind.Name(one.kind), **document},
                ]
        return operations

    def _facts(self) -> list[dict[str, Any]]:
        """Return the operations for what is dead no more, packs and poison."""
        documents = {_pack_id(key): ("pack", "") for key in self._batch.packs}
        documents |= {f"poison {one.sequence}": ("poison", one.reason) for one in self._batch.poison}
        index = self._cluster.index("meta")
        operations: list[dict[str, Any]] = [
            {"delete": {"_index": index, "_id": _dead_id(place)}} for place, one in self._batch.dead.items() if one is None
        ]
        for name, (kind, value) in documents.items():
            operations += [{"index": {"_index": index, "_id": name}}, {"kind": kind, "value": value}]
        return operations

    def _instance(self, sop: str, change: Change, before: dict[str, Any] | None) -> list[dict[str, Any]]:
        stored = change.stored
        if before and before["_source"]["version"] >= change.version:
            return []
        record = _packed(InstanceRecord(stored=stored, version=change.version).SerializeToString())
        action = {"_index": self._cluster.index("instances"), "_id": sop}
        if isinstance(change, Move):
            if before is None:
                return []
            self._last[stored.study_instance_uid] = max(self._last[stored.study_instance_uid], change.version)
            return _compared(action, before, {**before["_source"], "record": record, "version": change.version})
        study = stored.study_instance_uid
        self._last[study] = max(self._last[study], change.version)
        if before and not before["_source"]["deleted"]:
            self._recount |= {before["_source"]["study"], study}
        document: dict[str, Any] = {
            "study": study,
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
            dataset = decoded(change.dicom_json)
            attributes = tabulated(dataset)
            derived = terms.derive(dataset, NOT_TERMS_OF_INSTANCE)
            for limit, number in derived.left_out.items():
                telemetry.TERMS_LEFT_OUT.labels(limit).inc(number)
            inline = len(change.dicom_json) <= INLINE_JSON_BYTES or not stored.dicom_json_location.object
            document |= {
                "number": sort_number(attributes, INSTANCE_NUMBER, NUMBER_ABSENT),
                "attributes": _packed(orjson.dumps(attributes)),
                "fragment": _packed(change.dicom_json) if inline else "",
                **_term_fields(derived.terms),
            }
            self._added[study].append((stored.series_instance_uid, sop, attributes))
        return _compared(action, before, document)

    async def _increased(self, study: str, before: dict[str, Any] | None) -> list[dict[str, Any]]:
        summary = StudySummary.from_json(_unpacked(before["_source"]["summary"])) if before else StudySummary()
        added = self._added[study]
        ids = {_series_id(study, series): series for series, _, _ in added}
        docs = await self._cluster.get("series", list(ids))
        by_series = {
            series: SeriesSummary.from_json(_unpacked(docs[one]["_source"]["summary"])) if one in docs else SeriesSummary()
            for one, series in ids.items()
        }
        return self._gathered(study, summary, by_series, added, before, docs)

    async def _recounted(self, study: str, before: dict[str, Any] | None) -> list[dict[str, Any]]:
        live: list[tuple[str, str, Attributes]] = []
        query = {"bool": {"filter": [{"term": {"study": study}}, {"term": {"deleted": False}}]}}
        async for page in self._cluster.pages("instances", query, [{"sop": "asc"}], ["series", "sop", "attributes"]):
            live += [(source["series"], source["sop"], orjson.loads(_unpacked(source["attributes"]))) for source in page]
        by_series = {series: SeriesSummary() for series, _, _ in live}
        known = list(StudySummary.from_json(_unpacked(before["_source"]["summary"])).modalities) if before else []
        docs = await self._cluster.get("series", [_series_id(study, series) for series in {*known, *by_series}])
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
            one = _series_id(study, series)
            operations += self._level("series", one, series_before.get(one), of_series, own)
        applied = max(self._last[study], before["_source"]["applied"] if before else 0)
        # The study last: while it does not say `applied`, its instances count as not yet applied.
        return operations + self._level(
            "studies", study, before, summary, {"study": study, "sort_key": summary.sort_key, "applied": applied}
        )

    def _level(
        self, kind: str, one: str, before: dict[str, Any] | None, summary: StudySummary | SeriesSummary, own: dict[str, Any]
    ) -> list[dict[str, Any]]:
        attributes = summary.attributes()
        document = {
            **own,
            "summary": _packed(summary.to_json()),
            "attributes": _packed(orjson.dumps(attributes)),
            **_term_fields(level_terms(attributes)),
        }
        return _compared({"_index": self._cluster.index(kind), "_id": one}, before, document)


def _compared(action: dict[str, Any], before: Mapping[str, Any] | None, document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the operation that writes a document where it is still as it was read."""
    if before is None:
        return [{"create": action}, document]
    return [{"index": {**action, "if_seq_no": before["_seq_no"], "if_primary_term": before["_primary_term"]}}, document]


def _series_id(study: str, series: str) -> str:
    return f"{study}/{series}"


class _Searching:
    """Answers one query."""

    def __init__(self, cluster: _Cluster, query: Query) -> None:
        self._cluster = cluster
        self._query = query

    async def page(self) -> Page:
        query = self._query
        filters = await self._filters()
        of_instances = query.level is Level.INSTANCE
        fields = [*KEY_FIELDS[query.level], "attributes", *(["fragment"] if needs_metadata(query) and of_instances else [])]
        answer = await _answered(
            self._cluster.client.search(
                index=self._cluster.index(KIND[query.level]),
                query={"bool": {"filter": filters}},
                sort=ORDER[query.level],
                from_=query.offset,
                size=query.limit,
                source_includes=fields,
                track_total_hits=True,
            )
        )
        sources = [hit["_source"] for hit in answer["hits"]["hits"]]
        if needs_metadata(query) and not of_instances:
            for source in sources:
                source["fragment"] = await self._fragment(source)
        parents = await self._parents(sources)
        rows = [self._row(source, parents) for source in sources]
        return Page(rows, max(0, answer["hits"]["total"]["value"] - query.offset - len(rows)) if rows else 0)

    async def _fragment(self, source: Mapping[str, Any]) -> Any:
        """Return the metadata of the instance with the smallest UID of a study or series that has it at hand."""
        fields = KEY_FIELDS[self._query.level]
        answer = await _answered(
            self._cluster.client.search(
                index=self._cluster.index(KIND[Level.INSTANCE]),
                query={"bool": {"filter": [{"term": {"deleted": False}}, *({"term": {field: source[field]}} for field in fields)]}},
                sort=[{"sop": "asc"}],
                size=1,
                source_includes=["fragment"],
            )
        )
        hits = answer["hits"]["hits"]
        return hits[0]["_source"].get("fragment") if hits else None

    def _row(self, source: Mapping[str, Any], parents: Mapping[Level, Mapping[str, Attributes]]) -> bytes:
        query = self._query
        attributes: dict[Level, Attributes] = {query.level: orjson.loads(_unpacked(source["attributes"]))}
        for level, by_id in parents.items():
            attributes[level] = by_id.get(_id_at(level, source), {})
        fragment = _unpacked(source["fragment"]) if source.get("fragment") else b""
        identity = Identity(*(source[field] for field in KEY_FIELDS[query.level]))
        return row(query, identity, attributes, decoded(fragment) if fragment else None)

    async def _parents(self, sources: Sequence[Mapping[str, Any]]) -> dict[Level, dict[str, Attributes]]:
        found: dict[Level, dict[str, Attributes]] = {}
        for level in levels_needed(self._query) - {self._query.level}:
            ids = list({_id_at(level, source) for source in sources})
            docs = await self._cluster.get(KIND[level], ids, ["attributes"])
            found[level] = {one: orjson.loads(_unpacked(doc["_source"]["attributes"])) for one, doc in docs.items()}
        return found

    async def _filters(self) -> list[dict[str, Any]]:
        query = self._query
        filters: list[dict[str, Any]] = []
        if query.study_instance_uid:
            filters.append({"term": {"study": query.study_instance_uid}})
        if query.series_instance_uid:
            filters.append({"term": {"series": query.series_instance_uid}})
        if query.level is Level.INSTANCE:
            filters.append({"term": {"deleted": False}})
        within = [clause for clause in filters if "deleted" not in clause["term"]]
        for group in group_keys(query.keys):
            key = group[0]
            level = key.level or query.level
            field = UID_FIELD.get(key.path[0]) if len(key.path) == 1 else None
            if field and level.value <= query.level.value and key.operation is Operation.EQUAL:
                filters.append({"terms": {field: list(key.values)}})
            elif level is query.level:
                filters.append(_group_query(group))
            else:
                filters.append(await self._joined(group, level, within))
        return filters

    async def _joined(self, group: Sequence[MatchKey], level: Level, within: list[dict[str, Any]]) -> dict[str, Any]:
        """Return which studies or series match keys of another level."""
        shared = min(level, self._query.level, key=lambda one: one.value)
        fields = KEY_FIELDS[shared]
        where = [clause for clause in within if next(iter(clause["term"])) in KEY_FIELDS[level]]
        if level is Level.INSTANCE:
            where.append({"term": {"deleted": False}})
        answer = await _answered(
            self._cluster.client.search(
                index=self._cluster.index(KIND[level]),
                query={"bool": {"filter": [*where, _group_query(group)]}},
                size=0,
                aggs={
                    "shared": {
                        "composite": {"size": JOIN_MAXIMUM + 1, "sources": [{field: {"terms": {"field": field}}} for field in fields]}
                    }
                },
            )
        )
        buckets = answer["aggregations"]["shared"]["buckets"]
        if len(buckets) > JOIN_MAXIMUM:
            raise errors.PayloadTooLarge(f"keys of another level match more than {JOIN_MAXIMUM}: make the search narrower")
        if shared is Level.STUDY:
            return {"terms": {"study": [bucket["key"]["study"] for bucket in buckets]}}
        # A Series Instance UID is unique; its study is checked by the document's own.
        return {"terms": {"series": [bucket["key"]["series"] for bucket in buckets]}}


def _id_at(level: Level, source: Mapping[str, Any]) -> str:
    return source["study"] if level is Level.STUDY else _series_id(source["study"], source["series"])


class ElasticsearchWorkitemStore:
    """WorkitemStore in the index `{prefix}-workitems`."""

    def __init__(self, cluster: _Cluster) -> None:
        self._cluster = cluster

    @classmethod
    async def opened(cls, url: str, prefix: str) -> "ElasticsearchWorkitemStore":
        """Connect, and create the index when it is not there. Raises errors.Unavailable as ElasticsearchStore does."""
        client = await _opened(url)
        cluster = _Cluster(client, prefix)
        try:
            if not await _answered(client.indices.exists(index=cluster.index("workitems"))):
                await cluster.create({"workitems": WORKITEM_MAPPING})
        except BaseException:
            await client.close()
            raise
        return cls(cluster)

    async def cursor(self) -> int:
        """See WorkitemStore."""
        found = await self._cluster.get("workitems", ["cursor"])
        return int(found["cursor"]["_source"]["value"]) if found else 0

    async def apply(self, documents: Sequence[WorkitemDocument], sequence: int) -> None:
        """See WorkitemStore."""
        index = self._cluster.index("workitems")
        operations: list[dict[str, Any]] = []
        for document in {document.workitem_uid: document for document in documents}.values():
            dataset = {} if document.deleted else decoded(document.dicom_json)
            action = {"_index": index, "_id": f"workitem {document.workitem_uid}", "version": document.version, "version_type": "external"}
            operations += [
                {"index": action},
                {
                    "uid": document.workitem_uid,
                    "sort_key": start_of(dataset),
                    "deleted": document.deleted,
                    "dicom_json": _packed(document.dicom_json),
                    **_term_fields(workitem_terms(document, dataset)),
                },
            ]
        await self._cluster.bulk(operations, refresh=True)
        await self._cluster.bulk([{"index": {"_index": index, "_id": "cursor"}}, {"value": str(sequence), "deleted": True}], refresh=False)

    async def clear(self) -> None:
        """See WorkitemStore."""
        await _answered(self._cluster.client.indices.delete(index=self._cluster.index("workitems")))
        await self._cluster.create({"workitems": WORKITEM_MAPPING})

    async def search(self, query: Query) -> Page:
        """See WorkitemStore."""
        filters = [{"term": {"deleted": False}}, *(_group_query(group) for group in group_keys(query.keys))]
        answer = await _answered(
            self._cluster.client.search(
                index=self._cluster.index("workitems"),
                query={"bool": {"filter": filters}},
                sort=[{"sort_key": "asc"}, {"uid": "asc"}],
                from_=query.offset,
                size=query.limit,
                source_includes=["dicom_json"],
                track_total_hits=True,
            )
        )
        hits = answer["hits"]["hits"]
        rows = [workitem_row(query, decoded(_unpacked(hit["_source"]["dicom_json"]))) for hit in hits]
        return Page(rows, max(0, answer["hits"]["total"]["value"] - query.offset - len(rows)) if rows else 0)

    async def close(self) -> None:
        """See WorkitemStore."""
        await self._cluster.client.close()
