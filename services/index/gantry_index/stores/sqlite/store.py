"""The index store on one machine: SQLite.

A batch and its cursor are one transaction, so that a batch is never applied in part. The other modules: `schema` has the tables, `database`
the connections and threads, `writing` the writes of a batch, and `search` the queries.
"""

import asyncio
import os
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gantry.index.v1.index_pb2 import InstanceRecord
from gantry_index.levels.summary import STUDY_UID
from gantry_index.stores.port import (
    DUE_KINDS,
    NUMBER_ABSENT,
    PAGE,
    Batch,
    Counts,
    Dead,
    Decide,
    Fragment,
    IndexStore,
    OutboxRow,
    Page,
    Place,
    Present,
    Scope,
    name_of,
)
from gantry_index.stores.sqlite.database import Database, chunks, fsync_directory, marks, meta, set_meta
from gantry_index.stores.sqlite.schema import KEY_COLUMNS, SCHEMA, change_key
from gantry_index.stores.sqlite.search import Searching
from gantry_index.stores.sqlite.writing import Writing, is_merge_due, merge_recent_terms
from gantry_standard import errors
from gantry_standard.dicom.collections import is_study
from gantry_standard.query.levels import Level
from gantry_standard.query.matching import Operation, Query

T = TypeVar("T")
LOOKED_UP = 4
"""Largest number of rows that are read by their key on the event loop."""
FEW_IN_STATE = 100
"""Largest number of instances whose versions are read on the event loop for a state tag, which takes 20 µs. A thread would take longer."""
MOST_IN_STATE = 500
"""Largest number of instances whose versions are read for a state tag, which takes 0.1 ms."""


