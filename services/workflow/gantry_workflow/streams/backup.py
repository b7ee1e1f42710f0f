"""Copies all workitems and subscriptions to the object store, so that a loss of the NATS volume loses about a second of changes.

There is one object per subject with its last message: `workitems/{uid}`, `subscriptions/{AE title in hex}` and
`subscriptions/{AE title in hex}.{filter id}`. Copies are written shortly after the changes. They are restored at start if the stream
does not exist.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gantry.blob.v1 import blob_pb2
from gantry.events.v1.events_pb2 import MessageCopy, SubscriptionState, WorkitemState
from gantry_runtime import call_context, telemetry
from gantry_runtime.events import streams
from gantry_runtime.events.streams import WORKITEMS, JetStreamContext, Message
from gantry_runtime.rpc import rpc_errors
from gantry_standard import errors
from gantry_workflow.streams.report_writer import BUCKET
from gantry_workflow.streams.report_writer import CURSOR as REPORTED
from gantry_workflow.workitems import transactions

if TYPE_CHECKING:
    from gantry.blob.v1.blob_pb2_grpc import BlobServiceAsyncStub

log = logging.getLogger(__name__)

CURSOR = "copied"
RESTORED = "restored"
GATHER_S = 0.3
"""Seconds during which changes are gathered, so that several changes of one workitem need one copy."""
CONCURRENCY = 8
BLOB_S = 30.0
MAX_WAITING = 100
"""Most copies that may wait for another attempt; with more, blob counts as unavailable."""
OBSERVE_S = 5.0
"""Seconds between two updates of the metrics of the lag."""
SKIPPED_SEQUENCES = 1_000_000
"""Distance of the first sequence of a restored stream from the highest sequence of a copy. Changes that were not copied had sequences in
between, which must not be used again; there are fewer of them than this."""
PREFIXES = ("workitems/", "subscriptions/")


def object_of(subject: str) -> str:
    """Return the key of the object that holds the last message of a subject."""
    kind, _, rest = subject.partition(".")
    return f"workitems/{rest}" if kind == "workitem" else f"subscriptions/{rest.removesuffix('.global')}"


@dataclass(frozen=True)
class Lag:
    """How far the copies are behind the stream: number of changes that are not copied, and seconds since the oldest of them."""

    changes: int = 0
    seconds: float = 0.0


class Copier:
    """Writes the copies in the process that holds the lease; reports their lag in every process."""

    def __init__(self, js: JetStreamContext, blob: "BlobServiceAsyncStub") -> None:
        self._js = js
        self._blob = blob
        self._waiting: dict[str, int] = {}
        """Subject → sequence of its oldest change without a copy, for the subjects whose last copy failed."""

    async def run(self) -> None:
        """Follow the stream until cancelled and copy the last message of each subject that changed.

        A copy that fails is tried again while others are written; the cursor stays before it. A copy that blob refuses permanently is
        logged and skipped.

        Raises:
            errors.Unavailable: NATS does not answer, or more than MAX_WAITING copies have failed. The next call writes the missing
                copies.
        """
        bucket = await streams.open_bucket(self._js, BUCKET)
        cursor = reached = int((await bucket.get(CURSOR))[0] or b"0")
        self._waiting = {}
        async with aclosing(streams.read_from(self._js, WORKITEMS, cursor, batch=2000)) as batches:
            async for batch in batches:
                await self._copy_all({message.subject: message for message in batch}, {m.subject: m.sequence for m in reversed(batch)})
                reached = batch[-1].sequence if batch else reached
                copied = min((sequence - 1 for sequence in self._waiting.values()), default=reached)
                if copied != cursor:
                    await bucket.put(CURSOR, str(copied).encode())
                    cursor = copied
                if batch:
                    await asyncio.sleep(GATHER_S)

    async def _copy_all(self, changed: dict[str, Message], first: dict[str, int]) -> None:
        """Write the copies of the subjects that changed and of those whose last copy failed.

        Args:
            changed: subject → its last message in the batch.
            first: subject → sequence of its first message in the batch.
        """
        free = asyncio.Semaphore(CONCURRENCY)

        async def copy(subject: str) -> None:
            async with free:
                since = self._waiting.get(subject) or first[subject]
                message = changed.get(subject) or await self._last(subject)
                if message is None or await self._copy(message):
                    self._waiting.pop(subject, None)
                else:
                    self._waiting[subject] = since

        async with asyncio.TaskGroup() as group:
            for subject in {*changed, *self._waiting}:
                group.create_task(copy(subject))
        if len(self._waiting) > MAX_WAITING:
            raise errors.Unavailable("blob does not store copies of workitems")

    async def _last(self, subject: str) -> Message | None:
        try:
            return await streams.last_message(self._js, WORKITEMS, subject)
        except errors.NotFound:
            return None

    async def _copy(self, message: Message) -> bool:
        """Write one copy; return False if it must be tried again."""
        request = blob_pb2.PutObjectRequest(object=object_of(message.subject), data=_encoded(message), replace=True)
        try:
            # The call context is that of the request that made the change
            with call_context.entered(call_context.of_headers(message.headers)), rpc_errors.translated("blob"):
                await self._blob.PutObject(request, timeout=BLOB_S)
        except (errors.RequestError, errors.ResourceError) as error:
            log.error("copy refused", extra={"object": request.object, "sequence": message.sequence, "reason": error.message})
            telemetry.WORKITEM_COPIES.labels("refused").inc()
            return True
        except errors.GantryError as error:
            log.warning("copy failed", extra={"object": request.object, "sequence": message.sequence, "reason": error.message})
            telemetry.WORKITEM_COPIES.labels("failed").inc()
            return False
        telemetry.WORKITEM_COPIES.labels("written").inc()
        return True

    async def lag(self) -> Lag:
        """Return how far the copies are behind, whichever process writes them.

        Raises:
            errors.Unavailable: NATS does not answer.
            errors.NotFound: there is no stream WORKITEMS yet.
        """
        _, last = await streams.stream_state(self._js, WORKITEMS)
        copied = int((await (await streams.open_bucket(self._js, BUCKET)).get(CURSOR))[0] or b"0")
        if copied >= last:
            return Lag()
        try:
            oldest = await streams.next_message(self._js, WORKITEMS, ">", copied)
        except errors.NotFound:
            return Lag()
        return Lag(last - copied, max(0.0, time.time() - oldest.time_s))

    async def observe(self) -> None:
        """Update the metrics of the lag every OBSERVE_S seconds, until cancelled."""
        while True:
            try:
                lag = await self.lag()
                telemetry.WORKITEM_COPY_LAG_MESSAGES.set(lag.changes)
                telemetry.WORKITEM_COPY_LAG_SECONDS.set(lag.seconds)
            except errors.GantryError as error:
                log.debug("lag of copies unknown", extra={"reason": error.message})
            await asyncio.sleep(OBSERVE_S)


def _encoded(message: Message) -> bytes:
    """Encode the copy of a message. A large state is copied without the description of its change, which is not restored."""
    data = message.data
    if len(data) > transactions.MAX_STATE_BYTES and message.subject.startswith("workitem."):
        data = transactions.without_change(WorkitemState.FromString(data)).SerializeToString()
    return MessageCopy(subject=message.subject, sequence=message.sequence, data=data).SerializeToString()


async def restore(js: JetStreamContext, blob: "BlobServiceAsyncStub") -> int:
    """Create WORKITEMS, and, if it did not exist, restore the workitems and subscriptions from the object store.

    It may be interrupted and called again. Restored states do not count as changes: there are no event reports for them.

    Returns:
        The number of restored workitems and subscriptions.

    Raises:
        errors.Unavailable: NATS or blob does not answer.
    """
    bucket = await streams.open_bucket(js, BUCKET)
    done, _ = await bucket.get(RESTORED)
    if done:
        return 0
    first = await _first_sequence(js, blob)
    await streams.ensure_stream(js, WORKITEMS, first)
    count = 0
    async with aclosing(_copies(blob)) as copies:
        async for copy in copies:
            try:
                await streams.publish(js, copy.subject, _restorable(copy), {"Nats-Expected-Last-Subject-Sequence": "0"})
                count += 1
            except errors.Conflict:
                log.info("already restored", extra={"subject": copy.subject.split(".")[0]})
    _, last = await streams.stream_state(js, WORKITEMS)
    for cursor in (CURSOR, REPORTED) if count else ():
        await bucket.put(cursor, str(last).encode())
    await bucket.put(RESTORED, b"yes")
    if count:
        log.warning("workitems restored from the object store", extra={"count": count})
    return count


async def _first_sequence(js: JetStreamContext, blob: "BlobServiceAsyncStub") -> int:
    """Return the first sequence of a new stream, above the sequence of every copy. If the stream exists, copies are not read."""
    try:
        await streams.stream_state(js, WORKITEMS)
        return 1
    except errors.NotFound:
        log.debug("no stream of workitems yet")
    highest = 0
    async with aclosing(_copies(blob)) as copies:
        async for copy in copies:
            highest = max(highest, copy.sequence)
    return highest + SKIPPED_SEQUENCES if highest else 1


def _restorable(copy: MessageCopy) -> bytes:
    """Return the message to restore: with its former sequences set, and without a change, so that no event report is sent again."""
    if not copy.subject.startswith("workitem."):
        subscription = SubscriptionState.FromString(copy.data)
        subscription.sequence = subscription.sequence or copy.sequence
        return subscription.SerializeToString()
    state = transactions.with_sequences(WorkitemState.FromString(copy.data), copy.sequence)
    state.ClearField("change")
    return state.SerializeToString()


async def _copies(blob: "BlobServiceAsyncStub") -> AsyncGenerator[MessageCopy, None]:
    with rpc_errors.translated("blob"):
        for prefix in PREFIXES:
            async for page in blob.ListObjects(blob_pb2.ListObjectsRequest(prefix=prefix), timeout=600):
                for entry in page.objects:
                    data = [r.data async for r in blob.Read(blob_pb2.ReadRequest(object=entry.object), timeout=BLOB_S)]
                    yield MessageCopy.FromString(b"".join(data))
