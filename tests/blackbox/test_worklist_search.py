"""Search of workitems (PS3.18 §11.9): every required matching key of PS3.4 Table CC.2.5-3, and what a row holds."""

from typing import Any

import pytest

from tests.support import instances
from tests.support.dicomweb import JSON, DicomWeb, Object, value
from tests.support.workitems import PERFORMED, Worklist, code, performed, workitem

# PS3.4 Table CC.2.5-3, return key types 1 and 2.
RETURN_KEYS = """
    00080016 00080018 00741200 00741204 00741202 00741210 00404025 00404026 00404027 00404034 00404005 00404018 00404041 00404021
    0020000D 00100010 00100020 00100021 00100024 00101002 00100030 00100040 00380010 00380014 00081080 00081084 0040A370 00741000
    00741002 00741216
"""


def text(vr: str, *values: Any) -> Object:
    """Return an element with values."""
    return {"vr": vr, "Value": list(values)}


def sequence(**item: Object) -> Object:
    """Return a sequence of one item; names are x and a tag."""
    return {"vr": "SQ", "Value": [{name[1:]: element for name, element in item.items()}]}


@pytest.fixture
def worklist(dicomweb: DicomWeb) -> Worklist:
    """The Worklist service of the suite."""
    return Worklist(dicomweb)


class Pair:
    """Two workitems under one label that differ in everything a search may ask for."""

    def __init__(self, worklist: Worklist) -> None:
        self.worklist = worklist
        self.label = f"L{instances.new_uid()[-12:]}"
        own = {"x00741202": text("LO", self.label)}
        self.first = worklist.created(
            **own,
            x00404025=code("Workstation 1", "WS1"),
            x00404026=code("CT workstation", "CT"),
            x00404027=code("Room 1", "R1"),
            x00404034=sequence(
                x00404009=code("Doctor Who", "DW"), x00404037=text("PN", {"Alphabetic": "Who^D"}), x00404036=text("LO", "UNIT")
            ),
            x00404018=code("Segmentation", "SEG"),
            x00404005=text("DT", "20260110120000+0100"),
            x00404011=text("DT", "20260110140000"),
            x00100010=text("PN", {"Alphabetic": "Müller^Anna"}),
            x00100020=text("LO", "PAT-1"),
            x00100021=text("LO", "HOSP-1"),
            x00100030=text("DA", "19700102"),
            x00100040=text("CS", "F"),
            x00380010=text("LO", "ADM-1"),
            x00380014=sequence(x00400031=text("UT", "LOCAL-1"), x00400032=text("UT", "1.2.3"), x00400033=text("CS", "ISO")),
            x0040A370=sequence(
                x0020000D=text("UI", "1.2.3"),
                x00080050=text("SH", "ACC-1"),
                x00080051=sequence(x00400031=text("UT", "RIS1"), x00400033=text("CS", "ISO")),
                x00400026={"vr": "SQ"},
                x00400027={"vr": "SQ"},
                x00401001=text("SH", "RP-1"),
                x00321060=text("LO", "CT Thorax"),
                x00321064={"vr": "SQ"},
                x00321033=text("LO", "Surgery"),
            ),
            x00741224=sequence(x00081150=text("UI", "1.2.840.10008.5.1.4.34.6.1"), x00081155=text("UI", "1.2.3.4")),
        )
        self.second = worklist.created(
            **own,
            x00404025=code("Workstation 2", "WS2"),
            x00404026=code("MR workstation", "MR"),
            x00404027=code("Room 2", "R2"),
            x00404034=sequence(
                x00404009=code("Doctor No", "DN"), x00404037=text("PN", {"Alphabetic": "No^J"}), x00404036=text("LO", "SPECTRE")
            ),
            x00404018=code("Printing", "PRN"),
            x00404005=text("DT", "20260210120000"),
            x00404011=text("DT", "20260210140000"),
            x00100010=text("PN", {"Alphabetic": "Ng^Li"}),
            x00100020=text("LO", "PAT-2"),
            x00100021=text("LO", "HOSP-2"),
            x00100030=text("DA", "19800203"),
            x00100040=text("CS", "M"),
            x00380010=text("LO", "ADM-2"),
            x0040A370=sequence(
                x0020000D=text("UI", "1.2.4"),
                x00080050=text("SH", "ACC-2"),
                x00080051={"vr": "SQ"},
                x00400026={"vr": "SQ"},
                x00400027={"vr": "SQ"},
                x00401001=text("SH", "RP-2"),
                x00321060=text("LO", "MR Knee"),
                x00321064={"vr": "SQ"},
                x00321033=text("LO", "Sports"),
            ),
        )

    def matches(self, query: str) -> str:
        """Return which of both a query finds: 1, 2, 12 or nothing."""
        found = self.worklist.found(f"WorklistLabel={self.label}&{query}")
        return ("1" if self.first in found else "") + ("2" if self.second in found else "")


