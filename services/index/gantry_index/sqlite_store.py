"""The index store on one machine: SQLite in WAL mode.

One writer connection in a thread of its own, a small pool of readers in others, and one on the event loop for a few rows by their key.
A batch is one transaction, its cursor in it, so that
nothing is ever half-applied. `synchronous=FULL`: a commit is on disk when it returns.

Terms are rows (path, value, owner, item, root); an owner is the row id of a study, series or instance times 4 plus its level. Terms of
an instance that is gone stay until the next generation: their owner is not live any more, and row ids are never used again.

Terms of new instances go into `recent_terms`, which is clustered by owner: a commit appends to it and touches a few pages, where `terms`,
clustered by value, would take a page a term. Once there are RECENT_TERMS of them all move, sorted, into `terms`, in a transaction of their
own after the batch was answered. Terms of one owner stand in one of the two tables, never in both; a search by attributes of instances
reads both (docs/decisions/0004-recent-terms.md).
"""

import asyncio
import logging
import os
import sqlite3
import threading
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import orjson

from gantry.index.v1.index_pb2 import InstanceRecord
from gantry_index.rows import Identity, levels_needed, needs_metadata, row, workitem_row
from gantry_index.store import (
    DUE_KINDS,
    INLINE_JSON_BYTES,
    NUMBER_ABSENT,
    PAGE,
    Batch,
    Counts,
    Dead,
    Decide,
    Fragment,
    IndexStore,
    Move,
    Page,
    Place,
    Present,
    Put,
    Remove,
    Scope,
    WorkitemDocument,
)
from gantry_index.summary import (
    INSTANCE_NUMBER,
    NOT_TERMS_OF_INSTANCE,
    SERIES_NUMBER,
    SERIES_UID,
    SOP_UID,
    STUDY_UID,
    Attributes,
    SeriesSummary,
    StudySummary,
    computed_terms,
    decoded,
    level_terms,
    sort_number,
    start_of,
    tabulated,
    workitem_terms,
)
from gantry_runtime import telemetry
from gantry_runtime.threads import Threads
from gantry_standard import errors, terms
from gantry_standard.levels import Level
from gantry_standard.matching import MatchKey, Operation, Query, group_keys
from gantry_standard.random_bits import random_hex
from gantry_standard.terms import Term

log = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S", StudySummary, SeriesSummary)
FORMAT = "3"
RECENT_TERMS = 16_384
"""Terms in `recent_terms` from which on they are moved: some 200 instances of CT, 0.2 ms of a search. A batch of more goes
into `terms` at once, so that there are never twice as many."""
PAGE_BYTES = 8192
"""Of a new database; one that is there keeps what it has. With 4,096 a batch changes more of them, at two calls of the system each."""
CHECKPOINT_PAGES = 2000
"""Pages of the write-ahead log from which on they are copied into the database: 16 MB."""
PRAGMAS = (
    f"page_size={PAGE_BYTES}",
    "journal_mode=WAL",
    "synchronous=FULL",
    "cache_size=-65536",
    "mmap_size=268435456",
    "temp_store=MEMORY",
    f"wal_autocheckpoint={CHECKPOINT_PAGES}",
)
LOOKED_UP = 4
"""Rows by their key that are read on the event loop."""
MOST_IN_STATE = 500
"""Instances whose versions are read to tell the state of a study or a series, on the event loop: 0.1 ms."""
KEPT_SUMMARIES = 64
KEPT_MEMORIES = 16
"""Each of at most the elements of one data set whose DICOM JSON is up to INLINE_JSON_BYTES."""

