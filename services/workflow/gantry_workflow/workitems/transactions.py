"""What each transaction makes of a workitem: pure functions from state and request to the new state.

A function takes the state as the stream has it (`None`: there is none), and returns a `Decision`, or raises the refusal. The
dataset inside a state never holds the Transaction UID.

Source: PS3.18 chapter 11; PS3.4 CC.2.
"""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from gantry.events.v1.events_pb2 import ItemSubscription, WorkitemChange, WorkitemState
from gantry_runtime.store_messages import PUT_BYTES
from gantry_standard import errors
from gantry_standard.workitems import CANCELED, COMPLETED, SCHEDULED, SOP_CLASS_UID, UNMATCHED
from gantry_workflow.workitems import attributes, states
from gantry_workflow.workitems.dataset import Dataset, copied, dump, has_value, parse, read, text, values

MAX_ITEM_SUBSCRIPTIONS = 1000
"""Most AE titles that may have asked for one workitem; more is 403."""

MAX_STATE_BYTES = PUT_BYTES - (8 << 10)
"""Most bytes of a state without what its last change says, so that its copy is an object that blob takes."""
MAX_DATASET_BYTES = PUT_BYTES - (128 << 10)
"""Most bytes of a workitem's data set as DICOM JSON; more is 413.

The rest of a state (Transaction UID, MAX_ITEM_SUBSCRIPTIONS subscriptions, what a final state adds) has room beside it, so that a workitem
that was taken can always be claimed, completed and subscribed to.
"""

CREATED_WITH_MODIFICATIONS = "The Workitem was created with modifications."
UNSUPPORTED = "Requested optional Attributes are not supported."
UPDATED_WITH_MODIFICATIONS = "The Workitem was updated with modifications."
LOCK_REFUSED = "Deletion Lock not granted."

FINAL_STATES = (COMPLETED, CANCELED)
DEFAULT_WORKLIST_LABEL = "Worklist"
DISCONTINUED = {
    "00080100": {"vr": "SH", "Value": ["110513"]},
    "00080102": {"vr": "SH", "Value": ["DCM"]},
    "00080104": {"vr": "LO", "Value": ["Discontinued for unspecified reason"]},
}
"""The reason that the server fills in where none is given (PS3.16 CID 9300)."""


@dataclass(frozen=True)
class Decision:
    """What becomes of a request that is not refused.

    Attributes:
        state: to be written; None where nothing changes.
        warnings: texts of Warning headers.
    """

    state: WorkitemState | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class StateRequest:
    """Change Workitem State as it was sent."""

    procedure_step_state: str
    transaction_uid: str


def now() -> str:
    """Return the time as a DT in UTC."""
    return datetime.now(UTC).strftime("%Y%m%d%H%M%S.%f+0000")


def uid_of(dataset: Dataset) -> str:
    """Return the SOP Instance UID that a data set names; "" where it names none."""
    return text(dataset, attributes.SOP_INSTANCE_UID)


def parse_state_request(data: bytes) -> StateRequest:
    """Read the payload of Change Workitem State.

    Raises:
        errors.BadRequest: it holds something else than Transaction UID and Procedure Step State, or an unknown state.
    """
    dataset = parse(data)
    attributes.check_enumerations(dataset)
    allowed = {attributes.STATE, attributes.TRANSACTION_UID, attributes.SPECIFIC_CHARACTER_SET}
    if others := sorted(set(dataset) - allowed):
        raise errors.BadRequest(
            f"a change of state holds Transaction UID and Procedure Step State only, found ({others[0][:4]},{others[0][4:]})"
        )
    requested = text(dataset, attributes.STATE)
    if not requested:
        raise errors.BadRequest("a change of state needs Procedure Step State (0074,1000)")
    return StateRequest(requested, text(dataset, attributes.TRANSACTION_UID))


