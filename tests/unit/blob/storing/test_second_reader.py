"""The second reader: what it accounts for is what is meant, and it is bounded."""

import asyncio
import random
import struct
import tempfile
import time
import warnings
from pathlib import Path

import orjson
import pytest

from gantry.blob.v1 import blob_pb2
from gantry_blob.stores.directory import INCOMING, DirectoryStore
from gantry_blob.storing import second_reader
from gantry_blob.storing.request import StoreRules
from gantry_runtime.process import end_tasks
from gantry_standard.dicom.limits import BrokenStructure, ScanFailure
from tests.support import broken, instances
from tests.support import hand_made as h
from tests.support.blob_service import running_blob
from tests.support.nats_server import NatsServer, until
from tests.support.scanning import scan

ITEM_TAG = b"\xfe\xff\x00\xe0"
LARGEST_SAMPLE_BYTES = 60_000


def new_uids() -> dict[int, str]:
    """Return the four UIDs of an instance by their tags."""
    return {0x00080016: instances.CT_IMAGE, **{tag: instances.new_uid() for tag in (0x00080018, 0x0020000D, 0x0020000E)}}


def rewritten(data: bytes) -> bytes | None:
    """Return what the process would write, made here; None where it would refuse or crash."""
    with tempfile.NamedTemporaryFile() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.write(data)
        file.flush()
        try:
            return b"".join(second_reader._rewritten(Path(file.name)))
        except Exception:
            return None


def is_broken(data: bytes) -> bool:
    """Say whether the scan refuses a file for its structure."""
    try:
        scan(data)
    except BrokenStructure:
        return True
    except ScanFailure:
        return False
    return False


@pytest.mark.parametrize("name", broken.READ_OTHERWISE)
def test_what_is_accounted_for_is_what_is_meant(name: str) -> None:
    row = broken.READ_OTHERWISE[name]
    sent = row.make(new_uids())
    assert is_broken(sent)
    found = rewritten(sent)
    assert found is not None
    json = orjson.loads(scan(found).scanned.dicom_json)
    assert json[row.tag] == row.element


