"""The Elasticsearch client, which only this module imports, and the indices of one index generation."""

import base64
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any, TypeVar

import orjson
from elasticsearch import ApiError, AsyncElasticsearch, NotFoundError, TransportError

from gantry_index.stores.port import PAGE
from gantry_standard import errors
from gantry_standard.query.terms import MAXIMUM_TERMS

T = TypeVar("T")
TIMEOUT_S = 30.0
BULK_BYTES = 512 << 10
"""Size in bytes above which the body of a bulk request is split."""

SETTINGS = {
    "number_of_shards": 1,
    "auto_expand_replicas": "0-1",
    "refresh_interval": "-1",
    "max_result_window": 110_000,
    # A term makes at most two of them: its item, and the item of the outermost sequence
    "mapping": {"nested_objects": {"limit": 2 * MAXIMUM_TERMS}},
}


async def answered(call: Awaitable[T]) -> T:
    """Await a call of the client, and translate its exceptions to Unavailable."""
    try:
        return await call
    except (TransportError, ApiError) as error:
        raise errors.Unavailable(f"Elasticsearch failed: {type(error).__name__}") from error


def packed(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unpacked(text: str) -> bytes:
    return base64.b64decode(text)


UNPARSABLE = frozenset({"document_parsing_exception", "mapper_parsing_exception", "max_bytes_length_exceeded_exception"})
"""Types of errors that are caused by the document itself: it has more nested documents, longer terms or other types of values than the
mapping allows. All other errors (a read-only index, a full disk, a mapping of another version) can be repaired in the cluster."""


def _is_unparsable(error: Mapping[str, Any]) -> bool:
    """Return whether an error of a bulk item, or its cause, is one of the types that are caused by the document itself."""
    if error["type"] in UNPARSABLE:
        return True
    return "caused_by" in error and _is_unparsable(error["caused_by"])


def _bounded(operations: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Split operations into bodies of about BULK_BYTES. An action and its document stay in one body."""
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


class Cluster:
    """One client, and the names of the indices of one index generation."""

    def __init__(self, client: AsyncElasticsearch, prefix: str, generation: str = "") -> None:
        self.client = client
        self.prefix = prefix
        self.generation = generation

    def index(self, kind: str) -> str:
        """Return the name of an index of this generation, or the alias for the index of the current generation."""
        return f"{self.prefix}-{kind}" + (f"-{self.generation}" if self.generation else "")

    @property
    def outbox(self) -> str:
        """Name of the index of the outbox, which is the same for all generations."""
        return f"{self.prefix}-outbox"

    async def create_outbox(self, mapping: dict[str, Any]) -> None:
        """Create the index of the outbox if it does not exist."""
        if not await answered(self.client.indices.exists(index=self.outbox)):
            mappings = {"dynamic": "strict", "properties": mapping}
            await answered(self.client.indices.create(index=self.outbox, settings=SETTINGS, mappings=mappings))

    async def create(self, mappings: Mapping[str, dict[str, Any]]) -> None:
        """Create the indices of this generation."""
        for kind, properties in mappings.items():
            mapping = {"dynamic": "strict", "properties": properties}
            await answered(self.client.indices.create(index=self.index(kind), settings=SETTINGS, mappings=mapping))

    async def behind(self, alias: str) -> list[str]:
        """Return the names of the indices that an alias refers to."""
        try:
            return list((await self.client.indices.get_alias(name=alias)).body)
        except NotFoundError:
            return []
        except (TransportError, ApiError) as error:
            raise errors.Unavailable("Elasticsearch does not answer") from error

    async def bulk(self, operations: list[dict[str, Any]], *, refresh: bool) -> list[str]:
        """Write operations with bulk requests. An operation whose external version is not newer counts as written.

        Returns:
            The ids of outbox rows that should have been created but existed already.

        Raises:
            errors.Unavailable: Elasticsearch is busy or refuses writes for now, or another process changed a document: read it again.
            errors.CorruptInstance: Elasticsearch can never parse a document.
        """
        parts = _bounded(operations)
        existing: list[str] = []
        for number, part in enumerate(parts, 1):
            existing += await self._bulk(part, refresh=refresh and number == len(parts))
        return existing

    async def _bulk(self, operations: list[dict[str, Any]], *, refresh: bool) -> list[str]:
        answer = await answered(self.client.bulk(operations=operations, refresh=refresh))
        existing: list[str] = []
        if not answer["errors"]:
            return existing
        targets: list[dict[str, Any]] = [action.get("index") or action.get("delete") or {} for action in operations if len(action) == 1]
        by_version = {target["_id"] for target in targets if isinstance(target, dict) and "version" in target}
        for item in answer["items"]:
            (result,) = item.values()
            status = result["status"]
            # Deleting a document that does not exist gives 404 without an error.
            if "error" not in result or (status == 409 and result["_id"] in by_version):
                continue
            if status == 409 and result["_index"] == self.outbox:
                existing.append(result["_id"])
                continue
            if _is_unparsable(result["error"]):
                raise errors.CorruptInstance(f"Elasticsearch cannot parse the document {result['_id']}: {result['error']['type']}")
            raise errors.Unavailable(f"Elasticsearch: {result['error']['type']}")
        return existing

    async def get(self, kind: str, ids: Sequence[str], source: bool | list[str] = True) -> dict[str, dict[str, Any]]:
        """Return the existing documents by id, in their current state and not that of the last refresh."""
        return await self.get_from(self.index(kind), ids, source)

    async def get_from(self, index: str, ids: Sequence[str], source: bool | list[str] = True) -> dict[str, dict[str, Any]]:
        """Return the existing documents of an index, as `get` does."""
        documents: dict[str, dict[str, Any]] = {}
        for start in range(0, len(ids), PAGE):
            docs = [{"_index": index, "_id": one, "_source": source} for one in ids[start : start + PAGE]]
            answer = await answered(self.client.mget(docs=docs))
            if any("error" in doc for doc in answer["docs"]):
                raise errors.Unavailable("Elasticsearch could not read a document")
            documents.update({doc["_id"]: doc for doc in answer["docs"] if doc["found"]})
        return documents

    async def pages(self, kind: str, query: dict[str, Any], sort: list[Any], source: list[str]) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield the sources of all hits in order, PAGE at a time."""
        async for page in self.pages_of(self.index(kind), query, sort, source):
            yield page

    async def pages_of(self, index: str, query: dict[str, Any], sort: list[Any], source: list[str]) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield the sources of all hits in an index, as `pages` does."""
        after: list[Any] | None = None
        while True:
            answer = await answered(
                self.client.search(
                    index=index,
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


async def opened(url: str) -> AsyncElasticsearch:
    client = AsyncElasticsearch([part.strip() for part in url.split(",")], request_timeout=TIMEOUT_S, retry_on_timeout=False)
    try:
        await answered(client.info())
    except errors.Unavailable:
        await client.close()
        raise
    return client
