"""What index decides is on the stream CHANGES: at least once, in order per study, with one id for each change. Both stores, real NATS."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gantry.events.v1.events_pb2 import Change
from gantry_index.applying import changes
from gantry_index.stores.elasticsearch.store import ElasticsearchStore
from gantry_index.stores.elasticsearch.writing import Writing
from gantry_index.stores.port import Batch
from gantry_runtime.events import streams
from gantry_standard import errors
from tests.stores.test_index_store import drop
from tests.support.changes import read_changes
from tests.support.nats_server import NatsServer, until
from tests.unit.index.test_service import DUPLICATE, NEW, STUDY, Suite, instance

CREATED, REPLACED, DELETED, RESTORED, SETTLED = (
    Change.KIND_CREATED,
    Change.KIND_REPLACED,
    Change.KIND_DELETED,
    Change.KIND_RESTORED,
    Change.KIND_SETTLED,
)


@contextmanager
def running_nats(directory: Path) -> Iterator[NatsServer]:
    """Run a nats-server of one test, and end it also where the test fails."""
    nats = NatsServer(directory)
    nats.start()
    try:
        yield nats
    finally:
        nats.stop()


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    """A nats-server of this test alone."""
    with running_nats(tmp_path / "nats") as server:
        yield server


@pytest.fixture(params=["sqlite", "elasticsearch"])
async def suite(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Suite]:
    # First: it skips where there is no Elasticsearch.
    url = request.getfixturevalue("elasticsearch_url") if request.param == "elasticsearch" else ""
    with running_nats(tmp_path / "nats") as nats:
        started = Suite(tmp_path / "index", nats)
        if url:
            started.elasticsearch = (url, f"test-{uuid.uuid4().hex}")
        await started.start()
        yield started
        if isinstance(started.store, ElasticsearchStore):
            await drop(started.store._cluster.client, started.store._cluster.prefix)
        await started.stop()


async def told(suite: Suite, study: str = STUDY) -> list[Change]:
    """Return what is on CHANGES about a study, in order, each change once."""
    return await read_changes(suite.js, study)


def brief(found: list[Change]) -> list[tuple[int, list[str]]]:
    return [(one.kind, [each.sop_instance_uid for each in one.instances]) for one in found]


async def has_told(suite: Suite, *expected: tuple[int, list[str]]) -> list[Change]:
    """Wait until exactly this is told."""

    async def is_told() -> bool:
        return len(await told(suite)) >= len(expected)

    await until(is_told, 20)
    found = await told(suite)
    assert brief(found) == list(expected)
    return found


async def outbox(suite: Suite) -> tuple[int, int]:
    """Return how many rows are to be told, and how many studies have not settled."""
    readers = dict.fromkeys(("all", *map(str, range(streams.PARTITIONS))), (0, 1 << 60))
    settling = [len(await suite.store.settling(reader)) for reader in readers]
    return len(await suite.store.outbox_rows(readers, 1000)), sum(settling)


async def test_each_decision_is_told_in_order_with_the_versions_that_the_records_have(suite: Suite) -> None:
    assert await suite.announce(instance("1.1"), instance("1.2")) == {0: NEW, 1: NEW}
    (record, _) = await suite.records(collection=STUDY)
    assert await suite.announce(instance("1.1", "other")) == {0: DUPLICATE}
    await suite.delete(sop_instance_uid="1.1")
    assert await suite.restore("1.1") == (1, 0, 0)
    await suite.delete(sop_instance_uid="1.1")
    assert await suite.announce(instance("1.1", "anew")) == {0: NEW}
    found = await has_told(
        suite, (CREATED, ["1.1", "1.2"]), (DELETED, ["1.1"]), (RESTORED, ["1.1"]), (DELETED, ["1.1"]), (CREATED, ["1.1"])
    )
    assert found[0].instances[0].version == record.version
    assert found[0].instances[0].series_instance_uid == record.stored.series_instance_uid
    versions = [change.instances[0].version for change in found]
    assert versions == sorted(set(versions))
    assert [change.id for change in found] == [
        f"{change.sequence}-{name}" for change, name in zip(found, ("created", "deleted", "restored", "deleted", "created"), strict=True)
    ]
    assert versions[-1] == (await suite.records(sop_instance_uid="1.1"))[0].version


async def test_a_replaced_instance_is_told_as_replaced(suite: Suite) -> None:
    suite.reader._on_duplicate = "replace"
    await suite.announce(instance("1.1", "a"))
    await suite.announce(instance("1.1", "b"), instance("1.2"))
    await has_told(suite, (CREATED, ["1.1"]), (REPLACED, ["1.1"]), (CREATED, ["1.2"]))


async def test_what_was_written_before_an_attempt_failed_is_told_though_the_next_one_decides_nothing(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Elasticsearch the first attempt fails between the instances and the cursor. SQLite has nothing between them."""
    written, failures = Writing.outbox_removals, [errors.Unavailable("once")]

    def fails_once(writing: Writing) -> list[dict[str, Any]]:
        if failures and writing._batch.outbox:
            raise failures.pop()
        return written(writing)

    await suite.announce(instance("1.1"))
    await has_told(suite, (CREATED, ["1.1"]))
    monkeypatch.setattr(Writing, "outbox_removals", fails_once)
    await suite.announce(instance("1.2"))
    await has_told(suite, (CREATED, ["1.1"]), (CREATED, ["1.2"]))


