"""Applies the stream WORKITEMS to the searchable copy of workitems. The version of a workitem is the sequence on the stream."""

import asyncio
import logging
import time
from contextlib import suppress

from google.protobuf.message import DecodeError

from gantry.events.v1.events_pb2 import WorkitemState
from gantry_index.stores.port import WorkitemDocument, WorkitemStore
from gantry_runtime import call_context, logs, telemetry
from gantry_runtime.events import streams
from gantry_standard import errors

log = logging.getLogger(__name__)
SUBJECT = "workitem.>"
GATHER_S = 0.05
"""Shortest time in seconds between two batches, so that several quick changes of a workitem are written once. A single change is applied at
once, and so are changes for which a search waits."""


class WorkitemReader:
    """Applies every state of a workitem to the store."""

    def __init__(self, store: WorkitemStore, client: streams.Client) -> None:
        self.store = store
        self.applied = 0
        self._js = client.jetstream()
        self._moved = asyncio.Condition()
        self._is_waited_for = asyncio.Event()
        self._waiting = 0

    async def run(self) -> None:
        """Follow the stream without end; wait until it exists."""
        while True:
            try:
                if await streams.describe_stream(self._js, streams.WORKITEMS) is None:
                    await asyncio.sleep(0.2)
                    continue
                await self._follow()
            except errors.Conflict:
                log.warning("index of workitems is built again, because the stream is another one")
                await self.store.clear()
                self.applied = 0
            except errors.RetryLater:
                await asyncio.sleep(0.2)

    async def _follow(self) -> None:
        self.applied = await self.store.cursor()
        async for messages in streams.read_from(self._js, streams.WORKITEMS, self.applied, [SUBJECT], ticks=False):
            if not messages:
                if await streams.describe_stream(self._js, streams.WORKITEMS) is None:
                    return
                continue
            latest = {document.workitem_uid: document for message in messages if (document := _document(message))}
            await self._apply(list(latest.values()), messages[-1].sequence)
            telemetry.EVENTS_APPLIED.labels("workitem").inc(len(messages))
            for message in messages:
                logs.applied(log, call_context.of_headers(message.headers), message.subject, time.time() - message.time_s)
            async with self._moved:
                self.applied = messages[-1].sequence
                self._moved.notify_all()
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER_S):
                    await self._is_waited_for.wait()

    async def _apply(self, documents: list[WorkitemDocument], sequence: int) -> None:
        """Apply documents. Those that the store cannot parse are logged and passed."""
        try:
            await self.store.apply(documents, sequence)
        except errors.CorruptInstance as error:
            if len(documents) > 1:
                for document in documents:
                    await self._apply([document], document.version)
            else:
                log.error("event passed", extra={"sequence": documents[0].version, "reason": error.message})
                telemetry.EVENTS_POISON.labels("workitem").inc()
            await self.store.apply([], sequence)

    async def wait_until_current(self, timeout_s: float) -> None:
        """Wait until all events that are on the stream now are applied.

        Raises:
            errors.Unavailable: they are not applied within `timeout_s` seconds.
        """
        last = await streams.last_sequence(self._js, streams.WORKITEMS, SUBJECT)
        self._waiting += 1
        self._is_waited_for.set()
        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self.applied >= last)
        except TimeoutError as error:
            raise errors.Unavailable(f"index has applied {self.applied} of {last} on WORKITEMS") from error
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._is_waited_for.clear()


def _document(message: streams.Message) -> WorkitemDocument | None:
    try:
        state = WorkitemState.FromString(message.data)
    except DecodeError:
        log.error("event passed", extra={"sequence": message.sequence, "subject": message.subject})
        telemetry.EVENTS_POISON.labels("workitem").inc()
        return None
    return WorkitemDocument(state.workitem_uid, message.sequence, state.dicom_json, state.deleted)
