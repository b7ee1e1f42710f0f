"""Arrivals on a real stream: which studies are processed when, also after a crash or an earlier version."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest

from gantry.blob.v1.blob_pb2 import Location, StoredInstance
from gantry.blob.v1.blob_pb2_grpc import BlobServiceStub, add_BlobServiceServicer_to_server
from gantry.events.v1.events_pb2 import Change, InstancesStored, StudyChanged
from gantry.index.v1 import index_pb2, index_pb2_grpc
from gantry_index.edge import scope_of
from gantry_runtime.events import streams
from gantry_runtime.events.streams import CHANGES, STORE, WORKITEMS, JetStreamContext
from gantry_runtime.process import end_tasks
from gantry_runtime.rpc import channels
from gantry_standard import errors
from gantry_workflow.arrivals import follow
from gantry_workflow.arrivals.follow import Arrivals
from gantry_workflow.arrivals.rules import INPUT_INFORMATION, Rule, load_rules
from gantry_workflow.settings import WorkflowSettings
from gantry_workflow.streams.report_writer import BUCKET
from gantry_workflow.streams.workitems import Workitems
from gantry_workflow.workitems.dataset import read, values
from tests.support.nats_server import until
from tests.support.worklist import Blob, own_nats, v


class Index(index_pb2_grpc.IndexServiceServicer):
    """An index with the studies that a test adds. `applied` has the applied sequence of a study; large metadata is in an object."""

    def __init__(self) -> None:
        self.applied: dict[str, int] = {}
        self.polled: list[str] = []
        self.instances: dict[str, list[StoredInstance]] = {}
        self.asked: list[str] = []
        self.away: set[str] = set()
        """Studies for which a call fails with UNAVAILABLE."""

    async def GetAppliedSequence(self, request, context):
        self.polled.append(request.collection)
        return index_pb2.GetAppliedSequenceResponse(sequence=self.applied.get(request.collection, 1 << 60))

    async def GetMetadata(self, request, context):
        self.asked.append(request.scope.collection)
        if request.scope.collection in self.away:
            raise errors.Unavailable("index is away")
        yield index_pb2.GetMetadataResponse(
            fragments=[
                index_pb2.MetadataFragment(
                    dicom_json=one.dicom_json, location=one.dicom_json_location, sop_instance_uid=one.sop_instance_uid
                )
                for one in self._known(request)
            ]
        )

    async def GetInstances(self, request, context):
        yield index_pb2.GetInstancesResponse(records=[index_pb2.InstanceRecord(stored=one) for one in self._known(request)])

    def _known(self, request):
        scope_of(request.scope)
        if request.scope.collection not in self.instances:
            raise errors.NotFound("there is no such study")
        return self.instances[request.scope.collection]


class World:
    """A stream, an index, and rules for CT studies."""

    def __init__(self, js: JetStreamContext, index: Index, blob: Blob, rules: tuple[Rule, ...], settings: WorkflowSettings) -> None:
        self.js, self.index, self.blob, self.rules, self.settings = js, index, blob, rules, settings

    async def store(self, study: str, number: int = 1, modality: str = "CT", large: bool = False, settles: bool = True) -> int:
        """Add an instance to index and publish that its study has settled; return the sequence on CHANGES."""
        one = StoredInstance(
            study_instance_uid=study, series_instance_uid=f"{study}.1", sop_class_uid="1.2.3", sop_instance_uid=f"{study}.1.{number}"
        )
        data = json.dumps(
            {
                "00080018": v("UI", one.sop_instance_uid),
                "00080060": v("CS", modality),
                "0020000D": v("UI", study),
                "0020000E": v("UI", one.series_instance_uid),
                "7FE00010": {"vr": "OW", "BulkDataURI": "BASE/bulk"},
            }
        ).encode()
        data = data.replace(b"BASE", b"\0")
        if large:
            self.blob.objects["pack"] = data
            one.dicom_json_location.CopyFrom(Location(object="pack", offset=0, length=len(data)))
        else:
            one.dicom_json = data
        self.index.instances.setdefault(study, []).append(one)
        if not settles:
            return 0
        event = StudyChanged(collection=study, changes=[Change(kind=Change.KIND_SETTLED)])
        subject = streams.SUBJECTS["StudySettled"].format(uid=study)
        return await streams.publish(self.js, subject, event.SerializeToString())

    async def announce(self, study: str) -> int:
        """Publish an upload on STORE; return its sequence."""
        event = InstancesStored(object="pack", collection=study)
        return await streams.publish(self.js, f"store.{streams.partition_of(study)}.stored", event.SerializeToString())

    async def workitem(self, study: str) -> list[str] | None:
        """Return the input instances of the workitem of a study; None if there is no workitem."""
        state, _ = await Workitems(self.js).read(self.rules[0].workitem_uid(study))
        if state is None:
            return None
        inputs = values(read(state.dicom_json), INPUT_INFORMATION)
        return [values(one, "00081155")[0] for item in inputs for one in values(item, "00081199")]

    async def cursor(self) -> int:
        """Return the stored cursor."""
        return int((await (await streams.open_bucket(self.js, BUCKET)).get(follow.CURSOR))[0] or b"-1")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the stream while the context is open; then kill the follower without any clean-up."""
        async with AsyncExitStack() as stack:
            open_channels = []
            for add, servicer in (
                (index_pb2_grpc.add_IndexServiceServicer_to_server, self.index),
                (add_BlobServiceServicer_to_server, self.blob),
            ):

                def register(server: grpc.aio.Server, add=add, servicer=servicer) -> None:  # type: ignore[no-untyped-def]
                    add(servicer, server)

                port = await stack.enter_async_context(channels.serving(register, "127.0.0.1:0", drain_s=0.1))
                open_channels.append(await stack.enter_async_context(channels.channel(f"127.0.0.1:{port}")))
            follower = Arrivals(
                self.js, index_pb2_grpc.IndexServiceStub(open_channels[0]), BlobServiceStub(open_channels[1]), self.rules, self.settings
            )
            task = asyncio.create_task(follower.lead("test"))
            try:
                yield
            finally:
                await end_tasks([task])


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A world with a rule for CT studies."""
    (tmp_path / "rules.toml").write_text('[[rule]]\nname = "ct"\ntemplate = "t.json"\n[rule.match]\nModality = "CT"\n')
    (tmp_path / "t.json").write_text("{}")
    settings = WorkflowSettings(workitem_rules=tmp_path / "rules.toml", workitem_rules_url="http://host/dicom-web")
    with own_nats(tmp_path / "nats") as nats:
        async with streams.connected(nats.url, "test") as client:
            js = client.jetstream()
            for stream in (STORE, WORKITEMS, CHANGES):
                await streams.ensure_stream(js, stream)
            yield World(js, Index(), Blob(), load_rules(tmp_path / "rules.toml"), settings)


async def test_what_settled_before_the_rules_or_while_they_were_off_is_passed(world: World) -> None:
    await world.store("1.1")
    await follow.begin(world.js, has_rules=True)
    await world.store("1.2")
    await follow.begin(world.js, has_rules=True)
    async with world.running():
        await until(lambda: world.workitem("1.2"))
    await follow.begin(world.js, has_rules=False)
    await world.store("1.3")
    await follow.begin(world.js, has_rules=True)
    await world.store("1.4")
    async with world.running():
        await until(lambda: world.workitem("1.4"))
    assert "1.1" not in world.index.asked
    assert "1.3" not in world.index.asked
    assert await world.workitem("1.1") is await world.workitem("1.3") is None


async def test_a_study_is_looked_at_when_it_has_settled_and_again_when_it_has_settled_again(world: World) -> None:
    await follow.begin(world.js, has_rules=True)
    await world.store("1.1", settles=False)
    await world.store("1.2")
    async with world.running():
        await until(lambda: world.workitem("1.2"))
        assert world.index.asked == ["1.2"]
        await world.store("1.1", 2)
        await until(lambda: world.workitem("1.1"))
        assert await world.workitem("1.1") == ["1.1.1.1", "1.1.1.2"]
        await world.store("1.1", 3)

        async def has_more() -> bool:
            return await world.workitem("1.1") == ["1.1.1.1", "1.1.1.2", "1.1.1.3"]

        await until(has_more)
    assert world.index.polled == []


async def test_large_metadata_is_read_from_its_object(world: World) -> None:
    await follow.begin(world.js, has_rules=True)
    await world.store("1.1", modality="MR")
    await world.store("1.1", 2, large=True)
    async with world.running():
        await until(lambda: world.workitem("1.1"))
    assert await world.workitem("1.1") == ["1.1.1.1", "1.1.1.2"]


async def test_the_cursor_stays_before_the_oldest_study_that_is_not_worked_on(world: World) -> None:
    await follow.begin(world.js, has_rules=True)
    first = await world.store("1.1")
    second = await world.store("1.2")
    world.index.away = {"1.1"}
    async with world.running():
        await until(lambda: world.workitem("1.2"))
        await until(lambda: world.index.asked.count("1.1") >= 2)
    assert await world.cursor() == first - 1 < second
    world.index.away = set()
    world.index.asked = []
    del world.index.instances["1.2"]
    last = await world.store("1.3", modality="MR")
    async with world.running():
        await until(lambda: world.workitem("1.1"))

        async def is_level() -> bool:
            return await world.cursor() == last

        await until(is_level)
    assert await world.workitem("1.3") is None
    assert sorted(world.index.asked) == ["1.1", "1.2", "1.3"]


async def test_what_an_earlier_version_left_on_store_is_tried_once_index_has_applied_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "STORE_QUIET_S", 0.2)
    bucket = await streams.open_bucket(world.js, BUCKET)
    await world.store("1.1", settles=False)
    noted = await world.announce("1.1")
    await world.store("1.2", settles=False)
    await world.announce("1.2")
    await world.store("1.3", settles=False)
    last = await world.announce("1.3")
    await bucket.put(follow.STORE_CURSOR, str(noted).encode())
    world.index.applied = {"1.3": last - 1}
    await follow.begin(world.js, has_rules=True)
    async with world.running():
        await until(lambda: world.workitem("1.2"))
        await until(lambda: world.index.polled.count("1.3") >= 2)
        assert (await bucket.get(follow.STORE_CURSOR))[0] == str(noted).encode()
    world.index.applied = {}
    async with world.running():
        await until(lambda: world.workitem("1.3"))

        async def is_forgotten() -> bool:
            return not (await bucket.get(follow.STORE_CURSOR))[0]

        await until(is_forgotten)
    assert "1.1" not in world.index.asked


async def test_with_too_many_studies_the_stream_waits_and_none_is_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "MAX_WAITING", 3)
    await follow.begin(world.js, has_rules=True)
    studies = [f"1.{number}" for number in range(1, 12)]
    for study in studies:
        await world.store(study)
    async with world.running():
        for study in studies:
            await until(lambda study=study: world.workitem(study))  # type: ignore[misc]
