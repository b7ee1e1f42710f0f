"""Files of rules that an operator writes: TOML that holds [[rule]] tables and nothing else.

What a rule may say is its owner's matter; how such a file is read, and that all its problems are told together, is the same for all.
"""

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

Entry = Mapping[str, Any]
"""One [[rule]] table."""


def load(path: Path, rule_of: Callable[[str, Entry, list[str]], T]) -> tuple[tuple[T, ...], list[str]]:
    """Read a file.

    Args:
        rule_of: makes a rule of where it stands ("rule 1"), its table, and the list that its problems are added to.

    Returns:
        The rules in their order, and the problems; there is something to use only where there are none.

    Raises:
        ValueError: the file cannot be read as TOML with [[rule]] tables.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    problems = [f"{name}: expected [[rule]] only" for name in table if name != "rule"]
    entries = table.get("rule", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: rule: expected [[rule]]")
    return tuple(rule_of(f"rule {number}", entry, problems) for number, entry in enumerate(entries, 1)), problems


def refuse(path: Path, problems: list[str]) -> None:
    """Tell all problems of a file together.

    Raises:
        ValueError: there are some; one line per problem.
    """
    if problems:
        raise ValueError("\n".join(f"{path}: {problem}" for problem in problems))
