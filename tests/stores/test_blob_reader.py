"""The contract of BlobReader (`gantry_runtime/blob_reader.py`), on both adapters and both stores."""

import gc
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from gantry_blob.stores.directory import DirectoryStore
from gantry_runtime.blob_reader import READY_BYTES, BlobReader, MappedReader, Ranges, StreamedReader, coalesced, object_path
from gantry_runtime.rpc import channels
from gantry_standard import errors
from tests.support.blob_service import RunningBlob, a_store, running_blob
from tests.support.nats_server import NatsServer

MIB = 1 << 20
KEY = "packs/2026/11/24/object.pack"
DATA = os.urandom(5 * MIB + 77)


@dataclass
class Reading:
    """A reader of a running blob whose store has DATA under KEY."""

    reader: BlobReader
    blob: RunningBlob
    is_mapped: bool


@pytest_asyncio.fixture(params=["streamed directory", "streamed s3", "mapped directory"])
async def reading(request: pytest.FixtureRequest, tmp_path: Path, nats_server: NatsServer) -> AsyncIterator[Reading]:
    adapter, kind = request.param.split()
    with a_store(kind, tmp_path, request) as store:
        writer = store.create(KEY)
        writer.write(DATA)
        writer.commit()
        async with running_blob(store, nats_server.url) as blob:
            reader = MappedReader(tmp_path, blob.stub) if adapter == "mapped" else StreamedReader(blob.stub)
            yield Reading(reader, blob, adapter == "mapped")


async def content(reader: BlobReader, ranges: Ranges, key: str = KEY) -> bytes:
    return b"".join([bytes(piece) async for piece in reader.read(key, ranges)])


@pytest.mark.parametrize(
    "ranges",
    [
        pytest.param([(0, len(DATA))], id="all of it"),
        pytest.param([(3, 5)], id="a few bytes"),
        pytest.param([(4 * MIB, 100), (7, 3), (7, 3), (2 * MIB, MIB + 1)], id="in any order, and twice"),
        pytest.param([(0, 10), (10, 10), (20, 0), (20, 10), (31, 1)], id="adjacent and empty"),
        pytest.param([(len(DATA) - 1, 1)], id="the last byte"),
        pytest.param([(n * 1001, 10) for n in range(5000)], id="thousands"),
        pytest.param([], id="none"),
    ],
)
async def test_ranges_are_read_in_their_order(reading: Reading, ranges: list[tuple[int, int]]) -> None:
    assert await content(reading.reader, ranges) == b"".join(DATA[o : o + n] for o, n in ranges)


async def test_a_piece_has_at_most_one_mebibyte_and_is_read_only(reading: Reading) -> None:
    pieces = [piece async for piece in reading.reader.read(KEY, [(1, len(DATA) - 1)])]
    assert max(map(len, pieces)) <= MIB
    assert all(memoryview(piece).readonly for piece in pieces)


async def test_pieces_stay_valid_as_long_as_they_are_held(reading: Reading) -> None:
    pieces = [piece async for piece in reading.reader.read(KEY, [(0, len(DATA))])]
    for number in range(3):
        reading.blob.store.put(f"other/{number}", bytes([number]) * 100)
        assert await content(reading.reader, [(0, 100)], f"other/{number}") == bytes([number]) * 100
    if isinstance(reading.blob.store, DirectoryStore):
        object_path(reading.blob.store.directory, KEY).unlink()
    reading.reader = StreamedReader(reading.blob.stub)
    gc.collect()
    assert b"".join(pieces) == DATA


async def test_an_object_that_is_not_there_is_not_found_before_the_first_piece(reading: Reading) -> None:
    with pytest.raises(errors.NotFound):
        await content(reading.reader, [(0, 1)], "packs/none.pack")


