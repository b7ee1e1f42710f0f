"""Queries in SQL: conditions on terms, and the search for studies, series and instances."""

import sqlite3
from collections.abc import Sequence
from typing import Any

import orjson

from gantry_index.levels.rows import Identity, levels_needed, needs_metadata, row
from gantry_index.levels.summary import SERIES_UID, SOP_UID, STUDY_UID, Attributes, decoded
from gantry_index.stores.port import Page
from gantry_index.stores.sqlite.database import Database, marks
from gantry_index.stores.sqlite.schema import KEY_COLUMNS, TABLE
from gantry_standard.query.levels import Level
from gantry_standard.query.matching import MatchKey, Operation, Query, group_keys

UID_LEVEL = {STUDY_UID: Level.STUDY, SERIES_UID: Level.SERIES, SOP_UID: Level.INSTANCE}
FRAGMENT = {
    Level.INSTANCE: "x.fragment",
    **{
        level: "(SELECT i.fragment FROM instances i WHERE "
        + " AND ".join(f"i.{inner} = x.{outer}" for inner, outer in zip(KEY_COLUMNS[Level.INSTANCE], KEY_COLUMNS[level], strict=False))
        + " AND i.deleted = 0 AND i.fragment <> x'' ORDER BY i.sop LIMIT 1)"
        for level in (Level.STUDY, Level.SERIES)
    },
}
"""SQL for the metadata of a row: its own, or that of its instance with the smallest UID among those whose metadata is in the index."""
ORDER = {Level.STUDY: "x.sort_key DESC, x.study", Level.SERIES: "x.number, x.series, x.study", Level.INSTANCE: "x.number, x.sop"}


class Condition:
    """An SQL text with its parameters."""

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
            recent: search the recent terms as well, with one look-up per recent owner.
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
        # CROSS JOIN makes SQLite look up the tables in the given order.
        unmerged = " CROSS JOIN ".join(("recent r", *(f"recent_terms {table}" for table in tables)))
        statement += f" UNION ALL SELECT t0.owner >> 2 FROM {unmerged} WHERE t0.owner = r.owner AND {matches}"
        return statement, [level, *parameters, *parameters]

    def _comparison(self, table: str, key: MatchKey) -> tuple[str, list[Any]]:
        path: list[Any] = [self.path_ids.get(key.term_path, -1)]
        if key.operation is Operation.EQUAL:
            return f"{table}.path = ? AND {table}.value IN ({marks(key.values)})", path + list(key.values)
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
    """Replace a key with ALL by one key with EQUAL per value."""
    split: list[MatchKey] = []
    for key in group:
        if key.operation is Operation.ALL:
            split += [MatchKey(key.path, Operation.EQUAL, (value,), private_creator=key.private_creator) for value in key.values]
        else:
            split.append(key)
    return split


class Searching:
    """Answers one query."""

    def __init__(self, database: Database, connection: sqlite3.Connection, query: Query) -> None:
        self.connection = connection
        self._query = query
        self._condition = Condition(database.path_ids)
        self._parents: dict[tuple[str, ...], Attributes] = {}

    def page(self) -> Page:
        query, condition = self._query, self._condition
        if query.collection:
            condition.add(f"x.{KEY_COLUMNS[query.level][0]} = ?", query.collection)
        if query.series_instance_uid:
            condition.add("x.series = ?", query.series_instance_uid)
        if query.visible_studies is not None:
            condition.add(f"x.{KEY_COLUMNS[query.level][0]} IN ({marks(query.visible_studies)})", *query.visible_studies)
        if query.level is Level.INSTANCE:
            condition.add("x.deleted = 0" if query.collection else "x.deleted = 0 AND x.series <> ''")
        for group in group_keys(query.keys):
            self._add_group(group)
        columns = ", ".join(f"x.{column}" for column in (*KEY_COLUMNS[query.level], "attributes"))
        with_metadata = needs_metadata(query)
        if with_metadata:
            columns += ", " + FRAGMENT[query.level]
        source = f"FROM {TABLE[query.level]} x WHERE {condition.text}"
        page_rows = self.connection.execute(
            f"SELECT {columns} {source} ORDER BY {ORDER[query.level]} LIMIT ? OFFSET ?",
            (*condition.parameters, query.limit + 1, query.offset),
        ).fetchall()
        remaining = 0
        if len(page_rows) > query.limit:
            total = self.connection.execute(f"SELECT count(*) {source}", condition.parameters).fetchone()[0]
            remaining = total - query.offset - query.limit
        needed = levels_needed(query)
        depth = len(KEY_COLUMNS[query.level])
        rows = []
        for values in page_rows[: query.limit]:
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
            parent_row = self.connection.execute(f"SELECT attributes FROM {TABLE[level]} WHERE {condition}", own).fetchone()
            self._parents[own] = orjson.loads(parent_row[0]) if parent_row else {}
        return self._parents[own]

    def _add_group(self, group: tuple[MatchKey, ...]) -> None:
        key = group[0]
        level = key.level or self._query.level
        of_level = UID_LEVEL.get(key.path[0]) if len(key.path) == 1 else None
        if of_level and level.value <= self._query.level.value and key.operation is Operation.EQUAL:
            column = KEY_COLUMNS[self._query.level][of_level.value - 1]
            self._condition.add(f"x.{column} IN ({marks(key.values)})", *key.values)
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
        shared = min(level.value, self._query.level.value)
        live = " AND p.deleted = 0" if level is Level.INSTANCE else ""
        tuple_x = ", ".join(f"x.{column}" for column in KEY_COLUMNS[self._query.level][:shared])
        tuple_p = ", ".join(f"p.{column}" for column in KEY_COLUMNS[level][:shared])
        self._condition.add(f"({tuple_x}) {operator} (SELECT {tuple_p} FROM {TABLE[level]} p WHERE p.id IN ({owners}){live})", *parameters)
