"""Follows the stream WORKITEMS into the searchable copy of workitems; its version is the stream's sequence."""

import asyncio
import logging

from google.protobuf.message import DecodeError

from gantry.events.v1.events_pb2 import WorkitemState
from gantry_index.store import WorkitemDocument, WorkitemStore
from gantry_runtime import events, telemetry
from gantry_standard import errors

log = logging.getLogger(__name__)
SUBJECT = "workitem.>"


class WorkitemReader:
    """Applies every state of a workitem to the store."""

    def __init__(self, store: WorkitemStore, client: events.Client) -> None:
        self.store = store
        self.applied = 0
        self._js = client.jetstream()
        self._moved = asyncio.Condition()

    async def run(self) -> None:
        """Follow the stream for ever; wait where there is none yet."""
        while True:
            try:
                if await events.describe_stream(self._js, events.WORKITEMS) is None:
                    await asyncio.sleep(0.2)
                    continue
                await self._follow()
            except errors.Conflict:
                log.warning("workitems begin anew")
                await self.store.clear()
                self.applied = 0
            except errors.RetryLater:
                await asyncio.sleep(0.2)

    async def _follow(self) -> None:
        self.applied = await self.store.cursor()
        async for messages in events.read_from(self._js, events.WORKITEMS, self.applied, [SUBJECT]):
            if not messages:
                if await events.describe_stream(self._js, events.WORKITEMS) is None:
                    return
                continue
            documents = [document for message in messages if (document := _document(message))]
            await self.store.apply(documents, messages[-1].sequence)
            telemetry.EVENTS_APPLIED.labels("workitem").inc(len(messages))
            async with self._moved:
                self.applied = messages[-1].sequence
                self._moved.notify_all()

    async def wait_until_current(self, timeout_s: float) -> None:
        """Wait until what is on the stream now is applied.

        Raises:
            errors.Unavailable: it is not within the time.
        """
        last = await events.last_sequence(self._js, events.WORKITEMS, SUBJECT)
        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self.applied >= last)
        except TimeoutError as error:
            raise errors.Unavailable(f"index has applied {self.applied} of {last} on WORKITEMS") from error


def _document(message: events.Message) -> WorkitemDocument | None:
    try:
        state = WorkitemState.FromString(message.data)
    except DecodeError:
        log.error("event passed", extra={"sequence": message.sequence, "subject": message.subject})
        telemetry.EVENTS_POISON.labels("workitem").inc()
        return None
    return WorkitemDocument(state.workitem_uid, message.sequence, state.dicom_json, state.deleted)
