"""BlobService over gRPC: parse, call, reply."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gantry.blob.v1 import blob_pb2
from gantry.blob.v1.blob_pb2_grpc import BlobServiceServicer
from gantry_blob.packs import pack
from gantry_blob.packs.announcement import PackEvents
from gantry_blob.packs.announcer import Announcer
from gantry_blob.packs.verify import verify_pack
from gantry_blob.stores.port import ObjectEntry, ObjectStore
from gantry_blob.storing.request import SecondReading, StoreRules, Upload, UploadMessage
from gantry_blob.storing.second_reader import SecondReaders
from gantry_blob.threads import in_thread, pieces_in_threads
from gantry_runtime import call_context
from gantry_runtime.store_messages import PUT_BYTES, taken_apart
from gantry_runtime.threads import Threads
from gantry_standard import errors

log = logging.getLogger(__name__)

APPLY_BYTES = 256 << 10
"""So much of an upload is worth a visit to a thread."""

HELD_BYTES = 4 << 20
"""Most bytes of an upload that wait for its thread."""

HELD_MESSAGES = 256
DISCARD_S = 2.0
REMOVABLE = "workitems/"
"""Prefix of the objects that others may remove; packs and decisions go by the sweeper only."""
PAGE_OBJECTS = 1000
PAGE_RESULTS = 1000
PAGE_TRAILER_BYTES = 1 << 20

Messages = AsyncIterator[blob_pb2.StoreInstancesRequest]


@dataclass(frozen=True)
class Pools:
    """Threads for the store's blocking calls; uploads never wait for reads."""

    uploads: Threads
    reads: Threads
    others: Threads
    second_readers: SecondReaders


class Gate:
    """Lets a bounded number of calls in; the next ones are told to come again."""

    def __init__(self, most: int, what: str) -> None:
        self._free = most
        self._what = what

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be one of those inside.

        Raises:
            errors.Overloaded: no place is free.
        """
        if self._free <= 0:
            raise errors.Overloaded(f"too many {self._what} at once")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    @contextmanager
    def left(self) -> Iterator[None]:
        """Leave one's place to others for a while. It is taken back in any case, so there may be more inside than places."""
        self._free += 1
        try:
            yield
        finally:
            self._free -= 1


