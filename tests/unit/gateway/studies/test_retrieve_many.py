"""Studies with many instances, however each is sent; clients that disconnect while their response is computed."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gantry.blob.v1.blob_pb2 import StoredInstance
from gantry.index.v1.index_pb2 import InstanceRecord
from gantry_gateway.answers import bodies
from gantry_gateway.content.answer_records import AnswerRecords
from gantry_gateway.studies import bulkdata, retrieve
from gantry_standard import errors
from tests.support.nats_server import until
from tests.unit.gateway.retrieve_world import CT, J2K, LE, SERIES, STUDY, WSI, World, parts_of, running

STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
OCTETS = 'multipart/related; type="application/octet-stream"'


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as opened:
        yield opened


async def test_a_study_of_more_parts_than_are_held_has_its_length_and_every_part(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.reader.warm = False
    for number in range(300):
        world.add(f"{SERIES}.9.{number}", LE, [b"ab"], frame_bits=16, frames=1)
    monkeypatch.setattr(bodies, "MAX_HELD_PARTS", 100)
    answer = await world.get(f"/studies/{STUDY}/series/{SERIES}", STORED)
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert [part.body for part in parts_of(answer)] == [world.wire[uid] for uid in world.wire if uid.startswith(f"{SERIES}.")]


async def test_records_that_do_not_fit_are_asked_for_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (retrieve, bulkdata):
        monkeypatch.setattr(module, "AnswerRecords", lambda records, study: AnswerRecords(records, study, most_bytes=0))
    everything = parts_of(await world.get(f"/studies/{STUDY}", f"{STORED}, {OCTETS};q=0.1"))
    assert [part.body for part in everything] == list(world.wire.values())
    world.index.asked.clear()
    bulk = parts_of(await world.get(f"/studies/{STUDY}/bulkdata", "*/*"))
    assert [part.body for part in bulk[1:3]] == [b"%PDF-1.7", b"nested"]
    assert CT in world.index.asked
    transcoded = parts_of(await world.get(f"/studies/{STUDY}", 'multipart/related; type="application/dicom"'))
    assert f"{WSI} {LE}".encode() in [part.body for part in transcoded]


def test_a_hundred_thousand_records_are_kept_in_little_memory() -> None:
    kept = AnswerRecords(None, "1.2.3")  # type: ignore[arg-type]
    stored = StoredInstance(study_instance_uid="1" * 60, series_instance_uid="2" * 60, dataset_digest=bytes(32))
    stored.location.object = "packs/2026/11/24/" + "x" * 40
    stored.layout.wire_transfer_syntax_uid = LE
    for _ in range(2):
        stored.layout.wire.add(offset=1 << 31, length=1 << 20)
    for _ in range(1000):
        stored.layout.frames.encapsulated.fragment_offsets.append(1 << 31)
        stored.layout.frames.encapsulated.fragment_lengths.append(1 << 20)
    for number in range(10_000):
        stored.sop_instance_uid = f"{'3' * 50}.{number}"
        kept.add(InstanceRecord(stored=stored, version=number), whole=True)
    assert not kept.are_whole
    assert sum(map(len, kept._encoded)) < (32 << 20) + 10_000 * 400
    assert kept.stored(9_999).sop_instance_uid.endswith(".9999")


async def test_an_instance_that_was_replaced_is_not_sent_half(world: World) -> None:
    kept = AnswerRecords(world.records, STUDY, most_bytes=0)
    kept.add(world.index.records[CT], whole=True)
    assert (await kept.record(0)).stored.sop_instance_uid == CT
    world.index.records[CT].stored.dataset_digest = b"other"
    with pytest.raises(errors.Unavailable):
        await kept.record(0)


async def test_what_broke_an_answer_off_is_left_out_the_next_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        world.add(f"{SERIES}.8.{number}", J2K, [b"tile"], frames=1)
    world.renderer.impossible.add(f"{SERIES}.8.1")
    monkeypatch.setattr(bodies, "GATHER_BYTES", 10)
    path, accept = f"/studies/{STUDY}/series/{SERIES}", f'multipart/related; type="application/dicom"; transfer-syntax={LE}'
    with pytest.raises(Exception, match="peer closed"):
        await world.get(path, accept)
    answer = await world.get(path, accept)
    assert answer.status_code == 206
    assert f"{SERIES}.8.1" not in "".join(part.headers["Content-Location"] for part in parts_of(answer))


async def test_an_archive_is_read_as_a_stream(world: World) -> None:
    world.reader.warm, world.reader.piece_bytes = False, 5
    for uid in world.index.json:
        world.index.json[uid] = b'{"00080018":{"vr":"UI","Value":["%s"]}}' % uid.encode()
    world.index.json_places.clear()
    answer = await world.get(f"/studies/{STUDY}", "application/zip")
    assert int(answer.headers["content-length"]) == len(answer.content)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert [archive.read(name) for name in archive.namelist()[2:]] == list(world.wire.values())


async def test_a_client_that_goes_away_before_its_answer_ends_the_handler(world: World) -> None:
    world.index.before_answer = asyncio.Event()
    _, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(f"GET /dicom-web/studies/{STUDY} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n".encode())
    await until(lambda: bool(world.index.asked))
    tasks = {task for task in asyncio.all_tasks() if "run_asgi" in repr(task)}
    assert len(tasks) == 1
    writer.close()
    async with asyncio.timeout(1):
        await asyncio.wait(tasks)
    world.index.before_answer.set()
