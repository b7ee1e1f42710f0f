"""The workitem store on one machine: SQLite."""

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from gantry_index.levels.rows import workitem_row
from gantry_index.levels.summary import decoded, start_of, workitem_terms
from gantry_index.stores.port import Page, WorkitemDocument
from gantry_index.stores.sqlite.database import Database, Schema, marks, meta, set_meta
from gantry_index.stores.sqlite.search import Condition
from gantry_standard.query.levels import Level
from gantry_standard.query.matching import MatchKey, Operation, Query, group_keys
from gantry_standard.workitems import studies_of

WORKITEM_STATEMENTS = """
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
CREATE TABLE studies (workitem INTEGER NOT NULL, study TEXT NOT NULL, PRIMARY KEY (workitem, study)) WITHOUT ROWID;
"""
CLEAR = "DELETE FROM workitems; DELETE FROM terms; DELETE FROM studies; DELETE FROM meta WHERE name = 'cursor';"
MIGRATIONS = {
    3: f"""
CREATE TABLE IF NOT EXISTS studies (workitem INTEGER NOT NULL, study TEXT NOT NULL, PRIMARY KEY (workitem, study)) WITHOUT ROWID;
{CLEAR}
""",
}
"""Format 4 adds the studies that a workitem refers to. The tables are filled again from the stream, because they have only copies."""

WORKITEM_SCHEMA = Schema(WORKITEM_STATEMENTS, 4, MIGRATIONS)


class SqliteWorkitemStore:
    """WorkitemStore in one database file."""

    def __init__(self, directory: Path, readers: int = 2) -> None:
        self._database = Database(directory / "workitems.sqlite", WORKITEM_SCHEMA, readers)

    async def cursor(self) -> int:
        """See WorkitemStore."""
        return await self._database.read(lambda connection: int(meta(connection, "cursor") or "0"))

    async def apply(self, documents: Sequence[WorkitemDocument], sequence: int) -> None:
        """See WorkitemStore."""

        def work(connection: sqlite3.Connection) -> None:
            for document in documents:
                self._apply_one(connection, document)
            set_meta(connection, "cursor", str(sequence))

        await self._database.write(work)

    def _apply_one(self, connection: sqlite3.Connection, document: WorkitemDocument) -> None:
        before = connection.execute("SELECT id, version FROM workitems WHERE uid = ?", (document.workitem_uid,)).fetchone()
        if before:
            if before[1] >= document.version:
                return
            connection.execute("DELETE FROM terms WHERE owner = ?", (before[0] * 4 + Level.INSTANCE.value,))
            connection.execute("DELETE FROM studies WHERE workitem = ?", (before[0],))
            connection.execute("DELETE FROM workitems WHERE id = ?", (before[0],))
        dataset = {} if document.deleted else decoded(document.dicom_json)
        cursor = connection.execute(
            "INSERT INTO workitems (uid, sort_key, version, deleted, dicom_json) VALUES (?, ?, ?, ?, ?)",
            (document.workitem_uid, start_of(dataset), document.version, document.deleted, document.dicom_json),
        )
        row_id = int(cursor.lastrowid or 0)
        self._database.add_terms(row_id * 4 + Level.INSTANCE.value, workitem_terms(document, dataset))
        connection.executemany("INSERT INTO studies VALUES (?, ?)", [(row_id, study) for study in studies_of(dataset)])

    async def clear(self) -> None:
        """See WorkitemStore."""

        def work(connection: sqlite3.Connection) -> None:
            for statement in CLEAR.split(";"):
                connection.execute(statement)

        await self._database.write(work)

    async def search(self, query: Query) -> Page:
        """See WorkitemStore."""

        def work(connection: sqlite3.Connection) -> Page:
            condition = Condition(self._database.path_ids)
            condition.add("x.deleted = 0")
            if query.visible_studies is not None:
                hidden = f"s.study NOT IN ({marks(query.visible_studies)})"
                condition.add("EXISTS (SELECT 1 FROM studies s WHERE s.workitem = x.id)")
                condition.add(f"NOT EXISTS (SELECT 1 FROM studies s WHERE s.workitem = x.id AND {hidden})", *query.visible_studies)
            for group in group_keys(query.keys):
                absent = [key for key in group if key.operation is Operation.ABSENT]
                for key in absent:
                    present, parameters = condition.owners([MatchKey(key.path, Operation.RANGE)], Level.INSTANCE.value)
                    condition.add(f"x.id NOT IN ({present})", *parameters)
                if wanted := [key for key in group if key not in absent]:
                    owners, parameters = condition.owners(wanted, Level.INSTANCE.value)
                    condition.add(f"x.id IN ({owners})", *parameters)
            source = f"FROM workitems x WHERE {condition.text}"
            rows = connection.execute(
                f"SELECT x.dicom_json {source} ORDER BY x.sort_key, x.uid LIMIT ? OFFSET ?",
                (*condition.parameters, query.limit + 1, query.offset),
            ).fetchall()
            remaining = 0
            if len(rows) > query.limit:
                total = connection.execute(f"SELECT count(*) {source}", condition.parameters).fetchone()[0]
                remaining = total - query.offset - query.limit
            return Page([workitem_row(query, decoded(dicom_json)) for (dicom_json,) in rows[: query.limit]], remaining)

        return await self._database.read(work)

    async def close(self) -> None:
        """See WorkitemStore."""
        await asyncio.to_thread(self._database.close)
