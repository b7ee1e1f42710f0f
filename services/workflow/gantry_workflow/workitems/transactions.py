"""Decides what each transaction changes in a workitem: pure functions from state and request to the new state.

A function takes the state on the stream, or None if there is no such workitem. It returns a `Decision`, or raises an error if the
request is refused. The data set inside a state never has the Transaction UID.

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
"""Most AE titles with an entry (subscribed or unsubscribed) in one workitem; more is 403."""

MAX_STATE_BYTES = PUT_BYTES - (8 << 10)
"""Most bytes of a state without its last change, so that blob accepts its copy as one object."""
MAX_DATASET_BYTES = PUT_BYTES - (128 << 10)
"""Most bytes of a workitem's data set as DICOM JSON; more is 413.

The difference to MAX_STATE_BYTES is for the rest of a state: Transaction UID, MAX_ITEM_SUBSCRIPTIONS subscriptions, and attributes that
a final state adds. So every accepted workitem can be claimed, completed and subscribed to.
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
"""The reason for discontinuation that the server adds if the request has none (PS3.16 CID 9300)."""


@dataclass(frozen=True)
class Decision:
    """The outcome of a request that is not refused.

    Attributes:
        state: the new state; None if nothing changes.
        warnings: texts of Warning headers.
    """

    state: WorkitemState | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class StateRequest:
    """The payload of Change Workitem State."""

    procedure_step_state: str
    transaction_uid: str


def now() -> str:
    """Return the present time as a DT in UTC."""
    return datetime.now(UTC).strftime("%Y%m%d%H%M%S.%f+0000")


def uid_of(dataset: Dataset) -> str:
    """Return the SOP Instance UID of a data set; "" if it has none."""
    return text(dataset, attributes.SOP_INSTANCE_UID)


def parse_state_request(data: bytes) -> StateRequest:
    """Read the payload of Change Workitem State.

    Raises:
        errors.BadRequest: it has no Procedure Step State, an unknown one, or attributes other than these two and Transaction UID.
    """
    dataset = parse(data)
    attributes.check_enumerations(dataset)
    allowed = {attributes.STATE, attributes.TRANSACTION_UID, attributes.SPECIFIC_CHARACTER_SET}
    if others := sorted(set(dataset) - allowed):
        raise errors.BadRequest(
            f"a change of state may have Transaction UID and Procedure Step State only, found ({others[0][:4]},{others[0][4:]})"
        )
    requested = text(dataset, attributes.STATE)
    if not requested:
        raise errors.BadRequest("a change of state needs Procedure Step State (0074,1000)")
    return StateRequest(requested, text(dataset, attributes.TRANSACTION_UID))


def create(current: WorkitemState | None, uid: str, dataset: Dataset, strict: bool) -> Decision:
    """Create a workitem (PS3.18 §11.4).

    Args:
        current: the workitem with this UID; None if there is none.
        dataset: of the request, as `dataset.parse` returns it; it is not modified.
        strict: refuse missing attributes of type 2 instead of adding them empty.

    Raises:
        errors.Conflict: the UID is in use (0111H).
        errors.BadRequest: an attribute is missing, empty or not allowed.
        errors.PayloadTooLarge: the data set has more than MAX_DATASET_BYTES.
    """
    if (code := states.outcome(states.CREATIONS, _state_of(current))) != states.CHANGE:
        raise states.refusal(code, uid, _state_of(current))
    workitem = copied(dataset)
    if text(workitem, attributes.STATE) not in ("", SCHEDULED):
        raise errors.BadRequest(f"a new workitem must be SCHEDULED, not {text(workitem, attributes.STATE)}")
    own = {attributes.SOP_CLASS_UID: SOP_CLASS_UID, attributes.SOP_INSTANCE_UID: uid}
    modified = any(text(workitem, tag) not in ("", value) for tag, value in own.items()) or has_value(workitem, attributes.MODIFIED)
    modified |= attributes.leave_out_unsupported(workitem)
    modified |= attributes.check_creation(workitem, strict)
    if not has_value(workitem, attributes.WORKLIST_LABEL):
        workitem[attributes.WORKLIST_LABEL] = {"vr": "LO", "Value": [DEFAULT_WORKLIST_LABEL]}
        modified = True
    del workitem[attributes.TRANSACTION_UID]
    for tag, value in own.items():
        workitem[tag] = {"vr": "UI", "Value": [value]}
    _stamp(workitem)
    state = WorkitemState(
        workitem_uid=uid,
        dicom_json=_bounded(dump(workitem), uid),
        procedure_step_state=SCHEDULED,
        change=WorkitemChange(created=True, assigned=_is_assigned(workitem)),
    )
    return Decision(state, (CREATED_WITH_MODIFICATIONS,) if modified else ())


