"""What each transaction changes in a workitem."""

import json
from typing import Any

import pytest

from gantry.events.v1.events_pb2 import WorkitemState
from gantry_standard import errors
from gantry_standard.workitems import ATTRIBUTES, below
from gantry_workflow.workitems import dataset, transactions
from gantry_workflow.workitems.transactions import Decision, StateRequest
from tests.support.worklist import PERFORMED, PROCEDURE, code, v
from tests.support.worklist import workitem as template

UID, LOCK = "1.2.3", "2.25.7"


def parsed(found: dict[str, Any]) -> dict[str, Any]:
    return dataset.parse(json.dumps(found).encode())


def created(strict: bool = True, **changes: Any) -> Decision:
    return transactions.create(None, UID, parsed(template(**changes)), strict)


def scheduled(**changes: Any) -> WorkitemState:
    state = created(**changes).state
    assert state is not None
    return transactions.with_sequences(state, 5)


def after(decision: Decision) -> WorkitemState:
    assert decision.state is not None
    return decision.state


def in_progress() -> WorkitemState:
    return after(transactions.change_state(scheduled(), UID, StateRequest("IN PROGRESS", LOCK)))


def content(state: WorkitemState) -> dict[str, Any]:
    return dict(json.loads(state.dicom_json))


TYPE_1 = [row for row in below(()) if row.create.startswith("1/")]
TYPE_2 = [row for row in below(()) if row.create.startswith("2/")]
NOT_ALLOWED = [row for row in below(()) if row.set == "NA"]


@pytest.mark.parametrize("row", TYPE_1, ids=[f"CC.2.5-3 {row.keyword}" for row in TYPE_1])
def test_an_attribute_of_type_1_must_have_a_value(row: Any) -> None:
    for missing in (None, {"vr": template()[row.tag]["vr"]}):
        with pytest.raises(errors.BadRequest, match=row.tag[:4]):
            created(**{f"t{row.tag}": missing})


@pytest.mark.parametrize("row", TYPE_2, ids=[f"CC.2.5-3 {row.keyword}" for row in TYPE_2])
def test_an_attribute_of_type_2_is_added_empty_or_refused_when_strict(row: Any) -> None:
    left_out = {f"t{row.tag}": None}
    with pytest.raises(errors.BadRequest, match="must be present"):
        created(strict=True, **left_out)
    decision = created(strict=False, **left_out)
    assert decision.warnings == ("The Workitem was created with modifications.",)
    if row.keyword not in ("TransactionUID", "WorklistLabel"):
        assert content(after(decision))[row.tag] == {"vr": template()[row.tag]["vr"]}


def test_the_server_fills_in_what_is_its_own() -> None:
    found = content(scheduled(t00741202=v("LO"), t00404010=v("DT", "19990101")))
    assert found["00741202"] == v("LO", "Worklist")
    assert found["00080016"] == v("UI", "1.2.840.10008.5.1.4.34.6.1")
    assert found["00080018"] == v("UI", UID)
    assert found["00404010"]["Value"][0] > "2026"
    assert found["00080005"] == v("CS", "ISO_IR 192")
    assert "00081195" not in found


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"t00741000": v("CS", "IN PROGRESS")}, "SCHEDULED"),
        ({"t00741000": v("CS", "DONE")}, "not DONE"),
        ({"t00741200": v("CS", "URGENT")}, "HIGH, MEDIUM, LOW"),
        ({"t00404041": v("CS", "SOON")}, "expected one of"),
        ({"t00081195": v("UI", "1.2")}, "must be empty"),
        ({"t00741002": v("SQ", {"00741004": v("DS", "1")})}, "must be empty"),
        ({"t00741216": v("SQ", {})}, "must be empty"),
        ({"t00404018": v("SQ", {"00080100": v("SH", "A"), "00080104": v("LO", "m")})}, "Coding Scheme"),
        ({"t00404018": v("SQ", {"00080100": v("SH", "A"), "00080102": v("SH", "m")})}, "Code Meaning"),
        ({"t00404018": v("SQ", {"00080104": v("LO", "m")})}, "Code Value"),
        ({"t00404034": v("SQ", {"00404009": v("SQ", PROCEDURE)})}, "0040,4037"),
        ({"t0040A370": v("SQ", {"00080050": v("SH", "A1")})}, "0020,000D"),
        ({"t00001000": v("UI", "1.2")}, "0000,1000"),
        ({"t00404005": v("DT", "tomorrow")}, "VR DT"),
        ({"t00741204": v("LO", "x" * 65)}, "VR LO"),
        ({"t00741204": {"vr": "LO", "Value": ["a"], "BulkDataURI": "b"}}, "expected one of them"),
        ({"t00741204": v("SQ", {})}, "expected LO"),
        ({"t0040402": v("LO", "x")}, "8 hexadecimal digits"),
        ({"t00404018": v("SQ", "text")}, "not a JSON object"),
    ],
)
def test_a_creation_that_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(errors.BadRequest, match=why):
        created(**changes)