class BlobEdge(BlobServiceServicer):
    """The service.

    Args:
        is_announcing_possible: whether NATS is there; without it no upload begins.
    """

    def __init__(
        self,
        store: ObjectStore,
        announcer: Announcer,
        rules: StoreRules,
        pools: Pools,
        is_announcing_possible: Callable[[], bool],
        concurrent_uploads: int = 64,
        concurrent_reads: int = 512,
    ) -> None:
        self._store = store
        self._announcer = announcer
        self._rules = rules
        self._pools = pools
        self._is_announcing_possible = is_announcing_possible
        self._uploads = Gate(concurrent_uploads, "uploads")
        self._reads = Gate(concurrent_reads, "reads")
        self._finishing: set[asyncio.Task[None]] = set()

    async def StoreInstances(self, request_iterator: Messages, context: Any) -> AsyncIterator[blob_pb2.StoreInstancesResponse]:
        """Store the instances of one request."""
        try:
            async for answer in self._store_instances(request_iterator):
                yield answer
        except errors.GantryError:
            await _discard(request_iterator)
            raise

    async def _store_instances(self, request_iterator: Messages) -> AsyncIterator[blob_pb2.StoreInstancesResponse]:
        with self._uploads.entered():
            if not self._is_announcing_possible():
                raise errors.Unavailable("NATS is not connected: nothing could be announced")
            start = await _start_of(request_iterator)
            upload = Upload(self._store, start, self._rules, call_context.caller())
            try:
                await self._receive(upload, request_iterator)
                await self._finish(upload, start)
            except BaseException:
                # Not awaited: it must happen also when this call was cancelled. It waits for the thread that may be at work.
                self._pools.uploads.submit(upload.abort)
                raise
            for begin in range(0, len(upload.results), PAGE_RESULTS):
                yield blob_pb2.StoreInstancesResponse(parts=upload.results[begin : begin + PAGE_RESULTS])

    async def StoreWhole(self, request: Any, context: Any) -> blob_pb2.StoreWholeResponse:
        """Store the instances of one small request: one visit to a thread takes its messages and makes the pack durable.

        Args:
            request: bytes of a StoreWholeRequest (`store_messages`).
        """
        with self._uploads.entered():
            if not self._is_announcing_possible():
                raise errors.Unavailable("NATS is not connected: nothing could be announced")
            first, *rest = taken_apart(request) or [memoryview(b"")]
            if isinstance(first, memoryview) or not first.HasField("start"):
                raise errors.BadRequest("a store request begins with its start")
            start = first.start
            upload = Upload(self._store, start, self._rules, call_context.caller())
            try:
                await self._finish(upload, start, rest)
            except BaseException:
                self._pools.uploads.submit(upload.abort)
                raise
            return blob_pb2.StoreWholeResponse(parts=upload.results)

    async def _receive(self, upload: Upload, requests: Messages) -> None:
        """Hand the messages to a thread in batches; the next batch gathers while one is worked on."""
        batch: list[blob_pb2.StoreInstancesRequest] = []
        size = 0
        working: asyncio.Future[None] | None = None
        try:
            async for message in requests:
                batch.append(message)
                size += message.ByteSize()  # as good as len(message.chunk), which copies it
                if message.HasField("end"):
                    break
                is_worth_it = size >= APPLY_BYTES and (working is None or working.done())
                if is_worth_it or size >= HELD_BYTES or len(batch) >= HELD_MESSAGES:
                    if working is not None:
                        await working
                    working = asyncio.ensure_future(self._apply(upload, batch))
                    batch, size = [], 0
            if working is not None:
                await working
            await self._apply(upload, batch)
        finally:
            if working is not None:
                working.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _apply(self, upload: Upload, messages: Sequence[UploadMessage]) -> None:
        """Hand messages to a thread, and to the second reader the parts that it may try."""
        if reading := await in_thread(self._pools.uploads, upload.apply, messages):
            await self._read_again(upload, reading)

    async def _read_again(self, upload: Upload, reading: SecondReading | None) -> None:
        """Let the second reader try one part after another. Meanwhile the upload holds neither a thread nor a place of `_uploads`."""
        while reading is not None:
            begin = time.monotonic()
            with self._uploads.left():
                is_readable = await self._pools.second_readers.read(reading.source, reading.target, reading.within_s)
            reading = await in_thread(self._pools.uploads, upload.resume, is_readable, time.monotonic() - begin)

    async def _finish(self, upload: Upload, start: blob_pb2.StoreStart, rest: Sequence[UploadMessage] = ()) -> None:
        """Take the rest of the messages, commit and announce, to the end even when the caller has gone: it is all here."""
        task = asyncio.create_task(self._commit(upload, start, rest))
        self._finishing.add(task)
        task.add_done_callback(self._finished)
        await asyncio.shield(task)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._finishing.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.warning("upload failed after its end", extra={"reason": getattr(error, "message", type(error).__name__)})

    async def _commit(self, upload: Upload, start: blob_pb2.StoreStart, rest: Sequence[UploadMessage]) -> None:
        def work() -> tuple[SecondReading | None, list[tuple[str, PackEvents | None]]]:
            reading = upload.apply(rest) if rest else None
            return reading, ([] if reading else upload.commit())

        reading, committed = await in_thread(self._pools.uploads, work)
        if reading is not None:
            await self._read_again(upload, reading)
            committed = await in_thread(self._pools.uploads, upload.commit)
        for key, events in committed:
            await self._announcer.announce(key, events, start.request_id, start.reply_subject)

    async def Read(self, request: blob_pb2.ReadRequest, context: Any) -> AsyncIterator[blob_pb2.ReadResponse]:
        """Read ranges of one object."""
        with self._reads.entered():
            ranges = [(wanted.offset, wanted.length) for wanted in request.ranges]
            if not ranges:
                ranges = [(0, await in_thread(self._pools.reads, self._store.size, request.object))]
            async for piece in pieces_in_threads(self._pools.reads, self._store.read(request.object, ranges)):
                yield blob_pb2.ReadResponse(data=piece)

    async def ReadTrailer(self, request: blob_pb2.ReadTrailerRequest, context: Any) -> AsyncIterator[blob_pb2.ReadTrailerResponse]:
        """Read the facts of one pack, some instances per message."""
        trailer = await in_thread(self._pools.others, pack.read_trailer, self._store, request.object)
        page, size = blob_pb2.ReadTrailerResponse(), 0
        for instance in trailer.instances:
            if size and size + instance.ByteSize() > PAGE_TRAILER_BYTES:
                yield page
                page, size = blob_pb2.ReadTrailerResponse(), 0
            page.instances.append(instance)
            size += instance.ByteSize()
        if page.instances:
            yield page

    async def ListObjects(self, request: blob_pb2.ListObjectsRequest, context: Any) -> AsyncIterator[blob_pb2.ListObjectsResponse]:
        """List objects by key."""
        entries = self._store.list(request.prefix, request.after)
        while page := await in_thread(self._pools.others, _page, entries):
            yield blob_pb2.ListObjectsResponse(
                objects=[blob_pb2.ObjectEntry(object=entry.key, size_bytes=entry.size_bytes) for entry in page]
            )

    async def PutObject(self, request: blob_pb2.PutObjectRequest, context: Any) -> blob_pb2.PutObjectResponse:
        """Write a small object."""
        if len(request.data) > PUT_BYTES:
            raise errors.PayloadTooLarge(f"{request.object}: {len(request.data)} bytes, expected at most {PUT_BYTES}")
        if request.object.startswith(pack.PREFIX):
            raise errors.Forbidden(f"{request.object}: packs are written by StoreInstances only")
        await in_thread(self._pools.others, self._store.put, request.object, request.data, request.replace)
        return blob_pb2.PutObjectResponse()

    async def RemoveObject(self, request: blob_pb2.RemoveObjectRequest, context: Any) -> blob_pb2.RemoveObjectResponse:
        """Take the copy of a workitem away."""
        if not request.object.startswith(REMOVABLE):
            raise errors.Forbidden(f"{request.object}: only copies of workitems are removed on request")
        await in_thread(self._pools.others, self._store.remove, request.object)
        return blob_pb2.RemoveObjectResponse()

    async def Verify(self, request: blob_pb2.VerifyRequest, context: Any) -> AsyncIterator[blob_pb2.VerifyResponse]:
        """Read packs again and compare."""
        if request.object:
            yield await in_thread(self._pools.others, verify_pack, self._store, request.object)
            return
        entries = self._store.list(pack.PREFIX)
        while page := await in_thread(self._pools.others, _page, entries):
            for entry in page:
                yield await in_thread(self._pools.others, verify_pack, self._store, entry.key)

    async def GetStatus(self, request: blob_pb2.GetStatusRequest, context: Any) -> blob_pb2.GetStatusResponse:
        """Tell how the object store is."""
        status = await in_thread(self._pools.others, self._store.status)
        return blob_pb2.GetStatusResponse(
            object_store=self._store.kind, ready=status.ready, explanation=status.explanation, free_bytes=status.free_bytes
        )


async def _discard(requests: Messages) -> None:
    """Read what the client is still sending, for a while: a client whose call ends while it sends sees a broken call, not our error."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            async for _ in requests:
                pass


async def _start_of(requests: Messages) -> blob_pb2.StoreStart:
    async for message in requests:
        if message.HasField("start"):
            return message.start
        break
    raise errors.BadRequest("a store request begins with its start")


def _page(entries: Iterator[ObjectEntry]) -> list[ObjectEntry]:
    return list(islice(entries, PAGE_OBJECTS))