class SqliteStore:
    """IndexStore in one directory, in which the file `current` names the database file of the current index generation."""

    name = "sqlite"

    def __init__(self, directory: Path, readers: int = 4, file_name: str = "") -> None:
        self._directory = directory
        self._readers = readers
        directory.mkdir(parents=True, exist_ok=True)
        current = directory / "current"
        if not file_name and current.exists():
            file_name = current.read_text().strip()
        self._database = Database(directory / (file_name or f"index-{uuid.uuid4().hex[:12]}.sqlite"), SCHEMA, readers)
        self._retired: list[Database] = []
        if not current.exists():
            self._point_to(self._database.path.name)

    def _point_to(self, file_name: str) -> None:
        temporary = self._directory / "current.new"
        with temporary.open("w") as file:
            file.write(file_name)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._directory / "current")
        fsync_directory(self._directory)

    async def outdated(self) -> str:
        """See IndexStore. A file of an older program is migrated when it is opened."""
        return ""

    async def generation(self) -> str:
        """See IndexStore."""
        return await self._database.read(lambda connection: meta(connection, "generation"))

    async def follow(self, generation: str, sequence: int) -> None:
        """See IndexStore."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM meta WHERE name LIKE 'cursor %'")
            set_meta(connection, "generation", generation)
            set_meta(connection, "followed", str(sequence))

        await self._database.write(work)

    async def cursor(self, reader: str) -> int:
        """See IndexStore."""
        return await self._database.read(
            lambda connection: int(meta(connection, f"cursor {reader}") or meta(connection, "followed") or "0")
        )

    async def cursors(self, readers: Sequence[str]) -> dict[str, int]:
        """See IndexStore."""
        return {reader: await self.cursor(reader) for reader in readers}

    async def high_water(self) -> int:
        """See IndexStore."""
        return await self._database.read(_high_water)

    async def present(self, sop_instance_uids: Sequence[str], places: Sequence[Place]) -> tuple[dict[str, Present], dict[Place, Dead]]:
        """See IndexStore."""
        if len(sop_instance_uids) + len(places) <= 2 * LOOKED_UP:
            return self._database.look_up(lambda connection: _present(connection, sop_instance_uids, places))
        return await self._database.read(lambda connection: _present(connection, sop_instance_uids, places))

    async def apply(self, batch: Batch) -> None:
        """See IndexStore."""
        await self._written(lambda writing: writing.apply(batch))

    async def decided(self, sop_instance_uids: Sequence[str], places: Sequence[Place], decide: Decide) -> bool:
        """See IndexStore. One transaction."""

        def work(writing: Writing) -> bool:
            present, dead = _present(writing.connection, sop_instance_uids, places)
            batch = decide(present, dead)
            if batch is None:
                return False
            writing.absent = frozenset(sop_instance_uids) - present.keys()
            writing.apply(batch)
            return True

        return await self._written(work)

    async def _written(self, work: Callable[[Writing], T]) -> T:
        database = self._database
        done = await database.write(lambda connection: work(Writing(database, connection)))
        if is_merge_due(database):
            database.write_later(self._merge)
        return done

    def _merge(self, connection: sqlite3.Connection) -> None:
        merge_recent_terms(connection)
        self._database.recent_terms = 0

    async def search(self, query: Query) -> Page:
        """See IndexStore."""
        database = self._database
        if _names_studies(query):
            return database.look_up(lambda connection: Searching(database, connection, query).page())
        return await database.read(lambda connection: Searching(database, connection, query).page())

    async def records(self, scope: Scope) -> AsyncIterator[list[bytes]]:
        """See IndexStore."""
        async for rows in self._rows(scope, "record"):
            yield [record for _, record in rows]

    async def fragments(self, scope: Scope) -> AsyncIterator[list[Fragment]]:
        """See IndexStore."""
        async for rows in self._rows(scope, "version, fragment, CASE WHEN fragment = x'' THEN record END"):
            yield [_fragment(*values) for values in rows]

    async def _rows(self, scope: Scope, columns: str) -> AsyncIterator[list[Any]]:
        database = self._database
        if scope.sop_instance_uid:
            yield database.look_up(lambda connection: _one_row(connection, scope, columns))
            return
        if scope.series_instance_uid:
            in_order = database.look_up(lambda connection: _series_in_order(connection, scope))
        else:
            in_order = await database.read(lambda connection: _series_in_order(connection, scope))
        for series in in_order:
            after: tuple[int, str] | None = (-NUMBER_ABSENT - 1, "")
            while after:
                rows, after = await database.read(
                    lambda connection, series=series, after=after: _page_of_series(connection, series, columns, after)  # type: ignore[misc]
                )
                if rows:
                    yield rows

    async def state(self, scope: Scope) -> bytes:
        """See IndexStore. Every change of an instance gives it a higher version, and a deletion reduces the number of instances."""
        if scope.sop_instance_uid or scope.hides(scope.collection):
            return b""
        database = self._database
        condition, parameters = "collection = ?", [scope.collection]
        if scope.series_instance_uid:
            condition, parameters = "collection = ? AND series = ?", [scope.collection, scope.series_instance_uid]
        statement = f"SELECT count(*), max(version) FROM (SELECT version FROM instances WHERE {condition} AND deleted = 0 LIMIT ?)"

        def at_most(number: int) -> Callable[[sqlite3.Connection], tuple[int, int]]:
            """Return a read of the number of instances, at most `number` + 1, and of the highest version among them."""
            return lambda connection: connection.execute(statement, (*parameters, number + 1)).fetchone()

        count, newest = database.look_up(at_most(FEW_IN_STATE))
        if count > FEW_IN_STATE:
            count, newest = await database.read(at_most(MOST_IN_STATE))
        return f"{database.opened} {count} {newest}".encode() if 0 < count <= MOST_IN_STATE else b""

    async def tombstones(self, uid: str, visible_studies: frozenset[str] | None = None) -> AsyncIterator[list[Present]]:
        """See IndexStore."""
        visible = sorted(visible_studies) if visible_studies is not None else []
        places = ", ".join(f"?{number}" for number in range(4, 4 + len(visible)))
        dead = "deleted = 1" if visible_studies is None else f"deleted = 1 AND collection IN ({places})"
        columns = KEY_COLUMNS[Level.INSTANCE]
        for number, column in enumerate(columns):
            # One UID may identify both a series and an instance. Rows that matched an earlier column are omitted.
            condition = " AND ".join([f"{column} = ?1", *(f"{earlier} <> ?1" for earlier in columns[:number])])
            statement = f"SELECT sop, version, record FROM instances WHERE {condition} AND {dead} AND sop > ?2 ORDER BY sop LIMIT ?3"
            after: str | None = ""
            while after is not None:
                rows = await self._database.read(
                    lambda connection, statement=statement, after=after: connection.execute(
                        statement, (uid, after, PAGE, *visible)
                    ).fetchall()  # type: ignore[misc]
                )
                if rows:
                    yield [Present(InstanceRecord.FromString(record).stored, version, deleted=True) for _, version, record in rows]
                after = rows[-1][0] if len(rows) == PAGE else None

    async def due(self, before_s: int, after_object: str, limit: int) -> list[tuple[Place, Dead]]:
        """See IndexStore."""
        # Each kind is read in the order of the database index, and only as far as needed.
        each = (
            "SELECT * FROM (SELECT object, offset, kind, decided, lies_in FROM dead"
            " WHERE kind = ? AND lies_in > ? AND decided < ? ORDER BY lies_in, object, offset LIMIT ?)"
        )
        parameters = [value for kind in DUE_KINDS for value in (int(kind), after_object, before_s, limit)]
        statement = " UNION ALL ".join([each] * len(DUE_KINDS)) + " ORDER BY lies_in, object, offset LIMIT ?"
        rows = await self._database.read(lambda connection: connection.execute(statement, (*parameters, limit)).fetchall())
        return [((object_key, offset), Dead(*values)) for object_key, offset, *values in rows]

    async def unknown_packs(self, objects: Sequence[str]) -> list[str]:
        """See IndexStore."""

        def work(connection: sqlite3.Connection) -> list[str]:
            known: set[str] = set()
            for chunk in chunks(objects):
                known.update(key for (key,) in connection.execute(f"SELECT object FROM packs WHERE object IN ({marks(chunk)})", chunk))
            known -= {key for (key,) in connection.execute("SELECT pack FROM poison_names")}
            return [key for key in objects if key not in known]

        return await self._database.read(work)

    async def poisoned(self) -> set[str]:
        """See IndexStore."""
        rows = await self._database.read(lambda connection: connection.execute("SELECT name FROM poison_names").fetchall())
        return {name for (name,) in rows}

    async def outbox_rows(self, windows: Mapping[str, tuple[int, int]], limit: int) -> list[OutboxRow]:
        """See IndexStore."""
        statement = "SELECT reader, sequence, study, data FROM outbox WHERE key > ? AND key <= ? AND reader = ? ORDER BY key LIMIT ?"

        def work(connection: sqlite3.Connection) -> list[OutboxRow]:
            rows = [
                OutboxRow(*row)
                for reader, (above, up_to) in windows.items()
                for row in connection.execute(statement, (change_key(above), change_key(up_to), reader, limit))
            ]
            return sorted(rows, key=lambda row: row.sequence)[:limit]

        return await self._database.read(work)

    async def settling(self, reader: str) -> dict[str, int]:
        """See IndexStore."""
        statement = "SELECT study, sequence FROM outbox WHERE key >= 's' AND reader = ?"
        return await self._database.read(lambda connection: dict(connection.execute(statement, (reader,)).fetchall()))

    async def counts(self) -> Counts:
        """See IndexStore."""

        def work(connection: sqlite3.Connection) -> Counts:
            statements = (
                "SELECT count(*) FROM studies",
                "SELECT count(*) FROM series",
                # Each part is counted with its own database index.
                "SELECT (SELECT count(*) FROM instances WHERE deleted = 0 AND series <> '')"
                " + (SELECT count(*) FROM instances WHERE collection >= 'a' AND deleted = 0)",
                "SELECT count(*) FROM poison",
            )
            return Counts(*(connection.execute(statement).fetchone()[0] for statement in statements))

        return await self._database.read(work)

    async def build(self) -> "SqliteStore":
        """See IndexStore."""
        return await asyncio.to_thread(SqliteStore, self._directory, self._readers, f"index-{uuid.uuid4().hex[:12]}.sqlite")

    async def swap(self, built: IndexStore) -> None:
        """See IndexStore. Running reads continue in the old file, which is deleted when this store is closed."""
        if not isinstance(built, SqliteStore):
            raise TypeError("a SQLite store takes over what a SQLite store built")
        rows = await self._database.read(lambda connection: connection.execute("SELECT * FROM outbox").fetchall())
        await built._database.write(lambda connection: _take_outbox(connection, rows))
        await asyncio.to_thread(self._point_to, built._database.path.name)
        self._retired.append(self._database)
        self._database = built._database
        for path in self._directory.glob("index-*.sqlite*"):
            if not path.name.startswith(self._database.path.name):
                path.unlink(missing_ok=True)

    async def close(self) -> None:
        """See IndexStore."""
        for database in (self._database, *self._retired):
            await asyncio.to_thread(database.close)


def _take_outbox(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    connection.executemany("INSERT OR REPLACE INTO outbox VALUES (?, ?, ?, ?, ?)", rows)


def _names_studies(query: Query) -> bool:
    """Return whether a search is for at most LOOKED_UP studies by their UIDs, without other keys."""
    named = [key for key in query.keys if key.path == (STUDY_UID,) and key.operation is Operation.EQUAL]
    return query.level is Level.STUDY and len(query.keys) == len(named) == 1 and len(named[0].values) <= LOOKED_UP


def _present(
    connection: sqlite3.Connection, sop_instance_uids: Sequence[str], places: Sequence[Place]
) -> tuple[dict[str, Present], dict[Place, Dead]]:
    present_by_uid: dict[str, Present] = {}
    for uids in chunks(sop_instance_uids):
        statement = f"SELECT sop, version, deleted, record FROM instances WHERE sop IN ({marks(uids)})"
        for sop, version, deleted, record in connection.execute(statement, uids):
            present_by_uid[sop] = Present(InstanceRecord.FromString(record).stored, version, bool(deleted))
    dead: dict[Place, Dead] = {}
    for place in places:
        values = connection.execute("SELECT kind, decided, lies_in FROM dead WHERE object = ? AND offset = ?", place).fetchone()
        if values:
            dead[place] = Dead(*values)
    return present_by_uid, dead


def _high_water(connection: sqlite3.Connection) -> int:
    values = connection.execute("SELECT value FROM meta WHERE name LIKE 'cursor %' OR name = 'followed'")
    return max((int(value) for (value,) in values), default=0)


def _fragment(sop: str, version: int, fragment: bytes, record: bytes | None) -> Fragment:
    location = InstanceRecord.FromString(record).stored.dicom_json_location.SerializeToString() if record else b""
    return Fragment(sop, version, fragment, location)


def _one_row(connection: sqlite3.Connection, scope: Scope, columns: str) -> list[Any]:
    cursor = connection.execute(
        f"SELECT deleted, collection, series, sop, {columns} FROM instances WHERE sop = ?", (scope.sop_instance_uid,)
    )
    values = cursor.fetchone()
    if (
        values is None
        or (scope.collection and scope.collection != values[1])
        or (scope.series_instance_uid and scope.series_instance_uid != values[2])
        or scope.hides(values[1])
    ):
        raise errors.NotFound(f"instance {scope.sop_instance_uid} is not here")
    if values[0]:
        raise errors.Gone(f"instance {scope.sop_instance_uid} was deleted")
    return [values[3:]]


def _series_in_order(connection: sqlite3.Connection, scope: Scope) -> list[tuple[str, str]]:
    """Return collection and series of a scope that has instances. A non-patient resource has one series without a name."""
    within, parameters = "", [scope.collection]
    if scope.series_instance_uid:
        within, parameters = " AND series = ?", [*parameters, scope.series_instance_uid]
    if is_study(scope.collection):
        statement = f"SELECT study, series FROM series WHERE study = ?{within} ORDER BY number, series"
    else:
        statement = f"SELECT collection, series FROM instances WHERE collection = ?{within} AND deleted = 0 LIMIT 1"
    is_hidden = scope.hides(scope.collection)
    if not is_hidden and (rows := connection.execute(statement, parameters).fetchall()):
        return rows
    what = name_of(scope)
    if not is_hidden and connection.execute(f"SELECT 1 FROM instances WHERE collection = ?{within} LIMIT 1", parameters).fetchone():
        raise errors.Gone(f"{what} was deleted")
    raise errors.NotFound(f"{what} is not here")


def _page_of_series(
    connection: sqlite3.Connection, series: tuple[str, str], columns: str, after: tuple[int, str]
) -> tuple[list[Any], tuple[int, str] | None]:
    rows = connection.execute(
        f"SELECT number, sop, {columns} FROM instances"
        " WHERE collection = ? AND series = ? AND deleted = 0 AND (number, sop) > (?, ?) ORDER BY number, sop LIMIT ?",
        (*series, *after, PAGE),
    ).fetchall()
    return [values[1:] for values in rows], (rows[-1][0], rows[-1][1]) if len(rows) == PAGE else None