@pytest.mark.parametrize("name", broken.LOST_BY_PYDICOM)
def test_what_is_not_accounted_for_is_refused(name: str) -> None:
    sent = broken.LOST_BY_PYDICOM[name](new_uids())
    assert is_broken(sent)
    assert rewritten(sent) is None


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return a file with one thing wrong: a byte, a delimiter, a length of an item, bytes too few or too many."""
    at = chance.randrange(132, len(data) - 8)
    item = data.find(ITEM_TAG, at)
    match chance.choice(("byte", "short", "length", "gone", "more")):
        case "byte":
            return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        case "short" if item > 0:
            length = int.from_bytes(data[item + 4 : item + 8], "little")
            return data[: item + 4] + struct.pack("<I", max(0, length - 2 * chance.randrange(1, 5))) + data[item + 8 :]
        case "length" if item > 0:
            return data[: item + 4] + struct.pack("<I", chance.choice((0, 2, 8, 100, 0xFFFFFFFF))) + data[item + 8 :]
        case "gone":
            return data[:at] + data[at + chance.choice((1, 2, 4, 8)) :]
        case _:
            return data[:at] + bytes(chance.choice((1, 2, 4, 8))) + data[at:]


def test_of_files_damaged_at_random_what_is_accounted_for_is_what_they_said_before(sample_files: list[Path]) -> None:
    chance, accounted = random.Random(60), 0
    for path in sample_files:
        data = path.read_bytes()
        if len(data) > LARGEST_SAMPLE_BYTES or len(data) < 200:
            continue
        try:
            before = scan(data).scanned.dicom_json
        except ScanFailure:
            continue
        for _ in range(25):
            wrong = damaged(data, chance)
            found = rewritten(wrong) if is_broken(wrong) else None
            if found is None or is_broken(found):
                continue
            accounted += 1
            assert scan(found).scanned.dicom_json == before, path.name
    assert accounted >= 3


def test_a_part_is_held_while_it_is_short_and_kept_from_its_failure_on() -> None:
    held = second_reader.Held(4 << 20, None)
    held.take(b"a" * 1000, is_needed=False)
    held.take(b"b" * (2 << 20), is_needed=True)
    whole = held.whole()
    assert whole is not None
    assert whole.read_bytes() == b"a" * 1000 + b"b" * (2 << 20)
    held.take(b"c" * (2 << 20), is_needed=True)
    assert held.whole() is None
    assert not whole.exists()


def test_a_part_that_reads_well_for_long_is_not_held() -> None:
    held = second_reader.Held(64 << 20, None)
    for _ in range(3):
        held.take(b"a" * (512 << 10), is_needed=False)
    held.take(b"b", is_needed=True)
    assert held.whole() is None
    assert second_reader.Held(0, None).whole() is None


def test_a_reader_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(next(iter(broken.READ_OTHERWISE.values())).make(new_uids()))
    begin = time.monotonic()
    assert not second_reader.read_otherwise(source, tmp_path / "target", 0.01)
    assert time.monotonic() - begin < 5


def test_a_reader_that_cannot_read_its_file_is_no_answer(tmp_path: Path) -> None:
    assert not second_reader.read_otherwise(tmp_path / "absent", tmp_path / "target", 60)


async def test_the_original_is_kept_verified_and_nothing_else_stays(tmp_path: Path, nats_server: NatsServer) -> None:
    row = broken.READ_OTHERWISE["Implicit VR elements in Big Endian"]
    sent = [row.make(new_uids()), instances.encoded(instances.ct(4, 4)), row.make(new_uids())]
    rules = StoreRules(spool_directory=tmp_path / INCOMING, second_reader_parts=1)
    async with running_blob(DirectoryStore(tmp_path, 0), nats_server.url, rules) as blob:
        results = await blob.store_parts(sent, chunk_bytes=100)
        assert [(result.failure_reason, list(result.warning_reasons)) for result in results] == [(0, [0xB007]), (0, []), (0xC000, [])]
        [key] = blob.packs()
        first, second = await blob.trailer(key)
        for stored, file in ((first, sent[0]), (second, sent[1])):
            assert await blob.read(key, [(stored.location.offset, stored.location.length)]) == file
        assert first.transfer_syntax_uid == h.BIG_ENDIAN
        assert first.layout.wire_transfer_syntax_uid == h.EXPLICIT
        wire = await blob.read(key, [(span.offset, span.length) for span in first.layout.wire])
        assert orjson.loads(scan(wire).scanned.dicom_json)[row.tag] == row.element
        [verified] = [answer async for answer in blob.stub.Verify(blob_pb2.VerifyRequest(object=key), timeout=30)]
        assert (verified.instances, list(verified.problems)) == (2, [])
        assert list((tmp_path / INCOMING).iterdir()) == []


async def test_when_the_time_of_a_request_is_used_up_the_rest_fails_with_the_reason_of_the_scan(
    tmp_path: Path, nats_server: NatsServer
) -> None:
    row = broken.READ_OTHERWISE["Implicit VR elements in Big Endian"]
    sent = [row.make(new_uids()), instances.encoded(instances.ct(4, 4)), row.make(new_uids())]
    rules = StoreRules(spool_directory=tmp_path / INCOMING, second_reader_budget_s=0.01)
    async with running_blob(DirectoryStore(tmp_path, 0), nats_server.url, rules) as blob:
        results = await blob.store_parts(sent, chunk_bytes=100)
        assert [result.failure_reason for result in results] == [0xC000, 0, 0xC000]
        assert list((tmp_path / INCOMING).iterdir()) == []


async def test_a_request_for_which_the_line_is_full_fails_at_once_with_the_reason_of_the_scan(
    tmp_path: Path, nats_server: NatsServer
) -> None:
    row = broken.READ_OTHERWISE["Implicit VR elements in Big Endian"]
    async with running_blob(DirectoryStore(tmp_path, 0), nats_server.url, second_readers=0) as blob:
        [result] = await blob.store_parts([row.make(new_uids())])
        assert result.failure_reason == 0xC000


async def test_requests_that_wait_for_the_second_reader_hold_neither_a_thread_nor_a_place(tmp_path: Path, nats_server: NatsServer) -> None:
    row = broken.READ_OTHERWISE["Implicit VR elements in Big Endian"]
    ordinary = [instances.encoded(instances.ct(4, 4))]
    async with running_blob(DirectoryStore(tmp_path, 0), nats_server.url, concurrent_uploads=1) as blob:
        reader = blob.edge._pools.second_readers
        waiting = [asyncio.create_task(blob.store_parts([row.make(new_uids()) for _ in range(3)]))]
        await until(lambda: reader._inside == 1)
        waiting.append(asyncio.create_task(blob.store_parts([row.make(new_uids())])))
        await until(lambda: reader._inside == 2)
        [stored] = await blob.store_parts(ordinary)
        assert stored.failure_reason == 0
        assert not any(request.done() for request in waiting)
        assert [[list(result.warning_reasons) for result in await request] for request in waiting] == [[[0xB007]] * 3, [[0xB007]]]
        assert blob.edge._uploads._free == 1


async def test_a_store_that_is_given_up_while_it_waits_for_the_second_reader_leaves_nothing(
    tmp_path: Path, nats_server: NatsServer
) -> None:
    row = broken.READ_OTHERWISE["Implicit VR elements in Big Endian"]
    rules = StoreRules(spool_directory=tmp_path / INCOMING)
    async with running_blob(DirectoryStore(tmp_path, 0), nats_server.url, rules, concurrent_uploads=1) as blob:
        reader = blob.edge._pools.second_readers
        given_up = [asyncio.create_task(blob.store_parts([row.make(new_uids()) for _ in range(3)]))]
        await until(lambda: reader._inside == 1)
        await end_tasks(given_up)
        await until(lambda: blob.edge._uploads._free == 1 and reader._inside == 0)
        await until(lambda: not list((tmp_path / INCOMING).iterdir()))
        assert blob.packs() == []
