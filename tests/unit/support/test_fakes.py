"""Fakes of services refuse what the services refuse, so that a test against a fake cannot pass with a request that fails later."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from gantry.blob.v1 import blob_pb2
from gantry.index.v1 import index_pb2
from gantry.renderer.v1 import renderer_pb2
from gantry_runtime.rpc.channels import CHUNK_BYTES
from gantry_runtime.store_messages import PUT_BYTES
from gantry_standard import errors
from tests.support.worklist import Blob
from tests.unit.gateway import harness, retrieve_world
from tests.unit.index.test_service import RecordingBlob

PNG_UID = "1.2.840.10008.1.2.4.999"
START = blob_pb2.StoreInstancesRequest(start=blob_pb2.StoreStart(request_id="r"))
PART = blob_pb2.StoreInstancesRequest(part=blob_pb2.PartStart(part_number=1))
CHUNK = blob_pb2.StoreInstancesRequest(chunk=b"1 2 3")
END = blob_pb2.StoreInstancesRequest(end=blob_pb2.StoreEnd())


async def put(blob: Blob, key: str, data: bytes, *, replace: bool = False) -> None:
    await blob.PutObject(blob_pb2.PutObjectRequest(object=key, data=data, replace=replace), None)


@pytest.mark.parametrize("make", [Blob, RecordingBlob])
async def test_small_objects_are_refused_as_blob_refuses_them(make: Any) -> None:
    blob = make()
    await put(blob, "decisions/a", b"one")
    await put(blob, "decisions/a", b"one")
    with pytest.raises(errors.Conflict):
        await put(blob, "decisions/a", b"two")
    await put(blob, "decisions/a", b"two", replace=True)
    with pytest.raises(errors.PayloadTooLarge):
        await put(blob, "decisions/b", bytes(PUT_BYTES + 1))
    with pytest.raises(errors.BadRequest):
        await put(blob, "../b", b"one")
    with pytest.raises(errors.Forbidden):
        await put(blob, "packs/b", b"one")
    with pytest.raises(errors.NotFound):
        async for _ in blob.Read(blob_pb2.ReadRequest(object="decisions/b"), None):
            pass
    with pytest.raises(errors.Forbidden):
        await blob.RemoveObject(blob_pb2.RemoveObjectRequest(object="decisions/a"), None)
    assert blob.objects == {"decisions/a": b"two"}


async def sent(messages: list[blob_pb2.StoreInstancesRequest]) -> AsyncIterator[blob_pb2.StoreInstancesRequest]:
    for message in messages:
        yield message


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([PART], errors.BadRequest),
        ([START, START], errors.BadRequest),
        ([START, CHUNK], errors.BadRequest),
        ([START, PART, PART], errors.BadRequest),
        ([START, PART, CHUNK, END, CHUNK], errors.BadRequest),
        ([START, PART, blob_pb2.StoreInstancesRequest(chunk=bytes(CHUNK_BYTES + 1))], errors.PayloadTooLarge),
    ],
    ids=["no start", "two starts", "chunk without part", "same part number", "chunk after end", "chunk too large"],
)
async def test_a_store_request_in_another_order_than_the_contract_says_is_refused(messages: Any, error: type[Exception]) -> None:
    blob = harness.Blob()
    blob.outcome = {1: None}
    with pytest.raises(error):
        async for _ in blob.StoreInstances(sent(messages), None):
            pass
    assert blob.calls_over == 1


async def test_a_scope_that_nothing_restricts_is_refused() -> None:
    scope = index_pb2.Scope(series_instance_uid="1.2")
    with pytest.raises(errors.BadRequest):
        await harness.Index().DeleteInstances(index_pb2.DeleteInstancesRequest(scope=scope), None)
    with pytest.raises(errors.BadRequest):
        await anext(retrieve_world.Index().GetInstances(index_pb2.GetInstancesRequest(scope=scope), None))


async def test_frames_and_transfer_syntaxes_that_the_renderer_does_not_have_are_refused() -> None:
    renderer, source = retrieve_world.Renderer(), renderer_pb2.Source()

    async def frames(uid: str, number: int) -> list[Any]:
        request = renderer_pb2.TranscodeFramesRequest(source=source, transfer_syntax_uid=uid, frame_numbers=[number])
        return [answer async for answer in renderer.TranscodeFrames(request, None)]

    with pytest.raises(errors.BadRequest):
        await frames(retrieve_world.LE, 1)
    source.stored.location.object = "packs/a.pack"
    source.stored.layout.frames.number_of_frames = 2
    assert len(await frames(retrieve_world.LE, 2)) == 2
    for number in (0, 3):
        with pytest.raises(errors.NotFound):
            await frames(retrieve_world.LE, number)
    with pytest.raises(errors.NotAcceptable):
        await frames(PNG_UID, 1)


async def test_ranges_beyond_the_end_and_names_that_are_no_keys_are_refused(tmp_path: Any) -> None:
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs/a.pack").write_bytes(b"0123")
    reader = retrieve_world.DirectoryReader(tmp_path)

    async def read(key: str, *ranges: tuple[int, int]) -> bytes:
        return b"".join([bytes(piece) async for piece in reader.read(key, ranges)])

    assert await read("packs/a.pack", (1, 2), (0, 1)) == b"120"
    for key, wanted, error in (
        ("packs/a.pack", (3, 2), errors.BadRequest),
        ("../packs/a.pack", (0, 1), errors.BadRequest),
        ("packs/b.pack", (0, 1), errors.NotFound),
    ):
        with pytest.raises(error):
            await read(key, wanted)
