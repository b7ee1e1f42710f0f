"""Patching the head of a file: what is asked for changes, every other byte stays."""

import struct

import pytest

from gantry_renderer.file import head
from gantry_standard import errors
from gantry_standard.dicom.part10 import encode_element

PREAMBLE = bytes(128) + b"DICM"
SYNTAX = encode_element(0x00020010, b"UI", b"1.2.840.10008.1.2.4.90")
CLASS = encode_element(0x00020002, b"UI", b"1.2")
ROWS = encode_element(0x00280010, b"US", b"\2\0")
INTERPRETATION = encode_element(0x00280004, b"CS", b"YBR_RCT")
RGB = encode_element(0x00280004, b"CS", b"RGB")
NATIVE = "1.2.840.10008.1.2.1"


def patched(data_set: bytes, changes: dict[int, bytes] | None = None) -> bytes:
    group_length = encode_element(0x00020000, b"UL", struct.pack("<I", len(CLASS + SYNTAX)))
    found = head.patch(PREAMBLE + group_length + CLASS + SYNTAX + data_set, NATIVE, changes or {})
    meta = CLASS + encode_element(0x00020010, b"UI", NATIVE.encode())
    start = PREAMBLE + encode_element(0x00020000, b"UL", struct.pack("<I", len(meta))) + meta
    assert found.startswith(start)
    return found[len(start) :]


def test_change_replaces_what_is_there_or_takes_its_place() -> None:
    assert patched(INTERPRETATION + ROWS, {0x00280004: RGB}) == RGB + ROWS
    assert patched(ROWS, {0x00280004: RGB}) == RGB + ROWS
    assert patched(b"", {0x00280004: RGB}) == RGB


def test_sequences_of_undefined_length_stay_byte_for_byte() -> None:
    # (0008,1140) SQ, undefined; item, undefined; (0008,1150) UI "1.2 "; ends
    item = bytes.fromhex("feff00e0ffffffff") + encode_element(0x00081150, b"UI", b"1.2") + bytes.fromhex("feff0de000000000")
    sequence = bytes.fromhex("0800401153510000ffffffff") + item + bytes.fromhex("feffdde000000000")
    # (0009,1001) UN, undefined: items in Implicit VR; (0009,0010) with a length whose bytes read "AB"
    implicit = bytes.fromhex("feff00e0ffffffff") + struct.pack("<HHI", 9, 0x10, 0x4241) + bytes(0x4241) + bytes.fromhex("feff0de000000000")
    unknown = bytes.fromhex("09000110554e0000ffffffff") + implicit + bytes.fromhex("feffdde000000000")
    assert patched(sequence + unknown + ROWS) == sequence + unknown + ROWS


def test_what_would_not_be_true_any_more_is_taken_out() -> None:
    offsets = encode_element(0x7FE00001, b"OV", bytes(8)) + encode_element(0x7FE00002, b"OV", bytes(8))
    icon = encode_element(0x00880200, b"SQ", bytes.fromhex("feff00e00c000000e07f10004f420000ffffffff"))
    plain = encode_element(0x00880200, b"SQ", b"")
    lengths = [encode_element(group << 16, b"UL", bytes(4)) for group in (0x0028, 0x7FE0)]
    assert patched(lengths[0] + ROWS + icon + lengths[1] + offsets) == ROWS
    assert patched(ROWS + plain) == ROWS + plain


@pytest.mark.parametrize("data_set", [ROWS[:-1], ROWS[:5], bytes.fromhex("0800401153510000ffffffff")])
def test_truncated_head_is_corrupt(data_set: bytes) -> None:
    with pytest.raises(errors.CorruptInstance):
        patched(data_set)
