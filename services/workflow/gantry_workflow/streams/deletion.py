"""Deletes final workitems without a deletion lock. A tombstone, which answers 410, replaces the workitem and is later removed.

Both tasks follow the stream at a distance in time, so each workitem is checked once, that time after its last change. A locked workitem
remains. It is checked again after a change of its own subscriptions, which is a change of the workitem. When a subscription to the
worklist ends, all workitems are checked again.

Source: PS3.4 §CC.2.1.3, §CC.2.3.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from gantry.blob.v1 import blob_pb2
from gantry.events.v1.events_pb2 import SubscriptionState, WorkitemState
from gantry_runtime.events import streams
from gantry_runtime.events.streams import WORKITEMS, Bucket, JetStreamContext, Message
from gantry_runtime.rpc import rpc_errors
from gantry_workflow.streams.backup import BLOB_S, object_of
from gantry_workflow.streams.history import old_enough
from gantry_workflow.streams.report_writer import BUCKET, ReportWriter
from gantry_workflow.streams.workitems import Workitems
from gantry_workflow.workitems import subscriptions, transactions
from gantry_workflow.workitems.subscriptions import WorklistSubscription
from gantry_workflow.workitems.transactions import FINAL_STATES, Decision

if TYPE_CHECKING:
    from gantry.blob.v1.blob_pb2_grpc import BlobServiceAsyncStub

log = logging.getLogger(__name__)

DELETION_CHECKED = "deleted"
"""Key of the cursor up to which workitems were checked for deletion."""
RELEASE_CHECKED = "released"
"""Key of the sequence of the last end of a subscription to the worklist after which all workitems were checked again."""
TOMBSTONES_CHECKED = "buried"
"""Key of the cursor up to which tombstones were checked for removal."""
BATCH = 500
MOST_REST_S = 3600.0
LEAST_REST_S = 0.25
"""Bounds of the seconds between two checks while no message is old enough: a twentieth of the age in question."""


async def delete_final(js: JetStreamContext, reports: ReportWriter, keep_s: float) -> None:
    """Replace final workitems by tombstones `keep_s` seconds after their last change, until cancelled.

    Raises:
        errors.Unavailable: NATS does not answer.
    """
    bucket = await streams.open_bucket(js, BUCKET)
    workitems = Workitems(js)
    while True:
        async with aclosing(_old(js, reports, int((await bucket.get(DELETION_CHECKED))[0] or b"0"), keep_s)) as batches:
            async for batch in batches:
                await _delete_of(workitems, batch)
                await bucket.put(DELETION_CHECKED, str(batch[-1].sequence).encode())
                if await _is_released(bucket, batch):
                    await bucket.put(DELETION_CHECKED, b"0")
                    break
        await asyncio.sleep(_rest_s(keep_s))


async def purge_deleted(js: JetStreamContext, blob: "BlobServiceAsyncStub", reports: ReportWriter, tombstone_s: float) -> None:
    """Remove tombstones that are `tombstone_s` seconds old, and filtered subscriptions that ended as long ago, until cancelled.

    Raises:
        errors.Unavailable: NATS or blob does not answer.
    """
    bucket = await streams.open_bucket(js, BUCKET)
    while True:
        async with aclosing(_old(js, reports, int((await bucket.get(TOMBSTONES_CHECKED))[0] or b"0"), tombstone_s)) as batches:
            async for batch in batches:
                for message in batch:
                    if _is_over(message):
                        await _forget(js, blob, message)
                await bucket.put(TOMBSTONES_CHECKED, str(batch[-1].sequence).encode())
        await asyncio.sleep(_rest_s(tombstone_s))


def _rest_s(age_s: float) -> float:
    return min(MOST_REST_S, max(LEAST_REST_S, age_s / 20))


async def _old(js: JetStreamContext, reports: ReportWriter, after: int, age_s: float) -> AsyncGenerator[list[Message], None]:
    """Yield, in batches, the messages after a sequence that are older than `age_s` seconds and reported; end at the first that is not."""
    async with aclosing(streams.read_from(js, WORKITEMS, after, batch=BATCH)) as batches:
        async for batch in batches:
            old = old_enough(batch, time.time() - age_s, reports.reported)
            if old:
                yield old
            if len(old) < len(batch) or not batch:
                return


async def _delete_of(workitems: Workitems, batch: list[Message]) -> None:
    """Delete the deletable workitems among those whose last message is in a batch."""
    worklist_subscriptions: list[WorklistSubscription] | None = None
    for message in batch:
        if not message.subject.startswith("workitem."):
            continue
        state = WorkitemState.FromString(message.data)
        if state.deleted or state.procedure_step_state not in FINAL_STATES:
            continue
        if worklist_subscriptions is None:
            worklist_subscriptions = await workitems.subscriptions()
        await _delete(workitems, state.workitem_uid, message.sequence, worklist_subscriptions)


async def _delete(workitems: Workitems, uid: str, sequence: int, worklist_subscriptions: list[WorklistSubscription]) -> None:
    def decide(state: WorkitemState | None, last_sequence: int) -> Decision:
        if state is None or last_sequence != sequence:
            # The workitem has a later change, which is checked when it is old enough
            return Decision(None)
        return transactions.delete(
            state, any(subscriptions.locks_on(state, last_sequence, worklist_subscriptions, subscriptions.LATEST).values())
        )

    decision = await workitems.change(uid, decide, "delete")
    if decision.state is not None:
        log.info("workitem deleted", extra={"workitem_uid": uid})


async def _is_released(bucket: Bucket, batch: list[Message]) -> bool:
    """Return whether a subscription to the worklist ended in a batch, which may have released locks. Each end counts once."""
    ended = [
        message.sequence
        for message in batch
        if message.subject.startswith("subscription.")
        and SubscriptionState.FromString(message.data).state == SubscriptionState.STATE_UNSUBSCRIBED
    ]
    known = int((await bucket.get(RELEASE_CHECKED))[0] or b"0")
    if not ended or ended[-1] <= known:
        return False
    await bucket.put(RELEASE_CHECKED, str(ended[-1]).encode())
    return True


def _is_over(message: Message) -> bool:
    """Return whether a message is a tombstone or an ended filtered subscription, which can be removed if it is the last of its subject."""
    if message.subject.startswith("workitem."):
        return WorkitemState.FromString(message.data).deleted
    subscription = SubscriptionState.FromString(message.data)
    return bool(subscription.filter) and subscription.state == SubscriptionState.STATE_UNSUBSCRIBED


async def _forget(js: JetStreamContext, blob: "BlobServiceAsyncStub", message: Message) -> None:
    """Purge the messages of a subject up to a message. The copy of a workitem is removed first, so that it is never restored.

    No message can follow a tombstone before it is purged. The copy of a subscription remains; it records that the subscription ended.
    """
    if message.subject.startswith("workitem."):
        with rpc_errors.translated("blob"):
            await blob.RemoveObject(blob_pb2.RemoveObjectRequest(object=object_of(message.subject)), timeout=BLOB_S)
    await streams.purge_before(js, WORKITEMS, message.subject, message.sequence + 1)
