"""Subscriptions and event reports (PS3.18 §8.10, §11.10–11.13): who hears what, in which order, also after having been away."""

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support import instances
from tests.support.dicomweb import JSON, DicomWeb, value
from tests.support.workitems import FILTERED, GLOBAL, PROGRESS, READINESS, STATE, UPS_PUSH, Worklist, code, listening, new_ae_title

STATE_REPORT, CANCEL_REQUESTED, PROGRESS_REPORT, STATUS_CHANGE, ASSIGNED = 1, 2, 3, 4, 5


def labelled(label: str) -> dict[str, object]:
    """Return the change that gives a new workitem a Worklist Label."""
    return {"x00741202": {"vr": "LO", "Value": [label]}}


def new_label() -> str:
    """Return a Worklist Label that no other workitem has."""
    return f"L{instances.new_uid()[-12:]}"


@pytest.fixture
def worklist(dicomweb: DicomWeb) -> Worklist:
    """The Worklist service of the suite."""
    return Worklist(dicomweb)


@pytest.mark.requirement("W-057", "W-070", "W-079")
def test_a_subscriber_of_a_workitem_gets_its_state_at_once(worklist: Worklist) -> None:
    uid, ae_title = worklist.created(), new_ae_title()
    response = worklist.subscribe(uid, ae_title)
    assert response.status_code == 201
    assert response.headers["content-location"] == f"ws{worklist.dicomweb.url.removeprefix('http')}/subscribers/{ae_title}"
    with listening(worklist.dicomweb, ae_title) as reports:
        report = reports.next_of(uid)
    assert value(report, "00001002") == STATE_REPORT
    assert value(report, STATE) == "SCHEDULED"
    assert value(report, READINESS) == "READY"


@pytest.mark.requirement("W-073", "W-080", "W-081")
def test_a_change_of_state_is_reported_with_what_a_report_must_have(worklist: Worklist) -> None:
    uid, ae_title = worklist.created(), new_ae_title()
    worklist.subscribe(uid, ae_title)
    with listening(worklist.dicomweb, ae_title) as reports:
        first = reports.next_of(uid)
        worklist.change_state(uid, "IN PROGRESS", instances.new_uid())
        report = reports.next_of(uid)
    assert value(report, "00000002") == UPS_PUSH
    assert value(report, "00001000") == uid
    assert value(report, "00001002") == STATE_REPORT
    assert isinstance(value(report, "00000110"), int)
    assert value(report, "00000110") != value(first, "00000110")
    assert report[STATE] == {"vr": "CS", "Value": ["IN PROGRESS"]}
    assert report[READINESS] == {"vr": "CS", "Value": ["READY"]}


@pytest.mark.requirement("W-074", "W-075")
def test_readiness_and_progress_are_reported(worklist: Worklist) -> None:
    uid, ae_title = worklist.created(x00404041={"vr": "CS", "Value": ["INCOMPLETE"]}), new_ae_title()
    worklist.subscribe(uid, ae_title)
    with listening(worklist.dicomweb, ae_title) as reports:
        reports.next_of(uid)
        worklist.update(uid, {READINESS: {"vr": "CS", "Value": ["READY"]}})
        assert value(reports.next_of(uid, STATE_REPORT), READINESS) == "READY"
        transaction = instances.new_uid()
        worklist.change_state(uid, "IN PROGRESS", transaction)
        assert value(reports.next_of(uid, STATE_REPORT), STATE) == "IN PROGRESS"
        worklist.update(uid, {PROGRESS: {"vr": "SQ", "Value": [{"00741004": {"vr": "DS", "Value": ["40"]}}]}}, transaction)
        report = reports.next_of(uid, PROGRESS_REPORT)
    assert float(value(report[PROGRESS]["Value"][0], "00741004")) == 40


@pytest.mark.requirement("W-058", "W-071", "W-072")
def test_a_global_subscriber_hears_of_every_new_workitem_and_its_assignment(worklist: Worklist) -> None:
    ae_title = new_ae_title()
    assert worklist.subscribe(GLOBAL, ae_title).status_code == 201
    with listening(worklist.dicomweb, ae_title) as reports:
        uid = worklist.created(x00404025=code("Workstation 1"))
        kinds = {value(reports.next_of(uid), "00001002"), value(reports.next_of(uid), "00001002")}
        assert kinds == {STATE_REPORT, ASSIGNED}
        worklist.change_state(uid, "IN PROGRESS", instances.new_uid())
        assert value(reports.next_of(uid, STATE_REPORT), STATE) == "IN PROGRESS"


