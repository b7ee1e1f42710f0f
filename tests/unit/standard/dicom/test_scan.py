"""The scan of instances whose every byte is known."""

import hashlib
import math
import struct
import tracemalloc
from io import BytesIO
from typing import Any

import orjson
import pydicom
import pytest

from gantry_standard import reasons
from gantry_standard.dicom.part10 import encode_file_meta
from gantry_standard.dicom.scan import Limits, ScanFailure, Scanner
from gantry_standard.dicom.scanned import EncapsulatedFrames, NativeFrames, Origin, Span
from tests.support.hand_made import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    ITEM_END,
    JPEG_BASELINE,
    SEQUENCE_END,
    SERIES_INSTANCE_UID,
    SOP_CLASS_UID,
    SOP_INSTANCE_UID,
    STUDY_INSTANCE_UID,
    UNDEFINED,
    deflate,
    encapsulated,
    explicit,
    explicit_data_set,
    explicit_file,
    file,
    image,
    implicit,
    implicit_data_set,
    item,
)
from tests.support.scanning import Scan, scan

_BULK_PREFIX = f"/studies/{STUDY_INSTANCE_UID}/series/{SERIES_INSTANCE_UID}/instances/{SOP_INSTANCE_UID}/bulkdata/"
_HEAD_LENGTH = len(encode_file_meta(SOP_CLASS_UID, SOP_INSTANCE_UID, EXPLICIT))


def _json(found: Scan) -> dict[str, Any]:
    json: dict[str, Any] = orjson.loads(found.scanned.dicom_json.replace(b"\x00", b""))
    return json


def _failure(data: bytes, **options: Any) -> ScanFailure:
    with pytest.raises(ScanFailure) as caught:
        scan(data, **options)
    return caught.value


# Facts and digests


def test_uids_lengths_and_digests() -> None:
    data_set = explicit_data_set({})
    found = scan(file(data_set)).scanned
    assert (found.study_instance_uid, found.series_instance_uid) == (STUDY_INSTANCE_UID, SERIES_INSTANCE_UID)
    assert (found.sop_class_uid, found.sop_instance_uid) == (SOP_CLASS_UID, SOP_INSTANCE_UID)
    assert (found.length, found.head_length) == (_HEAD_LENGTH + len(data_set), _HEAD_LENGTH)
    assert found.head_digest == hashlib.sha256(file(b"")).digest()
    assert found.dataset_digest == hashlib.sha256(data_set).digest()
    assert found.frames is None
    assert found.pixel_element is None


def test_digest_of_a_deflated_data_set_is_of_its_deflated_bytes() -> None:
    deflated = deflate(explicit_data_set({}))
    assert scan(file(deflated, DEFLATED)).scanned.dataset_digest == hashlib.sha256(deflated).digest()


# Heads


def test_right_head_with_zero_preamble_leaves_as_it_is() -> None:
    original = explicit_file({})
    found = scan(original)
    assert found.scanned.wire == (Span(Origin.ORIGINAL, 0, len(original)),)
    assert found.rendition == b""


def test_preamble_that_is_not_zeros_is_replaced() -> None:
    original = b"II*\0" + explicit_file({})[4:]
    found = scan(original)
    assert found.scanned.wire == (Span(Origin.RENDITION, 0, 128), Span(Origin.ORIGINAL, 128, len(original) - 128))
    assert found.wire == explicit_file({})


@pytest.mark.parametrize("start", [128, 132], ids=["no preamble", "no preamble and no prefix"])
def test_missing_preamble_is_added(start: int) -> None:
    found = scan(explicit_file({})[start:])
    assert found.wire == explicit_file({})
    assert found.scanned.transfer_syntax_uid == EXPLICIT