CHUNK = 500
"""Parameters in one statement."""

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE studies (
    id INTEGER PRIMARY KEY AUTOINCREMENT, study TEXT NOT NULL UNIQUE, sort_key TEXT NOT NULL,
    summary BLOB NOT NULL, attributes BLOB NOT NULL
);
CREATE INDEX studies_in_order ON studies (sort_key DESC, study);
CREATE TABLE series (
    id INTEGER PRIMARY KEY AUTOINCREMENT, study TEXT NOT NULL, series TEXT NOT NULL, number INTEGER NOT NULL,
    summary BLOB NOT NULL, attributes BLOB NOT NULL, UNIQUE (study, series)
);
CREATE INDEX series_in_order ON series (number, series);
CREATE TABLE instances (
    id INTEGER PRIMARY KEY AUTOINCREMENT, sop TEXT NOT NULL UNIQUE, study TEXT NOT NULL, series TEXT NOT NULL, number INTEGER NOT NULL,
    version INTEGER NOT NULL, deleted INTEGER NOT NULL, record BLOB NOT NULL, attributes BLOB NOT NULL, fragment BLOB NOT NULL
);
CREATE INDEX instances_of_series ON instances (study, series, deleted, number, sop);
CREATE INDEX instances_in_order ON instances (number, sop) WHERE deleted = 0;
CREATE TABLE paths (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE);
CREATE TABLE terms (
    path INTEGER NOT NULL, value TEXT NOT NULL, owner INTEGER NOT NULL, item INTEGER NOT NULL, root INTEGER NOT NULL,
    PRIMARY KEY (path, value, owner, item)
) WITHOUT ROWID;
CREATE TABLE recent (owner INTEGER PRIMARY KEY, terms INTEGER NOT NULL);
CREATE TABLE recent_terms (
    owner INTEGER NOT NULL, path INTEGER NOT NULL, value TEXT NOT NULL, item INTEGER NOT NULL, root INTEGER NOT NULL,
    PRIMARY KEY (owner, path, value, item)
) WITHOUT ROWID;
CREATE TABLE dead (
    object TEXT NOT NULL, offset INTEGER NOT NULL, kind INTEGER NOT NULL, decided INTEGER NOT NULL, lies_in TEXT NOT NULL,
    PRIMARY KEY (object, offset)
) WITHOUT ROWID;
CREATE INDEX dead_in_order ON dead (kind, lies_in, object, offset);
CREATE TABLE packs (object TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE poison (sequence INTEGER PRIMARY KEY, reason TEXT NOT NULL);
"""
WORKITEM_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE workitems (
    id INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL UNIQUE, sort_key TEXT NOT NULL, version INTEGER NOT NULL,
    deleted INTEGER NOT NULL, dicom_json BLOB NOT NULL
);
CREATE TABLE paths (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE);
CREATE TABLE terms (
    path INTEGER NOT NULL, value TEXT NOT NULL, owner INTEGER NOT NULL, item INTEGER NOT NULL, root INTEGER NOT NULL,
    PRIMARY KEY (path, value, owner, item)
) WITHOUT ROWID;
CREATE INDEX terms_of_owner ON terms (owner);
"""
UID_COLUMN = {STUDY_UID: "study", SERIES_UID: "series", SOP_UID: "sop"}


class Recent(OrderedDict[tuple[str, ...], T]):
    """What belongs to the studies and series that were written last, by their UIDs."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def keep(self, key: tuple[str, ...], value: T) -> T:
        """Take over a value, and forget the one that was taken over first."""
        self[key] = value
        if len(self) > self._most:
            self.popitem(last=False)
        return value


class _Database:
    """One database file: a writer connection in its thread, reader connections in theirs."""

    def __init__(self, path: Path, schema: str, readers: int) -> None:
        self.path = path
        self.opened = random_hex(16)
        """A name that no other database has, nor this one when it is opened again."""
        self._closing: list[sqlite3.Connection] = []
        self._local = threading.local()
        self._writer_thread = Threads(1, "index-writer")
        self._reader_threads = Threads(readers, "index-reader")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.writer = self._connected()
        if not self.writer.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
            self.writer.executescript(f"BEGIN; {schema} INSERT INTO meta VALUES ('format', '{FORMAT}'); COMMIT;")
            _fsync_directory(path.parent)
        found = self.writer.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()[0]
        if found != FORMAT:
            raise errors.Conflict(f"{path} has format {found}, this program writes {FORMAT}: delete it and reindex")
        self._here = self._connected()
        self.path_ids: dict[str, int] = {}
        """Of the table `paths`, the number of each."""
        self.recent_terms = 0
        """How many there are in the table. What is kept here is the writer thread's, and read anew after a transaction failed."""
        self.kept: Recent[_Kept[Any]] = Recent(KEPT_SUMMARIES)
        """The studies and series that were written last, as they are in the database."""
        self.memories: Recent[terms.Memory] = Recent(KEPT_MEMORIES)
        """Of series, what the terms of their last instance were derived from."""
        self._read_anew()

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=256, timeout=30)
        self._closing.append(connection)
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        return connection

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a read in a reader thread."""
        return await self._run(self._reader_threads, lambda: work(self._reader()))

    def look_up(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a read of a few rows by their key right here, on the event loop: some 20 µs, where a thread would take ten times as long."""
        try:
            return work(self._here)
        except sqlite3.Error as error:
            raise errors.Unavailable(f"the index store failed: {error}") from error

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run one transaction in the writer thread; durable when it returns."""
        return await self._run(self._writer_thread, lambda: self._transaction(work))

    def write_later(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Run one transaction in the writer thread after those that wait; one that fails changes nothing and is logged."""

        def attempt() -> None:
            try:
                self._transaction(work)
            except sqlite3.Error as error:
                log.warning("index store is not tidied up", extra={"reason": str(error)})

        self._writer_thread.submit(attempt)

    async def _run(self, threads: Threads, work: Callable[[], T]) -> T:
        try:
            return await threads.run(work)
        except sqlite3.Error as error:
            raise errors.Unavailable(f"the index store failed: {error}") from error

    def _reader(self) -> sqlite3.Connection:
        if not hasattr(self._local, "connection"):
            self._local.connection = self._connected()
        connection: sqlite3.Connection = self._local.connection
        return connection

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self.writer.execute("BEGIN IMMEDIATE")
        try:
            result = work(self.writer)
            self.writer.execute("COMMIT")
            return result
        except BaseException:
            if self.writer.in_transaction:
                self.writer.execute("ROLLBACK")
            self._read_anew()
            raise

    def _read_anew(self) -> None:
        self.path_ids = dict(self.writer.execute("SELECT path, id FROM paths"))
        if self.writer.execute("SELECT 1 FROM sqlite_master WHERE name = 'recent'").fetchone():
            self.recent_terms = int(self.writer.execute("SELECT coalesce(sum(terms), 0) FROM recent").fetchone()[0])
        self.kept.clear()

    def path_id(self, path: str) -> int:
        """Return the number of a path, made when it is new; in a transaction only."""
        found = self.path_ids.get(path)
        if found is None:
            cursor = self.writer.execute("INSERT INTO paths (path) VALUES (?)", (path,))
            found = self.path_ids[path] = int(cursor.lastrowid or 0)
        return found

    def add_terms(self, owner: int, found: Iterable[Term]) -> None:
        """Write terms; in a transaction only."""
        known = self.path_ids
        rows = [(known.get(path) or self.path_id(path), value, owner, item, root) for path, value, item, root in found]
        self.writer.executemany("INSERT OR IGNORE INTO terms VALUES (?, ?, ?, ?, ?)", rows)

    def remove_terms(self, owner: int, found: Iterable[Term]) -> None:
        """Delete terms; in a transaction only."""
        self.writer.executemany(
            "DELETE FROM terms WHERE path = ? AND value = ? AND owner = ? AND item = ?",
            [(self.path_id(term.path), term.value, owner, term.item) for term in found],
        )

    def close(self) -> None:
        """Wait for what runs and close every connection."""
        self._writer_thread.close()
        self._reader_threads.close()
        for connection in self._closing:
            connection.close()


