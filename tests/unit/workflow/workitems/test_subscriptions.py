"""Who is notified of a workitem: PS3.4 Table CC.2.3-2, cell by cell."""

import pytest

from gantry.events.v1.events_pb2 import ItemSubscription, SubscriptionState, WorkitemState
from gantry_standard import errors
from gantry_standard.query import matching
from gantry_workflow.workitems import subscriptions
from gantry_workflow.workitems.subscriptions import MAX_EPOCHS, MatchedVersions, WorklistSubscription, lock_on

AE = "AE1"
SUBSCRIBED = SubscriptionState.STATE_SUBSCRIBED
SUSPENDED = SubscriptionState.STATE_SUSPENDED
UNSUBSCRIBED = SubscriptionState.STATE_UNSUBSCRIBED


def worldwide(*epochs: tuple[int, int, bool]) -> WorklistSubscription:
    """Return a global subscription with one epoch for each (sequence, state, lock)."""
    return WorklistSubscription(AE, tuple(subscriptions.Epoch(*epoch) for epoch in epochs))  # type: ignore[arg-type]


def item(created: int, *entries: ItemSubscription) -> WorkitemState:
    return WorkitemState(created_sequence=created, subscriptions=entries)


def own(sequence: int, lock: bool = False, gone: bool = False) -> ItemSubscription:
    return ItemSubscription(ae_title=AE, sequence=sequence, deletion_lock=lock, unsubscribed=gone)


@pytest.mark.parametrize(
    ("state", "everything", "held"),
    [
        pytest.param(item(10), None, None, id="created, global none"),
        pytest.param(item(10), worldwide((5, SUBSCRIBED, True)), True, id="created, global with lock"),
        pytest.param(item(10), worldwide((5, SUBSCRIBED, False)), False, id="created, global without lock"),
        pytest.param(item(10), worldwide((20, SUBSCRIBED, True)), True, id="subscribe global with lock, not subscribed"),
        pytest.param(item(10, own(15)), worldwide((20, SUBSCRIBED, True)), False, id="subscribe global with lock, without: unchanged"),
        pytest.param(item(10, own(15, True)), worldwide((20, SUBSCRIBED, False)), True, id="subscribe global without, with: unchanged"),
        pytest.param(item(10), worldwide((5, SUBSCRIBED, False), (20, SUBSCRIBED, True)), False, id="subscribe global again: unchanged"),
        pytest.param(item(10, own(30, True)), worldwide((20, SUBSCRIBED, False)), True, id="subscribe item with lock, without"),
        pytest.param(item(10, own(30)), worldwide((20, SUBSCRIBED, True)), False, id="subscribe item without lock, with"),
        pytest.param(item(10, own(30, gone=True)), worldwide((20, SUBSCRIBED, True)), None, id="unsubscribe item"),
        pytest.param(item(10, own(15, gone=True)), worldwide((20, SUBSCRIBED, True)), True, id="unsubscribed item, then global"),
        pytest.param(item(10, own(15, True)), worldwide((12, SUBSCRIBED, False), (20, UNSUBSCRIBED, False)), None, id="unsubscribe global"),
        pytest.param(item(10), worldwide((5, SUBSCRIBED, True), (20, SUSPENDED, True)), True, id="suspend global, existing"),
        pytest.param(item(30), worldwide((5, SUBSCRIBED, True), (20, SUSPENDED, True)), None, id="suspend global, new"),
        pytest.param(
            item(30, own(31)), worldwide((5, SUBSCRIBED, True), (20, UNSUBSCRIBED, False)), False, id="item after the end of global"
        ),
    ],
)
def test_table_cc_2_3_2(state: WorkitemState, everything: WorklistSubscription | None, held: bool | None) -> None:
    assert lock_on(state, 10, AE, [everything] if everything else [], at=100) is held


def test_later_changes_do_not_count_for_an_earlier_point_of_the_stream() -> None:
    everything = worldwide((5, SUBSCRIBED, False), (50, UNSUBSCRIBED, False))
    assert lock_on(item(10), 10, AE, [everything], at=40) is False
    assert lock_on(item(10), 10, AE, [everything], at=50) is None


def test_initial_reports_go_for_workitems_that_were_not_subscribed() -> None:
    everything = worldwide((5, SUBSCRIBED, False), (20, SUSPENDED, False), (40, SUBSCRIBED, True))
    assert not subscriptions.is_new_to(item(10), 10, everything, [everything])
    assert subscriptions.is_new_to(item(30), 30, everything, [everything])


def test_the_audience_is_everybody_by_whatever_subscription() -> None:
    state = WorkitemState(created_sequence=10, subscriptions=[ItemSubscription(ae_title="DIRECT", sequence=11)])
    assert subscriptions.audience(state, 11, [worldwide((5, SUBSCRIBED, False))], at=11) == [AE, "DIRECT"]


def test_a_message_tells_its_whole_history() -> None:
    first = subscriptions.subscribe(None, 0, AE, True)
    second = subscriptions.suspend(first, 7, AE)
    third = subscriptions.subscribe(second, 9, AE, False)
    found = subscriptions.from_message(third, 12)
    assert [(e.sequence, e.state, e.deletion_lock) for e in found.epochs] == [
        (7, SUBSCRIBED, True),
        (9, SUSPENDED, True),
        (12, SUBSCRIBED, False),
    ]


