"""Workitems and subscriptions on the stream WORKITEMS. The last message of a subject is its state; every change is a compare-and-set.

A change is complete when its message is on the stream. If the comparison fails, or NATS does not answer, the writer checks whether its
own message is on the stream before it tries again.
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
"""Seconds for a change with all its attempts. Together with TURN_S it is below the deadline of the call."""
TURN_S = 10.0
"""Seconds that a change waits for other changes of the same workitem in this process."""
CACHED_BYTES = 16 << 20
"""Most bytes of cached states, which the next change begins with."""
ATTEMPTS = 100
"""Most attempts of one change; each fails because another change was faster."""

ALL_WORKITEMS = "workitem.>"
ALL_SUBSCRIPTIONS = "subscription.>"

M = TypeVar("M", WorkitemState, SubscriptionState)
T = TypeVar("T")


def workitem_subject(uid: str) -> str:
    """Return the subject of a workitem. The caller must have checked the UID."""
    return f"workitem.{uid}"


def subscription_subject(ae_title: str, text: str = "") -> str:
    """Return the subject of a subscription of an AE title to the worklist.

    Args:
        text: the normalised filter; "" for the whole worklist.
    """
    return f"subscription.{ae_title.encode().hex()}.{subscriptions.filter_id(text) if text else 'global'}"


class Workitems:
    """Reads and changes the states of workitems and of subscriptions to the worklist."""

    def __init__(self, js: JetStreamContext) -> None:
        self._js = js
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Subject → lock, which makes changes of one subject sequential within a process: concurrent ones would fail the comparison."""
        self._written = ByteBoundedCache[tuple[bytes, int]](CACHED_BYTES, lambda written: len(written[0]) + 256)
        """Subject → the state that this process wrote last, and its sequence. The next change begins with it. If another process has
        written meanwhile, the comparison fails. A request is never refused because of a cached state."""

    async def read(self, uid: str) -> tuple[WorkitemState | None, int]:
        """Return the state of a workitem and its sequence; (None, 0) if there is no such workitem.

        Raises:
            errors.Unavailable: NATS does not answer.
        """
        state, sequence = await self._last(workitem_subject(uid), WorkitemState)
        return (transactions.with_sequences(state, sequence) if state else None), sequence

    async def subscriptions(self, ae_title: str = "") -> list[WorklistSubscription]:
        """Return the subscriptions to the worklist, whole and filtered, ended ones included.

        Args:
            ae_title: only the subscriptions of this AE title; "" for all.
        """
        subject = f"subscription.{ae_title.encode().hex()}.>" if ae_title else ALL_SUBSCRIPTIONS
        return [
            subscriptions.from_message(SubscriptionState.FromString(message.data), message.sequence)
            async for message in streams.last_messages(self._js, streams.WORKITEMS, [subject])
        ]

    async def change(self, uid: str, decide: Callable[[WorkitemState | None, int], Decision], kind: str, is_new: bool = False) -> Decision:
        """Change a workitem without overwriting concurrent changes.

        Args:
            decide: returns the decision for a state and its sequence, or raises an error if the request is refused. It may be called
                several times.
            kind: label of the metric of changes.
            is_new: the workitem is expected not to exist, which saves reading its state.

        Raises:
            errors.PayloadTooLarge: the new state is larger than a copy, or a message of NATS, may be.
            errors.Unavailable: NATS does not answer; the change may or may not have been made.
            errors.Overloaded: the comparison failed ATTEMPTS times.
        """

        def decided_state(state: WorkitemState | None, sequence: int) -> tuple[WorkitemState | None, Decision]:
            decision = decide(transactions.with_sequences(state, sequence) if state else None, sequence)
            return decision.state, decision

        decision = await self._change(workitem_subject(uid), WorkitemState, decided_state, is_new)
        if decision.state is not None:
            telemetry.WORKITEM_CHANGES.labels(kind).inc()
        return decision

    async def change_subscription(
        self, ae_title: str, text: str, decide: Callable[[SubscriptionState | None, int], SubscriptionState]
    ) -> None:
        """Change a subscription to the worklist without overwriting concurrent changes.

        Args:
            text: the normalised filter; "" for the whole worklist.
            decide: as for `change`.

        Raises:
            errors.Unavailable, errors.Overloaded: as `change`.
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
                cached = self._written.pop(subject)
                state: M | None
                for attempt in range(ATTEMPTS):
                    if cached is not None:
                        state, sequence = cls.FromString(cached[0]), cached[1]
                    else:
                        state, sequence = (None, 0) if is_new and attempt == 0 else await self._last(subject, cls)
                    is_current, cached = cached is None, None
                    if tried and tried[1] != sequence and await self._is_written(subject, tried[0], tried[1]):
                        # The message arrived after NATS had recovered. The change must not be refused because of its own result
                        return tried[2]
                    try:
                        new_state, result = decide(state, sequence)
                    except errors.GantryError:
                        if is_current:
                            raise
                        continue
                    if new_state is None and is_current:
                        return result
                    if new_state is None:
                        continue
                    if await self._write(subject, new_state, sequence, change_id):
                        return result
                    tried = new_state, sequence, result
        except TimeoutError:
            raise errors.Unavailable("NATS does not answer in time; the change may or may not have been made") from None
        raise errors.Overloaded(f"too many concurrent changes of one {subject.split('.', 1)[0]}")

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
        """Publish a state if the last message of its subject has `sequence`; return whether the state is on the stream.

        Raises:
            errors.PayloadTooLarge: the state is larger than a copy, or a message of NATS, may be.
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
            # The first message may still arrive; then the comparison accepts only one of the two
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