def test_refusals_never_quote_a_value_of_the_patient() -> None:
    with pytest.raises(errors.BadRequest) as refused:
        created(t00100020=v("LO", "SECRET" * 20))
    assert "SECRET" not in refused.value.message


def test_creation_is_an_assignment_when_station_or_performer_is_given() -> None:
    assert scheduled().change.assigned
    assert not scheduled(t00404025=v("SQ")).change.assigned


def test_an_update_replaces_whole_sequences_and_says_what_changed() -> None:
    state = in_progress()
    changes = {"00741002": v("SQ", {"00741004": v("DS", "10")}), "00404041": v("CS", "UNAVAILABLE"), "00404025": v("SQ", code("S2", "2"))}
    updated = after(transactions.update(state, UID, LOCK, parsed(changes)))
    assert (updated.change.progress_changed, updated.change.input_readiness_changed, updated.change.assigned) == (True, True, True)
    assert content(updated)["00741002"] == changes["00741002"]
    assert content(updated)["00404025"] == changes["00404025"]
    assert content(updated)["00404010"]["Value"][0] > content(state)["00404010"]["Value"][0]
    again = after(transactions.update(updated, UID, LOCK, parsed({"00741002": v("SQ", {"00741006": v("ST", "half")})})))
    assert content(again)["00741002"]["Value"] == [{"00741006": v("ST", "half")}]
    assert not again.change.input_readiness_changed


def test_a_repeated_update_changes_nothing_but_its_time() -> None:
    changes = parsed({"00741002": v("SQ", {"00741004": v("DS", "10")})})
    once = after(transactions.update(in_progress(), UID, LOCK, changes))
    twice = after(transactions.update(once, UID, LOCK, changes))
    assert not twice.change.progress_changed
    assert {**content(twice), "00404010": None} == {**content(once), "00404010": None}


@pytest.mark.parametrize("row", NOT_ALLOWED, ids=[f"CC.2.5-3 {row.keyword}" for row in NOT_ALLOWED])
def test_what_an_update_may_not_change(row: Any) -> None:
    element = template().get(row.tag, {"vr": "UI", "Value": ["1.2"]} if row.tag.startswith("0008") else {"vr": "SQ"})
    with pytest.raises(errors.BadRequest, match="cannot be changed"):
        transactions.update(in_progress(), UID, LOCK, parsed({row.tag: element}))


def test_an_update_may_not_empty_what_must_have_a_value() -> None:
    with pytest.raises(errors.BadRequest, match="cannot be made empty"):
        transactions.update(in_progress(), UID, LOCK, parsed({"00741204": v("LO")}))


def test_the_transaction_uid_of_the_payload_must_agree_with_the_query() -> None:
    changes = parsed({"00081195": v("UI", LOCK), "00741204": v("LO", "x")})
    assert "00081195" not in content(after(transactions.update(in_progress(), UID, "", changes)))
    with pytest.raises(errors.BadRequest):
        transactions.update(in_progress(), UID, "2.25.8", changes)


def test_an_update_of_the_modification_time_is_ignored_with_a_warning() -> None:
    decision = transactions.update(in_progress(), UID, LOCK, parsed({"00404010": v("DT", "1999")}))
    assert decision.warnings == ("The Workitem was updated with modifications.",)
    assert content(after(decision))["00404010"]["Value"] != ["1999"]


FINAL = [row for row in ATTRIBUTES if row.final in ("P", "p") and len(row.path) > 1]


@pytest.mark.parametrize("row", FINAL, ids=[f"CC.2.5-3 {row.keyword}" for row in FINAL])
def test_completed_needs_each_attribute_of_the_performed_procedure(row: Any) -> None:
    performed = {tag: element for tag, element in PERFORMED["00741216"]["Value"][0].items() if tag != row.tag}
    state = after(transactions.update(in_progress(), UID, LOCK, parsed({"00741216": v("SQ", performed)}))) if row.final == "P" else None
    if state is None:
        with pytest.raises(errors.BadRequest, match="must be present"):
            transactions.update(in_progress(), UID, LOCK, parsed({"00741216": v("SQ", performed)}))
        return
    with pytest.raises(errors.Conflict, match=row.tag[4:]):
        transactions.change_state(state, UID, StateRequest("COMPLETED", LOCK))


def test_completed_with_everything() -> None:
    state = after(transactions.update(in_progress(), UID, LOCK, parsed(PERFORMED)))
    done = after(transactions.change_state(state, UID, StateRequest("COMPLETED", LOCK)))
    assert done.procedure_step_state == "COMPLETED"
    assert content(done)["00741000"] == v("CS", "COMPLETED")
    assert done.transaction_uid == LOCK


def test_canceled_gets_its_time_and_reason_from_the_server_and_keeps_what_was_given() -> None:
    state = after(transactions.update(in_progress(), UID, LOCK, parsed({"00741002": v("SQ", {"00741004": v("DS", "10")})})))
    item = content(after(transactions.change_state(state, UID, StateRequest("CANCELED", LOCK))))["00741002"]["Value"][0]
    assert item["00404052"]["Value"]
    assert item["00741004"] == v("DS", "10")
    assert item["0074100E"]["Value"][0]["00080100"] == v("SH", "110513")
    given = v("SQ", code("X1", "Because"))
    state = after(transactions.update(state, UID, LOCK, parsed({"00741002": v("SQ", {"0074100E": given})})))
    item = content(after(transactions.change_state(state, UID, StateRequest("CANCELED", LOCK))))["00741002"]["Value"][0]
    assert item["0074100E"] == given


