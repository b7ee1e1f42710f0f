"""The sweeper step by step, where a running suite cannot stop it: windows, crashes between steps, an index that knows less."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest_asyncio

from gantry.blob.v1 import blob_pb2
from gantry.events.v1 import events_pb2
from gantry.index.v1 import index_pb2
from gantry.index.v1.index_pb2_grpc import IndexServiceServicer, IndexServiceStub, add_IndexServiceServicer_to_server
from gantry_blob.packs import pack
from gantry_blob.packs.announcer import Announcer
from gantry_blob.packs.copy import upload_name_of
from gantry_blob.packs.sweeper import JOURNAL, TRASH, Sweeper, SweeperTimes
from gantry_blob.stores.directory import DirectoryStore
from gantry_blob.storing.request import StoreRequest, StoreRules
from gantry_index.edge import MOST_DESCRIBED, MOST_DUE
from gantry_runtime.events import streams
from gantry_runtime.rpc import channels
from gantry_runtime.stored_instances import COPY_SUFFIX
from gantry_runtime.threads import Threads
from gantry_standard import errors
from tests.support import instances
from tests.support.blob_service import upload_messages
from tests.support.nats_server import NatsServer

Condition = index_pb2.UploadState
Name = tuple[str, int]


class KnownUploads(IndexServiceServicer):
    """An index that knows what a test tells it: of each upload the condition and the object."""

    def __init__(self) -> None:
        self.states: dict[Name, tuple[int, str]] = {}
        self.due: list[Name] = []
        self.unknown: set[str] = set()
        self.before_s = 0
        self.restored: set[Name] = set()
        """Restored before what is applied next."""
        self.poisoned: Name | None = None
        """Of what comes about this one, nothing is applied."""
        self.follow: Callable[[], Awaitable[object]]

    async def FilterUnknownPacks(self, request: Any, context: Any) -> index_pb2.FilterUnknownPacksResponse:
        return index_pb2.FilterUnknownPacksResponse(objects=[key for key in request.objects if key in self.unknown])

    async def ListDue(self, request: Any, context: Any) -> index_pb2.ListDueResponse:
        if not 1 <= request.limit <= MOST_DUE:
            raise errors.BadRequest(f"limit is {request.limit}, expected 1 to {MOST_DUE}")
        self.before_s = request.before_s
        found = sorted((self.states[name][1], name) for name in self.due)
        names = [(key, blob_pb2.Location(object=name[0], offset=name[1])) for key, name in found if key > request.after_object]
        return index_pb2.ListDueResponse(uploads=[index_pb2.DueUpload(object=key, name=name) for key, name in names])

    async def DescribeUploads(self, request: Any, context: Any) -> index_pb2.DescribeUploadsResponse:
        if len(request.uploads) > MOST_DESCRIBED:
            raise errors.BadRequest(f"{len(request.uploads)} uploads, expected at most {MOST_DESCRIBED}")
        await self.follow()
        names = [(one.location.object, one.location.offset) for one in request.uploads]
        states = [self.states.get(name, (Condition.CONDITION_UNKNOWN, "")) for name in names]
        return index_pb2.DescribeUploadsResponse(uploads=[index_pb2.UploadState(condition=c, object=key) for c, key in states])  # type: ignore[arg-type]


@dataclass
class World:
    """A sweeper and what it works on; index applies what was announced when it is asked."""

    store: DirectoryStore
    index: KnownUploads
    client: streams.Client
    sweeper: Sweeper
    clock: list[float]
    applied: int = 0
    kinds: list[str] = field(default_factory=list)
    """Of the events applied."""

    async def store_pack(self, number: int = 3) -> tuple[str, list[blob_pb2.StoredInstance]]:
        """Write a pack that index knows, all live."""
        messages = [message async for message in upload_messages([instances.encoded(instances.ct(8, 8)) for _ in range(number)])]
        upload = StoreRequest(self.store, messages[0].start, StoreRules())
        upload.apply(messages[1:])
        [(key, _)] = upload.commit()
        found = list(pack.read_trailer(self.store, key).instances)
        self.index.states |= {upload_name_of(one): (Condition.CONDITION_LIVE, key) for one in found}
        return key, found

    def delete(self, *deleted: blob_pb2.StoredInstance) -> None:
        for one in deleted:
            self.index.states[upload_name_of(one)] = Condition.CONDITION_DEAD, one.location.object
            self.index.due.append(upload_name_of(one))

    async def follow(self) -> None:
        """Apply the stream as index does."""
        last = await streams.last_sequence(self.client.jetstream(), streams.STORE, "store.>")
        while self.applied < last:
            async for batch in streams.read_from(self.client.jetstream(), streams.STORE, self.applied, wait_s=0.1):
                for message in batch:
                    self.applied = message.sequence
                    self.kinds.append(message.subject.rpartition(".")[2])
                    self._apply(message)
                break

    def _apply(self, message: streams.Message) -> None:
        if message.subject.endswith(".swept"):
            for upload in events_pb2.InstancesSwept.FromString(message.data).instances:
                name = upload.location.object, upload.location.offset
                if name in self.index.restored:
                    self.index.states[name] = Condition.CONDITION_LIVE, self.index.states[name][1]
                    self.index.due.remove(name)
                if self.index.states[name][0] == Condition.CONDITION_DEAD:
                    self.index.states[name] = Condition.CONDITION_SWEPT, self.index.states[name][1]
                    self.index.due.remove(name)
            return
        for one in events_pb2.InstancesStored.FromString(message.data).instances:
            if upload_name_of(one) != self.index.poisoned:
                self.index.states[upload_name_of(one)] = self.index.states[upload_name_of(one)][0], one.location.object

    def keys(self, prefix: str) -> list[str]:
        return [entry.key for entry in self.store.list(prefix)]

    async def finish(self) -> None:
        """Sweep until nothing is left to do."""
        for _ in range(3):
            await self.sweeper.sweep()


TIMES = SweeperTimes(after_s=1000, settle_s=60, trash_s=500, broken_s=86_400)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    nats = NatsServer(tmp_path / "nats")
    nats.start()
    store, index, clock = DirectoryStore(tmp_path / "objects", 0), KnownUploads(), [0.0]
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(streams.connected(nats.url, "test"))
        await streams.ensure_stream(client.jetstream(), streams.STORE)
        port = await stack.enter_async_context(
            channels.serving(lambda server: add_IndexServiceServicer_to_server(index, server), "127.0.0.1:0", drain_s=0)
        )
        stub = IndexServiceStub(await stack.enter_async_context(channels.channel(f"127.0.0.1:{port}")))
        pool = stack.enter_context(Threads(4, "test"))
        publisher = streams.Publisher(client)
        announcer = Announcer(store, publisher, stub, pool)
        sweeper = Sweeper(store, announcer, publisher, stub, pool, TIMES, lambda: time.time() + clock[0])
        made = World(store, index, client, sweeper, clock)
        index.follow = made.follow
        yield made
    nats.stop()


async def test_only_what_was_decided_before_the_window_is_asked_for(world: World) -> None:
    await world.sweeper.sweep()
    assert abs(world.index.before_s - (time.time() - TIMES.after_s)) < 5


async def test_a_pack_goes_to_the_trash_and_from_there_after_its_time(world: World) -> None:
    key, found = await world.store_pack()
    data = pack.read_bytes(world.store, key, 0, world.store.size(key))
    world.delete(*found)
    await world.finish()
    (trashed,) = world.keys(TRASH)
    assert trashed.endswith(f"/{key}")
    assert world.keys("packs/") + world.keys(JOURNAL) == []
    assert pack.read_bytes(world.store, trashed, 0, len(data)) == data
    world.clock[0] = TIMES.trash_s - 20
    await world.finish()
    assert world.keys(TRASH) == [trashed]
    world.clock[0] = TIMES.trash_s + 1
    await world.finish()
    assert world.keys("") == []


async def test_what_is_restored_before_index_has_given_it_up_stays(world: World) -> None:
    key, found = await world.store_pack()
    world.delete(*found)
    world.index.restored = {upload_name_of(one) for one in found}
    await world.finish()
    assert set(world.kinds) == {"swept"}
    assert world.keys("") == [key]


async def test_a_pack_stays_for_its_readers_after_what_is_left_of_it_was_copied(world: World) -> None:
    key, found = await world.store_pack()
    world.delete(found[0])
    await world.finish()
    copy, first = sorted(world.keys("packs/"), key=lambda one: not one.endswith(COPY_SUFFIX))
    assert first == key
    assert [upload_name_of(one) for one in pack.read_trailer(world.store, copy).instances] == [upload_name_of(one) for one in found[1:]]
    assert pack.read_trailer(world.store, copy).replaces == key
    assert {world.index.states[upload_name_of(one)][1] for one in found[1:]} == {copy}
    assert world.keys(TRASH) == []
    world.clock[0] = TIMES.settle_s + 1
    await world.finish()
    assert world.keys("packs/") == [copy]
    assert world.keys(JOURNAL) == []
    assert len(world.keys(TRASH)) == 1


async def test_a_copy_that_was_not_announced_before_a_crash_is_announced_and_not_made_again(world: World) -> None:
    key, found = await world.store_pack()
    world.delete(found[0])
    announce, world.sweeper._announcer.announce = world.sweeper._announcer.announce, failing  # type: ignore[method-assign]
    for _ in range(3):
        with suppress(errors.Unavailable):
            await world.sweeper.sweep()
    copies = [one for one in world.keys("packs/") if one != key]
    assert len(copies) == 1
    world.sweeper._announcer.announce = announce  # type: ignore[method-assign]
    world.clock[0] = TIMES.settle_s + 1
    await world.finish()
    assert world.keys("packs/") == copies


async def failing(*arguments: object) -> None:
    raise errors.Unavailable("NATS does not answer")


async def test_a_pack_is_kept_while_index_does_not_know_where_the_rest_of_it_lies(world: World) -> None:
    key, found = await world.store_pack()
    world.delete(found[0])
    world.index.poisoned = upload_name_of(found[2])
    world.clock[0] = TIMES.settle_s + 1
    await world.finish()
    assert key in world.keys("packs/")
    assert world.keys(JOURNAL) == [JOURNAL + key]
    world.index.states[world.index.poisoned] = Condition.CONDITION_LIVE, "elsewhere"
    await world.finish()
    assert key not in world.keys("packs/")
    assert world.keys(JOURNAL) == []


async def test_a_pack_that_index_has_not_decided_to_its_end_is_left_alone(world: World) -> None:
    key, found = await world.store_pack()
    world.delete(*found)
    world.index.unknown.add(key)
    await world.finish()
    assert world.keys("") == [key]
    assert world.kinds == []


async def test_a_damaged_instance_keeps_its_pack(world: World) -> None:
    key, found = await world.store_pack()
    path = world.store.directory / key
    data = bytearray(path.read_bytes())
    data[found[1].location.offset + found[1].location.length - 1] ^= 1
    path.write_bytes(data)
    world.delete(found[0])
    world.clock[0] = TIMES.settle_s + 1
    await world.finish()
    assert world.keys("packs/") == [key]
    assert world.keys(TRASH) == []


async def test_a_crash_between_the_trash_and_the_journal_is_finished(world: World) -> None:
    key, found = await world.store_pack()
    world.store.put(JOURNAL + key, blob_pb2.Sweep(object=key).SerializeToString())
    world.delete(*found)
    world.store.move(key, f"{TRASH}{1:014x}/{key}")
    await world.sweeper.sweep()
    assert world.keys(JOURNAL) == []


async def test_a_pack_without_trailer_goes_when_it_is_a_day_old_and_index_never_heard_of_it(world: World) -> None:
    now = time.time()
    young, old, known = (f"packs/x/{int((now - age_s) * 1e6):014x}-1.pack" for age_s in (0, 90_000, 600_000))
    foreign = "packs/x/readme"
    whole, _ = await world.store_pack()
    for key in (young, old, known, foreign):
        world.store.put(key, b"half a pack")
    world.index.unknown = {young, old, foreign, whole}
    await world.sweeper.sweep()
    assert sorted(world.keys("packs/")) == sorted([young, known, foreign, whole])
    assert [key.endswith(f"/{old}") for key in world.keys(TRASH)] == [True]
