"""Reads every byte of a pack again and compares it with what its trailer says."""

import hashlib
import json
from collections.abc import Iterator

from gantry.blob.v1 import blob_pb2
from gantry_blob.packs.pack import read_bytes, read_trailer
from gantry_blob.stores.port import ObjectStore
from gantry_standard import errors

MOST_PROBLEMS = 100


def verify_pack(store: ObjectStore, key: str) -> blob_pb2.VerifyResponse:
    """Verify one pack: its trailer, both digests of each instance, that its DICOM JSON can be read, that its ranges lie within the pack.

    Blocks for as long as it takes to read the pack.

    Raises:
        errors.Unavailable: the store does not answer.
    """
    result = blob_pb2.VerifyResponse(object=key)
    try:
        trailer = read_trailer(store, key)
        result.bytes = size = store.size(key)
    except (errors.CorruptInstance, errors.NotFound) as error:
        result.problems.append(error.message)
        return result
    for instance in trailer.instances:
        result.instances += 1
        try:
            result.problems.extend(_problems(store, key, size, instance))
        except (errors.BadRequest, errors.NotFound) as error:
            result.problems.append(f"{instance.sop_instance_uid}: {error.message}")
        if len(result.problems) >= MOST_PROBLEMS:
            result.problems.append("and perhaps more: not read further")
            break
    return result


def _problems(store: ObjectStore, key: str, size: int, instance: blob_pb2.StoredInstance) -> Iterator[str]:
    uid, place = instance.sop_instance_uid, instance.location
    if place.object != key:
        yield f"{uid}: lies in {place.object}, expected {key}"
        return
    head = (place.offset, instance.head_length)
    if _digest(store, key, head) != instance.head_digest:
        yield f"{uid}: the {instance.head_length} bytes before its data set are not what was stored"
    if _digest(store, key, (place.offset + instance.head_length, place.length - instance.head_length)) != instance.dataset_digest:
        yield f"{uid}: its data set is not what was stored"
    for kind, span in _ranges(instance.layout):
        if span.offset + span.length > size:
            yield f"{uid}: {kind} {span.offset}+{span.length} is not within the pack of {size} bytes"
    try:
        json.loads(_dicom_json(store, instance).replace(b"\0", b""))
    except ValueError:
        yield f"{uid}: its DICOM JSON cannot be read"


def _digest(store: ObjectStore, key: str, span: tuple[int, int]) -> bytes:
    digest = hashlib.sha256()
    if span[1]:
        for piece in store.read(key, [span]):
            digest.update(piece)
    return digest.digest()


def _dicom_json(store: ObjectStore, instance: blob_pb2.StoredInstance) -> bytes:
    if not instance.HasField("dicom_json_location"):
        return instance.dicom_json
    place = instance.dicom_json_location
    return read_bytes(store, place.object, place.offset, place.length)


def _ranges(layout: blob_pb2.Layout) -> Iterator[tuple[str, blob_pb2.Range]]:
    for span in layout.wire:
        yield "a range of its wire form", span
    if layout.HasField("pixel_element"):
        yield "its pixel element", layout.pixel_element
    for bulk in layout.bulk:
        yield f"bulkdata {bulk.path}", bulk.value
    native, encapsulated = layout.frames.native, layout.frames.encapsulated
    if layout.frames.HasField("native"):
        yield "its frames", blob_pb2.Range(offset=native.offset, length=(native.frame_bits * layout.frames.number_of_frames + 7) // 8)
    for offset, length in zip(encapsulated.fragment_offsets, encapsulated.fragment_lengths, strict=True):
        yield "a fragment", blob_pb2.Range(offset=offset, length=length)
