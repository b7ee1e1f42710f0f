"""The whole service: real gRPC, real NATS, SQLite and here and there Elasticsearch; blob is a servicer that keeps objects in a dict."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest

from gantry.blob.v1 import blob_pb2
from gantry.blob.v1.blob_pb2_grpc import BlobServiceStub, add_BlobServiceServicer_to_server
from gantry.events.v1 import events_pb2
from gantry.events.v1.events_pb2 import Decision, InstancesStored, InstancesSwept, StoreOutcomes
from gantry.index.v1 import index_pb2
from gantry.index.v1.index_pb2_grpc import IndexServiceStub, add_IndexServiceServicer_to_server
from gantry_index.applying import reader
from gantry_index.applying.decide import decide
from gantry_index.applying.reader import Reader
from gantry_index.applying.workitems import WorkitemReader
from gantry_index.edge import IndexEdge, named
from gantry_index.service import Following
from gantry_index.stores.elasticsearch.store import ElasticsearchStore
from gantry_index.stores.port import IndexStore
from gantry_index.stores.sqlite.store import SqliteStore
from gantry_index.stores.sqlite.workitem_store import SqliteWorkitemStore
from gantry_runtime.events import streams
from gantry_runtime.process import end_tasks
from gantry_runtime.rpc import channels, rpc_errors
from gantry_standard import errors
from tests.support.nats_server import NatsServer, until
from tests.support.worklist import Blob

STUDY, SERIES = "1.2.3", "1.2.3.4"
NEW, SAME, DUPLICATE = events_pb2.OUTCOME_NEW, events_pb2.OUTCOME_SAME, events_pb2.OUTCOME_DUPLICATE


class RecordingBlob(Blob):
    """Keeps objects, and trailers of packs; refuses what blob refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.trailers: dict[str, list[blob_pb2.StoredInstance]] = {}
        self.away: set[str] = set()
        """Packs that cannot be read now."""

    async def ReadTrailer(self, request: Any, context: Any) -> AsyncIterator[blob_pb2.ReadTrailerResponse]:
        if request.object in self.away:
            raise errors.Unavailable("the object store is away")
        if request.object not in self.trailers:
            raise errors.NotFound(f"{request.object}: no such object")
        yield blob_pb2.ReadTrailerResponse(instances=self.trailers[request.object])

    def keys(self) -> list[str]:
        """Return the keys of objects and packs."""
        return [*self.objects, *self.trailers]