async def test_what_an_earlier_process_left_is_told_and_what_was_told_is_not_told_again(suite: Suite) -> None:
    """The first process ends before it has told anything; the second one before it has removed what it told."""
    suite.reader.changes._publish = _never  # type: ignore[method-assign]
    await suite.announce(instance("1.1"))
    await suite.announce(instance("1.2"))
    assert (await outbox(suite))[0] == 2
    await suite.stop()
    await suite.start()
    first = await has_told(suite, (CREATED, ["1.1"]), (CREATED, ["1.2"]))
    await suite.stop()
    await suite.start()
    await suite.announce(instance("1.3"))
    again = await has_told(suite, (CREATED, ["1.1"]), (CREATED, ["1.2"]), (CREATED, ["1.3"]))
    assert again[:2] == first

    async def is_tidy() -> bool:
        return (await outbox(suite))[0] == 0

    await until(is_tidy)


async def _never(rows: object) -> None:
    await asyncio.Event().wait()


async def test_the_store_is_answered_while_nothing_can_be_told(suite: Suite) -> None:
    suite.reader.changes._publish = _never  # type: ignore[method-assign]
    assert await suite.announce(instance("1.1")) == {0: NEW}
    assert await suite.announce(instance("1.2")) == {0: NEW}


async def test_the_same_event_again_is_not_told_again(suite: Suite) -> None:
    await suite.announce(instance("1.1"))
    await streams.publish(suite.js, *suite.last_event)
    await suite.announce(instance("1.2"))
    await has_told(suite, (CREATED, ["1.1"]), (CREATED, ["1.2"]))


async def test_reindex_tells_nothing_and_keeps_what_is_to_be_told(suite: Suite) -> None:
    await suite.announce(instance("1.1"))
    await has_told(suite, (CREATED, ["1.1"]))
    telling = suite.reader.changes._publish
    suite.reader.changes._publish = _never  # type: ignore[method-assign]
    await suite.announce(instance("1.2"))
    await suite.reindex()
    assert (await outbox(suite))[1] == 1
    suite.reader.changes._publish = telling  # type: ignore[method-assign]
    await suite.stop()
    await suite.start()
    await suite.announce(instance("1.3"))
    await has_told(suite, (CREATED, ["1.1"]), (CREATED, ["1.2"]), (CREATED, ["1.3"]))


async def test_a_lost_stream_is_made_again_above_its_sequences(suite: Suite) -> None:
    await suite.announce(instance("1.1"))
    await has_told(suite, (CREATED, ["1.1"]))
    _, before = await streams.stream_state(suite.js, streams.CHANGES)
    await suite.js.delete_stream("CHANGES")
    await suite.announce(instance("1.2"))

    async def is_there() -> bool:
        return await streams.describe_stream(suite.js, streams.CHANGES) is not None

    await until(is_there)
    await has_told(suite, (CREATED, ["1.2"]))
    assert (await streams.stream_state(suite.js, streams.CHANGES))[0] > before


async def test_streams_that_nats_lost_are_there_again_before_anything_is_decided(suite: Suite) -> None:
    for name in ("CHANGES", "STORE"):
        await suite.js.delete_stream(name)

    async def are_there() -> bool:
        return all([await streams.describe_stream(suite.js, stream) for stream in (streams.STORE, streams.CHANGES)])

    await until(are_there, 20)


