"""One SQLite database file: its connections, threads and transactions.

The file is in WAL mode. There is one writer connection in its own thread, a small pool of reader connections in other threads, and one
connection on the event loop that reads a few rows by their key. With `synchronous=FULL` a commit is on disk when it returns.
"""

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from gantry_index.levels.summary import Attributes, SeriesSummary, StudySummary
from gantry_runtime.byte_bounded_cache import CountBoundedCache
from gantry_runtime.threads import Threads
from gantry_standard import errors
from gantry_standard.http.random_bits import random_hex
from gantry_standard.query import terms
from gantry_standard.query.terms import Term

log = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S", StudySummary, SeriesSummary)
PAGE_BYTES = 8192
"""Page size of a new database; an existing one keeps its own. With 4,096 a batch changes more pages, and each takes two system calls."""
CHECKPOINT_PAGES = 2000
"""Number of pages of the write-ahead log from which on it is copied into the database: 16 MB."""
PRAGMAS = (
    f"page_size={PAGE_BYTES}",
    "journal_mode=WAL",
    "synchronous=FULL",
    "cache_size=-65536",
    "mmap_size=268435456",
    "temp_store=MEMORY",
    f"wal_autocheckpoint={CHECKPOINT_PAGES}",
)
KEPT_SUMMARIES = 64
KEPT_MEMORIES = 16
"""Number of entries of the cache. Each has at most the elements of one data set whose DICOM JSON has up to INLINE_JSON_BYTES."""

CHUNK = 500
"""Largest number of parameters in one statement."""


@dataclass(frozen=True, slots=True)
class Schema:
    """Tables of a database file.

    Attributes:
        statements: create the tables of a new file.
        format: version of the tables, which is stored in the file.
        migrations: by older version, the statements that migrate the tables to the next version.
    """

    statements: str
    format: int
    migrations: Mapping[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class Kept(Generic[S]):
    """A study or series: its new summary, its row id (0 if it has none yet), and the attributes whose terms are in the database."""

    summary: S
    row_id: int = 0
    before: Attributes = field(default_factory=dict)


class Database:
    """One database file, with a writer connection and reader connections in their threads.

    Opening a file of an older format migrates it.

    Raises (when opened):
        errors.Conflict: the file has a format that this program does not know.
    """

    def __init__(self, path: Path, schema: Schema, readers: int) -> None:
        self.path = path
        self.opened = random_hex(16)
        """A random name. It is unique, and another one whenever the file is opened."""
        self._closing: list[sqlite3.Connection] = []
        self._local = threading.local()
        self._writer_thread = Threads(1, "index-writer")
        self._reader_threads = Threads(readers, "index-reader")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.writer = self._connected()
        if not self.writer.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
            self.writer.executescript(f"BEGIN; {schema.statements} INSERT INTO meta VALUES ('format', '{schema.format}'); COMMIT;")
            fsync_directory(path.parent)
        self._migrate(schema)
        self._here = self._connected()
        self.path_ids: dict[str, int] = {}
        """The numbers of the paths in the table `paths`."""
        self.recent_terms = 0
        """Number of rows in `recent_terms`. Only the writer thread uses these caches; after a failed transaction they are read again."""
        self.kept = CountBoundedCache[tuple[str, ...], Kept[Any]](KEPT_SUMMARIES)
        """The most recently written studies and series, as they are in the database."""
        self.memories = CountBoundedCache[tuple[str, ...], terms.Memory](KEPT_MEMORIES)
        """By series, the attributes from which the terms of its last instance were derived."""
        self._read_anew()

    def _migrate(self, schema: Schema) -> None:
        """Migrate the file to the format of this program, one version at a time, each in one transaction.

        Raises:
            errors.Conflict: the file has a format that this program does not know.
        """
        file_format = int(meta(self.writer, "format"))
        for version in range(file_format, schema.format):
            if version not in schema.migrations:
                break
            remembered = f"UPDATE meta SET value = '{version + 1}' WHERE name = 'format'"
            self.writer.executescript(f"BEGIN IMMEDIATE; {schema.migrations[version]} {remembered}; COMMIT;")
            log.info("index store migrated", extra={"file": self.path.name, "format": version + 1})
        file_format = int(meta(self.writer, "format"))
        if file_format != schema.format:
            self.close()
            raise errors.Conflict(f"{self.path} has format {file_format}, this program writes {schema.format}: delete it and reindex")

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
        """Read a few rows by their key on the event loop. This takes about 20 µs; in a thread it would take ten times as long."""
        try:
            return work(self._here)
        except sqlite3.Error as error:
            raise errors.Unavailable(f"the index store failed: {error}") from error

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run one transaction in the writer thread. It is durable when the call returns."""
        return await self._run(self._writer_thread, lambda: self._transaction(work))

    def write_later(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Run one transaction in the writer thread after all waiting ones, and do not wait. A failure is logged and changes nothing."""

        def attempt() -> None:
            try:
                self._transaction(work)
            except sqlite3.Error as error:
                log.warning("maintenance of the index store failed", extra={"reason": str(error)})

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
        """Return the number of a path; create it if the path is new. Only within a transaction."""
        path_id = self.path_ids.get(path)
        if path_id is None:
            cursor = self.writer.execute("INSERT INTO paths (path) VALUES (?)", (path,))
            path_id = self.path_ids[path] = int(cursor.lastrowid or 0)
        return path_id

    def add_terms(self, owner: int, index_terms: Iterable[Term]) -> None:
        """Write index terms. Only within a transaction."""
        known = self.path_ids
        rows = [(known.get(path) or self.path_id(path), value, owner, item, root) for path, value, item, root in index_terms]
        self.writer.executemany("INSERT OR IGNORE INTO terms VALUES (?, ?, ?, ?, ?)", rows)

    def remove_terms(self, owner: int, index_terms: Iterable[Term]) -> None:
        """Delete index terms. Only within a transaction."""
        self.writer.executemany(
            "DELETE FROM terms WHERE path = ? AND value = ? AND owner = ? AND item = ?",
            [(self.path_id(term.path), term.value, owner, term.item) for term in index_terms],
        )

    def close(self) -> None:
        """Wait for running calls and close all connections."""
        self._writer_thread.close()
        self._reader_threads.close()
        for connection in self._closing:
            connection.close()


def fsync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def meta(connection: sqlite3.Connection, name: str) -> str:
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return row[0] if row else ""


def set_meta(connection: sqlite3.Connection, name: str, value: str) -> None:
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def marks(values: Sized) -> str:
    return ",".join("?" * len(values))


def chunks(values: Sequence[T]) -> Iterable[Sequence[T]]:
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))
