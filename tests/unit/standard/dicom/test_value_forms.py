"""The form of a value of each VR of text (PS3.5 Table 6.2-1), and who uses it."""

import json

import pytest

from gantry_blob.storing import coercion
from gantry_standard import errors
from gantry_standard.dicom.value_forms import VALUE_FORMS, has_form
from gantry_standard.dicom.value_representations import VALUE_REPRESENTATIONS, Kind
from gantry_standard.http import negotiation, rendering_parameters
from gantry_standard.query import terms
from gantry_workflow.workitems import dataset

ARABIC_INDIC = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")

LEGAL = {
    "AE": ["A", "STORE SCP", "a" * 16, "~!"],
    "AS": ["018M", "000D", "999Y", "003W"],
    "AT": ["00100020", "7FE0abcd"],
    "CS": ["READY", "IN PROGRESS", "A_1", "X" * 16],
    "DA": ["20261129", "19000101", "20240229"],
    "DS": ["1", "-1.5", "+.5", "1.", "1e10", "1.5E-3", " 12 ", "1234567890123456"],
    "DT": [
        "2026",
        "202611",
        "20261129",
        "2026112923",
        "202611292359",
        "20261129235960",
        "20261129235959.123456",
        "2026+0100",
        "20261129-1200",
    ],
    "IS": ["0", "-5", "+12", " 7 ", "-2147483648"],
    "LO": ["x", "a^b=c", "é" * 64, "\x1b$B"],
    "LT": ["x\\y\r\n\tz", "y" * 10240, "\f"],
    "PN": ["Doe^Jane", "Doe^Jane=山田=やまだ", "a" * 64 + "=" + "b" * 64, "=ideographic"],
    "SH": ["x", "é" * 16],
    "ST": ["x\\y\r\nz", "y" * 1024],
    "TM": ["00", "2359", "235960", "235959.1", "120000.123456"],
    "UC": ["x" * 100_000],
    "UI": ["1.2.840.10008.1.1", "2.25.0", "1." + "2" * 62],
    "UR": ["https://host:80/a/b?c=d&e=%20#f", "urn:x:[y]", "x "],
    "UT": ["x\\y\r\nz" * 10_000],
}
ILLEGAL = {
    "AE": ["a" * 17, "a\\b", "é", "a\n", "   "],
    "AS": ["18M", "018X", "018m", "0018M"],
    "AT": ["0010002", "0010002G", "(0010,0020)"],
    "CS": ["ready", "A-B", "X" * 17, "A\\B"],
    "DA": ["2026", "2026112", "2026.11.29", "20261329", "20261132", "202611290", "2026112a"],
    "DS": ["1,5", "e5", ".", "12345678901234567", "NaN", "0x10", "1 2"],
    "DT": ["20260", "202600", "202613", "20261129240000", "20261129235961", "20261129.5", "20261129235959.1234567", "2026+1", "2026+1500"],
    "IS": ["1.5", "1e3", "1234567890123", "", "-"],
    "LO": ["x" * 65, "a\\b", "a\nb", "\0", "\x7f"],
    "LT": ["y" * 10241, "\0", "\x0b"],
    "PN": ["a" * 65, "a=b=c=d", "a\\b", "a\n"],
    "SH": ["x" * 17, "a\\b"],
    "ST": ["y" * 1025, "\x08"],
    "TM": ["2", "24", "2360", "235961", "1.5", "12:00:00", "120000.1234567"],
    "UC": ["a\\b", "\n"],
    "UI": ["1.2.", "1..2", ".1", "1.2a", "1." + "2" * 63],
    "UR": ["a b", "a\\b", " a", "é"],
    "UT": ["\0", "\x1a"],
}


def test_every_vr_of_text_has_a_form_and_no_other() -> None:
    texts = {name.decode() for name, row in VALUE_REPRESENTATIONS.items() if row.kind in (Kind.ASCII, Kind.TEXT, Kind.LONG_TEXT)}
    assert VALUE_FORMS.keys() == texts | {"AT"} == LEGAL.keys() == ILLEGAL.keys()


@pytest.mark.parametrize(("vr", "value"), [(vr, value) for vr, found in LEGAL.items() for value in found], ids=lambda text: repr(text)[:24])
def test_a_value_that_is_legal_has_its_form(vr: str, value: str) -> None:
    assert has_form(vr, value)


@pytest.mark.parametrize(
    ("vr", "value"), [(vr, value) for vr, found in ILLEGAL.items() for value in found], ids=lambda text: repr(text)[:24]
)
def test_a_value_that_is_illegal_has_not(vr: str, value: str) -> None:
    assert VALUE_FORMS[vr].fullmatch(value) is None
    assert has_form(vr, value) is (value == "")


@pytest.mark.parametrize("vr", ["AS", "AT", "DA", "DS", "DT", "IS", "TM", "UI"])
def test_digits_of_other_scripts_are_no_digits(vr: str) -> None:
    for value in LEGAL[vr]:
        if (translated := value.translate(ARABIC_INDIC)) != value:
            assert not has_form(vr, translated)


@pytest.mark.parametrize(
    ("vr", "keyword", "tag"), [("DT", "AcquisitionDateTime", "0008002A"), ("DA", "StudyDate", "00080020"), ("TM", "StudyTime", "00080030")]
)
def test_coercion_workflow_and_search_agree(vr: str, keyword: str, tag: str) -> None:
    for value, is_legal in [*((v, True) for v in LEGAL[vr]), *((v, False) for v in ILLEGAL[vr] if v != "2026.11.29")]:
        assert coercion._is_legal(vr.encode(), value) is is_legal
        sent = json.dumps({tag: {"vr": vr, "Value": [value]}}).encode()
        if is_legal:
            assert dataset.parse(sent)[tag]["Value"] == [value]
        else:
            with pytest.raises(errors.BadRequest, match=f"does not have the form of VR {vr}"):
                dataset.parse(sent)
        if is_legal:
            {"DA": terms.date, "TM": terms.time, "DT": terms.date_time}[vr](value)


@pytest.mark.parametrize(("read", "value"), [(terms.date, "20261129"), (terms.time, "120000"), (terms.date_time, "20261129120000")])
def test_a_search_reads_no_digits_of_other_scripts(read, value: str) -> None:  # type: ignore[no-untyped-def]
    assert read(value)
    with pytest.raises(ValueError, match="is not a"):
        read(value.translate(ARABIC_INDIC))


def test_a_person_name_of_a_workitem_has_64_characters_per_group() -> None:
    def parsed(name: str) -> dataset.Dataset:
        return dataset.parse(json.dumps({"00100010": {"vr": "PN", "Value": [{"Alphabetic": name}]}}).encode())

    assert parsed("a" * 64)["00100010"]["Value"] == [{"Alphabetic": "a" * 64}]
    for wrong in ("a" * 65, "a=b", "a\\b"):
        with pytest.raises(errors.BadRequest, match="not a person name"):
            parsed(wrong)


def test_a_quality_has_no_digits_of_other_scripts() -> None:
    assert negotiation._QUALITY.fullmatch("0.125")
    assert negotiation._QUALITY.fullmatch("0." + "125".translate(ARABIC_INDIC)) is None


def test_window_values_are_no_digits_of_other_scripts() -> None:
    assert rendering_parameters._DECIMAL.fullmatch("-12.5e3")
    assert rendering_parameters._DECIMAL.fullmatch("-12.5e3".translate(ARABIC_INDIC)) is None