def update(current: WorkitemState | None, uid: str, transaction_uid: str, changes: Dataset) -> Decision:
    """Change attributes of a workitem (PS3.18 §11.6). Sequences are replaced as a whole.

    Args:
        transaction_uid: from the query; "" if it has none. If the data set has one too, both must be equal.

    Raises:
        errors.NotFound, errors.Gone: there is no such workitem, or it was deleted.
        errors.BadRequest, errors.Conflict: the state or the Transaction UID forbids it (PS3.18 Table 11.6.3-1).
        errors.PayloadTooLarge: the data set would have more than MAX_DATASET_BYTES.
    """
    changes = copied(changes)
    inside = text({attributes.TRANSACTION_UID: changes.pop(attributes.TRANSACTION_UID, {})}, attributes.TRANSACTION_UID)
    if inside and transaction_uid and inside != transaction_uid:
        raise errors.BadRequest(
            "Transaction UID (0008,1195) of the payload differs from that of the query", warning=states.STATUSES["C301"].warning
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
    """Claim, complete or cancel a workitem (PS3.18 §11.7).

    Raises:
        errors.NotFound, errors.Gone: there is no such workitem, or it was deleted.
        errors.BadRequest, errors.Conflict: the state, the Transaction UID or a missing attribute forbids it (Table 11.7.3-1).
    """
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
    """Request the cancellation of a workitem (PS3.18 §11.8).

    Args:
        reasons: Reason For Cancellation, discontinuation reason and contact; {} if none are given.
        requesting_ae: AE title of the requester.
        has_audience: whether the workitem has a subscriber.

    Raises:
        errors.NotFound, errors.Gone: there is no such workitem, or it was deleted.
        errors.Conflict: it is COMPLETED, or it is IN PROGRESS and has no subscriber.
    """
    state = _existing(current, uid)
    code = states.outcome(states.CANCEL_REQUESTS, state.procedure_step_state)
    if code == states.FORWARD and not has_audience:
        code = "C312"
    if code in states.STATUSES:
        return _status(code, uid, state)
    forwarded = (attributes.CANCELLATION_REASON, attributes.DISCONTINUATION_REASON, attributes.CONTACT_URI, attributes.CONTACT_NAME)
    given = {tag: reasons[tag] for tag in forwarded if has_value(reasons, tag)}
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
    """Subscribe an AE title to one workitem; it gets an initial state report (PS3.18 §11.10).

    Raises:
        errors.NotFound, errors.Gone: there is no such workitem, or it was deleted.
        errors.Forbidden: the workitem has MAX_ITEM_SUBSCRIPTIONS entries.
    """
    state = _existing(current, uid)
    entry = ItemSubscription(ae_title=ae_title, deletion_lock=deletion_lock and grant_locks)
    new_state = _next(state, WorkitemChange(subscribed=[ae_title]), subscription=entry)
    if len(new_state.subscriptions) > MAX_ITEM_SUBSCRIPTIONS:
        raise errors.Forbidden(f"workitem {uid} already has {MAX_ITEM_SUBSCRIPTIONS} subscribers")
    return Decision(new_state, (LOCK_REFUSED,) if deletion_lock and not grant_locks else ())


def unsubscribe(current: WorkitemState | None, uid: str, ae_title: str, is_subscribed: bool) -> Decision:
    """End the subscription of an AE title to one workitem (PS3.18 §11.11).

    Args:
        is_subscribed: whether the AE title subscribes to the workitem, directly or by a subscription to the worklist.

    Raises:
        errors.NotFound, errors.Gone: there is no such workitem or subscription, or the workitem was deleted.
    """
    state = _existing(current, uid)
    if not is_subscribed:
        raise errors.NotFound(f"{ae_title} does not subscribe to workitem {uid}")
    entry = ItemSubscription(ae_title=ae_title, unsubscribed=True)
    return Decision(_next(state, WorkitemChange(unsubscribed=[ae_title]), subscription=entry))


def delete(current: WorkitemState | None, is_locked: bool) -> Decision:
    """Replace a final workitem without deletion lock by a tombstone, so that its UID stays in use (PS3.4 §CC.2.1.3).

    Args:
        is_locked: whether an AE title holds a deletion lock on it.
    """
    if current is None or current.deleted or current.procedure_step_state not in FINAL_STATES or is_locked:
        return Decision(None)
    tombstone = WorkitemState(
        workitem_uid=current.workitem_uid,
        procedure_step_state=current.procedure_step_state,
        created_sequence=current.created_sequence,
        deleted=True,
    )
    return Decision(tombstone)


def without_change(state: WorkitemState) -> WorkitemState:
    """Return a copy of a state without the description of its last change."""
    bare = WorkitemState()
    bare.CopyFrom(state)
    bare.ClearField("change")
    return bare


def check_size(state: WorkitemState) -> None:
    """Check that the copy of a state fits into one object.

    Raises:
        errors.PayloadTooLarge: the state has more than MAX_STATE_BYTES without its last change.
    """
    if state.ByteSize() > MAX_STATE_BYTES and (size := without_change(state).ByteSize()) > MAX_STATE_BYTES:
        raise errors.PayloadTooLarge(f"workitem {state.workitem_uid} would have {size} bytes, expected at most {MAX_STATE_BYTES}")


def with_sequences(state: WorkitemState, sequence: int) -> WorkitemState:
    """Set, in place, each sequence of a state that is 0 ("that of this message") to the sequence of its message; return the state."""
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
    """Return a copy of a state with the change, and with those arguments replaced that are not empty."""
    new_state = WorkitemState()
    new_state.CopyFrom(state)
    new_state.change.CopyFrom(change)
    new_state.dicom_json = dicom_json or state.dicom_json
    new_state.procedure_step_state = procedure_step_state or state.procedure_step_state
    new_state.transaction_uid = transaction_uid or state.transaction_uid
    if subscription is not None:
        others = [entry for entry in state.subscriptions if entry.ae_title != subscription.ae_title]
        del new_state.subscriptions[:]
        new_state.subscriptions.extend([*others, subscription])
    return new_state


def _bounded(dicom_json: bytes, uid: str) -> bytes:
    """Return the data set of a workitem unless it is too large.

    Raises:
        errors.PayloadTooLarge: it has more than MAX_DATASET_BYTES.
    """
    if len(dicom_json) > MAX_DATASET_BYTES:
        raise errors.PayloadTooLarge(
            f"workitem {uid} would have {len(dicom_json)} bytes of DICOM JSON, expected at most {MAX_DATASET_BYTES}"
        )
    return dicom_json


def _before(before: Dataset, after: Dataset) -> bytes:
    """Return the previous values of changed attributes that filters may use, as DICOM JSON; b"" if there are none."""
    replaced = {tag: before.get(tag) for tag in after if before.get(tag) != after[tag] and tag not in UNMATCHED}
    return dump(replaced) if replaced else b""


def _stamp(dataset: Dataset) -> None:
    dataset[attributes.MODIFIED] = {"vr": "DT", "Value": [now()]}
    # DICOM JSON is UTF-8, whatever Specific Character Set the payload had (PS3.18 §F.2).
    dataset[attributes.SPECIFIC_CHARACTER_SET] = {"vr": "CS", "Value": ["ISO_IR 192"]}


def _set_state(dataset: Dataset, state: str) -> None:
    dataset[attributes.STATE] = {"vr": "CS", "Value": [state]}
    _stamp(dataset)


def _fill_cancellation(dataset: Dataset, given: Dataset) -> None:
    """Add the attributes that CANCELED requires: time and reason (PS3.4 §CC.2.1.3)."""
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
