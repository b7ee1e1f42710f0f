"""Converts the result of a scan to a message: spans of the scanned streams become ranges of the pack."""

from collections.abc import Callable

from gantry.blob.v1 import blob_pb2
from gantry_standard.dicom.scanned import EncapsulatedFrames, FrameTable, NativeFrames, Origin, PixelDescription, ScannedInstance, Span

ToRange = Callable[[Span], blob_pb2.Range]


def stored_instance(
    scanned: ScannedInstance, part_number: int, object_key: str, original: int, rewritten: int, uploaded: int
) -> blob_pb2.StoredInstance:
    """Return the message for a scanned instance, without its DICOM JSON.

    Args:
        scanned: the result of the scan.
        part_number: of the instance within the store request, from 0.
        object_key: of the pack.
        original: offset in the pack of the file that was scanned.
        rewritten: offset in the pack of the rewritten bytes.
        uploaded: offset in the pack of the file as it was uploaded. It differs from `original` if the second reader wrote another file.
    """
    base = {Origin.ORIGINAL: original, Origin.RENDITION: rewritten}

    def to_range(span: Span) -> blob_pb2.Range:
        return blob_pb2.Range(offset=base[span.origin] + span.offset, length=span.length)

    return blob_pb2.StoredInstance(
        study_instance_uid=scanned.study_instance_uid,
        resource=scanned.resource,
        series_instance_uid=scanned.series_instance_uid,
        sop_instance_uid=scanned.sop_instance_uid,
        sop_class_uid=scanned.sop_class_uid,
        transfer_syntax_uid=scanned.transfer_syntax_uid,
        location=blob_pb2.Location(object=object_key, offset=uploaded, length=scanned.length),
        dataset_digest=scanned.dataset_digest,
        head_digest=scanned.head_digest,
        head_length=scanned.head_length,
        part_number=part_number,
        layout=blob_pb2.Layout(
            wire_transfer_syntax_uid=scanned.wire_transfer_syntax_uid,
            wire=[to_range(span) for span in scanned.wire],
            pixel_element=to_range(scanned.pixel_element) if scanned.pixel_element else None,
            pixel_element_header=to_range(scanned.pixel_element_header) if scanned.pixel_element_header else None,
            frames=_frames(scanned.frames, base, to_range) if scanned.frames else None,
            bulk=[blob_pb2.BulkElement(path=bulk.path, vr=bulk.vr, value=to_range(bulk.value)) for bulk in scanned.bulk],
            pixel=_pixel(scanned.pixel),
        ),
        warning_reasons=scanned.warning_reasons,
    )


def _frames(table: FrameTable, base: dict[Origin, int], to_range: ToRange) -> blob_pb2.FrameTable:
    match table.encoding:
        case NativeFrames(span, frame_bits):
            native = blob_pb2.NativeFrames(offset=to_range(span).offset, frame_bits=frame_bits)
            return blob_pb2.FrameTable(number_of_frames=table.number_of_frames, native=native)
        case EncapsulatedFrames(origin, offsets, lengths, first_fragments):
            encapsulated = blob_pb2.EncapsulatedFrames(
                fragment_offsets=[base[origin] + offset for offset in offsets],
                fragment_lengths=lengths,
                first_fragments=first_fragments,
            )
            return blob_pb2.FrameTable(number_of_frames=table.number_of_frames, encapsulated=encapsulated)


def _pixel(pixel: PixelDescription) -> blob_pb2.PixelDescription:
    return blob_pb2.PixelDescription(
        rows=pixel.rows,
        columns=pixel.columns,
        samples_per_pixel=pixel.samples_per_pixel,
        photometric_interpretation=pixel.photometric_interpretation,
        planar_configuration=pixel.planar_configuration,
        bits_allocated=pixel.bits_allocated,
        bits_stored=pixel.bits_stored,
        high_bit=pixel.high_bit,
        pixel_representation=pixel.pixel_representation,
        tag=pixel.tag,
        vr=pixel.vr,
    )
