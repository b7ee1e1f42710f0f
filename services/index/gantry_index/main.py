"""gantry-index: opens the index store, follows the streams, and serves IndexService."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from gantry.blob.v1.blob_pb2_grpc import BlobServiceStub
from gantry.index.v1.index_pb2_grpc import add_IndexServiceServicer_to_server
from gantry_index.applying.reader import Reader
from gantry_index.applying.workitems import WorkitemReader
from gantry_index.edge import IndexEdge
from gantry_index.service import Following
from gantry_index.settings import IndexSettings
from gantry_index.stores.port import IndexStore, WorkitemStore
from gantry_index.stores.sqlite.store import SqliteStore
from gantry_index.stores.sqlite.workitem_store import SqliteWorkitemStore
from gantry_runtime import process, telemetry
from gantry_runtime.events import streams
from gantry_runtime.process import Process
from gantry_runtime.rpc import channels
from gantry_standard import errors

T = TypeVar("T")


async def stores(process: Process, settings: IndexSettings) -> tuple[IndexStore, WorkitemStore]:
    """Open the stores; wait until Elasticsearch answers."""
    store: IndexStore
    workitems: WorkitemStore
    if settings.index_store == "sqlite":
        store = await asyncio.to_thread(SqliteStore, settings.index_directory, settings.index_sqlite_readers)
        workitems = await asyncio.to_thread(SqliteWorkitemStore, settings.index_directory)
    else:
        # Imported only when needed, because the Elasticsearch client is large and slow to import.
        from gantry_index.stores.elasticsearch.store import ElasticsearchStore
        from gantry_index.stores.elasticsearch.workitem_store import ElasticsearchWorkitemStore

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
    client, connected = await process.stack.enter_async_context(streams.connecting(settings.nats_url, "gantry-index"))
    channel = await process.stack.enter_async_context(channels.channel(settings.blob_address))
    blob = BlobServiceStub(channel)
    reader = Reader(store, blob, client, settings.on_duplicate, settings.study_settled_s)
    following = Following(reader, blob, client)
    workitems = WorkitemReader(workitem_store, client)
    edge = IndexEdge(following, workitems, blob, client, settings.index_search_maximum, settings.index_current_timeout_s)
    await process.stack.enter_async_context(
        channels.serving(lambda server: add_IndexServiceServicer_to_server(edge, server), settings.index_listen)
    )

    async def ready() -> str:
        return reader.problem or ("" if client.is_connected else "NATS does not answer")

    await process.stack.enter_async_context(telemetry.admin(settings.index_admin_listen, ready))
    process.watch(_after(connected, following.run()), "following")
    process.watch(_after(connected, workitems.run()), "workitems")
    process.watch(_after(connected, reader.changes.run()), "changes")
    process.watch(_after(connected, reader.heartbeat()), "heartbeat")


async def _after(connected: asyncio.Task[None], work: Coroutine[Any, Any, None]) -> None:
    await asyncio.shield(connected)
    await work


def main() -> int:
    """Run index."""
    return process.run("index", IndexSettings, opens)


if __name__ == "__main__":
    sys.exit(main())
