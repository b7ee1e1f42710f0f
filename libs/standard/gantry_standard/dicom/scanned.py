"""The result of a scan: facts, locations, and the served form of one instance.

A span belongs to one of two byte streams: ORIGINAL, the file as it was sent, or RENDITION, bytes that the scan wrote because the
original may not be sent as stored (Implicit VR, Big Endian, Deflated, no preamble, a preamble that is not zeros).

Source: PS3.5, PS3.10; PS3.18 §8.7.3 for what may be sent.
"""

from dataclasses import dataclass, field
from enum import Enum


class Origin(Enum):
    """The byte stream of a span."""

    ORIGINAL = 0
    RENDITION = 1


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [offset, offset + length) of a stream."""

    origin: Origin
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class NativeFrames:
    """Frames of equal size, one after another.

    Attributes:
        span: all frames together.
        frame_bits: bits of one frame; a multiple of 8 except for 1-bit pixels.
    """

    span: Span
    frame_bits: int


@dataclass(frozen=True, slots=True)
class EncapsulatedFrames:
    """Frames of encapsulated Pixel Data, item headers left out.

    Attributes:
        origin: stream of all fragments.
        fragment_offsets, fragment_lengths: bytes.
        first_fragments: per frame index its first fragment index; empty when each frame is one fragment.
    """

    origin: Origin
    fragment_offsets: tuple[int, ...]
    fragment_lengths: tuple[int, ...]
    first_fragments: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FrameTable:
    """The location of each frame; frame index 0 is frame number 1."""

    number_of_frames: int
    encoding: NativeFrames | EncapsulatedFrames


@dataclass(frozen=True, slots=True)
class BulkElement:
    """A value that DICOM JSON replaces by a BulkDataURI.

    Attributes:
        path: tags and item numbers (from 1) joined by "/": 7FE00010, 00540016/1/00181078.
        vr: of the element.
        value: value field, little endian; of encapsulated pixel data everything between the element's header and the sequence delimiter.
    """

    path: str
    vr: str
    value: Span


@dataclass(frozen=True, slots=True)
class PixelDescription:
    """Image Pixel Description (PS3.3 C.7.6.3); 0 or "" if an attribute is absent.

    `tag` is 7FE00010, 7FE00008 or 7FE00009, `vr` that of the pixel element.
    """

    rows: int = 0
    columns: int = 0
    samples_per_pixel: int = 0
    photometric_interpretation: str = ""
    planar_configuration: int = 0
    bits_allocated: int = 0
    bits_stored: int = 0
    high_bit: int = 0
    pixel_representation: int = 0
    tag: str = ""
    vr: str = ""


@dataclass(frozen=True, slots=True)
class ScannedInstance:
    """A completely scanned instance.

    Attributes:
        study_instance_uid, series_instance_uid: "" of what goes to a non-patient resource, whatever its data set has.
        resource: name of the non-patient resource that it goes to (`collections`); "" where it goes to its study.
        transfer_syntax_uid: of the file as sent.
        head_length: bytes before the data set (preamble, DICM, group 2); 0 if there are none.
        head_digest, dataset_digest: SHA-256 of the bytes before the data set, and of the data set as encoded.
        dicom_json: one DICOM JSON object, UTF-8; a byte 0x00 marks the position of the base URL in BulkDataURIs.
        wire_transfer_syntax_uid: of `wire`, `frames` and `bulk`.
        wire: the served form, a PS3.10 file, in order; its preamble is zeros.
        pixel_element: the whole pixel element of the served form, header and delimiter included; None without pixel data.
        pixel_element_header: of a header that is not next to its value (Implicit VR: header in RENDITION, value in ORIGINAL). Then
            `pixel_element` is the value alone, and the header directly precedes it in `wire`. Else None.
        warning_reasons: (0008,1196), such as 0xB007.
        original_attributes: DICOM JSON object whose (0400,0561) has the one item that coercion added; b"" if nothing was coerced.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    length: int
    head_length: int
    head_digest: bytes
    dataset_digest: bytes
    dicom_json: bytes
    wire_transfer_syntax_uid: str
    wire: tuple[Span, ...]
    pixel_element: Span | None = None
    pixel_element_header: Span | None = None
    frames: FrameTable | None = None
    bulk: tuple[BulkElement, ...] = ()
    pixel: PixelDescription = field(default_factory=PixelDescription)
    warning_reasons: tuple[int, ...] = ()
    original_attributes: bytes = b""
    resource: str = ""
