"""Who hears of a workitem: subscriptions to it, and global ones, in the order of the stream.

A subscription to one workitem rides in the workitem's state. A global one is a message of its own that also tells what it was
before (`earlier`), so whether an AE title subscribes to a workitem at a certain point of the stream follows from these two alone.

Source: PS3.4 Table CC.2.3-2.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from gantry.events.v1.events_pb2 import SubscriptionEpoch, SubscriptionState, WorkitemState
from gantry_standard import errors

MAX_EPOCHS = 64
"""Earlier states kept of one global subscription. What a subscription was more than so many changes ago is forgotten: a workitem
that is older counts as covered by the oldest that is kept."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """What a global subscription became at a sequence of the stream."""

    sequence: int
    state: "SubscriptionState.State.ValueType"
    deletion_lock: bool


@dataclass(frozen=True)
class GlobalSubscription:
    """One AE title and the whole worklist.

    Attributes:
        epochs: oldest first.
    """

    ae_title: str
    epochs: tuple[Epoch, ...] = ()

    @property
    def state(self) -> "SubscriptionState.State.ValueType":
        """What it is now."""
        return self.epochs[-1].state if self.epochs else SubscriptionState.STATE_UNSPECIFIED


def from_message(message: SubscriptionState, sequence: int) -> GlobalSubscription:
    """Return the subscription that a message at `sequence` says."""
    earlier = [Epoch(e.sequence, e.state, e.deletion_lock) for e in message.earlier]
    return GlobalSubscription(message.ae_title, (*earlier, Epoch(message.sequence or sequence, message.state, message.deletion_lock)))


def lock_on(uid_state: WorkitemState, sequence: int, ae_title: str, worldwide: GlobalSubscription | None, at: int) -> bool | None:
    """Return whether an AE title holds a deletion lock on a workitem; None where it does not subscribe to it.

    Args:
        uid_state: the workitem, as the message at `sequence` has it.
        worldwide: its global subscription, if it ever had one.
        at: the point of the stream that the answer is for; later epochs do not count.
    """
    created = uid_state.created_sequence or sequence
    epochs = [epoch for epoch in worldwide.epochs if epoch.sequence <= at] if worldwide else []
    entry = next((e for e in uid_state.subscriptions if e.ae_title == ae_title), None)
    held: bool | None = None
    since = created
    if entry is not None:
        held, since = None if entry.unsubscribed else entry.deletion_lock, entry.sequence or sequence
    elif before := [epoch for epoch in epochs if epoch.sequence < created]:
        held = before[-1].deletion_lock if before[-1].state == SubscriptionState.STATE_SUBSCRIBED else None
    for epoch in epochs:
        if epoch.sequence > since:
            held = _after(held, epoch)
    return held


def _after(held: bool | None, epoch: Epoch) -> bool | None:
    """What a change of the global subscription makes of the subscription to a workitem that exists."""
    if epoch.state == SubscriptionState.STATE_UNSUBSCRIBED:
        return None
    if epoch.state == SubscriptionState.STATE_SUBSCRIBED and held is None:
        return epoch.deletion_lock
    return held


def audience(state: WorkitemState, sequence: int, worldwide: Iterable[GlobalSubscription], at: int) -> list[str]:
    """Return the AE titles that hear of a change of a workitem, sorted.

    Args:
        state: the workitem, as the message at `sequence` has it.
        worldwide: all global subscriptions.
        at: the point of the stream that the answer is for.
    """
    by_title = {subscription.ae_title: subscription for subscription in worldwide}
    titles = {*by_title, *(entry.ae_title for entry in state.subscriptions)}
    return sorted(title for title in titles if lock_on(state, sequence, title, by_title.get(title), at) is not None)


def is_new_to(state: WorkitemState, sequence: int, subscription: GlobalSubscription) -> bool:
    """Say whether the last change of a global subscription is what made its AE title subscribe to this workitem."""
    latest = subscription.epochs[-1]
    before = lock_on(state, sequence, subscription.ae_title, subscription, latest.sequence - 1)
    return before is None and lock_on(state, sequence, subscription.ae_title, subscription, latest.sequence) is not None


def subscribe(current: SubscriptionState | None, sequence: int, ae_title: str, deletion_lock: bool) -> SubscriptionState:
    """Subscribe an AE title to the whole worklist."""
    return _next(current, sequence, ae_title, SubscriptionState.STATE_SUBSCRIBED, deletion_lock)


def unsubscribe(current: SubscriptionState | None, sequence: int, ae_title: str) -> SubscriptionState:
    """End a global subscription, and with it every subscription of the AE title.

    Raises:
        errors.NotFound: there is none.
    """
    if current is None or current.state == SubscriptionState.STATE_UNSUBSCRIBED:
        raise errors.NotFound(f"{ae_title} does not subscribe to the worklist")
    return _next(current, sequence, ae_title, SubscriptionState.STATE_UNSUBSCRIBED, False)


def suspend(current: SubscriptionState | None, sequence: int, ae_title: str) -> SubscriptionState:
    """Stop subscribing new workitems; subscriptions to existing ones stay.

    Raises:
        errors.NotFound: there is no global subscription.
    """
    if current is None or current.state != SubscriptionState.STATE_SUBSCRIBED:
        raise errors.NotFound(f"{ae_title} does not subscribe to the worklist")
    return _next(current, sequence, ae_title, SubscriptionState.STATE_SUSPENDED, current.deletion_lock)


def _next(
    current: SubscriptionState | None, sequence: int, ae_title: str, state: "SubscriptionState.State.ValueType", deletion_lock: bool
) -> SubscriptionState:
    made = SubscriptionState(ae_title=ae_title, state=state, deletion_lock=deletion_lock)
    if current is not None:
        latest = SubscriptionEpoch(sequence=current.sequence or sequence, state=current.state, deletion_lock=current.deletion_lock)
        made.earlier.extend([*current.earlier, latest][-MAX_EPOCHS:])
    return made
