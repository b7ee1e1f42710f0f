"""BlobService over real gRPC in the process of the test, on the test's own store, and a client of it."""

import contextlib
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from gantry.blob.v1 import blob_pb2
from gantry.blob.v1.blob_pb2_grpc import BlobServiceStub, add_BlobServiceServicer_to_server
from gantry.events.v1 import events_pb2
from gantry.index.v1 import index_pb2
from gantry.index.v1.index_pb2_grpc import IndexServiceServicer, IndexServiceStub, add_IndexServiceServicer_to_server
from gantry_blob.edge import BlobEdge, Pools
from gantry_blob.packs.announcer import Announcer, AnnouncerTimes
from gantry_blob.stores.directory import DirectoryStore
from gantry_blob.stores.port import ObjectStore
from gantry_blob.stores.s3 import S3Store
from gantry_blob.storing.request import StoreRules
from gantry_blob.storing.second_reader import CONCURRENT, SecondReaders
from gantry_runtime.events import streams
from gantry_runtime.rpc import channels, rpc_errors
from gantry_runtime.store_messages import SERIALISED
from gantry_runtime.threads import Threads

PART_BYTES = 5 << 20


@contextlib.contextmanager
def s3_store(settings: dict[str, str], bucket: str = "") -> Iterator[S3Store]:
    """Open a store in a new bucket."""
    store = S3Store(
        settings["GANTRY_S3_ENDPOINT"],
        settings["GANTRY_S3_ACCESS_KEY"],
        settings["GANTRY_S3_SECRET_KEY"],
        bucket or f"test-{uuid.uuid4().hex}",
        part_bytes=PART_BYTES,
        timeout_s=10,
    )
    try:
        yield store
    finally:
        store.close()


@contextlib.contextmanager
def a_store(kind: str, directory: Path, request: Any) -> Iterator[ObjectStore]:
    """Open a store of a kind: `directory`, or `s3` on the real server."""
    if kind == "directory":
        yield DirectoryStore(directory, reserve_percent=0)
    else:
        with s3_store(request.getfixturevalue("s3_settings")) as store:
            yield store


class KnownPacks(IndexServiceServicer):
    """An index that knows the packs in `known`, and nothing else."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.asked: list[list[str]] = []

    async def FilterUnknownPacks(self, request: index_pb2.FilterUnknownPacksRequest, context: Any) -> index_pb2.FilterUnknownPacksResponse:
        """Record the request and answer it."""
        self.asked.append(list(request.objects))
        return index_pb2.FilterUnknownPacksResponse(objects=[key for key in request.objects if key not in self.known])


@dataclass
class RunningBlob:
    """A running service."""

    stub: Any
    store: ObjectStore
    announcer: Announcer
    index: KnownPacks
    client: Client
    edge: BlobEdge
    port: int

    async def store_parts(
        self, parts: Sequence[bytes], study: str = "", reply_subject: str = "", chunk_bytes: int = 1 << 20, end: bool = True
    ) -> list[blob_pb2.PartResult]:
        """Store parts as the gateway does; return one result per part."""
        with rpc_errors.translated("blob"):
            messages = upload_messages(parts, study, reply_subject, chunk_bytes, end)
            return [part async for answer in self.stub.StoreInstances(messages, timeout=60) for part in answer.parts]

    async def read(self, key: str, ranges: Iterable[tuple[int, int]]) -> bytes:
        """Read ranges over gRPC."""
        wanted = [blob_pb2.Range(offset=offset, length=length) for offset, length in ranges]
        with rpc_errors.translated("blob"):
            return b"".join([m.data async for m in self.stub.Read(blob_pb2.ReadRequest(object=key, ranges=wanted), timeout=30)])

    def packs(self) -> list[str]:
        """Return the keys of all packs."""
        return [entry.key for entry in self.store.list("packs/")]

    async def trailer(self, key: str) -> list[blob_pb2.StoredInstance]:
        """Read the facts of a pack over gRPC."""
        with rpc_errors.translated("blob"):
            request = blob_pb2.ReadTrailerRequest(object=key)
            return [instance async for m in self.stub.ReadTrailer(request, timeout=30) for instance in m.instances]


async def upload_messages(
    parts: Iterable[bytes], study: str = "", reply_subject: str = "", chunk_bytes: int = 1 << 20, end: bool = True
) -> AsyncIterator[blob_pb2.StoreInstancesRequest]:
    """Yield what the gateway sends for a request."""
    start = blob_pb2.StoreStart(request_id="request-1", reply_subject=reply_subject, collection=study)
    yield blob_pb2.StoreInstancesRequest(start=start)
    for number, part in enumerate(parts):
        yield blob_pb2.StoreInstancesRequest(part=blob_pb2.PartStart(part_number=number, content_type="application/dicom"))
        for begin in range(0, len(part), chunk_bytes):
            yield blob_pb2.StoreInstancesRequest(chunk=part[begin : begin + chunk_bytes])
    if end:
        yield blob_pb2.StoreInstancesRequest(end=blob_pb2.StoreEnd())


@asynccontextmanager
async def running_blob(
    store: ObjectStore,
    nats_url: str,
    rules: StoreRules | None = None,
    times: AnnouncerTimes | None = None,
    concurrent_uploads: int = 64,
    second_readers: int = 32,
) -> AsyncIterator[RunningBlob]:
    """Serve a store over gRPC; its announcer is there but does not run."""
    index = KnownPacks()
    async with contextlib.AsyncExitStack() as stack:
        *threads, readers = (stack.enter_context(Threads(most, "test")) for most in (16, 8, 4, CONCURRENT))
        pools = Pools(*threads, SecondReaders(readers, most=second_readers))
        client, connected = await stack.enter_async_context(streams.connecting(nats_url, "test-blob"))
        await connected
        await streams.ensure_stream(client.jetstream(), streams.STORE)
        publisher = streams.Publisher(client)
        index_port = await stack.enter_async_context(
            channels.serving(lambda server: add_IndexServiceServicer_to_server(index, server), "127.0.0.1:0", drain_s=0)
        )
        index_stub = IndexServiceStub(await stack.enter_async_context(channels.channel(f"127.0.0.1:{index_port}")))
        announcer = Announcer(store, publisher, index_stub, pools.others, times or AnnouncerTimes())
        edge = BlobEdge(store, announcer, rules or StoreRules(), pools, lambda: publisher.is_connected, concurrent_uploads)
        port = await stack.enter_async_context(
            channels.serving(lambda server: add_BlobServiceServicer_to_server(edge, server), "127.0.0.1:0", drain_s=0, as_bytes=SERIALISED)
        )
        stub = BlobServiceStub(await stack.enter_async_context(channels.channel(f"127.0.0.1:{port}")))
        yield RunningBlob(stub, store, announcer, index, client, edge, port)


async def announced(client: Client, pack: str) -> list[events_pb2.InstancesStored]:
    """Return all events about a pack that are on the stream, in their order."""
    found = []
    async for batch in streams.read_from(client.jetstream(), streams.STORE, 0, wait_s=0.2):
        if not batch:
            return found
        for message in batch:
            event = events_pb2.InstancesStored.FromString(message.data)
            if event.object == pack:
                assert message.subject == f"store.{streams.partition_of(event.collection)}.stored"
                found.append(event)
    return found
