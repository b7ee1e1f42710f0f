"""The cursors of subscribers, on a real nats-server, with gateways whose clocks disagree."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import orjson
import pytest

from gantry_gateway.worklist.subscriber_cursors import BUCKET, Cursors
from gantry_runtime.events import streams
from gantry_runtime.events.streams import Bucket, JetStreamContext
from tests.support.nats_server import NatsServer


class World:
    """The true time, and the clocks of two hosts."""

    def __init__(self) -> None:
        self.seconds = 0.0


@dataclass
class Host:
    """A gateway on a host whose clock is ahead."""

    cursors: Cursors
    ahead_s: float


@pytest.fixture
async def js(nats_server: NatsServer) -> AsyncIterator[JetStreamContext]:
    async with streams.connected(nats_server.url, "test") as client:
        yield client.jetstream()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def ae_title() -> str:
    return uuid.uuid4().hex[:16]


def host(js: JetStreamContext, world: World, ahead_s: float) -> Host:
    return Host(Cursors(js, lambda: 1_000_000 + world.seconds + ahead_s), ahead_s)


async def stored(js: JetStreamContext, ae_title: str) -> dict:
    data, _ = await (await streams.open_bucket(js, BUCKET)).get(ae_title.encode().hex())
    return orjson.loads(data)


SKEWS = pytest.mark.parametrize("ahead_s", [0.0, 80.0, -80.0, 86_400.0], ids=["same", "80 s ahead", "80 s behind", "a day ahead"])


@SKEWS
async def test_a_quiet_connection_counts_however_far_the_clocks_of_two_gateways_are_apart(
    js: JetStreamContext, world: World, ae_title: str, ahead_s: float
) -> None:
    here, there = host(js, world, 0), host(js, world, ahead_s)
    assert await here.cursors.open(ae_title, "quiet", 100) == 100
    assert await there.cursors.open(ae_title, "busy", 100) == 100
    for number in range(1, 61):
        world.seconds += 5
        if number % 8 == 0:
            await here.cursors.note(ae_title, [("quiet", 100)])
        await there.cursors.note(ae_title, [("busy", 100 + number)])
        assert (await stored(js, ae_title))["cursor"] == 100
    # Nothing that the quiet one does not have was passed over: a connection opened now begins where it is.
    assert await there.cursors.open(ae_title, "new", 1000) == 100


@SKEWS
async def test_a_broken_connection_counts_for_a_minute(js: JetStreamContext, world: World, ae_title: str, ahead_s: float) -> None:
    here, there = host(js, world, 0), host(js, world, ahead_s)
    await here.cursors.open(ae_title, "breaks", 100)
    await there.cursors.open(ae_title, "stays", 100)
    await here.cursors.close(ae_title, "breaks", 110)
    begins = []
    for number in range(1, 15):
        world.seconds += 5
        await there.cursors.note(ae_title, [("stays", 200)])
        begins.append(await there.cursors.open(ae_title, f"new{number}", 1000))
        await there.cursors.close(ae_title, f"new{number}", 1000)
    # Watched from the first look on, 5 s after it broke: at 65 s it has been silent for a minute.
    assert begins == [110] * 12 + [200] * 2


@SKEWS
async def test_the_connections_of_a_gateway_that_died_count_for_two_minutes(
    js: JetStreamContext, world: World, ae_title: str, ahead_s: float
) -> None:
    here, there = host(js, world, 0), host(js, world, ahead_s)
    await here.cursors.open(ae_title, "lost", 100)
    await there.cursors.open(ae_title, "stays", 100)
    cursors = []
    for _ in range(30):
        world.seconds += 5
        await there.cursors.note(ae_title, [("stays", 200)])
        cursors.append((await stored(js, ae_title))["cursor"])
    assert cursors == [100] * 23 + [200] * 7


async def test_a_gateway_that_did_not_look_for_long_takes_nothing_out_at_its_first_look(
    js: JetStreamContext, world: World, ae_title: str
) -> None:
    here, there = host(js, world, 0), host(js, world, 0)
    await here.cursors.open(ae_title, "quiet", 100)
    await there.cursors.open(ae_title, "busy", 100)
    # NATS was away: neither could say anything, and the busy one is first.
    world.seconds += 1000
    await there.cursors.note(ae_title, [("busy", 200)])
    assert (await stored(js, ae_title))["cursor"] == 100
    await here.cursors.note(ae_title, [("quiet", 100)])
    world.seconds += 40
    await there.cursors.note(ae_title, [("busy", 300)])
    assert (await stored(js, ae_title))["cursor"] == 100


async def test_a_change_that_met_another_one_still_takes_out_what_is_silent(
    js: JetStreamContext, world: World, ae_title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = host(js, world, 0), host(js, world, 0)
    await here.cursors.open(ae_title, "broken", 100)
    await here.cursors.close(ae_title, "broken", 100)
    await there.cursors.open(ae_title, "stays", 100)
    replace, meetings = Bucket.replace, iter([True])

    async def met(bucket: Bucket, key: str, value: bytes, revision: int) -> int:
        for _ in meetings:
            await replace(bucket, key, (await bucket.get(key))[0], revision)
        return await replace(bucket, key, value, revision)

    world.seconds += 30
    await there.cursors.note(ae_title, [("stays", 150)])
    assert (await stored(js, ae_title))["cursor"] == 100
    monkeypatch.setattr(Bucket, "replace", met)
    world.seconds += 30
    await there.cursors.note(ae_title, [("stays", 200)])
    assert next(meetings, None) is None
    assert (await stored(js, ae_title))["cursor"] == 200
    assert list((await stored(js, ae_title))["connections"]) == ["stays"]


async def test_no_time_is_stored_and_a_record_of_an_older_version_is_read(js: JetStreamContext, world: World, ae_title: str) -> None:
    bucket = await streams.open_bucket(js, BUCKET)
    old = {"cursor": 7, "connections": {"old": [7, 1, time.time()]}}
    await bucket.put(ae_title.encode().hex(), orjson.dumps(old))
    here = host(js, world, 0)
    assert await here.cursors.open(ae_title, "new", 100) == 7
    before = await stored(js, ae_title)
    await here.cursors.note(ae_title, [("new", 8)])
    after = await stored(js, ae_title)
    assert 0 < before["connections"]["new"][2] < after["connections"]["new"][2] < 1_000_000


async def test_many_gateways_that_note_at_once_lose_nothing(js: JetStreamContext, world: World, ae_title: str) -> None:
    hosts = [host(js, world, skew) for skew in (0, 80, -80, 3600)]
    for number, one in enumerate(hosts):
        await one.cursors.open(ae_title, f"c{number}", 100)

    async def work(number: int) -> None:
        for delivered in range(101, 113):
            await hosts[number].cursors.note(ae_title, [(f"c{number}", delivered + number)])

    await asyncio.gather(*map(work, range(len(hosts))))
    record = await stored(js, ae_title)
    assert {key: value[0] for key, value in record["connections"].items()} == {f"c{n}": 112 + n for n in range(4)}
    assert record["cursor"] == 112
