"""How far each subscriber has come: one durable record per AE title, shared by all gateways.

A subscriber may hold several connections on several gateways. Its cursor is the least of what its open connections have, and of
those that broke within the last minute; so a client that comes back gets what was on its way when it was cut off.

No time is stored and no clocks of two hosts are compared. Each word about a connection carries a sequence of the bucket's stream. A gateway
stops counting a connection when it has watched it for long enough, by its own clock, without a new sequence.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import orjson

from gantry_runtime.events import streams
from gantry_runtime.events.streams import Bucket, JetStreamContext
from gantry_standard import errors

BUCKET = "subscribers"
BROKEN_S = 60.0
"""Seconds for which a connection that broke still counts."""
UNSEEN_S = 120.0
"""Seconds after which an open connection of a gateway that says nothing of it no longer counts: the gateway died."""
QUIET_S = 40.0
"""Seconds between two notes of a connection on which nothing happens. A gateway that did not look at a record for longer (it had no
connection of this subscriber, or NATS was away) has watched it for this long at most: others could not say anything either."""
ATTEMPTS = 50


class Record:
    """What is known of one AE title.

    Attributes:
        cursor: sequence on REPORTS up to which it has everything, as of the last change.
        connections: id → [delivered sequence, 1 while open else 0, sequence of the bucket's stream when that was said].
    """

    def __init__(self, cursor: int, connections: dict[str, tuple[int, int, int]] | None = None) -> None:
        self.cursor = cursor
        self.connections = connections or {}

    @classmethod
    def read(cls, data: bytes) -> "Record":
        """Return the record that `dump` wrote. Where an older version wrote it, the third number is a time; it serves as well."""
        stored = orjson.loads(data)
        return cls(stored["cursor"], {key: (value[0], value[1], int(value[2])) for key, value in stored["connections"].items()})

    def dump(self) -> bytes:
        """Return it as it is stored."""
        return orjson.dumps({"cursor": self.cursor, "connections": self.connections})

    def settle(self) -> None:
        """Move the cursor to the least of what the connections have."""
        if self.connections:
            self.cursor = min(delivered for delivered, _, _ in self.connections.values())


@dataclass(frozen=True, slots=True)
class _Watched:
    """How long a connection has been watched without a new word about it.

    Attributes:
        said: sequence of the last word.
        unchanged_s: seconds that it was watched since.
        looked_s: when this gateway looked last, on its own clock.
    """

    said: int
    unchanged_s: float
    looked_s: float


class Watch:
    """What this gateway has seen of the connections in the records, by its own clock.

    Args:
        now: a clock that never goes back, in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._watched: dict[str, dict[str, _Watched]] = {}

    def drop_silent(self, ae_title: str, record: Record) -> None:
        """Take the connections that no longer count out of a record as it was read."""
        now_s, before = self._now(), self._watched.get(ae_title, {})
        watched = {key: _look(before.get(key), said, now_s) for key, (_, _, said) in record.connections.items()}
        # Kept as long as the record has the connection: the change that takes it out may have to be tried again.
        self._watched[ae_title] = watched
        record.connections = {
            key: connection
            for key, connection in record.connections.items()
            if watched[key].unchanged_s < (UNSEEN_S if connection[1] else BROKEN_S)
        }


def _look(last: _Watched | None, said: int, now_s: float) -> _Watched:
    if last is None or last.said != said:
        return _Watched(said, 0.0, now_s)
    return _Watched(said, last.unchanged_s + min(now_s - last.looked_s, QUIET_S), now_s)


class Cursors:
    """Reads and changes records. Every method raises `errors.Unavailable` when NATS does not answer."""

    def __init__(self, js: JetStreamContext, now: Callable[[], float] = time.monotonic) -> None:
        self._js = js
        self._bucket: Bucket | None = None
        self._watch = Watch(now)

    async def begin(self, ae_title: str, end: int) -> None:
        """Begin to count for an AE title at `end`, unless it is known already."""
        if self._bucket is None:
            self._bucket = await streams.open_bucket(self._js, BUCKET)
        _, revision = await self._bucket.get(_key(ae_title))
        if not revision:
            await self._change(ae_title, end, {})

    async def open(self, ae_title: str, connection_id: str, end: int) -> int:
        """Note a new connection; return the sequence after which it begins."""
        record = await self._change(ae_title, end, {connection_id: (None, 1)})
        return record.connections[connection_id][0]

    async def note(self, ae_title: str, delivered: Iterable[tuple[str, int]]) -> None:
        """Note what open connections have got: pairs of connection id and sequence."""
        await self._change(ae_title, 0, {connection_id: (sequence, 1) for connection_id, sequence in delivered})

    async def close(self, ae_title: str, connection_id: str, delivered: int) -> None:
        """Note that a connection has ended."""
        await self._change(ae_title, delivered, {connection_id: (delivered, 0)})

    async def _change(self, ae_title: str, end: int, said: Mapping[str, tuple[int | None, int]]) -> Record:
        """Write what is said of connections into a record.

        Args:
            end: cursor of an AE title that has no record.
            said: delivered sequence, None for the cursor, and 1 while open else 0, by connection id.
        """
        if self._bucket is None:
            self._bucket = await streams.open_bucket(self._js, BUCKET)
        for _ in range(ATTEMPTS):
            data, revision = await self._bucket.get(_key(ae_title))
            record = Record.read(data) if data else Record(end)
            self._watch.drop_silent(ae_title, record)
            record.settle()
            for connection_id, (delivered, is_open) in said.items():
                # No two words about a connection have the same sequence: each change has a revision of its own.
                record.connections[connection_id] = (record.cursor if delivered is None else delivered, is_open, revision)
            record.settle()
            try:
                await self._bucket.replace(_key(ae_title), record.dump(), revision)
                return record
            except errors.Conflict:
                continue
        raise errors.Unavailable("the cursor of a subscriber is changed by too many at once")


def _key(ae_title: str) -> str:
    return ae_title.encode().hex()
