"""Workitems from the outside: an operator's rules make workitems of what arrives, and a model works on them (docs/ai-model.md)."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from pydicom.dataset import Dataset

from gantry.index.v1 import index_pb2
from gantry.index.v1.index_pb2_grpc import IndexServiceStub
from gantry_standard.dicom import native_xml
from tests.support import instances
from tests.support.dicomweb import OCTETS, DicomWeb, Object, items, value
from tests.support.documents import code_blocks
from tests.support.suite import Suite, one_machine
from tests.support.workitems import Worklist

RULES = r"""
[[rule]]
name = "liver"
template = "liver.json"

[rule.match]
Modality = "CT"
StudyDescription = "(?i)abdomen.*"

[[rule]]
name = "each series"
level = "series"
template = "series.xml"

[rule.match]
SeriesDescription = "portal.*"
"ProcedureCodeSequence.CodeValue" = "P[0-9]+"

[[rule]]
name = "each image"
level = "instance"
template = "image.json"

[rule.match]
ImageType = 'DERIVED\\.*'
"""

LIVER = {
    "00741204": {"vr": "LO", "Value": ["Segment liver of {PatientID} {{{StudyDescription}}}"]},
    "00741202": {"vr": "LO", "Value": ["AI"]},
    "00741200": {"vr": "CS", "Value": ["HIGH"]},
    "00100010": {"vr": "PN", "Value": ["{PatientName}"]},
    "00404018": {
        "vr": "SQ",
        "Value": [
            {
                "00080100": {"vr": "SH", "Value": ["SEG"]},
                "00080102": {"vr": "SH", "Value": ["99TEST"]},
                "00080104": {"vr": "LO", "Value": ["Segmentation"]},
            }
        ],
    },
    "00081084": {"vr": "SQ", "Value": ["{ProcedureCodeSequence}"]},
    "00400400": {"vr": "LT", "Value": ["by rule {rule}"]},
}
SERIES = {
    "00741204": {"vr": "LO", "Value": ["Look at {SeriesDescription}: {ProcedureCodeSequence.CodeMeaning}"]},
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "{PatientName}"}]},
}
QUIET_S = 0.4
MOST_LINES = 30
"""Of the program of docs/ai-model.md, imports aside."""


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A suite with rules, those of docs/ai-model.md among them."""
    folder = tmp_path_factory.mktemp("rules")
    (rule,), (template,) = code_blocks("ai-model.md", "toml"), code_blocks("ai-model.md", "json")
    (folder / "rules.toml").write_text(RULES + rule, encoding="utf-8")
    (folder / "bone.json").write_text(template, encoding="utf-8")
    (folder / "liver.json").write_text(json.dumps([LIVER]), encoding="utf-8")
    (folder / "series.xml").write_bytes(native_xml.write(SERIES))
    (folder / "image.json").write_text("{}", encoding="utf-8")
    settings = {"GANTRY_WORKITEM_RULES": str(folder / "rules.toml"), "GANTRY_STUDY_SETTLED_S": str(QUIET_S)}
    running = Suite(folder / "suite", one_machine() | settings)
    running.start()
    yield running
    running.close()


@pytest.fixture
def worklist(ruled: Suite) -> Worklist:
    """Its Worklist service."""
    return Worklist(ruled.client())


def abdomen(**attributes: object) -> Dataset:
    """Return an image that the rule `liver` matches."""
    return instances.ct(8, 8, StudyDescription="Abdomen with contrast", **attributes)


