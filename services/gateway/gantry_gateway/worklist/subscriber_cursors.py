"""The cursor of each subscriber: one durable entry per AE title, shared by all gateways.

A subscriber may have several connections on several gateways. Its cursor is the lowest sequence that one of its connections has
received, of the open ones and of those that broke within the last minute. So a client that reconnects gets the reports that were lost
with its connection.

No time is stored, and clocks of different hosts are not compared. Each update of a connection has a sequence of the bucket's stream. A
gateway removes a connection that had no update for a certain time, which the gateway measures with its own clock.
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
"""Seconds for which a closed connection still counts."""
UNSEEN_S = 120.0
"""Seconds without an update after which an open connection no longer counts, because its gateway has died."""
QUIET_S = 40.0
"""Seconds between two updates of a connection without reports. It is also the most that one interval between two reads of an entry counts:
if a gateway did not read an entry for longer (it had no connection of this subscriber, or NATS did not answer), other gateways may have
been unable to update it."""
ATTEMPTS = 50


class SubscriberCursor:
    """The stored entry of one AE title.

    Attributes:
        cursor: sequence on REPORTS up to which all its reports were delivered, as of the last change.
        connections: id → [delivered sequence, 1 if open else 0, sequence of the bucket's stream before the update].
    """

    def __init__(self, cursor: int, connections: dict[str, tuple[int, int, int]] | None = None) -> None:
        self.cursor = cursor
        self.connections = connections or {}

    @classmethod
    def read(cls, data: bytes) -> "SubscriberCursor":
        """Return the entry that `dump` wrote. An earlier version stored a time as the third number, which serves the same purpose."""
        stored = orjson.loads(data)
        return cls(stored["cursor"], {key: (value[0], value[1], int(value[2])) for key, value in stored["connections"].items()})

    def dump(self) -> bytes:
        """Encode the entry as JSON."""
        return orjson.dumps({"cursor": self.cursor, "connections": self.connections})

    def advance(self) -> None:
        """Set the cursor to the lowest delivered sequence of the connections."""
        if self.connections:
            self.cursor = min(delivered for delivered, _, _ in self.connections.values())


@dataclass(frozen=True, slots=True)
class _Watched:
    """How long a connection has had no update.

    Attributes:
        updated: sequence of the last update.
        unchanged_s: seconds since, as far as this gateway has observed.
        looked_s: monotonic time when this gateway last read the entry.
    """

    updated: int
    unchanged_s: float
    looked_s: float


class Watch:
    """The connections that this gateway has observed in the entries, by its own clock.

    Args:
        now: a monotonic clock, in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._watched: dict[str, dict[str, _Watched]] = {}

    def drop_silent(self, ae_title: str, entry: SubscriberCursor) -> None:
        """Remove the connections that no longer count from an entry that was just read."""
        now_s, before = self._now(), self._watched.get(ae_title, {})
        watched = {key: _look(before.get(key), updated, now_s) for key, (_, _, updated) in entry.connections.items()}
        # Remembered as long as the stored entry has the connection, as the change that removes it may have to be tried again
        self._watched[ae_title] = watched
        entry.connections = {
            key: connection
            for key, connection in entry.connections.items()
            if watched[key].unchanged_s < (UNSEEN_S if connection[1] else BROKEN_S)
        }


def _look(last: _Watched | None, updated: int, now_s: float) -> _Watched:
    if last is None or last.updated != updated:
        return _Watched(updated, 0.0, now_s)
    return _Watched(updated, last.unchanged_s + min(now_s - last.looked_s, QUIET_S), now_s)


class Cursors:
    """Reads and changes entries. Every method raises `errors.Unavailable` if NATS does not answer."""

    def __init__(self, js: JetStreamContext, now: Callable[[], float] = time.monotonic) -> None:
        self._js = js
        self._bucket: Bucket | None = None
        self._watch = Watch(now)

    async def begin(self, ae_title: str, end: int) -> None:
        """Create the entry of an AE title with the cursor `end`, unless it exists."""
        if self._bucket is None:
            self._bucket = await streams.open_bucket(self._js, BUCKET)
        _, revision = await self._bucket.get(_key(ae_title))
        if not revision:
            await self._change(ae_title, end, {})

    async def open(self, ae_title: str, connection_id: str, end: int) -> int:
        """Add a new connection; return the sequence after which its reports begin."""
        entry = await self._change(ae_title, end, {connection_id: (None, 1)})
        return entry.connections[connection_id][0]

    async def note(self, ae_title: str, delivered: Iterable[tuple[str, int]]) -> None:
        """Store the delivered sequences of open connections: pairs of connection id and sequence."""
        await self._change(ae_title, 0, {connection_id: (sequence, 1) for connection_id, sequence in delivered})

    async def close(self, ae_title: str, connection_id: str, delivered: int) -> None:
        """Store that a connection is closed, and its delivered sequence."""
        await self._change(ae_title, delivered, {connection_id: (delivered, 0)})

    async def _change(self, ae_title: str, end: int, updated: Mapping[str, tuple[int | None, int]]) -> SubscriberCursor:
        """Update connections in the entry of an AE title.

        Args:
            end: the cursor, if the AE title has no entry.
            updated: connection id → (delivered sequence, None for the cursor; 1 if open else 0).

        Raises:
            errors.Unavailable: NATS does not answer, or other changes were faster `ATTEMPTS` times.
        """
        if self._bucket is None:
            self._bucket = await streams.open_bucket(self._js, BUCKET)
        for _ in range(ATTEMPTS):
            data, revision = await self._bucket.get(_key(ae_title))
            entry = SubscriberCursor.read(data) if data else SubscriberCursor(end)
            self._watch.drop_silent(ae_title, entry)
            entry.advance()
            for connection_id, (delivered, is_open) in updated.items():
                # Two updates of a connection never have the same sequence, as each change has its own revision
                entry.connections[connection_id] = (entry.cursor if delivered is None else delivered, is_open, revision)
            entry.advance()
            try:
                await self._bucket.replace(_key(ae_title), entry.dump(), revision)
                return entry
            except errors.Conflict:
                continue
        raise errors.Unavailable("too many concurrent changes of the cursor of one subscriber")


def _key(ae_title: str) -> str:
    return ae_title.encode().hex()
