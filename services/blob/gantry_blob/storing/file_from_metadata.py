"""Builds a PS3.10 file from a data set that was sent as metadata, and the bulkdata that was sent with it.

The file is a stream of chunks: new File Meta Information, then the data set in Explicit VR Little Endian. Long values are read from the
spool when they are needed. Compressed pixel data is encapsulated unchanged, in the transfer syntax that fits the bit stream. Attributes of
the Image Pixel Description Macro that the metadata omits are taken from the bit stream. If metadata and bit stream contradict each other,
the instance fails, because either of them may be wrong. For a decoded image (PNG, GIF) the attributes describe the decoded frames.

Source: PS3.18 §10.5.1.4 and §10.5.2; PS3.5 §A.4; PS3.10 §7.1.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from gantry.blob.v1 import blob_pb2
from gantry_blob.storing.metadata_and_bulkdata import BulkPart, MetadataAndBulkdata
from gantry_blob.storing.spool import SpooledBytes
from gantry_standard import reasons
from gantry_standard.bitstreams.still import STILL_MEDIA_TYPES, Picture, agree, choose_transfer_syntax, read_still
from gantry_standard.bitstreams.video import VIDEO_MEDIA_TYPES, read_video
from gantry_standard.dicom.frames import is_codestream_start
from gantry_standard.dicom.json_to_explicit import BulkReference, encode_data_set
from gantry_standard.dicom.limits import ScanFailure
from gantry_standard.dicom.part10 import (
    SEQUENCE_DELIMITER,
    UNDEFINED_LENGTH,
    encode_element_header,
    encode_file_meta,
    encode_item,
    encode_item_header,
)
from gantry_standard.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, TRANSFER_SYNTAXES, Codestream
from gantry_standard.dicom.uids import is_valid_uid
from gantry_standard.dicom.value_representations import VALUE_REPRESENTATIONS
from gantry_standard.http.media_types import OCTET_STREAM

PIXEL_DATA = "7FE00010"
ENCAPSULATED_DOCUMENT, MIME_TYPE, DOCUMENT_LENGTH = "00420011", "00420012", "00420015"
TRANSFER_SYNTAX_UID = "00020010"
NUMBER_OF_FRAMES, SAMPLES_PER_PIXEL, PHOTOMETRIC_INTERPRETATION, PLANAR_CONFIGURATION = "00280008", "00280002", "00280004", "00280006"
ROWS, COLUMNS, BITS_ALLOCATED, BITS_STORED, HIGH_BIT, PIXEL_REPRESENTATION = (
    "00280010",
    "00280011",
    "00280100",
    "00280101",
    "00280102",
    "00280103",
)
# Extended Offset Table, its lengths, and the encapsulated total length. They are removed, because new fragments are written.
_OFFSET_TABLES = ("7FE00001", "7FE00002", "7FE00003")

_LONGEST_VALUE = 0xFFFFFFFE
_FRAGMENT_BYTES = 0xFFFFFFFE
_FLUSH_BYTES = 256 << 10
_STILL_OF_CODESTREAM = {
    Codestream.JPEG: "image/jpeg",
    Codestream.JPEG_2000: "image/jp2",
    Codestream.JPEG_XL: "image/jxl",
    Codestream.RLE: "image/dicom-rle",
}


@dataclass(frozen=True, slots=True)
class _Frames:
    """Encapsulated Pixel Data, with the bytes of each frame. A video is one frame here."""

    contents: tuple[SpooledBytes, ...]
    is_video: bool

    def chunks(self) -> Iterator[bytes]:
        """Yield the element: Basic Offset Table (empty if 32 bits are not enough), the frames as items, and the delimiter."""
        yield encode_element_header(0x7FE00010, b"OB", UNDEFINED_LENGTH)
        offsets, at = [], 0
        for content in self.contents:
            offsets.append(at)
            fragments = max(1, -(-content.length // _FRAGMENT_BYTES))
            at += content.length + (content.length & 1) + 8 * fragments
        table = b"" if self.is_video or offsets[-1] > 0xFFFFFFFF else struct.pack(f"<{len(offsets)}I", *offsets)
        yield encode_item(table)
        for content in self.contents:
            yield from _items(content)
        yield SEQUENCE_DELIMITER


def _items(content: SpooledBytes) -> Iterator[bytes]:
    for begin in range(0, max(content.length, 1), _FRAGMENT_BYTES):
        fragment = content.part(begin, min(_FRAGMENT_BYTES, content.length - begin))
        padding = fragment.length & 1
        yield encode_item_header(fragment.length + padding)
        yield from fragment.chunks()
        yield b"\0" * padding


class Assembly:
    """Builds the file of one data set.

    Args:
        data_set: DICOM JSON object with keys in upper case. It is modified.
        transfer_syntax_uid: transfer-syntax parameter of the metadata part, or "".
        parts: the bulkdata of the request.
        most_depth: largest depth of nested sequences.
        failure: why no file can be built; None if one can.
    """

    def __init__(
        self,
        data_set: dict[str, Any],
        transfer_syntax_uid: str,
        parts: MetadataAndBulkdata,
        most_depth: int,
        failure: ScanFailure | None = None,
    ) -> None:
        self._data_set = data_set
        self._named = transfer_syntax_uid or _text(data_set, TRANSFER_SYNTAX_UID)
        self._parts = parts
        self._most_depth = most_depth
        self._failure = failure
        self._frames: _Frames | None = None
        self._transfer_syntax_uid = EXPLICIT_VR_LITTLE_ENDIAN

    def chunks(self) -> Iterator[bytes]:
        """Yield the file.

        Raises:
            ScanFailure: the file cannot be built. The failure has the UIDs of the data set.
        """
        try:
            yield from _joined(self._file())
        except ScanFailure as failure:
            raise ScanFailure(
                failure.message,
                failure.reason,
                study_instance_uid=_uid(self._data_set, "0020000D"),
                series_instance_uid=_uid(self._data_set, "0020000E"),
                sop_class_uid=_uid(self._data_set, "00080016"),
                sop_instance_uid=_uid(self._data_set, "00080018"),
            ) from None

    def _file(self) -> Iterator[bytes]:
        if self._failure is not None:
            raise self._failure
        self._prepare_pixel_data()
        self._prepare_document()
        sop_class_uid, sop_instance_uid = _uid(self._data_set, "00080016"), _uid(self._data_set, "00080018")
        if not sop_class_uid or not sop_instance_uid:
            raise ScanFailure("SOP Class UID or SOP Instance UID is missing or invalid", reasons.REQUIRED_UID_MISSING)
        yield encode_file_meta(sop_class_uid, sop_instance_uid, self._transfer_syntax_uid)
        for chunk in encode_data_set(self._data_set, self._most_depth):
            if isinstance(chunk, bytes):
                yield chunk
            elif self._frames is not None and chunk.is_root and f"{chunk.tag:08X}" == PIXEL_DATA:
                yield from self._frames.chunks()
            else:
                yield from self._value(chunk)

    def _value(self, reference: BulkReference) -> Iterator[bytes]:
        """Yield an element whose value is the unchanged bulkdata."""
        tag, vr = reference.tag, reference.vr
        is_pixel_data = reference.is_root and f"{tag:08X}" == PIXEL_DATA
        parts = self._found(tag, self._parts.find_frames(reference.uri) if is_pixel_data else self._parts.find(reference.uri))
        if len(parts) > 1 and not is_pixel_data:
            raise _mismatch(f"({tag:08X}) has {len(parts)} parts with its BulkDataURI, expected one")
        if (
            any(part.type.media_type in STILL_MEDIA_TYPES | VIDEO_MEDIA_TYPES or part.pixel is not None for part in parts)
            and not is_pixel_data
        ):
            raise _mismatch(f"({tag:08X}) is sent as {parts[0].type.media_type}, expected bytes of VR {vr.decode()}")
        length = sum(part.content.length for part in parts)
        word = VALUE_REPRESENTATIONS[vr].word
        if word > 2 and length % word:
            raise _mismatch(f"({tag:08X}) has {length} bytes, expected words of {word}")
        if length > _LONGEST_VALUE:
            raise ScanFailure(f"({tag:08X}) has {length} bytes, more than an element can have", reasons.PROCESSING_FAILURE)
        yield encode_element_header(tag, vr, length + (length & 1))
        for part in parts:
            yield from part.content.chunks()
        if length & 1:
            yield VALUE_REPRESENTATIONS[vr].padding

    @staticmethod
    def _found(tag: int, parts: list[BulkPart]) -> list[BulkPart]:
        if not parts:
            raise ScanFailure(f"({tag:08X}) has a BulkDataURI that no part has as its Content-Location", reasons.BULKDATA_MISSING)
        for part in parts:
            if part.failure is not None:
                raise part.failure
        return parts

    def _prepare_pixel_data(self) -> None:
        element = self._data_set.get(PIXEL_DATA)
        if not isinstance(element, dict) or not isinstance(uri := element.get("BulkDataURI"), str):
            return
        for tag in _OFFSET_TABLES:
            self._data_set.pop(tag, None)
        parts = self._found(0x7FE00010, self._parts.find_frames(uri))
        media_types = {self._compressed_type(part) for part in parts}
        if len(media_types) > 1:
            raise _mismatch("Pixel Data has parts of several media types")
        if media_type := media_types.pop():
            self._encapsulate(parts, media_type)
        elif any(part.pixel is not None for part in parts):
            self._describe_transformed(parts)

    def _compressed_type(self, part: BulkPart) -> str:
        """Return the media type of a compressed bit stream; "" for native pixel data.

        Raises:
            ScanFailure: the media type or transfer syntax of the part is not supported for Pixel Data.
        """
        media_type = part.type.media_type
        if media_type in STILL_MEDIA_TYPES or media_type in VIDEO_MEDIA_TYPES:
            return media_type
        if part.pixel is not None:
            return ""
        if media_type != OCTET_STREAM:
            raise ScanFailure(f"Pixel Data is sent as {media_type}, which is not supported", reasons.TRANSFER_SYNTAX_NOT_SUPPORTED)
        named = TRANSFER_SYNTAXES.get(part.type.transfer_syntax_uid or self._named)
        if part.type.transfer_syntax_uid and (named is None or named.is_big_endian or named.is_deflated):
            raise ScanFailure("Pixel Data is named with a transfer syntax that is not supported", reasons.TRANSFER_SYNTAX_NOT_SUPPORTED)
        if named is None or not named.is_encapsulated:
            return ""
        has_no_mark = named.is_video or named.codestream is Codestream.NONE
        is_start = has_no_mark or is_codestream_start(named.codestream, part.content.read(0, 16))
        if not (is_start or part.type.transfer_syntax_uid):
            return ""
        named_type = named.media_type.lower()
        if named_type in STILL_MEDIA_TYPES | VIDEO_MEDIA_TYPES:
            return named_type
        return _STILL_OF_CODESTREAM.get(named.codestream, OCTET_STREAM)

    def _encapsulate(self, parts: list[BulkPart], media_type: str) -> None:
        named = parts[0].type.transfer_syntax_uid or self._named
        is_video = media_type in VIDEO_MEDIA_TYPES
        if is_video and len(parts) > 1:
            raise _mismatch(f"a video is one part, found {len(parts)}")
        if media_type == OCTET_STREAM:  # the request names a transfer syntax whose bit streams are not parsed
            self._transfer_syntax_uid, self._frames = named, _Frames(tuple(part.content for part in parts), is_video=False)
            self._fill(NUMBER_OF_FRAMES, "IS", str(len(parts))) if len(parts) > 1 else None
            return
        pictures = [read_video(part.content, media_type) if is_video else read_still(part.content, media_type) for part in parts]
        picture = _common(pictures)
        self._transfer_syntax_uid = choose_transfer_syntax(picture, media_type, named)
        contents = tuple(part.content.part(frame.offset, frame.length) for part, frame in zip(parts, pictures, strict=True))
        self._frames = _Frames(contents, is_video)
        self._describe(picture, picture.number_of_frames if is_video else len(parts), is_video=is_video)

    def _describe(self, picture: Picture, number_of_frames: int, *, is_video: bool) -> None:
        """Add the attributes that the metadata omits; check those that it has.

        Raises:
            ScanFailure: metadata and bit stream contradict each other, or neither has a required attribute.
        """
        for tag, name, bitstream_value in (
            (ROWS, "Rows", picture.rows),
            (COLUMNS, "Columns", picture.columns),
            (SAMPLES_PER_PIXEL, "Samples per Pixel", picture.samples_per_pixel),
        ):
            said = self._number(tag)
            if bitstream_value and said is not None and said != bitstream_value:
                raise _mismatch(f"{name} is {said}, but the bit stream has {bitstream_value}")
            if bitstream_value:
                self._fill(tag, "US", bitstream_value)
            elif said is None:
                raise _mismatch(f"{name} is missing, and the bit stream does not define it")
        allocated = self._number(BITS_ALLOCATED)
        if allocated is not None and allocated < picture.precision and allocated != 1:
            raise _mismatch(f"Bits Allocated is {allocated}, but the bit stream has {picture.precision} bits")
        if self._is_missing(PHOTOMETRIC_INTERPRETATION) and not picture.photometric_interpretation:
            raise _mismatch(f"Photometric Interpretation is missing, and {picture.samples_per_pixel} samples per pixel do not define it")
        self._fill(PHOTOMETRIC_INTERPRETATION, "CS", picture.photometric_interpretation)
        if picture.samples_per_pixel > 1:
            self._fill(PLANAR_CONFIGURATION, "US", 0)
        self._fill(BITS_ALLOCATED, "US", picture.bits_allocated)
        self._fill(BITS_STORED, "US", picture.precision)
        self._fill(HIGH_BIT, "US", (self._number(BITS_STORED) or picture.precision) - 1)
        self._fill(PIXEL_REPRESENTATION, "US", picture.pixel_representation)
        if is_video and not number_of_frames and self._is_missing(NUMBER_OF_FRAMES):
            raise _mismatch("Number of Frames is missing, and the bit stream does not define it")
        if is_video or number_of_frames > 1:
            self._fill(NUMBER_OF_FRAMES, "IS", str(number_of_frames))

    def _describe_transformed(self, parts: list[BulkPart]) -> None:
        """Set the attributes of decoded images (PNG, GIF).

        Raises:
            ScanFailure: they cannot be frames of one image, or contradict the metadata.
        """
        pixel = parts[0].pixel
        if pixel is None or any(part.pixel != pixel for part in parts):
            raise _mismatch("Pixel Data has parts that cannot be frames of one image")
        number_of_frames = sum(part.number_of_frames for part in parts)
        for tag, name, described in ((ROWS, "Rows", pixel.rows), (COLUMNS, "Columns", pixel.columns)):
            said = self._number(tag)
            if said is not None and said != described:
                raise _mismatch(f"{name} is {said}, but the image has {described}")
        said = self._number(NUMBER_OF_FRAMES)
        if said is not None and said != number_of_frames:
            raise _mismatch(f"Number of Frames is {said}, but the image has {number_of_frames}")
        self._data_set.pop(PLANAR_CONFIGURATION, None)
        self._data_set |= _description(pixel)
        if number_of_frames > 1:
            self._fill(NUMBER_OF_FRAMES, "IS", str(number_of_frames))
        self._data_set[PIXEL_DATA] = self._data_set[PIXEL_DATA] | {"vr": pixel.vr}

    def _prepare_document(self) -> None:
        element = self._data_set.get(ENCAPSULATED_DOCUMENT)
        if not isinstance(element, dict) or not isinstance(uri := element.get("BulkDataURI"), str):
            return
        (part, *_) = self._found(0x00420011, self._parts.find(uri))
        said, sent = _text(self._data_set, MIME_TYPE), part.type.media_type
        if sent != OCTET_STREAM:
            if said and said.lower() != sent:
                raise _mismatch("MIME Type of Encapsulated Document is not the Content-Type of its part")
            self._fill(MIME_TYPE, "LO", sent)
        if part.content.length & 1:  # otherwise a reader could not know that the last byte is padding
            self._fill(DOCUMENT_LENGTH, "UL", part.content.length)

    def _is_missing(self, tag: str) -> bool:
        element = self._data_set.get(tag)
        values = element.get("Value") if isinstance(element, dict) else None
        return not isinstance(values, list) or not values or values[0] in (None, "")

    def _fill(self, tag: str, vr: str, value: int | str) -> None:
        if self._is_missing(tag):
            self._data_set[tag] = {"vr": vr, "Value": [value]}

    def _number(self, tag: str) -> int | None:
        """Return an integer attribute of the metadata; None if it is absent.

        Raises:
            ScanFailure: the value is not a number.
        """
        if self._is_missing(tag):
            return None
        try:
            return int(self._data_set[tag]["Value"][0])
        except (TypeError, ValueError, KeyError):
            raise ScanFailure(f"({tag}) is not a number", reasons.CANNOT_UNDERSTAND) from None


def _common(pictures: list[Picture]) -> Picture:
    """Return the properties that all frames have in common.

    Raises:
        ScanFailure: the bit streams cannot be frames of one image.
    """
    first = pictures[0]
    uids = tuple(uid for uid in first.transfer_syntax_uids if all(uid in other.transfer_syntax_uids for other in pictures))
    if not uids or not all(agree(first, other) for other in pictures):
        raise _mismatch("the frames differ in size, samples or kind of compression")
    return replace(first, transfer_syntax_uids=uids)


def _description(pixel: blob_pb2.PixelDescription) -> dict[str, Any]:
    """Return the Image Pixel Description Macro of native frames as DICOM JSON."""
    numbers = {
        SAMPLES_PER_PIXEL: pixel.samples_per_pixel,
        ROWS: pixel.rows,
        COLUMNS: pixel.columns,
        BITS_ALLOCATED: pixel.bits_allocated,
        BITS_STORED: pixel.bits_stored,
        HIGH_BIT: pixel.high_bit,
        PIXEL_REPRESENTATION: pixel.pixel_representation,
    }
    if pixel.samples_per_pixel > 1:
        numbers[PLANAR_CONFIGURATION] = pixel.planar_configuration
    described: dict[str, Any] = {tag: {"vr": "US", "Value": [number]} for tag, number in numbers.items()}
    return described | {PHOTOMETRIC_INTERPRETATION: {"vr": "CS", "Value": [pixel.photometric_interpretation]}}


def _mismatch(message: str) -> ScanFailure:
    return ScanFailure(message, reasons.BULKDATA_DOES_NOT_MATCH)


def _text(data_set: dict[str, Any], tag: str) -> str:
    element = data_set.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0].strip(" \0") if isinstance(values, list) and values and isinstance(values[0], str) else ""


def _uid(data_set: dict[str, Any], tag: str) -> str:
    uid = _text(data_set, tag)
    return uid if is_valid_uid(uid) else ""


def _joined(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in chunks of at least _FLUSH_BYTES, except the last, because each call of the scan has a cost."""
    held = bytearray()
    for chunk in chunks:
        if len(chunk) < _FLUSH_BYTES:
            held += chunk
        else:
            if held:
                yield bytes(held)
                held.clear()
            yield chunk
        if len(held) >= _FLUSH_BYTES:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)
