"""Reads packs and compares them with the digests and ranges in their trailers."""

import hashlib
import json
from collections.abc import Iterator

from gantry.blob.v1 import blob_pb2
from gantry_blob.packs.pack import read_bytes, read_trailer
from gantry_blob.stores.port import ObjectStore
from gantry_standard import errors

MOST_PROBLEMS = 100


def verify_pack(store: ObjectStore, key: str) -> blob_pb2.VerifyResponse:
    """Verify one pack: its trailer, and for each instance both digests, its DICOM JSON, and that its ranges lie within the pack.

    Blocks while the whole pack is read.

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
            result.problems.append(f"verification stopped after {MOST_PROBLEMS} problems; there may be more")
            break
    return result


def _problems(store: ObjectStore, key: str, size: int, instance: blob_pb2.StoredInstance) -> Iterator[str]:
    uid, location = instance.sop_instance_uid, instance.location
    if location.object != key:
        yield f"{uid}: is in {location.object}, expected {key}"
        return
    head = (location.offset, instance.head_length)
    if _digest(store, key, head) != instance.head_digest:
        yield f"{uid}: the {instance.head_length} bytes before its data set are not what was stored"
    if _digest(store, key, (location.offset + instance.head_length, location.length - instance.head_length)) != instance.dataset_digest:
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
        for chunk in store.read(key, [span]):
            digest.update(chunk)
    return digest.digest()


def _dicom_json(store: ObjectStore, instance: blob_pb2.StoredInstance) -> bytes:
    if not instance.HasField("dicom_json_location"):
        return instance.dicom_json
    location = instance.dicom_json_location
    return read_bytes(store, location.object, location.offset, location.length)


def _ranges(layout: blob_pb2.Layout) -> Iterator[tuple[str, blob_pb2.Range]]:
    for span in layout.wire:
        yield "a range of its served form", span
    if layout.HasField("pixel_element"):
        yield "its pixel element", layout.pixel_element
    for bulk in layout.bulk:
        yield f"bulkdata {bulk.path}", bulk.value
    native, encapsulated = layout.frames.native, layout.frames.encapsulated
    if layout.frames.HasField("native"):
        yield "its frames", blob_pb2.Range(offset=native.offset, length=(native.frame_bits * layout.frames.number_of_frames + 7) // 8)
    for offset, length in zip(encapsulated.fragment_offsets, encapsulated.fragment_lengths, strict=True):
        yield "a fragment", blob_pb2.Range(offset=offset, length=length)
