"""Queries in Elasticsearch's language: keys, and the search for studies, series and instances."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gantry_index.levels.rows import Identity, levels_needed, needs_metadata, row
from gantry_index.levels.summary import SERIES_UID, SOP_UID, STUDY_UID, Attributes, decoded
from gantry_index.stores.elasticsearch.cluster import Cluster, answered, unpacked
from gantry_index.stores.elasticsearch.mappings import AFTER_SEPARATOR, KEY_FIELDS, KIND, SEPARATOR, series_id
from gantry_index.stores.port import Page
from gantry_standard import errors
from gantry_standard.query.levels import Level
from gantry_standard.query.matching import MatchKey, Operation, Query, group_keys
from gantry_standard.query.terms import PER_FRAME_FUNCTIONAL_GROUPS

JOIN_MAXIMUM = 10_000
"""Largest number of studies or series that matching keys of another level may match."""

UID_LEVEL = {STUDY_UID: Level.STUDY, SERIES_UID: Level.SERIES, SOP_UID: Level.INSTANCE}
IN_STUDIES = {"bool": {"must_not": {"term": {"series": ""}}}}
"""Filter for the instances that belong to a study."""
ORDER: dict[Level, list[Any]] = {
    Level.STUDY: [{"sort_key": "desc"}, {"study": "asc"}],
    Level.SERIES: [{"number": "asc"}, {"series": "asc"}, {"study": "asc"}],
    Level.INSTANCE: [{"number": "asc"}, {"sop": "asc"}],
}


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


def group_query(group: Sequence[MatchKey]) -> dict[str, Any]:
    """Return the query for keys that must match in the same item. A key with ABSENT matches if no item has the attribute."""
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


class Searching:
    """Answers one query."""

    def __init__(self, cluster: Cluster, query: Query) -> None:
        self._cluster = cluster
        self._query = query

    async def page(self) -> Page:
        query = self._query
        filters = await self._filters()
        of_instances = query.level is Level.INSTANCE
        fields = [*KEY_FIELDS[query.level], "attributes", *(["fragment"] if needs_metadata(query) and of_instances else [])]
        answer = await answered(
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
        """Return the metadata of the instance with the smallest UID of a study or series, of those whose metadata is in the index."""
        fields = zip(KEY_FIELDS[Level.INSTANCE], KEY_FIELDS[self._query.level], strict=False)
        answer = await answered(
            self._cluster.client.search(
                index=self._cluster.index(KIND[Level.INSTANCE]),
                query={"bool": {"filter": [{"term": {"deleted": False}}, *({"term": {field: source[own]}} for field, own in fields)]}},
                sort=[{"sop": "asc"}],
                size=1,
                source_includes=["fragment"],
            )
        )
        hits = answer["hits"]["hits"]
        return hits[0]["_source"].get("fragment") if hits else None

    def _row(self, source: Mapping[str, Any], parents: Mapping[Level, Mapping[str, Attributes]]) -> bytes:
        query = self._query
        attributes: dict[Level, Attributes] = {query.level: orjson.loads(unpacked(source["attributes"]))}
        for level, by_id in parents.items():
            attributes[level] = by_id.get(self._id_at(level, source), {})
        fragment = unpacked(source["fragment"]) if source.get("fragment") else b""
        identity = Identity(*(source[field] for field in KEY_FIELDS[query.level]))
        return row(query, identity, attributes, decoded(fragment) if fragment else None)

    async def _parents(self, sources: Sequence[Mapping[str, Any]]) -> dict[Level, dict[str, Attributes]]:
        parents: dict[Level, dict[str, Attributes]] = {}
        for level in levels_needed(self._query) - {self._query.level}:
            ids = list({self._id_at(level, source) for source in sources})
            docs = await self._cluster.get(KIND[level], ids, ["attributes"])
            parents[level] = {one: orjson.loads(unpacked(doc["_source"]["attributes"])) for one, doc in docs.items()}
        return parents

    async def _filters(self) -> list[dict[str, Any]]:
        query = self._query
        filters = self._within(query.level)
        if query.level is Level.INSTANCE:
            filters.append({"term": {"deleted": False}})
            if not query.collection:
                filters.append(IN_STUDIES)
        for group in group_keys(query.keys):
            key = group[0]
            level = key.level or query.level
            of_level = UID_LEVEL.get(key.path[0]) if len(key.path) == 1 else None
            if of_level and level.value <= query.level.value and key.operation is Operation.EQUAL:
                filters.append({"terms": {KEY_FIELDS[query.level][of_level.value - 1]: list(key.values)}})
            elif level is query.level:
                filters.append(group_query(group))
            else:
                filters.append(await self._joined(group, level))
        return filters

    def _within(self, level: Level) -> list[dict[str, Any]]:
        """Return the filters of a level for the collection and series of the query, and for the studies that the caller may see."""
        query = self._query
        named = zip(KEY_FIELDS[level], (query.collection, query.series_instance_uid), strict=False)
        filters: list[dict[str, Any]] = [{"term": {field: uid}} for field, uid in named if uid]
        if query.visible_studies is not None:
            filters.append({"terms": {KEY_FIELDS[level][0]: sorted(query.visible_studies)}})
        return filters

    async def _joined(self, group: Sequence[MatchKey], level: Level) -> dict[str, Any]:
        """Return the studies or series that match keys of another level.

        Raises:
            errors.PayloadTooLarge: there are more than JOIN_MAXIMUM.
        """
        shared = min(level, self._query.level, key=lambda one: one.value)
        fields = KEY_FIELDS[level][: shared.value]
        own = KEY_FIELDS[self._query.level][shared.value - 1]
        where = self._within(level)
        if level is Level.INSTANCE:
            where.append({"term": {"deleted": False}})
        answer = await answered(
            self._cluster.client.search(
                index=self._cluster.index(KIND[level]),
                query={"bool": {"filter": [*where, group_query(group)]}},
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
        # A Series Instance UID is unique; its study is checked by the document's own.
        return {"terms": {own: [bucket["key"][fields[-1]] for bucket in buckets]}}

    def _id_at(self, level: Level, source: Mapping[str, Any]) -> str:
        """Return the id of the study or series that a document of the query's level belongs to."""
        study = source[KEY_FIELDS[self._query.level][0]]
        return study if level is Level.STUDY else series_id(study, source["series"])
