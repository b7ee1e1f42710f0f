"""Instances as blob stores them, for tests of their readers: scanned, written into one object, described by a StoredInstance."""

from dataclasses import dataclass
from pathlib import Path

from gantry.blob.v1 import blob_pb2
from gantry.renderer.v1 import renderer_pb2
from gantry_standard.dicom.scan import Scanner
from gantry_standard.dicom.scanned import EncapsulatedFrames, FrameTable, NativeFrames, Origin, ScannedInstance, Span


@dataclass(frozen=True)
class Stored:
    """A stored instance and the bytes of its object."""

    instance: blob_pb2.StoredInstance
    data: bytes

    @property
    def source(self) -> renderer_pb2.Source:
        """The instance as the renderer is given it."""
        return renderer_pb2.Source(stored=self.instance, version=1)

    def write(self, directory: Path) -> None:
        """Put the object where MappedReader finds it."""
        path = directory / self.instance.location.object
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.data)


def store(data: bytes, object_key: str = "packs/test.pack") -> Stored:
    """Scan a file; its object is the file and then what the scan wrote itself."""
    rendition = bytearray()
    scanner = Scanner(rendition.extend)
    scanner.feed(data)
    scanned = scanner.finish()
    return Stored(_message(scanned, object_key, {Origin.ORIGINAL: 0, Origin.RENDITION: len(data)}), data + bytes(rendition))


def _message(scanned: ScannedInstance, object_key: str, base: dict[Origin, int]) -> blob_pb2.StoredInstance:
    def place(span: Span) -> blob_pb2.Range:
        return blob_pb2.Range(offset=base[span.origin] + span.offset, length=span.length)

    pixel = scanned.pixel
    return blob_pb2.StoredInstance(
        sop_instance_uid=scanned.sop_instance_uid,
        sop_class_uid=scanned.sop_class_uid,
        transfer_syntax_uid=scanned.transfer_syntax_uid,
        location=blob_pb2.Location(object=object_key, offset=0, length=scanned.length),
        layout=blob_pb2.Layout(
            wire_transfer_syntax_uid=scanned.wire_transfer_syntax_uid,
            wire=[place(span) for span in scanned.wire],
            pixel_element=place(scanned.pixel_element) if scanned.pixel_element else None,
            pixel_element_header=place(scanned.pixel_element_header) if scanned.pixel_element_header else None,
            frames=_frames(scanned.frames, base) if scanned.frames else None,
            bulk=[blob_pb2.BulkElement(path=bulk.path, vr=bulk.vr, value=place(bulk.value)) for bulk in scanned.bulk],
            pixel=blob_pb2.PixelDescription(**{name: getattr(pixel, name) for name in pixel.__slots__}),
        ),
        dicom_json=scanned.dicom_json,
    )


def _frames(table: FrameTable, base: dict[Origin, int]) -> blob_pb2.FrameTable:
    match table.encoding:
        case NativeFrames(span, frame_bits):
            native = blob_pb2.NativeFrames(offset=base[span.origin] + span.offset, frame_bits=frame_bits)
            return blob_pb2.FrameTable(number_of_frames=table.number_of_frames, native=native)
        case EncapsulatedFrames(origin, offsets, lengths, first_fragments):
            encapsulated = blob_pb2.EncapsulatedFrames(
                fragment_offsets=[base[origin] + offset for offset in offsets],
                fragment_lengths=lengths,
                first_fragments=first_fragments,
            )
            return blob_pb2.FrameTable(number_of_frames=table.number_of_frames, encapsulated=encapsulated)
