"""BlobService: translates between its messages and the domain."""

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
from gantry_blob.storing.request import SecondReading, StoreMessage, StoreRequest, StoreRules
from gantry_blob.storing.second_reader import SecondReaders
from gantry_blob.threads import chunks_in_threads, in_thread
from gantry_runtime import call_context
from gantry_runtime.store_messages import PUT_BYTES, taken_apart
from gantry_runtime.threads import Threads
from gantry_standard import errors

log = logging.getLogger(__name__)

APPLY_BYTES = 256 << 10
"""Number of received bytes of a store request from which a thread call is made."""

HELD_BYTES = 4 << 20
"""Largest number of received bytes of a store request that wait for its thread."""

HELD_MESSAGES = 256
PATIENCE_S = 1.0
"""Seconds that a store request may wait for its client before it may be ended in favour of another."""
DISCARD_S = 2.0
REMOVABLE = "workitems/"
"""Prefix of the objects that RemoveObject may remove. Packs are removed only by the sweeper."""
PAGE_OBJECTS = 1000
PAGE_RESULTS = 1000
PAGE_TRAILER_BYTES = 1 << 20

Messages = AsyncIterator[blob_pb2.StoreInstancesRequest]


@dataclass(frozen=True)
class Pools:
    """Threads for the blocking calls of the store. Reads have their own pool, so that store requests never wait for them."""

    uploads: Threads
    reads: Threads
    others: Threads
    second_readers: SecondReaders


