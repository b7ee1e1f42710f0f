"""Announces packs on the stream STORE after their commit, and announces packs again that index does not know.

Between the commit of a pack and the publication of its events the process may die, or NATS may be unavailable. Index records each pack
whose event with `last_of_pack` it has applied. That event is published after all other events of the pack are confirmed. So blob asks
index which packs it does not know: about all packs at start and once a day, about recent packs every minute. A pack that is unknown twice,
with a pause in between, is announced from its trailer, and again at growing intervals while it stays unknown. Several blob processes may do
this at once, because the message ids are the same and index applies each location once. Decision 0002.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gantry.index.v1 import index_pb2
from gantry_blob.packs import pack
from gantry_blob.packs.announcement import Event, PackEvents
from gantry_blob.stores.port import ObjectEntry, ObjectStore
from gantry_blob.threads import in_thread
from gantry_runtime.events.streams import Publisher
from gantry_runtime.rpc import rpc_errors
from gantry_runtime.threads import Threads
from gantry_standard import errors

if TYPE_CHECKING:
    from gantry.index.v1.index_pb2_grpc import IndexServiceAsyncStub

log = logging.getLogger(__name__)

BATCH = 1000
INDEX_S = 30.0
RECENT_S = 15 * 60
DAY_S = 86_400.0
MOST_TOGETHER = 64
"""Largest number of events of one pack that are published at the same time."""

MOST_OVERDUE = 100_000


@dataclass(frozen=True)
class AnnouncerTimes:
    """Times in seconds.

    Attributes:
        every_s: between two checks of recent packs.
        pause_s: between the two checks in which a pack must be unknown. In the meantime the blob process that wrote it may announce it.
        again_s: before a pack that stays unknown is announced again. It doubles each time, up to an hour.
    """

    every_s: float = 60
    pause_s: float = 5
    again_s: float = 130


class Announcer:
    """Publishes the events of durable packs."""

    def __init__(
        self,
        store: ObjectStore,
        publisher: Publisher,
        index: "IndexServiceAsyncStub",
        pool: Threads,
        times: AnnouncerTimes = AnnouncerTimes(),
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._index = index
        self._pool = pool
        self._times = times
        self._failed: set[str] = set()
        self._again: dict[str, tuple[float, float]] = {}

    async def announce(self, key: str, events: PackEvents | None, request_id: str = "", reply_subject: str = "") -> None:
        """Publish the events of a pack; return when all of them are on disk.

        Args:
            key: of the pack.
            events: of the pack; None to build them from its trailer.
            request_id: of the store request.
            reply_subject: subject on which index reports the outcomes; "" if they are not needed.

        Raises:
            errors.Unavailable: NATS does not answer; the pack is announced again later.
        """
        try:
            if events is None:
                from_trailer = await in_thread(self._pool, _events_from_trailer, self._store, key)
                events, request_id = from_trailer
            *others, last = events.events(request_id, reply_subject)
            for begin in range(0, len(others), MOST_TOGETHER):
                await self._publish(others[begin : begin + MOST_TOGETHER])
            await self._publish([last])
        except errors.RetryLater:
            if len(self._failed) < MOST_OVERDUE:
                self._failed.add(key)
            raise
        self._failed.discard(key)

    async def _publish(self, events: list[Event]) -> None:
        if len(events) == 1:
            await self._publisher.publish(events[0].subject, events[0].data, events[0].message_id)
            return
        try:
            async with asyncio.TaskGroup() as group:
                for event in events:
                    group.create_task(self._publisher.publish(event.subject, event.data, event.message_id))
        except* errors.GantryError as failures:
            raise errors.Unavailable("NATS does not answer") from failures

    async def run(self) -> None:
        """Announce packs that index does not know, every `every_s` seconds, without end."""
        next_full = 0.0
        while True:
            try:
                is_full = time.monotonic() >= next_full
                announced = await self.catch_up(None if is_full else RECENT_S)
                if is_full:
                    next_full = time.monotonic() + DAY_S
                if announced:
                    log.info("packs announced again", extra={"packs": announced})
                await asyncio.sleep(self._times.every_s)
            except errors.GantryError as error:
                log.info("packs could not be compared with index", extra={"reason": error.message})
                await asyncio.sleep(min(2.0, self._times.every_s))

    async def catch_up(self, age_s: float | None) -> int:
        """Announce packs that index does not know; return how many.

        Args:
            age_s: check only packs of the last `age_s` seconds, and packs whose publication failed in this process; None for all packs.

        Raises:
            errors.Unavailable: index, NATS or the object store does not answer.
        """
        after = "" if age_s is None else pack.key_before(age_s)
        packs = self._store.list(pack.PREFIX, after)
        count = 0
        missed = sorted(self._failed)
        for begin in range(0, len(missed), BATCH):
            count += await self._announce_unknown(missed[begin : begin + BATCH])
        while keys := await in_thread(self._pool, _next_keys, packs):
            count += await self._announce_unknown(keys)
        return count

    async def _announce_unknown(self, keys: list[str]) -> int:
        unknown = await self._unknown(keys)
        self._forget(set(keys) - set(unknown))
        now = time.monotonic()
        due = [key for key in unknown if self._again.get(key, (now, 0.0))[0] <= now]
        if not due:
            return 0
        await asyncio.sleep(self._times.pause_s)
        count = 0
        for key in await self._unknown(due):
            delay = min(self._again.get(key, (0.0, self._times.again_s / 2))[1] * 2, 3600.0)
            self._again[key] = (time.monotonic() + delay, delay)
            try:
                await self.announce(key, None)
            except (errors.CorruptInstance, errors.NotFound) as error:
                log.error("pack cannot be announced", extra={"object": key, "reason": error.message})
                self._failed.discard(key)
                continue
            count += 1
        return count

    def _forget(self, known: Iterable[str]) -> None:
        for key in known:
            self._again.pop(key, None)
            self._failed.discard(key)

    async def _unknown(self, keys: list[str]) -> list[str]:
        with rpc_errors.translated("index"):
            answer = await self._index.FilterUnknownPacks(index_pb2.FilterUnknownPacksRequest(objects=keys), timeout=INDEX_S)
        return list(answer.objects)


def _next_keys(packs: Iterator[ObjectEntry]) -> list[str]:
    return [entry.key for entry in itertools.islice(packs, BATCH)]


def _events_from_trailer(store: ObjectStore, key: str) -> tuple[PackEvents, str]:
    trailer = pack.read_trailer(store, key)
    events = PackEvents(key)
    for instance in trailer.instances:
        events.add(instance, instance.SerializeToString())
    return events, trailer.request_id
