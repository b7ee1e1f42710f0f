"""BlobService over real gRPC, a directory or S3, and a real NATS: storing, reading, verifying."""

import asyncio
import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from gantry.blob.v1 import blob_pb2
from gantry.blob.v1.blob_pb2_grpc import BlobServiceStub
from gantry_blob import edge
from gantry_blob.packs.pack import PackLimits
from gantry_blob.stores import directory
from gantry_blob.stores.directory import INCOMING, DirectoryStore
from gantry_blob.storing.request import StoreRules
from gantry_runtime.rpc import channels, rpc_errors
from gantry_standard import errors
from gantry_standard.dicom.limits import Limits
from tests.support import instances
from tests.support.blob_service import RunningBlob, a_store, announced, running_blob, upload_messages
from tests.support.nats_server import NatsServer, until
from tests.support.payload_forms import json_model

MIB = 1 << 20


@pytest_asyncio.fixture(params=["directory", "s3"])
async def blob(request: pytest.FixtureRequest, tmp_path: Path, nats_server: NatsServer) -> AsyncIterator[RunningBlob]:
    with a_store(request.param, tmp_path / "objects", request) as store:
        async with running_blob(store, nats_server.url) as running:
            yield running


@pytest_asyncio.fixture
async def local(tmp_path: Path, nats_server: NatsServer) -> AsyncIterator[RunningBlob]:
    """On a directory, with packs of at most three instances."""
    rules = StoreRules(pack=PackLimits(instances=3))
    async with running_blob(DirectoryStore(tmp_path / "objects", 0), nats_server.url, rules) as running:
        yield running


def ct(**attributes: object) -> bytes:
    return instances.encoded(instances.ct(**attributes))


def large_ct(**attributes: object) -> bytes:
    """Return an instance that is large enough to be worked on before the next one comes."""
    return instances.encoded(instances.ct(500, 500, **attributes))


LONG_TEXT = "x" * 100_000
JUNK = b"this is not DICOM" * 100


async def test_an_instance_is_kept_byte_for_byte_and_announced_once(blob: RunningBlob) -> None:
    data_set = instances.ct()
    file = instances.encoded(data_set)
    [result] = await blob.store_parts([file], reply_subject="reply.1", chunk_bytes=1000)
    assert (result.part_number, result.failure_reason, result.explanation) == (0, 0, "")
    assert (result.study_instance_uid, result.sop_instance_uid) == (data_set.StudyInstanceUID, data_set.SOPInstanceUID)
    [key] = blob.packs()
    [stored] = await blob.trailer(key)
    assert (stored.location.object, stored.location.offset, stored.location.length) == (key, 0, len(file))
    assert await blob.read(key, [(0, len(file))]) == file
    assert stored.head_digest == hashlib.sha256(file[: stored.head_length]).digest()
    assert stored.dataset_digest == hashlib.sha256(file[stored.head_length :]).digest()
    pixels = await blob.read(key, [(stored.layout.frames.native.offset, 32 * 48 * 2)])
    assert pixels == instances.ct_pixels().tobytes()
    assert json.loads(stored.dicom_json.replace(b"\0", b""))["00100020"]["Value"] == ["P-1"]
    [event] = await announced(blob.client, key)
    assert (event.collection, event.request_id, event.reply_subject) == (data_set.StudyInstanceUID, "request-1", "reply.1")
    assert list(event.instances) == [stored]
    assert event.last_of_pack