def create(current: WorkitemState | None, uid: str, dataset: Dataset, strict: bool) -> Decision:
    """Create a workitem (PS3.18 §11.4).

    Args:
        dataset: as sent, parsed; it is not changed.
        strict: refuse missing attributes of type 2 instead of adding them empty.
    """
    if (code := states.outcome(states.CREATIONS, _state_of(current))) != states.CHANGE:
        raise states.refusal(code, uid, _state_of(current))
    made = copied(dataset)
    if text(made, attributes.STATE) not in ("", SCHEDULED):
        raise errors.BadRequest(f"a workitem is created SCHEDULED, not {text(made, attributes.STATE)}")
    own = {attributes.SOP_CLASS_UID: SOP_CLASS_UID, attributes.SOP_INSTANCE_UID: uid}
    modified = any(text(made, tag) not in ("", value) for tag, value in own.items()) or has_value(made, attributes.MODIFIED)
    modified |= attributes.leave_out_unsupported(made)
    modified |= attributes.check_creation(made, strict)
    if not has_value(made, attributes.WORKLIST_LABEL):
        made[attributes.WORKLIST_LABEL] = {"vr": "LO", "Value": [DEFAULT_WORKLIST_LABEL]}
        modified = True
    del made[attributes.TRANSACTION_UID]
    for tag, value in own.items():
        made[tag] = {"vr": "UI", "Value": [value]}
    _stamp(made)
    state = WorkitemState(
        workitem_uid=uid,
        dicom_json=_bounded(dump(made), uid),
        procedure_step_state=SCHEDULED,
        change=WorkitemChange(created=True, assigned=_is_assigned(made)),
    )
    return Decision(state, (CREATED_WITH_MODIFICATIONS,) if modified else ())


def update(current: WorkitemState | None, uid: str, transaction_uid: str, changes: Dataset) -> Decision:
    """Change attributes of a workitem (PS3.18 §11.6). Sequences are replaced as a whole.

    Args:
        transaction_uid: of the query; "" where it has none. One in the data set must agree.
    """
    changes = copied(changes)
    inside = text({attributes.TRANSACTION_UID: changes.pop(attributes.TRANSACTION_UID, {})}, attributes.TRANSACTION_UID)
    if inside and transaction_uid and inside != transaction_uid:
        raise errors.BadRequest(
            "Transaction UID (0008,1195) of the payload is not that of the query", warning=states.STATUSES["C301"].warning
        )
    state = _existing(current, uid)
    lock = states.lock_of(state.procedure_step_state, state.transaction_uid, transaction_uid or inside)
    if (code := states.outcome(states.UPDATES[lock], state.procedure_step_state)) != states.CHANGE:
        raise states.refusal(code, uid, state.procedure_step_state)
    modified = has_value(changes, attributes.MODIFIED)
    changes.pop(attributes.MODIFIED, None)
    attributes.check_update(changes)
    unsupported = attributes.leave_out_unsupported(changes)
    before = read(state.dicom_json)
    after = {**before, **changes}
    _stamp(after)
    differs = {tag for tag in changes if before.get(tag) != changes[tag]}
    change = WorkitemChange(
        input_readiness_changed=attributes.INPUT_READINESS in differs,
        progress_changed=attributes.PROGRESS in differs,
        assigned=bool(differs & {attributes.STATION_NAME, attributes.HUMAN_PERFORMERS}),
        before_json=_before(before, after),
    )
    warnings = [text for text, is_due in ((UPDATED_WITH_MODIFICATIONS, modified), (UNSUPPORTED, unsupported)) if is_due]
    return Decision(_next(state, change, dicom_json=_bounded(dump(after), uid)), tuple(warnings))


def change_state(current: WorkitemState | None, uid: str, request: StateRequest) -> Decision:
    """Claim, complete or cancel a workitem (PS3.18 §11.7)."""
    state = _existing(current, uid)
    lock = states.lock_of(state.procedure_step_state, state.transaction_uid, request.transaction_uid)
    code = states.outcome(states.TRANSITIONS[request.procedure_step_state, lock], state.procedure_step_state)
    if code in states.STATUSES:
        return _status(code, uid, state)
    before = read(state.dicom_json)
    dataset = dict(before)
    if code == states.FINAL:
        if request.procedure_step_state == CANCELED:
            _fill_cancellation(dataset, {})
        if missing := attributes.missing_for(request.procedure_step_state, dataset):
            raise states.refusal("C304", uid, state.procedure_step_state, "; ".join(missing))
    _set_state(dataset, request.procedure_step_state)
    change = WorkitemChange(state_changed=True, before_json=_before(before, dataset))
    return Decision(
        _next(
            state,
            change,
            dicom_json=dump(dataset),
            procedure_step_state=request.procedure_step_state,
            transaction_uid=request.transaction_uid,
        )
    )


