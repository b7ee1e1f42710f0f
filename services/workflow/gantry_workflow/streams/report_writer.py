"""The one writer of REPORTS: turns each change on WORKITEMS into its event reports.

Every report says which change it is of, which of its reports it is and whether more follow, and is written with
Nats-Expected-Last-Sequence. So whoever continues, after whatever crash, goes on behind the last report, and of two writers one stops.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from gantry.events.v1.events_pb2 import EventReport, SubscriptionState, WorkitemState
from gantry_runtime import call_context, telemetry
from gantry_runtime.events import streams
from gantry_runtime.events.streams import REPORTS, WORKITEMS, JetStreamContext, Message
from gantry_standard import errors
from gantry_workflow.streams.workitems import ALL_SUBSCRIPTIONS
from gantry_workflow.workitems import event_reports, subscriptions, transactions
from gantry_workflow.workitems.subscriptions import WorklistSubscription

log = logging.getLogger(__name__)

BUCKET = "workflow"
CURSOR = "reported"
CURSOR_S = 1.0
"""Seconds between two notes of the cursor. It only saves reading: the last report alone tells where to go on."""


class ReportWriter:
    """Follows WORKITEMS while this process leads."""

    def __init__(self, js: JetStreamContext) -> None:
        self._js = js
        self._worldwide: dict[tuple[str, str], WorklistSubscription] = {}
        """AE title and normalised filter ("" for the whole worklist) → its subscription."""
        self._last_sequence = 0
        self._skip = (0, 0)
        self._has_announced = False
        self.reported = 0
        """Sequence on WORKITEMS up to which this process knows that reports are written."""

    async def write(self) -> None:
        """Write reports for ever, from where the last writer stopped.

        Raises:
            errors.Conflict: another one writes, or the answer to a report was lost: begin again.
            errors.Unavailable: NATS does not answer: begin again.
        """
        bucket = await streams.open_bucket(self._js, BUCKET)
        self._worldwide = {}
        async for message in streams.last_messages(self._js, WORKITEMS, [ALL_SUBSCRIPTIONS]):
            self._note_subscription(SubscriptionState.FromString(message.data), message.sequence)
        after = await self._resume(int((await bucket.get(CURSOR))[0] or b"0"))
        log.info("writing reports", extra={"after": after})
        noted_s = 0.0
        async with aclosing(streams.read_from(self._js, WORKITEMS, after)) as batches:
            async for batch in batches:
                for message in batch:
                    # Reports belong to the request that made the change, so they carry its id.
                    with call_context.entered(call_context.of_headers(message.headers)):
                        await self._report(message)
                    self.reported = message.sequence
                if time.monotonic() - noted_s > CURSOR_S and self.reported > after:
                    await bucket.put(CURSOR, str(self.reported).encode())
                    noted_s, after = time.monotonic(), self.reported

    async def progress(self) -> tuple[int, int]:
        """Return the last sequence of WORKITEMS, and up to where reports are known to be written.

        Raises:
            errors.Unavailable, errors.NotFound: NATS does not answer, or has no such stream yet.
        """
        _, last = await streams.stream_state(self._js, WORKITEMS)
        noted, _ = await (await streams.open_bucket(self._js, BUCKET)).get(CURSOR)
        return last, max(self.reported, int(noted or b"0"))

    async def _resume(self, cursor: int) -> int:
        """Return the sequence to read after; what is written already of the change behind it is skipped."""
        _, self._last_sequence = await streams.stream_state(self._js, REPORTS)
        last = EventReport(source_sequence=cursor)
        try:
            last = EventReport.FromString((await streams.last_message(self._js, REPORTS, "report.>")).data)
        except errors.NotFound:
            log.debug("no report yet")
        self._skip = (last.source_sequence, last.ordinal + 1) if last.more else (0, 0)
        after = max(cursor, last.source_sequence - 1 if last.more else last.source_sequence)
        if not self._has_announced:
            first, _ = await streams.stream_state(self._js, WORKITEMS)
            # A stream that was restored begins far above 1 (`backup`), so this one began with nothing.
            cold = self._last_sequence == 0 and first == 1
            await self._publish(event_reports.restarted(last.source_sequence or after, last.ordinal, last.more, cold))
            self._has_announced = True
        self.reported = max(self.reported, after)
        return after

    async def _report(self, message: Message) -> None:
        skip = self._skip[1] if message.sequence == self._skip[0] else 0
        if message.subject.startswith("workitem."):
            state = transactions.settle(WorkitemState.FromString(message.data), message.sequence)
            for report in event_reports.of_change(state, message.sequence, self._worldwide.values())[skip:]:
                await self._publish(report)
            return
        subscription = self._note_subscription(SubscriptionState.FromString(message.data), message.sequence)
        if subscription.state == SubscriptionState.STATE_SUBSCRIBED and subscription.epochs[-1].deletion_lock:
            await self._report_all(subscription, message.sequence, skip)

    def _note_subscription(self, message: SubscriptionState, sequence: int) -> WorklistSubscription:
        subscription = self._worldwide[message.ae_title, message.filter] = subscriptions.from_message(message, sequence)
        return subscription

    async def _report_all(self, subscription: WorklistSubscription, sequence: int, skip: int) -> None:
        """Write an initial report for every workitem that a subscription with lock now covers (Table CC.2.3-2)."""
        ordinal, waiting = 0, None
        async with aclosing(self._covered(subscription, sequence)) as covered:
            async for state in covered:
                if waiting is not None:
                    if ordinal >= skip:
                        await self._publish(event_reports.initial(waiting, subscription.ae_title, sequence, ordinal, more=True))
                    ordinal += 1
                waiting = state
        if waiting is not None and ordinal >= skip:
            await self._publish(event_reports.initial(waiting, subscription.ae_title, sequence, ordinal, more=False))

    async def _covered(self, subscription: WorklistSubscription, sequence: int) -> AsyncGenerator[WorkitemState, None]:
        """Yield the workitems as they were at `sequence`, in an order that is always the same.

        Two passes over the stream: which message is the last of each workitem (some 100 bytes for each), then these. What others
        write meanwhile comes later and does not count; what is superseded and older than the history is gone, and never is a last one.
        """
        last: dict[str, int] = {}
        own = [other for other in self._worldwide.values() if other.ae_title == subscription.ae_title]
        async with aclosing(self._messages_until(sequence)) as messages:
            async for message in messages:
                last[message.subject] = message.sequence
        async with aclosing(self._messages_until(sequence)) as messages:
            async for message in messages:
                if last[message.subject] == message.sequence:
                    state = transactions.settle(WorkitemState.FromString(message.data), message.sequence)
                    if not state.deleted and subscriptions.is_new_to(state, message.sequence, subscription, own):
                        yield state
                    # A filter looks into each workitem: let others have their turn in between.
                    await asyncio.sleep(0)

    async def _messages_until(self, sequence: int) -> AsyncGenerator[Message, None]:
        """Yield the messages of workitems before `sequence`, which is that of a message on the stream."""
        async with aclosing(streams.read_from(self._js, WORKITEMS, 0)) as batches:
            async for batch in batches:
                for message in batch:
                    if message.sequence >= sequence:
                        return
                    if message.subject.startswith("workitem."):
                        yield message

    async def _publish(self, report: EventReport) -> None:
        headers = {"Nats-Expected-Last-Sequence": str(self._last_sequence)}
        subject = f"report.{report.workitem_uid}"
        self._last_sequence = await streams.publish(self._js, subject, report.SerializeToString(), headers)
        telemetry.REPORTS_WRITTEN.inc()
