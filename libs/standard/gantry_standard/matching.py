"""Matching: what a search asks for, normalised so that a store needs five operations.

Both index stores, the Studies search and the Worklist search use these.

Source: PS3.4 §C.2.2.2; PS3.18 §8.3.4.
"""

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """Levels of the query model."""

    STUDY = 1
    SERIES = 2
    INSTANCE = 3


class Operation(Enum):
    """What a store must be able to do with a key."""

    EQUAL = 1
    """Any of `values`."""
    PATTERN = 2
    """`values[0]`, with * and ?."""
    RANGE = 3
    """low <= value <= high as strings; an empty end is open."""
    ABSENT = 4
    """Zero-length or absent."""
    ALL = 5
    """All of `values`."""


@dataclass(frozen=True, slots=True)
class MatchKey:
    """One matching key with values in the form in which they are indexed.

    Attributes:
        path: tags from the root, 8 upper-case hex digits each. Keys under one sequence must meet in the same item.
        private_creator: of the last tag, when it is private.
        level: of the attribute; None: that of the request.
    """

    path: tuple[str, ...]
    operation: Operation
    values: tuple[str, ...] = ()
    low: str = ""
    high: str = ""
    private_creator: str = ""
    level: Level | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """A search, ready for a store.

    Attributes:
        study_instance_uid, series_instance_uid: from the path of the resource; "" where the path names none.
        include_fields: attribute paths as tags joined by ".".
        include_levels: levels above `level` whose default attributes are returned too.
        limit: at most so many; the server's maximum is applied already.
    """

    level: Level
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    keys: tuple[MatchKey, ...] = ()
    include_fields: tuple[str, ...] = ()
    include_all: bool = False
    include_levels: tuple[Level, ...] = ()
    offset: int = 0
    limit: int = 1000
    fuzzy_matching: bool = False
