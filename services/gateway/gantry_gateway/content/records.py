"""Instance records for retrieve, cached while index sends heartbeats.

A cached record is valid until two seconds after the last heartbeat of index. A change of the instance removes it. Without NATS or
heartbeats each request asks index. Records of a whole series or study are requested from index each time.

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
"""Timeout in seconds for the records of a study; those of 100,000 instances take several seconds."""

MAX_BYTES = 256 << 20
"""Most bytes of cached records; the record of a slide with 100,000 tiles has a megabyte."""

PORT_MARK_BYTES = 8
COUNTERS = 64
"""Number of counters in the file, which is the maximum of gateways on one port."""


class PortMark:
    """Counters of changes, one per gateway of a port, by which the gateways notice each other's changes at once.

    Each gateway writes only its own counter, so simultaneous changes cannot overwrite each other.

    Args:
        shared: the counters, `PORT_MARK_BYTES` each; None if no other gateway uses the port.
        number: index of this gateway's counter.
    """

    def __init__(self, shared: mmap.mmap | bytearray | None = None, number: int = 0) -> None:
        self._shared = bytearray(PORT_MARK_BYTES) if shared is None else shared
        self._own = slice(number * PORT_MARK_BYTES, (number + 1) * PORT_MARK_BYTES)
        self._seen = self._shared[:]

    def has_moved(self) -> bool:
        """Return whether another gateway has changed its counter since the last call."""
        now = self._shared[:]
        if now == self._seen:
            return False
        self._seen = now
        return True

    def move(self) -> None:
        """Increment the counter of this gateway. The next `has_moved` still notices changes of the other counters."""
        changes = int.from_bytes(self._shared[self._own], "little") + 1
        own = changes.to_bytes(PORT_MARK_BYTES, "little")
        self._shared[self._own] = own
        self._seen = self._seen[: self._own.start] + own + self._seen[self._own.stop :]


@contextmanager
def sharing(path: Path | None) -> Iterator[PortMark]:
    """Share the counters in a file with the other gateways of a port, while the context is open.

    A counter belongs to the process that holds the lock on `PATH.NUMBER`. The operating system releases the lock when the process ends.

    Args:
        path: of the file, which is created if it does not exist; None if no other gateway uses the port.

    Raises:
        RuntimeError: `COUNTERS` gateways already share the file.
    """
    if path is None:
        yield PortMark()
        return
    with path.open("ab") as new_file:
        new_file.truncate(COUNTERS * PORT_MARK_BYTES)
    with _locked_number(path) as number, path.open("r+b") as file, mmap.mmap(file.fileno(), COUNTERS * PORT_MARK_BYTES) as shared:
        yield PortMark(shared, number)


@contextmanager
def _locked_number(path: Path) -> Iterator[int]:
    """Lock the first free number while the context is open."""
    for number in range(COUNTERS):
        with path.with_name(f"{path.name}.{number}").open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield number
            return
    raise RuntimeError(f"{COUNTERS} gateways already share {path}")


class _CachedRecord(NamedTuple):
    """A cached record, with the UIDs of its key."""

    study: str
    instance: str
    record: InstanceRecord
    size_bytes: int


class Records:
    """Requests records from index and caches those of single instances.

    Args:
        most_entries: maximum number of cached records.
        now: a monotonic clock, in seconds.
        mark: shared with the gateways of the port. When one of them changes something, the others clear their caches.
    """

    def __init__(
        self, index: "IndexServiceAsyncStub", most_entries: int, now: Callable[[], float] = time.monotonic, mark: PortMark | None = None
    ) -> None:
        self._index = index
        self._mark = mark or PortMark()
        self._now = now
        self._valid_until = float("-inf")
        self._cached = ByteBoundedCache[_CachedRecord](MAX_BYTES, lambda cached: cached.size_bytes, most_entries, self._evicted)
        self._instances_of: dict[str, set[str]] = {}
        """Study Instance UID → SOP Instance UIDs of its cached records, so that a study can be removed without a scan of the cache."""
        # Study Instance UID → SOP Instance UID → token of the latest running request. A change removes the entry; then the response
        # to that request is not cached.
        self._requested: dict[str, dict[str, object]] = {}

    async def get(self, study: str, series: str, instance: str) -> InstanceRecord:
        """Return the record of an instance.

        Raises:
            errors.NotFound: there is no instance with these UIDs, or the caller may not see it.
            errors.Gone: the instance was deleted.
            errors.Unavailable: index does not answer.
        """
        if self._mark.has_moved():
            self.clear()
        # If the caller may not see the study, index is asked, which answers as if the instance did not exist
        cached = self._cached.get((study, instance)) if call_context.caller().may_see(study) else None
        if cached is not None and self._now() < self._valid_until and cached.record.stored.series_instance_uid == series:
            return cached.record
        return await self.ask(study, series, instance)

    async def ask(self, study: str, series: str, instance: str) -> InstanceRecord:
        """Return the present record of an instance from index, and cache it. Errors as `get`."""
        token = object()
        self._requested.setdefault(study, {})[instance] = token
        try:
            records = [record async for record in self.scope(study, series, instance)]
            if not records:
                raise errors.NotFound(f"there is no instance {instance} in series {series} of study {study}")
            if self._requested.get(study, {}).get(instance) is token and self._now() < self._valid_until:
                self._store(study, instance, records[0])
            return records[0]
        finally:
            requested = self._requested.get(study)
            if requested is not None:
                if requested.get(instance) is token:
                    del requested[instance]
                if not requested:
                    del self._requested[study]

    async def scope(self, study: str, series: str = "", instance: str = "") -> AsyncGenerator[InstanceRecord, None]:
        """Yield the records of a study, series or instance from index, in its order. Raises as `get`, before the first record."""
        scope = Scope(collection=study, series_instance_uid=series, sop_instance_uid=instance)
        call = self._index.GetInstances(GetInstancesRequest(scope=scope), timeout=INDEX_S if instance else SCOPE_S)
        try:
            with rpc_errors.translated("index"):
                async for message in call:
                    for record in message.records:
                        yield record
        finally:
            call.cancel()

    def _store(self, study: str, instance: str, record: InstanceRecord) -> None:
        self._instances_of.setdefault(study, set()).add(instance)
        if not self._cached.put((study, instance), _CachedRecord(study, instance, record, 2 * record.ByteSize())):
            self._forget_instance(study, instance)

    def _evicted(self, cached: _CachedRecord) -> None:
        """Handle a record that the cache has evicted."""
        self._forget_instance(cached.study, cached.instance)

    def _forget_instance(self, study: str, instance: str) -> None:
        instances = self._instances_of.get(study)
        if instances is not None:
            instances.discard(instance)
            if not instances:
                del self._instances_of[study]

    def heartbeat(self) -> None:
        """Handle a heartbeat of index. After missed heartbeats the cache is cleared, as a change may have been missed too."""
        now = self._now()
        if now >= self._valid_until:
            self.clear()
        self._valid_until = now + LEASE_S

    def forget(self, study: str, instances: Iterable[str] = ()) -> None:
        """Remove the records of instances from the cache, or of a whole study if `instances` is empty."""
        named = list(instances)
        if named:
            requested = self._requested.get(study, {})
            for instance in named:
                requested.pop(instance, None)
                self._forget_instance(study, instance)
        else:
            self._requested.pop(study, None)
            named = list(self._instances_of.pop(study, ()))
        for instance in named:
            self._cached.pop((study, instance))

    def changed(self, study: str) -> None:
        """Remove the records of a study that this gateway has changed, and notify the other gateways of the port."""
        self.forget(study)
        self._mark.move()

    def clear(self) -> None:
        """Remove all records from the cache."""
        self._cached.clear()
        self._instances_of.clear()
        self._requested.clear()


@asynccontextmanager
async def listening(records: Records, client: streams.Client) -> AsyncIterator[None]:
    """Apply the heartbeats and changes that index publishes to the cache, while the context is open."""
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