@pytest.mark.distributed
@pytest.mark.requirement("W-068")
def test_a_global_subscription_with_lock_reports_every_workitem_that_is_there(worklist: Worklist) -> None:
    uids, ae_title = {worklist.created() for _ in range(3)}, new_ae_title()
    assert worklist.subscribe(GLOBAL, ae_title, "?deletionlock=true").status_code == 201
    with listening(worklist.dicomweb, ae_title) as reports:
        missing = set(uids)
        while missing:
            missing.discard(value(reports.next(), "00001000"))


@pytest.mark.requirement("W-069")
def test_a_global_subscription_without_lock_reports_only_what_happens_afterwards(worklist: Worklist) -> None:
    uid, ae_title = worklist.created(), new_ae_title()
    worklist.subscribe(GLOBAL, ae_title)
    with listening(worklist.dicomweb, ae_title) as reports:
        assert reports.none_of(uid)
        worklist.change_state(uid, "IN PROGRESS", instances.new_uid())
        assert value(reports.next_of(uid), STATE) == "IN PROGRESS"


@pytest.mark.requirement("W-065")
def test_after_unsubscribing_nothing_comes_and_a_second_time_is_not_found(worklist: Worklist) -> None:
    uid, ae_title = worklist.created(), new_ae_title()
    worklist.subscribe(uid, ae_title)
    with listening(worklist.dicomweb, ae_title) as reports:
        reports.next_of(uid)
        assert worklist.unsubscribe(uid, ae_title).status_code == 200
        assert worklist.unsubscribe(uid, ae_title).status_code == 404
        worklist.change_state(uid, "IN PROGRESS", instances.new_uid())
        assert reports.none_of(uid)


@pytest.mark.requirement("W-066")
def test_unsubscribing_from_the_global_worklist_ends_the_specific_ones_too(worklist: Worklist) -> None:
    uid, ae_title = worklist.created(), new_ae_title()
    worklist.subscribe(GLOBAL, ae_title)
    worklist.subscribe(uid, ae_title)
    with listening(worklist.dicomweb, ae_title) as reports:
        reports.next_of(uid)
        assert worklist.unsubscribe(GLOBAL, ae_title).status_code == 200
        worklist.change_state(uid, "IN PROGRESS", instances.new_uid())
        assert reports.none_of(uid)


@pytest.mark.requirement("W-061")
def test_the_deletion_lock_is_true_or_false(worklist: Worklist) -> None:
    uid, ae_title = worklist.created(), new_ae_title()
    for target in (uid, GLOBAL):
        assert worklist.subscribe(target, ae_title, "?deletionlock=true").status_code == 201
        assert worklist.subscribe(target, ae_title, "?deletionlock=false").status_code == 201
        assert worklist.subscribe(target, ae_title, "?deletionlock=perhaps").status_code == 400


@pytest.mark.requirement("W-064")
def test_a_workitem_that_is_not_there_cannot_be_subscribed_to(worklist: Worklist) -> None:
    assert worklist.subscribe(instances.new_uid(), new_ae_title()).status_code == 404


@pytest.mark.parametrize("ae_title", ["A" * 17, "%20", "A%5CB", "A%09B"], ids=["17 characters", "a space", "a backslash", "a tab"])
def test_an_ae_title_that_is_none_is_refused(worklist: Worklist, ae_title: str) -> None:
    assert worklist.subscribe(GLOBAL, ae_title).status_code == 400


@pytest.mark.parametrize("ae_title", ["A.B", "A%20B", "*", "%3E"])
def test_an_ae_title_may_hold_what_means_something_to_the_backbone(worklist: Worklist, ae_title: str) -> None:
    uid = worklist.created()
    assert worklist.subscribe(uid, ae_title).status_code == 201
    with listening(worklist.dicomweb, ae_title) as reports:
        assert reports.next_of(uid)
    worklist.unsubscribe(uid, ae_title)


@pytest.mark.requirement("W-082")
def test_the_connection_is_upgraded_and_a_plain_get_is_refused(worklist: Worklist) -> None:
    ae_title = new_ae_title()
    with listening(worklist.dicomweb, ae_title) as reports:
        assert reports.connection.response is not None
        assert reports.connection.response.status_code == 101
    assert worklist.dicomweb.get(f"/subscribers/{ae_title}", JSON).status_code == 400
    with pytest.raises(InvalidStatus) as refused, listening(worklist.dicomweb, "A" * 17):
        pass
    assert refused.value.response.status_code == 400


