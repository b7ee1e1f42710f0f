"""Event reports name the studies of their workitem, so that only callers who may see these studies get them."""

import orjson
import pytest

from gantry.events.v1.events_pb2 import ItemSubscription, WorkitemChange, WorkitemState
from gantry_standard.workitems import studies_of
from gantry_workflow.workitems import event_reports, transactions
from tests.support import worklist

STUDY = "0020000D"


def state(**change: bool) -> WorkitemState:
    """Return a new workitem about the study 1.2.3, with an input from study 1.2.4 and a subscriber."""
    data_set = worklist.workitem(t0020000D=worklist.v("UI", "1.2.3"))
    data_set["00404021"] = {"vr": "SQ", "Value": [{STUDY: {"vr": "UI", "Value": ["1.2.4"]}}]}
    made = WorkitemState(workitem_uid="2.25.1", dicom_json=orjson.dumps(data_set), procedure_step_state="SCHEDULED")
    made.change.CopyFrom(WorkitemChange(**change))
    made.subscriptions.append(ItemSubscription(ae_title="WATCHER"))
    return transactions.with_sequences(made, 5)


@pytest.mark.parametrize("change", ["created", "state_changed", "progress_changed", "assigned", "input_readiness_changed"])
def test_a_report_names_the_studies_of_its_workitem(change: str) -> None:
    reports = event_reports.of_change(state(**{change: True}), 5, [])
    assert len(reports) >= 1
    assert [list(report.study_instance_uids) for report in reports] == [["1.2.3", "1.2.4"]] * len(reports)


def test_a_report_to_a_new_subscriber_names_the_studies_too() -> None:
    assert list(event_reports.initial(state(), "WATCHER", 5, 0, more=False).study_instance_uids) == ["1.2.3", "1.2.4"]


def test_what_is_told_to_everybody_names_no_study() -> None:
    assert list(event_reports.restarted(5, 0, more=False).study_instance_uids) == []


def test_studies_of_a_workitem_are_found_at_every_depth() -> None:
    item = {STUDY: {"vr": "UI", "Value": ["1.4", "1.5"]}}
    data_set = {
        STUDY: {"vr": "UI", "Value": ["1.1"]},
        "00404021": {"vr": "SQ", "Value": [{STUDY: {"vr": "UI", "Value": ["1.2"]}}, {}]},
        "0040A370": {"vr": "SQ", "Value": [{STUDY: {"vr": "UI"}}]},
        "00741216": {"vr": "SQ", "Value": [{"00404033": {"vr": "SQ", "Value": [item]}}]},
        "00741204": {"vr": "LO", "Value": ["1.9"]},
    }
    assert studies_of(data_set) == {"1.1", "1.2", "1.4", "1.5"}
    assert studies_of({}) == frozenset()