class Suite:
    """An index process in this one, and what it talks to."""

    def __init__(self, directory: Path, nats: NatsServer) -> None:
        self.directory = directory
        self.nats = nats
        self.elasticsearch = ("", "")
        """URL and prefix; without them SQLite is used."""
        self.settled_s = 30.0
        self.blob = RecordingBlob()
        self._packs = 0

    async def start(self) -> None:
        """Open everything as main does."""
        self._stack = stack = AsyncExitStack()
        port = await stack.enter_async_context(
            channels.serving(lambda server: add_BlobServiceServicer_to_server(self.blob, server), "127.0.0.1:0", 0)
        )
        blob = BlobServiceStub(await stack.enter_async_context(channels.channel(f"127.0.0.1:{port}")))
        self.client = await stack.enter_async_context(streams.connected(self.nats.url, "test"))
        self.js = self.client.jetstream()
        url, prefix = self.elasticsearch
        store: IndexStore = await ElasticsearchStore.opened(url, prefix) if url else SqliteStore(self.directory)
        workitem_store = SqliteWorkitemStore(self.directory)
        stack.push_async_callback(store.close)
        stack.push_async_callback(workitem_store.close)
        self.store = store
        self.reader = Reader(store, blob, self.client, settled_s=self.settled_s)
        following = Following(self.reader, blob, self.client)
        workitems = WorkitemReader(workitem_store, self.client)
        edge = IndexEdge(following, workitems, blob, self.client, 1000, 3)
        index_port = await stack.enter_async_context(
            channels.serving(lambda server: add_IndexServiceServicer_to_server(edge, server), "127.0.0.1:0", 0)
        )
        self.index: Any = IndexServiceStub(await stack.enter_async_context(channels.channel(f"127.0.0.1:{index_port}")))
        works = (following.run(), workitems.run(), self.reader.heartbeat(), self.reader.changes.run())
        self._tasks = [asyncio.create_task(work) for work in works]
        await until(self.is_ready)

    async def stop(self) -> None:
        """Stop as a crash would: nothing is finished."""
        await end_tasks(self._tasks)
        await self._stack.aclose()

    async def is_ready(self) -> bool:
        return bool((await self.index.GetStatus(index_pb2.GetStatusRequest(), timeout=5)).ready)

    async def announce(self, *instances: blob_pb2.StoredInstance, in_pack: bool = False) -> dict[int, int]:
        """Publish one pack of instances, and return what index told of each part."""
        self._packs += 1
        key = f"packs/{self._packs:04d}"
        for number, instance in enumerate(instances):
            instance.part_number = number
            instance.location.CopyFrom(blob_pb2.Location(object=key, offset=100 * number, length=100))
        self.blob.trailers[key] = list(instances)
        reply = self.client.new_inbox()
        subscription = await self.client.subscribe(reply)
        named = [blob_pb2.StoredInstance(part_number=one.part_number, location=one.location) for one in instances]
        event = InstancesStored(
            object=key,
            collection=instances[0].study_instance_uid,
            request_id="r",
            reply_subject=reply,
            instances=named if in_pack else instances,
            facts_in_pack=in_pack,
            last_of_pack=True,
        )
        self.last_event = (subject_of(event.collection), event.SerializeToString())
        await streams.publish(self.js, *self.last_event)
        outcomes = StoreOutcomes.FromString((await subscription.next_msg(5)).data)
        await subscription.unsubscribe()
        return {one.part_number: one.outcome for one in outcomes.outcomes}

    async def copy(self, key: str, *before: blob_pb2.StoredInstance) -> list[blob_pb2.StoredInstance]:
        """Announce copies of instances in another pack, as the sweeper does."""
        copies = []
        for number, one in enumerate(before):
            copy = blob_pb2.StoredInstance.FromString(one.SerializeToString())
            copy.origin.CopyFrom(one.origin if one.HasField("origin") else one.location)
            copy.location.object, copy.location.offset = key, 100 * number
            copies.append(copy)
        self.blob.trailers[key] = copies
        event = InstancesStored(object=key, collection=STUDY, instances=copies, last_of_pack=True)
        await streams.publish(self.js, subject_of(STUDY), event.SerializeToString())
        await self.describe()
        return copies

    async def give_up(self, *swept: blob_pb2.StoredInstance) -> None:
        event = InstancesSwept(collection=STUDY, instances=[named(one) for one in swept])
        subject = streams.SUBJECTS["InstancesSwept"].format(partition=streams.partition_of(STUDY))
        await streams.publish(self.js, subject, event.SerializeToString())

    async def describe(self, *uploads: blob_pb2.StoredInstance) -> list[tuple[int, str]]:
        """Return condition and object of uploads, as of the stream's end."""
        names = [index_pb2.UploadName(sop_instance_uid=one.sop_instance_uid, location=named(one).location) for one in uploads]
        answer = await self.index.DescribeUploads(index_pb2.DescribeUploadsRequest(uploads=names), timeout=15)
        return [(one.condition, one.object) for one in answer.uploads]

    async def due(self) -> list[tuple[str, int, str]]:
        request = index_pb2.ListDueRequest(before_s=int(time.time()) + 10, limit=100)
        return [(one.name.object, one.name.offset, one.object) for one in (await self.index.ListDue(request, timeout=15)).uploads]

    async def restore(self, uid: str) -> tuple[int, int, int]:
        with rpc_errors.translated("index"):
            answer = await self.index.RestoreInstances(index_pb2.RestoreInstancesRequest(uid=uid), timeout=15)
        return answer.restored, answer.here, answer.gone

    async def search(self, level: Any = index_pb2.LEVEL_STUDY) -> list[bytes]:
        return list((await self.index.Search(index_pb2.SearchRequest(level=level), timeout=5)).rows)

    async def records(self, **scope: str) -> list[index_pb2.InstanceRecord]:
        request = index_pb2.GetInstancesRequest(scope=index_pb2.Scope(**scope))
        with rpc_errors.translated("index"):
            return [one async for answer in self.index.GetInstances(request, timeout=5) for one in answer.records]

    async def delete(self, **scope: str) -> int:
        request = index_pb2.DeleteInstancesRequest(scope=index_pb2.Scope(**scope))
        return int((await self.index.DeleteInstances(request, timeout=10)).deleted)

    async def reindex(self) -> index_pb2.ReindexResponse:
        messages = [one async for one in self.index.Reindex(index_pb2.ReindexRequest(), timeout=30)]
        last: index_pb2.ReindexResponse = messages[-1]
        return last

    def decisions(self, name: str) -> list[Decision]:
        return [Decision.FromString(data) for key, data in self.blob.objects.items() if f"/{name}-" in key]


