"""BlobService and IndexService over real gRPC in this process, on the stores of a test and a real NATS of their own."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from gantry.blob.v1 import blob_pb2
from gantry.events.v1.events_pb2 import StoreOutcomes
from gantry.index.v1 import index_pb2
from gantry.index.v1.index_pb2_grpc import IndexServiceStub, add_IndexServiceServicer_to_server
from gantry_blob.packs.sweeper import Sweeper, SweeperTimes
from gantry_index.applying.reader import Reader
from gantry_index.applying.workitems import WorkitemReader
from gantry_index.edge import IndexEdge
from gantry_index.service import Following
from gantry_index.stores.elasticsearch.store import ElasticsearchStore
from gantry_index.stores.elasticsearch.workitem_store import ElasticsearchWorkitemStore
from gantry_index.stores.port import IndexStore, WorkitemStore
from gantry_index.stores.sqlite.store import SqliteStore
from gantry_index.stores.sqlite.workitem_store import SqliteWorkitemStore
from gantry_runtime.events import streams
from gantry_runtime.process import end_tasks
from gantry_runtime.rpc import channels, rpc_errors
from gantry_runtime.threads import Threads
from tests.support.blob_service import RunningBlob, a_store, running_blob
from tests.support.nats_server import NatsServer, until

STORE_SETS = {"one-machine": "directory", "distributed": "s3"}
"""Each set, and its object store."""


class BlobAndIndex:
    """Both services. What they raise is raised here as our errors.

    Attributes:
        refused: why blob refused parts of the last request.
    """

    def __init__(self, blob: RunningBlob, opens: Callable[[], Awaitable[tuple[IndexStore, WorkitemStore]]], threads: Threads) -> None:
        self.blob = blob
        self.refused: list[str] = []
        self._opens = opens
        self._threads = threads
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Start index, without waiting until it is ready."""
        self.store, workitem_store = await self._opens()
        for opened in (self.store, workitem_store):
            self._stack.push_async_callback(opened.close)
        client, stub = self.blob.client, self.blob.stub
        following = Following(Reader(self.store, stub, client), stub, client)
        edge = IndexEdge(following, WorkitemReader(workitem_store, client), stub, client, 1000, 5)
        port = await self._stack.enter_async_context(
            channels.serving(lambda server: add_IndexServiceServicer_to_server(edge, server), "127.0.0.1:0", 0)
        )
        self.index: Any = IndexServiceStub(await self._stack.enter_async_context(channels.channel(f"127.0.0.1:{port}")))
        self._stack.push_async_callback(end_tasks, [asyncio.create_task(following.run())])

    async def stop(self) -> None:
        """Stop index."""
        await self._stack.aclose()

    async def is_ready(self) -> bool:
        """Say whether index follows the stream."""
        return bool((await self.status()).ready)

    async def status(self) -> index_pb2.GetStatusResponse:
        """Return what index says of itself."""
        return await self.index.GetStatus(index_pb2.GetStatusRequest(), timeout=10)

    async def put(self, collection: str, *files: bytes) -> list[int]:
        """Store files into a collection; return of each the outcome that index told, or the reason for which blob refused it."""
        reply = self.blob.client.new_inbox()
        subscription = await self.blob.client.subscribe(reply)
        results = await self.blob.store_parts(files, collection, reply)
        told = {result.part_number: result.failure_reason for result in results if result.failure_reason}
        self.refused[:] = [result.explanation for result in results if result.failure_reason]
        while len(told) < len(files):
            outcomes = StoreOutcomes.FromString((await subscription.next_msg(20)).data)
            told |= {one.part_number: one.outcome for one in outcomes.outcomes}
        await subscription.unsubscribe()
        return [told[number] for number in range(len(files))]

    async def search(self, collection: str, *keys: index_pb2.MatchKey, level: int = index_pb2.LEVEL_INSTANCE) -> list[Any]:
        """Return the rows of a search in a collection."""
        request = index_pb2.SearchRequest(level=level, scope=index_pb2.Scope(collection=collection), keys=keys)
        with rpc_errors.translated("index"):
            answer = await self.index.Search(request, timeout=20)
        return [orjson.loads(row.replace(b"\0", b"BASE")) for row in answer.rows]

    async def records(self, **scope: str) -> list[blob_pb2.StoredInstance]:
        """Return what is known of the instances of a scope."""
        request = index_pb2.GetInstancesRequest(scope=index_pb2.Scope(**scope))
        with rpc_errors.translated("index"):
            return [one.stored async for answer in self.index.GetInstances(request, timeout=20) for one in answer.records]

    async def metadata(self, **scope: str) -> list[Any]:
        """Return the metadata of a scope."""
        request = index_pb2.GetMetadataRequest(scope=index_pb2.Scope(**scope))
        with rpc_errors.translated("index"):
            answers = [one async for answer in self.index.GetMetadata(request, timeout=20) for one in answer.fragments]
        return [orjson.loads(one.dicom_json.replace(b"\0", b"BASE")) for one in answers]

    async def delete(self, **scope: str) -> int:
        """Delete a scope; return how many instances that were."""
        with rpc_errors.translated("index"):
            request = index_pb2.DeleteInstancesRequest(scope=index_pb2.Scope(**scope))
            return int((await self.index.DeleteInstances(request, timeout=20)).deleted)

    async def restore(self, uid: str) -> tuple[int, int, int]:
        """Restore what a UID names; return how many are restored, were here, and are gone."""
        with rpc_errors.translated("index"):
            answer = await self.index.RestoreInstances(index_pb2.RestoreInstancesRequest(uid=uid), timeout=20)
        return answer.restored, answer.here, answer.gone

    async def file(self, stored: blob_pb2.StoredInstance) -> bytes:
        """Return the file of an instance as it was stored."""
        return await self.blob.read(stored.location.object, [(stored.location.offset, stored.location.length)])

    async def reindex(self) -> index_pb2.ReindexResponse:
        """Build index anew from the object store."""
        with rpc_errors.translated("index"):
            answers = [answer async for answer in self.index.Reindex(index_pb2.ReindexRequest(), timeout=100)]
        await until(self.is_ready, 30)
        return answers[-1]

    async def sweep(self) -> None:
        """Take away the bytes of everything that is dead, at once."""
        publisher = streams.Publisher(self.blob.client)
        times = SweeperTimes(after_s=-5, settle_s=0, trash_s=0)
        await Sweeper(self.blob.store, self.blob.announcer, publisher, self.index, self._threads, times).sweep()

    async def problems(self) -> list[str]:
        """Return what `gantry verify` finds."""
        answers = [answer async for answer in self.blob.stub.Verify(blob_pb2.VerifyRequest(), timeout=30)]
        return [problem for answer in answers for problem in answer.problems]


