"""Decides who is notified of a workitem: its subscribers, and those of the worklist, whole or filtered, in the order of the stream.

Subscriptions to one workitem are part of the workitem's state. A subscription to the worklist is a message of its own, which also has
its earlier states (`earlier`). So these messages alone decide whether an AE title subscribes to a workitem at a given sequence.

A filtered subscription covers a workitem while the workitem matches the filter. Its subscriber is notified of the change after which
the workitem matches, of each change while it matches, and of the change after which it no longer matches.

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
"""Number of earlier states in the message of one subscription to the worklist. Older states are dropped. For a workitem that was
created before the oldest of them, that oldest state counts."""
MAX_FILTERS_OF_ONE = 64
"""Most filtered subscriptions of one AE title; more is 403."""
MAX_FILTERS = 1000
"""Most filtered subscriptions of all AE titles together, because every change is compared with each of them; more is 403."""
MAX_FILTER_CHARACTERS = 4096
LATEST = 2**63
"""A sequence above every sequence of the stream."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One state of a subscription to the worklist, and the sequence from which on it holds."""

    sequence: int
    state: "SubscriptionState.State.ValueType"
    deletion_lock: bool


@dataclass(frozen=True)
class WorklistSubscription:
    """The subscription of one AE title to the whole worklist, or to the workitems that match a filter.

    Attributes:
        epochs: its states, oldest first.
        filter: None for the whole worklist.
    """

    ae_title: str
    epochs: tuple[Epoch, ...] = ()
    filter: Filter | None = None

    @property
    def state(self) -> "SubscriptionState.State.ValueType":
        """The present state."""
        return self.epochs[-1].state if self.epochs else SubscriptionState.STATE_UNSPECIFIED


class MatchedVersions:
    """The attributes of a workitem that filters are compared with; computed when the first filter needs them.

    Args:
        with_before: also compare the attributes before the last change.
    """

    def __init__(self, state: WorkitemState, with_before: bool = False) -> None:
        self._state = state
        self._with_before = with_before

    def matches(self, keys: Sequence[MatchKey]) -> bool:
        """Return whether the attributes match after the last change, or, with `with_before`, before it."""
        return any(matching.matches(keys, version) for version in self._versions)

    @cached_property
    def _versions(self) -> "list[dict[str, list[terms.Term]]]":
        after: Dataset = read(self._state.dicom_json)
        versions = [after]
        if self._with_before and self._state.change.before_json:
            before: Dataset = {**after, **read(self._state.change.before_json)}
            versions.append({tag: element for tag, element in before.items() if element is not None})
        return [matching.by_path(terms.derive(dataset, with_texts=True).terms) for dataset in versions]


def from_message(message: SubscriptionState, sequence: int) -> WorklistSubscription:
    """Return the subscription in the message at `sequence`."""
    earlier = [Epoch(e.sequence, e.state, e.deletion_lock) for e in message.earlier]
    latest = Epoch(message.sequence or sequence, message.state, message.deletion_lock)
    return WorklistSubscription(message.ae_title, (*earlier, latest), matching.read_filter(message.filter) if message.filter else None)