@pytest.mark.parametrize(
    ("data_set", "transfer_syntax_uid"),
    [
        pytest.param(explicit_data_set({}), EXPLICIT, id="explicit"),
        pytest.param(implicit_data_set({}), IMPLICIT, id="implicit"),
        pytest.param(explicit_data_set({}, ">"), BIG_ENDIAN, id="big endian"),
    ],
)
def test_data_set_without_head_is_recognised(data_set: bytes, transfer_syntax_uid: str) -> None:
    found = scan(data_set)
    assert found.scanned.head_length == 0
    assert found.scanned.head_digest == hashlib.sha256(b"").digest()
    assert found.scanned.transfer_syntax_uid == transfer_syntax_uid
    assert found.wire == explicit_file({})


def test_wrong_group_length_is_not_believed_and_not_sent() -> None:
    original = bytearray(explicit_file({}))
    original[140:144] = struct.pack("<I", 9)
    found = scan(bytes(original))
    assert found.scanned.head_length == _HEAD_LENGTH
    assert found.wire == explicit_file({})


def test_file_meta_of_another_instance_is_replaced() -> None:
    data_set = explicit_data_set({})
    found = scan(encode_file_meta(SOP_CLASS_UID, "2.25.99", EXPLICIT) + data_set)
    assert found.wire == explicit_file({})


def test_data_set_is_read_as_it_is_where_file_meta_names_another_encoding() -> None:
    assert scan(file(implicit_data_set({}), EXPLICIT)).wire == explicit_file({})
    assert scan(file(explicit_data_set({}), IMPLICIT)).wire == explicit_file({})


def test_deflated_data_set_may_begin_with_the_bytes_of_group_2() -> None:
    # A deflate block of fixed codes that begins 02 00: an empty stored block first (00 …) would not; so bytes are made to fit.
    # 0x02: not final, type 1; what follows is whatever decodes, and the scan must hand it to the inflater, not to group 2.
    failure = _failure(file(b"\2\0\xff\xff", DEFLATED))
    assert "deflated" in failure.message


# Encodings


def test_implicit_vr_is_encoded_again_around_untouched_pixels() -> None:
    pixels = bytes(range(12))
    elements = {tag: implicit(tag, value[8:]) for tag, value in image().items()}
    original = file(implicit_data_set(elements | {0x7FE00010: implicit(0x7FE00010, pixels)}), IMPLICIT)
    found = scan(original)
    assert found.wire == explicit_file(image() | {0x7FE00010: explicit(0x7FE00010, "OW", pixels)})
    assert found.scanned.pixel_element == Span(Origin.ORIGINAL, len(original) - 12, 12)
    assert found.scanned.pixel_element_header is not None
    assert found.read(found.scanned.pixel_element_header) == explicit(0x7FE00010, "OW", length=12)
    assert found.scanned.wire_transfer_syntax_uid == EXPLICIT
    assert found.frame(0) == pixels


def test_number_too_long_for_its_vr_leaves_as_un() -> None:
    values = struct.pack("<16384I", *range(16384))
    found = scan(
        file(implicit_data_set({0x00660040: implicit(0x00660040, values), 0x00081160: implicit(0x00081160, b"1\\" * 40_000)}), IMPLICIT)
    )
    assert _json(found)["00081160"] == {"vr": "IS", "BulkDataURI": _BULK_PREFIX + "00081160"}
    assert explicit(0x00081160, "UN", b"1\\" * 40_000) in found.wire


