"""Rules of coercion: how they are read, what each action does, and that nothing else of a data set changes."""

import io
import warnings
from pathlib import Path

import orjson
import pydicom
import pytest
from pydicom.dataset import Dataset

from gantry_blob.settings import BlobSettings
from gantry_blob.storing.coercion import Coercion, load_rules
from gantry_runtime.settings import SettingsError, load
from gantry_standard import reasons
from gantry_standard.dicom.limits import ScanFailure
from tests.support import instances
from tests.support.scanning import Scan, scan

ORIGINAL_ATTRIBUTES = "04000561"


def coercion(directory: Path, text: str) -> Coercion:
    """Read rules."""
    path = directory / "rules.toml"
    path.write_text(text, encoding="utf-8")
    return Coercion(load_rules(path), "ARCHIVE")


def rule(action: str, match: str = "") -> str:
    """Return one rule of one action."""
    return f"[[rule]]\n[rule.match]\n{match}\n[[rule.action]]\n{action}\n"


def coerced(directory: Path, text: str, data_set: Dataset) -> tuple[Scan, dict]:
    """Scan an instance under rules; return the scan and its DICOM JSON."""
    found = scan(instances.encoded(data_set), amend=coercion(directory, text))
    return found, orjson.loads(found.scanned.dicom_json.replace(b"\0", b""))


@pytest.mark.parametrize(
    ("action", "before", "after"),
    [
        pytest.param('set = "X"', "P-1", "X", id="set"),
        pytest.param('set = "X"\nwhen = "empty"', "", "X", id="set where empty"),
        pytest.param('set = "X"\nwhen = "empty"', "P-1", "P-1", id="set where empty, and it is not"),
        pytest.param('set = "X"\nwhen = "absent"', None, "X", id="set where absent"),
        pytest.param('set = "X"\nwhen = "absent"', "", "", id="set where absent, and it is empty"),
        pytest.param('prefix = "N-"', "P-1", "N-P-1", id="prefix"),
        pytest.param('prefix = "N-"', "N-1", "N-1", id="prefix that is there"),
        pytest.param('prefix = "N-"', "", "", id="prefix of nothing"),
        pytest.param('prefix = "N-"', None, None, id="prefix of what is absent"),
        pytest.param('strip_prefix = "P-"', "P-1", "1", id="strip a prefix"),
        pytest.param('strip_prefix = "N-"', "P-1", "P-1", id="strip a prefix that is not there"),
        pytest.param("pattern = '^([A-Z])-0*(\\d+)$'\nreplacement = '\\2\\1'", "P-007", "7P", id="replace"),
        pytest.param('set = ""', "P-1", "", id="empty it"),
        pytest.param('set = ""', None, None, id="empty what is absent"),
    ],
)
def test_each_action_does_what_it_says(tmp_path: Path, action: str, before: str | None, after: str | None) -> None:
    data_set = instances.ct(4, 4)
    if before is None:
        del data_set.PatientID
    else:
        data_set.PatientID = before
    found, json = coerced(tmp_path, rule(f'attribute = "PatientID"\n{action}'), data_set)
    assert json.get("00100020", {"Value": [None]}).get("Value", [""]) == [after]
    is_changed = (before or "") != (after or "")
    assert (reasons.COERCION in found.scanned.warning_reasons) == (ORIGINAL_ATTRIBUTES in json) == is_changed
    assert bool(found.scanned.original_attributes) == is_changed
    if is_changed:
        previous = json[ORIGINAL_ATTRIBUTES]["Value"][0]["04000550"]["Value"]
        assert previous == [{"00100020": {"vr": "LO", "Value": [before]} if before else {"vr": "LO"}}]


def test_rules_act_in_order_and_the_first_value_is_what_was_there_before(tmp_path: Path) -> None:
    text = rule('attribute = "PatientID"\nprefix = "A"') + rule('attribute = "PatientID"\nprefix = "B"', 'PatientID = "A.*"')
    _, json = coerced(tmp_path, text, instances.ct(4, 4, PatientID="1"))
    assert json["00100020"]["Value"] == ["BA1"]
    (item,) = json[ORIGINAL_ATTRIBUTES]["Value"]
    assert item["04000550"]["Value"][0]["00100020"]["Value"] == ["1"]


@pytest.mark.parametrize(
    ("match", "applies"),
    [
        pytest.param('Modality = "CT|MR"', True, id="an expression"),
        pytest.param('Modality = "C"', False, id="the whole value, not a part"),
        pytest.param('StationName = ""', True, id="absent"),
        pytest.param('StationName = ".+"', False, id="absent, and it must have a value"),
        pytest.param(f'SOPClassUID = "{instances.CT_IMAGE}"', True, id="a UID"),
        pytest.param('Modality = "CT"\nPatientSex = "M"', False, id="all must hold"),
    ],
)
def test_a_rule_acts_where_all_its_conditions_hold(tmp_path: Path, match: str, applies: bool) -> None:
    _, json = coerced(tmp_path, rule('attribute = "PatientID"\nset = "X"', match), instances.ct(4, 4))
    assert (json["00100020"]["Value"] == ["X"]) == applies