@pytest.mark.parametrize("ranges", [[(len(DATA), 1)], [(0, len(DATA) + 1)], [(0, 1), (1 << 40, 1)]])
async def test_a_range_beyond_the_end_is_a_bad_request(reading: Reading, ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(errors.BadRequest):
        await anext(reading.reader.read(KEY, ranges))
    assert reading.reader.ready(KEY, ranges) is None


@pytest.mark.parametrize("key", ["../secret", "packs/../../secret", "/etc/passwd", ".incoming/x", ""])
async def test_what_is_no_key_is_a_bad_request(reading: Reading, key: str) -> None:
    with pytest.raises(errors.BadRequest):
        await content(reading.reader, [(0, 1)], key)


async def test_reading_may_stop_early(reading: Reading) -> None:
    for _ in range(5):
        pieces = reading.reader.read(KEY, [(0, len(DATA))])
        assert bytes(await anext(pieces))[:9] == DATA[:9]
        await pieces.aclose()  # type: ignore[attr-defined]
    assert await content(reading.reader, [(5, 5)]) == DATA[5:10]


async def test_ready_gives_warm_ranges_of_a_mapped_object_at_once_and_nothing_else(reading: Reading) -> None:
    ranges = [(5, 2 * MIB), (100, 3)]
    views = reading.reader.ready(KEY, ranges)
    if not reading.is_mapped:
        assert views is None
        return
    assert views is not None
    assert max(map(len, views)) <= MIB
    assert b"".join(views) == b"".join(DATA[o : o + n] for o, n in ranges)
    assert all(view.readonly for view in views)


async def test_a_blob_that_does_not_answer_is_unavailable() -> None:
    from gantry.blob.v1.blob_pb2_grpc import BlobServiceStub

    async with channels.channel("127.0.0.1:1") as channel:
        with pytest.raises(errors.Unavailable):
            await content(StreamedReader(BlobServiceStub(channel)), [(0, 1)])


@pytest_asyncio.fixture
async def mapped(tmp_path: Path, nats_server: NatsServer) -> AsyncIterator[tuple[MappedReader, DirectoryStore]]:
    """A mapped reader that keeps two maps."""
    store = DirectoryStore(tmp_path, reserve_percent=0)
    async with AsyncExitStack() as stack:
        blob = await stack.enter_async_context(running_blob(store, nats_server.url))
        yield MappedReader(tmp_path, blob.stub, most_maps=2), store


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_the_number_of_maps_is_bounded(mapped: tuple[MappedReader, DirectoryStore]) -> None:
    reader, store = mapped
    for number in range(30):
        store.put(f"a/{number}", bytes([number]) * 10_000)
    assert await content(reader, [(0, 10)], "a/0") == bytes(10)
    before = descriptors()
    for number in range(30):
        assert await content(reader, [(9_990, 10)], f"a/{number}") == bytes([number]) * 10
    gc.collect()
    assert descriptors() <= before + 2


async def test_cold_ranges_are_not_ready_but_read(mapped: tuple[MappedReader, DirectoryStore], tmp_path: Path) -> None:
    reader, store = mapped
    store.put("cold", DATA)
    descriptor = os.open(tmp_path / "cold", os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    views = reader.ready("cold", [(MIB, 2 * MIB)])
    assert views is None, "the file system keeps no pages after POSIX_FADV_DONTNEED"
    assert await content(reader, [(MIB, 2 * MIB)], "cold") == DATA[MIB : 3 * MIB]
    views = reader.ready("cold", [(MIB, 2 * MIB)])
    assert views is not None
    assert b"".join(views) == DATA[MIB : 3 * MIB]


async def test_very_long_ranges_are_never_ready_at_once(mapped: tuple[MappedReader, DirectoryStore]) -> None:
    reader, store = mapped
    writer = store.create("long")
    writer.write(bytes(READY_BYTES + 1))
    writer.commit()
    assert reader.ready("long", [(0, READY_BYTES + 1)]) is None
    views = reader.ready("long", [(0, READY_BYTES)])
    assert views is not None
    assert sum(map(len, views)) == READY_BYTES


async def test_an_empty_object_has_no_bytes(mapped: tuple[MappedReader, DirectoryStore]) -> None:
    reader, store = mapped
    store.put("empty", b"")
    assert await content(reader, [(0, 0)], "empty") == b""
    with pytest.raises(errors.BadRequest):
        await content(reader, [(0, 1)], "empty")


def test_adjacent_ranges_are_joined() -> None:
    assert coalesced([(0, 4), (4, 4), (8, 0), (8, 1), (20, 2), (9, 1), (10, 1)]) == [(0, 9), (20, 2), (9, 2)]