@pytest.mark.requirement("W-083")
def test_each_ae_title_hears_its_own_subscriptions_only(worklist: Worklist) -> None:
    mine, theirs = worklist.created(), worklist.created()
    one, two = new_ae_title(), new_ae_title()
    worklist.subscribe(mine, one)
    worklist.subscribe(theirs, two)
    with listening(worklist.dicomweb, one) as first, listening(worklist.dicomweb, two) as second:
        assert first.next_of(mine)
        assert second.next_of(theirs)
        worklist.change_state(theirs, "IN PROGRESS", instances.new_uid())
        assert second.next_of(theirs)
        assert first.none_of(theirs)


def test_every_connection_of_an_ae_title_hears_every_report(worklist: Worklist) -> None:
    uid, ae_title = worklist.created(), new_ae_title()
    worklist.subscribe(uid, ae_title)
    with listening(worklist.dicomweb, ae_title) as one, listening(worklist.dicomweb, ae_title) as two:
        one.next_of(uid)
        worklist.change_state(uid, "IN PROGRESS", instances.new_uid())
        for reports in (one, two):
            state = value(reports.next_of(uid), STATE)
            while state == "SCHEDULED":
                state = value(reports.next_of(uid), STATE)
            assert state == "IN PROGRESS"


@pytest.mark.requirement("W-084", "W-085")
def test_a_subscriber_that_was_away_gets_what_it_missed_in_order(worklist: Worklist) -> None:
    uid, transaction, ae_title = worklist.created(), instances.new_uid(), new_ae_title()
    worklist.subscribe(uid, ae_title)
    with listening(worklist.dicomweb, ae_title) as reports:
        assert value(reports.next_of(uid), STATE) == "SCHEDULED"
    worklist.change_state(uid, "IN PROGRESS", transaction)
    for number in range(5):
        worklist.update(uid, {PROGRESS: {"vr": "SQ", "Value": [{"00741004": {"vr": "DS", "Value": [str(number)]}}]}}, transaction)
    worklist.change_state(uid, "CANCELED", transaction)
    seen: list[object] = []
    with listening(worklist.dicomweb, ae_title) as reports:
        while "CANCELED" not in seen:
            report = reports.next_of(uid)
            kind = value(report, "00001002")
            seen.append(value(report, STATE) if kind == STATE_REPORT else float(value(report[PROGRESS]["Value"][0], "00741004")))
    order = list(dict.fromkeys(seen))
    assert [step for step in order if step != "SCHEDULED"] == ["IN PROGRESS", 0.0, 1.0, 2.0, 3.0, 4.0, "CANCELED"]
    assert worklist.dicomweb.get(f"/workitems/{uid}", JSON).status_code == 200


@pytest.mark.requirement("D-002", "W-082")
@pytest.mark.parametrize("path", ["/subscribers/{}", "/ws/subscribers/{}", "/?requester={}"])
def test_the_connection_may_be_opened_at_every_path_that_editions_of_the_standard_name(worklist: Worklist, path: str) -> None:
    uid, ae_title = worklist.created(), new_ae_title()
    worklist.subscribe(uid, ae_title)
    with listening(worklist.dicomweb, ae_title, path) as reports:
        assert value(reports.next_of(uid), STATE) == "SCHEDULED"


@pytest.mark.requirement("W-081", "W-072")
def test_an_assignment_is_reported_with_station_performer_and_organization(worklist: Worklist) -> None:
    uid, ae_title = worklist.created(), new_ae_title()
    worklist.subscribe(uid, ae_title)
    performer = {
        "00404009": code("Doctor Who"),
        "00404036": {"vr": "LO", "Value": ["UNIT"]},
        "00404037": {"vr": "PN", "Value": [{"Alphabetic": "Who^D"}]},
    }
    with listening(worklist.dicomweb, ae_title) as reports:
        worklist.update(uid, {"00404025": code("Workstation 1")})
        report = reports.next_of(uid, ASSIGNED)
        assert report["00404025"] == code("Workstation 1")
        assert "00404009" not in report
        worklist.update(uid, {"00404034": {"vr": "SQ", "Value": [performer]}})
        report = reports.next_of(uid, ASSIGNED)
        assert (report["00404025"], report["00404009"]) == (code("Workstation 1"), code("Doctor Who"))
        assert report["00404036"] == {"vr": "LO", "Value": ["UNIT"]}
        assert "00404037" not in report