@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192", "ISO_IR 144"])
def test_text_is_read_and_written_in_the_character_set_of_the_instance(tmp_path: Path, charset: str) -> None:
    name = "Иванов^Пётр" if charset == "ISO_IR 144" else "Müller^Jörg"
    data_set = instances.ct(4, 4, SpecificCharacterSet=charset, PatientName=name)
    text = rule("attribute = \"PatientName\"\npattern = '\\^'\nreplacement = '^X '")
    found, json = coerced(tmp_path, text, data_set)
    assert json["00100010"]["Value"] == [{"Alphabetic": name.replace("^", "^X ")}]
    read = pydicom.dcmread(io.BytesIO(found.wire))
    assert read.SpecificCharacterSet == charset
    assert str(read.PatientName) == name.replace("^", "^X ")
    told = orjson.loads(found.scanned.original_attributes)[ORIGINAL_ATTRIBUTES]["Value"][0]
    assert told["04000550"]["Value"][0]["00100010"]["Value"] == [{"Alphabetic": name}]


@pytest.mark.parametrize(
    ("data_set", "action"),
    [
        pytest.param(lambda: instances.ct(4, 4, PatientID="1" * 64), 'attribute = "PatientID"\nprefix = "N"', id="longer than its VR"),
        pytest.param(instances.japanese, "attribute = \"PatientName\"\npattern = '\\^'\nreplacement = '-'", id="another character set"),
        pytest.param(lambda: instances.ct(4, 4), "attribute = \"StudyDate\"\npattern = '^2024'\nreplacement = 'x'", id="no date"),
    ],
)
def test_a_value_that_cannot_be_written_fails_the_instance_and_its_message_has_no_value(tmp_path: Path, data_set, action: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ScanFailure) as caught:
        coerced(tmp_path, rule(action), data_set())
    assert caught.value.reason == reasons.PROCESSING_FAILURE
    assert caught.value.sop_instance_uid
    assert "Yamada" not in caught.value.message
    assert "2024" not in caught.value.message


def test_all_that_is_wrong_with_rules_is_told_at_start_together_with_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(
        rule('attribute = "StudyInstanceUID"\nset = "1.2"')
        + rule('attribute = "Rows"\nset = "1"')
        + rule('attribute = "PatientID"\nset = "X"\nprefix = "Y"')
        + rule('attribute = "PatientID"\nset = "X"\nwhen = "never"')
        + rule('attribute = "PatientSex"\nset = "female"')
        + rule('attribute = "PatientName"\nset = "Jörg"')
        + rule("attribute = \"PatientID\"\npattern = '('\nreplacement = ''")
        + rule("attribute = \"PatientID\"\npattern = 'a'\nreplacement = '\\1'")
        + rule('attribute = "PatientID"\nset = "X"', 'Unknown = "x"\nModality = "("')
        + "[[rule]]\nnames = 'x'\n",
        encoding="utf-8",
    )
    with pytest.raises(SettingsError) as told:
        load(BlobSettings, {"GANTRY_COERCION_RULES": str(path), "GANTRY_CONCURRENT_UPLOADS": "0", "GANTRY_MODIFYING_SYSTEM": "a\\b"})
    lines = str(told.value).splitlines()
    wanted = [
        "rule 1, action 1", "rule 2, action 1", "rule 3, action 1", "rule 4, action 1: when", "rule 5, action 1: set", "rule 6, action 1",
        "rule 7, action 1", "rule 8, action 1", "rule 9: match Unknown", "rule 9: match Modality", "rule 10: names", "rule 10: expected",
        "GANTRY_MODIFYING_SYSTEM", "GANTRY_CONCURRENT_UPLOADS",
    ]  # fmt: skip
    assert [piece for piece in wanted if not any(piece in line for line in lines)] == []


def test_rules_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text("[[rule]\n")
    for name in ("rules.toml", "absent.toml"):
        with pytest.raises(SettingsError, match=name):
            load(BlobSettings, {"GANTRY_COERCION_RULES": str(tmp_path / name)})


def test_nothing_else_of_any_sample_changes(tmp_path: Path, sample_files: list[Path]) -> None:
    amend = coercion(tmp_path, rule('attribute = "PatientComments"\nset = "coerced"'))
    compared = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sample_files:
            data = path.read_bytes()
            try:
                plain = scan(data)
            except ScanFailure:
                continue
            changed = scan(data, amend=amend)
            before, after = (orjson.loads(found.scanned.dicom_json.replace(b"\0", b"")) for found in (plain, changed))
            assert after.pop("00104000") == {"vr": "LT", "Value": ["coerced"]}
            before.pop("00104000", None)
            after.pop(ORIGINAL_ATTRIBUTES)
            before.pop(ORIGINAL_ATTRIBUTES, None)
            assert before == after, path.name
            again = scan(changed.wire)
            assert again.scanned.dicom_json == changed.scanned.dicom_json, path.name
            assert (
                again.scanned.wire_transfer_syntax_uid == changed.scanned.wire_transfer_syntax_uid == plain.scanned.wire_transfer_syntax_uid
            )
            assert [again.read(bulk.value) for bulk in again.scanned.bulk] == [plain.read(bulk.value) for bulk in plain.scanned.bulk], (
                path.name
            )
            count = plain.scanned.frames.number_of_frames if plain.scanned.frames else 0
            assert [changed.frame(index) for index in range(count)] == [plain.frame(index) for index in range(count)], path.name
            assert changed.scanned.dataset_digest == plain.scanned.dataset_digest
            compared += 1
    assert compared > 50
