"""What the operator decides about the worklist: how long final workitems stay, deletion locks, strictness, who hears of restarts."""

import time
from collections.abc import Iterator

import httpx
import pytest

from tests.support import instances
from tests.support.dicomweb import JSON, DicomWeb, value
from tests.support.suite import Suite, one_machine
from tests.support.workitems import FILTERED, GLOBAL, Worklist, listening, new_ae_title, workitem

FORGETFUL = {"GANTRY_WORKITEM_KEEP_S": "1", "GANTRY_WORKITEM_TOMBSTONE_S": "4"}
STRICT = {
    "GANTRY_WORKITEM_CREATE": "strict",
    "GANTRY_DELETION_LOCKS": "false",
    "GANTRY_FALLBACK_AE_TITLES": "FALLBACK,FALLBACK2",
    "GANTRY_REQUESTING_AE": "RIS",
}
STATUS_CHANGE = 4


def _running(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, str]) -> Iterator[Suite]:
    suite = Suite(tmp_path_factory.mktemp("worklist"), one_machine() | settings)
    suite.start()
    yield suite
    suite.close()


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A suite that deletes final workitems after a second, and tombstones after four."""
    yield from _running(tmp_path_factory, FORGETFUL)


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A suite that is strict, grants no locks and has fallback AE titles."""
    yield from _running(tmp_path_factory, STRICT)


def status(worklist: Worklist, uid: str) -> int:
    """Return the status of a retrieve."""
    return worklist.dicomweb.get(f"/workitems/{uid}", JSON).status_code


def wait_for(worklist: Worklist, uid: str, expected: int) -> None:
    """Wait until a workitem is retrieved with a status."""
    end = time.monotonic() + 30
    while (found := status(worklist, uid)) != expected:
        assert time.monotonic() < end, f"a workitem is {found} after 30 s, not {expected}"
        time.sleep(0.05)


@pytest.mark.requirement("W-013", "W-038", "W-063")
def test_final_workitems_go_and_locked_ones_stay_until_they_are_released(forgetful: Suite) -> None:
    worklist = Worklist(forgetful.client())
    locking, plain = new_ae_title(), new_ae_title()
    scheduled = worklist.created()
    locked, _ = worklist.claimed()
    assert worklist.subscribe(locked, locking, "?deletionlock=true").status_code == 201
    going, transaction = worklist.claimed()
    assert worklist.subscribe(going, plain).status_code == 201
    for uid, owner in ((locked, _), (going, transaction)):
        assert worklist.change_state(uid, "CANCELED", owner).status_code == 200
    wait_for(worklist, going, 410)
    assert worklist.change_state(going, "CANCELED", transaction).status_code == 410
    assert worklist.update(going, {"00741204": {"vr": "LO", "Value": ["x"]}}, transaction).status_code == 410
    assert worklist.request_cancellation(going).status_code == 410
    assert worklist.subscribe(going, plain).status_code == 410
    assert worklist.create(uid=going)[1].status_code == 409
    assert worklist.found(f"SOPInstanceUID={going},{locked},{scheduled}") in ([locked, scheduled], [scheduled, locked])
    wait_for(worklist, going, 404)
    assert (status(worklist, locked), status(worklist, scheduled)) == (200, 200)
    assert worklist.unsubscribe(locked, locking).status_code == 200
    wait_for(worklist, locked, 410)
    assert worklist.found(f"SOPInstanceUID={locked}") == []
    assert status(worklist, scheduled) == 200


