"""Leases: one holder at a time, also across a death of nats-server."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from nats.js import JetStreamContext

from gantry_runtime.events import leases, streams
from gantry_runtime.process import end_tasks
from tests.support.nats_server import NatsServer, until


@pytest.fixture
async def js(server: NatsServer) -> AsyncIterator[JetStreamContext]:
    """JetStream."""
    async with streams.connected(server.url, "test") as client:
        yield client.jetstream()


async def test_a_lease_has_one_holder_and_is_free_when_it_is_released(js: JetStreamContext) -> None:
    one, other = leases.Lease(js, "a", "one"), leases.Lease(js, "a", "other")
    assert await one.acquire()
    assert not await other.acquire()
    assert await one.renew()
    assert await leases.leases_held(js) == ["a"]
    await one.release()
    assert await other.acquire()
    assert not await one.renew()
    await one.release()
    assert await leases.leases_held(js) == ["a"]


async def test_a_lease_that_is_not_renewed_is_free_for_others_and_its_holder_knows(js: JetStreamContext) -> None:
    one, other = leases.Lease(js, "a", "one"), leases.Lease(js, "a", "other")
    assert await one.acquire()
    await until(other.acquire, 3 * leases.LEASE_S)
    assert not await one.renew()


async def test_a_holder_that_was_started_again_has_its_lease_back_at_once(js: JetStreamContext) -> None:
    assert await leases.Lease(js, "a", "one").acquire()
    again = leases.Lease(js, "a", "one")
    assert await again.acquire()
    assert await again.renew()


async def test_a_lease_is_held_over_a_short_loss_of_the_server_and_lost_over_a_long_one(js: JetStreamContext, server: NatsServer) -> None:
    lease = leases.Lease(js, "a", "one")
    assert await lease.acquire()
    server.kill()
    assert await lease.renew()
    await until(lambda: _is_lost(lease), 2 * leases.LEASE_S)
    server.start()


async def _is_lost(lease: leases.Lease) -> bool:
    return not await lease.renew()


async def test_work_under_a_lease_is_done_by_one_and_taken_over_when_it_stops(js: JetStreamContext) -> None:
    working: list[str] = []

    async def hold(name: str) -> None:
        async def work() -> None:
            working.append(name)
            try:
                await asyncio.Event().wait()
            finally:
                working.remove(name)

        await leases.hold_lease(js, "a", name, work)

    tasks = {name: asyncio.create_task(hold(name)) for name in ("one", "other")}
    await until(lambda: working)
    (first,) = working
    await end_tasks([tasks.pop(first)])
    await until(lambda: working)
    assert working == list(tasks)
    await end_tasks(tasks.values())
