"""A copy of an instance is the instance: every byte and every range of its facts, under its first name."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor

from gantry.blob.v1 import blob_pb2
from gantry_blob.packs import pack
from gantry_blob.packs.copy import copy_instance, upload_name_of
from gantry_blob.packs.verify import verify_pack
from gantry_blob.stores.directory import DirectoryStore
from gantry_blob.storing.request import StoreRequest, StoreRules
from gantry_runtime.stored_instances import COPY_SUFFIX
from gantry_standard import errors
from tests.support import instances
from tests.support.blob_service import upload_messages


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path, reserve_percent=0)


SAMPLES = {
    "implicit, with a rendition": (instances.ct(), instances.NATIVE["implicit"]),
    "big endian": (instances.rgb(), instances.NATIVE["big endian"]),
    "deflated": (instances.ct(), instances.NATIVE["deflated"]),
    "bulkdata": (instances.with_bulk(), instances.NATIVE["explicit"]),
    "fragments": (instances.encapsulated("jpeg 2000", fragments=3), instances.ENCAPSULATED["jpeg 2000"]),
    "frames of bits": (instances.segmentation(), instances.NATIVE["explicit"]),
    "JSON of its own": (instances.with_much_json(), instances.NATIVE["implicit"]),
}


async def written(store: DirectoryStore) -> tuple[str, list[blob_pb2.StoredInstance]]:
    """Write all samples into one pack."""
    messages = [message async for message in upload_messages([instances.encoded(*sample) for sample in SAMPLES.values()])]
    upload = StoreRequest(store, messages[0].start, StoreRules())
    upload.apply(messages[1:])
    [(key, _)] = upload.commit()
    return key, list(pack.read_trailer(store, key).instances)


def copied(store: DirectoryStore, chosen: list[blob_pb2.StoredInstance]) -> list[blob_pb2.StoredInstance]:
    writer = pack.PackWriter(store.create(pack.new_key(COPY_SUFFIX)), "", replaces=chosen[0].location.object)
    for one in chosen:
        copy_instance(store, one, writer)
    writer.seal()
    writer.commit()
    return list(pack.read_trailer(store, writer.key).instances)


def contents(store: DirectoryStore, one: blob_pb2.StoredInstance) -> Iterator[tuple[str, bytes]]:
    """Yield the bytes of everything that the facts name."""

    def at(offset: int, length: int) -> bytes:
        return pack.read_bytes(store, one.location.object, offset, length)

    layout, native, fragments = one.layout, one.layout.frames.native, one.layout.frames.encapsulated
    yield "file", at(one.location.offset, one.location.length)
    if one.HasField("dicom_json_location"):
        yield "JSON", at(one.dicom_json_location.offset, one.dicom_json_location.length)
    for span in (*layout.wire, layout.pixel_element, layout.pixel_element_header, *(bulk.value for bulk in layout.bulk)):
        yield "span", at(span.offset, span.length)
    if layout.frames.HasField("native"):
        yield "frames", at(native.offset, (native.frame_bits * layout.frames.number_of_frames + 7) // 8)
    for offset, length in zip(fragments.fragment_offsets, fragments.fragment_lengths, strict=True):
        yield "fragment", at(offset, length)


async def test_copies_have_every_byte_and_the_name_of_the_first(store: DirectoryStore) -> None:
    key, before = await written(store)
    assert any(one.HasField("dicom_json_location") for one in before)
    for chosen in (before, before[1:], before[::2], before[-1:]):
        after = copied(store, chosen)
        assert [list(contents(store, one)) for one in after] == [list(contents(store, one)) for one in chosen]
        assert [upload_name_of(one) for one in after] == [(key, one.location.offset) for one in chosen]
        assert {one.location.object for one in after} != {key}
        assert list(verify_pack(store, after[0].location.object).problems) == []
        again = copied(store, after[-1:])
        assert upload_name_of(again[0]) == upload_name_of(after[-1])
        assert list(contents(store, again[0])) == list(contents(store, after[-1]))


async def test_what_is_damaged_is_not_copied(store: DirectoryStore) -> None:
    key, before = await written(store)
    path = store.directory / key
    data = bytearray(path.read_bytes())
    data[before[0].location.offset + before[0].location.length - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(errors.CorruptInstance, match=before[0].sop_instance_uid):
        copied(store, before[:1])
    assert copied(store, before[1:])


def offsets(message: Descriptor, path: str = "") -> Iterator[str]:
    """Yield the path of every field that says where something lies."""
    for field in message.fields:
        if "offset" in field.name:
            yield f"{path}{field.name}"
        elif field.message_type is not None:
            yield from offsets(field.message_type, f"{path}{field.name}.")


def test_every_offset_in_the_facts_is_one_that_a_copy_moves() -> None:
    assert sorted(offsets(blob_pb2.StoredInstance.DESCRIPTOR)) == [
        "dicom_json_location.offset",
        "layout.bulk.value.offset",
        "layout.frames.encapsulated.fragment_offsets",
        "layout.frames.native.offset",
        "layout.pixel_element.offset",
        "layout.pixel_element_header.offset",
        "layout.wire.offset",
        "location.offset",
        "origin.offset",
    ]