def request_cancellation(current: WorkitemState | None, uid: str, reasons: Dataset, requesting_ae: str, has_audience: bool) -> Decision:
    """Ask for a workitem to be cancelled (PS3.18 §11.8).

    Args:
        reasons: Reason For Cancellation, discontinuation reason, contact; {} where none are given.
        has_audience: whether anybody would hear of it.
    """
    state = _existing(current, uid)
    code = states.outcome(states.CANCEL_REQUESTS, state.procedure_step_state)
    if code == states.FORWARD and not has_audience:
        code = "C312"
    if code in states.STATUSES:
        return _status(code, uid, state)
    told = (attributes.CANCELLATION_REASON, attributes.DISCONTINUATION_REASON, attributes.CONTACT_URI, attributes.CONTACT_NAME)
    given = {tag: reasons[tag] for tag in told if has_value(reasons, tag)}
    if code == states.FORWARD:
        request = {**given, attributes.REQUESTING_AE: {"vr": "AE", "Value": [requesting_ae]}}
        return Decision(_next(state, WorkitemChange(cancel_requested=True, cancel_request_json=dump(request))))
    before = read(state.dicom_json)
    dataset = dict(before)
    _fill_cancellation(dataset, given)
    _set_state(dataset, CANCELED)
    change = WorkitemChange(state_changed=True, canceled_through_in_progress=True, before_json=_before(before, dataset))
    return Decision(
        _next(
            state,
            change,
            dicom_json=_bounded(dump(dataset), uid) if given else dump(dataset),
            procedure_step_state=CANCELED,
            transaction_uid=f"2.25.{uuid.uuid4().int}",
        )
    )


def subscribe(current: WorkitemState | None, uid: str, ae_title: str, deletion_lock: bool, grant_locks: bool = True) -> Decision:
    """Subscribe an AE title to one workitem; it gets an initial state report (PS3.18 §11.10)."""
    state = _existing(current, uid)
    entry = ItemSubscription(ae_title=ae_title, deletion_lock=deletion_lock and grant_locks)
    made = _next(state, WorkitemChange(subscribed=[ae_title]), subscription=entry)
    if len(made.subscriptions) > MAX_ITEM_SUBSCRIPTIONS:
        raise errors.Forbidden(f"workitem {uid} has {MAX_ITEM_SUBSCRIPTIONS} subscribers already")
    return Decision(made, (LOCK_REFUSED,) if deletion_lock and not grant_locks else ())


def unsubscribe(current: WorkitemState | None, uid: str, ae_title: str, is_subscribed: bool) -> Decision:
    """End the subscription of an AE title to one workitem (PS3.18 §11.11).

    Args:
        is_subscribed: whether it is, by itself or by a global subscription.
    """
    state = _existing(current, uid)
    if not is_subscribed:
        raise errors.NotFound(f"{ae_title} does not subscribe to workitem {uid}")
    entry = ItemSubscription(ae_title=ae_title, unsubscribed=True)
    return Decision(_next(state, WorkitemChange(unsubscribed=[ae_title]), subscription=entry))


def delete(current: WorkitemState | None, is_locked: bool) -> Decision:
    """Make a final workitem that nobody holds a deletion lock on a tombstone: it is gone, its UID stays taken (PS3.4 CC.2.1.3)."""
    if current is None or current.deleted or current.procedure_step_state not in FINAL_STATES or is_locked:
        return Decision(None)
    made = WorkitemState(
        workitem_uid=current.workitem_uid,
        procedure_step_state=current.procedure_step_state,
        created_sequence=current.created_sequence,
        deleted=True,
    )
    return Decision(made)


def without_change(state: WorkitemState) -> WorkitemState:
    """Return a state without what its last change says of itself."""
    bare = WorkitemState()
    bare.CopyFrom(state)
    bare.ClearField("change")
    return bare


def check_size(state: WorkitemState) -> None:
    """Check that a state is not larger than its copy may be.

    Raises:
        errors.PayloadTooLarge: it has more than MAX_STATE_BYTES, its last change not counted.
    """
    if state.ByteSize() > MAX_STATE_BYTES and (size := without_change(state).ByteSize()) > MAX_STATE_BYTES:
        raise errors.PayloadTooLarge(f"workitem {state.workitem_uid} would have {size} bytes, expected at most {MAX_STATE_BYTES}")


