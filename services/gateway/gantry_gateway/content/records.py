"""Instance records that retrieve needs, cached under a lease that index renews.

A cached record is used until two seconds after the last heartbeat of index; a change of an instance drops it. Without NATS or
without heartbeats every request asks index. What concerns a series or a study is asked each time.

Source: PS3.18 §10.4.3.1 for 404 and 410.
"""

import mmap
import os
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gantry.events.v1.events_pb2 import RecordsChanged
from gantry.index.v1.index_pb2 import GetInstancesRequest, InstanceRecord, Scope
from gantry_runtime.events import streams
from gantry_runtime.rpc import rpc_errors
from gantry_standard import errors

if TYPE_CHECKING:
    from gantry.index.v1.index_pb2_grpc import IndexServiceAsyncStub

LEASE_S = 2.0
INDEX_S = 15.0
SCOPE_S = 60.0
"""Seconds that the records of a study may take; one of 100,000 instances takes some."""

MOST_BYTES = 256 << 20
"""Most bytes of cached records: one of a slide with 100,000 tiles has a megabyte."""

MARK_BYTES = 8

Key = tuple[str, str]
"""(Study Instance UID, SOP Instance UID)."""


class Mark:
    """A few bytes of a file that the gateways of one port share: each sees at once when another one has changed something.

    Args:
        path: of the file, made where it is not there; None: this gateway is alone.
    """

    def __init__(self, path: Path | None) -> None:
        self._shared: mmap.mmap | bytearray = bytearray(MARK_BYTES)
        if path is not None:
            with path.open("ab") as file:
                file.truncate(MARK_BYTES)
            with path.open("r+b") as file:
                self._shared = mmap.mmap(file.fileno(), MARK_BYTES)
        self._seen = self._shared[:]

    def has_moved(self) -> bool:
        """Say whether another gateway has moved it since the last time it was asked."""
        found = self._shared[:]
        if found == self._seen:
            return False
        self._seen = found
        return True

    def move(self) -> None:
        """Tell the other gateways."""
        self._shared[:] = self._seen = os.urandom(MARK_BYTES)


class Records:
    """Asks index for records and keeps those of single instances.

    Args:
        mark: what the gateways of one port share; what one of them changed none of them answers from what it kept.
    """

    def __init__(
        self, index: "IndexServiceAsyncStub", most_entries: int, now: Callable[[], float] = time.monotonic, mark: Mark | None = None
    ) -> None:
        self._index = index
        self._mark = mark or Mark(None)
        self._most_entries = most_entries
        self._now = now
        self._valid_until = float("-inf")
        self._cached: OrderedDict[Key, tuple[InstanceRecord, int]] = OrderedDict()
        self._bytes = 0
        # What is being asked for; an entry that is no longer there when the answer comes has changed meanwhile.
        self._asking: dict[Key, object] = {}

    async def get(self, study: str, series: str, instance: str) -> InstanceRecord:
        """Return the record of an instance.

        Raises:
            errors.NotFound: there is none of these UIDs together.
            errors.Gone: it was deleted.
            errors.Unavailable: index does not answer.
        """
        if self._mark.has_moved():
            self.clear()
        found = self._cached.get((study, instance))
        if found is not None and self._now() < self._valid_until and found[0].stored.series_instance_uid == series:
            self._cached.move_to_end((study, instance))
            return found[0]
        return await self.ask(study, series, instance)

    async def ask(self, study: str, series: str, instance: str) -> InstanceRecord:
        """Return the record of an instance as index knows it now. Errors as `get`."""
        key, token = (study, instance), object()
        self._asking[key] = token
        try:
            records = [record async for record in self.scope(study, series, instance)]
            if not records:
                raise errors.NotFound(f"there is no instance {instance} in series {series} of study {study}")
            if self._asking.get(key) is token and self._now() < self._valid_until:
                self._keep(key, records[0])
            return records[0]
        finally:
            if self._asking.get(key) is token:
                del self._asking[key]

    async def scope(self, study: str, series: str = "", instance: str = "") -> AsyncGenerator[InstanceRecord, None]:
        """Yield the records of a study, series or instance, in the order of index. Errors as `get`, before the first record."""
        scope = Scope(study_instance_uid=study, series_instance_uid=series, sop_instance_uid=instance)
        call = self._index.GetInstances(GetInstancesRequest(scope=scope), timeout=INDEX_S if instance else SCOPE_S)
        try:
            with rpc_errors.translated("index"):
                async for message in call:
                    for record in message.records:
                        yield record
        finally:
            call.cancel()

    def _keep(self, key: Key, record: InstanceRecord) -> None:
        self._drop(key)
        size = 2 * record.ByteSize()
        self._cached[key] = (record, size)
        self._bytes += size
        while len(self._cached) > self._most_entries or self._bytes > MOST_BYTES:
            _, (_, dropped) = self._cached.popitem(last=False)
            self._bytes -= dropped

    def _drop(self, key: Key) -> None:
        if found := self._cached.pop(key, None):
            self._bytes -= found[1]

    def heartbeat(self) -> None:
        """Index is alive. After a lapse nothing that was kept counts: a change may have been missed."""
        now = self._now()
        if now >= self._valid_until:
            self.clear()
        self._valid_until = now + LEASE_S

    def forget(self, study: str, instances: Iterable[str] = ()) -> None:
        """Drop the records of instances, or of a whole study."""
        keys = [(study, instance) for instance in instances] or [key for key in (*self._cached, *self._asking) if key[0] == study]
        for key in keys:
            self._drop(key)
            self._asking.pop(key, None)

    def changed(self, study: str) -> None:
        """Drop the records of a study, here and in the gateways of this port: this one has changed it."""
        self.forget(study)
        self._mark.move()

    def clear(self) -> None:
        """Drop everything."""
        self._cached.clear()
        self._asking.clear()
        self._bytes = 0


@asynccontextmanager
async def listening(records: Records, client: streams.Client) -> AsyncIterator[None]:
    """Follow the heartbeats and changes of index while the context is open."""
    connections = streams.reconnections(client)

    def lease(_: bytes) -> None:
        nonlocal connections
        if streams.reconnections(client) != connections:
            connections = streams.reconnections(client)
            records.clear()
        records.heartbeat()

    def changed(data: bytes) -> None:
        message = RecordsChanged.FromString(data)
        records.forget(message.study_instance_uid, message.sop_instance_uids)

    async with streams.listening(client, {streams.SUBJECTS["IndexLease"]: lease, streams.SUBJECTS["RecordsChanged"]: changed}):
        yield
