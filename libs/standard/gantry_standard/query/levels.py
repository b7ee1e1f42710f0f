"""Levels of the query model (PS3.4 §C.6)."""

from enum import Enum


class Level(Enum):
    """Levels of the query model."""

    STUDY = 1
    SERIES = 2
    INSTANCE = 3