def subject_of(study: str) -> str:
    return streams.SUBJECTS["InstancesStored"].format(partition=streams.partition_of(study))


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[Suite]:
    nats = NatsServer(tmp_path / "nats")
    nats.start()
    made = Suite(tmp_path / "index", nats)
    await made.start()
    yield made
    await made.stop()
    nats.stop()


def instance(sop: str, content: str = "", study: str = STUDY) -> blob_pb2.StoredInstance:
    json = {
        "0020000D": {"vr": "UI", "Value": [study]},
        "0020000E": {"vr": "UI", "Value": [SERIES]},
        "00080018": {"vr": "UI", "Value": [sop]},
        "00100020": {"vr": "LO", "Value": ["P1"]},
    }
    return blob_pb2.StoredInstance(
        study_instance_uid=study,
        series_instance_uid=SERIES,
        sop_instance_uid=sop,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        dataset_digest=(content or sop).encode(),
        dicom_json=orjson.dumps(json),
    )


def value(row: bytes, tag: str) -> Any:
    return orjson.loads(row.replace(b"\0", b""))[tag]["Value"][0]


INSTANCES_IN_STUDY = "00201208"


async def test_a_stored_instance_is_new_and_found(suite: Suite) -> None:
    assert await suite.announce(instance("1.1"), instance("1.2")) == {0: NEW, 1: NEW}
    (row,) = await suite.search()
    assert value(row, INSTANCES_IN_STUDY) == 2
    assert b'"\0/studies/1.2.3"' in row
    assert [one.stored.sop_instance_uid for one in await suite.records(collection=STUDY)] == ["1.1", "1.2"]


async def test_facts_that_stay_in_the_pack_are_read_from_its_trailer(suite: Suite) -> None:
    assert await suite.announce(instance("1.1"), in_pack=True) == {0: NEW}
    assert len(await suite.search(index_pb2.LEVEL_INSTANCE)) == 1


async def test_of_two_contents_of_one_uid_exactly_the_first_is_new(suite: Suite) -> None:
    told = await asyncio.gather(suite.announce(instance("1.1", "a")), suite.announce(instance("1.1", "b")))
    assert sorted(one[0] for one in told) == [NEW, DUPLICATE]
    assert len(suite.decisions("refused")) == 1


async def test_one_uid_twice_in_one_request_is_decided_by_part_order(suite: Suite) -> None:
    assert await suite.announce(instance("1.1", "a"), instance("1.1", "b"), instance("1.1", "a")) == {0: NEW, 1: DUPLICATE, 2: SAME}
    (record,) = await suite.records(sop_instance_uid="1.1")
    assert record.stored.location.offset == 0


