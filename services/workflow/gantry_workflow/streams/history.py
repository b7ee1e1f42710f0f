"""Limits the size of the stream WORKITEMS: removes superseded states, never the last state of a workitem.

A state is removed when a later state of the same workitem is older than `GANTRY_WORKITEM_HISTORY_S` and the reports of that later state
are written. A consumer that is further behind still gets the last state of each workitem.
"""

import asyncio
import time
from contextlib import aclosing

from gantry_runtime.events import streams
from gantry_runtime.events.streams import WORKITEMS, JetStreamContext, Message
from gantry_workflow.streams.report_writer import BUCKET, ReportWriter

CURSOR = "purged"
BATCH = 500
REST_S = 10.0
"""Most seconds between two checks while no message is old enough."""


async def purge_superseded(js: JetStreamContext, reports: ReportWriter, history_s: float) -> None:
    """Follow the messages that are older than the history, until cancelled, and purge earlier messages of their subjects.

    Args:
        history_s: seconds that superseded states remain.

    Raises:
        errors.Unavailable: NATS does not answer.
    """
    bucket = await streams.open_bucket(js, BUCKET)
    cursor = int((await bucket.get(CURSOR))[0] or b"0")
    while True:
        async with aclosing(streams.read_from(js, WORKITEMS, cursor, batch=BATCH)) as batches:
            async for batch in batches:
                old = old_enough(batch, time.time() - history_s, reports.reported)
                for subject, sequence in {m.subject: m.sequence for m in old}.items():
                    await streams.purge_before(js, WORKITEMS, subject, sequence)
                if old:
                    cursor = old[-1].sequence
                    await bucket.put(CURSOR, str(cursor).encode())
                if len(old) < len(batch) or not batch:
                    break
        await asyncio.sleep(min(REST_S, history_s))


def old_enough(batch: list[Message], before_s: float, reported: int) -> list[Message]:
    """Return the messages at the beginning of a batch that are old enough and reported.

    Args:
        before_s: messages at or after this time, in seconds since 1970, are too young.
        reported: sequence up to which reports are written.
    """
    for count, message in enumerate(batch):
        if message.time_s >= before_s or message.sequence > reported:
            return batch[:count]
    return batch
