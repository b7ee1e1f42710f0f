"""Instance records that retrieve needs, cached under a lease that index renews.

A cached record is used until two seconds after the last heartbeat of index; a change of an instance drops it. Without NATS or
without heartbeats every request asks index. What concerns a series or a study is asked each time.

Source: PS3.18 §10.4.3.1 for 404 and 410.
"""

import fcntl
import mmap
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gantry.events.v1.events_pb2 import RecordsChanged
from gantry.index.v1.index_pb2 import GetInstancesRequest, InstanceRecord, Scope
from gantry_runtime import call_context
from gantry_runtime.byte_bounded_cache import ByteBoundedCache
from gantry_runtime.events import streams
from gantry_runtime.rpc import rpc_errors
from gantry_standard import errors

if TYPE_CHECKING:
    from gantry.index.v1.index_pb2_grpc import IndexServiceAsyncStub

LEASE_S = 2.0
INDEX_S = 15.0
SCOPE_S = 60.0
"""Seconds that the records of a study may take; one of 100,000 instances takes some."""

MAX_BYTES = 256 << 20
"""Most bytes of cached records: one of a slide with 100,000 tiles has a megabyte."""

MARK_BYTES = 8
COUNTERS = 64
"""Counters in the file, and so the most gateways on one port."""


class Mark:
    """Counters of changes that the gateways of one port share: each sees at once when another one has changed something.

    Each gateway writes its own counter only, so two that change something at the same moment cannot overwrite each other's mark.

    Args:
        shared: the counters, `MARK_BYTES` each; without others this gateway is alone.
        number: of this gateway's counter.
    """

    def __init__(self, shared: mmap.mmap | bytearray | None = None, number: int = 0) -> None:
        self._shared = bytearray(MARK_BYTES) if shared is None else shared
        self._own = slice(number * MARK_BYTES, (number + 1) * MARK_BYTES)
        self._seen = self._shared[:]

    def has_moved(self) -> bool:
        """Say whether another gateway has moved its slot since the last time it was asked."""
        now = self._shared[:]
        if now == self._seen:
            return False
        self._seen = now
        return True

    def move(self) -> None:
        """Tell the other gateways. What they have told meanwhile is still seen by the next `has_moved`."""
        changes = int.from_bytes(self._shared[self._own], "little") + 1
        own = changes.to_bytes(MARK_BYTES, "little")
        self._shared[self._own] = own
        self._seen = self._seen[: self._own.start] + own + self._seen[self._own.stop :]


@contextmanager
def sharing(path: Path | None) -> Iterator[Mark]:
    """Share a mark with the gateways that name the same file, while the context is open.

    A counter of the file belongs to who holds the lock on `PATH.NUMBER`. It is free again when that process has ended, however it ended.

    Args:
        path: of the file, made where it is not there; None: this gateway is alone.

    Raises:
        RuntimeError: `COUNTERS` share it already.
    """
    if path is None:
        yield Mark()
        return
    with path.open("ab") as made:
        made.truncate(COUNTERS * MARK_BYTES)
    with _locked_number(path) as number, path.open("r+b") as file, mmap.mmap(file.fileno(), COUNTERS * MARK_BYTES) as shared:
        yield Mark(shared, number)


@contextmanager
def _locked_number(path: Path) -> Iterator[int]:
    """Hold the lock on a number that no other process has."""
    for number in range(COUNTERS):
        with path.with_name(f"{path.name}.{number}").open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield number
            return
    raise RuntimeError(f"{COUNTERS} gateways share {path} already")


class _Kept(NamedTuple):
    """A record that is kept, with the UIDs that it is kept under."""

    study: str
    instance: str
    record: InstanceRecord
    size_bytes: int