async def test_the_same_event_again_tells_the_same_and_counts_once(suite: Suite) -> None:
    await suite.announce(instance("1.1"))
    version = (await suite.records(sop_instance_uid="1.1"))[0].version
    reply = await suite.client.subscribe(InstancesStored.FromString(suite.last_event[1]).reply_subject)
    await streams.publish(suite.js, *suite.last_event)
    assert StoreOutcomes.FromString((await reply.next_msg(5)).data).outcomes[0].outcome == NEW
    assert value((await suite.search())[0], INSTANCES_IN_STUDY) == 1
    assert (await suite.records(sop_instance_uid="1.1"))[0].version == version


async def test_deleted_it_is_gone_and_stored_again_it_is_new(suite: Suite) -> None:
    await suite.announce(instance("1.1"))
    assert await suite.delete(collection=STUDY) == 1
    with pytest.raises(errors.Gone):
        await suite.records(collection=STUDY)
    assert await suite.search() == []
    assert suite.decisions("deleted")[0].locations[0].object == "packs/0001"
    assert await suite.announce(instance("1.1")) == {0: NEW}
    assert len(await suite.records(collection=STUDY)) == 1


LIVE, DEAD, SWEPT, UNKNOWN = (getattr(index_pb2.UploadState, f"CONDITION_{name}") for name in ("LIVE", "DEAD", "SWEPT", "UNKNOWN"))


async def test_the_last_of_many_deletions_and_restores_counts_also_after_reindex(suite: Suite) -> None:
    one, other = instance("1.1"), instance("1.2")
    await suite.announce(one, other)
    version = 0
    for _ in range(3):
        await suite.delete(sop_instance_uid="1.1")
        await suite.reindex()
        assert await suite.describe(one, other) == [(DEAD, "packs/0001"), (LIVE, "packs/0001")]
        with pytest.raises(errors.Gone):
            await suite.records(sop_instance_uid="1.1")
        assert await suite.restore("1.1") == (1, 0, 0)
        await suite.reindex()
        (record,) = await suite.records(sop_instance_uid="1.1")
        assert record.version > version
        version = record.version
        assert value((await suite.search())[0], INSTANCES_IN_STUDY) == 2
    assert await suite.restore("1.1") == (0, 1, 0)
    assert await suite.due() == []


async def test_restoring_brings_back_the_last_that_was_deleted_of_a_uid(suite: Suite) -> None:
    first, second = instance("1.1", "a"), instance("1.1", "b")
    await suite.announce(first)
    await suite.delete(collection=STUDY)
    await suite.announce(second)
    assert await suite.restore(STUDY) == (0, 1, 0)
    await suite.delete(collection=STUDY)
    await suite.reindex()
    assert await suite.restore(SERIES) == (1, 0, 0)
    assert await suite.describe(first, second) == [(DEAD, "packs/0001"), (LIVE, "packs/0002")]
    with pytest.raises(errors.NotFound):
        await suite.restore("9.9")


async def test_copied_records_move_and_are_deleted_and_restored_under_their_first_name(suite: Suite) -> None:
    one, other, refused = instance("1.1"), instance("1.2"), instance("1.1", "b")
    await suite.announce(one, other)
    await suite.announce(refused)
    await suite.delete(sop_instance_uid="1.2")
    before = await suite.search(index_pb2.LEVEL_INSTANCE), await suite.records(sop_instance_uid="1.1")
    await suite.copy("packs/0003.copy.pack", one, other, refused)
    del suite.blob.trailers["packs/0001"], suite.blob.trailers["packs/0002"]
    for _ in range(2):
        assert {key for _, key in await suite.describe(one, other, refused)} == {"packs/0003.copy.pack"}
        assert await suite.search(index_pb2.LEVEL_INSTANCE) == before[0]
        (record,) = await suite.records(sop_instance_uid="1.1")
        assert (record.stored.location.object, record.stored.origin.object) == ("packs/0003.copy.pack", "packs/0001")
        assert record.version > before[1][0].version
        await suite.reindex()
    assert await suite.due() == [("packs/0001", 100, "packs/0003.copy.pack")]
    assert await suite.restore("1.2") == (1, 0, 0)
    await suite.copy("packs/0004.copy.pack", *suite.blob.trailers["packs/0003.copy.pack"])
    del suite.blob.trailers["packs/0003.copy.pack"]
    assert await suite.delete(collection=STUDY) == 2
    await suite.reindex()
    assert await suite.describe(one, other) == [(DEAD, "packs/0004.copy.pack")] * 2
    assert await suite.restore(STUDY) == (2, 0, 0)
    assert value((await suite.search())[0], INSTANCES_IN_STUDY) == 2