def _fsync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class _Condition:
    """SQL text with its parameters."""

    def __init__(self, path_ids: dict[str, int]) -> None:
        self.path_ids = path_ids
        self.clauses: list[str] = []
        self.parameters: list[Any] = []

    def add(self, clause: str, *parameters: Any) -> None:
        self.clauses.append(clause)
        self.parameters += parameters

    @property
    def text(self) -> str:
        return " AND ".join(self.clauses) or "1"

    def owners(self, group: Sequence[MatchKey], level: int, *, recent: bool = False) -> tuple[str, list[Any]]:
        """Return a subquery for the row ids of owners that match all keys of a group, in the same item.

        Args:
            recent: also among recent terms, one look-up a recent owner.
        """
        tables, clauses, parameters = [], [], []
        same_path = len({key.path[:-1] for key in group}) == 1
        for number, key in enumerate(_split_all(group)):
            tables.append(f"t{number}")
            if number:
                column = "item" if same_path else "root"
                clauses.append(f"t{number}.owner = t0.owner")
                if len(key.path) > 1:
                    clauses.append(f"t{number}.{column} = t0.{column}")
            clause, more = self._comparison(f"t{number}", key)
            clauses.append(clause)
            parameters += more
        matches = " AND ".join(clauses)
        merged = ", ".join(f"terms {table}" for table in tables)
        statement = f"SELECT t0.owner >> 2 FROM {merged} WHERE (t0.owner & 3) = ? AND {matches}"
        if not recent:
            return statement, [level, *parameters]
        # CROSS JOIN: the order of the tables is the order of the look-ups.
        unmerged = " CROSS JOIN ".join(("recent r", *(f"recent_terms {table}" for table in tables)))
        statement += f" UNION ALL SELECT t0.owner >> 2 FROM {unmerged} WHERE t0.owner = r.owner AND {matches}"
        return statement, [level, *parameters, *parameters]

    def _comparison(self, table: str, key: MatchKey) -> tuple[str, list[Any]]:
        path: list[Any] = [self.path_ids.get(key.term_path, -1)]
        if key.operation is Operation.EQUAL:
            return f"{table}.path = ? AND {table}.value IN ({_marks(key.values)})", path + list(key.values)
        if key.operation is Operation.PATTERN:
            prefix = key.values[0][: min(key.values[0].find(mark) for mark in "*?" if mark in key.values[0])]
            glob = key.values[0].replace("[", "[[]")
            clause = f"{table}.path = ? AND {table}.value GLOB ?"
            if prefix:
                return f"{clause} AND {table}.value >= ? AND {table}.value < ?", [*path, glob, prefix, prefix + "\U0010ffff"]
            return clause, [*path, glob]
        clause, parameters = f"{table}.path = ?", path
        if key.low:
            clause, parameters = f"{clause} AND {table}.value >= ?", [*parameters, key.low]
        if key.high:
            clause, parameters = f"{clause} AND {table}.value <= ?", [*parameters, key.high]
        return clause, parameters


def _split_all(group: Sequence[MatchKey]) -> list[MatchKey]:
    """ALL is an EQUAL for each value."""
    split: list[MatchKey] = []
    for key in group:
        if key.operation is Operation.ALL:
            split += [MatchKey(key.path, Operation.EQUAL, (value,), private_creator=key.private_creator) for value in key.values]
        else:
            split.append(key)
    return split


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))


def _chunks(values: Sequence[T]) -> Iterable[Sequence[T]]:
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))