def settle(state: WorkitemState, sequence: int) -> WorkitemState:
    """Write the sequence of its message where a state says "this message"."""
    state.created_sequence = state.created_sequence or sequence
    for entry in state.subscriptions:
        entry.sequence = entry.sequence or sequence
    return state


def _state_of(current: WorkitemState | None) -> str:
    return current.procedure_step_state if current else states.NONE


def _existing(current: WorkitemState | None, uid: str) -> WorkitemState:
    if current is None:
        raise states.refusal("C307", uid, states.NONE)
    if current.deleted:
        raise errors.Gone(f"workitem {uid} has been deleted")
    return current


def _status(code: str, uid: str, state: WorkitemState) -> Decision:
    if states.STATUSES[code].error is not None:
        raise states.refusal(code, uid, state.procedure_step_state)
    return Decision(None, (states.STATUSES[code].warning,))


def _next(
    state: WorkitemState,
    change: WorkitemChange,
    dicom_json: bytes = b"",
    procedure_step_state: str = "",
    transaction_uid: str = "",
    subscription: ItemSubscription | None = None,
) -> WorkitemState:
    """Return the state that follows, with what is given replaced."""
    made = WorkitemState()
    made.CopyFrom(state)
    made.change.CopyFrom(change)
    made.dicom_json = dicom_json or state.dicom_json
    made.procedure_step_state = procedure_step_state or state.procedure_step_state
    made.transaction_uid = transaction_uid or state.transaction_uid
    if subscription is not None:
        kept = [entry for entry in state.subscriptions if entry.ae_title != subscription.ae_title]
        del made.subscriptions[:]
        made.subscriptions.extend([*kept, subscription])
    return made


def _bounded(dicom_json: bytes, uid: str) -> bytes:
    """Return the data set of a workitem if it is not too large.

    Raises:
        errors.PayloadTooLarge: it has more than MAX_DATASET_BYTES.
    """
    if len(dicom_json) > MAX_DATASET_BYTES:
        raise errors.PayloadTooLarge(
            f"workitem {uid} would have {len(dicom_json)} bytes of DICOM JSON, expected at most {MAX_DATASET_BYTES}"
        )
    return dicom_json


def _before(before: Dataset, after: Dataset) -> bytes:
    """Return what a filter may have seen before a change and does not see after it."""
    replaced = {tag: before.get(tag) for tag in after if before.get(tag) != after[tag] and tag not in UNMATCHED}
    return dump(replaced) if replaced else b""


def _stamp(dataset: Dataset) -> None:
    dataset[attributes.MODIFIED] = {"vr": "DT", "Value": [now()]}
    # JSON is UTF-8, whatever character set the payload named (PS3.18 §F.2).
    dataset[attributes.SPECIFIC_CHARACTER_SET] = {"vr": "CS", "Value": ["ISO_IR 192"]}


def _set_state(dataset: Dataset, state: str) -> None:
    dataset[attributes.STATE] = {"vr": "CS", "Value": [state]}
    _stamp(dataset)


def _fill_cancellation(dataset: Dataset, given: Dataset) -> None:
    """Fill in what CANCELED needs: when and why (PS3.4 CC.2.1.3)."""
    item = dict((values(dataset, attributes.PROGRESS) or [{}])[0])
    for tag in (attributes.CANCELLATION_REASON, attributes.DISCONTINUATION_REASON):
        if tag in given:
            item[tag] = given[tag]
    if not has_value(item, attributes.CANCELLATION_DATETIME):
        item[attributes.CANCELLATION_DATETIME] = {"vr": "DT", "Value": [now()]}
    if not has_value(item, attributes.DISCONTINUATION_REASON):
        item[attributes.DISCONTINUATION_REASON] = {"vr": "SQ", "Value": [DISCONTINUED]}
    dataset[attributes.PROGRESS] = {"vr": "SQ", "Value": [dict(sorted(item.items())), *values(dataset, attributes.PROGRESS)[1:]]}


def _is_assigned(dataset: Dataset) -> bool:
    return has_value(dataset, attributes.STATION_NAME) or has_value(dataset, attributes.HUMAN_PERFORMERS)
