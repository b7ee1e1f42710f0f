"""Index files of older formats are migrated when they are opened, and everything in them stays what it was."""

import shutil
import sqlite3
from pathlib import Path

import orjson
import pytest

from gantry.index.v1.index_pb2 import InstanceRecord
from gantry_index.stores.port import Scope
from gantry_index.stores.sqlite.schema import SCHEMA
from gantry_index.stores.sqlite.store import SqliteStore
from gantry_standard import errors
from gantry_standard.query.levels import Level
from gantry_standard.query.matching import parse_query
from tests.support.former_formats import DATA_DIRECTORY_1, unpack

STUDY, DELETED = "2.25.1001", "2.25.1002"


@pytest.fixture
def former(tmp_path: Path) -> Path:
    """The directory of an index of format 3."""
    unpack(DATA_DIRECTORY_1, tmp_path)
    return tmp_path / "index"


def tables(path: Path) -> dict[str, str]:
    """Return what SQLite says of each table and index, without spaces that do not count and without quotes."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql NOT NULL").fetchall()
    return {name: " ".join(text.replace('"', "").split()) for name, text in rows}


def file_of(directory: Path) -> Path:
    return directory / (directory / "current").read_text().strip()


async def test_a_migrated_index_has_the_tables_of_a_new_one(former: Path, tmp_path: Path) -> None:
    await SqliteStore(former).close()
    await SqliteStore(tmp_path / "new").close()
    assert tables(file_of(former)) == tables(file_of(tmp_path / "new"))


async def test_a_migrated_index_answers_as_before(former: Path) -> None:
    store = SqliteStore(former)
    try:
        records = [InstanceRecord.FromString(one) async for page in store.records(Scope(STUDY)) for one in page]
        assert [(one.stored.sop_instance_uid, one.version) for one in records] == [
            (f"{STUDY}.1.1", 1),
            (f"{STUDY}.1.2", 2),
            (f"{STUDY}.2.1", 3),
        ]
        with pytest.raises(errors.Gone):
            await anext(store.records(Scope(DELETED)))
        rows = {}
        for level in Level:
            query, _ = parse_query(level, "", "", [("PatientID", "former"), ("StudyDate", "20260101-20260103")], 100)
            rows[level] = [orjson.loads(row.replace(b"\0", b"")) for row in (await store.search(query)).rows]
        assert {level: len(found) for level, found in rows.items()} == {Level.STUDY: 1, Level.SERIES: 2, Level.INSTANCE: 3}
        assert rows[Level.INSTANCE][0]["00081190"]["Value"] == [f"/studies/{STUDY}/series/{STUDY}.1/instances/{STUDY}.1.1"]
        assert (await store.counts()).instances == 3
        assert await store.cursor("all") == 5
    finally:
        await store.close()


async def test_a_migration_that_was_broken_off_is_done_when_the_file_is_opened_again(former: Path, tmp_path: Path) -> None:
    path = file_of(former)
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ALTER TABLE instances RENAME COLUMN study TO collection")
        shutil.copytree(former, tmp_path / "crashed")
        connection.execute("ROLLBACK")
    store = SqliteStore(tmp_path / "crashed")
    try:
        assert len([one async for page in store.records(Scope(STUDY)) for one in page]) == 3
    finally:
        await store.close()


@pytest.mark.parametrize("version", [2, SCHEMA.format + 1])
async def test_a_format_that_is_not_known_is_refused(former: Path, version: int) -> None:
    with sqlite3.connect(file_of(former)) as connection:
        connection.execute("UPDATE meta SET value = ? WHERE name = 'format'", (version,))
    with pytest.raises(errors.Conflict, match=f"format {version}, this program writes {SCHEMA.format}"):
        SqliteStore(former)