def test_a_cancel_request_of_a_scheduled_workitem_cancels_it() -> None:
    decision = transactions.request_cancellation(scheduled(), UID, parsed({"00741238": v("LT", "no")}), "AE", has_audience=False)
    state = after(decision)
    assert state.procedure_step_state == "CANCELED"
    assert state.change.canceled_through_in_progress
    assert content(state)["00741002"]["Value"][0]["00741238"] == v("LT", "no")


def test_a_deleted_workitem_is_gone() -> None:
    with pytest.raises(errors.Gone):
        transactions.change_state(WorkitemState(deleted=True, procedure_step_state="COMPLETED"), UID, StateRequest("CANCELED", LOCK))


def test_locks_may_be_refused() -> None:
    decision = transactions.subscribe(scheduled(), UID, "AE1", deletion_lock=True, grant_locks=False)
    assert decision.warnings == ("Deletion Lock not granted.",)
    assert not after(decision).subscriptions[0].deletion_lock


def test_a_change_of_state_holds_nothing_else() -> None:
    with pytest.raises(errors.BadRequest):
        transactions.parse_state_request(json.dumps({"00741000": v("CS", "COMPLETED"), "00741204": v("LO", "x")}).encode())
    with pytest.raises(errors.BadRequest):
        transactions.parse_state_request(json.dumps({"00081195": v("UI", LOCK)}).encode())


def test_a_change_keeps_what_it_replaced_that_a_filter_may_look_at() -> None:
    state = scheduled()
    update = parsed({"00741202": v("LO", "Other"), "00102000": v("LO", "Latex"), "00741210": v("SQ", {"0040A160": v("UT", "x" * 1000)})})
    before = json.loads(after(transactions.update(state, UID, "", update)).change.before_json)
    modified = content(state)["00404010"]
    assert before == {"00741202": v("LO", "AI"), "00102000": None, "00404010": modified}
    claimed = after(transactions.change_state(state, UID, StateRequest("IN PROGRESS", LOCK)))
    assert json.loads(claimed.change.before_json)["00741000"] == v("CS", "SCHEDULED")


def test_an_attribute_that_a_workitem_cannot_have_is_left_out_at_every_depth() -> None:
    bulk = {"7FE00010": {"vr": "OW", "InlineBinary": "AAAA"}, "00420011": {"vr": "OB", "BulkDataURI": "http://x/1"}}
    nested = {"0040A370": v("SQ", {**PROCEDURE, **bulk, "0020000D": v("UI", "1.2"), "00081190": v("UR", "http://x")})}
    decision = created(strict=False, **{f"t{tag}": element for tag, element in {**bulk, **nested}.items()})
    assert decision.warnings == (transactions.CREATED_WITH_MODIFICATIONS,)
    found = content(after(decision))
    assert not set(bulk) & set(found)
    (item,) = found["0040A370"]["Value"]
    assert not set(bulk) & set(item)
    assert item["00081190"] == v("UR", "http://x")
    decision = transactions.update(after(decision), UID, "", parsed(bulk))
    assert decision.warnings == (transactions.UNSUPPORTED,)


def test_what_is_sent_is_not_changed_by_what_becomes_of_it() -> None:
    sent = parsed(template(t0040A370=v("SQ", {"0020000D": v("UI", "1.2")})))
    kept = json.dumps(sent)
    for _ in range(2):
        assert transactions.create(None, UID, sent, strict=False).warnings == (transactions.CREATED_WITH_MODIFICATIONS,)
    assert json.dumps(sent) == kept


def test_only_final_workitems_without_locks_become_tombstones() -> None:
    canceled = after(transactions.change_state(in_progress(), UID, StateRequest("CANCELED", LOCK)))
    for state, is_locked in ((None, False), (scheduled(), False), (in_progress(), False), (canceled, True)):
        assert transactions.delete(state, is_locked).state is None
    tombstone = after(transactions.delete(canceled, is_locked=False))
    assert (tombstone.deleted, tombstone.dicom_json, list(tombstone.subscriptions)) == (True, b"", [])
    assert transactions.delete(tombstone, is_locked=False).state is None
    with pytest.raises(errors.Conflict):
        transactions.create(tombstone, UID, parsed(template()), strict=True)
    for change in (
        lambda: transactions.update(tombstone, UID, LOCK, {}),
        lambda: transactions.change_state(tombstone, UID, StateRequest("CANCELED", LOCK)),
        lambda: transactions.request_cancellation(tombstone, UID, {}, "AE", True),
        lambda: transactions.subscribe(tombstone, UID, "AE", False),
    ):
        with pytest.raises(errors.Gone):
            change()