def test_big_endian_words_are_swapped_by_vr() -> None:
    elements = image(">") | {
        0x00080008: explicit(0x00080008, "CS", b"ORIGINAL", order=">"),
        0x00189306: explicit(0x00189306, "FD", struct.pack(">d", 1.5), order=">"),
        0x00209165: explicit(0x00209165, "AT", struct.pack(">HH", 0x0018, 0x9306), order=">"),
        0x00281201: explicit(0x00281201, "OW", struct.pack(">600H", *range(600)), order=">"),
        0x7FE00010: explicit(0x7FE00010, "OW", struct.pack(">6H", *range(6)), order=">"),
    }
    expected = image() | {
        0x00080008: explicit(0x00080008, "CS", b"ORIGINAL"),
        0x00189306: explicit(0x00189306, "FD", struct.pack("<d", 1.5)),
        0x00209165: explicit(0x00209165, "AT", struct.pack("<HH", 0x0018, 0x9306)),
        0x00281201: explicit(0x00281201, "OW", struct.pack("<600H", *range(600))),
        0x7FE00010: explicit(0x7FE00010, "OW", struct.pack("<6H", *range(6))),
    }
    original = file(explicit_data_set(elements, ">"), BIG_ENDIAN)
    for chunk_bytes in (1, 3, 1 << 20):
        found = scan(original, chunk_bytes=chunk_bytes)
        assert found.wire == explicit_file(expected)
        assert found.frame(0) == struct.pack("<6H", *range(6))
        assert found.scanned.pixel_element is not None
        assert found.read(found.scanned.pixel_element) == expected[0x7FE00010]
    assert _json(found)["00209165"] == {"vr": "AT", "Value": ["00189306"]}


def test_big_endian_samples_of_32_bits_are_swapped_whole() -> None:
    elements = image(">", allocated=32) | {0x7FE00010: explicit(0x7FE00010, "OW", struct.pack(">6I", *range(6)), order=">")}
    assert scan(file(explicit_data_set(elements, ">"), BIG_ENDIAN)).frame(0) == struct.pack("<6I", *range(6))


def test_deflated_data_set_leaves_inflated() -> None:
    elements = image() | {0x7FE00010: explicit(0x7FE00010, "OW", bytes(12))}
    original = file(deflate(explicit_data_set(elements)), DEFLATED)
    found = scan(original)
    assert found.scanned.transfer_syntax_uid == DEFLATED
    assert found.wire == explicit_file(elements)
    assert found.frame(0) == bytes(12)
    assert found.scanned.pixel_element is not None
    assert found.read(found.scanned.pixel_element) == elements[0x7FE00010]


def test_private_transfer_syntax_is_kept_where_explicit_vr_is_plausible() -> None:
    elements = image() | {0x7FE00010: encapsulated(b"\1\2")}
    found = scan(explicit_file(elements, "1.2.3.4"))
    assert found.scanned.wire_transfer_syntax_uid == "1.2.3.4"
    assert found.frame(0) == b"\1\2"


def test_private_transfer_syntax_of_unknown_encoding_is_not_supported() -> None:
    assert _failure(file(implicit_data_set({}), "1.2.3.4")).reason == reasons.TRANSFER_SYNTAX_NOT_SUPPORTED
    assert _failure(file(b"\x93" * 40, "1.2.3.4")).reason == reasons.TRANSFER_SYNTAX_NOT_SUPPORTED
    assert _failure(file(explicit_data_set({}), "1.2.840.10008.1.2.6.2")).reason == reasons.TRANSFER_SYNTAX_NOT_SUPPORTED


# Structure


def test_sequences_of_defined_and_undefined_length_read_the_same() -> None:
    code = explicit(0x00080100, "SH", b"T-D1")
    lengths = {
        "defined": explicit(0x00082218, "SQ", item(code) + item()),
        "items undefined": explicit(0x00082218, "SQ", item(code + ITEM_END, length=UNDEFINED) + item(ITEM_END, length=UNDEFINED)),
        "both undefined": explicit(0x00082218, "SQ", length=UNDEFINED)
        + item(code + ITEM_END, length=UNDEFINED)
        + item(ITEM_END, length=UNDEFINED)
        + SEQUENCE_END,
        "delimiters in spite of lengths": explicit(0x00082218, "SQ", item(code + ITEM_END) + item(ITEM_END) + SEQUENCE_END),
        "item delimiter missing": explicit(0x00082218, "SQ", length=UNDEFINED) + item(code) + item(b"", length=UNDEFINED) + SEQUENCE_END,
        "UN with Implicit VR inside": explicit(0x00082218, "UN", length=UNDEFINED)
        + item(implicit(0x00080100, b"T-D1"))
        + item()
        + SEQUENCE_END,
        "UN of defined length": explicit(0x00082218, "UN", item(implicit(0x00080100, b"T-D1")) + item()),
        "Implicit VR inside": explicit(0x00082218, "SQ", item(implicit(0x00080100, b"T-D1")) + item()),
    }
    for name, encoded in lengths.items():
        for chunk_bytes in (1, 1 << 20):
            found = scan(explicit_file({0x00082218: encoded}), chunk_bytes=chunk_bytes)
            assert _json(found)["00082218"] == {"vr": "SQ", "Value": [{"00080100": {"vr": "SH", "Value": ["T-D1"]}}, {}]}, name


