"""Copies instances from one pack into another, and adapts all ranges in their facts.

A copy has the same upload name: `origin` is the location at which the upload was first written.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from gantry.blob.v1 import blob_pb2
from gantry_blob.packs.pack import PackWriter
from gantry_blob.stores.port import ObjectStore
from gantry_standard import errors


def upload_name_of(instance: blob_pb2.StoredInstance) -> tuple[str, int]:
    """Return the upload name: object and offset at which the upload was first written."""
    location = instance.origin if instance.HasField("origin") else instance.location
    return location.object, location.offset


def copy_instance(store: ObjectStore, instance: blob_pb2.StoredInstance, writer: PackWriter) -> None:
    """Copy all bytes of an instance to a new pack, and add the instance to its trailer. Blocks.

    Args:
        store: from which the instance is read.
        instance: the facts in the trailer of its pack.
        writer: of the new pack.

    Raises:
        errors.CorruptInstance: the bytes do not have the stored digests.
        errors.NotFound: the pack no longer exists.
    """
    segments = _Segments(_ranges(instance))
    digests = _Digests(instance)
    for offset, length in segments.spans:
        segments.begins_at.append(writer.position)
        at = offset
        for chunk in store.read(instance.location.object, [(offset, length)]):
            writer.write(chunk)
            digests.feed(at, chunk)
            at += len(chunk)
    digests.check()
    writer.add(_moved(instance, writer.key, segments))


class _Segments:
    """Ranges of a pack, with adjacent and overlapping ranges joined, and the offset of each in the new pack."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.spans: list[tuple[int, int]] = []
        self.begins_at: list[int] = []
        for offset, length in sorted(ranges):
            if self.spans and offset <= sum(self.spans[-1]):
                begin, size = self.spans[-1]
                self.spans[-1] = begin, max(size, offset + length - begin)
            else:
                self.spans.append((offset, length))

    def moved(self, offset: int) -> int:
        """Return the offset of a byte in the new pack. The end of a segment is allowed, because an empty range may be there."""
        number = bisect_right(self.spans, offset, key=lambda span: span[0]) - 1
        if number < 0 or offset > sum(self.spans[number]):
            raise errors.CorruptInstance(f"offset {offset} is not within the instance")
        return self.begins_at[number] + offset - self.spans[number][0]


class _Digests:
    """Compares the copied bytes with the digests of the upload."""

    def __init__(self, instance: blob_pb2.StoredInstance) -> None:
        self._instance = instance
        begin, middle = instance.location.offset, instance.location.offset + instance.head_length
        self._parts = (
            (begin, middle, hashlib.sha256(), instance.head_digest),
            (middle, begin + instance.location.length, hashlib.sha256(), instance.dataset_digest),
        )

    def feed(self, at: int, chunk: bytes) -> None:
        for begin, end, digest, _ in self._parts:
            digest.update(memoryview(chunk)[max(begin - at, 0) : max(end - at, 0)])

    def check(self) -> None:
        if any(digest.digest() != expected for _, _, digest, expected in self._parts):
            pack = self._instance.location.object
            raise errors.CorruptInstance(f"{self._instance.sop_instance_uid} in {pack}: its bytes are not what was stored")


def _ranges(instance: blob_pb2.StoredInstance) -> Iterator[tuple[int, int]]:
    """Yield all ranges in the facts of an instance. Frames are omitted: they lie within the pixel element or the served form."""
    layout = instance.layout
    yield instance.location.offset, instance.location.length
    if instance.HasField("dicom_json_location"):
        yield instance.dicom_json_location.offset, instance.dicom_json_location.length
    for span in (*layout.wire, layout.pixel_element, layout.pixel_element_header, *(bulk.value for bulk in layout.bulk)):
        if span.length:
            yield span.offset, span.length


def _moved(instance: blob_pb2.StoredInstance, key: str, segments: _Segments) -> blob_pb2.StoredInstance:
    copy = blob_pb2.StoredInstance()
    copy.CopyFrom(instance)
    origin_object, origin_offset = upload_name_of(instance)
    copy.origin.CopyFrom(blob_pb2.Location(object=origin_object, offset=origin_offset, length=instance.location.length))
    copy.location.object, copy.location.offset = key, segments.moved(instance.location.offset)
    if copy.HasField("dicom_json_location"):
        copy.dicom_json_location.object = key
        copy.dicom_json_location.offset = segments.moved(instance.dicom_json_location.offset)
    layout = copy.layout
    spans = [*layout.wire, *(bulk.value for bulk in layout.bulk)]
    spans += [getattr(layout, name) for name in ("pixel_element", "pixel_element_header") if layout.HasField(name)]
    for span in spans:
        span.offset = segments.moved(span.offset)
    if layout.frames.HasField("native"):
        layout.frames.native.offset = segments.moved(layout.frames.native.offset)
    if layout.frames.HasField("encapsulated"):
        fragments = layout.frames.encapsulated
        fragments.fragment_offsets[:] = [segments.moved(offset) for offset in fragments.fragment_offsets]
    return copy
