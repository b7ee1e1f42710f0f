"""Instance records under a lease."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gantry.events.v1.events_pb2 import IndexLease, RecordsChanged
from gantry.index.v1 import index_pb2, index_pb2_grpc
from gantry_gateway.content import records as records_module
from gantry_gateway.content.records import Mark, Records, listening
from gantry_runtime.events import streams
from gantry_runtime.rpc import channels
from gantry_standard import errors
from tests.support.nats_server import NatsServer, until
from tests.unit.gateway.retrieve_world import Index

STUDY, SERIES = "1.2", "1.2.1"


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def index() -> Index:
    return Index()


@pytest.fixture
async def stub(index: Index) -> AsyncIterator[index_pb2_grpc.IndexServiceStub]:
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(
            channels.serving(lambda server: index_pb2_grpc.add_IndexServiceServicer_to_server(index, server), "127.0.0.1:0", drain_s=0.1)
        )
        yield index_pb2_grpc.IndexServiceStub(await stack.enter_async_context(channels.channel(f"127.0.0.1:{port}")))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def records(stub, index: Index, clock: Clock) -> Records:
    for number in range(1, 5):
        uid = f"{SERIES}.{number}"
        record = index_pb2.InstanceRecord(version=number)
        record.stored.study_instance_uid, record.stored.series_instance_uid, record.stored.sop_instance_uid = STUDY, SERIES, uid
        index.records[uid] = record
    return Records(stub, 3, clock)


async def test_what_one_gateway_of_a_port_changed_no_other_answers_from_its_own(stub, index: Index, clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "gateways"
    uid = f"{SERIES}.1"
    record = index_pb2.InstanceRecord(version=1)
    record.stored.study_instance_uid, record.stored.series_instance_uid, record.stored.sop_instance_uid = STUDY, SERIES, uid
    index.records[uid] = record
    here, there = (Records(stub, 3, clock, Mark(path)) for _ in range(2))
    for one in (here, there):
        one.heartbeat()
        assert (await get(one)).version == (await get(one)).version == 1
    assert len(index.asked) == 2
    index.records[uid] = index_pb2.InstanceRecord(version=2, stored=record.stored)
    here.changed(STUDY)
    assert [(await get(one)).version for one in (here, there)] == [2, 2]
    assert [(await get(one)).version for one in (here, there)] == [2, 2]
    assert len(index.asked) == 4


async def get(records: Records, number: int = 1) -> index_pb2.InstanceRecord:
    return await records.get(STUDY, SERIES, f"{SERIES}.{number}")


async def test_without_a_heartbeat_index_is_asked_each_time(records: Records, index: Index) -> None:
    assert (await get(records)).version == 1
    await get(records)
    assert len(index.asked) == 2


async def test_under_the_lease_index_is_asked_once(records: Records, index: Index, clock: Clock) -> None:
    records.heartbeat()
    assert (await get(records)) == (await get(records))
    clock.now += 1.9
    await get(records)
    assert len(index.asked) == 1


async def test_two_seconds_after_the_last_heartbeat_index_is_asked_again(records: Records, index: Index, clock: Clock) -> None:
    records.heartbeat()
    await get(records)
    clock.now += 2.0
    await get(records)
    assert len(index.asked) == 2


async def test_heartbeats_renew_the_lease(records: Records, index: Index, clock: Clock) -> None:
    for _ in range(5):
        records.heartbeat()
        await get(records)
        clock.now += 1.5
    assert len(index.asked) == 1


async def test_after_a_lapse_nothing_that_was_kept_counts(records: Records, index: Index, clock: Clock) -> None:
    records.heartbeat()
    await get(records)
    clock.now += 2.5
    records.heartbeat()
    await get(records)
    assert len(index.asked) == 2


async def test_a_change_drops_the_record(records: Records, index: Index) -> None:
    records.heartbeat()
    await get(records, 1)
    await get(records, 2)
    records.forget(STUDY, [f"{SERIES}.1"])
    await get(records, 1)
    await get(records, 2)
    assert index.asked == [f"{SERIES}.{n}" for n in (1, 2, 1)]


async def test_a_change_without_instances_drops_the_study(records: Records, index: Index) -> None:
    records.heartbeat()
    await get(records, 1)
    records.forget("9.9")
    await get(records, 1)
    records.forget(STUDY)
    await get(records, 1)
    assert len(index.asked) == 2


async def test_an_answer_that_a_change_overtook_is_not_kept(records: Records, index: Index) -> None:
    records.heartbeat()
    index.before_answer = asyncio.Event()
    asking = asyncio.create_task(get(records))
    await until(lambda: index.asked)
    records.forget(STUDY, [f"{SERIES}.1"])
    index.before_answer.set()
    await asking
    await get(records)
    assert len(index.asked) == 2


async def test_a_record_of_another_series_is_not_found(records: Records) -> None:
    records.heartbeat()
    await get(records)
    with pytest.raises(errors.NotFound):
        await records.get(STUDY, "1.2.9", f"{SERIES}.1")


async def test_deleted_instances_are_gone(records: Records, index: Index) -> None:
    index.deleted.add("9.9")
    with pytest.raises(errors.Gone):
        await records.get(STUDY, SERIES, "9.9")


async def test_the_least_recently_used_record_leaves_first(records: Records, index: Index) -> None:
    records.heartbeat()
    for number in (1, 2, 3, 1, 4, 1, 2):
        await get(records, number)
    assert index.asked == [f"{SERIES}.{n}" for n in (1, 2, 3, 4, 2)]


async def test_bytes_are_bounded_too(records: Records, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "MOST_BYTES", 3 * index.records[f"{SERIES}.1"].ByteSize())
    records.heartbeat()
    for number in (1, 2, 2, 1):
        await get(records, number)
    assert index.asked == [f"{SERIES}.{n}" for n in (1, 2, 1)]


async def test_index_that_does_not_answer_is_unavailable(clock: Clock) -> None:
    async with channels.channel("127.0.0.1:1") as channel:
        with pytest.raises(errors.Unavailable):
            await Records(index_pb2_grpc.IndexServiceStub(channel), 3, clock).get(STUDY, SERIES, "1")


async def test_heartbeats_and_changes_come_by_nats(records: Records, index: Index, nats_server: NatsServer) -> None:
    async with streams.connected(nats_server.url, "test") as client, listening(records, client):
        await client.flush()

        async def kept() -> bool:
            await client.publish(streams.SUBJECTS["IndexLease"], IndexLease(applied_sequence=1).SerializeToString())
            asked = len(index.asked)
            await get(records)
            return len(index.asked) == asked

        assert await until(kept)
        changed = RecordsChanged(study_instance_uid=STUDY, sop_instance_uids=[f"{SERIES}.1"])
        before = len(index.asked)
        await client.publish(streams.SUBJECTS["RecordsChanged"], changed.SerializeToString())

        async def asked_again() -> bool:
            await get(records)
            return len(index.asked) > before

        assert await until(asked_again)


async def test_after_a_reconnection_nothing_that_was_kept_counts(records: Records, index: Index, nats_server: NatsServer) -> None:
    async with streams.connected(nats_server.url, "test") as client, streams.connected(nats_server.url, "other") as other:
        async with listening(records, client):
            await client.flush()

            async def beat() -> bool:
                await other.publish(streams.SUBJECTS["IndexLease"], b"")
                asked = len(index.asked)
                await get(records)
                return len(index.asked) == asked

            await until(beat)
            connections = streams.reconnections(client)
            nats_server.kill()
            nats_server.start()
            await until(lambda: streams.reconnections(client) > connections and other.is_connected)
            before = len(index.asked)

            async def asked_again() -> bool:
                await other.publish(streams.SUBJECTS["IndexLease"], b"")
                await get(records)
                return len(index.asked) > before

            assert await until(asked_again)