class SqliteStore:
    """IndexStore in one directory: `current` names the database file of this generation."""

    name = "sqlite"

    def __init__(self, directory: Path, readers: int = 4, file_name: str = "") -> None:
        self._directory = directory
        self._readers = readers
        directory.mkdir(parents=True, exist_ok=True)
        current = directory / "current"
        if not file_name and current.exists():
            file_name = current.read_text().strip()
        self._database = _Database(directory / (file_name or f"index-{uuid.uuid4().hex[:12]}.sqlite"), SCHEMA, readers)
        self._retired: list[_Database] = []
        if not current.exists():
            self._point_to(self._database.path.name)

    def _point_to(self, file_name: str) -> None:
        temporary = self._directory / "current.new"
        with temporary.open("w") as file:
            file.write(file_name)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._directory / "current")
        _fsync_directory(self._directory)

    async def generation(self) -> str:
        """See IndexStore."""
        return await self._database.read(lambda connection: _meta(connection, "generation"))

    async def follow(self, generation: str, sequence: int) -> None:
        """See IndexStore."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM meta WHERE name LIKE 'cursor %'")
            _set_meta(connection, "generation", generation)
            _set_meta(connection, "followed", str(sequence))

        await self._database.write(work)

    async def cursor(self, reader: str) -> int:
        """See IndexStore."""
        return await self._database.read(
            lambda connection: int(_meta(connection, f"cursor {reader}") or _meta(connection, "followed") or "0")
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

        def work(writing: _Writing) -> bool:
            present, dead = _present(writing.connection, sop_instance_uids, places)
            batch = decide(present, dead)
            if batch is None:
                return False
            writing.absent = frozenset(sop_instance_uids) - present.keys()
            writing.apply(batch)
            return True

        return await self._written(work)

    async def _written(self, work: "Callable[[_Writing], T]") -> T:
        database = self._database
        done = await database.write(lambda connection: work(_Writing(database, connection)))
        if database.recent_terms >= RECENT_TERMS:
            database.write_later(self._merge)
        return done

    def _merge(self, connection: sqlite3.Connection) -> None:
        _merge(connection)
        self._database.recent_terms = 0

    async def search(self, query: Query) -> Page:
        """See IndexStore."""
        database = self._database
        if _names_studies(query):
            return database.look_up(lambda connection: _Searching(database, connection, query).page())
        return await database.read(lambda connection: _Searching(database, connection, query).page())

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
        """See IndexStore. Every change of an instance has a new, higher version, and a deletion leaves one less."""
        if scope.sop_instance_uid:
            return b""
        database = self._database
        condition, parameters = "study = ?", [scope.study_instance_uid]
        if scope.series_instance_uid:
            condition, parameters = "study = ? AND series = ?", [scope.study_instance_uid, scope.series_instance_uid]
        statement = f"SELECT count(*), max(version) FROM (SELECT version FROM instances WHERE {condition} AND deleted = 0 LIMIT ?)"
        count, newest = database.look_up(lambda connection: connection.execute(statement, (*parameters, MOST_IN_STATE + 1)).fetchone())
        return f"{database.opened} {count} {newest}".encode() if 0 < count <= MOST_IN_STATE else b""

    async def tombstones(self, uid: str) -> AsyncIterator[list[Present]]:
        """See IndexStore."""
        columns = list(UID_COLUMN.values())
        for number, column in enumerate(columns):
            # A UID may be that of a series and of an instance: what an earlier column has found is left out.
            condition = " AND ".join([f"{column} = ?1", *(f"{earlier} <> ?1" for earlier in columns[:number])])
            statement = f"SELECT sop, version, record FROM instances WHERE {condition} AND deleted = 1 AND sop > ?2 ORDER BY sop LIMIT ?3"
            after: str | None = ""
            while after is not None:
                found = await self._database.read(
                    lambda connection, statement=statement, after=after: connection.execute(statement, (uid, after, PAGE)).fetchall()  # type: ignore[misc]
                )
                if found:
                    yield [Present(InstanceRecord.FromString(record).stored, version, deleted=True) for _, version, record in found]
                after = found[-1][0] if len(found) == PAGE else None

    async def due(self, before_s: int, after_object: str, limit: int) -> list[tuple[Place, Dead]]:
        """See IndexStore."""
        # Each kind is read in the order of the index and no further than needed.
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
            for chunk in _chunks(objects):
                known.update(key for (key,) in connection.execute(f"SELECT object FROM packs WHERE object IN ({_marks(chunk)})", chunk))
            return [key for key in objects if key not in known]

        return await self._database.read(work)

    async def counts(self) -> Counts:
        """See IndexStore."""

        def work(connection: sqlite3.Connection) -> Counts:
            statements = (
                "SELECT count(*) FROM studies",
                "SELECT count(*) FROM series",
                "SELECT count(*) FROM instances WHERE deleted = 0",
                "SELECT count(*) FROM poison",
            )
            return Counts(*(connection.execute(statement).fetchone()[0] for statement in statements))

        return await self._database.read(work)

    async def build(self) -> "SqliteStore":
        """See IndexStore."""
        return await asyncio.to_thread(SqliteStore, self._directory, self._readers, f"index-{uuid.uuid4().hex[:12]}.sqlite")

    async def swap(self, built: IndexStore) -> None:
        """See IndexStore. Reads that run go on in the old file, which is deleted when this store closes."""
        if not isinstance(built, SqliteStore):
            raise TypeError("a SQLite store takes over what a SQLite store built")
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


def _names_studies(query: Query) -> bool:
    """Whether a search is for at most LOOKED_UP studies by their UIDs and nothing else."""
    named = [key for key in query.keys if key.path == (STUDY_UID,) and key.operation is Operation.EQUAL]
    return query.level is Level.STUDY and len(query.keys) == len(named) == 1 and len(named[0].values) <= LOOKED_UP


def _present(
    connection: sqlite3.Connection, sop_instance_uids: Sequence[str], places: Sequence[Place]
) -> tuple[dict[str, Present], dict[Place, Dead]]:
    found: dict[str, Present] = {}
    for uids in _chunks(sop_instance_uids):
        statement = f"SELECT sop, version, deleted, record FROM instances WHERE sop IN ({_marks(uids)})"
        for sop, version, deleted, record in connection.execute(statement, uids):
            found[sop] = Present(InstanceRecord.FromString(record).stored, version, bool(deleted))
    dead: dict[Place, Dead] = {}
    for place in places:
        values = connection.execute("SELECT kind, decided, lies_in FROM dead WHERE object = ? AND offset = ?", place).fetchone()
        if values:
            dead[place] = Dead(*values)
    return found, dead


def _merge(connection: sqlite3.Connection) -> None:
    """Move recent terms to where they are found by value, in the order in which they stand there."""
    connection.execute(
        "INSERT OR IGNORE INTO terms SELECT path, value, owner, item, root FROM recent_terms WHERE true ORDER BY path, value, owner, item"
    )
    connection.execute("DELETE FROM recent_terms")
    connection.execute("DELETE FROM recent")


def _meta(connection: sqlite3.Connection, name: str) -> str:
    found = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return found[0] if found else ""


def _set_meta(connection: sqlite3.Connection, name: str, value: str) -> None:
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def _high_water(connection: sqlite3.Connection) -> int:
    values = connection.execute("SELECT value FROM meta WHERE name LIKE 'cursor %' OR name = 'followed'")
    return max((int(value) for (value,) in values), default=0)


def _fragment(sop: str, version: int, fragment: bytes, record: bytes | None) -> Fragment:
    location = InstanceRecord.FromString(record).stored.dicom_json_location.SerializeToString() if record else b""
    return Fragment(sop, version, fragment, location)


def _one_row(connection: sqlite3.Connection, scope: Scope, columns: str) -> list[Any]:
    found = connection.execute(f"SELECT deleted, study, series, sop, {columns} FROM instances WHERE sop = ?", (scope.sop_instance_uid,))
    values = found.fetchone()
    if (
        values is None
        or (scope.study_instance_uid and scope.study_instance_uid != values[1])
        or (scope.series_instance_uid and scope.series_instance_uid != values[2])
    ):
        raise errors.NotFound(f"instance {scope.sop_instance_uid} is not here")
    if values[0]:
        raise errors.Gone(f"instance {scope.sop_instance_uid} was deleted")
    return [values[3:]]


def _series_in_order(connection: sqlite3.Connection, scope: Scope) -> list[tuple[str, str]]:
    condition, parameters = "study = ?", [scope.study_instance_uid]
    if scope.series_instance_uid:
        condition, parameters = condition + " AND series = ?", [*parameters, scope.series_instance_uid]
    statement = f"SELECT study, series FROM series WHERE {condition} ORDER BY number, series"
    if found := connection.execute(statement, parameters).fetchall():
        return found
    what = f"series {scope.series_instance_uid}" if scope.series_instance_uid else f"study {scope.study_instance_uid}"
    if connection.execute(f"SELECT 1 FROM instances WHERE {condition} LIMIT 1", parameters).fetchone():
        raise errors.Gone(f"{what} was deleted")
    raise errors.NotFound(f"{what} is not here")


def _page_of_series(
    connection: sqlite3.Connection, series: tuple[str, str], columns: str, after: tuple[int, str]
) -> tuple[list[Any], tuple[int, str] | None]:
    found = connection.execute(
        f"SELECT number, sop, {columns} FROM instances"
        " WHERE study = ? AND series = ? AND deleted = 0 AND (number, sop) > (?, ?) ORDER BY number, sop LIMIT ?",
        (*series, *after, PAGE),
    ).fetchall()
    return [values[1:] for values in found], (found[-1][0], found[-1][1]) if len(found) == PAGE else None


class _Writing:
    """Applies one batch, inside one transaction."""

    def __init__(self, database: _Database, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.absent: frozenset[str] = frozenset()
        """SOP Instance UIDs of which it was seen in this transaction that nothing is known."""
        self._database = database
        self._added: dict[str, list[tuple[str, str, Attributes]]] = {}
        self._recount: set[str] = set()
        self._terms: list[tuple[int, Sequence[Term]]] = []

    def apply(self, batch: Batch) -> None:
        """Write what changes."""
        connection = self.connection
        for sop, change in batch.changes.items():
            before = self._before(sop)
            if (seen := batch.seen.get(sop)) is not None and before[2] not in (seen, change.version):
                raise errors.Unavailable(f"instance {sop} is no longer at version {seen}")
            if isinstance(change, Put):
                self._put(sop, change, before)
            elif isinstance(change, Remove):
                self._remove(sop, change)
            else:
                self._move(sop, change)
        self._write_terms()
        for study, added in self._added.items():
            if study not in self._recount:
                self._add_to_study(study, added)
        for study in self._recount:
            self._recount_study(study)
        if batch.dead:
            dead = [(*place, int(one.kind), one.decided_s, one.object) for place, one in batch.dead.items() if one is not None]
            connection.executemany("INSERT OR REPLACE INTO dead VALUES (?, ?, ?, ?, ?)", dead)
            alive = [place for place, one in batch.dead.items() if one is None]
            connection.executemany("DELETE FROM dead WHERE object = ? AND offset = ?", alive)
        connection.executemany("INSERT OR IGNORE INTO packs VALUES (?)", [(key,) for key in batch.packs])
        if batch.poison:
            connection.executemany("INSERT OR IGNORE INTO poison VALUES (?, ?)", [(one.sequence, one.reason) for one in batch.poison])
        if batch.reader:
            _set_meta(connection, f"cursor {batch.reader}", str(batch.sequence))

    def _write_terms(self) -> None:
        """Write the terms of new instances, in the order of the table that takes them."""
        known, path_id = self._database.path_ids, self._database.path_id
        if sum(len(found) for _, found in self._terms) >= RECENT_TERMS:
            merged = [
                (known.get(path) or path_id(path), value, owner, item, root)
                for owner, found in self._terms
                for path, value, item, root in found
            ]
            self.connection.executemany("INSERT OR IGNORE INTO terms VALUES (?, ?, ?, ?, ?)", sorted(merged))
            return
        recent = [
            (owner, known.get(path) or path_id(path), value, item, root)
            for owner, found in self._terms
            for path, value, item, root in found
        ]
        recent.sort()
        self.connection.executemany("INSERT OR IGNORE INTO recent_terms VALUES (?, ?, ?, ?, ?)", recent)
        self.connection.executemany("INSERT INTO recent VALUES (?, ?)", [(owner, len(found)) for owner, found in self._terms])
        self._database.recent_terms += sum(len(found) for _, found in self._terms)

    def _before(self, sop: str) -> tuple[int, str, int, int]:
        """Return row id, study, version and whether it is a tombstone of what is there; zeros where nothing is."""
        if sop in self.absent:
            return 0, "", 0, 0
        statement = "SELECT id, study, version, deleted FROM instances WHERE sop = ?"
        found: tuple[int, str, int, int] | None = self.connection.execute(statement, (sop,)).fetchone()
        return found or (0, "", 0, 0)

    def _put(self, sop: str, put: Put, before: tuple[int, str, int, int]) -> None:
        if before[0]:
            if before[2] >= put.version:
                return
            if not before[3]:
                self._recount |= {before[1], put.stored.study_instance_uid}
            self.connection.execute("DELETE FROM instances WHERE id = ?", (before[0],))
        dataset = decoded(put.dicom_json)
        attributes = tabulated(dataset)
        stored = put.stored
        record = InstanceRecord(stored=stored, version=put.version).SerializeToString()
        cursor = self.connection.execute(
            "INSERT INTO instances (sop, study, series, number, version, deleted, record, attributes, fragment)"
            " VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?)",
            (
                sop,
                stored.study_instance_uid,
                stored.series_instance_uid,
                sort_number(attributes, INSTANCE_NUMBER, NUMBER_ABSENT),
                put.version,
                record,
                orjson.dumps(attributes),
                put.dicom_json if len(put.dicom_json) <= INLINE_JSON_BYTES or not stored.dicom_json_location.object else b"",
            ),
        )
        derived = terms.derive(dataset, NOT_TERMS_OF_INSTANCE, memory=self._memory(put))
        for limit, number in derived.left_out.items():
            telemetry.TERMS_LEFT_OUT.labels(limit).inc(number)
        self._terms.append((int(cursor.lastrowid or 0) * 4 + Level.INSTANCE.value, derived.terms))
        self._added.setdefault(stored.study_instance_uid, []).append((stored.series_instance_uid, sop, attributes))

    def _memory(self, put: Put) -> terms.Memory | None:
        """Return what is remembered of the series of an instance; of a large one nothing is."""
        if len(put.dicom_json) > INLINE_JSON_BYTES:
            return None
        memories, series = self._database.memories, (put.stored.study_instance_uid, put.stored.series_instance_uid)
        found = memories.get(series)
        return found if found is not None else memories.keep(series, {})

    def _remove(self, sop: str, remove: Remove) -> None:
        """Leave a tombstone, also of what was never here."""
        before = self.connection.execute("SELECT study, version, deleted FROM instances WHERE sop = ?", (sop,)).fetchone()
        if before and before[1] >= remove.version:
            return
        if before and not before[2]:
            self._recount.add(before[0])
        stored = remove.stored
        record = InstanceRecord(stored=stored, version=remove.version).SerializeToString()
        self.connection.execute(
            "INSERT INTO instances (sop, study, series, number, version, deleted, record, attributes, fragment)"
            " VALUES (?, ?, ?, 0, ?, 1, ?, x'', x'') ON CONFLICT (sop) DO UPDATE SET study = excluded.study, series = excluded.series,"
            " version = excluded.version, deleted = 1, record = excluded.record, fragment = x'', attributes = x''",
            (sop, stored.study_instance_uid, stored.series_instance_uid, remove.version, record),
        )

    def _move(self, sop: str, move: Move) -> None:
        record = InstanceRecord(stored=move.stored, version=move.version).SerializeToString()
        self.connection.execute(
            "UPDATE instances SET record = ?, version = ? WHERE sop = ? AND version < ?", (record, move.version, sop, move.version)
        )

    def _add_to_study(self, study: str, added: list[tuple[str, str, Attributes]]) -> None:
        by_series = {series: self._kept(Level.SERIES, (study, series), SeriesSummary()) for series in {series for series, _, _ in added}}
        self._gather(study, self._kept(Level.STUDY, (study,), StudySummary()), by_series, added)

    def _recount_study(self, study: str) -> None:
        rows = self.connection.execute("SELECT series, sop, attributes FROM instances WHERE study = ? AND deleted = 0", (study,))
        live = [(series, sop, orjson.loads(attributes)) for series, sop, attributes in rows]
        by_series = {series: self._kept(Level.SERIES, (study, series), SeriesSummary()) for series in {series for series, _, _ in live}}
        for (series,) in self.connection.execute("SELECT series FROM series WHERE study = ?", (study,)).fetchall():
            if series not in by_series:
                self._drop(Level.SERIES, (study, series), self._kept(Level.SERIES, (study, series), SeriesSummary()))
        of_study = self._kept(Level.STUDY, (study,), StudySummary())
        if not live:
            self._drop(Level.STUDY, (study,), of_study)
            return
        of_study.summary = StudySummary()
        for kept in by_series.values():
            kept.summary = SeriesSummary()
        self._gather(study, of_study, by_series, live)

    def _kept(self, level: Level, key: tuple[str, ...], summary: S) -> "_Kept[S]":
        """Return a study or series as it is in the database; with the empty `summary` when it is not there."""
        if (kept := self._database.kept.get(key)) is not None:
            return kept
        condition = " AND ".join(f"{column} = ?" for column in KEY_COLUMNS[level])
        found = self.connection.execute(f"SELECT id, summary FROM {TABLE[level]} WHERE {condition}", key).fetchone()
        if not found:
            return self._database.kept.keep(key, _Kept(summary))
        known = summary.from_json(found[1])
        return self._database.kept.keep(key, _Kept(known, found[0], known.attributes()))

    def _gather(
        self,
        study: str,
        of_study: "_Kept[StudySummary]",
        by_series: "dict[str, _Kept[SeriesSummary]]",
        added: list[tuple[str, str, Attributes]],
    ) -> None:
        for series, sop, attributes in added:
            of_study.summary.add(sop, attributes)
            by_series[series].summary.add(sop, attributes)
        for series, kept in by_series.items():
            of_study.summary.modalities[series] = kept.summary.modality
            number = sort_number(kept.summary.gathered.elements, SERIES_NUMBER, NUMBER_ABSENT)
            self._write(Level.SERIES, (study, series), number, kept)
        self._write(Level.STUDY, (study,), of_study.summary.sort_key, of_study)

    def _write(self, level: Level, key: tuple[str, ...], order: int | str, kept: "_Kept[Any]") -> None:
        """Write a study or series and, of its terms, only what changed."""
        table, order_column = TABLE[level], "sort_key" if level is Level.STUDY else "number"
        attributes = kept.summary.attributes()
        values = (order, kept.summary.to_json(), orjson.dumps(attributes))
        if kept.row_id:
            row_id = kept.row_id
            self.connection.execute(f"UPDATE {table} SET {order_column} = ?, summary = ?, attributes = ? WHERE id = ?", (*values, row_id))
        else:
            names = ", ".join((*KEY_COLUMNS[level], order_column, "summary", "attributes"))
            cursor = self.connection.execute(f"INSERT INTO {table} ({names}) VALUES ({_marks((*key, *values))})", (*key, *values))
            row_id = int(cursor.lastrowid or 0)
        owner = row_id * 4 + level.value
        if not kept.row_id:
            self._database.add_terms(owner, level_terms(attributes))
        else:
            # Where only counts changed, and that is nearly always, the gathered attributes need not be derived.
            terms_of = level_terms if kept.summary.gathered.is_changed else computed_terms
            old, new = set(terms_of(kept.before)), set(terms_of(attributes))
            self._database.remove_terms(owner, old - new)
            self._database.add_terms(owner, new - old)
        kept.row_id, kept.before, kept.summary.gathered.is_changed = row_id, attributes, False

    def _drop(self, level: Level, key: tuple[str, ...], kept: "_Kept[Any]") -> None:
        self._database.remove_terms(kept.row_id * 4 + level.value, level_terms(kept.before))
        self.connection.execute(f"DELETE FROM {TABLE[level]} WHERE id = ?", (kept.row_id,))
        self._database.kept.pop(key, None)


@dataclass(slots=True)
class _Kept(Generic[S]):
    """A study or series: what it is to be, its row (0: none yet), and the attributes whose terms are in the database."""

    summary: S
    row_id: int = 0
    before: Attributes = field(default_factory=dict)


TABLE = {Level.STUDY: "studies", Level.SERIES: "series", Level.INSTANCE: "instances"}
KEY_COLUMNS = {Level.STUDY: ("study",), Level.SERIES: ("study", "series"), Level.INSTANCE: ("study", "series", "sop")}
FRAGMENT = {
    Level.INSTANCE: "x.fragment",
    **{
        level: "(SELECT i.fragment FROM instances i WHERE "
        + " AND ".join(f"i.{column} = x.{column}" for column in KEY_COLUMNS[level])
        + " AND i.deleted = 0 AND i.fragment <> x'' ORDER BY i.sop LIMIT 1)"
        for level in (Level.STUDY, Level.SERIES)
    },
}
"""Metadata of a row: its own, or that of the instance with the smallest UID that has it at hand."""
ORDER = {Level.STUDY: "x.sort_key DESC, x.study", Level.SERIES: "x.number, x.series, x.study", Level.INSTANCE: "x.number, x.sop"}


class _Searching:
    """Answers one query."""

    def __init__(self, database: _Database, connection: sqlite3.Connection, query: Query) -> None:
        self.connection = connection
        self._query = query
        self._condition = _Condition(database.path_ids)
        self._parents: dict[tuple[str, ...], Attributes] = {}

    def page(self) -> Page:
        query, condition = self._query, self._condition
        if query.study_instance_uid:
            condition.add("x.study = ?", query.study_instance_uid)
        if query.series_instance_uid:
            condition.add("x.series = ?", query.series_instance_uid)
        if query.level is Level.INSTANCE:
            condition.add("x.deleted = 0")
        for group in group_keys(query.keys):
            self._add_group(group)
        columns = ", ".join(f"x.{column}" for column in (*KEY_COLUMNS[query.level], "attributes"))
        with_metadata = needs_metadata(query)
        if with_metadata:
            columns += ", " + FRAGMENT[query.level]
        source = f"FROM {TABLE[query.level]} x WHERE {condition.text}"
        found = self.connection.execute(
            f"SELECT {columns} {source} ORDER BY {ORDER[query.level]} LIMIT ? OFFSET ?",
            (*condition.parameters, query.limit + 1, query.offset),
        ).fetchall()
        remaining = 0
        if len(found) > query.limit:
            total = self.connection.execute(f"SELECT count(*) {source}", condition.parameters).fetchone()[0]
            remaining = total - query.offset - query.limit
        needed = levels_needed(query)
        depth = len(KEY_COLUMNS[query.level])
        rows = []
        for values in found[: query.limit]:
            key = values[:depth]
            attributes = {level: self._parent(level, key) for level in needed if level is not query.level}
            attributes[query.level] = orjson.loads(values[depth])
            metadata = decoded(values[depth + 1]) if with_metadata and values[depth + 1] else None
            rows.append(row(query, Identity(*key), attributes, metadata))
        return Page(rows, remaining)

    def _parent(self, level: Level, key: tuple[str, ...]) -> Attributes:
        columns = KEY_COLUMNS[level]
        own = key[: len(columns)]
        if own not in self._parents:
            condition = " AND ".join(f"{column} = ?" for column in columns)
            found = self.connection.execute(f"SELECT attributes FROM {TABLE[level]} WHERE {condition}", own).fetchone()
            self._parents[own] = orjson.loads(found[0]) if found else {}
        return self._parents[own]

    def _add_group(self, group: tuple[MatchKey, ...]) -> None:
        key = group[0]
        level = key.level or self._query.level
        column = UID_COLUMN.get(key.path[0]) if len(key.path) == 1 else None
        if column and level.value <= self._query.level.value and key.operation is Operation.EQUAL:
            self._condition.add(f"x.{column} IN ({_marks(key.values)})", *key.values)
            return
        absent = [one for one in group if one.operation is Operation.ABSENT]
        for one in absent:
            present = MatchKey(one.path, Operation.RANGE, private_creator=one.private_creator)
            self._add_owners(level, [present], negated=True)
        if rest := [one for one in group if one.operation is not Operation.ABSENT]:
            self._add_owners(level, rest, negated=False)

    def _add_owners(self, level: Level, group: Sequence[MatchKey], *, negated: bool) -> None:
        owners, parameters = self._condition.owners(group, level.value, recent=level is Level.INSTANCE)
        operator = "NOT IN" if negated else "IN"
        if level is self._query.level:
            self._condition.add(f"x.id {operator} ({owners})", *parameters)
            return
        columns = KEY_COLUMNS[min(level, self._query.level, key=lambda one: one.value)]
        live = " AND p.deleted = 0" if level is Level.INSTANCE else ""
        tuple_x = ", ".join(f"x.{column}" for column in columns)
        tuple_p = ", ".join(f"p.{column}" for column in columns)
        self._condition.add(f"({tuple_x}) {operator} (SELECT {tuple_p} FROM {TABLE[level]} p WHERE p.id IN ({owners}){live})", *parameters)


class SqliteWorkitemStore:
    """WorkitemStore in one database file."""

    def __init__(self, directory: Path, readers: int = 2) -> None:
        self._database = _Database(directory / "workitems.sqlite", WORKITEM_SCHEMA, readers)

    async def cursor(self) -> int:
        """See WorkitemStore."""
        return await self._database.read(lambda connection: int(_meta(connection, "cursor") or "0"))

    async def apply(self, documents: Sequence[WorkitemDocument], sequence: int) -> None:
        """See WorkitemStore."""

        def work(connection: sqlite3.Connection) -> None:
            for document in documents:
                self._apply_one(connection, document)
            _set_meta(connection, "cursor", str(sequence))

        await self._database.write(work)

    def _apply_one(self, connection: sqlite3.Connection, document: WorkitemDocument) -> None:
        before = connection.execute("SELECT id, version FROM workitems WHERE uid = ?", (document.workitem_uid,)).fetchone()
        if before:
            if before[1] >= document.version:
                return
            connection.execute("DELETE FROM terms WHERE owner = ?", (before[0] * 4 + Level.INSTANCE.value,))
            connection.execute("DELETE FROM workitems WHERE id = ?", (before[0],))
        dataset = {} if document.deleted else decoded(document.dicom_json)
        cursor = connection.execute(
            "INSERT INTO workitems (uid, sort_key, version, deleted, dicom_json) VALUES (?, ?, ?, ?, ?)",
            (document.workitem_uid, start_of(dataset), document.version, document.deleted, document.dicom_json),
        )
        self._database.add_terms(int(cursor.lastrowid or 0) * 4 + Level.INSTANCE.value, workitem_terms(document, dataset))

    async def clear(self) -> None:
        """See WorkitemStore."""

        def work(connection: sqlite3.Connection) -> None:
            for table in ("workitems", "terms"):
                connection.execute(f"DELETE FROM {table}")
            _set_meta(connection, "cursor", "0")

        await self._database.write(work)

    async def search(self, query: Query) -> Page:
        """See WorkitemStore."""

        def work(connection: sqlite3.Connection) -> Page:
            condition = _Condition(self._database.path_ids)
            condition.add("x.deleted = 0")
            for group in group_keys(query.keys):
                absent = [key for key in group if key.operation is Operation.ABSENT]
                for key in absent:
                    present, parameters = condition.owners([MatchKey(key.path, Operation.RANGE)], Level.INSTANCE.value)
                    condition.add(f"x.id NOT IN ({present})", *parameters)
                if wanted := [key for key in group if key not in absent]:
                    owners, parameters = condition.owners(wanted, Level.INSTANCE.value)
                    condition.add(f"x.id IN ({owners})", *parameters)
            source = f"FROM workitems x WHERE {condition.text}"
            found = connection.execute(
                f"SELECT x.dicom_json {source} ORDER BY x.sort_key, x.uid LIMIT ? OFFSET ?",
                (*condition.parameters, query.limit + 1, query.offset),
            ).fetchall()
            remaining = 0
            if len(found) > query.limit:
                total = connection.execute(f"SELECT count(*) {source}", condition.parameters).fetchone()[0]
                remaining = total - query.offset - query.limit
            return Page([workitem_row(query, decoded(dicom_json)) for (dicom_json,) in found[: query.limit]], remaining)

        return await self._database.read(work)

    async def close(self) -> None:
        """See WorkitemStore."""
        await asyncio.to_thread(self._database.close)
