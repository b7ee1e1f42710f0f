"""Patching the head of a file: what is asked for changes, every other byte stays."""

import struct

import pytest

from gantry_renderer.file import head
from gantry_renderer.file.elements import element
from gantry_standard import errors

PREAMBLE = bytes(128) + b"DICM"
SYNTAX = element(0x00020010, "UI", b"1.2.840.10008.1.2.4.90")
CLASS = element(0x00020002, "UI", b"1.2")
ROWS = element(0x00280010, "US", b"\2\0")
INTERPRETATION = element(0x00280004, "CS", b"YBR_RCT")
RGB = element(0x00280004, "CS", b"RGB")
NATIVE = "1.2.840.10008.1.2.1"


def patched(data_set: bytes, changes: dict[int, bytes] | None = None) -> bytes:
    group_length = element(0x00020000, "UL", struct.pack("<I", len(CLASS + SYNTAX)))
    found = head.patch(PREAMBLE + group_length + CLASS + SYNTAX + data_set, NATIVE, changes or {})
    meta = CLASS + element(0x00020010, "UI", NATIVE.encode())
    start = PREAMBLE + element(0x00020000, "UL", struct.pack("<I", len(meta))) + meta
    assert found.startswith(start)
    return found[len(start) :]


def test_change_replaces_what_is_there_or_takes_its_place() -> None:
    assert patched(INTERPRETATION + ROWS, {0x00280004: RGB}) == RGB + ROWS
    assert patched(ROWS, {0x00280004: RGB}) == RGB + ROWS
    assert patched(b"", {0x00280004: RGB}) == RGB


def test_sequences_of_undefined_length_stay_byte_for_byte() -> None:
    # (0008,1140) SQ, undefined; item, undefined; (0008,1150) UI "1.2 "; ends
    item = bytes.fromhex("feff00e0ffffffff") + element(0x00081150, "UI", b"1.2") + bytes.fromhex("feff0de000000000")
    sequence = bytes.fromhex("0800401153510000ffffffff") + item + bytes.fromhex("feffdde000000000")
    # (0009,1001) UN, undefined: items in Implicit VR; (0009,0010) with a length whose bytes read "AB"
    implicit = bytes.fromhex("feff00e0ffffffff") + struct.pack("<HHI", 9, 0x10, 0x4241) + bytes(0x4241) + bytes.fromhex("feff0de000000000")
    unknown = bytes.fromhex("09000110554e0000ffffffff") + implicit + bytes.fromhex("feffdde000000000")
    assert patched(sequence + unknown + ROWS) == sequence + unknown + ROWS


def test_what_would_not_be_true_any_more_is_taken_out() -> None:
    offsets = element(0x7FE00001, "OV", bytes(8)) + element(0x7FE00002, "OV", bytes(8))
    icon = element(0x00880200, "SQ", bytes.fromhex("feff00e00c000000e07f10004f420000ffffffff"))
    plain = element(0x00880200, "SQ", b"")
    lengths = [element(group << 16, "UL", bytes(4)) for group in (0x0028, 0x7FE0)]
    assert patched(lengths[0] + ROWS + icon + lengths[1] + offsets) == ROWS
    assert patched(ROWS + plain) == ROWS + plain


@pytest.mark.parametrize("data_set", [ROWS[:-1], ROWS[:5], bytes.fromhex("0800401153510000ffffffff")])
def test_truncated_head_is_corrupt(data_set: bytes) -> None:
    with pytest.raises(errors.CorruptInstance):
        patched(data_set)
