"""The stream CHANGES of a running suite, as a consumer sees it."""

import asyncio
import json
import time
from collections.abc import Callable

from gantry.events.v1.events_pb2 import Change, StudyChanged
from gantry_runtime.events import streams
from tests.support.suite import Suite


async def read_changes(js: streams.JetStreamContext, study: str) -> list[Change]:
    """Return what is on CHANGES about a study, in order, each change once.

    Raises:
        AssertionError: one id has two contents, or a message is on the subject of another study.
    """
    first, last = await streams.stream_state(js, streams.CHANGES)
    known: dict[str, Change] = {}
    if first > last:
        return []
    async for messages in streams.read_from(js, streams.CHANGES, first - 1):
        for message in messages:
            changed = StudyChanged.FromString(message.data)
            assert message.subject.endswith(f".{changed.collection}")
            if changed.collection == study:
                for change in changed.changes:
                    assert known.setdefault(change.id, change) == change, f"{change.id} has two contents"
        if messages and messages[-1].sequence >= last:
            break
    return list(known.values())


def wait_for_changes(suite: Suite, study: str, is_enough: Callable[[list[Change]], bool], seconds: float = 30) -> list[Change]:
    """Return what is on CHANGES about a study as soon as it is enough; after the time, what there is."""
    port = json.loads((suite.data / "run" / "ports.json").read_text())["nats"]

    async def wait() -> list[Change]:
        end = time.monotonic() + seconds
        async with streams.connected(f"nats://127.0.0.1:{port}", "test") as client:
            while True:
                changes = await read_changes(client.jetstream(), study)
                if is_enough(changes) or time.monotonic() > end:
                    return changes
                await asyncio.sleep(0.1)

    return asyncio.run(wait())
