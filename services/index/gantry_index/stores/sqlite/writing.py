"""Writes one batch of changes in one transaction: instances, their index terms, and the summaries of their studies and series."""

import sqlite3
from collections.abc import Sequence
from typing import Any

import orjson

from gantry.index.v1.index_pb2 import InstanceRecord
from gantry_index.levels.summary import (
    INSTANCE_NUMBER,
    SERIES_NUMBER,
    Attributes,
    SeriesSummary,
    StudySummary,
    computed_terms,
    decoded,
    level_terms,
    not_terms_of,
    parsing,
    sort_number,
    tabulated,
)
from gantry_index.stores.port import NUMBER_ABSENT, Batch, Move, PoisonEvent, Put, Remove
from gantry_index.stores.sqlite.database import Database, Kept, S, marks, set_meta
from gantry_index.stores.sqlite.schema import KEY_COLUMNS, TABLE, change_key, settling_key
from gantry_runtime import telemetry
from gantry_runtime.stored_instances import INLINE_JSON_BYTES, collection_of
from gantry_standard import errors
from gantry_standard.dicom.collections import is_study
from gantry_standard.query import terms
from gantry_standard.query.levels import Level
from gantry_standard.query.terms import Term

RECENT_TERMS = 16_384
"""Number of rows in `recent_terms` from which on they are moved. It corresponds to about 200 CT instances, and to 0.2 ms of a search. A
larger batch is written directly to `terms`, so that there are never twice as many recent terms."""


def is_merge_due(database: Database) -> bool:
    """Return whether there are enough recent terms to move them."""
    return database.recent_terms >= RECENT_TERMS


def merge_recent_terms(connection: sqlite3.Connection) -> None:
    """Move the recent terms to the table `terms`, in the order of that table."""
    connection.execute(
        "INSERT OR IGNORE INTO terms SELECT path, value, owner, item, root FROM recent_terms WHERE true ORDER BY path, value, owner, item"
    )
    connection.execute("DELETE FROM recent_terms")
    connection.execute("DELETE FROM recent")


