"""Where SQLite keeps terms of instances must not show: recent or merged, the same answers (docs/decisions/0004-recent-terms.md)."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gantry.blob.v1.blob_pb2 import Location, StoredInstance
from gantry_index.stores.port import Batch, Put, Remove
from gantry_index.stores.sqlite import database, writing
from gantry_index.stores.sqlite.store import SqliteStore
from gantry_standard import errors
from gantry_standard.query.levels import Level
from gantry_standard.query.matching import parse_query
from tests.support.nats_server import until

STUDY, SERIES = "1.2.3", "1.2.3.4"
TERMS = 5
"""Of one instance of `put`: SOP Class UID, Instance Number, Image Type, and two in the item."""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(tmp_path)
    yield opened
    await opened.close()


def put(number: int, version: int = 0) -> Put:
    sop = f"1.{number}"
    code = {"00080100": {"vr": "SH", "Value": [f"C{number}"]}, "00080102": {"vr": "SH", "Value": ["99X"]}}
    dataset: dict[str, Any] = {
        "00080008": {"vr": "CS", "Value": ["ORIGINAL"]},
        "00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]},
        "00080018": {"vr": "UI", "Value": [sop]},
        "00082218": {"vr": "SQ", "Value": [code]},
        "00100020": {"vr": "LO", "Value": ["P1"]},
        "0020000D": {"vr": "UI", "Value": [STUDY]},
        "0020000E": {"vr": "UI", "Value": [SERIES]},
        "00200013": {"vr": "IS", "Value": [number]},
    }
    stored = StoredInstance(
        study_instance_uid=STUDY,
        series_instance_uid=SERIES,
        sop_instance_uid=sop,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        location=Location(object="packs/a", offset=number + 1000 * version, length=10),
    )
    return Put(stored, orjson.dumps(dataset), version or number)


async def apply(store: SqliteStore, *changes: Put | Remove) -> None:
    await store.apply(Batch("all", max(one.version for one in changes), {one.stored.sop_instance_uid: one for one in changes}))


async def found(store: SqliteStore, **keys: str) -> list[int]:
    """Return Instance Numbers."""
    query, _ = parse_query(Level.INSTANCE, "", "", [(name.replace("__", "."), value) for name, value in keys.items()], 1000)
    rows = [orjson.loads(row.replace(b"\0", b"BASE")) for row in (await store.search(query)).rows]
    return [row["00200013"]["Value"][0] for row in rows]


def rows(store: SqliteStore, table: str) -> int:
    with sqlite3.connect(store._database.path) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table} WHERE owner & 3 = ?", (Level.INSTANCE.value,)).fetchone()[0])


async def merge(store: SqliteStore) -> None:
    await store._database.write(writing.merge_recent_terms)


SEARCHES: list[dict[str, str]] = [
    {"InstanceNumber": "3"},
    {"ImageType": "ORIG*"},
    {"ImageType": "*NAL"},
    {"AnatomicRegionSequence__CodeValue": "C2"},
    {"AnatomicRegionSequence__CodeValue": "C2", "AnatomicRegionSequence__CodingSchemeDesignator": "99X"},
    {"InstanceNumber": "4", "ImageType": "ORIGINAL"},
    {"PatientID": "P1", "InstanceNumber": "1"},
    {"InstanceNumber": "9"},
]


@pytest.mark.parametrize("keys", SEARCHES, ids=str)
async def test_a_search_finds_the_same_before_between_and_after_merges(store: SqliteStore, keys: dict[str, str]) -> None:
    await apply(store, put(1), put(2))
    await merge(store)
    await apply(store, put(3), put(4))
    assert (rows(store, "terms"), rows(store, "recent_terms")) == (2 * TERMS, 2 * TERMS)
    half = await found(store, **keys)
    await merge(store)
    assert (rows(store, "terms"), rows(store, "recent_terms"), rows(store, "recent")) == (4 * TERMS, 0, 0)
    assert await found(store, **keys) == half
    matches = [
        number
        for number in (1, 2, 3, 4)
        if keys.get("InstanceNumber") in (None, str(number)) and keys.get("AnatomicRegionSequence__CodeValue") in (None, f"C{number}")
    ]
    assert half == matches


async def test_a_replaced_or_deleted_instance_is_not_found_by_old_terms(store: SqliteStore) -> None:
    await apply(store, put(1), put(2))
    newer = Put(put(1).stored, put(7).dicom_json.replace(b'"1.7"', b'"1.1"'), 8)
    await apply(store, newer, Remove(put(2).stored, 9))
    for _ in range(2):
        assert [await found(store, InstanceNumber=str(number)) for number in (1, 2, 7)] == [[], [], [7]]
        await merge(store)


async def test_recent_terms_survive_the_process(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    await apply(store, put(1))
    await store.close()
    store = SqliteStore(tmp_path)
    assert (rows(store, "recent_terms"), await found(store, InstanceNumber="1")) == (TERMS, [1])
    await store.close()


async def test_a_merge_that_is_cut_off_changes_nothing(store: SqliteStore) -> None:
    await apply(store, put(1))

    def crash(connection: sqlite3.Connection) -> None:
        writing.merge_recent_terms(connection)
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(errors.Unavailable):
        await store._database.write(crash)
    assert (rows(store, "terms"), rows(store, "recent_terms")) == (0, TERMS)
    assert await found(store, InstanceNumber="1") == [1]


async def test_terms_are_merged_when_there_are_enough(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "RECENT_TERMS", 4 * TERMS)
    for number in range(1, 12):
        await apply(store, put(number))
        assert rows(store, "recent_terms") <= 4 * TERMS
        assert await found(store, InstanceNumber=str(number)) == [number]
    await until(lambda: rows(store, "terms") == 8 * TERMS)
    assert rows(store, "recent_terms") == 3 * TERMS


async def test_a_large_batch_is_merged_from_the_start(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "RECENT_TERMS", 4 * TERMS)
    await apply(store, *(put(number) for number in range(1, 10)))
    assert (rows(store, "terms"), rows(store, "recent_terms")) == (9 * TERMS, 0)
    assert await found(store, InstanceNumber="9") == [9]


async def test_applying_again_after_a_merge_changes_nothing(store: SqliteStore) -> None:
    await apply(store, put(1))
    await merge(store)
    await apply(store, put(1))
    assert (rows(store, "terms"), rows(store, "recent_terms"), await found(store, InstanceNumber="1")) == (TERMS, 0, [1])


async def test_what_a_failed_transaction_wrote_is_not_remembered(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await apply(store, put(5))
    before = rows(store, "recent_terms")

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(writing, "set_meta", fail)
        with pytest.raises(errors.Unavailable):
            await apply(store, put(1), put(2))
    assert (rows(store, "recent_terms"), store._database.recent_terms) == (before, TERMS)
    await apply(store, put(3))
    query, _ = parse_query(Level.STUDY, "", "", [("NumberOfStudyRelatedInstances", "2")], 10)
    assert len((await store.search(query)).rows) == 1
    assert store._database.recent_terms == 2 * TERMS


async def test_more_series_than_are_kept_are_counted_right(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for recent in (store._database.kept, store._database.memories):
        monkeypatch.setattr(recent, "_room", 2)
    for number in range(1, 13):
        one = put(number)
        one.stored.series_instance_uid = f"1.2.3.{number % 4}"
        await apply(store, Put(one.stored, one.dicom_json.replace(b'"1.2.3.4"', f'"1.2.3.{number % 4}"'.encode()), number))
    assert (len(store._database.kept), len(store._database.memories)) == (2, 2)
    query, _ = parse_query(Level.SERIES, STUDY, "", [], 10)
    counts = [orjson.loads(row.replace(b"\0", b""))["00201209"]["Value"] for row in (await store.search(query)).rows]
    assert counts == [[3], [3], [3], [3]]
    assert await found(store, InstanceNumber="7") == [7]


async def test_a_database_keeps_the_pages_with_which_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def page_bytes(store: SqliteStore) -> int:
        with sqlite3.connect(store._database.path) as connection:
            return int(connection.execute("PRAGMA page_size").fetchone()[0])

    with monkeypatch.context() as patched:
        patched.setattr(database, "PRAGMAS", database.PRAGMAS[1:])
        older = SqliteStore(tmp_path / "older")
        await apply(older, put(1))
        await older.close()
    older, new = SqliteStore(tmp_path / "older"), SqliteStore(tmp_path / "new")
    await apply(older, put(2))
    assert (page_bytes(older), page_bytes(new)) == (4096, database.PAGE_BYTES)
    assert await found(older, ImageType="ORIGINAL") == [1, 2]
    await older.close()
    await new.close()
