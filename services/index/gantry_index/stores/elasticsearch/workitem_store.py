"""The workitem store for many machines: Elasticsearch."""

from collections.abc import Sequence
from typing import Any

from gantry_index.levels.rows import workitem_row
from gantry_index.levels.summary import decoded, start_of, workitem_terms
from gantry_index.stores.elasticsearch.cluster import Cluster, answered, opened, packed, unpacked
from gantry_index.stores.elasticsearch.mappings import WORKITEM_MAPPING, term_fields
from gantry_index.stores.elasticsearch.search import group_query
from gantry_index.stores.port import Page, WorkitemDocument
from gantry_standard.query.matching import Query, group_keys
from gantry_standard.workitems import studies_of


class ElasticsearchWorkitemStore:
    """WorkitemStore in the index `{prefix}-workitems`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    @classmethod
    async def opened(cls, url: str, prefix: str) -> "ElasticsearchWorkitemStore":
        """Connect, and create the index if it does not exist.

        Raises:
            errors.Unavailable: Elasticsearch does not answer.
        """
        client = await opened(url)
        cluster = Cluster(client, prefix)
        try:
            store = cls(cluster)
            if not await answered(client.indices.exists(index=cluster.index("workitems"))):
                await cluster.create({"workitems": WORKITEM_MAPPING})
            elif not await store._is_of_this_format():
                # An older program created the index. It is created again and filled from the stream, because it has only copies.
                await store.clear()
        except BaseException:
            await client.close()
            raise
        return store

    async def _is_of_this_format(self) -> bool:
        """Return whether the index has all fields."""
        index = self._cluster.index("workitems")
        mappings = await answered(self._cluster.client.indices.get_mapping(index=index))
        return WORKITEM_MAPPING.keys() <= set(mappings[index]["mappings"].get("properties", ()))

    async def cursor(self) -> int:
        """See WorkitemStore."""
        documents = await self._cluster.get("workitems", ["cursor"])
        return int(documents["cursor"]["_source"]["value"]) if documents else 0

    async def apply(self, documents: Sequence[WorkitemDocument], sequence: int) -> None:
        """See WorkitemStore."""
        index = self._cluster.index("workitems")
        operations: list[dict[str, Any]] = []
        for document in {document.workitem_uid: document for document in documents}.values():
            dataset = {} if document.deleted else decoded(document.dicom_json)
            studies = sorted(studies_of(dataset))
            action = {"_index": index, "_id": f"workitem {document.workitem_uid}", "version": document.version, "version_type": "external"}
            operations += [
                {"index": action},
                {
                    "uid": document.workitem_uid,
                    "sort_key": start_of(dataset),
                    "deleted": document.deleted,
                    "studies": studies,
                    "studies_count": len(studies),
                    "dicom_json": packed(document.dicom_json),
                    **term_fields(workitem_terms(document, dataset)),
                },
            ]
        await self._cluster.bulk(operations, refresh=True)
        await self._cluster.bulk([{"index": {"_index": index, "_id": "cursor"}}, {"value": str(sequence), "deleted": True}], refresh=False)

    async def clear(self) -> None:
        """See WorkitemStore."""
        await answered(self._cluster.client.indices.delete(index=self._cluster.index("workitems")))
        await self._cluster.create({"workitems": WORKITEM_MAPPING})

    async def search(self, query: Query) -> Page:
        """See WorkitemStore."""
        filters: list[dict[str, Any]] = [{"term": {"deleted": False}}, *(group_query(group) for group in group_keys(query.keys))]
        if query.visible_studies is not None:
            # The workitem refers to at least one study, and all its studies are visible.
            seen = {"terms": sorted(query.visible_studies), "minimum_should_match_field": "studies_count"}
            filters += [{"range": {"studies_count": {"gte": 1}}}, {"terms_set": {"studies": seen}}]
        answer = await answered(
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
        rows = [workitem_row(query, decoded(unpacked(hit["_source"]["dicom_json"]))) for hit in hits]
        return Page(rows, max(0, answer["hits"]["total"]["value"] - query.offset - len(rows)) if rows else 0)

    async def close(self) -> None:
        """See WorkitemStore."""
        await self._cluster.client.close()
