"""The index process: opens what the settings name, and runs."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from gantry.blob.v1.blob_pb2_grpc import BlobServiceStub
from gantry.index.v1.index_pb2_grpc import add_IndexServiceServicer_to_server
from gantry_index.edge import IndexEdge
from gantry_index.elasticsearch_store import ElasticsearchStore, ElasticsearchWorkitemStore
from gantry_index.reader import Reader
from gantry_index.service import Following
from gantry_index.sqlite_store import SqliteStore, SqliteWorkitemStore
from gantry_index.store import IndexStore, WorkitemStore
from gantry_index.workitems import WorkitemReader
from gantry_runtime import events, process, rpc, telemetry
from gantry_runtime.process import Process, ProcessSettings
from gantry_runtime.settings import setting
from gantry_standard import errors

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class IndexSettings(ProcessSettings):
    """What index can be told."""

    index_store: Literal["sqlite", "elasticsearch"] = setting("sqlite", "Where facts are kept: sqlite or elasticsearch.")
    index_directory: Path = setting(Path(".gantry/index"), "Directory of the SQLite files.")
    elasticsearch_url: str = setting("http://127.0.0.1:9200", "Elasticsearch, or several nodes separated by commas.")
    elasticsearch_prefix: str = setting("gantry", "What the names of all its indices begin with.")
    index_listen: str = setting("127.0.0.1:7002", "HOST:PORT of index's gRPC.")
    index_admin_listen: str = setting("127.0.0.1:7102", "HOST:PORT of index's /metrics and /healthz.")
    blob_address: str = setting("127.0.0.1:7001", "HOST:PORT of blob.")
    on_duplicate: Literal["reject", "replace"] = setting(
        "reject", "What becomes of another content under a SOP Instance UID that is there: reject (failure reason 0111H) or replace."
    )
    index_search_maximum: int = setting(10_000, "Most rows that index gives for one search, whatever limit is asked for.")
    index_current_timeout_s: float = setting(3.0, "Seconds that a worklist search with no-cache waits for the stream.")
    index_sqlite_readers: int = setting(4, "Threads that read SQLite at the same time.")

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not 1 <= self.index_search_maximum <= 10_000:
            raise ValueError(f"GANTRY_INDEX_SEARCH_MAXIMUM={self.index_search_maximum}: expected 1 to 10000")


async def stores(process: Process, settings: IndexSettings) -> tuple[IndexStore, WorkitemStore]:
    """Open the stores; wait for Elasticsearch where it is not there yet."""
    store: IndexStore
    workitems: WorkitemStore
    if settings.index_store == "sqlite":
        store = await asyncio.to_thread(SqliteStore, settings.index_directory, settings.index_sqlite_readers)
        workitems = await asyncio.to_thread(SqliteWorkitemStore, settings.index_directory)
    else:
        url, prefix = settings.elasticsearch_url, settings.elasticsearch_prefix
        store = await _when_there(lambda: ElasticsearchStore.opened(url, prefix))
        workitems = await _when_there(lambda: ElasticsearchWorkitemStore.opened(url, prefix))
    process.stack.push_async_callback(store.close)
    process.stack.push_async_callback(workitems.close)
    return store, workitems


async def _when_there(opened: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await opened()
        except errors.Unavailable:
            await asyncio.sleep(0.5)


async def opens(process: Process, settings: IndexSettings) -> None:
    """Open everything and begin to follow the streams."""
    store, workitem_store = await stores(process, settings)
    client, connected = await process.stack.enter_async_context(events.connecting(settings.nats_url, "gantry-index"))
    channel = await process.stack.enter_async_context(rpc.channel(settings.blob_address))
    blob = BlobServiceStub(channel)
    reader = Reader(store, blob, client, settings.on_duplicate)
    following = Following(reader, blob, client)
    workitems = WorkitemReader(workitem_store, client)
    edge = IndexEdge(following, workitems, blob, client, settings.index_search_maximum, settings.index_current_timeout_s)
    await process.stack.enter_async_context(
        rpc.serving(lambda server: add_IndexServiceServicer_to_server(edge, server), settings.index_listen)
    )

    async def ready() -> str:
        return reader.problem or ("" if client.is_connected else "NATS does not answer")

    await process.stack.enter_async_context(telemetry.admin(settings.index_admin_listen, ready))
    process.watch(_after(connected, following.run()), "following")
    process.watch(_after(connected, workitems.run()), "workitems")
    process.watch(_after(connected, reader.heartbeat()), "heartbeat")


async def _after(connected: asyncio.Task[None], work: Coroutine[Any, Any, None]) -> None:
    await asyncio.shield(connected)
    await work


def main() -> int:
    """Run index."""
    return process.run("index", IndexSettings, opens)


if __name__ == "__main__":
    sys.exit(main())