def test_implicit_vr_inside_explicit_vr_does_not_leave() -> None:
    found = scan(explicit_file({0x00082218: explicit(0x00082218, "SQ", item(implicit(0x00080100, b"T-D1")))}))
    sequence = pydicom.dcmread(BytesIO(found.wire))[0x00082218]
    assert explicit(0x00080100, "SH", b"T-D1") in found.wire
    assert sequence.value[0].CodeValue == "T-D1"


def test_implicit_sequences_and_unknown_private_elements() -> None:
    elements = {
        0x00082218: implicit(0x00082218, item(implicit(0x00080100, b"T-D1"))),
        0x00091001: implicit(0x00091001, b"abc "),
        0x00091002: implicit(0x00091002, length=UNDEFINED) + item(implicit(0x00091003, b"12")) + SEQUENCE_END,
    }
    json = _json(scan(file(implicit_data_set(elements), IMPLICIT)))
    assert json["00082218"] == {"vr": "SQ", "Value": [{"00080100": {"vr": "SH", "Value": ["T-D1"]}}]}
    assert json["00091001"] == {"vr": "UN", "InlineBinary": "YWJjIA=="}
    assert json["00091002"] == {"vr": "SQ", "Value": [{"00091003": {"vr": "UN", "InlineBinary": "MTI="}}]}


def test_unknown_vr_is_read_as_un() -> None:
    elements = {0x00091001: struct.pack("<HH2sHI", 9, 0x1001, b"ZZ", 0, 2) + b"ab", 0x00091002: explicit(0x00091002, "ZY", b"cd")}
    json = _json(scan(explicit_file(elements)))
    assert json["00091001"] == {"vr": "UN", "InlineBinary": "YWI="}
    assert json["00091002"] == {"vr": "UN", "InlineBinary": "Y2Q="}


def test_un_of_a_known_attribute_is_read_as_that_attribute() -> None:
    json = _json(scan(explicit_file({0x00280030: explicit(0x00280030, "UN", b"0.5\\0.5 ")})))
    assert json["00280030"] == {"vr": "DS", "Value": [0.5, 0.5]}


def test_repeating_groups_and_pixel_representation_decide_implicit_vrs() -> None:
    elements = {
        0x00280103: implicit(0x00280103, b"\1\0"),
        0x00280106: implicit(0x00280106, b"\xff\xff"),
        0x00283006: implicit(0x00283006, bytes(4)),
        0x60020010: implicit(0x60020010, b"\2\0"),
        0x60023000: implicit(0x60023000, b"\3\0"),
    }
    json = _json(scan(file(implicit_data_set(elements), IMPLICIT)))
    assert json["00280106"] == {"vr": "SS", "Value": [-1]}
    assert json["00283006"]["vr"] == "OW"
    assert json["60020010"] == {"vr": "US", "Value": [2]}
    assert json["60023000"] == {"vr": "OW", "InlineBinary": "AwA="}


