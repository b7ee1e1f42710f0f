"""The cache of instance records, and the port mark."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from gantry.events.v1.events_pb2 import IndexLease, RecordsChanged
from gantry.index.v1 import index_pb2, index_pb2_grpc
from gantry_gateway.content import records as records_module
from gantry_gateway.content.records import Records, listening, sharing
from gantry_runtime import call_context
from gantry_runtime.call_context import CallContext
from gantry_runtime.callers import Caller
from gantry_runtime.events import streams
from gantry_runtime.rpc import channels
from gantry_standard import errors
from tests.support.nats_server import NatsServer, until
from tests.unit.gateway.retrieve_world import Index

STUDY, SERIES = "1.2", "1.2.1"


class Clock:
    """A clock that a test sets."""

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
    with sharing(path) as mark, sharing(path) as other:
        here, there = Records(stub, 3, clock, mark), Records(stub, 3, clock, other)
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


async def test_a_cached_record_is_not_given_to_a_caller_who_may_not_see_its_study(records: Records, index: Index) -> None:
    records.heartbeat()
    await get(records)
    with call_context.entered(CallContext("r", caller=Caller(visible_studies=frozenset({"1.9"})))):
        await get(records)
    assert len(index.asked) == 2  # this index answers everybody; the real one answers such a caller with 404
    with call_context.entered(CallContext("r", caller=Caller(visible_studies=frozenset({STUDY})))):
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


async def test_bytes_are_bounded_too(stub, index: Index, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 10):
        index.records[f"{SERIES}.{number}"] = record_of(f"{SERIES}.{number}")
    monkeypatch.setattr(records_module, "MAX_BYTES", 8 * 2 * index.records[f"{SERIES}.1"].ByteSize())
    records = Records(stub, 100, clock)
    records.heartbeat()
    for number in (*range(1, 10), 2, 1):
        await get(records, number)
    assert index.asked == [f"{SERIES}.{n}" for n in (*range(1, 10), 1)]


async def test_an_instance_of_which_a_change_was_told_while_it_was_asked_for_leaves_nothing_behind(records: Records, index: Index) -> None:
    records.heartbeat()
    index.before_answer = asyncio.Event()
    asking = asyncio.create_task(get(records))
    await until(lambda: index.asked)
    records.forget(STUDY, [f"{SERIES}.1"])
    index.before_answer.set()
    await asking
    records.forget(STUDY)
    assert (records._requested, records._instances_of, len(records._cached)) == ({}, {}, 0)


async def test_a_record_that_left_for_another_is_kept_again_and_dropped_with_its_study(records: Records, index: Index) -> None:
    records.heartbeat()
    for number in (1, 2, 3, 4, 1):
        await get(records, number)
    records.forget(STUDY)
    assert (records._instances_of, len(records._cached), records._cached.used_bytes) == ({}, 0, 0)
    for number in (1, 3, 4):
        await get(records, number)
    assert index.asked == [f"{SERIES}.{n}" for n in (1, 2, 3, 4, 1, 1, 3, 4)]


def seconds_of_a_change(stub, instances: int) -> float:
    """Return the least seconds of a change of a study, while this number of instances of other studies is cached."""
    records = Records(stub, instances)
    records.heartbeat()
    for number in range(instances):
        records._store(f"1.3.{number % 100}", f"1.3.4.{number}", record_of(f"1.3.4.{number}"))

    def once() -> float:
        records._store(STUDY, f"{SERIES}.1", record_of(f"{SERIES}.1"))
        begin = time.perf_counter()
        records.changed(STUDY)
        return time.perf_counter() - begin

    return min(once() for _ in range(20))


async def test_a_change_of_one_study_does_not_look_at_the_records_of_others(stub) -> None:
    assert seconds_of_a_change(stub, 50_000) < 20 * seconds_of_a_change(stub, 100)


def record_of(uid: str) -> index_pb2.InstanceRecord:
    """Return an instance record in the study and series of these tests."""
    record = index_pb2.InstanceRecord(version=1)
    record.stored.study_instance_uid, record.stored.series_instance_uid, record.stored.sop_instance_uid = STUDY, SERIES, uid
    return record


def test_gateways_that_change_something_at_the_same_moment_see_each_others_marks(tmp_path: Path) -> None:
    with ExitStack() as stack:
        marks = [stack.enter_context(sharing(tmp_path / "gateways")) for _ in range(3)]
        first, second, third = marks
        first.move()
        second.move()
        assert [mark.has_moved() for mark in marks] == [True, True, True]
        assert [mark.has_moved() for mark in marks] == [False, False, False]
        third.move()
        third.move()
        assert [mark.has_moved() for mark in marks] == [True, True, False]


RACER = """
import sys
from pathlib import Path
from gantry_gateway.content.records import sharing

with sharing(Path(sys.argv[1])) as mark:
    print("open", flush=True)
    for line in sys.stdin:
        if line == "move\\n":
            mark.move()
            print("moved", flush=True)
        else:
            print(mark.has_moved(), flush=True)
"""


def test_processes_that_race_never_miss_a_mark_of_another(tmp_path: Path) -> None:
    def asked(word: str) -> list[str]:
        # All are told before any is waited for, so that they do it at the same moment.
        for racer in racers:
            racer.stdin.write(f"{word}\n")
            racer.stdin.flush()
        return [racer.stdout.readline().strip() for racer in racers]

    with ExitStack() as stack:
        command = [sys.executable, "-c", RACER, str(tmp_path / "gateways")]
        racers = [stack.enter_context(Popen(command, stdin=PIPE, stdout=PIPE, text=True)) for _ in range(4)]
        assert [racer.stdout.readline().strip() for racer in racers] == ["open"] * 4
        asked("look")
        for _ in range(200):
            assert asked("move") == ["moved"] * 4
            assert asked("look") == ["True"] * 4
            assert asked("look") == ["False"] * 4
        for racer in racers:
            racer.stdin.close()


def test_the_slot_of_a_gateway_that_was_killed_is_taken_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "COUNTERS", 2)
    path = tmp_path / "gateways"
    with sharing(path) as here:
        with Popen([sys.executable, "-c", RACER, str(path)], stdin=PIPE, stdout=PIPE, text=True) as there:
            assert there.stdout.readline() == "open\n"
            there.stdin.write("move\n")
            there.stdin.flush()
            assert there.stdout.readline() == "moved\n"
            with pytest.raises(RuntimeError, match="2 gateways already share"), sharing(path):
                pass
            there.kill()
        assert here.has_moved()
        with sharing(path) as again:
            again.move()
            assert here.has_moved()
            assert not again.has_moved()


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
        changed = RecordsChanged(collection=STUDY, sop_instance_uids=[f"{SERIES}.1"])
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