@asynccontextmanager
async def blob_and_index(kind: str, directory: Path, request: pytest.FixtureRequest) -> AsyncIterator[BlobAndIndex]:
    """Run both services on a set of stores, index ready."""
    prefix = f"test-{uuid.uuid4().hex}"

    async def opens() -> tuple[IndexStore, WorkitemStore]:
        if kind == "one-machine":
            return SqliteStore(directory / "index"), SqliteWorkitemStore(directory / "index")
        url = request.getfixturevalue("elasticsearch_url")
        return await ElasticsearchStore.opened(url, prefix), await ElasticsearchWorkitemStore.opened(url, prefix)

    nats = NatsServer(directory / "nats")
    nats.start()
    try:
        with a_store(STORE_SETS[kind], directory / "objects", request) as object_store, Threads(4, "test") as threads:
            async with running_blob(object_store, nats.url) as blob:
                both = BlobAndIndex(blob, opens, threads)
                await both.start()
                try:
                    await until(both.is_ready, 30)
                    yield both
                finally:
                    if isinstance(both.store, ElasticsearchStore):
                        client = both.store._cluster.client
                        for index in await client.indices.get(index=f"{prefix}-*"):
                            await client.indices.delete(index=index)
                    await both.stop()
    finally:
        nats.stop()
