"""Rules that create workitems for arriving studies: how they are read, what they match, what they create."""

import json
from pathlib import Path

import pytest

from gantry_standard import errors
from gantry_standard.dicom import native_xml
from gantry_workflow.arrivals.rules import Reference, Rule, load_rules, make
from gantry_workflow.workitems import transactions
from gantry_workflow.workitems.dataset import Dataset
from tests.support.worklist import v

INPUT = Reference("1.2", "1.2.3", "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4")
INSTANCE: Dataset = {
    "00080050": v("SH", "A1"),
    "00080060": v("CS", "CT"),
    "00080008": v("CS", "ORIGINAL", "PRIMARY"),
    "00081030": v("LO", "Leber, Portal\u00f6s"),
    "00100010": v("PN", {"Alphabetic": "Yamada^Tarou", "Ideographic": "\u5c71\u7530^\u592a\u90ce"}),
    "00100020": v("LO", "P1"),
    "00100030": v("DA", "no date"),
    "00180050": v("DS", 2.5),
    "0020000D": v("UI", "1.2"),
    "00400275": v("SQ", {"00401001": v("SH", "R1")}, {"00401001": v("SH", "R2")}),
}


def rule(folder: Path, template: object, match: str = 'Modality = "CT"', **fields: str) -> Rule:
    """Write a rule to files and return what is read from them."""
    given = {"name": "liver", "template": "template.xml" if isinstance(template, bytes) else "template.json", **fields}
    lines = "".join(f"{name} = {json.dumps(text)}\n" for name, text in given.items())
    (folder / "rules.toml").write_text(f"[[rule]]\n{lines}[rule.match]\n{match}\n", encoding="utf-8")
    if isinstance(template, bytes):
        (folder / "template.xml").write_bytes(template)
    else:
        (folder / "template.json").write_text(json.dumps(template), encoding="utf-8")
    (read,) = load_rules(folder / "rules.toml")
    return read


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ('Modality = "CT"', True),
        ('Modality = "C"', False),
        ('Modality = "MR|CT"', True),
        ('StudyDescription = "(?i)leber.*"', True),
        ('00081030 = ".*Portal."', False),
        (r"ImageType = 'ORIGINAL\\.*'", True),
        (r"ImageType = 'ORIGINAL'", False),
        ('PatientName = "Yamada.Tarou=.*"', True),
        ('SliceThickness = "2[.]5"', True),
        ('SeriesDescription = ""', True),
        ('SeriesDescription = ".+"', False),
        ('"RequestAttributesSequence.RequestedProcedureID" = "R2"', True),
        ('"RequestAttributesSequence.RequestedProcedureID" = "R3"', False),
        ('Modality = "CT"\nPatientID = "P2"', False),
    ],
)
def test_a_rule_matches_when_each_expression_matches_the_whole_value(tmp_path: Path, match: str, expected: bool) -> None:
    assert rule(tmp_path, {}, match).matches(INSTANCE) is expected


def test_an_empty_template_makes_a_workitem_of_what_is_filled_in(tmp_path: Path) -> None:
    made = make(rule(tmp_path, {}), INSTANCE, [INPUT], "https://host/dicom-web/")
    assert made["00741204"] == v("LO", "liver")
    assert made["00741200"] == v("CS", "MEDIUM")
    assert made["00404041"] == v("CS", "READY")
    assert made["00100010"] == INSTANCE["00100010"]
    assert made["00100020"] == v("LO", "P1")
    assert made["00100030"] == {"vr": "DA"}, "an invalid date must not prevent the workitem of a study"
    assert made["0040A370"]["Value"] == [{"00080050": v("SH", "A1"), "0020000D": v("UI", "1.2")}]
    (series,) = made["00404021"]["Value"]
    assert series["0040E025"]["Value"][0]["00081190"] == v("UR", "https://host/dicom-web/studies/1.2/series/1.2.3")
    assert series["00081199"]["Value"] == [{"00081150": v("UI", INPUT.sop_class_uid), "00081155": v("UI", INPUT.sop_instance_uid)}]
    decision = transactions.create(None, "1.2.3", made, strict=False)
    assert decision.state is not None