@pytest.mark.requirement("W-076", "W-042", "W-081")
def test_a_cancel_request_is_reported_with_who_asks_and_why(worklist: Worklist) -> None:
    (uid, _), ae_title = worklist.claimed(), new_ae_title()
    worklist.subscribe(uid, ae_title)
    reasons = {
        "00741238": {"vr": "LT", "Value": ["Patient left"]},
        "0074100E": code("Patient refused"),
        "0074100A": {"vr": "UR", "Value": ["tel:+1234"]},
        "0074100C": {"vr": "LO", "Value": ["The desk"]},
    }
    with listening(worklist.dicomweb, ae_title) as reports:
        assert worklist.request_cancellation(uid, reasons).status_code == 202
        report = reports.next_of(uid, CANCEL_REQUESTED)
        assert report["00741236"] == {"vr": "AE", "Value": ["GANTRY"]}
        assert {tag: report[tag] for tag in reasons} == reasons
        assert worklist.request_cancellation(uid).status_code == 202
        report = reports.next_of(uid, CANCEL_REQUESTED)
        assert set(report) == {"00000002", "00000110", "00001000", "00001002", "00741236"}


@pytest.mark.requirement("W-039", "W-073")
def test_cancelling_what_is_scheduled_is_reported_by_way_of_in_progress(worklist: Worklist) -> None:
    uid, ae_title = worklist.created(), new_ae_title()
    worklist.subscribe(uid, ae_title)
    worklist.request_cancellation(uid, {"00741238": {"vr": "LT", "Value": ["Not needed"]}})
    with listening(worklist.dicomweb, ae_title) as reports:
        found = [reports.next_of(uid, STATE_REPORT) for _ in range(3)]
    assert [value(report, STATE) for report in found] == ["SCHEDULED", "IN PROGRESS", "CANCELED"]
    assert value(found[2], "00741238") == "Not needed"


@pytest.mark.requirement("W-067")
@pytest.mark.parametrize("target", [GLOBAL, FILTERED], ids=["global", "filtered"])
def test_after_suspending_new_workitems_are_not_subscribed_and_old_ones_stay(worklist: Worklist, target: str) -> None:
    label, ae_title = new_label(), new_ae_title()
    old = worklist.created(**labelled(label))
    query = "" if target == GLOBAL else f"?filter=WorklistLabel%3D{label}"
    assert worklist.subscribe(target, ae_title, query).status_code == 201
    with listening(worklist.dicomweb, ae_title) as reports:
        assert worklist.suspend(target, ae_title).status_code == 200
        new = worklist.created(**labelled(label))
        worklist.change_state(new, "IN PROGRESS", instances.new_uid())
        worklist.change_state(old, "IN PROGRESS", instances.new_uid())
        seen = reports.next_of(old)
        assert value(seen, STATE) == "IN PROGRESS"
        assert reports.none_of(new)
    assert worklist.suspend(target, ae_title).status_code == 404
    assert worklist.suspend(old, ae_title).status_code == 400
    assert worklist.unsubscribe(target, ae_title).status_code == 200


@pytest.mark.requirement("W-059", "W-086")
def test_a_filtered_subscriber_hears_of_what_matches_old_and_new(worklist: Worklist) -> None:
    label, ae_title = new_label(), new_ae_title()
    old, other = worklist.created(**labelled(f"{label}-A")), worklist.created(**labelled("something else"))
    response = worklist.subscribe(FILTERED, ae_title, f"?filter=WorklistLabel%3D{label}*")
    assert response.status_code == 201
    assert response.headers["content-location"].endswith(f"/subscribers/{ae_title}")
    with listening(worklist.dicomweb, ae_title) as reports:
        new, another = worklist.created(**labelled(f"{label}-B")), worklist.created(**labelled("something else"))
        worklist.change_state(old, "IN PROGRESS", instances.new_uid())
        worklist.change_state(other, "IN PROGRESS", instances.new_uid())
        heard = [(value(report, "00001000"), value(report, STATE)) for report in (reports.next(), reports.next())]
        assert heard == [(new, "SCHEDULED"), (old, "IN PROGRESS")]
        assert reports.none_of(another)
        assert worklist.unsubscribe(FILTERED, ae_title).status_code == 200
        worklist.change_state(new, "IN PROGRESS", instances.new_uid())
        assert reports.none_of(new)
    assert worklist.unsubscribe(FILTERED, ae_title).status_code == 404