async def test_one_bad_part_never_fails_the_others(blob: RunningBlob) -> None:
    good = [ct(), ct()]
    verification = ct(SOPClassUID="1.2.840.10008.1.1")
    results = await blob.store_parts([good[0], JUNK, good[1], b"", good[0][: len(good[0]) // 2], verification])
    assert [result.part_number for result in results] == list(range(6))
    assert [result.failure_reason for result in results] == [0, 0xC000, 0, 0xC000, 0xC000, 0x0122]
    assert all(result.explanation for result in results if result.failure_reason)
    assert results[5].sop_class_uid == "1.2.840.10008.1.1"
    assert "Doe" not in str(results)
    [key] = blob.packs()
    stored = await blob.trailer(key)
    assert [instance.part_number for instance in stored] == [0, 2]
    for instance, file in zip(stored, good, strict=True):
        assert await blob.read(key, [(instance.location.offset, instance.location.length)]) == file


async def test_an_instance_of_another_study_than_asked_for_fails_with_a900(blob: RunningBlob) -> None:
    right, wrong = instances.ct(), instances.ct()
    results = await blob.store_parts([instances.encoded(right), instances.encoded(wrong)], study=right.StudyInstanceUID)
    assert [result.failure_reason for result in results] == [0, 43264]
    assert results[1].study_instance_uid == wrong.StudyInstanceUID
    assert results[1].sop_instance_uid == wrong.SOPInstanceUID
    assert [instance.sop_instance_uid for instance in await blob.trailer(blob.packs()[0])] == [right.SOPInstanceUID]


async def test_nothing_is_stored_when_no_part_is_good(blob: RunningBlob) -> None:
    results = await blob.store_parts([JUNK, JUNK])
    assert [result.failure_reason for result in results] == [0xC000, 0xC000]
    assert blob.packs() == []


async def test_a_request_without_parts_has_no_results(blob: RunningBlob) -> None:
    assert await blob.store_parts([]) == []
    assert blob.packs() == []


async def test_each_study_of_a_request_is_announced(blob: RunningBlob) -> None:
    studies = [instances.new_uid() for _ in range(5)]
    await blob.store_parts([ct(StudyInstanceUID=uid) for uid in studies for _ in range(2)])
    [key] = blob.packs()
    events = await announced(blob.client, key)
    assert sorted((event.collection, [i.part_number for i in event.instances]) for event in events) == sorted(
        (uid, [2 * number, 2 * number + 1]) for number, uid in enumerate(studies)
    )
    assert [event.last_of_pack for event in events] == [False] * 4 + [True]


async def test_what_may_not_leave_as_stored_has_a_rendition_after_its_original(blob: RunningBlob) -> None:
    files = [instances.encoded(instances.ct(), uid) for uid in (ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)]
    assert [result.failure_reason for result in await blob.store_parts([*files, ct()])] == [0, 0, 0]
    [key] = blob.packs()
    for stored, file in zip((await blob.trailer(key))[:2], files, strict=True):
        assert await blob.read(key, [(stored.location.offset, stored.location.length)]) == file
        assert stored.layout.wire_transfer_syntax_uid == "1.2.840.10008.1.2.1"
        native = stored.layout.frames.native
        assert await blob.read(key, [(native.offset, native.frame_bits // 8)]) == instances.ct_pixels().tobytes()
        wire = await blob.read(key, [(span.offset, span.length) for span in stored.layout.wire])
        assert wire[128:132] == b"DICM"
        assert instances.ct_pixels().tobytes() in wire


async def test_dicom_json_above_64_kib_lies_in_the_pack(blob: RunningBlob) -> None:
    await blob.store_parts([ct(TextValue=LONG_TEXT), ct()])
    [key] = blob.packs()
    large, small = await blob.trailer(key)
    assert large.dicom_json == b""
    place = large.dicom_json_location
    assert (place.object, small.HasField("dicom_json_location")) == (key, False)
    found = json.loads((await blob.read(key, [(place.offset, place.length)])).replace(b"\0", b""))
    assert found["0040A160"]["Value"] == [LONG_TEXT]


async def test_facts_that_do_not_fit_into_an_event_stay_in_the_pack(blob: RunningBlob) -> None:
    study = instances.new_uid()
    await blob.store_parts([ct(StudyInstanceUID=study, ImageComments="c" * 9000) for _ in range(40)])
    [key] = blob.packs()
    [event] = await announced(blob.client, key)
    assert event.facts_in_pack
    stored = await blob.trailer(key)
    assert [(i.part_number, i.location) for i in event.instances] == [(i.part_number, i.location) for i in stored]
    assert sum(len(instance.dicom_json) for instance in stored) > 256 << 10


async def test_a_request_of_many_instances_has_several_packs_all_announced_after_its_end(
    local: RunningBlob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "GATHERED_BYTES", 1)
    study = instances.new_uid()
    files = [large_ct(StudyInstanceUID=study) for _ in range(8)]
    gate = asyncio.Event()

    async def messages() -> AsyncIterator[blob_pb2.StoreInstancesRequest]:
        async for message in upload_messages(files, end=False):
            yield message
        await gate.wait()
        yield blob_pb2.StoreInstancesRequest(end=blob_pb2.StoreEnd())

    call = local.stub.StoreInstances(messages(), timeout=30)
    reading = asyncio.ensure_future(call.read())
    incoming = local.store.directory / INCOMING  # type: ignore[attr-defined]
    await until(lambda: list(incoming.iterdir()), what="a pack is being written")
    assert local.packs() == []
    gate.set()
    answer = await reading
    assert [result.failure_reason for result in answer.parts] == [0] * 8
    keys = local.packs()
    assert [[i.part_number for i in await local.trailer(key)] for key in keys] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    for key in keys:
        [event] = await announced(local.client, key)
        assert event.instances == await local.trailer(key)
    for number, file in enumerate(files):
        place = (await local.trailer(keys[number // 3]))[number % 3].location
        assert await local.read(place.object, [(place.offset, place.length)]) == file


def leftovers(blob: RunningBlob) -> Iterator[Path]:
    assert isinstance(blob.store, DirectoryStore)
    return (blob.store.directory / INCOMING).iterdir()


def part_messages(number: int, content_type: str, content: bytes, location: str = "") -> list[blob_pb2.StoreInstancesRequest]:
    """Return the messages of one part."""
    start = blob_pb2.PartStart(part_number=number, content_type=content_type, content_location=location)
    return [blob_pb2.StoreInstancesRequest(part=start), blob_pb2.StoreInstancesRequest(chunk=content)]


async def store_messages(
    blob: RunningBlob, messages: Sequence[blob_pb2.StoreInstancesRequest], *, end: bool = True
) -> list[blob_pb2.PartResult]:
    """Store parts of any kind; return the results."""

    async def requests() -> AsyncIterator[blob_pb2.StoreInstancesRequest]:
        yield blob_pb2.StoreInstancesRequest(start=blob_pb2.StoreStart(request_id="request-1", request_uri="http://h/studies"))
        for message in messages:
            yield message
        if end:
            yield blob_pb2.StoreInstancesRequest(end=blob_pb2.StoreEnd())

    with rpc_errors.translated("blob"):
        return [part async for answer in blob.stub.StoreInstances(requests(), timeout=60) for part in answer.parts]


async def test_data_sets_of_metadata_are_numbered_after_the_last_part(blob: RunningBlob) -> None:
    data_sets = [instances.ct(), instances.ct()]
    models = [json_model(data_set, f"bulk/{index}") for index, data_set in enumerate(data_sets)]
    messages = [
        *part_messages(0, "application/octet-stream", data_sets[1].PixelData, "bulk/1"),
        *part_messages(1, "application/dicom+json", json.dumps(models).encode()),
        *part_messages(2, "application/dicom", ct()),
        *part_messages(3, "text/plain", b"nobody asks for this"),
        *part_messages(4, "application/octet-stream", data_sets[0].PixelData, "http://h/bulk/0"),
        *part_messages(5, "application/dicom+xml", b"<NativeDicomModel"),
    ]
    results = await store_messages(blob, messages)
    assert [(result.part_number, result.failure_reason) for result in results] == [(2, 0), (3, 0xC002), (5, 0xC000), (6, 0), (7, 0)]
    assert [result.sop_instance_uid for result in results[3:]] == [data_set.SOPInstanceUID for data_set in data_sets]
    (pack,) = blob.packs()
    assert [instance.part_number for instance in await blob.trailer(pack)] == [2, 6, 7]
    (event,) = [event for event in await announced(blob.client, pack) if event.collection == data_sets[0].StudyInstanceUID]
    assert [instance.part_number for instance in event.instances] == [6]


async def test_a_part_that_the_gateway_could_not_use_fails_what_refers_to_it(local: RunningBlob) -> None:
    model = json_model(instances.ct(), "x")
    start = blob_pb2.PartStart(
        part_number=1, content_type="image/png", content_location="x", failure_reason=0x0110, explanation="too large"
    )
    messages = [*part_messages(0, "application/dicom+json", json.dumps(model).encode()), blob_pb2.StoreInstancesRequest(part=start)]
    (result,) = await store_messages(local, messages)
    assert (result.part_number, result.failure_reason, result.explanation) == (2, 0x0110, "too large")
    assert result.sop_instance_uid == model["00080018"]["Value"][0]


async def test_metadata_without_its_end_leaves_nothing(local: RunningBlob) -> None:
    messages = [
        *part_messages(0, "application/dicom+json", json.dumps([json_model(instances.ct(), "x")]).encode()),
        *part_messages(1, "application/octet-stream", bytes(3 * MIB), "x"),
    ]
    with pytest.raises(errors.BadRequest):
        await store_messages(local, messages, end=False)
    assert local.packs() == []


async def test_data_sets_count_as_parts(tmp_path: Path, nats_server: NatsServer) -> None:
    models = [json_model(instances.general(instances.SECONDARY_CAPTURE, "OT")) for _ in range(3)]
    async with running_blob(DirectoryStore(tmp_path, 0), nats_server.url, StoreRules(most_parts=3)) as blob:
        assert len(await store_messages(blob, part_messages(0, "application/dicom+json", json.dumps(models[:2]).encode()))) == 2
        with pytest.raises(errors.PayloadTooLarge):
            await store_messages(blob, part_messages(0, "application/dicom+json", json.dumps(models).encode()))


async def test_bulkdata_that_waits_leaves_the_reserve_of_the_disk(tmp_path: Path, nats_server: NatsServer) -> None:
    rules = StoreRules(spool_directory=tmp_path, spool_reserve=1.0)
    async with running_blob(DirectoryStore(tmp_path, 0), nats_server.url, rules) as blob:
        with pytest.raises(errors.OutOfResources):
            await store_messages(blob, part_messages(0, "application/octet-stream", bytes(2 * MIB), "x"))


async def test_metadata_larger_than_the_limit_fails_and_the_others_are_kept(tmp_path: Path, nats_server: NatsServer) -> None:
    rules = StoreRules(scan=Limits(value_bytes=100_000))
    messages = [*part_messages(0, "application/dicom+json", b" " * 100_001), *part_messages(1, "application/dicom", ct())]
    async with running_blob(DirectoryStore(tmp_path, 0), nats_server.url, rules) as blob:
        results = await store_messages(blob, messages)
    assert [(result.part_number, result.failure_reason) for result in results] == [(0, 0x0110), (1, 0)]


def nested_json(depth: int) -> bytes:
    """Return DICOM JSON with sequences nested `depth` deep, as text: no library writes 10,000 levels."""
    data_set = instances.general(instances.SECONDARY_CAPTURE, "OT")
    head = json.dumps(json_model(data_set)).removesuffix("}").encode()
    return head + b"," + b'"0040A730":{"vr":"SQ","Value":[{' * depth + b"}]}" * depth + b"}"


def nested_xml(depth: int) -> bytes:
    """Return a Native DICOM Model document with sequences nested `depth` deep."""
    data_set = instances.general(instances.SECONDARY_CAPTURE, "OT")
    uids = {0x0020000D: data_set.StudyInstanceUID, 0x0020000E: data_set.SeriesInstanceUID}
    uids |= {0x00080016: data_set.SOPClassUID, 0x00080018: data_set.SOPInstanceUID}
    head = "".join(f'<DicomAttribute tag="{tag:08X}" vr="UI"><Value number="1">{uid}</Value></DicomAttribute>' for tag, uid in uids.items())
    begin, end = '<DicomAttribute tag="0040A730" vr="SQ"><Item number="1">', "</Item></DicomAttribute>"
    return f'<NativeDicomModel xml:space="preserve">{head}{begin * depth}{end * depth}</NativeDicomModel>'.encode()


def nested_file(depth: int) -> bytes:
    """Return a PS3.10 file with sequences nested `depth` deep, all of undefined length."""
    begin = b"\x40\x00\x30\xa7SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    return instances.encoded(instances.general(instances.SECONDARY_CAPTURE, "OT")) + begin * depth + end * depth


NESTED = {"application/dicom+json": nested_json, "application/dicom+xml": nested_xml, "application/dicom": nested_file}


@pytest.mark.parametrize("content_type", NESTED)
@pytest.mark.parametrize("depth", [1, 64, 65, 80, 84, 85, 100, 254, 300, 340, 341, 342, 1000, 10_000])
async def test_sequences_nested_too_deep_fail_their_own_data_set_only(local: RunningBlob, content_type: str, depth: int) -> None:
    messages = [
        *part_messages(0, "application/dicom", ct()),
        *part_messages(1, content_type, NESTED[content_type](depth)),
        *part_messages(2, "application/dicom", ct()),
    ]
    results = await store_messages(local, messages)
    failed = [result for result in results if result.failure_reason]
    assert len(results) == 3
    assert [result.failure_reason for result in failed] == [0x0110] * (depth > 64)
    assert all("nested deeper than" in result.explanation for result in failed)


async def test_of_an_array_only_the_data_set_that_is_nested_too_deep_fails(local: RunningBlob) -> None:
    document = b"[" + b",".join([nested_json(1), nested_json(300), nested_json(64)]) + b"]"
    results = await store_messages(local, part_messages(0, "application/dicom+json", document))
    assert [(result.part_number, result.failure_reason) for result in results] == [(1, 0), (2, 0x0110), (3, 0)]
    assert json.loads(document)[1]["00080018"]["Value"] == [results[1].sop_instance_uid]


@pytest.mark.parametrize("value", [b"[" * 300 + b"]" * 300, b'{"x":' * 300 + b"1" + b"}" * 300], ids=["arrays", "objects"])
async def test_what_is_nested_without_sequences_is_answered_for_its_part(local: RunningBlob, value: bytes) -> None:
    document = nested_json(1).removesuffix(b"}") + b', "00100010": {"vr": "PN", "Value": ' + value + b"}}"
    messages = [*part_messages(0, "application/dicom+json", document), *part_messages(1, "application/dicom", ct())]
    results = await store_messages(local, messages)
    assert [(result.part_number, result.failure_reason) for result in results] == [(1, 0), (2, 0x0110)]


async def test_without_its_end_nothing_of_a_request_is_stored(local: RunningBlob) -> None:
    with pytest.raises(errors.BadRequest):
        await local.store_parts([ct() for _ in range(5)], end=False)
    await until(lambda: not list(leftovers(local)))
    assert local.packs() == []


async def test_a_client_that_goes_away_leaves_nothing(local: RunningBlob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "GATHERED_BYTES", 1)
    forever = asyncio.Event()

    async def messages() -> AsyncIterator[blob_pb2.StoreInstancesRequest]:
        async for message in upload_messages([large_ct() for _ in range(5)], end=False):
            yield message
        await forever.wait()

    call = local.stub.StoreInstances(messages(), timeout=30)
    await until(lambda: list(leftovers(local)))
    call.cancel()
    await until(lambda: not list(leftovers(local)))
    assert local.packs() == []


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([blob_pb2.StoreInstancesRequest(end=blob_pb2.StoreEnd())], id="end first"),
        pytest.param([blob_pb2.StoreInstancesRequest(start=blob_pb2.StoreStart())] * 2, id="two starts"),
        pytest.param(
            [blob_pb2.StoreInstancesRequest(start=blob_pb2.StoreStart()), blob_pb2.StoreInstancesRequest(chunk=b"x")], id="chunk first"
        ),
        pytest.param([blob_pb2.StoreInstancesRequest(start=blob_pb2.StoreStart()), blob_pb2.StoreInstancesRequest()], id="empty"),
        pytest.param([], id="nothing"),
    ],
)
async def test_messages_in_another_order_are_a_bad_request(local: RunningBlob, messages: list[blob_pb2.StoreInstancesRequest]) -> None:
    with pytest.raises(errors.BadRequest), rpc_errors.translated("blob"):
        async for _ in local.stub.StoreInstances(iter(messages), timeout=10):
            pass


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([], id="nothing"),
        pytest.param([blob_pb2.StoreInstancesRequest(end=blob_pb2.StoreEnd())], id="end first"),
        pytest.param([blob_pb2.StoreInstancesRequest(start=blob_pb2.StoreStart())], id="no end"),
        pytest.param(
            [
                blob_pb2.StoreInstancesRequest(start=blob_pb2.StoreStart()),
                blob_pb2.StoreInstancesRequest(chunk=b"x"),
                blob_pb2.StoreInstancesRequest(end=blob_pb2.StoreEnd()),
            ],
            id="chunk first",
        ),
    ],
)
async def test_a_whole_request_with_messages_in_another_order_is_bad(
    local: RunningBlob, messages: list[blob_pb2.StoreInstancesRequest]
) -> None:
    with pytest.raises(errors.BadRequest), rpc_errors.translated("blob"):
        await local.stub.StoreWhole(blob_pb2.StoreWholeRequest(messages=messages), timeout=10)
    assert local.packs() == []


async def test_a_whole_request_is_stored_and_announced_as_a_streamed_one(local: RunningBlob) -> None:
    study = instances.new_uid()
    files = [ct(StudyInstanceUID=study), b"no instance", ct(StudyInstanceUID=study)]
    request = blob_pb2.StoreWholeRequest(messages=[message async for message in upload_messages(files, study)])
    answer = await local.stub.StoreWhole(request, timeout=30)
    assert [(result.part_number, bool(result.failure_reason)) for result in answer.parts] == [(0, False), (1, True), (2, False)]
    [key] = local.packs()
    [event] = await announced(local.client, key)
    trailer = await local.trailer(key)
    assert (event.collection, list(event.instances)) == (study, trailer)
    for instance, file in zip(trailer, (files[0], files[2]), strict=True):
        assert await local.read(key, [(instance.location.offset, instance.location.length)]) == file


async def test_too_many_parts_are_refused(tmp_path: Path, nats_server: NatsServer) -> None:
    async with running_blob(DirectoryStore(tmp_path, 0), nats_server.url, StoreRules(most_parts=2)) as blob:
        with pytest.raises(errors.PayloadTooLarge):
            await blob.store_parts([ct(), ct(), ct()])
        assert blob.packs() == []


class Waiting:
    """Uploads that send 1 MiB and then wait."""

    def __init__(self, blob: RunningBlob) -> None:
        self._blob = blob
        self.gate = asyncio.Event()

    async def _messages(self) -> AsyncIterator[blob_pb2.StoreInstancesRequest]:
        yield blob_pb2.StoreInstancesRequest(start=blob_pb2.StoreStart())
        yield blob_pb2.StoreInstancesRequest(part=blob_pb2.PartStart())
        yield blob_pb2.StoreInstancesRequest(chunk=ct() + bytes(MIB))
        await self.gate.wait()
        yield blob_pb2.StoreInstancesRequest(end=blob_pb2.StoreEnd())

    async def begin(self, count: int) -> list[Any]:
        """Return calls that wait."""
        calls = []
        for number in range(count):
            calls.append(self._blob.stub.StoreInstances(self._messages(), timeout=60))
            await until(lambda number=number: len(list(leftovers(self._blob))) > number)
        return calls


async def test_too_many_uploads_are_told_to_come_again(tmp_path: Path, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "PATIENCE_S", 60.0)
    async with running_blob(DirectoryStore(tmp_path, 0), nats_server.url, concurrent_uploads=1) as blob:
        (call,) = await Waiting(blob).begin(1)
        with pytest.raises(errors.Overloaded):
            await blob.store_parts([ct()])
        call.cancel()
        await until(lambda: not list(leftovers(blob)))
        assert [result.failure_reason for result in await blob.store_parts([ct()])] == [0]


async def test_uploads_that_wait_for_their_clients_keep_nobody_out(
    tmp_path: Path, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "PATIENCE_S", 0.0)
    async with running_blob(DirectoryStore(tmp_path, 0), nats_server.url, concurrent_uploads=4) as blob:
        waiting = Waiting(blob)
        calls = await waiting.begin(4)
        assert [result.failure_reason for result in await blob.store_parts([ct()])] == [0]
        with pytest.raises(errors.Overloaded, match="waited for its client"), rpc_errors.translated("blob"):
            await calls[0].read()
        await until(lambda: len(list(leftovers(blob))) == 3)
        waiting.gate.set()
        for call in calls[1:]:  # those that had waited for less time, and whose places nobody needed
            assert [len(answer.parts) async for answer in call] == [1]
        assert len(blob.packs()) == 4


async def test_a_nearly_full_disk_is_out_of_resources(tmp_path: Path, nats_server: NatsServer) -> None:
    async with running_blob(DirectoryStore(tmp_path, reserve_percent=99.9), nats_server.url) as blob:
        with pytest.raises(errors.OutOfResources):
            await blob.store_parts([ct()])


async def test_without_nats_nothing_is_stored_and_reading_goes_on(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats")
    server.start()
    try:
        async with running_blob(DirectoryStore(tmp_path / "objects", 0), server.url) as blob:
            file = ct()
            await blob.store_parts([file])
            server.kill()
            await until(lambda: not blob.client.is_connected)
            with pytest.raises(errors.Unavailable):
                await blob.store_parts([ct()])
            [key] = blob.packs()
            assert await blob.read(key, [(0, len(file))]) == file
            server.start()
            await until(lambda: blob.client.is_connected)
            assert [result.failure_reason for result in await blob.store_parts([ct()])] == [0]
    finally:
        server.stop()


async def test_uploads_at_the_same_time_are_all_kept(blob: RunningBlob) -> None:
    files = [ct() for _ in range(40)]
    results = await asyncio.gather(*(blob.store_parts([file], chunk_bytes=500) for file in files))
    assert [result.failure_reason for [result] in results] == [0] * 40
    places = [stored.location for key in blob.packs() for stored in await blob.trailer(key)]
    kept = [await blob.read(place.object, [(place.offset, place.length)]) for place in places]
    assert sorted(kept) == sorted(files)


async def test_the_whole_object_is_read_when_no_range_is_named(blob: RunningBlob) -> None:
    blob.store.put("decisions/1", b"deleted")
    assert await blob.read("decisions/1", []) == b"deleted"


async def test_small_objects_are_put_listed_and_read(blob: RunningBlob) -> None:
    for number in (2, 1, 3):
        await blob.stub.PutObject(blob_pb2.PutObjectRequest(object=f"decisions/{number}", data=bytes(number)), timeout=5)
    request = blob_pb2.ListObjectsRequest(prefix="decisions/", after="decisions/1")
    found = [(o.object, o.size_bytes) async for m in blob.stub.ListObjects(request, timeout=5) for o in m.objects]
    assert found == [("decisions/2", 2), ("decisions/3", 3)]
    with pytest.raises(errors.Conflict), rpc_errors.translated("blob"):
        await blob.stub.PutObject(blob_pb2.PutObjectRequest(object="decisions/1", data=b"other"), timeout=5)
    await blob.stub.PutObject(blob_pb2.PutObjectRequest(object="decisions/1", data=b"other", replace=True), timeout=5)
    assert await blob.read("decisions/1", []) == b"other"


@pytest.mark.parametrize(
    ("key", "size", "error"),
    [("decisions/1", (4 << 20) + 1, errors.PayloadTooLarge), ("packs/x.pack", 1, errors.Forbidden), ("../x", 1, errors.BadRequest)],
)
async def test_objects_that_may_not_be_put_are_refused(local: RunningBlob, key: str, size: int, error: type[errors.GantryError]) -> None:
    with pytest.raises(error), rpc_errors.translated("blob"):
        await local.stub.PutObject(blob_pb2.PutObjectRequest(object=key, data=bytes(size)), timeout=5)


async def test_only_copies_of_workitems_are_removed_on_request(blob: RunningBlob) -> None:
    for key in ("workitems/1.2", "decisions/1"):
        blob.store.put(key, b"x")
    for _ in range(2):
        await blob.stub.RemoveObject(blob_pb2.RemoveObjectRequest(object="workitems/1.2"), timeout=5)
    with pytest.raises(errors.NotFound):
        blob.store.size("workitems/1.2")
    for key in ("decisions/1", "packs/x.pack", "workitems/../decisions/1", "workitems"):
        with pytest.raises((errors.Forbidden, errors.BadRequest)), rpc_errors.translated("blob"):
            await blob.stub.RemoveObject(blob_pb2.RemoveObjectRequest(object=key), timeout=5)
    assert blob.store.size("decisions/1") == 1


async def test_a_trailer_of_megabytes_comes_in_several_messages(blob: RunningBlob) -> None:
    await blob.store_parts([ct(ImageComments="c" * 10_000, StudyInstanceUID="1.2.3") for _ in range(150)])
    [key] = blob.packs()
    messages = [m async for m in blob.stub.ReadTrailer(blob_pb2.ReadTrailerRequest(object=key), timeout=10)]
    assert len(messages) > 1
    assert [i.part_number for m in messages for i in m.instances] == list(range(150))


async def verified(blob: RunningBlob, key: str = "") -> list[blob_pb2.VerifyResponse]:
    return [answer async for answer in blob.stub.Verify(blob_pb2.VerifyRequest(object=key), timeout=30)]


async def test_verify_finds_nothing_wrong_with_what_was_stored(blob: RunningBlob) -> None:
    for _ in range(2):
        await blob.store_parts([ct(), instances.encoded(instances.ct(), ImplicitVRLittleEndian), JUNK, ct(TextValue=LONG_TEXT)])
    answers = await verified(blob)
    assert [(answer.object, answer.instances, list(answer.problems)) for answer in answers] == [(key, 3, []) for key in blob.packs()]
    assert [answer.bytes for answer in answers] == [entry.size_bytes for entry in blob.store.list("packs/")]
    assert len(await verified(blob, blob.packs()[1])) == 1


@pytest.mark.parametrize(
    ("place", "problem"), [("head", "before its data set"), ("pixels", "data set is not"), ("json", "DICOM JSON"), ("trailer", "trailer")]
)
async def test_verify_names_what_is_damaged(local: RunningBlob, place: str, problem: str) -> None:
    await local.store_parts([ct(TextValue=LONG_TEXT)])
    [key] = local.packs()
    [stored] = await local.trailer(key)
    assert isinstance(local.store, DirectoryStore)
    path = local.store.directory / key
    data = bytearray(path.read_bytes())
    at = {
        "head": 140,
        "pixels": stored.layout.frames.native.offset + 5,
        "json": stored.dicom_json_location.offset,
        "trailer": len(data) - 60,
    }
    data[at[place]] ^= 0x21
    path.write_bytes(data)
    [answer] = await verified(local)
    [found] = answer.problems
    assert problem in found
    assert "Doe" not in found


async def test_status_tells_the_kind_of_store(blob: RunningBlob) -> None:
    status = await blob.stub.GetStatus(blob_pb2.GetStatusRequest(), timeout=5)
    assert (status.object_store, status.ready, status.explanation) == (blob.store.kind, True, "")


SERVE = """
import asyncio, os, sys
from contextlib import nullcontext
from pathlib import Path
from tests.support.blob_service import running_blob, s3_store
from gantry_blob.stores.directory import DirectoryStore
async def main():
    opened = nullcontext(DirectoryStore(Path(sys.argv[3]), 0)) if sys.argv[1] == "directory" else s3_store(dict(os.environ))
    with opened as store:
      async with running_blob(store, sys.argv[2]) as blob:
        print(blob.port, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def large_file() -> list[blob_pb2.StoreInstancesRequest]:
    """Return what comes before 300 MiB of Pixel Data in a file."""
    head = instances.encoded(instances.general(instances.SECONDARY_CAPTURE, "OT"))
    head += struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, 300 * MIB)
    return [blob_pb2.StoreInstancesRequest(part=blob_pb2.PartStart()), blob_pb2.StoreInstancesRequest(chunk=head)]


def large_bulkdata() -> list[blob_pb2.StoreInstancesRequest]:
    """Return what comes before 300 MiB of Pixel Data as bulkdata."""
    model = json_model(instances.general(instances.SECONDARY_CAPTURE, "OT")) | {"7FE00010": {"vr": "OW", "BulkDataURI": "x"}}
    return [
        *part_messages(0, "application/dicom+json", json.dumps(model).encode()),
        *part_messages(1, "application/octet-stream", b"", "x"),
    ]


@pytest.mark.parametrize("kind", ["directory", "s3"])
@pytest.mark.parametrize("begin", [large_file, large_bulkdata])
async def test_memory_does_not_grow_with_the_instance(
    kind: str,
    begin: Callable[[], list[blob_pb2.StoreInstancesRequest]],
    tmp_path: Path,
    nats_server: NatsServer,
    request: pytest.FixtureRequest,
) -> None:
    environment = dict(os.environ) | (request.getfixturevalue("s3_settings") if kind == "s3" else {})
    frame = os.urandom(MIB)

    async def messages() -> AsyncIterator[blob_pb2.StoreInstancesRequest]:
        yield blob_pb2.StoreInstancesRequest(start=blob_pb2.StoreStart())
        for message in begin():
            yield message
        for _ in range(300):
            yield blob_pb2.StoreInstancesRequest(chunk=frame)
        yield blob_pb2.StoreInstancesRequest(end=blob_pb2.StoreEnd())

    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, kind, nats_server.url, str(tmp_path)], stdout=subprocess.PIPE, env=environment, text=True
    )
    try:
        assert process.stdout is not None
        port = await asyncio.to_thread(process.stdout.readline)
        most = before = psutil.Process(process.pid).memory_info().rss
        async with channels.channel(f"127.0.0.1:{int(port)}") as channel:
            storing = asyncio.ensure_future(BlobServiceStub(channel).StoreInstances(messages(), timeout=120).read())
            while not storing.done():
                most = max(most, psutil.Process(process.pid).memory_info().rss)
                await asyncio.wait([storing], timeout=0.05)
            assert [part.failure_reason for part in storing.result().parts] == [0]
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
    assert most - before < 100 * MIB