TEMPLATE = {
    "00741204": v("LO", "{Modality} of {PatientID} {{x}} {RequestAttributesSequence.RequestedProcedureID}{SeriesDescription}"),
    "00100010": v("PN", {"Alphabetic": "{PatientName}"}),
    "00081080": v("LO", "{ImageType}"),
    "00400400": v("LT", "{rule}"),
    "00100020": v("LO", "{SeriesDescription}"),
}


@pytest.mark.parametrize("kind", ["json", "xml"])
def test_placeholders_are_filled_in(tmp_path: Path, kind: str) -> None:
    template = native_xml.write(TEMPLATE) if kind == "xml" else [TEMPLATE]
    made = make(rule(tmp_path, template), INSTANCE, [INPUT], "http://host")
    assert made["00741204"] == v("LO", "CT of P1 {x} R1")
    assert made["00100010"] == INSTANCE["00100010"], "a placeholder alone takes over the whole value"
    assert made["00081080"] == v("LO", "ORIGINAL", "PRIMARY")
    assert made["00400400"] == v("LT", "liver")
    assert made["00100020"] == {"vr": "LO"}, "there is none, and the template says so"


def test_what_a_placeholder_makes_too_long_is_refused_without_its_value(tmp_path: Path) -> None:
    template = {"00741204": v("LO", "{PatientID}-{PatientID}")}
    instance = {**INSTANCE, "00100020": v("LO", "secret" * 8)}
    with pytest.raises(errors.BadRequest) as refused:
        make(rule(tmp_path, template), instance, [INPUT], "http://host")
    assert "Procedure Step Label" in refused.value.message
    assert "secret" not in refused.value.message


def test_what_a_rule_needs_of_an_instance_is_enough(tmp_path: Path) -> None:
    found = rule(tmp_path, TEMPLATE)
    lean = {tag: element for tag, element in INSTANCE.items() if tag in found.needs}
    assert "00081030" not in lean
    one, other = (make(found, instance, [INPUT], "http://host") for instance in (lean, INSTANCE))
    assert {**one, "00404005": None} == {**other, "00404005": None}, "but for the time"


def test_the_workitem_uid_follows_from_the_rule_and_what_matched(tmp_path: Path) -> None:
    one, other = rule(tmp_path, {}), rule(tmp_path, {}, name="other")
    assert one.workitem_uid("1.2") == one.workitem_uid("1.2") == "2.25." + one.workitem_uid("1.2").removeprefix("2.25.")
    assert len({one.workitem_uid("1.2"), one.workitem_uid("1.3"), one.workitem_uid("1.2", "1.3"), other.workitem_uid("1.2")}) == 4


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ({"00741204": v("LO", "{NoSuchKeyword}")}, "{NoSuchKeyword}"),
        ({"00741204": v("LO", "{Modality.PatientID}")}, "{Modality.PatientID}"),
        ({"00741204": v("LO", "a } b")}, "}: expected"),
        ({"00741000": v("CS", "IN PROGRESS")}, "must be SCHEDULED"),
        ({"00741200": v("CS", "SOON")}, "Priority"),
        ({"00741216": v("SQ", {})}, "must be empty"),
        ({"00404018": v("SQ", {"00080100": v("SH", "C")})}, "Coding Scheme Designator"),
        (["two", "things"], "expected one DICOM JSON object"),
    ],
)
def test_a_template_that_gives_no_valid_workitem_is_reported_at_start(tmp_path: Path, template: object, told: str) -> None:
    with pytest.raises(ValueError, match="template") as wrong:
        rule(tmp_path, template)
    assert told in str(wrong.value)


def test_a_file_of_rules_without_a_rule_or_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    for text in ("", "rule = 1", "[[rule]", "[[other]]\n[[rule]]\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"rules\.toml"):
            load_rules(path)
    with pytest.raises(ValueError, match=r"rules\.toml"):
        load_rules(tmp_path / "missing" / "rules.toml")
