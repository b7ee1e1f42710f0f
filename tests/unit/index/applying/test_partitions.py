"""Partitions are shared out over the processes, and one that reindexes is the only one to read meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from gantry_index.applying.reader import Partitions
from gantry_runtime.events import leases, streams
from gantry_runtime.process import end_tasks
from gantry_standard import errors
from tests.support.nats_server import NatsServer, until


class Reading:
    """A reader that only notes which partitions are read."""

    def __init__(self) -> None:
        self.now: set[str] = set()

    async def follow(self, partition: str, subjects: list[str]) -> None:
        self.now.add(partition)
        try:
            await asyncio.Event().wait()
        finally:
            self.now.discard(partition)


@asynccontextmanager
async def a_process(nats: NatsServer) -> AsyncIterator[tuple[Reading, Partitions]]:
    reading = Reading()
    async with streams.connected(nats.url, "test") as client:
        partitions = Partitions(reading, client)  # type: ignore[arg-type]
        keeping = asyncio.create_task(partitions.keep())
        yield reading, partitions
        await end_tasks([keeping])


async def test_one_process_at_a_time_reads_while_another_reindexes(tmp_path: Path) -> None:
    nats = NatsServer(tmp_path)
    nats.start()
    async with AsyncExitStack() as stack:
        (first, mine), (second, theirs) = [await stack.enter_async_context(a_process(nats)) for _ in range(2)]

        def is_shared() -> bool:
            return len(first.now) == len(second.now) == streams.PARTITIONS // 2 and not first.now & second.now

        await until(is_shared, 20)
        async with mine.others_paused() as check:
            assert second.now == set()
            assert len(first.now) == streams.PARTITIONS // 2
            with pytest.raises(errors.Conflict):
                async with theirs.others_paused():
                    pass
            check()
        await until(is_shared, 20)
        async with mine.others_paused() as check:
            bucket = await streams.open_bucket(mine._js, "lease", leases.LEASE_S)
            await bucket.put("index.reindex", b"somebody else")

            def is_lost() -> bool:
                try:
                    check()
                except errors.Conflict:
                    return True
                return False

            await until(is_lost)
    nats.stop()
