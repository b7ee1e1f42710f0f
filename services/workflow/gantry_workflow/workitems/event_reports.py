"""The event reports of one change: a pure function from a state on the stream to what is sent.

Source: PS3.4 Table CC.2.4-1; PS3.18 §11.13, §8.10.5.
"""

from collections.abc import Iterable

from gantry.events.v1.events_pb2 import EventReport, WorkitemState
from gantry_standard.workitems import GLOBAL_SUBSCRIPTION, IN_PROGRESS, SOP_CLASS_UID, studies_of
from gantry_workflow.workitems import attributes, subscriptions
from gantry_workflow.workitems.dataset import Dataset, dump, has_value, read, values
from gantry_workflow.workitems.subscriptions import Content, WorklistSubscription

STATE_REPORT, CANCEL_REQUESTED, PROGRESS_REPORT, SCP_STATUS_CHANGE, ASSIGNED = 1, 2, 3, 4, 5


def of_change(state: WorkitemState, sequence: int, worldwide: Iterable[WorklistSubscription]) -> list[EventReport]:
    """Return the reports of the change that the message at `sequence` made, in order; [] where nobody hears of it."""
    change = state.change
    is_state = change.created or change.state_changed or change.input_readiness_changed
    is_told = is_state or change.progress_changed or change.assigned or change.cancel_requested
    heard = subscriptions.audience(state, sequence, worldwide, sequence, Content(state, with_before=True)) if is_told else []
    if not heard and not change.subscribed:
        return []
    facts: list[tuple[int, Dataset]] = []
    if change.canceled_through_in_progress:
        facts.append((STATE_REPORT, _state(state, IN_PROGRESS)))
    if is_state:
        facts.append((STATE_REPORT, _state(state)))
    if change.progress_changed:
        facts.append((PROGRESS_REPORT, _progress(state)))
    if change.assigned:
        facts += [(ASSIGNED, found) for found in _assigned(state)]
    if change.cancel_requested:
        facts.append((CANCEL_REQUESTED, read(change.cancel_request_json)))
    addressed = [(kind, found, heard) for kind, found in facts if heard]
    if change.subscribed:
        addressed.append((STATE_REPORT, _state(state), list(change.subscribed)))
    studies = _studies(state)
    return [
        make(kind, state.workitem_uid, found, titles, sequence, ordinal, ordinal + 1 < len(addressed), studies)
        for ordinal, (kind, found, titles) in enumerate(addressed)
    ]


def initial(state: WorkitemState, ae_title: str, sequence: int, ordinal: int, more: bool) -> EventReport:
    """Return the state report that a new subscriber gets because of the message at `sequence`."""
    return make(STATE_REPORT, state.workitem_uid, _state(state), [ae_title], sequence, ordinal, more, _studies(state))


def restarted(sequence: int, ordinal: int, more: bool, cold: bool = False) -> EventReport:
    """Return the SCP Status Change that tells everybody of a restart.

    Args:
        cold: workitems and subscriptions of an earlier run, if there were any, are lost.
    """
    kind = "COLD START" if cold else "WARM START"
    found = {
        "00741242": {"vr": "CS", "Value": ["RESTARTED"]},
        "00741244": {"vr": "CS", "Value": [kind]},
        "00741246": {"vr": "CS", "Value": [kind]},
    }
    return make(SCP_STATUS_CHANGE, GLOBAL_SUBSCRIPTION, found, [], sequence, ordinal, more)


def make(
    kind: int, uid: str, found: Dataset, ae_titles: list[str], sequence: int, ordinal: int, more: bool, studies: Iterable[str] = ()
) -> EventReport:
    """Return a report with its common fields. The Message ID follows from the change, so a repeated report has the same.

    Args:
        studies: Study Instance UIDs that the workitem refers to.
    """
    payload = {
        "00000002": {"vr": "UI", "Value": [SOP_CLASS_UID]},
        "00000110": {"vr": "US", "Value": [1 + (sequence * 16 + ordinal) % 65_535]},
        "00001000": {"vr": "UI", "Value": [uid]},
        "00001002": {"vr": "US", "Value": [kind]},
        **found,
    }
    return EventReport(
        event_type_id=kind,
        workitem_uid=uid,
        dicom_json=dump(payload),
        ae_titles=ae_titles,
        source_sequence=sequence,
        ordinal=ordinal,
        more=more,
        study_instance_uids=studies,
    )


def _studies(state: WorkitemState) -> list[str]:
    return sorted(studies_of(read(state.dicom_json)))


def _state(state: WorkitemState, procedure_step_state: str = "") -> Dataset:
    dataset = read(state.dicom_json)
    report = {
        attributes.STATE: {"vr": "CS", "Value": [procedure_step_state or state.procedure_step_state]},
        attributes.INPUT_READINESS: dataset[attributes.INPUT_READINESS],
    }
    for item in values(dataset, attributes.PROGRESS)[:1]:
        for tag in (attributes.CANCELLATION_REASON, attributes.DISCONTINUATION_REASON):
            if has_value(item, tag):
                report[tag] = item[tag]
    return report


def _progress(state: WorkitemState) -> Dataset:
    """Progress, its description, parameters and communication addresses; not why a workitem was cancelled."""
    unreported = (attributes.CANCELLATION_DATETIME, attributes.CANCELLATION_REASON, attributes.DISCONTINUATION_REASON)
    items = [
        {tag: element for tag, element in item.items() if tag not in unreported}
        for item in values(read(state.dicom_json), attributes.PROGRESS)
    ]
    return {attributes.PROGRESS: {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}}


def _assigned(state: WorkitemState) -> list[Dataset]:
    """Who performs it and where: one report for the station and each human performer; one where there is none or one."""
    dataset = read(state.dicom_json)
    station = {attributes.STATION_NAME: dataset[attributes.STATION_NAME]} if has_value(dataset, attributes.STATION_NAME) else {}
    told = (attributes.HUMAN_PERFORMER_CODE, attributes.HUMAN_PERFORMER_ORGANIZATION)
    performers = [{tag: item[tag] for tag in told if has_value(item, tag)} for item in values(dataset, attributes.HUMAN_PERFORMERS)]
    return [{**station, **performer} for performer in performers] or [station]
