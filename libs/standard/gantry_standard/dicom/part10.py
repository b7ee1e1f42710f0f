"""Write PS3.10 files and Explicit VR Little Endian elements.

Source: PS3.10 §7.1 (Table 7.1-1); PS3.5 §7.1.2.
"""

import struct
from importlib.metadata import PackageNotFoundError, version

from gantry_standard.dicom.value_representations import VALUE_REPRESENTATIONS

PREAMBLE = bytes(128)
PREFIX = b"DICM"
UNDEFINED_LENGTH = 0xFFFFFFFF
# From the UUID of this implementation, chosen once (PS3.5 §B.2).
IMPLEMENTATION_CLASS_UID = "2.25.92911341786228563158626066982797108484"

ITEM_UNDEFINED = struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED_LENGTH)
ITEM_DELIMITER = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
SEQUENCE_DELIMITER = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def _implementation_version_name() -> str:
    try:
        return f"GANTRY_{version('gantry-standard')}"[:16]
    except PackageNotFoundError:
        return "GANTRY"


IMPLEMENTATION_VERSION_NAME = _implementation_version_name()


def encode_element_header(tag: int, vr: bytes, length: int) -> bytes:
    """Encode tag, VR and length; a value too long for the 16-bit length of its VR gets VR UN (PS3.5 §6.2.2, PS3.18 §8.7.3.2).

    Args:
        tag: group in the upper 16 bits.
        length: of the value in bytes, even; or UNDEFINED_LENGTH.
    """
    if VALUE_REPRESENTATIONS[vr].is_long:
        return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, length)
    if length > 0xFFFE:
        return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, b"UN", 0, length)
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, length)


def encode_element(tag: int, vr: bytes, value: bytes) -> bytes:
    """Encode an element in Explicit VR Little Endian; an odd value is padded by the rule of its VR (PS3.5 §6.2)."""
    if len(value) & 1:
        value += VALUE_REPRESENTATIONS[vr].padding
    return encode_element_header(tag, vr, len(value)) + value


def encode_item_header(length: int) -> bytes:
    """Encode the tag and length of an item of a sequence or a fragment of Pixel Data.

    Args:
        length: of the item's value in bytes, even; or UNDEFINED_LENGTH.
    """
    return struct.pack("<HHI", 0xFFFE, 0xE000, length)


def encode_item(value: bytes) -> bytes:
    """Encode an item of a sequence with a defined length; `value` holds its encoded elements."""
    return encode_item_header(len(value)) + value


def encode_file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Encode the file header: 128 zero bytes, DICM and File Meta Information of this implementation.

    Source: PS3.10 Table 7.1-1.
    """
    group = b"".join(
        (
            encode_element(0x00020001, b"OB", b"\0\1"),
            encode_element(0x00020002, b"UI", sop_class_uid.encode("ascii")),
            encode_element(0x00020003, b"UI", sop_instance_uid.encode("ascii")),
            encode_element(0x00020010, b"UI", transfer_syntax_uid.encode("ascii")),
            encode_element(0x00020012, b"UI", IMPLEMENTATION_CLASS_UID.encode("ascii")),
            encode_element(0x00020013, b"SH", IMPLEMENTATION_VERSION_NAME.encode("ascii")),
        )
    )
    return PREAMBLE + PREFIX + encode_element(0x00020000, b"UL", struct.pack("<I", len(group))) + group