class Writing:
    """Applies one batch, inside one transaction."""

    def __init__(self, database: Database, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.absent: frozenset[str] = frozenset()
        """SOP Instance UIDs that had no row when they were looked up in this transaction."""
        self._database = database
        self._added: dict[str, list[tuple[str, str, Attributes]]] = {}
        self._recount: set[str] = set()
        self._terms: list[tuple[int, Sequence[Term]]] = []

    def apply(self, batch: Batch) -> None:
        """Write all changes of the batch.

        Raises:
            errors.Unavailable: a version differs from `Batch.seen`.
        """
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
        for name in batch.healed:
            connection.execute("DELETE FROM poison WHERE sequence = (SELECT sequence FROM poison_names WHERE name = ?)", (name,))
            connection.execute("DELETE FROM poison_names WHERE name = ?", (name,))
        for one in batch.poison:
            self._poison(one)
        self._outbox(batch)
        if batch.reader:
            set_meta(connection, f"cursor {batch.reader}", str(batch.sequence))

    def _outbox(self, batch: Batch) -> None:
        """Write the rows to publish, and remove the published ones."""
        if batch.published:
            self.connection.executemany("DELETE FROM outbox WHERE key = ?", [(change_key(sequence),) for sequence in batch.published])
        if batch.settled:
            removed = [(settling_key(study), sequence) for study, sequence in batch.settled.items()]
            self.connection.executemany("DELETE FROM outbox WHERE key = ? AND sequence = ?", removed)
        rows = [(change_key(one.sequence), one.sequence, one.reader, one.collection, one.data) for one in batch.outbox]
        rows += [(settling_key(study), sequence, batch.reader, study, b"") for study, sequence in batch.settling.items()]
        if rows:
            self.connection.executemany("INSERT OR REPLACE INTO outbox VALUES (?, ?, ?, ?, ?)", rows)

    def _poison(self, one: PoisonEvent) -> None:
        """Record a poison event. An event that was published again is recorded only once."""
        if one.name:
            statement = "INSERT OR IGNORE INTO poison_names VALUES (?, ?, ?)"
            if not self.connection.execute(statement, (one.name, one.sequence, one.pack)).rowcount:
                return
        self.connection.execute("INSERT OR IGNORE INTO poison VALUES (?, ?)", (one.sequence, one.reason))

    def _write_terms(self) -> None:
        """Write the terms of new instances, in the order of the table to which they are written."""
        known, path_id = self._database.path_ids, self._database.path_id
        if sum(len(index_terms) for _, index_terms in self._terms) >= RECENT_TERMS:
            merged = [
                (known.get(path) or path_id(path), value, owner, item, root)
                for owner, index_terms in self._terms
                for path, value, item, root in index_terms
            ]
            self.connection.executemany("INSERT OR IGNORE INTO terms VALUES (?, ?, ?, ?, ?)", sorted(merged))
            return
        recent = [
            (owner, known.get(path) or path_id(path), value, item, root)
            for owner, index_terms in self._terms
            for path, value, item, root in index_terms
        ]
        recent.sort()
        self.connection.executemany("INSERT OR IGNORE INTO recent_terms VALUES (?, ?, ?, ?, ?)", recent)
        self.connection.executemany("INSERT INTO recent VALUES (?, ?)", [(owner, len(index_terms)) for owner, index_terms in self._terms])
        self._database.recent_terms += sum(len(index_terms) for _, index_terms in self._terms)

    def _before(self, sop: str) -> tuple[int, str, int, int]:
        """Return row id, collection, version, and whether the row is a tombstone; zeros and "" if there is no row."""
        if sop in self.absent:
            return 0, "", 0, 0
        statement = "SELECT id, collection, version, deleted FROM instances WHERE sop = ?"
        row: tuple[int, str, int, int] | None = self.connection.execute(statement, (sop,)).fetchone()
        return row or (0, "", 0, 0)

    def _put(self, sop: str, put: Put, before: tuple[int, str, int, int]) -> None:
        collection = collection_of(put.stored)
        if before[0]:
            if before[2] >= put.version:
                return
            if not before[3]:
                self._recount |= {one for one in (before[1], collection) if is_study(one)}
            self.connection.execute("DELETE FROM instances WHERE id = ?", (before[0],))
        with parsing(sop):
            dataset = decoded(put.dicom_json)
            attributes = tabulated(dataset)
            number = sort_number(attributes, INSTANCE_NUMBER, NUMBER_ABSENT)
            derived = terms.derive(dataset, not_terms_of(collection), memory=self._memory(put))
        stored = put.stored
        record = InstanceRecord(stored=stored, version=put.version).SerializeToString()
        cursor = self.connection.execute(
            "INSERT INTO instances (sop, collection, series, number, version, deleted, record, attributes, fragment)"
            " VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?)",
            (
                sop,
                collection,
                stored.series_instance_uid,
                number,
                put.version,
                record,
                orjson.dumps(attributes),
                put.dicom_json if len(put.dicom_json) <= INLINE_JSON_BYTES or not stored.dicom_json_location.object else b"",
            ),
        )
        for limit, number in derived.left_out.items():
            telemetry.TERMS_LEFT_OUT.labels(limit).inc(number)
        self._terms.append((int(cursor.lastrowid or 0) * 4 + Level.INSTANCE.value, derived.terms))
        if is_study(collection):
            self._added.setdefault(collection, []).append((stored.series_instance_uid, sop, attributes))

    def _memory(self, put: Put) -> terms.Memory | None:
        """Return the cached attributes of an instance's series. Those of a large instance are not cached."""
        if len(put.dicom_json) > INLINE_JSON_BYTES:
            return None
        memories, series = self._database.memories, (collection_of(put.stored), put.stored.series_instance_uid)
        memory = memories.get(series)
        return memory if memory is not None else memories.put(series, {})

    def _remove(self, sop: str, remove: Remove) -> None:
        """Write a tombstone, also if there was no instance."""
        before = self.connection.execute("SELECT collection, version, deleted FROM instances WHERE sop = ?", (sop,)).fetchone()
        if before and before[1] >= remove.version:
            return
        if before and not before[2] and is_study(before[0]):
            self._recount.add(before[0])
        stored = remove.stored
        record = InstanceRecord(stored=stored, version=remove.version).SerializeToString()
        self.connection.execute(
            "INSERT INTO instances (sop, collection, series, number, version, deleted, record, attributes, fragment)"
            " VALUES (?, ?, ?, 0, ?, 1, ?, x'', x'') ON CONFLICT (sop) DO UPDATE SET collection = excluded.collection,"
            " series = excluded.series, version = excluded.version, deleted = 1, record = excluded.record, fragment = x'',"
            " attributes = x''",
            (sop, collection_of(stored), stored.series_instance_uid, remove.version, record),
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
        rows = self.connection.execute("SELECT series, sop, attributes FROM instances WHERE collection = ? AND deleted = 0", (study,))
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

    def _kept(self, level: Level, key: tuple[str, ...], summary: S) -> Kept[S]:
        """Return a study or series from the database; with the empty `summary` if it has no row."""
        if (kept := self._database.kept.get(key)) is not None:
            return kept
        condition = " AND ".join(f"{column} = ?" for column in KEY_COLUMNS[level])
        row = self.connection.execute(f"SELECT id, summary FROM {TABLE[level]} WHERE {condition}", key).fetchone()
        if not row:
            return self._database.kept.put(key, Kept(summary))
        known = summary.from_json(row[1])
        return self._database.kept.put(key, Kept(known, row[0], known.attributes()))

    def _gather(
        self,
        study: str,
        of_study: Kept[StudySummary],
        by_series: dict[str, Kept[SeriesSummary]],
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

    def _write(self, level: Level, key: tuple[str, ...], order: int | str, kept: Kept[Any]) -> None:
        """Write a study or series, and only those of its terms that have changed."""
        table, order_column = TABLE[level], "sort_key" if level is Level.STUDY else "number"
        attributes = kept.summary.attributes()
        values = (order, kept.summary.to_json(), orjson.dumps(attributes))
        if kept.row_id:
            row_id = kept.row_id
            self.connection.execute(f"UPDATE {table} SET {order_column} = ?, summary = ?, attributes = ? WHERE id = ?", (*values, row_id))
        else:
            names = ", ".join((*KEY_COLUMNS[level], order_column, "summary", "attributes"))
            cursor = self.connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks((*key, *values))})", (*key, *values))
            row_id = int(cursor.lastrowid or 0)
        owner = row_id * 4 + level.value
        if not kept.row_id:
            self._database.add_terms(owner, level_terms(attributes))
        else:
            # Usually only counts have changed. Then terms need not be derived from the gathered attributes.
            terms_of = level_terms if kept.summary.gathered.is_changed else computed_terms
            old, new = set(terms_of(kept.before)), set(terms_of(attributes))
            self._database.remove_terms(owner, old - new)
            self._database.add_terms(owner, new - old)
        kept.row_id, kept.before, kept.summary.gathered.is_changed = row_id, attributes, False

    def _drop(self, level: Level, key: tuple[str, ...], kept: Kept[Any]) -> None:
        self._database.remove_terms(kept.row_id * 4 + level.value, level_terms(kept.before))
        self.connection.execute(f"DELETE FROM {TABLE[level]} WHERE id = ?", (kept.row_id,))
        self._database.kept.pop(key)