def test_elements_out_of_order_are_sorted_and_the_last_duplicate_counts() -> None:
    late = explicit(0x00080060, "CS", b"MR") + explicit(0x00080060, "CS", b"CT") + explicit(0x00080050, "SH", b"1 ")
    json = _json(scan(file(explicit_data_set({}) + late)))
    assert list(json) == sorted(json)
    assert json["00080060"]["Value"] == ["CT"]


def test_group_lengths_and_file_meta_stay_out_of_metadata() -> None:
    json = _json(scan(explicit_file({0x00080000: explicit(0x00080000, "UL", b"\1\0\0\0")})))
    assert not [tag for tag in json if tag.endswith("0000") or tag.startswith("0002")]


def test_zeros_after_the_data_set_are_not_sent() -> None:
    found = scan(explicit_file({}) + bytes(1000))
    assert found.wire == explicit_file({})
    assert found.scanned.length == len(found.original)


def test_something_after_the_zeros_is_refused() -> None:
    assert _failure(explicit_file({}) + bytes(1000) + b"x").reason == reasons.CANNOT_UNDERSTAND


def test_data_set_trailing_padding_is_an_element() -> None:
    padding = explicit(0xFFFCFFFC, "OB", bytes(2000))
    found = scan(explicit_file({0xFFFCFFFC: padding}))
    assert _json(found)["FFFCFFFC"] == {"vr": "OB", "BulkDataURI": _BULK_PREFIX + "FFFCFFFC"}


def test_odd_length_is_tolerated() -> None:
    assert _json(scan(explicit_file({0x00080050: explicit(0x00080050, "SH", b"123")})))["00080050"]["Value"] == ["123"]


# Bulk


def test_binary_values_above_the_limit_become_bulk() -> None:
    elements = {
        0x00091010: explicit(0x00091010, "OB", bytes(1024)),
        0x00091011: explicit(0x00091011, "OB", bytes(1025) + b"\1"),
        0x00540016: explicit(0x00540016, "SQ", item(explicit(0x00181078, "OB", bytes(1)) + explicit(0x00091011, "UN", b"\7" * 2000))),
    }
    found = scan(explicit_file(elements))
    json = _json(found)
    assert "InlineBinary" in json["00091010"]
    assert json["00091011"] == {"vr": "OB", "BulkDataURI": _BULK_PREFIX + "00091011"}
    assert json["00540016"]["Value"][0]["00091011"] == {"vr": "UN", "BulkDataURI": _BULK_PREFIX + "00540016/1/00091011"}
    assert [(bulk.path, bulk.vr, found.read(bulk.value)) for bulk in found.scanned.bulk] == [
        ("00091011", "OB", bytes(1025) + b"\1"),
        ("00540016/1/00091011", "UN", b"\7" * 2000),
    ]


def test_base_url_is_one_zero_byte_before_each_uri() -> None:
    found = scan(explicit_file({0x7FE00010: explicit(0x7FE00010, "OB", b"\0\0"), 0x00080050: explicit(0x00080050, "SH", b"a\0b ")}))
    assert b'"7FE00010":{"vr":"OB","BulkDataURI":"\x00' + _BULK_PREFIX.encode() + b'7FE00010"}' in found.scanned.dicom_json
    assert found.scanned.dicom_json.count(b"\0") == 1


@pytest.mark.parametrize(("transfer_syntax_uid", "order"), [(EXPLICIT, "<"), (BIG_ENDIAN, ">"), (DEFLATED, "<")])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_become_bulk(transfer_syntax_uid: str, order: str, number: float) -> None:
    data_set = explicit_data_set({0x00189306: explicit(0x00189306, "FD", struct.pack(f"{order}2d", 1, number), order=order)}, order)
    found = scan(file(deflate(data_set) if transfer_syntax_uid == DEFLATED else data_set, transfer_syntax_uid))
    assert _json(found)["00189306"] == {"vr": "FD", "BulkDataURI": _BULK_PREFIX + "00189306"}
    (bulk,) = found.scanned.bulk
    assert found.read(bulk.value) == struct.pack("<2d", 1, number)