async def test_a_copy_beside_its_first_is_read_from_the_copy_after_reindex(suite: Suite) -> None:
    one, other = instance("1.1"), instance("1.2")
    await suite.announce(one, other)
    await suite.copy("packs/0002.copy.pack", other)
    await suite.reindex()
    assert await suite.describe(one, other) == [(LIVE, "packs/0001"), (LIVE, "packs/0002.copy.pack")]
    assert value((await suite.search())[0], INSTANCES_IN_STUDY) == 2
    assert suite.decisions("redundant") == []


async def test_only_what_is_dead_can_be_given_up_and_then_nobody_can_restore_it(suite: Suite) -> None:
    one, other, refused = instance("1.1"), instance("1.2"), instance("1.2", "b")
    await suite.announce(one, other)
    await suite.announce(refused)
    await suite.delete(sop_instance_uid="1.1")
    await suite.give_up(one, other, refused)
    for _ in range(2):
        assert [condition for condition, _ in await suite.describe(one, other, refused, instance("7.7"))] == [SWEPT, LIVE, DEAD, UNKNOWN]
        assert await suite.due() == []
        assert await suite.restore("1.1") == (0, 0, 1)
        with pytest.raises(errors.Gone):
            await suite.records(sop_instance_uid="1.1")
        await suite.reindex()
    del suite.blob.trailers["packs/0001"]
    await suite.reindex()
    with pytest.raises(errors.Gone):
        await suite.records(sop_instance_uid="1.1")
    assert await suite.announce(instance("1.1")) == {0: NEW}


async def test_an_index_that_is_lost_is_built_again_with_what_was_deleted_and_restored(suite: Suite) -> None:
    await suite.announce(instance("1.1"), instance("1.2"), instance("1.3"))
    await suite.delete(collection=STUDY)
    await suite.restore("1.2")
    before = await suite.search(index_pb2.LEVEL_INSTANCE)
    await suite.stop()
    suite.directory = suite.directory.with_name("another")
    await suite.start()
    assert await suite.search(index_pb2.LEVEL_INSTANCE) == before
    with pytest.raises(errors.Gone):
        await suite.records(sop_instance_uid="1.1")
    assert await suite.restore("1.1") == (1, 0, 0)


async def test_reindex_gives_the_same_bytes(suite: Suite) -> None:
    await suite.announce(instance("1.1", "a"), instance("1.2"))
    await suite.announce(instance("1.1", "b"))
    await suite.announce(instance("9.1", study="9"))
    await suite.delete(collection="9")
    before = [await suite.search(level) for level in (1, 2, 3)], await suite.records(collection=STUDY)
    done = await suite.reindex()
    assert (done.done, done.instances) == (True, 2)
    assert ([await suite.search(level) for level in (1, 2, 3)], await suite.records(collection=STUDY)) == before
    with pytest.raises(errors.Gone):
        await suite.records(collection="9")
    assert await suite.announce(instance("1.3")) == {0: NEW}


async def test_a_lost_index_is_built_again_from_the_object_store(suite: Suite) -> None:
    await suite.announce(instance("1.1", "a"), instance("1.2"))
    await suite.announce(instance("1.1", "b"))
    before = await suite.search(index_pb2.LEVEL_INSTANCE)
    await suite.stop()
    suite.directory = suite.directory.with_name("another")
    await suite.start()
    assert await suite.search(index_pb2.LEVEL_INSTANCE) == before
    assert await suite.announce(instance("1.1", "c")) == {0: DUPLICATE}


