"""Partitions are shared out over the processes, and one that reindexes is the only one to read meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from gantry_index.applying.reader import Partitions
from gantry_index.service import Following
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


class Failing(Reading):
    """A reader of which one partition fails."""

    async def follow(self, partition: str, subjects: list[str]) -> None:
        if partition == "3":
            raise LookupError("partition 3")
        await super().follow(partition, subjects)


async def test_a_reader_that_dies_ends_the_keeper_which_gives_its_leases_back(tmp_path: Path) -> None:
    nats = NatsServer(tmp_path)
    nats.start()
    async with streams.connected(nats.url, "test") as client:
        reading = Failing()
        async with asyncio.timeout(10):
            with pytest.raises(LookupError, match="partition 3"):
                await Partitions(reading, client).keep()  # type: ignore[arg-type]
        assert (reading.now, await leases.leases_held(client.jetstream())) == (set(), [])
    nats.stop()


class Sharded:
    """A store of which only the name matters here."""

    name = "elasticsearch"


@pytest.mark.parametrize("dies", ["reader", "keeper"])
async def test_a_task_that_dies_ends_what_index_follows_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: str) -> None:
    nats = NatsServer(tmp_path)
    nats.start()
    async with streams.connected(nats.url, "test") as client:
        await streams.ensure_stream(client.jetstream(), streams.STORE)
        reading = Failing() if dies == "reader" else Reading()
        reading.store, reading.problem = Sharded(), ""  # type: ignore[attr-defined]
        following = Following(reading, None, client)  # type: ignore[arg-type]

        async def join() -> None:
            return None

        async def fail(partitions: Partitions) -> None:
            raise LookupError("keeper")

        monkeypatch.setattr(following, "join", join)
        if dies == "keeper":
            monkeypatch.setattr(Partitions, "_look", fail)
        async with asyncio.timeout(10):
            with pytest.raises(LookupError):
                await following.run()
    nats.stop()


async def test_the_keeper_goes_on_after_the_bucket_of_leases_was_lost(tmp_path: Path) -> None:
    nats = NatsServer(tmp_path)
    nats.start()
    async with a_process(nats) as (reading, partitions):
        await until(lambda: len(reading.now) == streams.PARTITIONS)
        await partitions._js.delete_key_value("lease")

        async def is_back() -> bool:
            with suppress(errors.Unavailable):
                held = await leases.leases_held(partitions._js)
                return sum(key.startswith("index.partition.") for key in held) == len(reading.now) == streams.PARTITIONS
            return False

        await until(is_back)
    nats.stop()


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
