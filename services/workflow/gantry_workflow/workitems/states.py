"""The state machine of a workitem, as tables.

To change a rule, change its cell in TRANSITIONS, UPDATES or CANCEL_REQUESTS. To change the response to a refused request, change its
row in STATUSES.

Source: PS3.4 Table CC.1.1-2; PS3.18 Tables 11.6.3-1, 11.7.3-1, 11.8.3-1.
"""

from dataclasses import dataclass

from gantry_standard import errors
from gantry_standard.workitems import CANCELED, COMPLETED, IN_PROGRESS, SCHEDULED

NONE = ""
"""The state of a workitem that does not exist."""
STATES = (NONE, SCHEDULED, IN_PROGRESS, COMPLETED, CANCELED)

CHANGE = "change"
"""The change is made and reported."""
FINAL = "final"
"""The change is made if the final-state requirements are met; otherwise C304."""
CANCEL = "cancel"
"""The workitem becomes IN PROGRESS, then CANCELED; both changes are reported."""
FORWARD = "forward"
"""Subscribers, the performer among them, get an event report; the state is unchanged."""


@dataclass(frozen=True, slots=True)
class Status:
    """The response to a status code of PS3.4: an error, or, if `error` is None, success with a Warning."""

    error: type[errors.GantryError] | None
    warning: str
    message: str


_INCONSISTENT = "The submitted request is inconsistent with the state of the UPS Instance."

STATUSES = {
    "0111": Status(errors.Conflict, "", "workitem {uid} already exists"),
    "B304": Status(None, "The UPS is already in the requested state of CANCELED.", ""),
    "B306": Status(None, "The UPS is already in the requested state of COMPLETED.", ""),
    "C300": Status(errors.Conflict, _INCONSISTENT, "workitem {uid} is {state} and may no longer be changed"),
    "C300 update": Status(
        errors.BadRequest,
        "The submitted request is inconsistent with the current state of the Workitem.",
        "workitem {uid} is {state} and may no longer be updated",
    ),
    "C301 missing": Status(
        errors.BadRequest, "The Transaction UID is missing.", "a change of workitem {uid} needs Transaction UID (0008,1195)"
    ),
    "C301": Status(errors.BadRequest, "The Transaction UID is incorrect.", "workitem {uid} was claimed with another Transaction UID"),
    "C301 update": Status(
        errors.BadRequest,
        "The target URI did not reference a claimed Workitem.",
        "workitem {uid} is IN PROGRESS: its update needs the Transaction UID that it was claimed with",
    ),
    "C302": Status(errors.Conflict, _INCONSISTENT, "workitem {uid} is already IN PROGRESS"),
    "C303": Status(errors.Conflict, _INCONSISTENT, "workitem {uid} is {state}: no request can make a workitem SCHEDULED"),
    "C304": Status(errors.Conflict, _INCONSISTENT, "workitem {uid} does not meet the requirements of the final state"),
    "C307": Status(errors.NotFound, "", "there is no workitem {uid}"),
    "C310": Status(errors.Conflict, _INCONSISTENT, "workitem {uid} is SCHEDULED: it must be claimed (IN PROGRESS) first"),
    "C310 update": Status(errors.Conflict, _INCONSISTENT, "workitem {uid} is SCHEDULED: its update must not have a Transaction UID"),
    "C311": Status(errors.Conflict, "The UPS is already COMPLETED.", "workitem {uid} is COMPLETED and can no longer be cancelled"),
    "C312": Status(
        errors.Conflict, "The performer cannot be contacted.", "nobody subscribes to workitem {uid}, so its performer cannot be notified"
    ),
}

TRANSITIONS: dict[tuple[str, str], tuple[str, ...]] = {
    # requested state, Transaction UID    none    SCHEDULED       IN PROGRESS     COMPLETED       CANCELED
    (IN_PROGRESS, "right"): ("C307", CHANGE, "C302", "C300", "C300"),
    (IN_PROGRESS, "wrong"): ("C307", "C301", "C301", "C301", "C301"),
    (IN_PROGRESS, "missing"): ("C307", "C301 missing", "C301 missing", "C301 missing", "C301 missing"),
    (SCHEDULED, "right"): ("C307", "C303", "C303", "C303", "C303"),
    (SCHEDULED, "wrong"): ("C307", "C303", "C303", "C303", "C303"),
    (SCHEDULED, "missing"): ("C307", "C303", "C303", "C303", "C303"),
    (COMPLETED, "right"): ("C307", "C310", FINAL, "B306", "C300"),
    (COMPLETED, "wrong"): ("C307", "C301", "C301", "C301", "C301"),
    (COMPLETED, "missing"): ("C307", "C301 missing", "C301 missing", "C301 missing", "C301 missing"),
    (CANCELED, "right"): ("C307", "C310", FINAL, "C300", "B304"),
    (CANCELED, "wrong"): ("C307", "C301", "C301", "C301", "C301"),
    (CANCELED, "missing"): ("C307", "C301 missing", "C301 missing", "C301 missing", "C301 missing"),
}
"""Change Workitem State. For a SCHEDULED workitem any Transaction UID is right: the workitem is then locked by it."""

UPDATES: dict[str, tuple[str, ...]] = {
    # Transaction UID  none    SCHEDULED      IN PROGRESS    COMPLETED      CANCELED
    "right": ("C307", "C310 update", CHANGE, "C300 update", "C300 update"),
    "wrong": ("C307", "C310 update", "C301 update", "C300 update", "C300 update"),
    "missing": ("C307", CHANGE, "C301 update", "C300 update", "C300 update"),
}
"""Update Workitem."""

CREATIONS = (CHANGE, "0111", "0111", "0111", "0111")
"""Create Workitem."""

CANCEL_REQUESTS = ("C307", CANCEL, FORWARD, "C311", "B304")
"""Request Workitem Cancellation. A workitem that is IN PROGRESS and without subscribers gives C312."""


def lock_of(state: str, stored: str, given: str) -> str:
    """Compare the Transaction UID of a request with that of the workitem; return right, wrong or missing.

    Args:
        state: Procedure Step State of the workitem.
        stored: Transaction UID of the workitem.
        given: Transaction UID of the request; "" if it has none.
    """
    if not given:
        return "missing"
    return "right" if given == stored or state == SCHEDULED else "wrong"


def outcome(row: tuple[str, ...], state: str) -> str:
    """Return the cell of a row for a state."""
    return row[STATES.index(state)]


def refusal(code: str, uid: str, state: str, detail: str = "") -> errors.GantryError:
    """Return the error of a status code.

    Args:
        detail: appended to the message.
    """
    status = STATUSES[code]
    cls = status.error or errors.Conflict
    message = status.message.format(uid=uid, state=state)
    return cls(f"{message}: {detail}" if detail else message, warning=status.warning)
