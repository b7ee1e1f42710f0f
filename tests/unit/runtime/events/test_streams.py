"""Reading a stream from a cursor: in order, once each, also across a death of nats-server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from nats.js import JetStreamContext

from gantry_runtime.events import streams
from gantry_runtime.events.streams import Stream
from gantry_standard import errors
from tests.support.nats_server import NatsServer, until

STREAM = Stream("EXAMPLE", ("example.>",), "nobody")


@pytest.fixture
async def js(server: NatsServer) -> AsyncIterator[JetStreamContext]:
    """JetStream, with the stream."""
    async with streams.connected(server.url, "test") as client:
        context = client.jetstream()
        await streams.ensure_stream(context, STREAM)
        yield context


async def read(js: JetStreamContext, number: int, after: int = 0, subjects: tuple[str, ...] = ()) -> list[streams.Message]:
    """Read so many messages from a cursor."""
    found: list[streams.Message] = []
    async with aclosing(streams.read_from(js, STREAM, after, subjects)) as batches:
        async for batch in batches:
            found += batch
            if len(found) >= number:
                return found
    return found


async def publish_patiently(js: JetStreamContext, subject: str, data: bytes, message_id: str) -> int:
    """Publish until it is acknowledged, with the same id."""
    while True:
        try:
            return await streams.publish(js, subject, data, {"Nats-Msg-Id": message_id}, timeout_s=1)
        except errors.Unavailable:
            continue


async def test_messages_come_in_order_from_the_cursor_on(js: JetStreamContext) -> None:
    for number in range(10):
        assert await streams.publish(js, f"example.{number}", str(number).encode()) == number + 1
    found = await read(js, 6, after=4)
    assert [message.sequence for message in found] == [5, 6, 7, 8, 9, 10]
    assert [message.data for message in found] == [b"4", b"5", b"6", b"7", b"8", b"9"]
    assert found[0].subject == "example.4"


@pytest.mark.parametrize(
    ("number", "size"), [(400, 100_000), (14, 3 << 20), (5, (8 << 20) - 1024)], ids=["small", "large", "as large as a message can be"]
)
async def test_what_is_read_at_once_is_bounded_in_bytes_and_nothing_is_left_out(js: JetStreamContext, number: int, size: int) -> None:
    for at in range(number):
        await streams.publish(js, f"example.{at}", at.to_bytes(2, "big") + bytes(size - 2))
    seen: list[int] = []
    async with aclosing(streams.read_from(js, STREAM, 0, wait_s=2)) as batches:
        first = await anext(batches)
        [consumer] = await js.consumers_info(STREAM.name)

        async def asks_for_nothing_more() -> bool:
            return (await js.consumer_info(STREAM.name, consumer.name)).num_waiting == 0

        await until(asks_for_nothing_more)
        delivered = (await js.consumer_info(STREAM.name, consumer.name)).delivered
        assert delivered is not None
        assert len(first) <= delivered.consumer_seq <= max(2 * streams.PULL_BYTES // size, 1)
        seen += [int.from_bytes(message.data[:2], "big") for message in first]
        while len(seen) < number:
            batch = await anext(batches)
            assert sum(len(message.data) for message in batch) <= 2 * streams.PULL_BYTES
            seen += [int.from_bytes(message.data[:2], "big") for message in batch]
    assert seen == list(range(number))


async def test_subjects_filter(js: JetStreamContext) -> None:
    for number in range(6):
        await streams.publish(js, f"example.{'even' if number % 2 == 0 else 'odd'}.{number}", b"")
    assert [message.sequence for message in await read(js, 3, subjects=("example.odd.>",))] == [2, 4, 6]


async def test_an_empty_batch_comes_while_nothing_happens(js: JetStreamContext) -> None:
    async with aclosing(streams.read_from(js, STREAM, 0, wait_s=0.1)) as batches:
        assert await anext(batches) == []


async def test_a_message_that_is_lost_on_the_way_is_read_again(js: JetStreamContext) -> None:
    async with aclosing(streams.read_from(js, STREAM, 0, wait_s=0.2)) as batches:
        await streams.publish(js, "example.0", b"0")
        assert [message.data for message in await anext(batches)] == [b"0"]
        [consumer] = await js.consumers_info(STREAM.name)

        async def asks_nobody() -> bool:
            return (await js.consumer_info(STREAM.name, consumer.name)).num_waiting == 0

        await until(asks_nobody)
        await streams.publish(js, "example.1", b"1")
        thief = await js.pull_subscribe_bind(consumer.name, stream=STREAM.name)
        assert [message.data for message in await thief.fetch(1, timeout=5)] == [b"1"]
        await streams.publish(js, "example.2", b"2")
        seen: list[bytes] = []
        async for batch in batches:
            seen += [message.data for message in batch]
            if len(seen) >= 2:
                break
    assert seen == [b"1", b"2"]


async def test_reading_and_publishing_go_on_after_a_kill_of_the_server(js: JetStreamContext, server: NatsServer) -> None:
    seen: list[int] = []
    async with aclosing(streams.read_from(js, STREAM, 0, wait_s=0.2)) as batches:
        for number in range(60):
            if number in (20, 40):
                server.kill()
                server.start()
            await publish_patiently(js, f"example.{number}", str(number).encode(), f"id {number}")
            if number % 10 == 0:
                seen += [int(message.data) for message in await anext(batches)]
        async for batch in batches:
            seen += [int(message.data) for message in batch]
            if len(seen) >= 60:
                break
    assert seen == list(range(60))


async def test_a_cursor_beyond_the_end_is_an_error_and_no_empty_stream(js: JetStreamContext) -> None:
    await streams.publish(js, "example.1", b"")
    with pytest.raises(errors.Conflict, match="EXAMPLE ends at 1, before the cursor 7"):
        await read(js, 1, after=7)


async def test_of_two_compare_and_sets_one_wins(js: JetStreamContext) -> None:
    header = "Nats-Expected-Last-Subject-Sequence"
    first = await streams.publish(js, "example.item", b"one", {header: "0"})
    with pytest.raises(errors.Conflict):
        await streams.publish(js, "example.item", b"two", {header: "0"})
    assert await streams.publish(js, "example.item", b"two", {header: str(first)}) == first + 1


async def test_the_same_message_id_again_is_the_same_message(js: JetStreamContext) -> None:
    first = await streams.publish(js, "example.a", b"x", {"Nats-Msg-Id": "same"})
    assert await streams.publish(js, "example.a", b"x", {"Nats-Msg-Id": "same"}) == first


async def test_a_stream_begins_above_the_mark_that_is_given_and_stays_as_it_is(js: JetStreamContext) -> None:
    other = Stream("OTHER", ("other.>",), "nobody")
    await streams.ensure_stream(js, other, first_sequence=500, metadata={"generation": "g1"})
    assert await streams.publish(js, "other.1", b"") == 500
    info = await streams.ensure_stream(js, other, first_sequence=900)
    assert info.state.last_seq == 500


async def test_publishing_without_a_stream_is_unavailable(js: JetStreamContext) -> None:
    with pytest.raises(errors.Unavailable):
        await streams.publish(js, "nowhere.1", b"", timeout_s=0.3)


def test_a_study_has_always_the_same_partition() -> None:
    assert streams.PARTITIONS == 16
    assert (streams.partition_of("1.2.840.10008"), streams.partition_of("2.25.7")) == (3, 2)
    assert len({streams.partition_of(f"1.2.{number}") for number in range(500)}) == streams.PARTITIONS


async def test_a_publisher_gets_sequences_also_of_duplicates_and_of_many_at_once(js: JetStreamContext, server: NatsServer) -> None:
    async with streams.connected(server.url, "publisher") as client:
        publisher = streams.Publisher(client)
        found = await asyncio.gather(*(publisher.publish(f"example.{number}", b"x", f"id {number}") for number in range(50)))
        assert sorted(found) == list(range(1, 51))
        assert await publisher.publish("example.7", b"x", "id 7") == found[7]
        assert [message.data for message in await read(js, 50)] == [b"x"] * 50


async def test_a_publisher_says_where_there_is_no_stream_and_why_a_message_was_refused(js: JetStreamContext, server: NatsServer) -> None:
    await js.update_stream(name=STREAM.name, subjects=list(STREAM.subjects), max_msg_size=100)
    async with streams.connected(server.url, "publisher") as client:
        publisher = streams.Publisher(client)
        with pytest.raises(errors.Unavailable, match="NATS does not answer"):
            await publisher.publish("nowhere.1", b"", "id")
        with pytest.raises(errors.Unavailable, match=r"NATS refused a message: .*size"):
            await publisher.publish("example.1", b"x" * 1000, "id")


async def test_a_publisher_waits_no_longer_than_it_says_and_goes_on_after_a_loss(
    js: JetStreamContext, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with streams.connected(server.url, "publisher") as client:
        publisher = streams.Publisher(client)
        assert await publisher.publish("example.1", b"", "one") == 1
        server.stop()
        await until(lambda: not publisher.is_connected)
        with monkeypatch.context() as patched:
            patched.setattr(streams, "PUBLISH_S", 0.2)
            with pytest.raises(errors.Unavailable):
                await publisher.publish("example.2", b"", "two")
        server.start()
        await until(lambda: publisher.is_connected)
        # The one that nobody waited for was kept by the client and comes first, or was lost: the id tells.
        assert await publisher.publish("example.2", b"", "two") == 2


async def test_messages_have_the_time_at_which_they_were_stored(js: JetStreamContext) -> None:
    await streams.publish(js, "example.1", b"")
    (message,) = await read(js, 1)
    stored = await js.get_msg(STREAM.name, message.sequence)
    assert stored.time is not None
    assert message.time_s == pytest.approx(stored.time.timestamp(), abs=1e-3)
    assert message.time_s > 1.7e9
