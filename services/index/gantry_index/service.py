"""Follows the stream STORE in an index process: creates the stream, runs its readers, and reindexes."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from gantry_index.applying.reader import ALL, Partitions, Reader
from gantry_index.applying.reindex import Progress, Rebuild
from gantry_index.stores.port import Batch
from gantry_runtime.events import streams
from gantry_runtime.process import end_tasks
from gantry_standard import errors

if TYPE_CHECKING:
    from gantry.blob.v1.blob_pb2_grpc import BlobServiceAsyncStub

log = logging.getLogger(__name__)

UNNAMED = "unnamed"
"""Generation of a stream whose metadata does not name one."""


class Following:
    """Owns the stream STORE, and ensures that the cursors of the index store belong to it.

    A store of an older program that cannot be migrated in place is not used until it is reindexed. A store that never followed a stream is
    first built from the object store. A lost stream is created again, with sequences above all cursors. A stream of another generation, or
    one that ends before the cursor, is an error that an operator must resolve.
    """

    def __init__(self, reader: Reader, blob: "BlobServiceAsyncStub", client: streams.Client) -> None:
        self.reader = reader
        self.store = reader.store
        self._blob = blob
        self._client = client
        self._js = client.jetstream()
        self._reindexing = asyncio.Lock()
        self._partitions = Partitions(reader, client)

    @property
    def readers(self) -> list[str]:
        """Names of the readers: one for SQLite, one per partition for Elasticsearch."""
        return [ALL] if self.store.name == "sqlite" else [str(number) for number in range(streams.PARTITIONS)]

    async def run(self) -> None:
        """Follow the stream without end. Exceptions of the tasks that follow it are raised here."""
        while True:
            try:
                await self.join()
            except errors.Conflict as error:
                self.reader.problem = error.message
                log.error("stream does not fit the index", extra={"reason": error.message})
                await asyncio.sleep(1)
                continue
            except errors.GantryError as error:
                self.reader.problem = error.message
                await asyncio.sleep(0.2)
                continue
            await self._follow()

    async def _follow(self) -> None:
        if self.store.name == "sqlite":
            await self.reader.follow(ALL, ["store.>"])
            return
        keeping = asyncio.create_task(self._partitions.keep(), name="partitions")
        watching = asyncio.create_task(self._until_stream_is_lost(), name="watching the stream")
        try:
            self.reader.problem = ""
            ended, _ = await asyncio.wait({keeping, watching}, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            await end_tasks([keeping, watching])

    async def _until_stream_is_lost(self) -> None:
        while True:
            with suppress(errors.Unavailable):
                if await streams.describe_stream(self._js, streams.STORE) is None:
                    return
            await asyncio.sleep(1)

    async def join(self) -> None:
        """Ensure that the stream exists and that the cursors of the store belong to it.

        Raises:
            errors.Conflict: the stream is not the one that this index follows, or the store must be reindexed first.
            errors.Unavailable: NATS, blob or the store does not answer.
        """
        if outdated := await self.store.outdated():
            raise errors.Conflict(outdated)
        known = await self.store.generation()
        high_water = await self.store.high_water()
        state = await streams.describe_stream(self._js, streams.STORE)
        if state is None:
            metadata = {"generation": uuid.uuid4().hex, "after": known}
            try:
                await streams.ensure_stream(self._js, streams.STORE, high_water + 1, metadata)
            except Exception as error:
                raise errors.Unavailable("the stream STORE could not be created") from error
            log.info("stream created", extra={"stream": "STORE", "first_sequence": high_water + 1})
            state = await streams.describe_stream(self._js, streams.STORE)
            if state is None:
                raise errors.Unavailable("the stream STORE does not exist")
        generation = state.metadata.get("generation", UNNAMED)
        if generation == known:
            if state.last_sequence < high_water:
                raise errors.Conflict(f"STORE ends at {state.last_sequence}, before the cursor {high_water}")
        elif known == "":
            await self._begin(generation, state.last_sequence)
        elif state.metadata.get("after") == known and state.last_sequence >= high_water:
            await self.store.follow(generation, max(high_water, state.first_sequence - 1))
        else:
            raise errors.Conflict(f"STORE is of generation {generation}, the index follows {known}: reindex into an empty index store")

    async def _begin(self, generation: str, last_sequence: int) -> None:
        """Build an empty store from the object store, which contains the events up to `last_sequence`."""
        async with self.reader.lock:
            built = await self.store.build()
            async for progress in Rebuild(built, self._blob, None, last_sequence).run():
                log.info("index is built from packs", extra={"packs_read": progress.packs_read, "packs_total": progress.packs_total})
            await built.follow(generation, last_sequence)
            await self.store.swap(built)

    async def wait_until_current(self, timeout_s: float) -> None:
        """Wait until every reader, in any process, has applied all events that are on the stream now.

        Args:
            timeout_s: seconds.

        Raises:
            errors.Unavailable: a reader has not done so in time, or the store is being built.
        """
        generation = await self.store.generation()
        state = await streams.describe_stream(self._js, streams.STORE)
        if not generation or state is None or state.metadata.get("generation", UNNAMED) != generation:
            raise errors.Unavailable("the index does not follow the stream yet")
        subjects = {reader: "store.>" if reader == ALL else f"store.{reader}.>" for reader in self.readers}
        last = {reader: await streams.last_sequence(self._js, streams.STORE, subject) for reader, subject in subjects.items()}
        end = asyncio.get_running_loop().time() + timeout_s
        while any(cursor < last[reader] for reader, cursor in (await self.store.cursors(self.readers)).items()):
            if asyncio.get_running_loop().time() > end:
                raise errors.Unavailable("index has not applied all events on the stream yet")
            await asyncio.sleep(0.05)

    async def reindex(self) -> AsyncIterator[Progress]:
        """Build a new index generation while the system runs, and swap it in. All readers pause; their events stay on the stream.

        Raises:
            errors.Conflict: a reindex is running, or another process did not stop reading.
            errors.Unavailable: the index follows no stream yet, or NATS, blob or the store does not answer.
        """
        if self._reindexing.locked():
            raise errors.Conflict("a reindex is running")
        if await self.store.outdated():
            # A process of an older program would only pause. After the swap it would continue, and write into the new generation.
            await self._partitions.check_nobody_reads()
        async with self._reindexing, self._others_paused() as check, self.reader.lock:
            generation = await self.store.generation()
            if not generation:
                raise errors.Unavailable("the index follows no stream yet")
            cursors = await self.store.cursors(self.readers)
            built = await self.store.build()
            async for progress in Rebuild(built, self._blob, self.store, max(cursors.values())).run():
                yield progress
            await built.follow(generation, min(cursors.values()))
            for reader, sequence in cursors.items():
                await built.apply(Batch(reader, sequence))
            check()
            await self.store.swap(built)

    @asynccontextmanager
    async def _others_paused(self) -> AsyncIterator[Callable[[], None]]:
        if self.store.name == "sqlite":
            yield lambda: None
            return
        async with self._partitions.others_paused() as check:
            yield check