async def test_it_goes_on_from_its_cursor_after_a_stop(suite: Suite) -> None:
    await suite.announce(instance("1.1"))
    await suite.stop()
    await suite.start()
    assert await suite.announce(instance("1.2")) == {0: NEW}
    assert value((await suite.search())[0], INSTANCES_IN_STUDY) == 2


async def test_a_lost_nats_volume_begins_above_the_high_water_mark(suite: Suite) -> None:
    await suite.announce(instance("1.1"))
    (before,) = await suite.records(sop_instance_uid="1.1")
    await suite.js.delete_stream("STORE")
    await until(lambda: streams.describe_stream(suite.js, streams.STORE))
    await until(suite.is_ready)
    await suite.announce(instance("1.2"))
    assert (await suite.records(sop_instance_uid="1.2"))[0].version > before.version


async def poison_events(suite: Suite) -> int:
    return int((await suite.index.GetStatus(index_pb2.GetStatusRequest(), timeout=5)).poison_events)


async def unknown(suite: Suite, *packs: str) -> list[str]:
    return list((await suite.index.FilterUnknownPacks(index_pb2.FilterUnknownPacksRequest(objects=packs), timeout=5)).objects)


async def test_a_pack_with_a_poison_event_stays_unknown_until_the_event_is_announced_again(suite: Suite) -> None:
    one, other = instance("1.1"), instance("9.1", study="9")
    for number, stored in enumerate((one, other)):
        stored.location.CopyFrom(blob_pb2.Location(object="packs/a", offset=100 * number, length=100))
    first = InstancesStored(object="packs/a", collection=STUDY, instances=[one], facts_in_pack=True)
    last = InstancesStored(object="packs/a", collection="9", instances=[other], last_of_pack=True)

    configuration = (await suite.js.stream_info("STORE")).config
    await suite.js.update_stream(configuration.evolve(duplicate_window=0.1))

    async def announce() -> None:
        for event in (first, last):
            before = (await streams.stream_state(suite.js, streams.STORE))[1]
            subject, headers = subject_of(event.collection), {"Nats-Msg-Id": f"packs/a {event.collection} 0"}

            async def is_published(
                subject: str = subject, event: InstancesStored = event, headers: dict[str, str] = headers, before: int = before
            ) -> bool:
                return await streams.publish(suite.js, subject, event.SerializeToString(), headers) > before

            await until(is_published)
        await suite.describe()

    suite.blob.trailers["packs/a"] = []
    await announce()
    assert (await unknown(suite, "packs/a"), await poison_events(suite)) == (["packs/a"], 1)
    assert len(await suite.records(collection="9")) == 1
    suite.blob.trailers["packs/a"] = [one, other]
    await announce()
    assert (await unknown(suite, "packs/a"), await poison_events(suite)) == ([], 0)
    assert len(await suite.records(collection=STUDY)) == 1


async def test_a_partition_that_waits_is_a_problem_whatever_the_others_apply(suite: Suite) -> None:
    suite.blob.away = {"packs/a"}
    event = InstancesStored(object="packs/a", collection="9", instances=[blob_pb2.StoredInstance()], facts_in_pack=True)
    message = streams.Message(10**6, subject_of("9"), {}, event.SerializeToString())
    waiting = asyncio.create_task(suite.reader.apply("7", [message]))
    await until(lambda: suite.reader.problem)
    assert await suite.announce(instance("1.1")) == {0: NEW}
    assert "away" in suite.reader.problem
    suite.blob.away = set()
    suite.blob.trailers["packs/a"] = [blob_pb2.StoredInstance(sop_instance_uid="9.1", study_instance_uid="9", dicom_json=b"{}")]
    await waiting
    assert suite.reader.problem == ""
    assert await poison_events(suite) == 0


