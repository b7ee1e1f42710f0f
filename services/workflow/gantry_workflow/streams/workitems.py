"""Workitems and subscriptions on the stream WORKITEMS: the last message of a subject is the state, every change a compare-and-set.

A change that was written is an event; there is nothing else to be done for it before it is answered. Whoever loses the
comparison, or hears nothing, looks whether its own change is on the stream before it tries again.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar
from weakref import WeakValueDictionary

from gantry.events.v1.events_pb2 import SubscriptionState, WorkitemState
from gantry_runtime import telemetry
from gantry_runtime.byte_bounded_cache import ByteBoundedCache
from gantry_runtime.events import streams
from gantry_runtime.events.streams import JetStreamContext
from gantry_standard import errors
from gantry_standard.http.random_bits import random_hex
from gantry_workflow.workitems import subscriptions, transactions
from gantry_workflow.workitems.subscriptions import WorklistSubscription
from gantry_workflow.workitems.transactions import Decision

PUBLISH_S = 1.5
"""Seconds that one attempt waits for NATS."""
CHANGE_S = 4.5
"""Seconds for a change with all its attempts; with the turn below the deadline of the call."""
TURN_S = 10.0
"""Seconds that a change waits for others of the same workitem in this process."""
KEPT_BYTES = 16 << 20
"""Most bytes of states that are kept to begin the next change with."""
ATTEMPTS = 100
"""Most comparisons that one change may lose."""

ALL_WORKITEMS = "workitem.>"
ALL_SUBSCRIPTIONS = "subscription.>"

M = TypeVar("M", WorkitemState, SubscriptionState)
T = TypeVar("T")


def workitem_subject(uid: str) -> str:
    """Return the subject of a workitem; the UID is checked by whoever took it from a request."""
    return f"workitem.{uid}"


def subscription_subject(ae_title: str, text: str = "") -> str:
    """Return the subject of a subscription of an AE title to the worklist.

    Args:
        text: the normalised filter; "" for the whole worklist.
    """
    return f"subscription.{ae_title.encode().hex()}.{subscriptions.filter_id(text) if text else 'global'}"


class Workitems:
    """Reads and changes states."""

    def __init__(self, js: JetStreamContext) -> None:
        self._js = js
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Within one process changes of one subject take turns: a crowd would only make each other lose the comparison."""
        self._written = ByteBoundedCache[tuple[bytes, int]](KEPT_BYTES, lambda written: len(written[0]) + 256)
        """subject → the state that this process wrote last, and its sequence. The next change begins with it: where somebody else has
        written meanwhile the comparison fails, and a refusal is never decided from it."""

    async def read(self, uid: str) -> tuple[WorkitemState | None, int]:
        """Return the state of a workitem and its sequence; (None, 0) where it never was.

        Raises:
            errors.Unavailable: NATS does not answer.
        """
        state, sequence = await self._last(workitem_subject(uid), WorkitemState)
        return (transactions.settle(state, sequence) if state else None), sequence

    async def subscriptions(self, ae_title: str = "") -> list[WorklistSubscription]:
        """Return the subscriptions to the worklist, whole and filtered, ended ones too.

        Args:
            ae_title: whose; "" for all.
        """
        subject = f"subscription.{ae_title.encode().hex()}.>" if ae_title else ALL_SUBSCRIPTIONS
        return [
            subscriptions.from_message(SubscriptionState.FromString(message.data), message.sequence)
            async for message in streams.last_messages(self._js, streams.WORKITEMS, [subject])
        ]

    async def change(self, uid: str, decide: Callable[[WorkitemState | None, int], Decision], kind: str, is_new: bool = False) -> Decision:
        """Change a workitem so that nothing that others write is overwritten.

        Args:
            decide: returns what becomes of the state that it is given (with its sequence), or raises the refusal; may be called again.
            kind: for metrics.
            is_new: the workitem is expected not to be there: one question less.

        Raises:
            errors.PayloadTooLarge: the new state would be larger than a copy may be, or than NATS takes.
            errors.Unavailable: NATS does not answer; the change may or may not have been made.
        """

        def settled(state: WorkitemState | None, sequence: int) -> tuple[WorkitemState | None, Decision]:
            decision = decide(transactions.settle(state, sequence) if state else None, sequence)
            return decision.state, decision

        decision = await self._change(workitem_subject(uid), WorkitemState, settled, is_new)
        if decision.state is not None:
            telemetry.WORKITEM_CHANGES.labels(kind).inc()
        return decision

    async def change_subscription(
        self, ae_title: str, text: str, decide: Callable[[SubscriptionState | None, int], SubscriptionState]
    ) -> None:
        """Change a subscription to the worklist, in the same way.

        Args:
            text: the normalised filter; "" for the whole worklist.
        """

        def decided(state: SubscriptionState | None, sequence: int) -> tuple[SubscriptionState, None]:
            return decide(state, sequence), None

        await self._change(subscription_subject(ae_title, text), SubscriptionState, decided)

    async def _last(self, subject: str, cls: type[M]) -> tuple[M | None, int]:
        try:
            message = await streams.last_message(self._js, streams.WORKITEMS, subject)
        except errors.NotFound:
            return None, 0
        return cls.FromString(message.data), message.sequence

    async def _change(self, subject: str, cls: type[M], decide: Callable[[M | None, int], tuple[M | None, T]], is_new: bool = False) -> T:
        change_id = random_hex(16)
        tried: tuple[M, int, T] | None = None
        try:
            async with self._turn(subject), asyncio.timeout(CHANGE_S):
                kept = self._written.pop(subject)
                state: M | None
                for attempt in range(ATTEMPTS):
                    if kept is not None:
                        state, sequence = cls.FromString(kept[0]), kept[1]
                    else:
                        state, sequence = (None, 0) if is_new and attempt == 0 else await self._last(subject, cls)
                    is_current, kept = kept is None, None
                    if tried and tried[1] != sequence and await self._is_written(subject, tried[0], tried[1]):
                        # It was on its way while NATS came back: its own outcome must not refuse it.
                        return tried[2]
                    try:
                        made, result = decide(state, sequence)
                    except errors.GantryError:
                        if is_current:
                            raise
                        continue
                    if made is None and is_current:
                        return result
                    if made is None:
                        continue
                    if await self._write(subject, made, sequence, change_id):
                        return result
                    tried = made, sequence, result
        except TimeoutError:
            raise errors.Unavailable("NATS does not answer in time; the change may or may not have been made") from None
        raise errors.Overloaded(f"{subject.split('.', 1)[0]} is changed by too many at once")

    @asynccontextmanager
    async def _turn(self, subject: str) -> AsyncIterator[None]:
        turn = self._turns.setdefault(subject, asyncio.Lock())
        async with asyncio.timeout(TURN_S):
            await turn.acquire()
        try:
            yield
        finally:
            turn.release()

    async def _write(self, subject: str, state: WorkitemState | SubscriptionState, sequence: int, change_id: str) -> bool:
        """Write a state that follows `sequence`; return whether it is there.

        Raises:
            errors.PayloadTooLarge: it has more bytes than a copy may have, or than NATS takes.
        """
        state.change_id = change_id
        if isinstance(state, WorkitemState):
            transactions.check_size(state)
        data = state.SerializeToString()
        headers = {"Nats-Expected-Last-Subject-Sequence": str(sequence)}
        try:
            written = await streams.publish(self._js, subject, data, headers, PUBLISH_S)
            self._written.put(subject, (data, written))
            return True
        except errors.Conflict:
            return await self._is_written(subject, state, sequence)
        except errors.Unavailable:
            # What was sent before may still arrive; the comparison then lets only one of both in.
            await asyncio.sleep(0.05)
            return await self._is_written(subject, state, sequence)

    async def _is_written(self, subject: str, state: WorkitemState | SubscriptionState, after: int) -> bool:
        while True:
            try:
                message = await streams.next_message(self._js, streams.WORKITEMS, subject, after)
            except errors.NotFound:
                return False
            except errors.Unavailable:
                await asyncio.sleep(0.05)
                continue
            if type(state).FromString(message.data).change_id == state.change_id:
                return True
            after = message.sequence
