"""Tables of the index store in SQLite.

`outbox` has two kinds of rows in one table, so that a commit changes one page for both. Rows with the key `c` and the sequence in 20 digits
have the changes of one event that are to be published. Rows with the key `s` and the study have the last upload of a study that has not
settled. The column `study` has the key of any collection.

`instances` has all instances and tombstones, with the key of their collection. `series` is empty if the collection is a non-patient
resource, which has no rows in `studies` and `series`.

Index terms are rows (path, value, owner, item, root). An owner is the row id of a study, series or instance times 4 plus its level. Terms
of a removed instance stay until the next index generation: their owner is no longer live, and row ids are never used again.

Terms of new instances are written to `recent_terms`, which is clustered by owner. A commit appends to it and changes a few pages; in
`terms`, which is clustered by value, it would change one page per term. When there are enough recent terms, all of them are moved to
`terms`, sorted, in a separate transaction after the batch. The terms of one owner are always in only one of the two tables. A search by
attributes of instances reads both tables (docs/decisions/0004-recent-terms.md).
"""

from gantry_index.stores.sqlite.database import Schema
from gantry_standard.query.levels import Level

STATEMENTS = """
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
    id INTEGER PRIMARY KEY AUTOINCREMENT, sop TEXT NOT NULL UNIQUE, collection TEXT NOT NULL, series TEXT NOT NULL, number INTEGER NOT NULL,
    version INTEGER NOT NULL, deleted INTEGER NOT NULL, record BLOB NOT NULL, attributes BLOB NOT NULL, fragment BLOB NOT NULL
);
CREATE INDEX instances_of_series ON instances (collection, series, deleted, number, sop);
CREATE INDEX instances_in_order ON instances (number, sop) WHERE deleted = 0 AND series <> '';
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
CREATE TABLE poison_names (name TEXT PRIMARY KEY, sequence INTEGER NOT NULL, pack TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE outbox (
    key TEXT PRIMARY KEY, sequence INTEGER NOT NULL, reader TEXT NOT NULL, study TEXT NOT NULL, data BLOB NOT NULL
) WITHOUT ROWID;
"""
MIGRATIONS = {
    3: """
ALTER TABLE instances RENAME COLUMN study TO collection;
DROP INDEX instances_in_order;
CREATE INDEX instances_in_order ON instances (number, sop) WHERE deleted = 0 AND series <> '';
CREATE TABLE IF NOT EXISTS poison_names (name TEXT PRIMARY KEY, sequence INTEGER NOT NULL, pack TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (
    key TEXT PRIMARY KEY, sequence INTEGER NOT NULL, reader TEXT NOT NULL, study TEXT NOT NULL, data BLOB NOT NULL
) WITHOUT ROWID;
""",
}
"""Format 4 adds collections (a study is one of them), the names of poison events, and the outbox."""

SCHEMA = Schema(STATEMENTS, 4, MIGRATIONS)
TABLE = {Level.STUDY: "studies", Level.SERIES: "series", Level.INSTANCE: "instances"}
KEY_COLUMNS = {Level.STUDY: ("study",), Level.SERIES: ("study", "series"), Level.INSTANCE: ("collection", "series", "sop")}
"""The column with the key of a study: `study` in the tables of studies and series, `collection` in the table of instances."""


def change_key(sequence: int) -> str:
    """Return the key of the outbox row with the changes of the event of this sequence."""
    return f"c{sequence:020d}"


def settling_key(study_instance_uid: str) -> str:
    """Return the key of the outbox row of a study that has not settled."""
    return f"s{study_instance_uid}"
