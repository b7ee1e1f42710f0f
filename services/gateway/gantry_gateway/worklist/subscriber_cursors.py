"""How far each subscriber has come: one durable record per AE title, shared by all gateways.

A subscriber may hold several connections on several gateways. Its cursor is the least of what its open connections have, and of
those that broke within the last minute; so a client that comes back gets what was on its way when it was cut off.
"""

import time
from collections.abc import Callable, Iterable

import orjson

from gantry_runtime.events import streams
from gantry_runtime.events.streams import Bucket, JetStreamContext
from gantry_standard import errors

BUCKET = "subscribers"
BROKEN_S = 60.0
"""Seconds for which a connection that broke still counts."""
UNSEEN_S = 120.0
"""Seconds after which an open connection of a gateway that says nothing of it no longer counts: the gateway died."""
ATTEMPTS = 50


class Record:
    """What is known of one AE title.

    Attributes:
        cursor: sequence on REPORTS up to which it has everything, as of the last change.
        connections: id → [delivered sequence, 1 while open else 0, when that was said (seconds since 1970)].
    """

    def __init__(self, cursor: int, connections: dict[str, tuple[int, int, float]] | None = None) -> None:
        self.cursor = cursor
        self.connections = connections or {}

    @classmethod
    def read(cls, data: bytes) -> "Record":
        """Return the record that `dump` wrote."""
        found = orjson.loads(data)
        return cls(found["cursor"], {key: (value[0], value[1], value[2]) for key, value in found["connections"].items()})

    def dump(self) -> bytes:
        """Return it as it is stored."""
        return orjson.dumps({"cursor": self.cursor, "connections": self.connections})

    def settle(self, now_s: float) -> None:
        """Forget connections that no longer count, and move the cursor to the least of the others."""
        counting = {
            key: (delivered, is_open, said_s)
            for key, (delivered, is_open, said_s) in self.connections.items()
            if now_s - said_s < (UNSEEN_S if is_open else BROKEN_S)
        }
        if counting:
            self.cursor = min(delivered for delivered, _, _ in counting.values())
        self.connections = counting


class Cursors:
    """Reads and changes records. Every method raises `errors.Unavailable` when NATS does not answer."""

    def __init__(self, js: JetStreamContext) -> None:
        self._js = js
        self._bucket: Bucket | None = None

    async def begin(self, ae_title: str, end: int) -> None:
        """Begin to count for an AE title at `end`, unless it is known already."""
        if self._bucket is None:
            self._bucket = await streams.open_bucket(self._js, BUCKET)
        _, revision = await self._bucket.get(_key(ae_title))
        if not revision:
            await self._change(ae_title, end, lambda record: None)

    async def open(self, ae_title: str, connection_id: str, end: int) -> int:
        """Note a new connection; return the sequence after which it begins."""
        record = await self._change(ae_title, end, lambda record: _set(record, connection_id, record.cursor, 1))
        return record.connections[connection_id][0]

    async def note(self, ae_title: str, delivered: Iterable[tuple[str, int]]) -> None:
        """Note what open connections have got: pairs of connection id and sequence."""
        pairs = list(delivered)

        def change(record: Record) -> None:
            for connection_id, sequence in pairs:
                _set(record, connection_id, sequence, 1)

        await self._change(ae_title, 0, change)

    async def close(self, ae_title: str, connection_id: str, delivered: int) -> None:
        """Note that a connection has ended."""
        await self._change(ae_title, delivered, lambda record: _set(record, connection_id, delivered, 0))

    async def _change(self, ae_title: str, end: int, change: Callable[[Record], None]) -> Record:
        if self._bucket is None:
            self._bucket = await streams.open_bucket(self._js, BUCKET)
        for _ in range(ATTEMPTS):
            data, revision = await self._bucket.get(_key(ae_title))
            record = Record.read(data) if data else Record(end)
            record.settle(time.time())
            change(record)
            record.settle(time.time())
            try:
                await self._bucket.replace(_key(ae_title), record.dump(), revision)
                return record
            except errors.Conflict:
                continue
        raise errors.Unavailable("the cursor of a subscriber is changed by too many at once")


def _key(ae_title: str) -> str:
    return ae_title.encode().hex()


def _set(record: Record, connection_id: str, delivered: int, is_open: int) -> None:
    record.connections[connection_id] = (delivered, is_open, time.time())
