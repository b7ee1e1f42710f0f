"""Keeps the stream WORKITEMS small: removes states that were superseded long ago, and never a last one.

A state goes when a later one of its workitem is older than the history (`GANTRY_WORKITEM_HISTORY_S`) and the reports of that later
one are written. A consumer that is further behind than the history loses nothing: it still gets every last state.
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
"""Seconds between two looks when nothing is old enough."""


async def purge_superseded(js: JetStreamContext, reports: ReportWriter, history_s: float) -> None:
    """Follow the stream at the distance of the history, for ever, and purge what came before.

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
    """Return the messages at the beginning of a batch that are older than a time and reported."""
    for count, message in enumerate(batch):
        if message.time_s >= before_s or message.sequence > reported:
            return batch[:count]
    return batch
