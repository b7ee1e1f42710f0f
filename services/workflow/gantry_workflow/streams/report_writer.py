"""The only writer of the stream REPORTS: publishes the event reports of each change on WORKITEMS.

Each report has the sequence of its change, its index among the reports of the change, and whether more follow. It is published with
Nats-Expected-Last-Sequence. So a writer continues after the last report, also after a crash, and of two writers one stops.
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
"""Seconds between two updates of the cursor. The cursor only shortens reading: the last report alone determines where to continue."""


class ReportWriter:
    """Follows WORKITEMS and publishes event reports, while this process holds the lease."""

    def __init__(self, js: JetStreamContext) -> None:
        self._js = js
        self._worklist_subscriptions: dict[tuple[str, str], WorklistSubscription] = {}
        """AE title and normalised filter ("" for the whole worklist) → its subscription."""
        self._last_sequence = 0
        self._skip = (0, 0)
        self._has_announced = False
        self.reported = 0
        """Sequence on WORKITEMS up to which reports are written, as far as this process knows."""

    async def write(self) -> None:
        """Write reports until cancelled, from where the last writer stopped.

        Raises:
            errors.Conflict: there is another writer, or the acknowledgement of a report was lost: call it again.
            errors.Unavailable: NATS does not answer: call it again.
        """
        bucket = await streams.open_bucket(self._js, BUCKET)
        self._worklist_subscriptions = {}
        async for message in streams.last_messages(self._js, WORKITEMS, [ALL_SUBSCRIPTIONS]):
            self._remember_subscription(SubscriptionState.FromString(message.data), message.sequence)
        after = await self._resume(int((await bucket.get(CURSOR))[0] or b"0"))
        log.info("writing reports", extra={"after": after})
        stored_s = 0.0
        async with aclosing(streams.read_from(self._js, WORKITEMS, after)) as batches:
            async for batch in batches:
                for message in batch:
                    # The call context is that of the request that made the change, so reports have its request id
                    with call_context.entered(call_context.of_headers(message.headers)):
                        await self._report(message)
                    self.reported = message.sequence
                if time.monotonic() - stored_s > CURSOR_S and self.reported > after:
                    await bucket.put(CURSOR, str(self.reported).encode())
                    stored_s, after = time.monotonic(), self.reported

    async def progress(self) -> tuple[int, int]:
        """Return the last sequence of WORKITEMS, and the sequence up to which reports are known to be written.

        Raises:
            errors.Unavailable: NATS does not answer.
            errors.NotFound: there is no stream WORKITEMS yet.
        """
        _, last = await streams.stream_state(self._js, WORKITEMS)
        stored_cursor, _ = await (await streams.open_bucket(self._js, BUCKET)).get(CURSOR)
        return last, max(self.reported, int(stored_cursor or b"0"))

    async def _resume(self, cursor: int) -> int:
        """Return the sequence after which to read WORKITEMS, and set which reports of the next change are already written."""
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
            # A restored stream begins far above 1 (`backup.SKIPPED_SEQUENCES`), so this stream was created empty
            cold = self._last_sequence == 0 and first == 1
            await self._publish(event_reports.restarted(last.source_sequence or after, last.ordinal, last.more, cold))
            self._has_announced = True
        self.reported = max(self.reported, after)
        return after

    async def _report(self, message: Message) -> None:
        skip = self._skip[1] if message.sequence == self._skip[0] else 0
        if message.subject.startswith("workitem."):
            state = transactions.with_sequences(WorkitemState.FromString(message.data), message.sequence)
            for report in event_reports.of_change(state, message.sequence, self._worklist_subscriptions.values())[skip:]:
                await self._publish(report)
            return
        subscription = self._remember_subscription(SubscriptionState.FromString(message.data), message.sequence)
        if subscription.state == SubscriptionState.STATE_SUBSCRIBED and subscription.epochs[-1].deletion_lock:
            await self._report_all(subscription, message.sequence, skip)

    def _remember_subscription(self, message: SubscriptionState, sequence: int) -> WorklistSubscription:
        subscription = self._worklist_subscriptions[message.ae_title, message.filter] = subscriptions.from_message(message, sequence)
        return subscription

    async def _report_all(self, subscription: WorklistSubscription, sequence: int, skip: int) -> None:
        """Write an initial report for every workitem that a subscription with deletion lock now covers (PS3.4 Table CC.2.3-2)."""
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
        """Yield the workitems that `subscription` newly covers, as they were at `sequence`; repeated calls yield the same order.

        The stream is read twice: first to determine the last message of each workitem (about 100 bytes of memory each), then to read
        these messages. Later messages are ignored. Purged messages are superseded ones, so they do not matter.
        """
        last: dict[str, int] = {}
        own = [other for other in self._worklist_subscriptions.values() if other.ae_title == subscription.ae_title]
        async with aclosing(self._messages_until(sequence)) as messages:
            async for message in messages:
                last[message.subject] = message.sequence
        async with aclosing(self._messages_until(sequence)) as messages:
            async for message in messages:
                if last[message.subject] == message.sequence:
                    state = transactions.with_sequences(WorkitemState.FromString(message.data), message.sequence)
                    if not state.deleted and subscriptions.is_new_to(state, message.sequence, subscription, own):
                        yield state
                    # Filters take time for each workitem: let other tasks run in between
                    await asyncio.sleep(0)

    async def _messages_until(self, sequence: int) -> AsyncGenerator[Message, None]:
        """Yield the messages of workitems before `sequence`, which must be the sequence of a message on the stream."""
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
