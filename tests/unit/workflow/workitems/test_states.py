"""The tables of the state machine, cell by cell, and what each status becomes."""

import pytest

from gantry_standard import errors
from gantry_standard.workitems import CANCELED, COMPLETED, IN_PROGRESS, SCHEDULED
from gantry_workflow.workitems import states

NONE = ""

# PS3.4 Table CC.1.1-2: event, state → status. Written down a second time on purpose.
CELLS = [
    (IN_PROGRESS, "right", NONE, "C307"),
    (IN_PROGRESS, "right", SCHEDULED, "change"),
    (IN_PROGRESS, "right", IN_PROGRESS, "C302"),
    (IN_PROGRESS, "right", COMPLETED, "C300"),
    (IN_PROGRESS, "right", CANCELED, "C300"),
    (IN_PROGRESS, "wrong", IN_PROGRESS, "C301"),
    (IN_PROGRESS, "wrong", COMPLETED, "C301"),
    (IN_PROGRESS, "wrong", CANCELED, "C301"),
    (IN_PROGRESS, "missing", NONE, "C307"),
    (IN_PROGRESS, "missing", SCHEDULED, "C301 missing"),
    (IN_PROGRESS, "missing", IN_PROGRESS, "C301 missing"),
    (SCHEDULED, "right", NONE, "C307"),
    (SCHEDULED, "right", SCHEDULED, "C303"),
    (SCHEDULED, "right", IN_PROGRESS, "C303"),
    (SCHEDULED, "wrong", COMPLETED, "C303"),
    (SCHEDULED, "missing", CANCELED, "C303"),
    (COMPLETED, "right", NONE, "C307"),
    (COMPLETED, "right", SCHEDULED, "C310"),
    (COMPLETED, "right", IN_PROGRESS, "final"),
    (COMPLETED, "right", COMPLETED, "B306"),
    (COMPLETED, "right", CANCELED, "C300"),
    (COMPLETED, "wrong", IN_PROGRESS, "C301"),
    (COMPLETED, "missing", IN_PROGRESS, "C301 missing"),
    (CANCELED, "right", NONE, "C307"),
    (CANCELED, "right", SCHEDULED, "C310"),
    (CANCELED, "right", IN_PROGRESS, "final"),
    (CANCELED, "right", COMPLETED, "C300"),
    (CANCELED, "right", CANCELED, "B304"),
    (CANCELED, "wrong", IN_PROGRESS, "C301"),
    (CANCELED, "missing", CANCELED, "C301 missing"),
]


@pytest.mark.parametrize(("event", "lock", "state", "status"), CELLS, ids=[f"CC.1.1-2 {e} {k} on {s or 'none'}" for e, k, s, _ in CELLS])
def test_a_change_of_state(event: str, lock: str, state: str, status: str) -> None:
    assert states.outcome(states.TRANSITIONS[event, lock], state) == status


@pytest.mark.parametrize(
    ("lock", "state", "status"),
    [
        ("missing", NONE, "C307"),
        ("missing", SCHEDULED, "change"),
        ("right", SCHEDULED, "C310 update"),
        ("right", IN_PROGRESS, "change"),
        ("wrong", IN_PROGRESS, "C301 update"),
        ("missing", IN_PROGRESS, "C301 update"),
        ("right", COMPLETED, "C300 update"),
        ("missing", CANCELED, "C300 update"),
    ],
)
def test_an_update(lock: str, state: str, status: str) -> None:
    assert states.outcome(states.UPDATES[lock], state) == status


@pytest.mark.parametrize(
    ("state", "status"),
    [(NONE, "C307"), (SCHEDULED, "cancel"), (IN_PROGRESS, "forward"), (COMPLETED, "C311"), (CANCELED, "B304")],
)
def test_a_cancel_request(state: str, status: str) -> None:
    assert states.outcome(states.CANCEL_REQUESTS, state) == status


@pytest.mark.parametrize(
    ("status", "error", "warning"),
    [
        ("0111", errors.Conflict, ""),
        ("C300", errors.Conflict, "The submitted request is inconsistent with the state of the UPS Instance."),
        ("C300 update", errors.BadRequest, "The submitted request is inconsistent with the current state of the Workitem."),
        ("C301 missing", errors.BadRequest, "The Transaction UID is missing."),
        ("C301", errors.BadRequest, "The Transaction UID is incorrect."),
        ("C301 update", errors.BadRequest, "The target URI did not reference a claimed Workitem."),
        ("C302", errors.Conflict, "The submitted request is inconsistent with the state of the UPS Instance."),
        ("C303", errors.Conflict, "The submitted request is inconsistent with the state of the UPS Instance."),
        ("C304", errors.Conflict, "The submitted request is inconsistent with the state of the UPS Instance."),
        ("C307", errors.NotFound, ""),
        ("C310", errors.Conflict, "The submitted request is inconsistent with the state of the UPS Instance."),
        ("C310 update", errors.Conflict, "The submitted request is inconsistent with the state of the UPS Instance."),
        ("C311", errors.Conflict, "The UPS is already COMPLETED."),
        ("C312", errors.Conflict, "The performer cannot be contacted."),
    ],
)
def test_what_a_status_becomes(status: str, error: type[errors.GantryError], warning: str) -> None:
    refusal = states.refusal(status, "1.2.3", SCHEDULED)
    assert type(refusal) is error
    assert refusal.warning == warning
    assert "1.2.3" in refusal.message


def test_every_cell_is_a_status_or_an_action() -> None:
    rows = [*states.TRANSITIONS.values(), *states.UPDATES.values(), states.CREATIONS, states.CANCEL_REQUESTS]
    actions = {states.CHANGE, states.FINAL, states.CANCEL, states.FORWARD}
    assert all(len(row) == len(states.STATES) for row in rows)
    assert {cell for row in rows for cell in row} <= actions | set(states.STATUSES)


@pytest.mark.parametrize(
    ("state", "stored", "given", "lock"),
    [
        (SCHEDULED, "", "1.2", "right"),
        (SCHEDULED, "", "", "missing"),
        (IN_PROGRESS, "1.2", "1.2", "right"),
        (IN_PROGRESS, "1.2", "1.3", "wrong"),
        (CANCELED, "1.2", "", "missing"),
    ],
)
def test_the_lock(state: str, stored: str, given: str, lock: str) -> None:
    assert states.lock_of(state, stored, given) == lock
