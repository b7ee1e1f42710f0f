"""Reads rule files that operators write: TOML files with [[rule]] tables and nothing else.

The caller defines the fields of a rule. All problems of a file are reported together.
"""

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

Entry = Mapping[str, Any]
"""One [[rule]] table."""


def load(path: Path, rule_of: Callable[[str, Entry, list[str]], T]) -> tuple[tuple[T, ...], list[str]]:
    """Read a rule file.

    Args:
        path: of the file.
        rule_of: builds a rule. Its arguments are the rule's position ("rule 1"), its table, and a list to which it appends problems.

    Returns:
        The rules in the order of the file, and the problems. The rules may be used only if there are no problems.

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
    """Raise an error if a file has problems.

    Raises:
        ValueError: `problems` is not empty; the message has one line per problem.
    """
    if problems:
        raise ValueError("\n".join(f"{path}: {problem}" for problem in problems))