def test_empty_pixel_data_has_only_its_vr() -> None:
    found = scan(explicit_file(image() | {0x7FE00010: explicit(0x7FE00010, "OW")}))
    assert _json(found)["7FE00010"] == {"vr": "OW"}
    assert found.scanned.frames is None


# Frames


def test_native_frames_of_one_bit_are_packed() -> None:
    # Three frames of 2 x 3 = 6 bits: 111111 000000 101010, first pixel in bit 0.
    pixels = (0b111111 | 0b000000 << 6 | 0b101010 << 12).to_bytes(3, "little") + b"\0"
    found = scan(explicit_file(image(allocated=1, frames="3") | {0x7FE00010: explicit(0x7FE00010, "OB", pixels)}))
    assert found.scanned.frames is not None
    assert isinstance(found.scanned.frames.encoding, NativeFrames)
    assert found.scanned.frames.encoding.frame_bits == 6
    assert [found.frame(index) for index in range(3)] == [b"\x3f", b"\0", b"\x2a"]


@pytest.mark.parametrize(("tag", "vr", "size"), [(0x7FE00008, "OF", 4), (0x7FE00009, "OD", 8)])
def test_float_pixel_data_has_frames(tag: int, vr: str, size: int) -> None:
    found = scan(explicit_file(image(frames="2") | {tag: explicit(tag, vr, bytes(6 * size) + b"\1" * 6 * size)}))
    assert found.frame(1) == b"\1" * 6 * size
    assert found.scanned.pixel.tag == f"{tag:08X}"
    assert found.scanned.pixel_element is not None


def test_subsampled_chrominance_makes_frames_smaller() -> None:
    elements = image(samples=3, photometric="YBR_FULL_422", rows=2, columns=2, allocated=8, frames="2")
    found = scan(explicit_file(elements | {0x7FE00010: explicit(0x7FE00010, "OB", b"\1" * 8 + b"\2" * 8)}))
    assert found.frame(1) == b"\2" * 8
    assert not found.scanned.warning_reasons


def test_missing_frames_are_left_out_with_a_warning() -> None:
    found = scan(explicit_file(image(frames="3") | {0x7FE00010: explicit(0x7FE00010, "OW", bytes(24))})).scanned
    assert found.frames is not None
    assert found.frames.number_of_frames == 2
    assert found.warning_reasons == (reasons.DATA_SET_DOES_NOT_MATCH_SOP_CLASS_WARNING,)