async def test_a_study_that_gets_no_instance_for_a_while_has_settled_once(suite: Suite) -> None:
    suite.reader.changes._settled_s = 0.5
    await suite.announce(instance("1.1"))
    await suite.announce(instance("1.2"))
    found = await has_told(suite, (CREATED, ["1.1"]), (CREATED, ["1.2"]), (SETTLED, []))
    assert found[2].sequence == found[1].sequence
    assert await suite.announce(instance("1.2")) != {0: NEW}
    again = await has_told(suite, (CREATED, ["1.1"]), (CREATED, ["1.2"]), (SETTLED, []), (SETTLED, []))
    assert again[3].sequence > again[2].sequence

    async def is_tidy() -> bool:
        return await outbox(suite) == (0, 0)

    await until(is_tidy)


async def test_a_study_that_has_not_settled_is_waited_for_after_a_restart(suite: Suite) -> None:
    await suite.announce(instance("1.1"))
    await has_told(suite, (CREATED, ["1.1"]))
    assert (await outbox(suite))[1] == 1
    await suite.stop()
    suite.settled_s = 0.3
    await suite.start()
    await has_told(suite, (CREATED, ["1.1"]), (SETTLED, []))


async def test_a_deletion_does_not_settle_a_study(suite: Suite) -> None:
    suite.reader.changes._settled_s = 0.3
    await suite.announce(instance("1.1"))
    await has_told(suite, (CREATED, ["1.1"]), (SETTLED, []))
    await suite.delete(collection=STUDY)
    await suite.announce(instance("9.1", study="9"))

    async def has_other_settled() -> bool:
        return [one.kind for one in await told(suite, "9")] == [CREATED, SETTLED]

    await until(has_other_settled)
    await has_told(suite, (CREATED, ["1.1"]), (SETTLED, []), (DELETED, ["1.1"]))


async def test_what_elasticsearch_applied_in_part_is_told_whole_with_the_same_id(
    elasticsearch_url: str, tmp_path: Path, nats: NatsServer
) -> None:
    """A crash between the instances and the cursor: the event is decided again, when its instances are there already."""
    suite = Suite(tmp_path / "index", nats)
    suite.elasticsearch = (elasticsearch_url, f"test-{uuid.uuid4().hex}")
    await suite.start()
    suite.reader.changes._publish = _never  # type: ignore[method-assign]
    partition = str(streams.partition_of(STUDY))
    before = await suite.store.cursor(partition)
    await suite.announce(instance("1.1"), instance("1.2"))
    sequence = await suite.store.cursor(partition)
    await suite.stop()
    await suite.start()
    await has_told(suite, (CREATED, ["1.1", "1.2"]))
    await suite.stop()
    store = await ElasticsearchStore.opened(*suite.elasticsearch)
    await store.apply(Batch(partition, before))
    await store.close()
    await suite.start()
    await suite.announce(instance("1.3"))
    found = await has_told(suite, (CREATED, ["1.1", "1.2"]), (CREATED, ["1.3"]))
    assert found[0].sequence == sequence
    assert isinstance(suite.store, ElasticsearchStore)
    await drop(suite.store._cluster.client, suite.store._cluster.prefix)
    await suite.stop()


async def test_a_process_that_takes_over_a_partition_tells_what_the_other_one_left(
    elasticsearch_url: str, tmp_path: Path, nats: NatsServer
) -> None:
    first, second = (Suite(tmp_path / name, nats) for name in ("first", "second"))
    first.elasticsearch = second.elasticsearch = (elasticsearch_url, f"test-{uuid.uuid4().hex}")
    second.blob = first.blob
    await first.start()
    first.reader.changes._publish = _never  # type: ignore[method-assign]
    studies = [f"2.{number}" for number in range(8)]
    for study in studies:
        await first.announce(instance(f"{study}.1", study=study))
    await second.start()
    await first.stop()
    for study in studies:

        async def is_told(study: str = study) -> bool:
            return brief(await told(second, study)) == [(CREATED, [f"{study}.1"])]

        await until(is_told, 30)
    assert isinstance(second.store, ElasticsearchStore)
    await drop(second.store._cluster.client, second.store._cluster.prefix)
    await second.stop()


async def test_many_rows_of_several_studies_are_told_in_order(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "ROWS", 3)
    monkeypatch.setattr(changes, "MESSAGE_BYTES", 150)
    for number in range(4):
        for study in ("2.1", "2.2", "2.3"):
            await suite.announce(instance(f"{study}.{number}", study=study))
    for study in ("2.1", "2.2", "2.3"):

        async def is_told(study: str = study) -> bool:
            return brief(await told(suite, study)) == [(CREATED, [f"{study}.{number}"]) for number in range(4)]

        await until(is_told, 20)
