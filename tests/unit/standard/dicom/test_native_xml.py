"""The Native DICOM Model in both directions: PS3.19 §A.1, PS3.18 Table F.3.1-1."""

import json
from typing import Any

import pytest

from gantry_standard import reasons
from gantry_standard.dicom.limits import Limits, ScanFailure
from gantry_standard.dicom.native_xml import first_values, to_json_model, write, write_encoded

BEGIN = (
    '<?xml version="1.0" encoding="UTF-8"?><NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM" xml:space="preserve">'
)
END = "</NativeDicomModel>"


def document(inner: str) -> bytes:
    return (BEGIN + inner + END).encode()


def attribute(tag: str, vr: str, inner: str, more: str = "") -> str:
    return f'<DicomAttribute tag="{tag}" vr="{vr}"{more}>{inner}</DicomAttribute>'


def value(text: str, number: int = 1) -> str:
    return f'<Value number="{number}">{text}</Value>'


# One row per fact: a DICOM JSON object, and how it is written.
BOTH_WAYS = [
    pytest.param({}, "", id="nothing"),
    pytest.param(
        {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane^^Dr", "Ideographic": "漢字^名前"}]}},
        '<DicomAttribute tag="00100010" vr="PN" keyword="PatientName"><PersonName number="1"><Alphabetic><FamilyName>Doe</FamilyName>'
        "<GivenName>Jane</GivenName><NamePrefix>Dr</NamePrefix></Alphabetic><Ideographic><FamilyName>漢字</FamilyName>"
        "<GivenName>名前</GivenName></Ideographic></PersonName></DicomAttribute>",
        id="A.1.5 PersonName",
    ),
    pytest.param(
        {"00101001": {"vr": "PN", "Value": [{"Alphabetic": "A"}, None, {"Phonetic": "^B"}]}},
        '<DicomAttribute tag="00101001" vr="PN" keyword="OtherPatientNames"><PersonName number="1"><Alphabetic><FamilyName>A</FamilyName>'
        '</Alphabetic></PersonName><PersonName number="2"/><PersonName number="3"><Phonetic><GivenName>B</GivenName></Phonetic>'
        "</PersonName></DicomAttribute>",
        id="an empty name in the middle",
    ),
    pytest.param(
        {"00080008": {"vr": "CS", "Value": ["ORIGINAL", None, "AXIAL", None]}},
        '<DicomAttribute tag="00080008" vr="CS" keyword="ImageType"><Value number="1">ORIGINAL</Value><Value number="2"/>'
        '<Value number="3">AXIAL</Value><Value number="4"/></DicomAttribute>',
        id="empty values",
    ),
    pytest.param({"00104000": {"vr": "LT"}}, '<DicomAttribute tag="00104000" vr="LT" keyword="PatientComments"/>', id="empty"),
    pytest.param(
        {"00081032": {"vr": "SQ", "Value": [{}, {"00080100": {"vr": "SH", "Value": ["T"]}}]}},
        '<DicomAttribute tag="00081032" vr="SQ" keyword="ProcedureCodeSequence"><Item number="1"/><Item number="2">'
        '<DicomAttribute tag="00080100" vr="SH" keyword="CodeValue"><Value number="1">T</Value></DicomAttribute></Item></DicomAttribute>',
        id="items",
    ),
    pytest.param(
        {"00280009": {"vr": "AT", "Value": ["0018106C"]}},
        '<DicomAttribute tag="00280009" vr="AT" keyword="FrameIncrementPointer"><Value number="1">0018106C</Value></DicomAttribute>',
        id="AT",
    ),
    pytest.param(
        {"00720082": {"vr": "SV", "Value": [-5, "-9223372036854775808"]}},
        '<DicomAttribute tag="00720082" vr="SV" keyword="SelectorSVValue"><Value number="1">-5</Value>'
        '<Value number="2">-9223372036854775808</Value></DicomAttribute>',
        id="64 bits",
    ),
    pytest.param(
        {"00281050": {"vr": "DS", "Value": ["1.50", "40"]}},
        '<DicomAttribute tag="00281050" vr="DS" keyword="WindowCenter"><Value number="1">1.50</Value><Value number="2">40</Value>'
        "</DicomAttribute>",
        id="DS as spelled",
    ),
    pytest.param(
        {"00189327": {"vr": "FD", "Value": [0.1, -2.5e-300]}},
        '<DicomAttribute tag="00189327" vr="FD" keyword="TablePosition"><Value number="1">0.1</Value><Value number="2">-2.5e-300</Value>'
        "</DicomAttribute>",
        id="FD",
    ),
    pytest.param(
        {"00282000": {"vr": "OB", "InlineBinary": "AQID"}},
        '<DicomAttribute tag="00282000" vr="OB" keyword="ICCProfile"><InlineBinary>AQID</InlineBinary></DicomAttribute>',
        id="InlineBinary",
    ),
    pytest.param(
        {"7FE00010": {"vr": "OW", "BulkDataURI": 'http://x/b?a=1&b="2"'}},
        '<DicomAttribute tag="7FE00010" vr="OW" keyword="PixelData"><BulkData uri="http://x/b?a=1&amp;b=&quot;2&quot;"/></DicomAttribute>',
        id="BulkData",
    ),
    pytest.param(
        {"00324000": {"vr": "LT", "Value": [" a\\b\r\n\t<&>\"'  é "]}},
        '<DicomAttribute tag="00324000" vr="LT" keyword="StudyComments"><Value number="1"> a\\b&#13;&#10;&#9;&lt;&amp;&gt;&quot;\'  é '
        "</Value></DicomAttribute>",
        id="text with everything",
    ),
    pytest.param(
        {
            "00190010": {"vr": "LO", "Value": ["ACME & Sons"]},
            "00191001": {"vr": "DS", "Value": ["1"]},
        },
        '<DicomAttribute tag="00190001" vr="DS" privateCreator="ACME &amp; Sons"><Value number="1">1</Value></DicomAttribute>',
        id="A.1.4 private",
    ),
    pytest.param({"0019FF01": {"vr": "UN"}}, '<DicomAttribute tag="0019FF01" vr="UN"/>', id="private without creator"),
    pytest.param(
        {"60000010": {"vr": "US", "Value": [3]}}, attribute("60000010", "US", value("3"), ' keyword="OverlayRows"'), id="repeating"
    ),
    pytest.param({"00091010": {"vr": "UN"}}, '<DicomAttribute tag="00091010" vr="UN"/>', id="element 10 of no block"),
]


@pytest.mark.parametrize(("model", "inner"), BOTH_WAYS)
def test_an_object_is_written_as_a_document(model: dict[str, Any], inner: str) -> None:
    assert write(model).decode() == BEGIN + inner + END


@pytest.mark.parametrize(("model", "inner"), BOTH_WAYS)
def test_a_document_is_read_as_an_object(model: dict[str, Any], inner: str) -> None:
    assert to_json_model(document(inner)) == model


def test_an_encoded_object_keeps_the_digits_of_its_numbers() -> None:
    encoded = b'{"00281050":{"vr":"DS","Value":[1.50,1E2,-0.0]},"00200013":{"vr":"IS","Value":[12345678901234567890]}}'
    found = to_json_model(b"".join(write_encoded(encoded)))
    assert found == {
        "00200013": {"vr": "IS", "Value": ["12345678901234567890"]},
        "00281050": {"vr": "DS", "Value": ["1.50", "1E2", "-0.0"]},
    }


@pytest.mark.parametrize(("model", "inner"), BOTH_WAYS)
def test_an_encoded_object_is_written_in_pieces_that_are_the_document(model: dict[str, Any], inner: str) -> None:
    for text in (json.dumps(model), json.dumps(model, separators=(",", ":"), ensure_ascii=False)):
        assert b"".join(write_encoded(text.encode())).decode() == BEGIN + inner + END


def test_the_items_of_a_sequence_are_pieces_of_their_own() -> None:
    items = [{"00080100": {"vr": "SH", "Value": [str(number)]}} for number in range(1000)]
    model = {"00081032": {"vr": "SQ", "Value": items}, "00081110": {"vr": "SQ"}, "00100010": {"vr": "PN"}}
    pieces = list(write_encoded(json.dumps(model).encode()))
    assert len(pieces) > 1000
    assert max(map(len, pieces)) < 300
    assert b"".join(pieces) == write(model)


def test_values_are_found_at_the_top_and_not_in_an_item() -> None:
    item = {"0020000E": {"vr": "UI", "Value": ["1.9"]}}
    model = {"00081115": {"vr": "SQ", "Value": [item]}, "0020000D": {"vr": "UI"}, "0020000E": {"vr": "UI", "Value": ["1.2", "1.3"]}}
    assert first_values(json.dumps(model).encode(), {"0020000D", "0020000E"}) == {"0020000E": "1.2"}
    assert first_values(b'{"0020000D":{"vr":"UI","Value":["1"]},"00200013": no JSON', {"0020000D", "0020000E"}) == {"0020000D": "1"}


def test_what_xml_cannot_carry_is_left_out() -> None:
    model = {"00104000": {"vr": "LT", "Value": ["a\x00\x0c\x1bb\ufffec\ud800"]}, "00100020": {"vr": "LO", "Value": ["\x1b"]}}
    found = to_json_model(write(model))
    assert found == {"00100020": {"vr": "LO"}, "00104000": {"vr": "LT", "Value": ["abc"]}}


def test_attributes_are_in_the_order_of_their_tags_as_written() -> None:
    model = {
        "00190010": {"vr": "LO", "Value": ["B"]},
        "00190011": {"vr": "LO", "Value": ["A"]},
        "00191005": {"vr": "US", "Value": [1]},
        "00191103": {"vr": "US", "Value": [2]},
        "00191105": {"vr": "US", "Value": [3]},
        "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
        "00080000": {"vr": "UL", "Value": [10]},
    }
    text = write(model).decode()
    order = ['tag="00080005"', 'tag="00190003" vr="US" privateCreator="A"', 'tag="00190005" vr="US" privateCreator="A"']
    order.append('tag="00190005" vr="US" privateCreator="B"')
    assert [text.index(piece) for piece in order] == sorted(text.index(piece) for piece in order)
    assert "00080000" not in text
    assert text.count("<DicomAttribute") == 4


def test_blocks_are_chosen_without_conflict_and_creator_elements_are_kept() -> None:
    inner = (
        attribute("00190001", "US", value("1"), ' privateCreator="A"')
        + attribute("00190001", "US", value("2"), ' privateCreator="B"')
        + attribute("00190002", "US", value("3"), ' privateCreator="C"')
        + attribute("00191003", "US", value("4"))
        + attribute("00190012", "LO", value("C "))
        + attribute("001911FF", "US", value("5"), ' privateCreator="A"')
    )
    assert to_json_model(document(inner)) == {
        "00190011": {"vr": "LO", "Value": ["A"]},
        "00190012": {"vr": "LO", "Value": ["C "]},
        "00190013": {"vr": "LO", "Value": ["B"]},
        "00191003": {"vr": "US", "Value": [4]},
        "00191101": {"vr": "US", "Value": [1]},
        "001911FF": {"vr": "US", "Value": [5]},
        "00191202": {"vr": "US", "Value": [3]},
        "00191301": {"vr": "US", "Value": [2]},
    }


def test_more_creators_than_a_group_has_blocks_are_refused() -> None:
    elements = [attribute("00190001", "US", "", f' privateCreator="C{number}"') for number in range(241)]
    assert len(to_json_model(document("".join(elements[:240])))) == 480
    with pytest.raises(ScanFailure, match="0019 has more than 240 private creators"):
        to_json_model(document("".join(elements)))


def test_items_have_blocks_of_their_own() -> None:
    private = attribute("00190001", "US", value("1"), ' privateCreator="A"')
    inner = attribute("00190002", "US", value("2"), ' privateCreator="B"') + attribute(
        "00081032", "SQ", f'<Item number="1">{private}</Item>'
    )
    found = to_json_model(document(inner))
    assert found["00081032"]["Value"] == [{"00190010": {"vr": "LO", "Value": ["A"]}, "00191001": {"vr": "US", "Value": [1]}}]
    assert found["00190010"] == {"vr": "LO", "Value": ["B"]}


# What is not the letter of PS3.19, but sent.
TOLERATED = [
    pytest.param(
        b'<NativeDicomModel><DicomAttribute Tag="00200010" VR="SH" Keyword="StudyID"><Value Number="1">x</Value>'
        b"</DicomAttribute></NativeDicomModel>",
        {"00200010": {"vr": "SH", "Value": ["x"]}},
        id="no namespace, other case",
    ),
    pytest.param(
        b'<n:NativeDicomModel xmlns:n="http://dicom.nema.org/PS3.19/models/NativeDICOM" xmlns:xsi="urn:y" xsi:schemaLocation="z">\n'
        b'  <n:DicomAttribute tag="0020000d" vr="UI" />\n</n:NativeDicomModel>\n',
        {"0020000D": {"vr": "UI"}},
        id="prefix",
    ),
    pytest.param(
        document(attribute("00080008", "CS", value("b", 2) + "\n" + value("a", 1))),
        {"00080008": {"vr": "CS", "Value": ["a", "b"]}},
        id="values out of order",
    ),
    pytest.param(
        document(attribute("00282000", "OB", "<InlineBinary>\n AQ\n ID </InlineBinary>")),
        {"00282000": {"vr": "OB", "InlineBinary": "AQID"}},
        id="base64 in lines",
    ),
    pytest.param(
        document(attribute("00080000", "UL", value("4")) + attribute("00200010", "SH", "<Value number='1'><![CDATA[<x>]]></Value>")),
        {"00200010": {"vr": "SH", "Value": ["<x>"]}},
        id="group length, CDATA",
    ),
    pytest.param(document(attribute("00200010", "SH", value(""))), {"00200010": {"vr": "SH"}}, id="one empty value"),
    pytest.param(
        document(attribute("00189327", "FD", value("NaN") + value("INF", 2) + value("-Infinity", 3))),
        {"00189327": {"vr": "FD", "Value": ["NaN", "Infinity", "-Infinity"]}},
        id="not finite",
    ),
    pytest.param(
        document(attribute("00280010", "US", value(" 512\n"))), {"00280010": {"vr": "US", "Value": [512]}}, id="spaces of numbers"
    ),
    pytest.param(
        '<?xml version="1.0" encoding="ISO-8859-1"?><NativeDicomModel><DicomAttribute tag="00200010" vr="SH"><Value number="1">'
        "é</Value></DicomAttribute></NativeDicomModel>".encode("latin-1"),
        {"00200010": {"vr": "SH", "Value": ["é"]}},
        id="Latin-1",
    ),
    pytest.param(
        '<?xml version="1.0" encoding="UTF-16"?><NativeDicomModel><DicomAttribute tag="00200010" vr="SH"><Value number="1">'
        "漢</Value></DicomAttribute></NativeDicomModel>".encode("utf-16"),
        {"00200010": {"vr": "SH", "Value": ["漢"]}},
        id="UTF-16",
    ),
]


@pytest.mark.parametrize(("text", "model"), TOLERATED)
def test_what_is_sent_is_understood(text: bytes, model: dict[str, Any]) -> None:
    assert to_json_model(text) == model


def without_vr(tag: str, inner: str, more: str = "") -> str:
    return f'<DicomAttribute tag="{tag}"{more}>{inner}</DicomAttribute>'


SIGNED = attribute("00280103", "US", value("1"))
WITHOUT_VR = [
    pytest.param(without_vr("00200010", value("x")), "00200010", {"vr": "SH", "Value": ["x"]}, id="dictionary"),
    pytest.param(without_vr("60020010", value("3")), "60020010", {"vr": "US", "Value": [3]}, id="repeating group"),
    pytest.param(without_vr("00280106", value("3")), "00280106", {"vr": "US", "Value": [3]}, id="US or SS, unsigned"),
    pytest.param(without_vr("00280106", value("-3")) + SIGNED, "00280106", {"vr": "SS", "Value": [-3]}, id="US or SS, signed"),
    pytest.param(without_vr("00283006", value("1") + value("2", 2)), "00283006", {"vr": "US", "Value": [1, 2]}, id="LUT as numbers"),
    pytest.param(
        without_vr("00283006", "<InlineBinary>AQI=</InlineBinary>"), "00283006", {"vr": "OW", "InlineBinary": "AQI="}, id="LUT as words"
    ),
    pytest.param(without_vr("7FE00010", '<BulkData uri="b"/>'), "7FE00010", {"vr": "OW", "BulkDataURI": "b"}, id="pixel data"),
    pytest.param(without_vr("00190010", value("A")), "00190010", {"vr": "LO", "Value": ["A"]}, id="private creator element"),
    pytest.param(
        without_vr("0019000C", value("7"), ' privateCreator="SIEMENS MR HEADER"'), "0019100C", {"vr": "IS", "Value": ["7"]}, id="private"
    ),
    pytest.param(
        attribute("00190011", "LO", value("SIEMENS MR HEADER")) + without_vr("0019110C", value("7")),
        "0019110C",
        {"vr": "IS", "Value": ["7"]},
        id="private, with its block",
    ),
    pytest.param(without_vr("00190001", "", ' privateCreator="?"'), "00191001", {"vr": "UN"}, id="unknown and empty"),
]


@pytest.mark.parametrize(("inner", "tag", "element"), WITHOUT_VR)
def test_a_missing_vr_comes_from_the_dictionary(inner: str, tag: str, element: dict[str, Any]) -> None:
    assert to_json_model(document(inner))[tag] == element


def test_a_missing_vr_in_an_item_follows_the_pixel_representation_around_it() -> None:
    item = attribute("00081140", "SQ", f'<Item number="1">{without_vr("00280106", value("-1"))}</Item>')
    assert to_json_model(document(item + SIGNED))["00081140"]["Value"] == [{"00280106": {"vr": "SS", "Value": [-1]}}]


ATTACKS = [
    pytest.param(b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><NativeDicomModel/>', id="external entity"),
    pytest.param(b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><NativeDicomModel/>', id="billion laughs"),
    pytest.param(b'<!DOCTYPE NativeDicomModel SYSTEM "http://127.0.0.1/x.dtd"><NativeDicomModel/>', id="external subset"),
]


@pytest.mark.parametrize("text", ATTACKS)
def test_a_document_type_declaration_is_refused(text: bytes) -> None:
    with pytest.raises(ScanFailure, match="document type declaration is not allowed") as raised:
        to_json_model(text)
    assert raised.value.reason == reasons.CANNOT_UNDERSTAND


WRONG = [
    pytest.param(b"", "not well-formed", id="nothing"),
    pytest.param(b"<NativeDicomModel>", "not well-formed", id="not closed"),
    pytest.param(b"<NativeDicomModel>&nbsp;</NativeDicomModel>", "not well-formed", id="entity"),
    pytest.param(document(attribute("00200010", "SH", value("\x1b"))), "not well-formed", id="control character"),
    pytest.param(b'<?xml version="1.0" encoding="gb18030"?><NativeDicomModel/>', "encoding gb18030 is not supported", id="encoding"),
    pytest.param(b'<?xml version="1.0" encoding="nonsense"?><NativeDicomModel/>', "encoding nonsense is not supported", id="no encoding"),
    pytest.param(b"<html/>", "element html is not allowed in the document", id="other root"),
    pytest.param(b'<NativeDicomModel xmlns="urn:x"/>', "element NativeDicomModel is not allowed", id="other namespace"),
    pytest.param(document("<Value/>"), "element Value is not allowed in NativeDicomModel", id="value at the root"),
    pytest.param(document("secret"), "there is text in NativeDicomModel", id="text"),
    pytest.param(document('<DicomAttribute vr="SH"/>'), "no tag", id="no tag"),
    pytest.param(document('<DicomAttribute tag="StudyID" vr="SH"/>'), "no tag", id="keyword as tag"),
    pytest.param(document('<DicomAttribute tag="00200010" vr="ZZ"/>'), r"\(00200010\) has a vr that is not known", id="vr"),
    pytest.param(document('<DicomAttribute tag="00210001"/>'), r"\(00210001\) has no privateCreator", id="no creator"),
    pytest.param(document('<DicomAttribute tag="00210010" vr="US"/>'), r"\(00210010\) has no privateCreator", id="no creator, ee 10"),
    pytest.param(document(without_vr("00210001", value("1"), ' privateCreator="?"')), "the dictionary does not know it", id="unknown"),
    pytest.param(document(without_vr("00200010", "", ' privateCreator="A"')), "is not private", id="creator of a standard attribute"),
    pytest.param(document(attribute("00200010", "SH", value("a")) * 2), "stands twice", id="twice"),
    pytest.param(document(attribute("00210001", "SH", value("a"), ' privateCreator="A"') * 2), "stands twice", id="private twice"),
    pytest.param(document(attribute("00200010", "SH", value("a") + value("b"))), "number is missing, repeated or none", id="number twice"),
    pytest.param(document(attribute("00200010", "SH", value("a") + value("b", 3))), "numbers are not 1 to 2", id="number left out"),
    pytest.param(document(attribute("00200010", "SH", "<Value>a</Value>")), "number is missing", id="no number"),
    pytest.param(document(attribute("00200010", "SH", value("a", 0))), "number is missing, repeated or none", id="number 0"),
    pytest.param(document(attribute("00104000", "LT", value("a") + value("b", 2))), "has 2 values; expected at most one", id="LT"),
    pytest.param(document(attribute("00282000", "OB", value("1"))), "has a Value; expected InlineBinary", id="OB with values"),
    pytest.param(document(attribute("00200010", "SH", '<Item number="1"/>')), "has a Item; expected Value", id="SH with items"),
    pytest.param(document(attribute("00100010", "PN", value("A^B"))), "has a Value; expected PersonName", id="PN with values"),
    pytest.param(document(attribute("00200010", "SH", value("1") + '<BulkData uri="x"/>')), "has a BulkData after a Value", id="two kinds"),
    pytest.param(
        document(attribute("00282000", "OB", '<BulkData uri="x"/><BulkData uri="y"/>')), "BulkData after a BulkData", id="two uris"
    ),
    pytest.param(document(attribute("00282000", "OB", '<BulkData uuid="x"/>')), "by uuid, which nobody can resolve here", id="uuid"),
    pytest.param(document(attribute("00282000", "OB", "<BulkData/>")), "BulkData without uri", id="no uri"),
    pytest.param(document(attribute("00282000", "OB", "<InlineBinary>A</InlineBinary>")), "is not base64", id="base64"),
    pytest.param(document(attribute("00282000", "OB", "<InlineBinary>A-_é</InlineBinary>")), "is not base64", id="no base64"),
    pytest.param(document(attribute("00280010", "US", value("5.5"))), "of VR US has a value that is no integer", id="US"),
    pytest.param(document(attribute("00189327", "FD", value("1,5"))), "of VR FD has a value that is no number", id="FD"),
    pytest.param(document(attribute("00280009", "AT", value("PatientName"))), "has a value that is no tag", id="AT"),
    pytest.param(
        document(attribute("00100010", "PN", '<PersonName number="1"><Alphabetic/><Alphabetic/></PersonName>')),
        "two Alphabetic",
        id="groups",
    ),
    pytest.param(
        document(attribute("00100010", "PN", '<PersonName number="1"><Phonetic><GivenName/><GivenName/></Phonetic></PersonName>')),
        "two GivenName",
        id="components",
    ),
]


@pytest.mark.parametrize(("text", "sentence"), WRONG)
def test_what_is_no_such_document_is_refused_with_a_sentence(text: bytes, sentence: str) -> None:
    with pytest.raises(ScanFailure, match=sentence) as raised:
        to_json_model(text)
    assert raised.value.reason == reasons.CANNOT_UNDERSTAND
    assert "secret" not in raised.value.message


def test_a_refusal_names_the_line_and_the_instance() -> None:
    uids = {"00080016": "1.2.3", "00080018": "1.2.4", "0020000D": "1.2.5", "0020000E": "1.2.6"}
    inner = "".join(attribute(tag, "UI", value(uid)) for tag, uid in uids.items())
    with pytest.raises(ScanFailure, match=r"^line 3: \(00280010\)") as raised:
        to_json_model(document(inner + "\n\n" + attribute("00280010", "US", value("x"))))
    failure = raised.value
    assert [failure.sop_class_uid, failure.sop_instance_uid, failure.study_instance_uid, failure.series_instance_uid] == list(uids.values())


def nested(depth: int) -> bytes:
    return document('<DicomAttribute tag="00081140" vr="SQ"><Item number="1">' * depth + "</Item></DicomAttribute>" * depth)


@pytest.mark.parametrize(
    ("text", "limits", "sentence"),
    [
        pytest.param(nested(4), Limits(depth=3), "nested deeper than 3", id="depth"),
        pytest.param(nested(2), Limits(elements=3), "more than 3 attributes, items and values", id="elements"),
        pytest.param(
            document(attribute("00200010", "SH", value("ab") + value("cd", 2))), Limits(value_bytes=3), "3 characters", id="values"
        ),
    ],
)
def test_a_document_beyond_a_limit_is_a_processing_failure(text: bytes, limits: Limits, sentence: str) -> None:
    to_json_model(text, Limits(depth=4, elements=8, value_bytes=4))
    with pytest.raises(ScanFailure, match=sentence) as raised:
        to_json_model(text, limits)
    assert raised.value.reason == reasons.PROCESSING_FAILURE


def test_the_deepest_document_that_is_allowed_is_read_and_written() -> None:
    found = to_json_model(nested(64))
    assert to_json_model(write(found)) == found
