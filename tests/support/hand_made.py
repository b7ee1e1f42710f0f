"""Encodes data sets without a library: elements in each encoding, and whole files."""

import struct
import zlib

from gantry_standard.dicom.part10 import encode_file_meta

EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
RLE = "1.2.840.10008.1.2.5"
UNDEFINED = 0xFFFFFFFF
SOP_CLASS_UID, SOP_INSTANCE_UID = "1.2.840.10008.5.1.4.1.1.7", "2.25.3"
STUDY_INSTANCE_UID, SERIES_INSTANCE_UID = "2.25.1", "2.25.2"

_LONG = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}


def explicit(tag: int, vr: str, value: bytes = b"", *, length: int | None = None, order: str = "<") -> bytes:
    """Encode an element with its VR. `length` replaces the length of the value, to make a wrong file."""
    length = len(value) if length is None else length
    if vr in _LONG:
        return struct.pack(f"{order}HH2sHI", tag >> 16, tag & 0xFFFF, vr.encode(), 0, length) + value
    return struct.pack(f"{order}HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), length) + value


def implicit(tag: int, value: bytes = b"", *, length: int | None = None) -> bytes:
    """Encode an element without a VR."""
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value) if length is None else length) + value


def item(value: bytes = b"", *, length: int | None = None, order: str = "<") -> bytes:
    """Encode an item, or a fragment."""
    return struct.pack(f"{order}HHI", 0xFFFE, 0xE000, len(value) if length is None else length) + value


ITEM_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def even(text: str, padding: bytes = b"\0") -> bytes:
    """Encode a string of the default repertoire, padded to an even length."""
    value = text.encode("ascii")
    return value + padding * (len(value) & 1)


UIDS = {
    0x00080016: SOP_CLASS_UID,
    0x00080018: SOP_INSTANCE_UID,
    0x0020000D: STUDY_INSTANCE_UID,
    0x0020000E: SERIES_INSTANCE_UID,
}


def explicit_data_set(elements: dict[int, bytes], order: str = "<") -> bytes:
    """Join encoded elements and the four UIDs, in the order of their tags."""
    uids = {tag: explicit(tag, "UI", even(uid), order=order) for tag, uid in UIDS.items()}
    return b"".join(value for _, value in sorted((uids | elements).items()))


def implicit_data_set(elements: dict[int, bytes]) -> bytes:
    """Join encoded elements and the four UIDs, in the order of their tags."""
    uids = {tag: implicit(tag, even(uid)) for tag, uid in UIDS.items()}
    return b"".join(value for _, value in sorted((uids | elements).items()))


def file(data_set: bytes, transfer_syntax_uid: str = EXPLICIT) -> bytes:
    """Return a file: preamble, group 2 and the data set."""
    return encode_file_meta(SOP_CLASS_UID, SOP_INSTANCE_UID, transfer_syntax_uid) + data_set


def explicit_file(elements: dict[int, bytes], transfer_syntax_uid: str = EXPLICIT) -> bytes:
    """Make a file of Explicit VR Little Endian elements."""
    return file(explicit_data_set(elements), transfer_syntax_uid)


def deflate(data_set: bytes) -> bytes:
    """Deflate a data set (PS3.5 §A.5)."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    deflated = compressor.compress(data_set) + compressor.flush()
    return deflated + b"\0" * (len(deflated) & 1)


def image(order: str = "<", **changes: int | str) -> dict[int, bytes]:
    """Make the elements of Image Pixel Description: 2 rows, 3 columns, 16 bits, MONOCHROME2, unless changed."""
    values = {
        "samples": 1, "photometric": "MONOCHROME2", "frames": "", "rows": 2, "columns": 3, "allocated": 16, "representation": 0, **changes,
    }  # fmt: skip
    number = {0x00280002: "samples", 0x00280010: "rows", 0x00280011: "columns", 0x00280100: "allocated", 0x00280103: "representation"}
    elements = {tag: explicit(tag, "US", struct.pack(f"{order}H", values[name]), order=order) for tag, name in number.items()}
    elements[0x00280004] = explicit(0x00280004, "CS", even(str(values["photometric"]), b" "), order=order)
    if values["frames"]:
        elements[0x00280008] = explicit(0x00280008, "IS", even(str(values["frames"]), b" "), order=order)
    return elements


def encapsulated(*fragments: bytes, table: bytes = b"") -> bytes:
    """Encode encapsulated Pixel Data: Basic Offset Table, fragments, delimiter."""
    return explicit(0x7FE00010, "OB", length=UNDEFINED) + item(table) + b"".join(map(item, fragments)) + SEQUENCE_END
