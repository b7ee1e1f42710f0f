"""Who hears of a workitem: subscriptions to it, and to the worklist, whole or filtered, in the order of the stream.

A subscription to one workitem rides in the workitem's state. One to the worklist is a message of its own that also tells what it was
before (`earlier`), so whether an AE title subscribes to a workitem at a certain point of the stream follows from these alone. A
filtered one covers a workitem while it matches: its subscriber hears of the change by which it begins to match, of all while it does,
and of that by which it ceases to.

Source: PS3.4 Table CC.2.3-2, §CC.2.3.3.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from gantry.events.v1.events_pb2 import ItemSubscription, SubscriptionEpoch, SubscriptionState, WorkitemState
from gantry_standard import errors
from gantry_standard.query import matching, terms
from gantry_standard.query.matching import Filter, MatchKey
from gantry_workflow.workitems.dataset import Dataset, read

MAX_EPOCHS = 64
"""Earlier states kept of one subscription to the worklist. What a subscription was more than so many changes ago is forgotten: a
workitem that is older counts as covered by the oldest that is kept."""
MAX_FILTERS_OF_ONE = 64
"""Filtered subscriptions that one AE title may have; more is 403."""
MAX_FILTERS = 1000
"""Filtered subscriptions of all AE titles together, each of which is compared with every change; more is 403."""
MAX_FILTER_CHARACTERS = 4096
LATEST = 2**63
"""A point after everything on the stream."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """What a subscription to the worklist became at a sequence of the stream."""

    sequence: int
    state: "SubscriptionState.State.ValueType"
    deletion_lock: bool


@dataclass(frozen=True)
class WorklistSubscription:
    """One AE title and the worklist: all of it, or what matches a filter.

    Attributes:
        epochs: oldest first.
        filter: None for the whole worklist.
    """

    ae_title: str
    epochs: tuple[Epoch, ...] = ()
    filter: Filter | None = None

    @property
    def state(self) -> "SubscriptionState.State.ValueType":
        """What it is now."""
        return self.epochs[-1].state if self.epochs else SubscriptionState.STATE_UNSPECIFIED


class Content:
    """What filters are compared with: the attributes of a workitem, read when the first filter asks.

    Args:
        with_before: also as they were before the change that made the state.
    """

    def __init__(self, state: WorkitemState, with_before: bool = False) -> None:
        self._state = state
        self._with_before = with_before

    def matches(self, keys: Sequence[MatchKey]) -> bool:
        """Say whether the attributes match, as they are or as they were."""
        return any(matching.matches(keys, found) for found in self._versions)

    @cached_property
    def _versions(self) -> "list[dict[str, list[terms.Term]]]":
        after: Dataset = read(self._state.dicom_json)
        versions = [after]
        if self._with_before and self._state.change.before_json:
            before: Dataset = {**after, **read(self._state.change.before_json)}
            versions.append({tag: element for tag, element in before.items() if element is not None})
        return [matching.by_path(terms.derive(dataset, with_texts=True).terms) for dataset in versions]


def from_message(message: SubscriptionState, sequence: int) -> WorklistSubscription:
    """Return the subscription that a message at `sequence` says."""
    earlier = [Epoch(e.sequence, e.state, e.deletion_lock) for e in message.earlier]
    latest = Epoch(message.sequence or sequence, message.state, message.deletion_lock)
    return WorklistSubscription(message.ae_title, (*earlier, latest), matching.read_filter(message.filter) if message.filter else None)


def filter_id(text: str) -> str:
    """Return how a normalised filter is named in subjects."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def lock_on(
    state: WorkitemState,
    sequence: int,
    ae_title: str,
    worldwide: Iterable[WorklistSubscription],
    at: int,
    content: Content | None = None,
) -> bool | None:
    """Return whether an AE title holds a deletion lock on a workitem; None where it does not subscribe to it.

    Args:
        state: the workitem, as the message at `sequence` has it.
        worldwide: what subscriptions to the worklist this AE title has or had.
        at: the point of the stream that the answer is for; later epochs do not count.
        content: what filters are compared with; the attributes in `state` where it is left out.
    """
    created = state.created_sequence or sequence
    entry = next((e for e in state.subscriptions if e.ae_title == ae_title), None)
    subscriptions = list(worldwide)
    whole = next((s for s in subscriptions if s.filter is None), None)
    held = _held(created, sequence, entry, whole.epochs if whole else (), at)
    if entry is not None and not entry.unsubscribed and held is not None:
        # Whoever subscribes to a workitem itself says what becomes of its lock; others leave it unchanged.
        return held
    gone = entry if entry is None or entry.unsubscribed else ItemSubscription(sequence=entry.sequence, unsubscribed=True)
    content = content or Content(state)
    for filtered in subscriptions:
        if filtered.filter is None:
            continue
        lock = _held(created, sequence, gone, filtered.epochs, at)
        if lock is not None and not held and content.matches(filtered.filter.keys):
            held = lock or held or False
    return held