def procedure_code(code_value: str) -> list[Dataset]:
    """Return a Procedure Code Sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code_value, "99TEST", "Liver"
    return [item]


def wait_for(dicomweb: DicomWeb, study: str, count: int, is_enough: Callable[[list[Object]], bool] = lambda rows: True) -> list[Object]:
    """Return the workitems of a study when there are so many that are as expected; never more."""
    end = time.monotonic() + 20
    while True:
        response = dicomweb.get(f"/workitems?StudyInstanceUID={study}&includefield=all", headers={"Cache-Control": "no-cache"})
        rows = response.json() if response.status_code == 200 else []
        assert len(rows) <= count, f"{len(rows)} workitems"
        if len(rows) == count and is_enough(rows):
            return list(rows)
        assert time.monotonic() < end, f"{len(rows)} of {count} workitems: {json.dumps(rows)[:3000]}"


def marker(dicomweb: DicomWeb) -> None:
    """Store a study that leads to a workitem and wait for it: everything that arrived before has been looked at then."""
    data_set = abdomen()
    dicomweb.store(instances.encoded(data_set))
    wait_for(dicomweb, data_set.StudyInstanceUID, 1)


def referenced(workitem: Object) -> set[tuple[str, str]]:
    """Return (series, instance) of everything that a workitem has as input."""
    return {
        (value(item, "0020000E"), value(inner, "00081155")) for item in items(workitem, "00404021") for inner in items(item, "00081199")
    }


def test_a_study_that_matches_becomes_one_workitem_with_its_references(ruled: Suite, worklist: Worklist) -> None:
    first = abdomen(PatientID="P-77", ProcedureCodeSequence=procedure_code("P12"))
    study = first.StudyInstanceUID
    others = [
        abdomen(StudyInstanceUID=study, SeriesInstanceUID=first.SeriesInstanceUID, InstanceNumber=2),
        instances.ct(8, 8, StudyInstanceUID=study, SeriesNumber=2, StudyDescription="something else"),
    ]
    for data_set in (first, *others):
        worklist.dicomweb.store(instances.encoded(data_set))
    (row,) = wait_for(worklist.dicomweb, study, 1)
    workitem = worklist.get(value(row, "00080018"))
    assert value(workitem, "00741000") == "SCHEDULED"
    assert value(workitem, "00404041") == "READY"
    assert value(workitem, "00741204") == "Segment liver of P-77 {Abdomen with contrast}"
    assert value(workitem, "00741200") == "HIGH"
    assert value(workitem, "00741202") == "AI"
    assert value(workitem, "00100010") == {"Alphabetic": "Doe^Jane"}
    assert value(workitem, "00100020") == "P-77"
    assert value(workitem, "00100030") == "19700102"
    assert value(workitem, "00400400") == "by rule liver"
    assert value(items(workitem, "00081084")[0], "00080100") == "P12"
    (request,) = items(workitem, "0040A370")
    assert (value(request, "0020000D"), value(request, "00080050")) == (study, "A-1")
    assert referenced(workitem) == {(one.SeriesInstanceUID, one.SOPInstanceUID) for one in (first, *others)}
    series, _ = items(workitem, "00404021")
    assert value(series, "0040E020") == "DICOM"
    assert value(items(series, "00081199")[0], "00081150") == first.SOPClassUID
    url = value(items(series, "0040E025")[0], "00081190")
    assert url == f"{ruled.url}/studies/{study}/series/{first.SeriesInstanceUID}"
    assert len(worklist.dicomweb.parts(url, 'multipart/related; type="application/dicom"; transfer-syntax=*')) == 2


def test_a_series_and_an_instance_may_be_what_a_workitem_is_for(worklist: Worklist) -> None:
    portal = instances.ct(8, 8, SeriesDescription="portal venous", ProcedureCodeSequence=procedure_code("P3"))
    study = portal.StudyInstanceUID
    late = instances.ct(8, 8, StudyInstanceUID=study, SeriesDescription="portal late", ProcedureCodeSequence=procedure_code("P4"))
    other = instances.ct(8, 8, StudyInstanceUID=study, SeriesDescription="portal", ProcedureCodeSequence=procedure_code("X"))
    derived = instances.ct(8, 8, StudyInstanceUID=study, ImageType=["DERIVED", "PRIMARY"])
    worklist.dicomweb.store(*(instances.encoded(one) for one in (portal, late, other, derived)))
    rows = wait_for(worklist.dicomweb, study, 3)
    assert {value(row, "00741204"): referenced(row) for row in rows} == {
        "Look at portal venous: Liver": {(portal.SeriesInstanceUID, portal.SOPInstanceUID)},
        "Look at portal late: Liver": {(late.SeriesInstanceUID, late.SOPInstanceUID)},
        "each image": {(derived.SeriesInstanceUID, derived.SOPInstanceUID)},
    }
    assert all(value(row, "00100010") == {"Alphabetic": "Doe^Jane"} for row in rows)


def test_what_matches_no_rule_and_what_is_deleted_before_it_has_arrived_becomes_none(worklist: Worklist) -> None:
    unmatched, deleted = instances.ct(8, 8), abdomen()
    worklist.dicomweb.store(instances.encoded(unmatched))
    worklist.dicomweb.store(instances.encoded(deleted))
    assert worklist.dicomweb.request("DELETE", f"/studies/{deleted.StudyInstanceUID}").status_code == 204
    marker(worklist.dicomweb)
    for data_set in (unmatched, deleted):
        assert wait_for(worklist.dicomweb, data_set.StudyInstanceUID, 0) == []


def test_storing_and_deleting_again_makes_no_second_workitem(worklist: Worklist) -> None:
    data_set = abdomen()
    study = data_set.StudyInstanceUID
    worklist.dicomweb.store(instances.encoded(data_set))
    (row,) = wait_for(worklist.dicomweb, study, 1)
    worklist.dicomweb.store(instances.encoded(data_set))
    assert worklist.dicomweb.request("DELETE", f"/studies/{study}").status_code == 204
    worklist.dicomweb.store(instances.encoded(data_set))
    marker(worklist.dicomweb)
    (again,) = wait_for(worklist.dicomweb, study, 1)
    assert again == row


def test_input_that_comes_later_is_added_while_nobody_has_claimed_the_workitem(worklist: Worklist) -> None:
    first = abdomen()
    study = first.StudyInstanceUID
    second, third = (abdomen(StudyInstanceUID=study) for _ in range(2))
    worklist.dicomweb.store(instances.encoded(first))
    (row,) = wait_for(worklist.dicomweb, study, 1)
    worklist.dicomweb.store(instances.encoded(second))
    both = {(one.SeriesInstanceUID, one.SOPInstanceUID) for one in (first, second)}
    wait_for(worklist.dicomweb, study, 1, lambda rows: referenced(rows[0]) == both)
    uid = value(row, "00080018")
    assert worklist.change_state(uid, "IN PROGRESS", instances.new_uid()).status_code == 200
    worklist.dicomweb.store(instances.encoded(third))
    marker(worklist.dicomweb)
    assert referenced(worklist.get(uid)) == both


def test_what_arrives_while_workflow_or_index_is_killed_is_not_forgotten(ruled: Suite, worklist: Worklist) -> None:
    studies = []
    for name in ("workflow", "index", "workflow"):
        data_set = abdomen()
        worklist.dicomweb.store(instances.encoded(data_set))
        studies.append(data_set.StudyInstanceUID)
        ruled.wait_restarted(name, ruled.kill(name))
    for study in studies:
        assert len(wait_for(worklist.dicomweb, study, 1)) == 1


def is_completed(rows: list[Object]) -> bool:
    """Say whether the first is COMPLETED."""
    return bool(value(rows[0], "00741000") == "COMPLETED")


def test_the_model_of_the_page_works_on_what_arrives(ruled: Suite, worklist: Worklist, tmp_path: Path) -> None:
    (program,) = code_blocks("ai-model.md", "python")
    assert len([line for line in program.splitlines() if line and not line.startswith(("import ", "from "))]) <= MOST_LINES
    (tmp_path / "model.py").write_text(program, encoding="utf-8")
    dicomweb = worklist.dicomweb
    before, after = instances.ct(24, 40, BodyPartExamined="KNEE"), instances.ct(20, 30, BodyPartExamined="HIP")
    dicomweb.store(instances.encoded(before))
    command = [sys.executable, str(tmp_path / "model.py"), ruled.url]
    with (tmp_path / "model.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as model:
        try:
            done = {before.SOPInstanceUID: wait_for(dicomweb, before.StudyInstanceUID, 1, is_completed)[0]}
            ruled.wait_restarted("gateway", ruled.kill("gateway"))
            dicomweb.store(instances.encoded(after))
            done[after.SOPInstanceUID] = wait_for(dicomweb, after.StudyInstanceUID, 1, is_completed)[0]
        except AssertionError as error:
            error.add_note((tmp_path / "model.log").read_text())
            raise
        finally:
            model.terminate()
    for data_set in (before, after):
        workitem = done[data_set.SOPInstanceUID]
        assert value(workitem, "00741204") == "Segment bone in Axial"
        (performed,) = items(workitem, "00741216")
        assert value(items(performed, "00404019")[0], "00080100") == "BONE"
        assert value(items(performed, "00404028")[0], "00080100") == "GPU1"
        (output,) = items(performed, "00404033")
        (sop,) = items(output, "00081199")
        assert value(output, "0020000D") == data_set.StudyInstanceUID
        path = f"/studies/{data_set.StudyInstanceUID}/series/{value(output, '0020000E')}/instances/{value(sop, '00081155')}"
        (metadata,) = dicomweb.metadata(path)
        assert value(metadata, "00080016") == value(sop, "00081150") == instances.SECONDARY_CAPTURE
        (frame,) = dicomweb.parts(f"{path}/frames/1", OCTETS)
        expected = instances.ct_pixels(data_set.Rows, data_set.Columns) > 1500
        assert 0 < expected.sum() < expected.size
        assert (np.frombuffer(frame.content, np.uint8)[: expected.size].reshape(expected.shape) == expected).all()


def test_wrong_rules_stop_the_start_with_all_problems_told(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(
        '[[rule]]\nname = "a"\nlevel = "frame"\ntemplate = "missing.json"\n[rule.match]\nModality = "("\nNoKeyword = "x"\n'
        '[[rule]]\nname = "a"\ntemplate = "wrong.json"\n[rule.match]\nPixelData = "x"\n',
        encoding="utf-8",
    )
    (tmp_path / "wrong.json").write_text('{"00741204": {"vr": "LO", "Value": ["{NoSuch} {"]}}', encoding="utf-8")
    wrong = Suite(tmp_path / "suite", one_machine() | {"GANTRY_WORKITEM_RULES": str(tmp_path / "rules.toml")})
    done = wrong_start(wrong)
    for told in ("rule 1: level", "missing.json", "match Modality", "match NoKeyword", "match PixelData", "{NoSuch}", "name 'a': 2 rules"):
        assert told in done, f"{told}\n{done}"


def test_the_setting_that_index_took_over_is_refused_by_name(tmp_path: Path) -> None:
    assert "set GANTRY_STUDY_SETTLED_S instead" in wrong_start(
        Suite(tmp_path / "suite", one_machine() | {"GANTRY_WORKITEM_RULES_QUIET_S": "30"})
    )


def wrong_start(suite: Suite) -> str:
    """Start a suite that cannot; return what it says."""
    suite.directory.mkdir(parents=True)
    done = suite.run("up", "--port", str(suite.port), "--data", str(suite.data), "--no-samples", check=False)
    assert done.returncode == 2, done.stdout
    return done.stdout + done.stderr


@pytest.mark.distributed
def test_index_says_up_to_where_a_study_is_applied(suite: Suite, dicomweb: DicomWeb) -> None:
    ports = json.loads((suite.data / "run" / "ports.json").read_text(encoding="utf-8"))
    with grpc.insecure_channel(f"127.0.0.1:{ports['index']}") as channel:
        index = IndexServiceStub(channel)
        for _ in range(3):
            data_set = instances.ct(8, 8)
            before = index.GetStatus(index_pb2.GetStatusRequest(), timeout=20).stream_sequence
            dicomweb.store(instances.encoded(data_set))
            request = index_pb2.GetAppliedSequenceRequest(collection=data_set.StudyInstanceUID)
            assert before < index.GetAppliedSequence(request, timeout=20).sequence