async def test_elasticsearch_that_is_read_only_for_a_moment_is_waited_for(elasticsearch_url: str, tmp_path: Path) -> None:
    nats = NatsServer(tmp_path / "nats")
    nats.start()
    suite = Suite(tmp_path / "index", nats)
    suite.elasticsearch = (elasticsearch_url, f"test-{uuid.uuid4().hex}")
    await suite.start()
    assert isinstance(suite.store, ElasticsearchStore)
    client, prefix = suite.store._cluster.client, suite.store._cluster.prefix
    await client.indices.put_settings(index=f"{prefix}-*", settings={"index.blocks.read_only": True})
    announced = asyncio.create_task(suite.announce(instance("1.1"), instance("1.2")))
    await until(lambda: "cluster_block_exception" in suite.reader.problem)
    assert not announced.done()
    await client.indices.put_settings(index=f"{prefix}-*", settings={"index.blocks.read_only": None})
    assert await announced == {0: NEW, 1: NEW}
    assert len(await suite.records(collection=STUDY)) == 2
    assert (await poison_events(suite), await unknown(suite, "packs/0001")) == (0, [])
    for index in await client.indices.get(index=f"{prefix}-*"):
        await client.indices.delete(index=index)
    await suite.stop()
    nats.stop()


async def test_what_cannot_be_told_is_no_poison(suite: Suite) -> None:
    stored = instance("1.1")
    stored.location.CopyFrom(blob_pb2.Location(object="packs/a", offset=0, length=100))
    event = InstancesStored(object="packs/a", collection=STUDY, instances=[stored], reply_subject="no subject", last_of_pack=True)
    await streams.publish(suite.js, subject_of(STUDY), event.SerializeToString())
    assert await suite.announce(instance("1.2")) == {0: NEW}
    assert (await unknown(suite, "packs/a"), await poison_events(suite)) == ([], 0)
    assert len(await suite.records(collection=STUDY)) == 2


async def test_a_failure_that_nobody_thought_of_is_waited_for(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = True

    def fail(*arguments: Any) -> Any:
        if broken:
            raise AssertionError("a fault of ours")
        return decide(*arguments)

    monkeypatch.setattr(reader, "decide", fail)
    announced = asyncio.create_task(suite.announce(instance("1.1")))
    await until(lambda: "cannot be applied: AssertionError" in suite.reader.problem)
    assert not await suite.is_ready()
    broken = False
    assert await announced == {0: NEW}
    assert await poison_events(suite) == 0


async def test_a_poison_event_is_counted_and_passed(suite: Suite) -> None:
    await streams.publish(suite.js, subject_of(STUDY), b"\xff\xff\xff")
    assert await suite.announce(instance("1.1")) == {0: NEW}
    assert (await suite.index.GetStatus(index_pb2.GetStatusRequest(), timeout=5)).poison_events == 1


async def test_only_packs_announced_to_their_end_are_known(suite: Suite) -> None:
    await suite.announce(instance("1.1"))
    request = index_pb2.FilterUnknownPacksRequest(objects=["packs/9", "packs/0001"])
    assert list((await suite.index.FilterUnknownPacks(request, timeout=5)).objects) == ["packs/9"]


async def test_a_current_worklist_search_waits_for_the_stream(suite: Suite) -> None:
    await streams.ensure_stream(suite.js, streams.WORKITEMS)
    uid = f"2.25.{uuid.uuid4().int}"
    state = events_pb2.WorkitemState(workitem_uid=uid, dicom_json=b'{"00741000":{"vr":"CS","Value":["SCHEDULED"]}}')
    await streams.publish(suite.js, f"workitem.{uid}", state.SerializeToString())
    request = index_pb2.SearchWorkitemsRequest(current=True)
    (row,) = (await suite.index.SearchWorkitems(request, timeout=5)).rows
    assert value(row, "00741000") == "SCHEDULED"
