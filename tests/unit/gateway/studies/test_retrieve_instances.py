"""Instances: PS3.10 files as stored or transcoded, streamed; partial responses; clients that disconnect or read slowly."""

import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gantry.blob.v1.blob_pb2 import Range
from tests.support.nats_server import until
from tests.unit.gateway.retrieve_world import BITS, CT, J2K, LE, MPEG, ONE, OTHER_SERIES, SERIES, SR, STUDY, WSI, World, parts_of, running

DICOM = 'multipart/related; type="application/dicom"'
STORED = f"{DICOM}; transfer-syntax=*"


@pytest.fixture(params=["warm", "cold"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with running(tmp_path) as opened:
        opened.reader.warm = request.param == "warm"
        yield opened


@pytest.mark.parametrize(
    ("path", "uids"),
    [
        pytest.param(f"/studies/{STUDY}", [CT, WSI, BITS, SR, ONE], id="study"),
        pytest.param(f"/studies/{STUDY}/series/{SERIES}", [CT, WSI, BITS, SR], id="series"),
        pytest.param(f"/studies/{STUDY}/series/{SERIES}/instances/{WSI}", [WSI], id="instance"),
    ],
)
async def test_as_stored_every_instance_is_one_part(world: World, path: str, uids: list[str]) -> None:
    answer = await world.get(path, STORED)
    assert answer.status_code == 200
    parts = parts_of(answer)
    assert [part.body for part in parts] == [world.wire[uid] for uid in uids]
    assert [part.headers["Content-Location"] for part in parts] == [f"{world.root}{world.instance(uid)}" for uid in uids]
    assert parts[uids.index(WSI) if WSI in uids else 0].headers["Content-Type"] == f"application/dicom; transfer-syntax={J2K}"
    assert int(answer.headers["content-length"]) == len(answer.content)


@pytest.mark.parametrize("accept", [None, "*/*", "multipart/*", f"{DICOM};", DICOM, f"{DICOM}; transfer-syntax={LE}"])
async def test_explicit_little_endian_is_the_default(world: World, accept: str | None) -> None:
    answer = await world.get(f"/studies/{STUDY}/series/{SERIES}", accept)
    parts = parts_of(answer)
    assert {part.headers["Content-Type"] for part in parts} == {f"application/dicom; transfer-syntax={LE}"}
    assert [part.body for part in parts] == [world.wire[CT], f"{WSI} {LE}".encode(), world.wire[BITS], world.wire[SR]]


async def test_a_single_part_instance(world: World) -> None:
    answer = await world.get(world.instance(CT), "application/dicom")
    assert (answer.status_code, answer.content) == (200, world.wire[CT])
    assert answer.headers["content-type"] == f"application/dicom; transfer-syntax={LE}"
    assert answer.headers["content-location"] == f"{world.root}{world.instance(CT)}"
    assert answer.headers["content-length"] == str(len(world.wire[CT]))


async def test_a_transcoded_single_part_instance(world: World) -> None:
    answer = await world.get(world.instance(WSI), "application/dicom")
    assert answer.content == f"{WSI} {LE}".encode()
    assert answer.headers["content-type"] == f"application/dicom; transfer-syntax={LE}"
    assert answer.headers["content-location"] == f"{world.root}{world.instance(WSI)}"


async def test_a_range_of_a_single_part_instance(world: World) -> None:
    answer = await world.get(world.instance(CT), "application/dicom", range="bytes=2-5")
    assert (answer.status_code, answer.content) == (206, world.wire[CT][2:6])
    assert answer.headers["content-range"] == f"bytes 2-5/{len(world.wire[CT])}"


@pytest.mark.parametrize("accept", ["application/dicom", "application/octet-stream", "image/jp2"])
async def test_what_a_series_cannot_be_had_as(world: World, accept: str) -> None:
    answer = await world.get(f"/studies/{STUDY}/series/{OTHER_SERIES}", accept)
    assert answer.status_code == 406
    assert 'multipart/related; type="application/dicom"' in answer.text.replace("&quot;", '"')


async def test_another_transfer_syntax_is_made_by_the_renderer(world: World) -> None:
    answer = await world.get(world.instance(CT), f"{DICOM}; transfer-syntax={J2K}")
    assert parts_of(answer)[0].body == f"{CT} {J2K}".encode()


async def test_the_next_transfer_syntax_where_the_first_is_unknown(world: World) -> None:
    accept = f"{DICOM}; transfer-syntax=1.2.840.10008.1.2.4.100, {DICOM}; transfer-syntax={LE}; q=0.5"
    assert parts_of(await world.get(world.instance(CT), accept))[0].body == world.wire[CT]


async def test_a_transfer_syntax_that_nobody_makes_is_not_acceptable(world: World) -> None:
    assert (await world.get(f"/studies/{STUDY}", f"{DICOM}; transfer-syntax=1.2.840.10008.1.2.4.100")).status_code == 406


async def test_instances_whose_transfer_syntax_is_not_decoded_are_left_out(world: World) -> None:
    world.add("1.2.3.4.6", "1.2.840.10008.1.2.4.102", [b"video"], frames=1)
    answer = await world.get(f"/studies/{STUDY}/series/{SERIES}", f"{DICOM}; transfer-syntax={LE}")
    assert answer.status_code == 206
    assert len(parts_of(answer)) == 4


async def test_what_is_lossy_and_not_decoded_stays_as_it_is_where_no_transfer_syntax_is_named(world: World) -> None:
    world.add("1.2.3.4.6", MPEG, [b"video"], frames=1)
    answer = await world.get(f"/studies/{STUDY}/series/{SERIES}", DICOM)
    assert answer.status_code == 200
    assert parts_of(answer)[-1].headers["Content-Type"] == f"application/dicom; transfer-syntax={MPEG}"
    assert parts_of(answer)[-1].body == world.wire["1.2.3.4.6"]


async def test_instances_that_turn_out_impossible_are_left_out(world: World) -> None:
    world.renderer.impossible.add(WSI)
    answer = await world.get(f"/studies/{STUDY}", DICOM)
    assert answer.status_code == 206
    assert [part.body for part in parts_of(answer)] == [world.wire[uid] for uid in (CT, BITS, SR, ONE)]


async def test_an_instance_that_turns_out_impossible_is_tried_in_the_next_transfer_syntax(world: World) -> None:
    world.renderer.impossible.add(WSI)
    answer = await world.get(world.instance(WSI), f"{DICOM}; transfer-syntax={LE}, {STORED}; q=0.5")
    assert answer.status_code == 200
    assert parts_of(answer)[0].body == world.wire[WSI]
    assert parts_of(answer)[0].headers["Content-Type"] == f"application/dicom; transfer-syntax={J2K}"


async def test_nothing_possible_is_not_acceptable(world: World) -> None:
    world.renderer.impossible.add(WSI)
    for accept in (DICOM, "application/dicom"):
        assert (await world.get(world.instance(WSI), accept)).status_code == 406


async def test_unknown_and_deleted(world: World) -> None:
    world.index.deleted.add("1.2.3.4.9")
    for path, status in (
        (f"/studies/{STUDY}/series/{SERIES}/instances/1.2.3.4.9", 410),
        ("/studies/9", 404),
        (f"/studies/{STUDY}/series/9", 404),
    ):
        assert (await world.get(path, STORED)).status_code == status


async def test_an_entity_tag_of_a_study_changes_with_it(world: World) -> None:
    path = f"/studies/{STUDY}"
    etag = (await world.get(path, STORED)).headers["etag"]
    assert (await world.get(path, STORED, if_none_match=etag)).status_code == 304
    world.index.records[SR].version += 100
    assert (await world.get(path, STORED, if_none_match=etag)).status_code == 200


async def test_instances_of_one_pack_are_read_with_one_call(world: World) -> None:
    world.reader.warm = False
    await world.get(f"/studies/{STUDY}", STORED)
    assert world.reader.reads == [("packs/a.pack", 10)]


async def test_pieces_smaller_than_a_part_head_are_dealt_out_right(world: World) -> None:
    world.reader.warm, world.reader.piece_bytes = False, 7
    parts = parts_of(await world.get(f"/studies/{STUDY}", STORED))
    assert [part.body for part in parts] == [world.wire[uid] for uid in (CT, WSI, BITS, SR, ONE)]


async def test_a_study_whose_pack_moved_is_asked_for_once_more(world: World) -> None:
    world.reader.warm = False
    world.index.moved_to = "packs/moved.pack"
    world.pack.path.rename(world.reader.directory / "packs/moved.pack")
    parts = parts_of(await world.get(f"/studies/{STUDY}", STORED))
    assert [part.body for part in parts] == [world.wire[uid] for uid in (CT, WSI, BITS, SR, ONE)]


async def test_a_big_instance_passes_through_in_pieces(world: World) -> None:
    """600 MB are sent as stored; the memory of the process grows by far less."""
    world.reader.warm = False
    big = world.reader.directory / "packs/big.pack"
    with big.open("wb") as file:
        file.truncate(600 << 20)
    stored = world.add("1.2.3.4.10", LE)
    stored.location.object = "packs/big.pack"
    del stored.layout.wire[:]
    stored.layout.wire.append(Range(offset=0, length=600 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = 0
    async with world.http.stream("GET", f"{world.root}{world.instance('1.2.3.4.10')}", headers={"accept": STORED}) as answer:
        async for piece in answer.aiter_raw(1 << 20):
            size += len(piece)
    assert size == int(answer.headers["content-length"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
    assert world.reader.open_reads == 0


async def test_a_client_that_goes_away_ends_what_the_renderer_does(world: World) -> None:
    world.renderer.endless = True
    async with world.http.stream("GET", f"{world.root}{world.instance(WSI)}", headers={"accept": DICOM}) as answer:
        await anext(answer.aiter_raw())
    assert await until(world.renderer.cancelled.is_set)


async def test_a_client_that_goes_away_ends_the_reading(world: World) -> None:
    world.reader.warm = False
    stored = world.add("1.2.3.4.10", LE)
    with (world.reader.directory / "packs/big.pack").open("wb") as file:
        file.truncate(stored.layout.wire[0].offset + (600 << 20))
    stored.location.object = "packs/big.pack"
    stored.layout.wire[0].length = 600 << 20
    async with world.http.stream("GET", f"{world.root}{world.instance('1.2.3.4.10')}", headers={"accept": STORED}) as answer:
        await anext(answer.aiter_raw())
        assert world.reader.open_reads == 1
    await until(lambda: world.reader.open_reads == 0)


async def test_head_makes_and_reads_nothing(world: World) -> None:
    for path, accept in (
        (world.instance(WSI), DICOM),
        (world.instance(WSI), "application/dicom"),
        (f"/studies/{STUDY}", STORED),
        (f"{world.instance(WSI)}/frames/1", 'multipart/related; type="application/octet-stream"'),
        (f"{world.instance(WSI)}/frames/1", "application/octet-stream"),
        (f"{world.instance(WSI)}/frames/1", "application/octet-stream; transfer-syntax=*"),
        (f"/studies/{STUDY}/bulkdata", "*/*"),
    ):
        answer = await world.http.head(f"{world.root}{path}", headers={"accept": accept})
        assert (answer.status_code, answer.content) == (200, b"")
        got = await world.get(path, accept)
        assert got.headers["content-type"].split("boundary")[0] == answer.headers["content-type"].split("boundary")[0]
        assert got.headers["etag"] == answer.headers["etag"]
        if "content-length" in answer.headers:
            assert answer.headers["content-length"] == got.headers["content-length"]
        world.reader.reads.clear()
        world.renderer.sources.clear()
        await world.http.head(f"{world.root}{path}", headers={"accept": accept})
        assert (world.reader.reads, world.renderer.sources) == ([], [])