class Gate:
    """Limits the number of calls that run at the same time. Further calls are refused and may be retried.

    If the limit is reached, the call that has waited longest for its client is ended, so clients that stop sending keep nobody out.
    """

    def __init__(self, most: int, what: str) -> None:
        self._free = most
        self._what = what
        self._waiting: dict[asyncio.Timeout, float] = {}
        """When each call that waits for its client began to wait, oldest first, in seconds of the loop's clock."""

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Count as a running call while the context is open.

        Raises:
            errors.Overloaded: the limit is reached, and no call has waited for its client for `PATIENCE_S`.
        """
        if self._free <= 0 and not self._end_one():
            raise errors.Overloaded(f"too many {self._what} at once")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    @contextmanager
    def left(self) -> Iterator[None]:
        """Do not count as a running call while the context is open. Afterwards the limit may be exceeded for a while."""
        self._free += 1
        try:
            yield
        finally:
            self._free -= 1

    def _end_one(self) -> bool:
        """End the call that has waited longest; its place becomes free when it has ended."""
        now = asyncio.get_running_loop().time()
        for timeout, since in self._waiting.items():
            if now - since < PATIENCE_S:
                return False
            del self._waiting[timeout]
            timeout.reschedule(now)
            return True
        return False

    async def next_of(self, messages: Messages) -> blob_pb2.StoreInstancesRequest | None:
        """Wait for the next message of the client; None at the end of the stream.

        Raises:
            errors.Overloaded: another request needed the place.
        """
        try:
            async with asyncio.timeout(None) as timeout:
                self._waiting[timeout] = asyncio.get_running_loop().time()
                try:
                    return await anext(messages, None)
                finally:
                    self._waiting.pop(timeout, None)
        except TimeoutError:
            raise errors.Overloaded("the upload waited for its client while others needed its place") from None


class BlobEdge(BlobServiceServicer):
    """The handlers of BlobService.

    Args:
        is_announcing_possible: returns whether NATS is connected. If not, store requests are refused.
        concurrent_uploads: largest number of store requests at the same time.
        concurrent_reads: largest number of Read calls at the same time.
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
                raise errors.Unavailable("NATS is not connected: stored instances could not be announced")
            start = await _start_of(request_iterator)
            store_request = StoreRequest(self._store, start, self._rules, call_context.caller())
            try:
                await self._receive(store_request, request_iterator)
                await self._finish(store_request, start)
            except BaseException:
                # Not awaited, because it must run even if this call was cancelled. It waits for a running thread call of the request.
                self._pools.uploads.submit(store_request.abort)
                raise
            for begin in range(0, len(store_request.results), PAGE_RESULTS):
                yield blob_pb2.StoreInstancesResponse(parts=store_request.results[begin : begin + PAGE_RESULTS])

    async def StoreWhole(self, request: Any, context: Any) -> blob_pb2.StoreWholeResponse:
        """Store the instances of one small request. One thread call handles all its messages and makes the pack durable.

        Args:
            request: a serialised StoreWholeRequest (`store_messages`).
        """
        with self._uploads.entered():
            if not self._is_announcing_possible():
                raise errors.Unavailable("NATS is not connected: stored instances could not be announced")
            first, *rest = taken_apart(request) or [memoryview(b"")]
            if isinstance(first, memoryview) or not first.HasField("start"):
                raise errors.BadRequest("a store request begins with its start")
            start = first.start
            store_request = StoreRequest(self._store, start, self._rules, call_context.caller())
            try:
                await self._finish(store_request, start, rest)
            except BaseException:
                self._pools.uploads.submit(store_request.abort)
                raise
            return blob_pb2.StoreWholeResponse(parts=store_request.results)

    async def _receive(self, store_request: StoreRequest, requests: Messages) -> None:
        """Pass the messages to a thread in batches. The next batch is received while a thread handles the previous one."""
        batch: list[blob_pb2.StoreInstancesRequest] = []
        size = 0
        working: asyncio.Future[None] | None = None
        try:
            messages = aiter(requests)
            while (message := await self._uploads.next_of(messages)) is not None:
                batch.append(message)
                size += message.ByteSize()  # about len(message.chunk), which would copy the bytes
                if message.HasField("end"):
                    break
                is_worth_it = size >= APPLY_BYTES and (working is None or working.done())
                if is_worth_it or size >= HELD_BYTES or len(batch) >= HELD_MESSAGES:
                    if working is not None:
                        await working
                    working = asyncio.ensure_future(self._apply(store_request, batch))
                    batch, size = [], 0
            if working is not None:
                await working
            await self._apply(store_request, batch)
        finally:
            if working is not None:
                working.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _apply(self, store_request: StoreRequest, messages: Sequence[StoreMessage]) -> None:
        """Pass messages to a thread, and inconsistent parts to the second reader."""
        if reading := await in_thread(self._pools.uploads, store_request.apply, messages):
            await self._read_again(store_request, reading)

    async def _read_again(self, store_request: StoreRequest, reading: SecondReading | None) -> None:
        """Let the second reader try one part after another. Meanwhile the request occupies no thread and does not count in `_uploads`."""
        while reading is not None:
            begin = time.monotonic()
            with self._uploads.left():
                is_readable = await self._pools.second_readers.read(reading.source, reading.target, reading.within_s)
            reading = await in_thread(self._pools.uploads, store_request.resume, is_readable, time.monotonic() - begin)

    async def _finish(self, store_request: StoreRequest, start: blob_pb2.StoreStart, rest: Sequence[StoreMessage] = ()) -> None:
        """Handle the remaining messages, commit and announce. This runs to its end even if the call is cancelled: all data has arrived."""
        task = asyncio.create_task(self._commit(store_request, start, rest))
        self._finishing.add(task)
        task.add_done_callback(self._finished)
        await asyncio.shield(task)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._finishing.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.warning("store request failed after its end", extra={"reason": getattr(error, "message", type(error).__name__)})

    async def _commit(self, store_request: StoreRequest, start: blob_pb2.StoreStart, rest: Sequence[StoreMessage]) -> None:
        def work() -> tuple[SecondReading | None, list[tuple[str, PackEvents | None]]]:
            reading = store_request.apply(rest) if rest else None
            return reading, ([] if reading else store_request.commit())

        reading, committed = await in_thread(self._pools.uploads, work)
        if reading is not None:
            await self._read_again(store_request, reading)
            committed = await in_thread(self._pools.uploads, store_request.commit)
        for key, events in committed:
            await self._announcer.announce(key, events, start.request_id, start.reply_subject)

    async def Read(self, request: blob_pb2.ReadRequest, context: Any) -> AsyncIterator[blob_pb2.ReadResponse]:
        """Read ranges of one object."""
        with self._reads.entered():
            ranges = [(wanted.offset, wanted.length) for wanted in request.ranges]
            if not ranges:
                ranges = [(0, await in_thread(self._pools.reads, self._store.size, request.object))]
            async for chunk in chunks_in_threads(self._pools.reads, self._store.read(request.object, ranges)):
                yield blob_pb2.ReadResponse(data=chunk)

    async def ReadTrailer(self, request: blob_pb2.ReadTrailerRequest, context: Any) -> AsyncIterator[blob_pb2.ReadTrailerResponse]:
        """Return the trailer of one pack, in messages with several instances each."""
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
        """List objects in ascending order of keys."""
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
            raise errors.Forbidden(f"{request.object}: packs are written only by store requests")
        await in_thread(self._pools.others, self._store.put, request.object, request.data, request.replace)
        return blob_pb2.PutObjectResponse()

    async def RemoveObject(self, request: blob_pb2.RemoveObjectRequest, context: Any) -> blob_pb2.RemoveObjectResponse:
        """Remove the copy of a workitem."""
        if not request.object.startswith(REMOVABLE):
            raise errors.Forbidden(f"{request.object}: only copies of workitems can be removed by this call")
        await in_thread(self._pools.others, self._store.remove, request.object)
        return blob_pb2.RemoveObjectResponse()

    async def Verify(self, request: blob_pb2.VerifyRequest, context: Any) -> AsyncIterator[blob_pb2.VerifyResponse]:
        """Read packs and compare them with their digests."""
        if request.object:
            yield await in_thread(self._pools.others, verify_pack, self._store, request.object)
            return
        entries = self._store.list(pack.PREFIX)
        while page := await in_thread(self._pools.others, _page, entries):
            for entry in page:
                yield await in_thread(self._pools.others, verify_pack, self._store, entry.key)

    async def GetStatus(self, request: blob_pb2.GetStatusRequest, context: Any) -> blob_pb2.GetStatusResponse:
        """Return the health of the object store."""
        status = await in_thread(self._pools.others, self._store.status)
        return blob_pb2.GetStatusResponse(
            object_store=self._store.kind, ready=status.ready, explanation=status.explanation, free_bytes=status.free_bytes
        )


async def _discard(requests: Messages) -> None:
    """Read and discard further messages for at most DISCARD_S. If a call ends while its client sends, the client does not get our error."""
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