def filter_id(text: str) -> str:
    """Return the identifier of a normalised filter in NATS subjects: 24 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def lock_on(
    state: WorkitemState,
    sequence: int,
    ae_title: str,
    worklist_subscriptions: Iterable[WorklistSubscription],
    at: int,
    versions: MatchedVersions | None = None,
) -> bool | None:
    """Return whether an AE title holds a deletion lock on a workitem; None if it does not subscribe to the workitem.

    Args:
        state: the workitem in the message at `sequence`.
        worklist_subscriptions: the subscriptions to the worklist of this AE title, ended ones included.
        at: the sequence for which the result holds; later epochs are ignored.
        versions: the attributes that filters are compared with; by default those in `state`.

    Source: PS3.4 Table CC.2.3-2.
    """
    created = state.created_sequence or sequence
    entry = next((e for e in state.subscriptions if e.ae_title == ae_title), None)
    subscriptions = list(worklist_subscriptions)
    whole = next((s for s in subscriptions if s.filter is None), None)
    held = _held(created, sequence, entry, whole.epochs if whole else (), at)
    if entry is not None and not entry.unsubscribed and held is not None:
        # A subscription to the workitem itself decides about the lock; subscriptions to the worklist do not change it.
        return held
    gone = entry if entry is None or entry.unsubscribed else ItemSubscription(sequence=entry.sequence, unsubscribed=True)
    versions = versions or MatchedVersions(state)
    for filtered in subscriptions:
        if filtered.filter is None:
            continue
        lock = _held(created, sequence, gone, filtered.epochs, at)
        if lock is not None and not held and versions.matches(filtered.filter.keys):
            held = lock or held or False
    return held


def _held(created: int, sequence: int, entry: ItemSubscription | None, epochs: Iterable[Epoch], at: int) -> bool | None:
    """Return the lock that results from an entry of the workitem and one subscription to the worklist (Table CC.2.3-2)."""
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
    """Return the lock on an existing workitem after a change of a subscription to the worklist."""
    if epoch.state == SubscriptionState.STATE_UNSUBSCRIBED:
        return None
    if epoch.state == SubscriptionState.STATE_SUBSCRIBED and held is None:
        return epoch.deletion_lock
    return held


def audience(
    state: WorkitemState,
    sequence: int,
    worklist_subscriptions: Iterable[WorklistSubscription],
    at: int,
    versions: MatchedVersions | None = None,
) -> list[str]:
    """Return the AE titles that subscribe to a workitem, sorted.

    Args:
        worklist_subscriptions: the subscriptions to the worklist of all AE titles.
    """
    return sorted(locks_on(state, sequence, worklist_subscriptions, at, versions))


def locks_on(
    state: WorkitemState,
    sequence: int,
    worklist_subscriptions: Iterable[WorklistSubscription],
    at: int,
    versions: MatchedVersions | None = None,
) -> dict[str, bool]:
    """Return, for each AE title that subscribes to a workitem, whether it holds a deletion lock. Arguments as for `audience`."""
    by_title: dict[str, list[WorklistSubscription]] = {entry.ae_title: [] for entry in state.subscriptions}
    for subscription in worklist_subscriptions:
        by_title.setdefault(subscription.ae_title, []).append(subscription)
    versions = versions or MatchedVersions(state)
    locks = {title: lock_on(state, sequence, title, own, at, versions) for title, own in by_title.items()}
    return {title: lock for title, lock in locks.items() if lock is not None}


def is_new_to(state: WorkitemState, sequence: int, changed: WorklistSubscription, own: Iterable[WorklistSubscription]) -> bool:
    """Return whether the AE title subscribes to this workitem only since the last change of `changed`.

    Args:
        own: all subscriptions to the worklist of the AE title, `changed` included.
    """
    latest = changed.epochs[-1].sequence
    versions, everything = MatchedVersions(state), list(own)
    before = lock_on(state, sequence, changed.ae_title, everything, latest - 1, versions)
    return before is None and lock_on(state, sequence, changed.ae_title, everything, latest, versions) is not None


def subscribe(current: SubscriptionState | None, sequence: int, ae_title: str, deletion_lock: bool, text: str = "") -> SubscriptionState:
    """Subscribe an AE title to the worklist.

    Args:
        text: the normalised filter; "" for the whole worklist.
    """
    return _next(current, sequence, ae_title, SubscriptionState.STATE_SUBSCRIBED, deletion_lock, text)


def unsubscribe(current: SubscriptionState | None, sequence: int, ae_title: str) -> SubscriptionState:
    """End a subscription to the worklist. If it is to the whole worklist, all subscriptions to workitems end too.

    Raises:
        errors.NotFound: there is no such subscription.
    """
    if current is None or current.state == SubscriptionState.STATE_UNSUBSCRIBED:
        raise errors.NotFound(f"{ae_title} does not subscribe to the worklist")
    return _next(current, sequence, ae_title, SubscriptionState.STATE_UNSUBSCRIBED, False, current.filter)


def suspend(current: SubscriptionState | None, sequence: int, ae_title: str) -> SubscriptionState:
    """Suspend a subscription to the worklist: it no longer covers new workitems; subscriptions to existing ones remain.

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
    new_state = SubscriptionState(ae_title=ae_title, state=state, deletion_lock=deletion_lock, filter=text)
    if current is not None:
        latest = SubscriptionEpoch(sequence=current.sequence or sequence, state=current.state, deletion_lock=current.deletion_lock)
        new_state.earlier.extend([*current.earlier, latest][-MAX_EPOCHS:])
    return new_state
