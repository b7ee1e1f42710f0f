"""Publishes the decisions of index on the stream CHANGES, from the outbox of the index store.

An outbox row is written together with its decision. It is removed with a later batch, after NATS has confirmed that it is on the stream. So
each decision is published at least once, also after a crash, and the rows of one study are published in order. Waiting rows of one study
share a message: StudyChanged is a list, and two concatenated serialized lists are one list.

When a study had no upload for `settled_s` seconds, it is published as settled, after all its other changes. If another process takes over,
this time begins again.

Store requests do not wait for any of this. For a moment two processes may publish the same rows, with the same ids. Each process begins
with the oldest row that is not removed, so the first publications of the changes are in order.

Source: docs/decisions/0131-changes.md.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from gantry.events.v1.events_pb2 import Change, StudyChanged
from gantry_index.applying.decide import change_id
from gantry_index.stores.port import Batch, IndexStore, OutboxRow
from gantry_runtime import telemetry
from gantry_runtime.events import streams
from gantry_runtime.process import end_tasks
from gantry_standard import errors
from gantry_standard.dicom.collections import is_study
from gantry_standard.dicom.uids import is_valid_uid

log = logging.getLogger(__name__)

GATHER_S = 0.1
SLOW_GATHER_S = 0.5
"""Seconds between a decision and its publication, so that successive changes of a study share a message. With Elasticsearch it is longer,
because reading the outbox needs a refresh and a search."""
TIDY_S = 1.0
"""Seconds without a batch after which published rows are removed in a separate transaction."""
ROWS = 200
"""Rows that are read from the outbox at once."""
MESSAGE_BYTES = 256 << 10
"""Rows of one study share a message up to this size in bytes. A single row is smaller."""
TOGETHER = 16
"""Studies whose rows are published at the same time."""
RETRY_S = 0.2
FIRST_PER_S = 1000
"""A created stream begins at the number of milliseconds since 1970, which is greater than every sequence of a lost stream."""


@dataclass(slots=True)
class _Window:
    """The sequences up to which the rows of one reader are published, and up to which its events are applied."""

    published: int
    applied: int


@dataclass(frozen=True, slots=True)
class _Settling:
    """A study that has not settled: its reader, the sequence of its last upload, and when it has settled, in monotonic seconds."""

    reader: str
    sequence: int
    due_s: float


class Changes:
    """Publishes the decisions of the readers of this process. `lock` is the lock of the readers; nothing is removed while it is held."""

    def __init__(self, store: IndexStore, client: streams.Client, lock: asyncio.Lock, settled_s: float) -> None:
        self._store = store
        self._client = client
        self._lock = lock
        self._settled_s = settled_s
        self._gather_s = GATHER_S if store.name == "sqlite" else SLOW_GATHER_S
        self._publisher = streams.Publisher(client)
        self._windows: dict[str, _Window] = {}
        self._waiting: set[str] = set()
        """Readers that have rows to publish."""
        self._settling: dict[str, _Settling] = {}
        """By study, in the order in which they are due."""
        self._published: set[int] = set()
        self._settled: dict[str, int] = {}
        """Published settlings that are to be removed, as `_published` has the published rows."""
        self._applied_s = 0.0
        """When the last batch was applied, in monotonic seconds."""
        self._news = asyncio.Event()
        self._has_stream = False
        """Whether the stream is known to exist. A reader that begins sets it to false: readers begin again after NATS lost streams."""

    async def join(self, reader: str, cursor: int) -> None:
        """Begin to publish for a reader, first the rows that an earlier process left.

        Raises:
            errors.Unavailable: the store does not answer.
        """
        for study, sequence in (await self._store.settling(reader)).items():
            known = self._settling.get(study)
            if known is None or known.sequence < sequence:
                self._note(reader, study, sequence)
        self._has_stream = False
        self._windows[reader] = _Window(0, cursor)
        self._waiting.add(reader)
        self._news.set()

    def leave(self, reader: str) -> None:
        """Stop publishing for a reader, because another process may do it."""
        self._windows.pop(reader, None)
        self._waiting.discard(reader)
        self._settling = {study: settling for study, settling in self._settling.items() if settling.reader != reader}

    def to_remove(self, settling: Mapping[str, int]) -> tuple[list[int], dict[str, int]]:
        """Return `published` and `settled` for the next batch, without the studies of which the batch has uploads (`settling`)."""
        return list(self._published), {study: sequence for study, sequence in self._settled.items() if study not in settling}

    def removed(self, published: Sequence[int], settled: Mapping[str, int]) -> None:
        """Record that the result of `to_remove` was removed from the store."""
        self._published.difference_update(published)
        for study, sequence in settled.items():
            if self._settled.get(study) == sequence:
                del self._settled[study]

    def applied(self, reader: str, sequence: int, has_rows: bool, settling: Mapping[str, int]) -> None:
        """Record an applied batch: its last sequence, whether it has rows to publish, and its uploads of studies."""
        self._applied_s = time.monotonic()
        for study, last in settling.items():
            self._settled.pop(study, None)
            self._note(reader, study, last)
        if (window := self._windows.get(reader)) is not None:
            window.applied = sequence
            if has_rows:
                self._waiting.add(reader)
                self._news.set()

    def _note(self, reader: str, study: str, sequence: int) -> None:
        self._settling.pop(study, None)
        self._settling[study] = _Settling(reader, sequence, time.monotonic() + self._settled_s)

    async def run(self) -> None:
        """Publish without end. Waits while NATS or the store does not answer."""
        await self._ensure()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(TIDY_S, self._settled_s)):
                    await self._news.wait()
                await asyncio.sleep(self._gather_s)
            self._news.clear()
            if not self._has_stream:
                await self._ensure()
            try:
                await self._publish_decided()
                await self._publish_settled()
                await self._tidy()
            except errors.RetryLater as error:
                log.warning("changes are not published yet", extra={"reason": error.message})
                self._news.set()
                await asyncio.sleep(RETRY_S)

    async def _ensure(self) -> None:
        """Create the stream if it does not exist; wait while NATS does not answer."""
        js = self._client.jetstream()
        while True:
            try:
                await streams.ensure_stream(js, streams.CHANGES, int(time.time() * FIRST_PER_S))
                self._has_stream = True
                return
            except errors.GantryError as error:
                log.warning("the stream CHANGES could not be created", extra={"reason": error.message})
            await asyncio.sleep(RETRY_S)

    async def _publish_decided(self) -> None:
        while self._waiting:
            windows = {reader: self._windows[reader] for reader in self._waiting}
            bounds = {reader: (window.published, window.applied) for reader, window in windows.items()}
            rows = await self._store.outbox_rows(bounds, ROWS)
            await self._publish([row for row in rows if row.sequence not in self._published])
            for row in rows:
                windows[row.reader].published = row.sequence
                self._published.add(row.sequence)
            if len(rows) == ROWS:
                continue
            for reader, (_, applied) in bounds.items():
                windows[reader].published = applied
                if windows[reader].applied == applied and self._windows.get(reader) is windows[reader]:
                    self._waiting.discard(reader)

    async def _publish(self, rows: Sequence[OutboxRow]) -> None:
        """Publish rows: in sequence for one study, concurrently for several studies."""
        by_study: dict[str, list[list[OutboxRow]]] = {}
        for row in rows:
            messages = by_study.setdefault(row.collection, [])
            if not messages or sum(len(waiting.data) for waiting in messages[-1]) + len(row.data) > MESSAGE_BYTES:
                messages.append([])
            messages[-1].append(row)
        free = asyncio.Semaphore(TOGETHER)

        async def publish(study: str, messages: Sequence[Sequence[OutboxRow]]) -> None:
            async with free:
                for parts in messages:
                    data = b"".join(row.data for row in parts)
                    # A row has no changes if a crash prevented them from being applied.
                    if StudyChanged.FromString(data).changes:
                        await self._publish_message(
                            _subject("StudyChanged", study), data, f"{study} {parts[0].sequence}-{parts[-1].sequence}"
                        )

        publishing = [asyncio.create_task(publish(study, messages), name="changes") for study, messages in by_study.items()]
        if not publishing:
            return
        try:
            await asyncio.wait(publishing, return_when=asyncio.FIRST_EXCEPTION)
            for task in publishing:
                task.result()
        finally:
            await end_tasks(publishing)

    async def _publish_message(self, subject: str, data: bytes, message_id: str) -> None:
        """Publish one message; retry until it succeeds. Later messages wait."""
        begun_s = time.monotonic()
        while True:
            try:
                await self._publisher.publish(subject, data, message_id)
                telemetry.CHANGES_WAITING.set(0)
                return
            except errors.GantryError as error:
                log.warning("changes are not published yet", extra={"reason": error.message})
                telemetry.CHANGES_WAITING.set(time.monotonic() - begun_s)
            await asyncio.sleep(RETRY_S)
            await self._ensure()

    async def _publish_settled(self) -> None:
        now_s = time.monotonic()
        while self._settling:
            study, first = next(iter(self._settling.items()))
            window = self._windows.get(first.reader)
            if first.due_s > now_s or window is None or (first.reader in self._waiting and window.published < first.sequence):
                # It is not due, or not all earlier changes are published.
                return
            message = StudyChanged(collection=study)
            message.changes.add(id=change_id(first.sequence, Change.KIND_SETTLED), kind=Change.KIND_SETTLED, sequence=first.sequence)
            await self._publish_message(_subject("StudySettled", study), message.SerializeToString(), f"{study} {first.sequence} settled")
            if self._settling.get(study) is first:
                del self._settling[study]
                self._settled[study] = first.sequence

    async def _tidy(self) -> None:
        """Remove published rows if there was no batch for TIDY_S seconds that could remove them."""
        if time.monotonic() - self._applied_s < TIDY_S or self._lock.locked() or not (self._published or self._settled):
            return
        async with self._lock:
            published, settled = self.to_remove({})
            await self._store.apply(Batch("", 0, published=published, settled=settled))
            self.removed(published, settled)


def _subject(name: str, collection: str) -> str:
    """Return the subject of a message about a collection. An invalid UID is replaced, because it may not be a valid part of a subject."""
    is_possible = not is_study(collection) or is_valid_uid(collection)
    return streams.SUBJECTS[name].format(uid=collection if is_possible else "invalid")
