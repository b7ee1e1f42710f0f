"""Copies of all workitems and subscriptions in the object store, so that the loss of NATS's whole volume costs at most a second.

One object per subject, `workitems/{uid}`, `subscriptions/{AE title in hex}` and `subscriptions/{AE title in hex}.{filter id}`, holds its
last message. Written behind the stream,
restored at start when the stream is not there.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

import grpc.aio

from gantry.blob.v1 import blob_pb2
from gantry.events.v1.events_pb2 import MessageCopy, SubscriptionState, WorkitemState
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
"""Seconds in which the changes of one workitem become one copy."""
CONCURRENCY = 8
BLOB_S = 30.0
SKIPPED_SEQUENCES = 1_000_000
"""How far above the last known sequence a stream begins anew: more than a second's changes, which may have been lost."""
PREFIXES = ("workitems/", "subscriptions/")


def object_of(subject: str) -> str:
    """Return the key of the object that holds the last message of a subject."""
    kind, _, rest = subject.partition(".")
    return f"workitems/{rest}" if kind == "workitem" else f"subscriptions/{rest.removesuffix('.global')}"


async def copy(js: JetStreamContext, blob: "BlobServiceAsyncStub") -> None:
    """Follow the stream for ever and write the last message of each subject that changed.

    Raises:
        errors.Unavailable: NATS or blob does not answer; what is not copied is copied by the next call.
    """
    bucket = await streams.open_bucket(js, BUCKET)
    cursor = int((await bucket.get(CURSOR))[0] or b"0")
    async with aclosing(streams.read_from(js, WORKITEMS, cursor, batch=2000)) as batches:
        async for batch in batches:
            if not batch:
                continue
            last = {message.subject: message for message in batch}
            await _put_all(blob, list(last.values()))
            await bucket.put(CURSOR, str(batch[-1].sequence).encode())
            await asyncio.sleep(GATHER_S)


async def _put_all(blob: "BlobServiceAsyncStub", messages: list[Message]) -> None:
    free = asyncio.Semaphore(CONCURRENCY)

    async def put(message: Message) -> None:
        data = MessageCopy(subject=message.subject, sequence=message.sequence, data=message.data).SerializeToString()
        async with free:
            await blob.PutObject(blob_pb2.PutObjectRequest(object=object_of(message.subject), data=data, replace=True), timeout=BLOB_S)

    try:
        async with asyncio.TaskGroup() as group:
            for message in messages:
                group.create_task(put(message))
    except* grpc.aio.AioRpcError as failures:
        failure = failures.exceptions[0]
        raise errors.Unavailable("blob does not take copies of workitems") from failure


async def restore(js: JetStreamContext, blob: "BlobServiceAsyncStub") -> int:
    """Make the streams, with the workitems and subscriptions of the object store where WORKITEMS was not there.

    It may be interrupted and called again. Restored states are no changes: they lead to no reports.

    Returns:
        How many were restored.

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
        async for found in copies:
            try:
                await streams.publish(js, found.subject, _settled(found), {"Nats-Expected-Last-Subject-Sequence": "0"})
                count += 1
            except errors.Conflict:
                log.info("restored already", extra={"subject": found.subject.split(".")[0]})
    _, last = await streams.stream_state(js, WORKITEMS)
    for cursor in (CURSOR, REPORTED) if count else ():
        await bucket.put(cursor, str(last).encode())
    await bucket.put(RESTORED, b"yes")
    if count:
        log.warning("workitems restored from the object store", extra={"count": count})
    return count


async def _first_sequence(js: JetStreamContext, blob: "BlobServiceAsyncStub") -> int:
    """Return where a new stream begins: above every sequence that a copy names. Not asked where the stream is there."""
    try:
        await streams.stream_state(js, WORKITEMS)
        return 1
    except errors.NotFound:
        log.debug("no stream of workitems yet")
    highest = 0
    async with aclosing(_copies(blob)) as copies:
        async for found in copies:
            highest = max(highest, found.sequence)
    return highest + SKIPPED_SEQUENCES if highest else 1


def _settled(found: MessageCopy) -> bytes:
    """Return the state with its old sequences written out and no change in it, so that nobody is told of it again."""
    if not found.subject.startswith("workitem."):
        subscription = SubscriptionState.FromString(found.data)
        subscription.sequence = subscription.sequence or found.sequence
        return subscription.SerializeToString()
    state = transactions.settle(WorkitemState.FromString(found.data), found.sequence)
    state.ClearField("change")
    return state.SerializeToString()


async def _copies(blob: "BlobServiceAsyncStub") -> AsyncGenerator[MessageCopy, None]:
    with rpc_errors.translated("blob"):
        for prefix in PREFIXES:
            async for page in blob.ListObjects(blob_pb2.ListObjectsRequest(prefix=prefix), timeout=600):
                for entry in page.objects:
                    data = [r.data async for r in blob.Read(blob_pb2.ReadRequest(object=entry.object), timeout=BLOB_S)]
                    yield MessageCopy.FromString(b"".join(data))