@pytest.fixture(scope="module")
def pairs() -> dict[str, Pair]:
    """The pair of each suite."""
    return {}


@pytest.fixture
def pair(worklist: Worklist, pairs: dict[str, Pair]) -> Pair:
    """The pair of this suite, made once."""
    if worklist.dicomweb.url not in pairs:
        pairs[worklist.dicomweb.url] = Pair(worklist)
    found = pairs[worklist.dicomweb.url]
    found.worklist = worklist
    return found


def check(pair: Pair, expected: dict[str, str]) -> None:
    """Compare what each query finds."""
    assert {query: pair.matches(query) for query in expected} == expected


@pytest.mark.distributed
@pytest.mark.requirement("W-048")
def test_codes_of_stations_performers_and_workitems_match_within_their_items(pair: Pair) -> None:
    check(
        pair,
        {
            "ScheduledStationNameCodeSequence.CodeValue=WS1": "1",
            "00404025.00080100=WS2": "2",
            "ScheduledStationNameCodeSequence.CodeMeaning=Workstation*": "12",
            "ScheduledStationClassCodeSequence.CodeValue=CT": "1",
            "ScheduledStationGeographicLocationCodeSequence.CodeValue=R2": "2",
            "ScheduledHumanPerformersSequence.HumanPerformerCodeSequence.CodeValue=DW": "1",
            "ScheduledHumanPerformersSequence.HumanPerformerName=no*": "2",
            "ScheduledWorkitemCodeSequence.CodeValue=SEG&ScheduledWorkitemCodeSequence.CodingSchemeDesignator=99TEST": "1",
            "ScheduledWorkitemCodeSequence.CodeValue=SEG&ScheduledWorkitemCodeSequence.CodingSchemeDesignator=DCM": "",
            "ScheduledWorkitemCodeSequence.CodeValue=": "12",
        },
    )


@pytest.mark.distributed
@pytest.mark.requirement("W-049")
def test_times_match_by_meaning_and_in_ranges_whatever_their_offset(pair: Pair) -> None:
    check(
        pair,
        {
            "ScheduledProcedureStepStartDateTime=20260110110000": "1",
            "ScheduledProcedureStepStartDateTime=20260110110000-20260110110001": "1",
            "ScheduledProcedureStepStartDateTime=20260110120000%2B0100": "1",
            "ScheduledProcedureStepStartDateTime=20260110-0500": "",
            "ScheduledProcedureStepStartDateTime=-20260131": "1",
            "ScheduledProcedureStepStartDateTime=20260201-": "2",
            "ExpectedCompletionDateTime=20260101-20260331": "12",
            "ExpectedCompletionDateTime=20260210140000": "2",
        },
    )
    assert pair.worklist.dicomweb.get("/workitems?ScheduledProcedureStepStartDateTime=2026*", JSON).status_code == 400


@pytest.mark.distributed
@pytest.mark.requirement("W-051")
def test_patient_and_admission_match(pair: Pair) -> None:
    check(
        pair,
        {
            "PatientName=muller%5Eanna": "1",
            "PatientName=M*": "1",
            "PatientID=PAT-2": "2",
            "PatientID=PAT-%3F": "12",
            "PatientID=pat-2": "",
            "IssuerOfPatientID=HOSP-1": "1",
            "PatientBirthDate=19800203": "2",
            "PatientBirthDate=19700101-19791231": "1",
            "PatientSex=F": "1",
            "AdmissionID=ADM-2": "2",
            "IssuerOfAdmissionIDSequence.UniversalEntityIDType=ISO": "1",
            "IssuerOfAdmissionIDSequence.LocalNamespaceEntityID=LOCAL-1": "1",
            "IssuerOfAdmissionIDSequence.LocalNamespaceEntityID=LOCAL-2": "",
            "IssuerOfAdmissionIDSequence.LocalNamespaceEntityID=L*&IssuerOfAdmissionIDSequence.UniversalEntityID=1.2.3": "1",
            'IssuerOfAdmissionIDSequence.LocalNamespaceEntityID=""&emptyvaluematching=true': "2",
        },
    )


@pytest.mark.distributed
@pytest.mark.requirement("W-052")
def test_the_request_and_what_is_replaced_match(pair: Pair) -> None:
    check(
        pair,
        {
            "ReferencedRequestSequence.AccessionNumber=ACC-1": "1",
            "ReferencedRequestSequence.IssuerOfAccessionNumberSequence.UniversalEntityIDType=ISO": "1",
            "ReferencedRequestSequence.IssuerOfAccessionNumberSequence.LocalNamespaceEntityID=RIS%3F": "1",
            "ReferencedRequestSequence.RequestedProcedureID=RP-2": "2",
            "ReferencedRequestSequence.RequestingService=S*": "12",
            "ReferencedRequestSequence.AccessionNumber=ACC-1&ReferencedRequestSequence.RequestedProcedureID=RP-1": "1",
            "ReferencedRequestSequence.AccessionNumber=ACC-1&ReferencedRequestSequence.RequestedProcedureID=RP-2": "",
            "ReplacedProcedureStepSequence.ReferencedSOPInstanceUID=1.2.3.4": "1",
        },
    )