def test_encapsulated_pixel_data_is_bulk_from_its_first_item_to_its_delimiter() -> None:
    pixel_data = encapsulated(b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1", table=b"\0\0\0\0\x0c\0\0\0")
    found = scan(explicit_file(image(frames="2") | {0x7FE00010: pixel_data}, JPEG_BASELINE))
    (bulk,) = found.scanned.bulk
    assert found.read(bulk.value) == pixel_data[12:-8]
    assert found.scanned.pixel_element is not None
    assert found.read(found.scanned.pixel_element) == pixel_data
    assert [found.frame(0), found.frame(1)] == [b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1"]
    assert "InlineBinary" not in _json(found)["7FE00010"]


def test_video_is_one_entry_of_all_fragments() -> None:
    found = scan(explicit_file(image(frames="250") | {0x7FE00010: encapsulated(b"ab", b"cd", b"ef")}, "1.2.840.10008.1.2.4.102"))
    assert found.scanned.frames is not None
    assert found.scanned.frames.number_of_frames == 1
    assert isinstance(found.scanned.frames.encoding, EncapsulatedFrames)
    assert found.frame(0) == b"abcdef"
    assert not found.scanned.warning_reasons


def test_extended_offset_table_is_used() -> None:
    elements = image(frames="2") | {
        0x7FE00001: explicit(0x7FE00001, "OV", struct.pack("<2Q", 0, 20)),
        0x7FE00002: explicit(0x7FE00002, "OV", struct.pack("<2Q", 4, 2)),
        0x7FE00010: encapsulated(b"ab", b"cd", b"ef"),
    }
    found = scan(explicit_file(elements, JPEG_BASELINE))
    assert [found.frame(0), found.frame(1)] == [b"abcd", b"ef"]


def test_native_pixel_data_in_a_compressed_syntax_has_no_frames_and_a_warning() -> None:
    found = scan(explicit_file(image() | {0x7FE00010: explicit(0x7FE00010, "OW", bytes(12))}, JPEG_BASELINE)).scanned
    assert found.frames is None
    assert found.warning_reasons


# Failures


@pytest.mark.parametrize("tag", [0x00080016, 0x00080018, 0x0020000D, 0x0020000E])
def test_missing_and_wrong_uids_are_failures_that_tell_the_others(tag: int) -> None:
    failure = _failure(explicit_file({tag: explicit(tag, "UI")}))
    assert failure.reason == reasons.REQUIRED_UID_MISSING
    assert failure.sop_instance_uid == ("" if tag == 0x00080018 else SOP_INSTANCE_UID)
    assert failure.study_instance_uid == ("" if tag == 0x0020000D else STUDY_INSTANCE_UID)
    assert _failure(explicit_file({tag: explicit(tag, "UI", b"1..2")})).reason == reasons.INVALID_SOP_INSTANCE


def test_failure_in_the_pixels_knows_the_instance() -> None:
    elements = image() | {0x7FE00010: explicit(0x7FE00010, "OW", bytes(6), length=12)}
    failure = _failure(explicit_file(elements))
    assert failure.reason == reasons.CANNOT_UNDERSTAND
    assert failure.sop_class_uid == SOP_CLASS_UID
    assert failure.sop_instance_uid == SOP_INSTANCE_UID
    assert failure.study_instance_uid == STUDY_INSTANCE_UID
    assert failure.series_instance_uid == SERIES_INSTANCE_UID


@pytest.mark.parametrize(
    "original",
    [
        pytest.param(
            explicit_file(
                {
                    0x00082218: explicit(0x00082218, "SQ", item(explicit(0x00080100, "SH", b"T-D1"))),
                    0x7FE00010: explicit(0x7FE00010, "OW", bytes(12)),
                }
            ),
            id="explicit",
        ),
        pytest.param(explicit_file(image() | {0x7FE00010: encapsulated(b"abcd", b"ef")}, JPEG_BASELINE), id="encapsulated"),
        pytest.param(file(implicit_data_set({0x7FE00010: implicit(0x7FE00010, bytes(12))}), IMPLICIT), id="implicit"),
        pytest.param(file(deflate(explicit_data_set(image())), DEFLATED), id="deflated"),
    ],
)
def test_every_truncation_is_a_failure(original: bytes) -> None:
    scan(original)
    padding = len(original) - len(original.rstrip(b"\0")) if b"1.2.1.99" in original else 0
    for length in range(len(original) - padding):
        try:
            shorter = scan(original[:length])
        except ScanFailure:
            continue
        # Cut between two elements: a shorter data set, whole in itself.
        assert len(shorter.wire) <= len(original)
        assert "7FE00010" not in _json(shorter)


@pytest.mark.parametrize(
    "data", [b"", b"x", b"not a file at all, but long enough " * 10, bytes(132), bytes(5000), b"DICM", bytes(128) + b"DICM"]
)
def test_what_is_no_instance_cannot_be_understood(data: bytes) -> None:
    assert _failure(data).reason in (reasons.CANNOT_UNDERSTAND, reasons.REQUIRED_UID_MISSING)


@pytest.mark.parametrize(
    "element",
    [
        pytest.param(explicit(0x00082218, "SQ", item(explicit(0x00080100, "SH", b"T-D1"), length=10)), id="value beyond its item"),
        pytest.param(explicit(0x00082218, "SQ", b"\x08\0\0\1SH\4\0T-D1"), id="element where an item should be"),
        pytest.param(explicit(0x00080050, "UT", length=UNDEFINED), id="text of undefined length"),
        pytest.param(item(), id="item outside a sequence"),
    ],
)
def test_broken_structure_is_a_failure(element: bytes) -> None:
    assert _failure(explicit_file({0x00082218: element})).reason == reasons.CANNOT_UNDERSTAND


def test_encapsulated_pixel_data_in_a_native_syntax_is_a_failure() -> None:
    assert _failure(explicit_file(image() | {0x7FE00010: encapsulated(b"ab")})).reason == reasons.CANNOT_UNDERSTAND


# Limits


def _nested(depth: int) -> bytes:
    return explicit(0x00082218, "SQ", item(_nested(depth - 1))) if depth else b""


def test_depth_is_limited() -> None:
    scan(explicit_file({0x00082218: _nested(64)}))
    assert _failure(explicit_file({0x00082218: _nested(65)})).reason == reasons.PROCESSING_FAILURE


def test_number_of_elements_is_limited() -> None:
    items = {0x00082218: explicit(0x00082218, "SQ", item() * 2000)}
    scan(explicit_file(items), limits=Limits(elements=2010))
    assert _failure(explicit_file(items), limits=Limits(elements=2000)).reason == reasons.PROCESSING_FAILURE
    fragments = image() | {0x7FE00010: encapsulated(*[b"ab"] * 2000)}
    assert _failure(explicit_file(fragments, JPEG_BASELINE), limits=Limits(elements=2000)).reason == reasons.PROCESSING_FAILURE


def test_values_that_are_not_bulk_are_limited_before_they_are_kept() -> None:
    small = Limits(value_bytes=5000)
    scan(explicit_file({0x0040A160: explicit(0x0040A160, "UT", b"x" * 4000)}), limits=small)
    scan(explicit_file({0x00091001: explicit(0x00091001, "OB", b"x" * 40_000)}), limits=small)
    scanner = Scanner(lambda _: None, small)
    with pytest.raises(ScanFailure) as caught:
        scanner.feed(explicit_file({0x0040A160: explicit(0x0040A160, "UT", length=1 << 30)}))
    assert caught.value.reason == reasons.PROCESSING_FAILURE
    many = {0x00091000 + number: explicit(0x00091000 + number, "LO", b"x" * 60) for number in range(100)}
    assert _failure(explicit_file(many), limits=small).reason == reasons.PROCESSING_FAILURE


def test_deflate_bomb_is_stopped() -> None:
    bomb = file(deflate(explicit_data_set({0x00091001: explicit(0x00091001, "OB", bytes(80 << 20))})), DEFLATED)
    assert len(bomb) < 100_000
    written = 0

    def write(piece: bytes | memoryview) -> None:
        nonlocal written
        written += len(piece)

    scanner = Scanner(write)
    with pytest.raises(ScanFailure) as caught:
        scanner.feed(bomb)
    assert caught.value.reason == reasons.PROCESSING_FAILURE
    assert written <= 65 << 20
    small = file(deflate(explicit_data_set({0x00091001: explicit(0x00091001, "OB", bytes(3 << 20))})), DEFLATED)
    assert _failure(small, limits=Limits(inflated_bytes=2 << 20)).reason == reasons.PROCESSING_FAILURE


def test_memory_does_not_grow_with_pixel_data() -> None:
    scanner = Scanner(lambda _: None)
    chunk = bytes(1 << 20)
    frames = 200
    elements = image(rows=512, columns=1024, frames=str(frames)) | {0x7FE00010: explicit(0x7FE00010, "OW", length=frames << 20)}
    tracemalloc.start()
    scanner.feed(explicit_file(elements))
    for _ in range(frames):
        scanner.feed(chunk)
    found = scanner.finish()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    assert found.frames is not None
    assert found.frames.number_of_frames == frames
