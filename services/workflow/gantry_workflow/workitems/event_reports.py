"""Computes the event reports of one change from the state on the stream, without side effects.

Source: PS3.4 Table CC.2.4-1; PS3.18 §11.13, §8.10.5.
"""

from collections.abc import Iterable

from gantry.events.v1.events_pb2 import EventReport, WorkitemState
from gantry_standard.workitems import GLOBAL_SUBSCRIPTION, IN_PROGRESS, SOP_CLASS_UID, studies_of
from gantry_workflow.workitems import attributes, subscriptions
from gantry_workflow.workitems.dataset import Dataset, dump, has_value, read, values
from gantry_workflow.workitems.subscriptions import MatchedVersions, WorklistSubscription

STATE_REPORT, CANCEL_REQUESTED, PROGRESS_REPORT, SCP_STATUS_CHANGE, ASSIGNED = 1, 2, 3, 4, 5


def of_change(state: WorkitemState, sequence: int, worklist_subscriptions: Iterable[WorklistSubscription]) -> list[EventReport]:
    """Return the event reports of the change in the message at `sequence`, in order; [] if nobody subscribes.

    Args:
        state: the workitem in that message.
        worklist_subscriptions: all subscriptions to the worklist.
    """
    change = state.change
    is_state = change.created or change.state_changed or change.input_readiness_changed
    is_reported = is_state or change.progress_changed or change.assigned or change.cancel_requested
    audience = (
        subscriptions.audience(state, sequence, worklist_subscriptions, sequence, MatchedVersions(state, with_before=True))
        if is_reported
        else []
    )
    if not audience and not change.subscribed:
        return []
    facts: list[tuple[int, Dataset]] = []
    if change.canceled_through_in_progress:
        facts.append((STATE_REPORT, _state(state, IN_PROGRESS)))
    if is_state:
        facts.append((STATE_REPORT, _state(state)))
    if change.progress_changed:
        facts.append((PROGRESS_REPORT, _progress(state)))
    if change.assigned:
        facts += [(ASSIGNED, content) for content in _assigned(state)]
    if change.cancel_requested:
        facts.append((CANCEL_REQUESTED, read(change.cancel_request_json)))
    addressed = [(kind, content, audience) for kind, content in facts if audience]
    if change.subscribed:
        addressed.append((STATE_REPORT, _state(state), list(change.subscribed)))
    studies = _studies(state)
    return [
        make(kind, state.workitem_uid, content, titles, sequence, ordinal, ordinal + 1 < len(addressed), studies)
        for ordinal, (kind, content, titles) in enumerate(addressed)
    ]


def initial(state: WorkitemState, ae_title: str, sequence: int, ordinal: int, more: bool) -> EventReport:
    """Return the initial state report for the AE title that subscribed with the message at `sequence`."""
    return make(STATE_REPORT, state.workitem_uid, _state(state), [ae_title], sequence, ordinal, more, _studies(state))


def restarted(sequence: int, ordinal: int, more: bool, cold: bool = False) -> EventReport:
    """Return the SCP Status Change report of a restart, which all subscribers get.

    Args:
        cold: whether workitems and subscriptions of an earlier run are lost.
    """
    kind = "COLD START" if cold else "WARM START"
    content = {
        "00741242": {"vr": "CS", "Value": ["RESTARTED"]},
        "00741244": {"vr": "CS", "Value": [kind]},
        "00741246": {"vr": "CS", "Value": [kind]},
    }
    return make(SCP_STATUS_CHANGE, GLOBAL_SUBSCRIPTION, content, [], sequence, ordinal, more)


def make(
    kind: int, uid: str, content: Dataset, ae_titles: list[str], sequence: int, ordinal: int, more: bool, studies: Iterable[str] = ()
) -> EventReport:
    """Return a report with its common fields. Its Message ID is computed from the change, so a repeated report has the same one.

    Args:
        kind: Event Type ID (0000,1002).
        uid: SOP Instance UID of the workitem.
        content: attributes of this kind of report.
        ae_titles: recipients; [] for all subscribers.
        sequence: of the change on WORKITEMS.
        ordinal: index of the report among those of the change, from 0.
        more: whether another report of the change follows.
        studies: Study Instance UIDs that the workitem refers to.
    """
    report = {
        "00000002": {"vr": "UI", "Value": [SOP_CLASS_UID]},
        "00000110": {"vr": "US", "Value": [1 + (sequence * 16 + ordinal) % 65_535]},
        "00001000": {"vr": "UI", "Value": [uid]},
        "00001002": {"vr": "US", "Value": [kind]},
        **content,
    }
    return EventReport(
        event_type_id=kind,
        workitem_uid=uid,
        dicom_json=dump(report),
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
    """Return the Progress Information without the time and the reasons of a cancellation."""
    unreported = (attributes.CANCELLATION_DATETIME, attributes.CANCELLATION_REASON, attributes.DISCONTINUATION_REASON)
    items = [
        {tag: element for tag, element in item.items() if tag not in unreported}
        for item in values(read(state.dicom_json), attributes.PROGRESS)
    ]
    return {attributes.PROGRESS: {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}}


def _assigned(state: WorkitemState) -> list[Dataset]:
    """Return one data set for each human performer, each with the station; one data set if there is no human performer."""
    dataset = read(state.dicom_json)
    station = {attributes.STATION_NAME: dataset[attributes.STATION_NAME]} if has_value(dataset, attributes.STATION_NAME) else {}
    reported = (attributes.HUMAN_PERFORMER_CODE, attributes.HUMAN_PERFORMER_ORGANIZATION)
    performers = [{tag: item[tag] for tag in reported if has_value(item, tag)} for item in values(dataset, attributes.HUMAN_PERFORMERS)]
    return [{**station, **performer} for performer in performers] or [station]
