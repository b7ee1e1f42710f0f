"""Where frames lie, by tables and by fragments."""

import struct

import pytest

from gantry_standard.dicom.frames import FragmentTable, is_codestream_start, locate_encapsulated_frames, locate_native_frames
from gantry_standard.dicom.scanned import EncapsulatedFrames, NativeFrames, Origin, PixelDescription, Span
from gantry_standard.dicom.transfer_syntaxes import Codestream

# Six fragments of 10 bytes, the first item header at byte 100: items begin at 0, 18, 36, 54, 72, 90 from there.
_OFFSETS = tuple(108 + 18 * index for index in range(6))
_LENGTHS = (10,) * 6


def _table(*entries: int, letter: str = "I") -> bytes:
    return struct.pack(f"<{len(entries)}{letter}", *entries)


def _fragments(starts: str = "000000", basic: bytes = b"", extended: bytes = b"") -> FragmentTable:
    count = len(starts)
    return FragmentTable(
        Origin.ORIGINAL, _OFFSETS[:count], _LENGTHS[:count], bytes(int(start) for start in starts), basic, extended
    )  # fmt: skip


def _firsts(fragments: FragmentTable, number_of_frames: int, **options: bool) -> list[int] | None:
    found = locate_encapsulated_frames(fragments, number_of_frames, **options)
    if found is None:
        return None
    assert isinstance(found.encoding, EncapsulatedFrames)
    firsts = list(found.encoding.first_fragments) or list(range(len(found.encoding.fragment_offsets)))
    assert len(firsts) == found.number_of_frames
    return firsts


def test_as_many_fragments_as_frames_are_the_frames() -> None:
    assert _firsts(_fragments(), 6) == [0, 1, 2, 3, 4, 5]


def test_one_frame_has_all_fragments() -> None:
    assert _firsts(_fragments(), 1) == [0]


def test_basic_offset_table_says_where_frames_begin() -> None:
    assert _firsts(_fragments(basic=_table(0, 36, 54)), 3) == [0, 2, 3]


def test_extended_offset_table_comes_first() -> None:
    assert _firsts(_fragments(basic=_table(0, 18), extended=_table(0, 72, letter="Q")), 2) == [0, 4]


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(_table(0, 0, 0), id="all zero"),
        pytest.param(_table(0, 37, 54), id="between items"),
        pytest.param(_table(0, 54, 36), id="backwards"),
        pytest.param(_table(18, 36, 54), id="not from the first fragment"),
        pytest.param(_table(0, 36), id="too few"),
        pytest.param(_table(0, 18, 36, 54), id="too many"),
        pytest.param(_table(0, 18, 90), id="against the codestreams"),
        pytest.param(_table(0, 36, 54) + b"\0", id="broken length"),
        pytest.param(b"", id="empty"),
    ],
)
def test_wrong_offset_table_gives_way_to_the_codestreams(wrong: bytes) -> None:
    assert _firsts(_fragments("101001", basic=wrong), 3) == [0, 2, 5]
    assert _firsts(_fragments("101001", extended=wrong), 3) == [0, 2, 5]


def test_nothing_that_tells_the_frames_apart_gives_no_table() -> None:
    assert _firsts(_fragments(), 2) is None
    assert _firsts(_fragments("100000"), 2) is None


def test_table_ends_where_fragments_end() -> None:
    assert _firsts(_fragments(), 9) == [0, 1, 2, 3, 4, 5]


def test_number_of_frames_that_is_too_small_gives_way_to_codestreams_or_a_table() -> None:
    assert _firsts(_fragments("111111"), 4) == [0, 1, 2, 3, 4, 5]
    assert _firsts(_fragments(basic=_table(0, 18, 54)), 2) == [0, 1, 3]


def test_video_is_one_entry() -> None:
    assert _firsts(_fragments("111111", basic=_table(0, 18)), 2, is_video=True) == [0]


def test_no_fragments_are_no_frames() -> None:
    assert locate_encapsulated_frames(FragmentTable(Origin.ORIGINAL, (), (), b""), 1) is None


@pytest.mark.parametrize(
    ("codestream", "head", "expected"),
    [
        (Codestream.JPEG, b"\xff\xd8\xff\xe0", True),
        (Codestream.JPEG, b"\xff\xd8\xff\xf7", True),
        (Codestream.JPEG, b"\xff\xda\x00\x00", False),
        (Codestream.JPEG_2000, b"\xff\x4f\xff\x51", True),
        (Codestream.JPEG_2000, b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14", True),
        (Codestream.JPEG_2000, b"\xff\x90\x00\x0a", False),
        (Codestream.JPEG_XL, b"\xff\x0a", True),
        (Codestream.JPEG_XL, b"\0\0\0\x0cJXL \r\n\x87\n", True),
        (Codestream.RLE, struct.pack("<III", 2, 64, 900), True),
        (Codestream.RLE, struct.pack("<III", 16, 64, 900), False),
        (Codestream.RLE, struct.pack("<III", 2, 65, 900), False),
        (Codestream.RLE, b"\1", False),
        (Codestream.NONE, b"\xff\xd8\xff\xe0", False),
    ],
)
def test_start_of_a_codestream_is_recognised(codestream: Codestream, head: bytes, expected: bool) -> None:
    assert is_codestream_start(codestream, head) is expected


def _native(length: int, number_of_frames: int, tag: str = "7FE00010", **pixel: int | str) -> tuple[int, int] | None:
    described = {"rows": 4, "columns": 4, "samples_per_pixel": 1, "bits_allocated": 8, **pixel}
    found = locate_native_frames(Span(Origin.ORIGINAL, 0, length), PixelDescription(tag=tag, **described), number_of_frames)  # type: ignore[arg-type]
    if found is None:
        return None
    assert isinstance(found.encoding, NativeFrames)
    return found.number_of_frames, found.encoding.frame_bits


def test_native_frames_by_image_pixel_description() -> None:
    assert _native(32, 2) == (2, 128)
    assert _native(6, 3, bits_allocated=1) == (3, 16)
    assert _native(96, 2, samples_per_pixel=3) == (2, 384)
    assert _native(64, 1, "7FE00008", bits_allocated=0) == (1, 512)
    assert _native(128, 1, "7FE00009", bits_allocated=0) == (1, 1024)
    assert _native(64, 2, samples_per_pixel=3, photometric_interpretation="YBR_FULL_422") == (2, 256)
    assert _native(96, 2, samples_per_pixel=3, photometric_interpretation="YBR_FULL_422") == (2, 384)
    assert _native(48, 2, samples_per_pixel=3, photometric_interpretation="YBR_PARTIAL_420") == (2, 192)


def test_native_frames_that_are_not_whole_are_left_out() -> None:
    assert _native(31, 2) == (1, 128)
    assert _native(15, 1) is None
    assert _native(32, 1, rows=0) is None
