"""The Worklist service (PS3.18 chapter 11, PS3.4 Annex CC): workitems, their states and locks."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import instances, native_xml
from tests.support.dicomweb import JSON, XML, DicomWeb, parts_of, related, value
from tests.support.suite import Suite
from tests.support.workitems import (
    PERFORMED,
    PROGRESS,
    READINESS,
    STATE,
    TRANSACTION_UID,
    UPS_PUSH,
    Worklist,
    code,
    document,
    new_ae_title,
    performed,
    workitem,
)

INCONSISTENT = "The submitted request is inconsistent with the state of the UPS Instance."


@pytest.fixture
def worklist(dicomweb: DicomWeb) -> Worklist:
    """The Worklist service of the suite."""
    return Worklist(dicomweb)


def warning(response) -> str:  # type: ignore[no-untyped-def]
    """Return the text of the Warning header behind `299 <service>: `."""
    return str(response.headers.get("warning", "")).partition(": ")[2]


@pytest.mark.requirement("W-001", "W-011", "W-010")
def test_a_workitem_is_created_scheduled_where_location_says(worklist: Worklist) -> None:
    uid, response = worklist.create()
    assert response.status_code == 201
    assert response.headers["location"] == f"{worklist.dicomweb.url}/workitems/{uid}"
    answer = worklist.dicomweb.get(response.headers["location"], JSON)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == JSON
    (found,) = answer.json()
    assert value(found, STATE) == "SCHEDULED"
    assert value(found, "00741204") == "Segment liver"
    assert value(found, "00080018") == uid


@pytest.mark.requirement("W-002")
def test_the_uid_may_stand_in_the_data_set(worklist: Worklist) -> None:
    uid = instances.new_uid()
    response = worklist.send("POST", "/workitems", workitem(x00080018={"vr": "UI", "Value": [uid]}))
    assert response.status_code == 201
    assert value(worklist.get(uid), STATE) == "SCHEDULED"
    assert worklist.send("POST", "/workitems", workitem()).status_code == 400


@pytest.mark.requirement("W-003")
def test_a_uid_that_is_there_is_a_conflict(worklist: Worklist) -> None:
    uid = worklist.created()
    assert worklist.create(workitem(x00741204={"vr": "LO", "Value": ["Another"]}), uid)[1].status_code == 409
    assert value(worklist.get(uid), "00741204") == "Segment liver"


@pytest.mark.requirement("W-004")
@pytest.mark.parametrize("tag", ["00741200", "00741204", "00404005", "00404041"])
def test_a_missing_attribute_of_type_1_is_refused(worklist: Worklist, tag: str) -> None:
    for element in (None, {"vr": "LO"}):
        uid, response = worklist.create(workitem(**{f"x{tag}": element}))
        assert response.status_code == 400
        assert response.text
        assert worklist.dicomweb.get(f"/workitems/{uid}", JSON).status_code == 404


@pytest.mark.requirement("W-005", "W-006", "W-007")
@pytest.mark.parametrize(
    ("tag", "element"),
    [
        pytest.param(STATE, {"vr": "CS", "Value": ["IN PROGRESS"]}, id="another state"),
        pytest.param(STATE, {"vr": "CS", "Value": ["DONE"]}, id="no state"),
        pytest.param(TRANSACTION_UID, {"vr": "UI", "Value": ["1.2.3"]}, id="a Transaction UID"),
        pytest.param(PROGRESS, {"vr": "SQ", "Value": [{"00741004": {"vr": "DS", "Value": ["1"]}}]}, id="progress"),
        pytest.param("00741216", performed()["00741216"], id="performed procedure"),
        pytest.param("00741200", {"vr": "CS", "Value": ["URGENT"]}, id="no priority"),
    ],
)
def test_a_workitem_that_is_not_as_it_begins_is_refused(worklist: Worklist, tag: str, element: dict[str, object]) -> None:
    assert worklist.create(workitem(**{f"x{tag}": element}))[1].status_code == 400


@pytest.mark.requirement("W-008", "W-009")
def test_the_server_fills_what_is_its_own_and_says_so(worklist: Worklist) -> None:
    uid, response = worklist.create(workitem(x00741202={"vr": "LO"}))
    assert response.status_code == 201
    assert warning(response) == "The Workitem was created with modifications."
    found = worklist.get(uid)
    assert value(found, "00080016") == UPS_PUSH
    assert value(found, "00741202")
    assert len(value(found, "00404010")) >= 14


@pytest.mark.requirement("W-012", "W-054")
def test_the_transaction_uid_never_comes_back(worklist: Worklist) -> None:
    uid, transaction = worklist.claimed()
    assert transaction not in worklist.dicomweb.get(f"/workitems/{uid}", JSON).text
    assert transaction not in worklist.dicomweb.get(f"/workitems?00080018={uid}&includefield=all", JSON, {"Cache-Control": "no-cache"}).text
    assert worklist.dicomweb.get(f"/workitems?TransactionUID={transaction}", JSON).status_code == 400


@pytest.mark.requirement("W-014", "W-022")
def test_a_scheduled_workitem_is_updated_without_a_transaction_uid(worklist: Worklist) -> None:
    uid = worklist.created()
    before = worklist.get(uid)
    response = worklist.update(uid, {"00741204": {"vr": "LO", "Value": ["Segment spleen"]}})
    assert response.status_code == 200
    after = worklist.get(uid)
    assert value(after, "00741204") == "Segment spleen"
    assert value(after, "00404010") >= value(before, "00404010")
    assert value(after, "00741202") == value(before, "00741202")


@pytest.mark.requirement("W-015", "W-016", "W-024")
def test_a_claimed_workitem_is_updated_by_its_owner_only(worklist: Worklist) -> None:
    uid, transaction = worklist.claimed()
    change = {"00741204": {"vr": "LO", "Value": ["changed"]}}
    for wrong in ("", instances.new_uid()):
        response = worklist.update(uid, change, wrong)
        assert response.status_code == 400
        assert warning(response)
        assert value(worklist.get(uid), "00741204") == "Segment liver"
    assert worklist.update(uid, change, transaction).status_code == 200
    assert value(worklist.get(uid), "00741204") == "changed"


@pytest.mark.requirement("W-017")
def test_a_final_workitem_is_not_updated(worklist: Worklist) -> None:
    uid, transaction = worklist.claimed()
    assert worklist.change_state(uid, "CANCELED", transaction).status_code == 200
    assert worklist.update(uid, {"00741204": {"vr": "LO", "Value": ["changed"]}}, transaction).status_code == 400


@pytest.mark.requirement("W-018", "W-019", "W-021")
@pytest.mark.parametrize(
    ("tag", "element"),
    [
        (STATE, {"vr": "CS", "Value": ["IN PROGRESS"]}),
        ("00100010", {"vr": "PN", "Value": [{"Alphabetic": "Other^Name"}]}),
        ("00080018", {"vr": "UI", "Value": ["1.2.3"]}),
    ],
)
def test_an_update_with_an_attribute_that_may_not_be_set_changes_nothing(worklist: Worklist, tag: str, element: dict[str, object]) -> None:
    uid = worklist.created()
    before = worklist.get(uid)
    response = worklist.update(uid, {tag: element, "00741204": {"vr": "LO", "Value": ["changed"]}})
    assert response.status_code == 400
    assert worklist.get(uid) == before


@pytest.mark.requirement("W-020")
def test_a_sequence_is_replaced_as_a_whole(worklist: Worklist) -> None:
    uid = worklist.created(x00404018=code("First"))
    assert worklist.update(uid, {"00404018": code("Second")}).status_code == 200
    items = worklist.get(uid)["00404018"]["Value"]
    assert [value(item, "00080104") for item in items] == ["Second"]


@pytest.mark.requirement("W-025", "W-037")
def test_a_claim_makes_it_in_progress_without_a_payload(worklist: Worklist) -> None:
    uid = worklist.created()
    response = worklist.change_state(uid, "IN PROGRESS", instances.new_uid())
    assert (response.status_code, response.content) == (200, b"")
    assert value(worklist.get(uid), STATE) == "IN PROGRESS"


@pytest.mark.requirement("W-026")
def test_a_claim_without_a_transaction_uid_is_refused(worklist: Worklist) -> None:
    uid = worklist.created()
    response = worklist.change_state(uid, "IN PROGRESS")
    assert response.status_code == 400
    assert warning(response) == "The Transaction UID is missing."
    assert value(worklist.get(uid), STATE) == "SCHEDULED"


@pytest.mark.requirement("W-027", "W-034")
def test_a_second_claim_with_another_transaction_uid_is_refused(worklist: Worklist) -> None:
    uid, _ = worklist.claimed()
    response = worklist.change_state(uid, "IN PROGRESS", instances.new_uid())
    assert response.status_code == 400
    assert warning(response) == "The Transaction UID is incorrect."


@pytest.mark.requirement("W-028")
def test_of_many_claims_at_once_exactly_one_wins(worklist: Worklist) -> None:
    uid = worklist.created()
    claims = [instances.new_uid() for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda transaction: worklist.change_state(uid, "IN PROGRESS", transaction).status_code, claims))
    assert sorted(answers) == [200] + [400] * 15
    winner = claims[answers.index(200)]
    assert worklist.update(uid, {"00741204": {"vr": "LO", "Value": ["mine"]}}, winner).status_code == 200
    loser = claims[answers.index(400)]
    assert worklist.update(uid, {"00741204": {"vr": "LO", "Value": ["theirs"]}}, loser).status_code == 400
    assert value(worklist.get(uid), "00741204") == "mine"


@pytest.mark.requirement("W-029", "W-030")
def test_transitions_that_do_not_exist_are_conflicts(worklist: Worklist) -> None:
    uid, transaction = worklist.claimed()
    response = worklist.change_state(uid, "SCHEDULED", transaction)
    assert response.status_code == 409
    assert warning(response) == INCONSISTENT
    assert worklist.change_state(uid, "IN PROGRESS", transaction).status_code == 409
    scheduled = worklist.created()
    for state in ("COMPLETED", "CANCELED"):
        assert worklist.change_state(scheduled, state, instances.new_uid()).status_code == 409
        assert value(worklist.get(scheduled), STATE) == "SCHEDULED"


@pytest.mark.requirement("W-031", "W-032")
def test_completed_needs_what_was_performed(worklist: Worklist) -> None:
    uid, transaction = worklist.claimed()
    response = worklist.change_state(uid, "COMPLETED", transaction)
    assert response.status_code == 409
    assert value(worklist.get(uid), STATE) == "IN PROGRESS"
    assert worklist.update(uid, performed(), transaction).status_code == 200
    assert worklist.change_state(uid, "COMPLETED", transaction).status_code == 200
    assert value(worklist.get(uid), STATE) == "COMPLETED"


@pytest.mark.requirement("W-033")
def test_canceled_by_its_owner_gets_the_time_of_cancellation(worklist: Worklist) -> None:
    uid, transaction = worklist.claimed()
    assert worklist.change_state(uid, "CANCELED", transaction).status_code == 200
    found = worklist.get(uid)
    assert value(found, STATE) == "CANCELED"
    assert len(value(found[PROGRESS]["Value"][0], "00404052")) >= 14


@pytest.mark.requirement("W-035", "W-036")
def test_the_same_final_state_again_is_a_warning_and_the_other_a_conflict(worklist: Worklist) -> None:
    canceled, transaction = worklist.claimed()
    worklist.change_state(canceled, "CANCELED", transaction)
    response = worklist.change_state(canceled, "CANCELED", transaction)
    assert response.status_code == 200
    assert warning(response) == "The UPS is already in the requested state of CANCELED."
    assert worklist.change_state(canceled, "COMPLETED", transaction).status_code == 409
    completed, transaction = worklist.claimed()
    worklist.update(completed, performed(), transaction)
    worklist.change_state(completed, "COMPLETED", transaction)
    response = worklist.change_state(completed, "COMPLETED", transaction)
    assert response.status_code == 200
    assert warning(response) == "The UPS is already in the requested state of COMPLETED."
    assert worklist.change_state(completed, "CANCELED", transaction).status_code == 409


def test_a_workitem_that_is_not_there_is_not_found(worklist: Worklist) -> None:
    nobody = instances.new_uid()
    assert worklist.dicomweb.get(f"/workitems/{nobody}", JSON).status_code == 404
    assert worklist.update(nobody, {"00741204": {"vr": "LO", "Value": ["x"]}}).status_code == 404
    assert worklist.change_state(nobody, "IN PROGRESS", instances.new_uid()).status_code == 404
    assert worklist.subscribe(nobody, "SOMEBODY").status_code == 404


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[1]", b"[{},{}]", b'[{"00741204":"x"}]', b'[{"0074120":{"vr":"LO"}}]'])
def test_a_payload_that_is_no_workitem_is_refused_with_a_sentence(worklist: Worklist, body: bytes) -> None:
    response = worklist.dicomweb.request("POST", f"/workitems?{instances.new_uid()}", JSON, {"Content-Type": JSON}, content=body)
    assert response.status_code == 400
    assert len(response.json()["message"]) > 10


def test_another_content_type_is_refused(worklist: Worklist) -> None:
    response = worklist.dicomweb.request("POST", f"/workitems?{instances.new_uid()}", JSON, {"Content-Type": "text/plain"}, content=b"[]")
    assert response.status_code == 415


@pytest.mark.requirement("W-089")
def test_a_code_item_without_meaning_or_scheme_is_refused(worklist: Worklist) -> None:
    bad = {"vr": "SQ", "Value": [{"00080100": {"vr": "SH", "Value": ["C1"]}}]}
    assert worklist.create(workitem(x00404018=bad))[1].status_code == 400


@pytest.mark.distributed
@pytest.mark.requirement("W-046")
def test_workitems_are_searched_matched_paged_and_return_more_fields(worklist: Worklist) -> None:
    label = f"L{instances.new_uid()[-12:]}"
    uids = [
        worklist.created(x00741202={"vr": "LO", "Value": [label]}, x00741200={"vr": "CS", "Value": [priority]})
        for priority in ("HIGH", "LOW", "LOW")
    ]
    now = {"Cache-Control": "no-cache"}

    def found(query: str) -> list[str]:
        response = worklist.dicomweb.get(f"/workitems?WorklistLabel={label}&{query}", JSON, now)
        return [value(row, "00080018") for row in response.json()] if response.status_code == 200 else []

    assert set(found("")) == set(uids)
    assert found("ScheduledProcedureStepPriority=HIGH") == uids[:1]
    assert set(found("00741200=LOW")) == set(uids[1:])
    pages = [found(f"limit=1&offset={offset}") for offset in range(4)]
    assert [len(page) for page in pages] == [1, 1, 1, 0]
    assert {page[0] for page in pages[:3]} == set(uids)
    response = worklist.dicomweb.get(f"/workitems?WorklistLabel={label}&includefield=CommentsOnTheScheduledProcedureStep", JSON, now)
    assert all("00400400" in row for row in response.json())


@pytest.mark.distributed
@pytest.mark.requirement("W-056")
def test_a_search_with_no_cache_sees_every_change_answered_before(worklist: Worklist) -> None:
    uid, transaction = worklist.claimed()
    for number in range(5):
        assert worklist.update(uid, {"00741204": {"vr": "LO", "Value": [f"step {number}"]}}, transaction).status_code == 200
        (row,) = worklist.dicomweb.search(f"/workitems?SOPInstanceUID={uid}", headers={"Cache-Control": "no-cache"})
        assert value(row, "00741204") == f"step {number}"
        assert value(row, STATE) == "IN PROGRESS"


@pytest.mark.distributed
@pytest.mark.requirement("W-050", "W-049")
def test_workitems_are_found_by_state_readiness_and_start(worklist: Worklist) -> None:
    label = f"L{instances.new_uid()[-12:]}"
    first = worklist.created(x00741202={"vr": "LO", "Value": [label]}, x00404011={"vr": "DT", "Value": ["20260101130000"]})
    second, _ = worklist.claimed(
        x00741202={"vr": "LO", "Value": [label]},
        x00404005={"vr": "DT", "Value": ["20260301120000"]},
        x00404011={"vr": "DT", "Value": ["20260301130000"]},
        x00404041={"vr": "CS", "Value": ["INCOMPLETE"]},
    )
    for query, expected in {
        "ProcedureStepState=SCHEDULED": first,
        "ProcedureStepState=IN%20PROGRESS": second,
        "InputReadinessState=INCOMPLETE": second,
        "InputReadinessState=READY": first,
        "ScheduledProcedureStepStartDateTime=20260201-": second,
        "ScheduledProcedureStepStartDateTime=-20260201": first,
        "ScheduledProcedureStepStartDateTime=20260101-20260102": first,
        "ExpectedCompletionDateTime=20260301-20260302": second,
    }.items():
        rows = worklist.dicomweb.search(f"/workitems?WorklistLabel={label}&{query}", headers={"Cache-Control": "no-cache"})
        assert [value(row, "00080018") for row in rows] == [expected], query


@pytest.mark.distributed
@pytest.mark.requirement("W-047")
def test_workitems_are_found_by_uid_priority_and_labels(worklist: Worklist) -> None:
    label = f"L{instances.new_uid()[-12:]}"
    uid = worklist.created(x00741202={"vr": "LO", "Value": [label]}, x00741204={"vr": "LO", "Value": [f"step {label}"]})
    for query in (
        f"SOPInstanceUID={uid}",
        f"WorklistLabel={label}",
        f"ProcedureStepLabel=step%20{label}",
        f"WorklistLabel={label}&ScheduledProcedureStepPriority=MEDIUM",
    ):
        rows = worklist.dicomweb.search(f"/workitems?{query}", headers={"Cache-Control": "no-cache"})
        assert [value(row, "00080018") for row in rows] == [uid], query


@pytest.mark.requirement("W-055")
def test_a_search_without_matches_is_204_and_a_bad_one_400(worklist: Worklist) -> None:
    assert worklist.dicomweb.get(f"/workitems?WorklistLabel={instances.new_uid()}", JSON).status_code == 204
    for query in ("limit=x", "offset=-1", "ScheduledProcedureStepStartDateTime=yesterday", "SOPInstanceUID=1&00080018=2"):
        assert worklist.dicomweb.get(f"/workitems?{query}", JSON).status_code == 400, query


def test_readiness_is_kept_as_it_was_sent(worklist: Worklist) -> None:
    assert value(worklist.get(worklist.created()), READINESS) == "READY"


XML_PART = "application/dicom+xml"


@pytest.mark.requirement("W-010")
@pytest.mark.parametrize(
    "content_type", [XML_PART, f"{XML_PART}; charset=utf-8", f"{XML}; boundary=bb"], ids=["single", "charset", "related"]
)
def test_a_workitem_comes_in_as_xml(worklist: Worklist, content_type: str) -> None:
    uid = instances.new_uid()
    body = document(workitem(x00100010={"vr": "PN", "Value": [{"Alphabetic": "Müller^Anna"}]}, x00404018=code("Segmentation")))
    if "boundary" in content_type:
        body = related([body], "bb", XML_PART)
    response = worklist.dicomweb.request("POST", f"/workitems?{uid}", JSON, {"Content-Type": content_type}, content=body)
    assert response.status_code == 201, response.text
    found = worklist.get(uid)
    assert value(found, "00100010") == {"Alphabetic": "Müller^Anna"}
    assert value(value(found, "00404018"), "00080104") == "Segmentation"
    assert value(found, "00404005") == "20260101120000"


@pytest.mark.requirement("W-010")
def test_every_transaction_takes_xml_and_a_workitem_leaves_as_xml(worklist: Worklist) -> None:
    uid, transaction = worklist.created(x00404018=code("Segmentation")), instances.new_uid()

    def send(method: str, path: str, data_set: dict[str, object]) -> int:
        return worklist.dicomweb.request(method, path, JSON, {"Content-Type": XML_PART}, content=document(data_set)).status_code

    claim = {TRANSACTION_UID: {"vr": "UI", "Value": [transaction]}, STATE: {"vr": "CS", "Value": ["IN PROGRESS"]}}
    assert send("PUT", f"/workitems/{uid}/state", claim) == 200
    assert send("POST", f"/workitems/{uid}?{transaction}", performed()) == 200
    assert worklist.subscribe(uid, new_ae_title()).status_code == 201
    assert send("POST", f"/workitems/{uid}/cancelrequest", {"00741238": {"vr": "LT", "Value": ["no reason"]}}) == 202
    for accept, is_related in ((XML, True), (XML_PART, False)):
        response = worklist.dicomweb.get(f"/workitems/{uid}", accept)
        assert response.status_code == 200
        content = response.content
        if is_related:
            (part,) = parts_of(response)
            assert part.header("Content-Type") == XML_PART
            assert part.header("Content-Location") == f"{worklist.dicomweb.url}/workitems/{uid}"
            content = part.content
        else:
            assert response.headers["content-type"] == XML_PART
        found = native_xml.read(native_xml.checked(content))
        assert TRANSACTION_UID not in found
        assert found["00741204"]["Value"] == ["Segment liver"]
        assert found["00404018"]["Value"][0]["00080104"]["Value"] == ["Segmentation"]
    other = worklist.created(x00404018=code("Segmentation"))
    response = worklist.dicomweb.get(f"/workitems?SOPInstanceUID={uid},{other}", XML, {"Cache-Control": "no-cache"})
    rows = [native_xml.read(native_xml.checked(part.content)) for part in parts_of(response)]
    assert {row["00080018"]["Value"][0] for row in rows} == {uid, other}


@pytest.mark.requirement("W-010")
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (XML_PART, b"<NativeDicomModel>"),
        (XML_PART, b"{}"),
        (XML_PART, b"<!DOCTYPE x [<!ENTITY y 'z'>]><NativeDicomModel/>"),
        (f"{XML}; boundary=bb", related([document(workitem()), document(workitem())], "bb", XML_PART)),
        (f"{XML}; boundary=bb", b"--bb--\r\n"),
        (XML, b"--bb--\r\n"),
    ],
    ids=["not whole", "JSON", "a document type", "two parts", "no part", "no boundary"],
)
def test_xml_that_is_no_workitem_is_refused(worklist: Worklist, content_type: str, body: bytes) -> None:
    uid = instances.new_uid()
    response = worklist.dicomweb.request("POST", f"/workitems?{uid}", JSON, {"Content-Type": content_type}, content=body)
    assert response.status_code == 400
    assert len(response.json()["message"]) > 10
    assert worklist.dicomweb.get(f"/workitems/{uid}", JSON).status_code == 404


@pytest.mark.requirement("W-023")
def test_an_update_tells_what_it_did_not_take(worklist: Worklist) -> None:
    uid = worklist.created()
    label = {"00741204": {"vr": "LO", "Value": ["changed"]}}
    response = worklist.update(uid, {**label, "00404010": {"vr": "DT", "Value": ["20000101"]}})
    assert response.status_code == 200
    assert warning(response) == "The Workitem was updated with modifications."
    assert not value(worklist.get(uid), "00404010").startswith("2000")
    response = worklist.update(uid, {**label, "7FE00010": {"vr": "OW", "InlineBinary": "AAAA"}})
    assert response.status_code == 200
    assert warning(response) == "Requested optional Attributes are not supported."
    found = worklist.get(uid)
    assert "7FE00010" not in found
    assert value(found, "00741204") == "changed"


@pytest.mark.requirement("W-024")
def test_refused_updates_say_why_in_the_words_of_the_standard(worklist: Worklist) -> None:
    change = {"00741204": {"vr": "LO", "Value": ["changed"]}}
    uid, transaction = worklist.claimed()
    for wrong in ("", instances.new_uid()):
        assert warning(worklist.update(uid, change, wrong)) == "The target URI did not reference a claimed Workitem."
    assert worklist.change_state(uid, "CANCELED", transaction).status_code == 200
    response = worklist.update(uid, change, transaction)
    assert warning(response) == "The submitted request is inconsistent with the current state of the Workitem."
    response = worklist.update(worklist.created(), change, transaction)
    assert (response.status_code, warning(response)) == (409, INCONSISTENT)


@pytest.mark.requirement("W-031")
def test_a_refused_completion_has_a_sentence_for_each_missing_attribute(worklist: Worklist) -> None:
    uid, transaction = worklist.claimed()
    change = performed()
    for tag in ("00404028", "00404050", "00404033"):
        present = dict(change[PERFORMED]["Value"][0])
        del present[tag]
        if tag == "00404033":
            assert worklist.update(uid, {PERFORMED: {"vr": "SQ", "Value": [present]}}, transaction).status_code == 400
            continue
        assert worklist.update(uid, {PERFORMED: {"vr": "SQ", "Value": [present]}}, transaction).status_code == 200
        response = worklist.change_state(uid, "COMPLETED", transaction)
        assert (response.status_code, warning(response)) == (409, INCONSISTENT)
        assert f"({tag[:4]},{tag[4:]}) of an item of " in response.json()["message"]


@pytest.mark.requirement("W-039", "W-043")
def test_a_cancel_request_for_a_scheduled_workitem_cancels_it(worklist: Worklist) -> None:
    uid = worklist.created()
    response = worklist.dicomweb.request("POST", f"/workitems/{uid}/cancelrequest", JSON)
    assert (response.status_code, response.content) == (202, b"")
    found = worklist.get(uid)
    assert value(found, STATE) == "CANCELED"
    item = value(found, PROGRESS)
    assert len(value(item, "00404052")) >= 14
    assert value(value(item, "0074100E"), "00080100") == "110513"
    other = worklist.created()
    reasons = {"00741238": {"vr": "LT", "Value": ["Patient left"]}, "0074100E": code("Patient refused")}
    assert worklist.request_cancellation(other, reasons).status_code == 202
    item = value(worklist.get(other), PROGRESS)
    assert value(item, "00741238") == "Patient left"
    assert value(value(item, "0074100E"), "00080104") == "Patient refused"


@pytest.mark.requirement("W-040", "W-041", "W-045")
def test_a_cancel_request_for_a_final_or_an_unknown_workitem(worklist: Worklist) -> None:
    completed, _ = worklist.completed()
    response = worklist.request_cancellation(completed)
    assert (response.status_code, warning(response)) == (409, "The UPS is already COMPLETED.")
    canceled, transaction = worklist.claimed()
    assert worklist.change_state(canceled, "CANCELED", transaction).status_code == 200
    response = worklist.request_cancellation(canceled)
    assert (response.status_code, warning(response)) == (202, "The UPS is already in the requested state of CANCELED.")
    assert worklist.request_cancellation(instances.new_uid()).status_code == 404


@pytest.mark.requirement("W-042", "W-044")
def test_a_cancel_request_for_a_workitem_in_progress_goes_to_whoever_subscribes(own_suite: Callable[..., Suite]) -> None:
    # Not the shared suite: there others may have subscribed to the whole worklist.
    worklist, ae_title = Worklist(own_suite().client()), new_ae_title()
    uid, _ = worklist.claimed()
    response = worklist.request_cancellation(uid)
    assert (response.status_code, warning(response)) == (409, "The performer cannot be contacted.")
    worklist.subscribe(uid, ae_title)
    assert worklist.request_cancellation(uid).status_code == 202
    assert value(worklist.get(uid), STATE) == "IN PROGRESS"


@pytest.mark.requirement("W-088")
def test_accept_and_charset_are_parameters_of_every_transaction(worklist: Worklist) -> None:
    uid = instances.new_uid()
    response = worklist.send("POST", f"/workitems?{uid}&accept=application/dicom%2Bjson&charset=utf-8", workitem())
    assert response.status_code == 201
    assert response.headers["location"].endswith(f"/workitems/{uid}")
    response = worklist.dicomweb.get(f"/workitems/{uid}?accept=application/dicom%2Bxml", "*/*")
    assert response.headers["content-type"] == XML_PART
    response = worklist.dicomweb.get(f"/workitems/{uid}?accept=application/dicom%2Bjson&charset=utf-8", f"{XML}, {JSON}")
    assert response.headers["content-type"] == JSON
    assert worklist.dicomweb.get(f"/workitems/{uid}", "image/png").status_code == 406
    response = worklist.dicomweb.get(f"/workitems?SOPInstanceUID={uid}&accept=application/dicom%2Bjson&charset=utf-8", "*/*")
    assert response.status_code in (200, 204)


@pytest.mark.requirement("W-090")
def test_an_update_in_another_character_set_keeps_all_text(worklist: Worklist) -> None:
    japanese = {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}
    uid = worklist.created(x00100010={"vr": "PN", "Value": [japanese]}, x00741202={"vr": "LO", "Value": ["Ωμέγα"]})
    change = {"00080005": {"vr": "CS", "Value": ["ISO_IR 100"]}, "00741204": {"vr": "LO", "Value": ["Größe prüfen"]}}
    for encoding, content_type in (("ISO-8859-1", XML_PART), ("ISO-8859-1", f"{XML_PART}; charset=iso-8859-1")):
        body = document(change, encoding)
        assert "Größe".encode("latin-1") in body
        response = worklist.dicomweb.request("POST", f"/workitems/{uid}", JSON, {"Content-Type": content_type}, content=body)
        assert response.status_code == 200, response.text
        found = worklist.get(uid)
        assert value(found, "00741204") == "Größe prüfen"
        assert value(found, "00100010") == japanese
        assert value(found, "00741202") == "Ωμέγα"
        assert value(found, "00080005") == "ISO_IR 192"
    assert worklist.found("ProcedureStepLabel=Gr%C3%B6%C3%9Fe%20pr%C3%BCfen&WorklistLabel=%CE%A9%CE%BC%CE%AD%CE%B3%CE%B1") == [uid]


@pytest.mark.requirement("W-045", "W-038")
def test_every_transaction_on_an_unknown_workitem_is_not_found(worklist: Worklist) -> None:
    nobody = instances.new_uid()
    assert worklist.request_cancellation(nobody).status_code == 404
    assert worklist.change_state(nobody, "IN PROGRESS", instances.new_uid()).status_code == 404
    assert worklist.update(nobody, {"00741204": {"vr": "LO", "Value": ["x"]}}).status_code == 404
    assert worklist.unsubscribe(nobody, new_ae_title()).status_code == 404