def test_history_is_bounded() -> None:
    state = None
    for sequence in range(2 * MAX_EPOCHS):
        state = subscriptions.subscribe(state, sequence, AE, False)
    assert state is not None
    assert len(state.earlier) == MAX_EPOCHS


def test_what_is_not_there_cannot_be_ended_or_suspended() -> None:
    ended = subscriptions.unsubscribe(subscriptions.subscribe(None, 0, AE, False), 1, AE)
    for current in (None, ended):
        with pytest.raises(errors.NotFound):
            subscriptions.unsubscribe(current, 2, AE)
        with pytest.raises(errors.NotFound):
            subscriptions.suspend(current, 2, AE)


AI = b'{"00741202":{"vr":"LO","Value":["AI"]}}'
OTHER = b'{"00741202":{"vr":"LO","Value":["OTHER"]}}'


def filtered(*epochs: tuple[int, int, bool], text: str = "00741202=AI") -> WorklistSubscription:
    """Return a filtered subscription with one epoch for each (sequence, state, lock)."""
    return WorklistSubscription(AE, worldwide(*epochs).epochs, matching.read_filter(text))


def labelled(created: int, content: bytes, *entries: ItemSubscription) -> WorkitemState:
    return WorkitemState(created_sequence=created, dicom_json=content, subscriptions=entries)


@pytest.mark.parametrize(
    ("state", "everything", "held"),
    [
        pytest.param(labelled(10, AI), [filtered((5, SUBSCRIBED, True))], True, id="created, matches"),
        pytest.param(labelled(10, OTHER), [filtered((5, SUBSCRIBED, True))], None, id="created, does not match"),
        pytest.param(labelled(10, AI), [filtered((20, SUBSCRIBED, False))], False, id="existing, matches"),
        pytest.param(labelled(10, AI), [filtered((5, SUBSCRIBED, True), (20, UNSUBSCRIBED, False))], None, id="ended"),
        pytest.param(labelled(30, AI), [filtered((5, SUBSCRIBED, True), (20, SUSPENDED, True))], None, id="suspended, new"),
        pytest.param(labelled(10, AI), [filtered((5, SUBSCRIBED, True), (20, SUSPENDED, True))], True, id="suspended, existing"),
        pytest.param(labelled(10, AI, own(15, gone=True)), [filtered((5, SUBSCRIBED, True))], None, id="unsubscribed from the item"),
        pytest.param(labelled(10, AI, own(15, gone=True)), [filtered((20, SUBSCRIBED, True))], True, id="and subscribed again by filter"),
        pytest.param(labelled(10, AI, own(15)), [filtered((5, SUBSCRIBED, True))], False, id="item without lock says what the lock is"),
        pytest.param(labelled(10, AI), [worldwide((5, SUBSCRIBED, False)), filtered((6, SUBSCRIBED, True))], True, id="a lock by either"),
        pytest.param(
            labelled(10, AI),
            [worldwide((5, SUBSCRIBED, False), (8, UNSUBSCRIBED, False)), filtered((6, SUBSCRIBED, False))],
            False,
            id="the global one ends",
        ),
        pytest.param(
            labelled(10, AI),
            [filtered((5, SUBSCRIBED, True), text="00741202=X"), filtered((6, SUBSCRIBED, False))],
            False,
            id="two filters",
        ),
    ],
)
def test_a_filtered_subscription_covers_what_matches(
    state: WorkitemState, everything: list[WorklistSubscription], held: bool | None
) -> None:
    assert lock_on(state, state.created_sequence, AE, everything, at=100) is held


def test_the_change_by_which_a_workitem_ceases_to_match_is_heard_and_locks_nothing() -> None:
    state = labelled(10, OTHER)
    state.change.before_json = AI
    everything = [filtered((5, SUBSCRIBED, True))]
    assert subscriptions.audience(state, 11, everything, 11, MatchedVersions(state, with_before=True)) == [AE]
    assert subscriptions.locks_on(state, 11, everything, 11) == {}


def test_what_was_not_there_before_a_change_does_not_match_before_it() -> None:
    state = labelled(10, OTHER)
    state.change.before_json = b'{"00741202":null}'
    everything = [filtered((5, SUBSCRIBED, True), text="00741202=OTHER")]
    assert subscriptions.audience(state, 11, everything, 11, MatchedVersions(state, with_before=True)) == [AE]
    state.dicom_json = AI
    assert subscriptions.audience(state, 11, everything, 11, MatchedVersions(state, with_before=True)) == []


def test_a_message_of_a_filtered_subscription_keeps_its_filter() -> None:
    first = subscriptions.subscribe(None, 0, AE, True, "00741202=AI")
    for state in (first, subscriptions.suspend(first, 7, AE), subscriptions.unsubscribe(first, 7, AE)):
        found = subscriptions.from_message(state, 9).filter
        assert found is not None
        assert found.text == "00741202=AI"