@pytest.mark.requirement("W-063", "W-061")
@pytest.mark.parametrize("target", [GLOBAL, FILTERED], ids=["global", "filtered"])
def test_a_subscription_to_the_worklist_holds_its_locks_until_it_ends(forgetful: Suite, target: str) -> None:
    worklist, ae_title = Worklist(forgetful.client()), new_ae_title()
    label = f"L{instances.new_uid()[-12:]}"
    query = f"?filter=WorklistLabel%3D{label}&deletionlock=true" if target == FILTERED else "?deletionlock=true"
    assert worklist.subscribe(target, ae_title, query).status_code == 201
    locked, transaction = worklist.claimed(x00741202={"vr": "LO", "Value": [label]})
    assert worklist.change_state(locked, "CANCELED", transaction).status_code == 200
    with listening(worklist.dicomweb, ae_title) as reports:
        # What is final and not locked goes meanwhile: the sweep has passed the locked one.
        worklist_of_nobody, owner = worklist.claimed()
        if target == GLOBAL:
            assert worklist.unsubscribe(worklist_of_nobody, ae_title).status_code == 200
        assert worklist.change_state(worklist_of_nobody, "CANCELED", owner).status_code == 200
        wait_for(worklist, worklist_of_nobody, 410)
        assert status(worklist, locked) == 200
        assert reports.next_of(locked)
    assert worklist.unsubscribe(target, ae_title).status_code == 200
    wait_for(worklist, locked, 410)


@pytest.mark.requirement("W-004")
def test_a_strict_server_refuses_a_workitem_without_an_attribute_of_type_2(strict: Suite) -> None:
    worklist = Worklist(strict.client())
    response = worklist.create(workitem(x00380010=None))[1]
    assert response.status_code == 400
    assert "(0038,0010)" in response.json()["message"]
    assert worklist.create()[1].status_code == 201
    assert "warning" not in worklist.create()[1].headers


@pytest.mark.requirement("W-062")
@pytest.mark.parametrize("target", ["workitem", GLOBAL, FILTERED])
def test_a_lock_that_is_not_granted_is_told_and_the_subscription_made(strict: Suite, target: str) -> None:
    worklist, ae_title = Worklist(strict.client()), new_ae_title()
    uid = worklist.created()
    target = uid if target == "workitem" else target
    query = "&filter=WorklistLabel%3DAI" if target == FILTERED else ""
    response = worklist.subscribe(target, ae_title, f"?deletionlock=true{query}")
    assert response.status_code == 201
    assert response.headers["warning"].endswith(": Deletion Lock not granted.")
    assert "warning" not in worklist.subscribe(target, ae_title, f"?deletionlock=false{query}").headers
    with listening(worklist.dicomweb, ae_title) as reports:
        worklist.change_state(uid, "IN PROGRESS", instances.new_uid())
        assert reports.next_of(uid)
    assert worklist.unsubscribe(target, ae_title).status_code == 200


@pytest.mark.requirement("W-077", "W-078", "W-081")
def test_every_restart_is_told_to_subscribers_and_to_fallback_ae_titles_that_were_away(strict: Suite) -> None:
    worklist, ae_title = Worklist(strict.client()), new_ae_title()
    worklist.subscribe(worklist.created(), ae_title)
    with listening(worklist.dicomweb, ae_title) as reports:
        strict.wait_restarted("workflow", strict.kill("workflow"))
        told = [reports.next_of_type(STATUS_CHANGE)]
    with listening(worklist.dicomweb, "FALLBACK2") as reports:
        told.append(reports.next_of_type(STATUS_CHANGE))
    for report in told:
        assert value(report, "00000002") == "1.2.840.10008.5.1.4.34.6.1"
        assert value(report, "00001000") == GLOBAL
        assert value(report, "00741242") == "RESTARTED"
        assert value(report, "00741244") in ("WARM START", "COLD START")
        assert value(report, "00741246") in ("WARM START", "COLD START")


@pytest.mark.requirement("W-076")
def test_the_requesting_ae_of_cancel_requests_is_a_setting(strict: Suite) -> None:
    worklist, ae_title = Worklist(strict.client()), new_ae_title()
    uid, _ = worklist.claimed()
    worklist.subscribe(uid, ae_title)
    with listening(worklist.dicomweb, ae_title) as reports:
        worklist.request_cancellation(uid)
        assert value(reports.next_of(uid, 2), "00741236") == "RIS"


def test_an_answer_says_gone_over_every_representation(forgetful: Suite) -> None:
    dicomweb: DicomWeb = forgetful.client()
    worklist = Worklist(dicomweb)
    uid, _ = worklist.completed()
    wait_for(worklist, uid, 410)
    response: httpx.Response = dicomweb.get(f"/workitems/{uid}", "application/dicom+xml")
    assert response.status_code == 410