@pytest.mark.requirement("W-046")
def test_flags_of_matching_and_lists_mean_what_they_mean_in_the_studies_search(pair: Pair) -> None:
    check(
        pair,
        {
            'PatientComments=""&emptyvaluematching=true': "12",
            'PatientID=""&emptyvaluematching=true': "",
            f"SOPInstanceUID={pair.first},{pair.second}": "12",
            f"SOPInstanceUID={pair.first}%5C1.2": "1",
            "ReplacedProcedureStepSequence.ReferencedSOPInstanceUID=9,1.2.3.4": "1",
        },
    )
    response = pair.worklist.dicomweb.get(f"/workitems?WorklistLabel={pair.label}&fuzzymatching=true", JSON)
    assert "fuzzymatching" in response.headers["warning"]
    response = pair.worklist.dicomweb.get(
        f"/workitems?WorklistLabel={pair.label}&ScheduledProcessingParametersSequence.ValueType=TEXT", JSON
    )
    assert "ScheduledProcessingParametersSequence" in response.headers["warning"]
    assert len(response.json()) == 2


@pytest.mark.requirement("W-053")
def test_a_row_has_every_return_key_of_type_1_and_2_and_others_where_they_have_a_value_or_are_asked_for(worklist: Worklist) -> None:
    plain = worklist.created()
    special = worklist.created(x00102000=text("LO", "Latex"), x001021C0=text("US", 4), x00400400=text("LT", "a comment"))
    (row,) = worklist.dicomweb.search(f"/workitems?SOPInstanceUID={plain}", headers={"Cache-Control": "no-cache"})
    assert set(RETURN_KEYS.split()) <= set(row)
    assert row["00081080"] == {"vr": "LO"}
    assert "00102000" not in row
    (row,) = worklist.dicomweb.search(f"/workitems?SOPInstanceUID={special}", headers={"Cache-Control": "no-cache"})
    assert set(RETURN_KEYS.split()) <= set(row)
    assert (value(row, "00102000"), value(row, "001021C0")) == ("Latex", 4)
    assert "00400400" not in row
    for query in ("includefield=00400400", "includefield=all"):
        (row,) = worklist.dicomweb.search(f"/workitems?SOPInstanceUID={special}&{query}", headers={"Cache-Control": "no-cache"})
        assert value(row, "00400400") == "a comment"
    assert set(row) == set(worklist.get(special))


@pytest.mark.distributed
@pytest.mark.requirement("W-053")
def test_what_was_performed_is_matched_and_returned(worklist: Worklist) -> None:
    name = f"S{instances.new_uid()[-12:]}"
    uid, transaction = worklist.claimed()
    change = performed()
    change[PERFORMED]["Value"][0]["00404028"] = code(name, name)
    assert worklist.update(uid, change, transaction).status_code == 200
    key = "UnifiedProcedureStepPerformedProcedureSequence.PerformedStationNameCodeSequence.CodeValue"
    assert worklist.found(f"{key}={name}") == [uid]
    (row,) = worklist.dicomweb.search(f"/workitems?SOPInstanceUID={uid}", headers={"Cache-Control": "no-cache"})
    assert value(row[PERFORMED]["Value"][0]["00404028"]["Value"][0], "00080104") == name


@pytest.mark.requirement("W-054")
def test_the_transaction_uid_is_neither_key_nor_field(worklist: Worklist) -> None:
    for query in ("TransactionUID=1.2", "includefield=00081195", "ReferencedRequestSequence.00081195=1.2"):
        assert worklist.dicomweb.get(f"/workitems?{query}", JSON).status_code == 400


@pytest.mark.requirement("W-055")
def test_a_search_that_asks_too_much_is_413(worklist: Worklist) -> None:
    worklist.create(workitem())
    response = worklist.dicomweb.get("/workitems?offset=100001", JSON)
    assert response.status_code == 413
    assert "100000" in response.json()["message"]


@pytest.mark.distributed
@pytest.mark.requirement("W-055", "W-046")
def test_a_page_tells_how_many_more_there_are(worklist: Worklist) -> None:
    name = f"L{instances.new_uid()[-12:]}"
    uids = [worklist.created(x00741202=text("LO", name), x00404005=text("DT", f"2026010{day}")) for day in (1, 2, 3)]
    now = {"Cache-Control": "no-cache"}
    response = worklist.dicomweb.get(f"/workitems?WorklistLabel={name}&limit=1&offset=1", JSON, now)
    assert [value(row, "00080018") for row in response.json()] == [uids[1]]
    assert response.headers["warning"].endswith("There are 1 additional results that can be requested")
    assert worklist.dicomweb.get(f"/workitems?WorklistLabel={name}&limit=1&offset=3", JSON, now).status_code == 204