def _held(created: int, sequence: int, entry: ItemSubscription | None, epochs: Iterable[Epoch], at: int) -> bool | None:
    """Return the lock that an entry of the workitem and one subscription to the worklist make (Table CC.2.3-2)."""
    counting = [epoch for epoch in epochs if epoch.sequence <= at]
    held: bool | None = None
    since = created
    if entry is not None:
        held, since = None if entry.unsubscribed else entry.deletion_lock, entry.sequence or sequence
    elif before := [epoch for epoch in counting if epoch.sequence < created]:
        held = before[-1].deletion_lock if before[-1].state == SubscriptionState.STATE_SUBSCRIBED else None
    for epoch in counting:
        if epoch.sequence > since:
            held = _after(held, epoch)
    return held


def _after(held: bool | None, epoch: Epoch) -> bool | None:
    """What a change of a subscription to the worklist makes of the subscription to a workitem that exists."""
    if epoch.state == SubscriptionState.STATE_UNSUBSCRIBED:
        return None
    if epoch.state == SubscriptionState.STATE_SUBSCRIBED and held is None:
        return epoch.deletion_lock
    return held


def audience(
    state: WorkitemState, sequence: int, worldwide: Iterable[WorklistSubscription], at: int, content: Content | None = None
) -> list[str]:
    """Return the AE titles that subscribe to a workitem, sorted.

    Args:
        worldwide: the subscriptions to the worklist of all AE titles.
    """
    return sorted(locks_on(state, sequence, worldwide, at, content))


def locks_on(
    state: WorkitemState, sequence: int, worldwide: Iterable[WorklistSubscription], at: int, content: Content | None = None
) -> dict[str, bool]:
    """Return of each AE title that subscribes to a workitem whether it holds a deletion lock. Arguments as `audience`."""
    by_title: dict[str, list[WorklistSubscription]] = {entry.ae_title: [] for entry in state.subscriptions}
    for subscription in worldwide:
        by_title.setdefault(subscription.ae_title, []).append(subscription)
    content = content or Content(state)
    found = {title: lock_on(state, sequence, title, own, at, content) for title, own in by_title.items()}
    return {title: lock for title, lock in found.items() if lock is not None}


def is_new_to(state: WorkitemState, sequence: int, changed: WorklistSubscription, own: Iterable[WorklistSubscription]) -> bool:
    """Say whether the last change of a subscription to the worklist is what made its AE title subscribe to this workitem.

    Args:
        own: all subscriptions to the worklist of the AE title, `changed` included.
    """
    latest = changed.epochs[-1].sequence
    content, everything = Content(state), list(own)
    before = lock_on(state, sequence, changed.ae_title, everything, latest - 1, content)
    return before is None and lock_on(state, sequence, changed.ae_title, everything, latest, content) is not None


def subscribe(current: SubscriptionState | None, sequence: int, ae_title: str, deletion_lock: bool, text: str = "") -> SubscriptionState:
    """Subscribe an AE title to the worklist.

    Args:
        text: the normalised filter; "" for the whole worklist.
    """
    return _next(current, sequence, ae_title, SubscriptionState.STATE_SUBSCRIBED, deletion_lock, text)


def unsubscribe(current: SubscriptionState | None, sequence: int, ae_title: str) -> SubscriptionState:
    """End a subscription to the worklist, and with one to the whole worklist every subscription to a workitem.

    Raises:
        errors.NotFound: there is none.
    """
    if current is None or current.state == SubscriptionState.STATE_UNSUBSCRIBED:
        raise errors.NotFound(f"{ae_title} does not subscribe to the worklist")
    return _next(current, sequence, ae_title, SubscriptionState.STATE_UNSUBSCRIBED, False, current.filter)


def suspend(current: SubscriptionState | None, sequence: int, ae_title: str) -> SubscriptionState:
    """Stop subscribing new workitems; subscriptions to existing ones stay.

    Raises:
        errors.NotFound: there is no subscription to the worklist.
    """
    if current is None or current.state != SubscriptionState.STATE_SUBSCRIBED:
        raise errors.NotFound(f"{ae_title} does not subscribe to the worklist")
    return _next(current, sequence, ae_title, SubscriptionState.STATE_SUSPENDED, current.deletion_lock, current.filter)


def _next(
    current: SubscriptionState | None,
    sequence: int,
    ae_title: str,
    state: "SubscriptionState.State.ValueType",
    deletion_lock: bool,
    text: str,
) -> SubscriptionState:
    made = SubscriptionState(ae_title=ae_title, state=state, deletion_lock=deletion_lock, filter=text)
    if current is not None:
        latest = SubscriptionEpoch(sequence=current.sequence or sequence, state=current.state, deletion_lock=current.deletion_lock)
        made.earlier.extend([*current.earlier, latest][-MAX_EPOCHS:])
    return made
