"""DICOM JSON to Explicit VR Little Endian, element by element: the bytes are those of PS3.5."""

import struct
from typing import Any

import pytest

from gantry_standard import reasons
from gantry_standard.dicom.json_to_explicit import BulkReference, encode_data_set, parse_data_sets, serialise
from gantry_standard.dicom.limits import ScanFailure


def encoded(data_set: dict[str, Any], depth: int = 64) -> bytes:
    """Return the bytes of a data set without references."""
    pieces = list(encode_data_set(data_set, depth))
    assert all(isinstance(piece, bytes) for piece in pieces)
    return b"".join(pieces)  # type: ignore[arg-type]


def value_of(vr: str, **value: Any) -> bytes:
    """Return the value field of one private element; its header is checked."""
    data = encoded({"00191001": {"vr": vr, **value}})
    assert data[:6] == b"\x19\x00\x01\x10" + vr.encode()
    if vr in ("OB", "OD", "OF", "OL", "OV", "OW", "SV", "UC", "UN", "UR", "UT", "UV"):
        assert data[6:8] == b"\0\0"
        assert int.from_bytes(data[8:12], "little") == len(data) - 12
        return data[12:]
    assert int.from_bytes(data[6:8], "little") == len(data) - 8
    return data[8:]


@pytest.mark.parametrize(
    ("vr", "values", "expected"),
    [
        ("AE", ["STORE", "OTHER"], b"STORE\\OTHER "),
        ("AS", ["030Y"], b"030Y"),
        ("AT", ["00100020", "7fe00010"], b"\x10\x00\x20\x00\xe0\x7f\x10\x00"),
        ("CS", ["A"], b"A "),
        ("DA", ["20240131"], b"20240131"),
        ("DS", [1.5, "1.50", -2, None, 1e-7], b"1.5\\1.50\\-2\\\\1e-07"),
        ("DS", [0.1 + 0.2], b"0.3 "),
        ("DS", [1 / 3], b"0.33333333333333"),
        ("DS", [-1.2345678901234567e-300], b"-1.23456789e-300"),
        ("DS", [12345678901234567890], b"1.2345678901e+19"),
        ("DT", ["20240131101530.5+0100"], b"20240131101530.5+0100 "),
        ("FD", [0.1, "NaN", "-Infinity"], struct.pack("<3d", 0.1, float("nan"), float("-inf"))),
        ("FL", ["2.5"], struct.pack("<f", 2.5)),
        ("IS", [7, "007", 8.0], b"7\\007\\8 "),
        ("LO", ["zwölf", "two"], "zwölf\\two".encode()),
        ("LT", [" a\\b"], b" a\\b"),
        ("PN", [{"Alphabetic": "A^B"}, {"Phonetic": "p"}, None, "C^D"], b"A^B\\==p\\\\C^D"),
        ("SH", ["x"], b"x "),
        ("SL", [-1, "2"], struct.pack("<2i", -1, 2)),
        ("SS", [-32768], b"\x00\x80"),
        ("ST", ["ä"], "ä".encode()),
        ("SV", [-(2**63), str(2**63 - 1)], struct.pack("<2q", -(2**63), 2**63 - 1)),
        ("TM", ["101530"], b"101530"),
        ("UC", ["long", "er"], b"long\\er "),
        ("UI", ["1.2.3", "1.2"], b"1.2.3\\1.2\0"),
        ("UL", [2**32 - 1], b"\xff\xff\xff\xff"),
        ("UR", ["http://h/\\"], b"http://h/\\"),
        ("US", ["65535", 1], b"\xff\xff\x01\x00"),
        ("UT", ["text"], b"text"),
        ("UV", [2**64 - 1], b"\xff" * 8),
    ],
)
def test_values_are_encoded_and_padded(vr: str, values: list[Any], expected: bytes) -> None:
    data = encoded({"00191001": {"vr": vr, "Value": values}})
    # Where text is not ASCII, Specific Character Set comes before it
    data = data.removeprefix(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 192")
    assert data[:6] == b"\x19\x00\x01\x10" + vr.encode()
    is_long = vr in ("SV", "UC", "UR", "UT", "UV")
    assert data[12 if is_long else 8 :] == expected
    assert int.from_bytes(data[8:12] if is_long else data[6:8], "little") == len(expected)


@pytest.mark.parametrize("vr", ["OB", "OD", "OF", "OL", "OV", "OW", "UN"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [("+/8AAAAA", b"\xfb\xff\0\0\0\0"), ("-_8AAAAA", b"\xfb\xff\0\0\0\0"), ("QQ", b"A\0"), ("QQ==\r\n", b"A\0"), ("", b"")],
    ids=["base64", "for URLs", "without padding", "with a line break", "empty"],
)
def test_inline_binary_is_read_in_both_alphabets(vr: str, text: str, expected: bytes) -> None:
    assert value_of(vr, InlineBinary=text) == expected


@pytest.mark.parametrize(
    "value", [{}, {"Value": []}, {"Value": [None]}, {"Value": None}], ids=["none", "empty array", "null in it", "null"]
)
@pytest.mark.parametrize("vr", ["US", "LO", "OB", "UI", "PN"])
def test_an_empty_element_has_no_value(vr: str, value: dict[str, Any]) -> None:
    if vr == "OB" and value.get("Value"):
        return
    assert value_of(vr, **value) == b""


@pytest.mark.parametrize(
    ("vr", "value"),
    [
        ("US", {"Value": [-1]}),
        ("US", {"Value": [1.5]}),
        ("US", {"Value": [True]}),
        ("US", {"Value": [1, None]}),
        ("FL", {"Value": [1e300]}),
        ("FD", {"Value": ["wide"]}),
        ("DS", {"Value": ["NaN"], "InlineBinary": "QQ=="}),
        ("DS", {"Value": [[1]]}),
        ("IS", {"Value": [1.5]}),
        ("AT", {"Value": ["0010"]}),
        ("AT", {"Value": [16]}),
        ("CS", {"Value": ["é"]}),
        ("LO", {"Value": [17]}),
        ("LO", {"Value": "text"}),
        ("LT", {"Value": ["one", "two"]}),
        ("PN", {"Value": [{"Alphabetical": "A"}]}),
        ("PN", {"Value": [{"Alphabetic": 7}]}),
        ("OB", {"Value": [1]}),
        ("OB", {"InlineBinary": "Q"}),
        ("OB", {"InlineBinary": 7}),
        ("UL", {"InlineBinary": "QQ=="}),
        ("OB", {"BulkDataURI": 7}),
        ("SQ", {"Value": ["x"]}),
        ("SQ", {"InlineBinary": "QQ=="}),
        ("LO", {"Value": ["\ud800"]}),
        ("XX", {}),
        (7, {}),
    ],
)
def test_what_cannot_be_encoded_fails_with_the_tag_and_without_the_value(vr: Any, value: dict[str, Any]) -> None:
    with pytest.raises(ScanFailure, match=r"^\(00191001\)") as caught:
        list(encode_data_set({"00191001": {"vr": vr, **value}}, 64))
    assert caught.value.reason == reasons.CANNOT_UNDERSTAND


@pytest.mark.parametrize("data_set", [{"Rows": {"vr": "US"}}, {"0028001": {"vr": "US"}}, {"00280010": []}, {"00280010": None}])
def test_what_is_no_element_fails(data_set: dict[str, Any]) -> None:
    with pytest.raises(ScanFailure):
        list(encode_data_set(data_set, 64))


def test_elements_come_in_the_order_of_their_tags_without_groups_that_are_no_part_of_a_data_set() -> None:
    data_set = {
        "00280010": {"vr": "US", "Value": [2]},
        "00080000": {"vr": "UL", "Value": [4]},
        "00020010": {"vr": "UI", "Value": ["1.2"]},
        "0008001a": {"vr": "UI"},
        "00000100": {"vr": "US", "Value": [1]},
    }
    assert encoded(data_set) == b"\x08\x00\x1a\x00UI\0\0" + b"\x28\x00\x10\x00US\x02\x00\x02\x00"


def test_sequences_nest_and_items_may_be_empty() -> None:
    data_set = {
        "00081140": {"vr": "SQ", "Value": [{"0040A168": {"vr": "SQ", "Value": [{"00080100": {"vr": "SH", "Value": ["ab"]}}]}}, {}, None]}
    }
    item, end, sequence_end = b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"
    inner = b"\x40\x00\x68\xa1SQ\0\0\xff\xff\xff\xff" + item + b"\x08\x00\x00\x01SH\x02\x00ab" + end + sequence_end
    assert encoded(data_set) == b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + item + inner + end + 2 * (item + end) + sequence_end
    assert encoded({"00081140": {"vr": "SQ"}}) == b"\x08\x00\x40\x11SQ\0\0\0\0\0\0"


def test_sequences_deeper_than_the_limit_fail() -> None:
    data_set: dict[str, Any] = {}
    for _ in range(4):
        data_set = {"0040A730": {"vr": "SQ", "Value": [data_set]}}
    assert encoded(data_set, 4)
    with pytest.raises(ScanFailure) as caught:
        encoded(data_set, 3)
    assert caught.value.reason == reasons.PROCESSING_FAILURE


def test_text_beyond_ascii_makes_every_character_set_utf_8() -> None:
    latin = {"vr": "CS", "Value": ["ISO_IR 100"]}
    name = {"vr": "PN", "Value": [{"Alphabetic": "Jörg"}]}
    utf_8 = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 192"
    assert encoded({"00080005": latin}) == b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100"
    data = encoded({"00080005": latin, "00081140": {"vr": "SQ", "Value": [{"00080005": latin}, {}]}, "00100010": name})
    assert data.count(utf_8) == 2
    assert b"ISO_IR 100" not in data
    assert encoded({"00100010": name}).startswith(utf_8)


def test_a_value_too_long_for_its_vr_becomes_un() -> None:
    text = "x" * 65536
    data = encoded({"00081080": {"vr": "LO", "Value": [text]}})
    assert data == b"\x08\x00\x80\x10UN\0\0" + struct.pack("<I", 65536) + text.encode()


def test_a_missing_vr_is_that_of_the_dictionary() -> None:
    assert encoded({"00100020": {"Value": ["ab"]}}) == b"\x10\x00\x20\x00LO\x02\x00ab"
    signed = {"00280103": {"vr": "US", "Value": [1]}, "00280106": {"Value": [-5]}}
    assert encoded(signed).endswith(b"\x28\x00\x06\x01SS\x02\x00\xfb\xff")


def test_bulkdata_is_left_to_the_caller_in_its_place() -> None:
    data_set = {
        "00880200": {"vr": "SQ", "Value": [{"7FE00010": {"vr": "OB", "BulkDataURI": "icon"}}]},
        "7FE00010": {"vr": "OW", "BulkDataURI": "pixels"},
    }
    pieces = list(encode_data_set(data_set, 64))
    references = [piece for piece in pieces if isinstance(piece, BulkReference)]
    assert references == [BulkReference(0x7FE00010, b"OB", "icon", False), BulkReference(0x7FE00010, b"OW", "pixels", True)]
    assert pieces.index(references[0]) < pieces.index(references[1]) == len(pieces) - 1


def test_metadata_is_an_array_or_one_object() -> None:
    assert parse_data_sets(b'[{"00100020":{"vr":"LO"}},{}]') == [{"00100020": {"vr": "LO"}}, {}]
    assert parse_data_sets(b'{"00100020":{"vr":"LO"}}') == [{"00100020": {"vr": "LO"}}]
    assert parse_data_sets(b"[" + serialise({"00100020": {"vr": "LO", "Value": ["ä", 2**63]}}) + b"]")[0]["00100020"]["Value"] == [
        "ä",
        2**63,
    ]