class Records:
    """Asks index for records and keeps those of single instances.

    Args:
        mark: what the gateways of one port share; what one of them changed none of them answers from what it kept.
    """

    def __init__(
        self, index: "IndexServiceAsyncStub", most_entries: int, now: Callable[[], float] = time.monotonic, mark: Mark | None = None
    ) -> None:
        self._index = index
        self._mark = mark or Mark()
        self._now = now
        self._valid_until = float("-inf")
        self._cached = ByteBoundedCache[_Kept](MAX_BYTES, lambda kept: kept.size_bytes, most_entries, self._dropped)
        self._instances_of: dict[str, set[str]] = {}
        """SOP Instance UIDs by study, of what is kept: a study is dropped without a look at the others."""
        # What is being asked for, by study; an entry that is no longer there when the answer comes has changed meanwhile.
        self._asking: dict[str, dict[str, object]] = {}

    async def get(self, study: str, series: str, instance: str) -> InstanceRecord:
        """Return the record of an instance.

        Raises:
            errors.NotFound: there is none of these UIDs together.
            errors.Gone: it was deleted.
            errors.Unavailable: index does not answer.
        """
        if self._mark.has_moved():
            self.clear()
        # What the caller may not see is asked of index, which answers as if it were not there.
        kept = self._cached.get((study, instance)) if call_context.caller().may_see(study) else None
        if kept is not None and self._now() < self._valid_until and kept.record.stored.series_instance_uid == series:
            return kept.record
        return await self.ask(study, series, instance)

    async def ask(self, study: str, series: str, instance: str) -> InstanceRecord:
        """Return the record of an instance as index knows it now. Errors as `get`."""
        token = object()
        self._asking.setdefault(study, {})[instance] = token
        try:
            records = [record async for record in self.scope(study, series, instance)]
            if not records:
                raise errors.NotFound(f"there is no instance {instance} in series {series} of study {study}")
            if self._asking.get(study, {}).get(instance) is token and self._now() < self._valid_until:
                self._keep(study, instance, records[0])
            return records[0]
        finally:
            asked = self._asking.get(study)
            if asked is not None:
                if asked.get(instance) is token:
                    del asked[instance]
                if not asked:
                    del self._asking[study]

    async def scope(self, study: str, series: str = "", instance: str = "") -> AsyncGenerator[InstanceRecord, None]:
        """Yield the records of a study, series or instance, in the order of index. Errors as `get`, before the first record."""
        scope = Scope(collection=study, series_instance_uid=series, sop_instance_uid=instance)
        call = self._index.GetInstances(GetInstancesRequest(scope=scope), timeout=INDEX_S if instance else SCOPE_S)
        try:
            with rpc_errors.translated("index"):
                async for message in call:
                    for record in message.records:
                        yield record
        finally:
            call.cancel()

    def _keep(self, study: str, instance: str, record: InstanceRecord) -> None:
        self._instances_of.setdefault(study, set()).add(instance)
        if not self._cached.put((study, instance), _Kept(study, instance, record, 2 * record.ByteSize())):
            self._forget_instance(study, instance)

    def _dropped(self, kept: _Kept) -> None:
        """Take a record that was dropped to make room off its study."""
        self._forget_instance(kept.study, kept.instance)

    def _forget_instance(self, study: str, instance: str) -> None:
        instances = self._instances_of.get(study)
        if instances is not None:
            instances.discard(instance)
            if not instances:
                del self._instances_of[study]

    def heartbeat(self) -> None:
        """Index is alive. After a lapse nothing that was kept counts: a change may have been missed."""
        now = self._now()
        if now >= self._valid_until:
            self.clear()
        self._valid_until = now + LEASE_S

    def forget(self, study: str, instances: Iterable[str] = ()) -> None:
        """Drop the records of instances, or of a whole study."""
        named = list(instances)
        if named:
            asked = self._asking.get(study, {})
            for instance in named:
                asked.pop(instance, None)
                self._forget_instance(study, instance)
        else:
            self._asking.pop(study, None)
            named = list(self._instances_of.pop(study, ()))
        for instance in named:
            self._cached.pop((study, instance))

    def changed(self, study: str) -> None:
        """Drop the records of a study, here and in the gateways of this port: this one has changed it."""
        self.forget(study)
        self._mark.move()

    def clear(self) -> None:
        """Drop everything."""
        self._cached.clear()
        self._instances_of.clear()
        self._asking.clear()


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
        records.forget(message.collection, message.sop_instance_uids)

    async with streams.listening(client, {streams.SUBJECTS["IndexLease"]: lease, streams.SUBJECTS["RecordsChanged"]: changed}):
        yield
