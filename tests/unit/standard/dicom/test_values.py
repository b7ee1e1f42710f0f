"""Values in the DICOM JSON Model, VR by VR (PS3.18 §F.2)."""

import struct

import orjson
import pytest

from gantry_standard.dicom.charsets import _CODECS, character_set
from gantry_standard.dicom.elements import Elements
from gantry_standard.dicom.scanned import Origin, Span
from gantry_standard.dicom.values import DicomJson, encode_values
from tests.support.hand_made import explicit, explicit_file, item
from tests.support.scanning import scan

_LATIN_1 = character_set(b"ISO_IR 100")


@pytest.mark.parametrize(
    ("vr", "value", "expected"),
    [
        (b"AE", b" PACS  ", b'["PACS"]'),
        (b"CS", b"ORIGINAL\\PRIMARY\\\\AXIAL ", b'["ORIGINAL","PRIMARY",null,"AXIAL"]'),
        (b"CS", b"  ", b""),
        (b"DA", b"20240101", b'["20240101"]'),
        (b"TM", b"1200\\1300.5 ", b'["1200","1300.5"]'),
        (b"UI", b"1.2.3\0", b'["1.2.3"]'),
        (b"UI", b"1.2\\1.3\0", b'["1.2","1.3"]'),
        (b"LO", b" a\\ b ", b'["a","b"]'),
        (b"LO", b"\\", b"[null,null]"),
        (b"SH", b'say "hi"\x07', b'["say \\"hi\\"\\u0007"]'),
        (b"LT", b"  a\\b\r\n  ", b'["  a\\\\b\\r\\n"]'),
        (b"ST", b"   ", b""),
        (b"UT", b"a\\b ", b'["a\\\\b"]'),
        (b"UC", b" a\\b ", b'[" a","b"]'),
        (b"UR", b"http://x/a\\b ", b'["http://x/a\\\\b"]'),
        (b"PN", b"Doe^Jane ", b'[{"Alphabetic":"Doe^Jane"}]'),
        (b"PN", b"=X=y", b'[{"Ideographic":"X","Phonetic":"y"}]'),
        (b"PN", b"a\\\\==\\b", b'[{"Alphabetic":"a"},null,null,{"Alphabetic":"b"}]'),
        (b"PN", b"== ", b""),
        (b"PN", b"M\xfcller", '[{"Alphabetic":"Müller"}]'.encode()),
        (b"IS", b"1\\-2 \\+3\\004", b"[1,-2,3,4]"),
        (b"IS", b"12\\-7", b"[12,-7]"),
        (b"IS", b"1\\\\3 ", b"[1,null,3]"),
        (b"IS", b"9007199254740993", b'["9007199254740993"]'),
        (b"IS", b"1.0 ", b'["1.0"]'),
        (b"IS", b"  ", b""),
        (b"IS", b"9" * 5000, b'["' + b"9" * 5000 + b'"]'),
        (b"DS", b"1.50\\-0.25", b"[1.50,-0.25]"),
        (b"DS", b" .5\\+1\\1.\\007 ", b"[0.5,1.0,1.0,7.0]"),
        (b"DS", b"1E5\\-1.5e-3", b"[1E5,-1.5e-3]"),
        (b"DS", b"1234567890.123456789", b'["1234567890.123456789"]'),
        (b"DS", b"1e999", b'["1e999"]'),
        (b"DS", b"NaN \\1", b'["NaN",1.0]'),
        (b"DS", b"\\1", b"[null,1.0]"),
        (b"AT", b"\x18\0\x06\x93", b'["00189306"]'),
        (b"US", struct.pack("<2H", 1, 65535), b"[1,65535]"),
        (b"SS", struct.pack("<h", -1), b"[-1]"),
        (b"UL", struct.pack("<I", 2**32 - 1), b"[4294967295]"),
        (b"SL", struct.pack("<i", -(2**31)), b"[-2147483648]"),
        (b"FL", struct.pack("<f", 0.5), b"[0.5]"),
        (b"FD", struct.pack("<2d", 0.1, -3), b"[0.1,-3.0]"),
        (b"UV", struct.pack("<2Q", 2**53 - 1, 2**53), b'[9007199254740991,"9007199254740992"]'),
        (b"SV", struct.pack("<2q", -(2**53) + 1, -(2**53)), b'[-9007199254740991,"-9007199254740992"]'),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_values_of_each_vr(vr: bytes, value: bytes, expected: bytes) -> None:
    assert encode_values(vr, value, _LATIN_1) == expected
    if expected:
        orjson.loads(expected)


@pytest.mark.parametrize("vr", ["US", "UL", "FD", "AT"])
def test_number_of_broken_length_becomes_bulk(vr: str) -> None:
    found = scan(explicit_file({0x00091001: explicit(0x00091001, vr, b"\1\2\3")}))
    json = orjson.loads(found.scanned.dicom_json.replace(b"\0", b""))
    if vr == "AT":
        assert list(json["00091001"]) == ["vr", "BulkDataURI"]
    assert json["00091001"]["vr"] == vr
    assert found.read(found.scanned.bulk[0].value) == b"\1\2\3"


@pytest.mark.parametrize(
    ("term", "value", "expected"),
    [
        pytest.param(b"", b"Buc^J\xe9r\xf4me", "Buc^Jérôme", id="none, read as ISO 8859-1"),
        pytest.param(b"ISO_IR 100", b"Buc^J\xe9r\xf4me", "Buc^Jérôme", id="ISO_IR 100"),
        pytest.param(b"ISO_IR_100", b"Buc^J\xe9r\xf4me", "Buc^Jérôme", id="written wrongly"),
        pytest.param(b"ISO_IR 101", b"W\xb3adys\xb3aw", "Władysław", id="ISO_IR 101"),
        pytest.param(b"ISO_IR 109", b"\xa6", "Ĥ", id="ISO_IR 109"),
        pytest.param(b"ISO_IR 110", b"\xa2", "ĸ", id="ISO_IR 110"),
        pytest.param(b"ISO_IR 126", b"\xc4\xe9\xef\xed", "Διον", id="ISO_IR 126"),
        pytest.param(b"ISO_IR 127", b"\xe2\xc8\xc7\xe6\xea", "قباني", id="ISO_IR 127"),
        pytest.param(b"ISO_IR 138", b"\xf9\xf8\xe5\xef", "שרון", id="ISO_IR 138"),
        pytest.param(b"ISO_IR 144", b"\xbb\xee\xda", "Люк", id="ISO_IR 144"),
        pytest.param(b"ISO_IR 148", b"\xc7avu\xfeo\xf0lu", "Çavuşoğlu", id="ISO_IR 148"),
        pytest.param(b"ISO_IR 203", b"\xa4", "€", id="ISO_IR 203"),
        pytest.param(b"ISO_IR 166", b"\xb9\xd2\xc1", "นาม", id="ISO_IR 166"),
        pytest.param(b"ISO_IR 13", b"\xd4\xcf\xc0\xde", "ﾔﾏﾀﾞ", id="ISO_IR 13"),
        pytest.param(b"ISO_IR 192", "Wang^小东".encode(), "Wang^小东", id="ISO_IR 192"),
        pytest.param(b"GB18030", "王^小东".encode("gb18030"), "王^小东", id="GB18030"),
        pytest.param(b"GBK", "王^小东".encode("gbk"), "王^小东", id="GBK"),
        pytest.param(b"\\ISO 2022 IR 87", b"Yamada=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "Yamada=山田^太郎", id="ISO 2022 IR 87"),
        pytest.param(b"ISO 2022 IR 13\\ISO 2022 IR 87", b"\xd4\xcf\xc0\xde=\x1b$B;3ED\x1b(J", "ﾔﾏﾀﾞ=山田", id="ISO 2022 IR 13 and 87"),
        pytest.param(b"\\ISO 2022 IR 149", b"Hong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7", "Hong=洪^吉洞", id="ISO 2022 IR 149"),
        pytest.param(b"\\ISO 2022 IR 58", b"Zhang=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab", "Zhang=张^小东", id="ISO 2022 IR 58"),
        pytest.param(b"ISO 2022 IR 100\\ISO 2022 IR 144", b"\xe9\x1b-L\xbb\xee\xda^\xe9", "éЛюк^é", id="delimiter ends a designation"),
    ],
)
def test_text_in_each_character_set(term: bytes, value: bytes, expected: str) -> None:
    assert character_set(term).decode(value) == expected


def test_bytes_outside_the_character_set_are_replaced() -> None:
    assert character_set(b"ISO_IR 192").decode(b"a\xffb") == "a\ufffdb"


def test_second_bytes_that_look_like_delimiters_are_not() -> None:
    value = "俓\\漊".encode("gb18030")
    assert value.count(b"\\") > 1
    assert encode_values(b"LO", value, character_set(b"GB18030")) == '["俓","漊"]'.encode()


def test_character_set_becomes_utf_8_only_with_text_beyond_ascii() -> None:
    charset = explicit(0x00080005, "CS", b"ISO_IR 100")
    plain = scan(explicit_file({0x00080005: charset, 0x00100010: explicit(0x00100010, "PN", b"Mueller^A ")}))
    assert orjson.loads(plain.scanned.dicom_json)["00080005"]["Value"] == ["ISO_IR 100"]
    found = scan(explicit_file({0x00080005: charset, 0x00100010: explicit(0x00100010, "PN", b"M\xfcller^A")}))
    assert orjson.loads(found.scanned.dicom_json)["00080005"]["Value"] == ["ISO_IR 192"]
    without = scan(explicit_file({0x00100010: explicit(0x00100010, "PN", b"M\xfcller^A")}))
    json = orjson.loads(without.scanned.dicom_json)
    assert json["00080005"] == {"vr": "CS", "Value": ["ISO_IR 192"]}
    assert list(json) == sorted(json)


def test_items_inherit_the_character_set_or_bring_their_own() -> None:
    name = explicit(0x00081070, "PN", b"\xbb\xee\xda ")
    items = item(name) + item(explicit(0x00080005, "CS", b"ISO_IR 144") + name)
    found = scan(explicit_file({0x00080005: explicit(0x00080005, "CS", b"ISO_IR 101"), 0x00082218: explicit(0x00082218, "SQ", items)}))
    json = orjson.loads(found.scanned.dicom_json)
    first, second = json["00082218"]["Value"]
    assert first == {"00081070": {"vr": "PN", "Value": [{"Alphabetic": "ťîÚ"}]}}
    assert second == {
        "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
        "00081070": {"vr": "PN", "Value": [{"Alphabetic": "Люк"}]},
    }
    assert json["00080005"]["Value"] == ["ISO_IR 192"]


@pytest.mark.parametrize("term", sorted(_CODECS))
def test_ascii_is_the_same_in_every_character_set(term: str) -> None:
    text = bytes(code for code in range(128) if code != 0x1B)
    assert character_set(term.encode()).decode(text) == text.decode("ascii")
    assert character_set(b"\\" + term.encode()).decode(text) == text.decode("ascii")


def test_remembered_elements_are_those_of_their_own_data_set() -> None:
    def encoded(charset: bytes, value: bytes, vr: bytes = b"LO") -> bytes:
        root: Elements = {0x00080005: (b"CS", charset, 0), 0x00081030: (vr, value, 0)}
        return DicomJson(b"", lambda vr, value, offset: Span(Origin.ORIGINAL, offset, len(value))).encode(root)

    for _ in range(2):
        assert (
            encoded(b"ISO_IR 100", b"\xe4")
            == b'{"00080005":{"vr":"CS","Value":["ISO_IR 192"]},"00081030":{"vr":"LO","Value":["\xc3\xa4"]}}'
        )
        assert (
            encoded(b"ISO_IR 144", b"\xe4")
            == b'{"00080005":{"vr":"CS","Value":["ISO_IR 192"]},"00081030":{"vr":"LO","Value":["\xd1\x84"]}}'
        )
        assert encoded(b"ISO_IR 144", b"a ") == b'{"00080005":{"vr":"CS","Value":["ISO_IR 144"]},"00081030":{"vr":"LO","Value":["a"]}}'
        assert (
            encoded(b"ISO_IR 144", b"a ", b"ST") == b'{"00080005":{"vr":"CS","Value":["ISO_IR 144"]},"00081030":{"vr":"ST","Value":["a"]}}'
        )