@pytest.mark.requirement("W-086")
def test_a_filter_follows_a_workitem_that_begins_and_ceases_to_match(worklist: Worklist) -> None:
    label, ae_title = new_label(), new_ae_title()
    uid = worklist.created(**labelled(label), x00404025=code("One", "WS1"))
    worklist.subscribe(FILTERED, ae_title, f"?filter=WorklistLabel%3D{label},ScheduledStationNameCodeSequence.CodeValue%3DWS2")
    with listening(worklist.dicomweb, ae_title) as reports:
        worklist.update(uid, {READINESS: {"vr": "CS", "Value": ["INCOMPLETE"]}})
        worklist.update(uid, {"00404025": code("Two", "WS2")})
        report = reports.next_of(uid)
        assert (value(report, "00001002"), report["00404025"]) == (ASSIGNED, code("Two", "WS2"))
        worklist.update(uid, {READINESS: {"vr": "CS", "Value": ["READY"]}})
        assert value(reports.next_of(uid), READINESS) == "READY"
        worklist.update(uid, {"00404025": code("Three", "WS3")})
        report = reports.next_of(uid)
        assert report["00404025"] == code("Three", "WS3")
        worklist.change_state(uid, "IN PROGRESS", instances.new_uid())
        assert reports.none_of(uid)
    worklist.unsubscribe(FILTERED, ae_title)


@pytest.mark.requirement("W-086")
def test_a_filter_by_state_hears_of_the_claim_that_ends_it(worklist: Worklist) -> None:
    label, ae_title = new_label(), new_ae_title()
    uid = worklist.created(**labelled(label))
    worklist.subscribe(FILTERED, ae_title, f"?WorklistLabel={label}&ProcedureStepState=SCHEDULED")
    with listening(worklist.dicomweb, ae_title) as reports:
        transaction = instances.new_uid()
        worklist.change_state(uid, "IN PROGRESS", transaction)
        assert value(reports.next_of(uid), STATE) == "IN PROGRESS"
        worklist.change_state(uid, "CANCELED", transaction)
        assert reports.none_of(uid)
    worklist.unsubscribe(FILTERED, ae_title)


@pytest.mark.distributed
@pytest.mark.requirement("W-059", "W-068")
def test_a_filtered_subscription_with_lock_reports_what_matches_already(worklist: Worklist) -> None:
    label, ae_title = new_label(), new_ae_title()
    uids = {worklist.created(**labelled(label)) for _ in range(3)}
    others = {worklist.created(**labelled("something else")) for _ in range(2)}
    assert worklist.subscribe(FILTERED, ae_title, f"?filter=WorklistLabel%3D{label}&deletionlock=true").status_code == 201
    with listening(worklist.dicomweb, ae_title) as reports:
        heard = {value(reports.next_of_type(STATE_REPORT), "00001000") for _ in uids}
        assert heard == uids
        assert all(reports.none_of(uid, 0.3) for uid in others)
    worklist.unsubscribe(FILTERED, ae_title)


@pytest.mark.requirement("W-086")
def test_one_subscriber_may_have_several_filters_and_end_one(worklist: Worklist) -> None:
    one, two, ae_title = new_label(), new_label(), new_ae_title()
    for label in (one, two):
        assert worklist.subscribe(FILTERED, ae_title, f"?filter=WorklistLabel%3D{label}").status_code == 201
    with listening(worklist.dicomweb, ae_title) as reports:
        for label in (one, two):
            uid = worklist.created(**labelled(label))
            assert reports.next_of(uid)
        path = f"/workitems/{FILTERED}/subscribers/{ae_title}?filter=WorklistLabel%3D{one}"
        assert worklist.send("DELETE", path).status_code == 200
        assert worklist.send("DELETE", path).status_code == 404
        silent, heard = worklist.created(**labelled(one)), worklist.created(**labelled(two))
        assert reports.next_of(heard)
        assert reports.none_of(silent)
    assert worklist.unsubscribe(FILTERED, ae_title).status_code == 200


@pytest.mark.requirement("W-060", "W-061")
@pytest.mark.parametrize(
    "query",
    [
        "",
        "?filter=",
        "?deletionlock=true",
        "?filter=NoSuchAttribute%3D1",
        "?filter=ScheduledProcedureStepStartDateTime%3Dyesterday",
        "?filter=TransactionUID%3D1.2",
        "?filter=ScheduledProcessingParametersSequence.ValueType%3DTEXT",
        "?filter=WorklistLabel%3DAI&deletionlock=perhaps",
    ],
)
def test_a_filtered_subscription_without_a_filter_that_can_be_matched_is_refused(worklist: Worklist, query: str) -> None:
    ae_title = new_ae_title()
    response = worklist.subscribe(FILTERED, ae_title, query)
    assert response.status_code == 400
    assert len(response.json()["message"]) > 10
    assert worklist.unsubscribe(FILTERED, ae_title).status_code == 404


def test_a_message_that_is_too_long_closes_the_connection(worklist: Worklist) -> None:
    with listening(worklist.dicomweb, new_ae_title()) as reports:
        reports.connection.send("x" * 100_000)
        with pytest.raises(ConnectionClosed) as closed:
            reports.connection.recv(10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009
