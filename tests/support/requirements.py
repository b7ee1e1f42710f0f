"""Traces the rows of tests/requirements.md to tests.

As a part of pytest it checks the ids that tests carry; with the option `--requirements` it writes what the run showed to RESULTS.
`make test-all` writes the file anew and `make test-long` adds to it; a run of some tests leaves it alone. As a program
(`make requirements`) it prints per section how many rows are shown and which are not; `--write` writes docs/conformance.md.

A row is shown when a black-box test with its id passed, on every store set where it ran. A row of the kind "review" is shown when a
test of tests/unit/test_conformance.py that compares a table of the code with docs/conformance.md passed.
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "tests" / "requirements.md"
RESULTS = ROOT / "build" / "requirements.json"
CONFORMANCE = ROOT / "docs" / "conformance.md"
MOST_IDS = 3
SHOWING = ("tests/blackbox/", "tests/compose/", "tests/unit/test_conformance.py")


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    id: str
    section: str
    source: str
    level: str
    requirement: str
    test: str

    @property
    def is_review(self) -> bool:
        """Whether the row is shown by comparing documents."""
        return self.test.strip() in ("review", "document review") or self.test.startswith("review ")


def read_table(path: Path = TABLE) -> dict[str, Row]:
    """Return the rows by id, in the order of the table."""
    rows: dict[str, Row] = {}
    section = ""
    for line in path.read_text().splitlines():
        if line.startswith("## "):
            section = line[3:].strip()
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if re.fullmatch(r"[A-Z]-\d{3}", cells[0]) and len(cells) >= 5:
            rows[cells[0]] = Row(cells[0], section, cells[1], cells[2], cells[3], " | ".join(cells[4:]))
    return rows


def check_ids(ids: tuple[str, ...], known: dict[str, Row]) -> str:
    """Return what is wrong with the ids that one test carries, or an empty string."""
    if unknown := [row for row in ids if row not in known]:
        return f"requirement {', '.join(unknown)} is not a row of tests/requirements.md"
    if len(ids) > MOST_IDS:
        return f"{len(ids)} requirements on one test, at most {MOST_IDS}"
    return ""


def shown(results: dict[str, list[dict[str, str]]]) -> dict[str, list[str]]:
    """Return the rows that a run showed, with the names of their tests.

    Args:
        results: per id the tests that carried it, each with `test` (node id) and `outcome`.
    """
    found: dict[str, list[str]] = {}
    for row, tests in results.items():
        ran = [test for test in tests if test["outcome"] != "skipped" and test["test"].startswith(SHOWING)]
        if ran and all(test["outcome"] == "passed" for test in ran):
            found[row] = sorted({re.sub(r"\[.*", "", test["test"]) for test in ran})
    return found


def write_results(outcomes: dict[str, dict[str, str]], path: Path = RESULTS, *, is_added: bool = False) -> None:
    """Write what a run showed.

    Args:
        outcomes: per test (node id) a mapping with `outcome` and `ids` (joined by a blank).
        path: the file to write.
        is_added: keep the results of earlier runs, apart from those of tests that this run repeated.
    """
    by_row: dict[str, list[dict[str, str]]] = {}
    if is_added and path.exists():
        for row, tests in json.loads(path.read_text()).items():
            if kept := [test for test in tests if test["test"] not in outcomes]:
                by_row[row] = kept
    for test, facts in sorted(outcomes.items()):
        for row in facts["ids"].split():
            by_row.setdefault(row, []).append({"test": test, "outcome": facts["outcome"]})
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(by_row, indent=1, sort_keys=True) + "\n")


def report(rows: dict[str, Row], found: dict[str, list[str]]) -> str:
    """Return the text of `make requirements`; its last line is `N of 517 requirements shown`."""
    lines = []
    for section in dict.fromkeys(row.section for row in rows.values()):
        ids = [row.id for row in rows.values() if row.section == section]
        missing = [row for row in ids if row not in found]
        lines.append(f"{section}: {len(ids) - len(missing)} of {len(ids)} shown" + ("; not: " + " ".join(missing) if missing else ""))
    return "\n".join([*lines, f"{len(found)} of {len(rows)} requirements shown"])


def main(arguments: list[str]) -> int:
    """Print the report of the last `make test-all`; with --write also write docs/conformance.md."""
    if not RESULTS.exists():
        print("no results of a run: `make test-all` first", file=sys.stderr)
        return 1
    rows = read_table()
    results = json.loads(RESULTS.read_text())
    if unknown := sorted(set(results) - set(rows)):
        print(f"not a row of tests/requirements.md: {', '.join(unknown)}", file=sys.stderr)
        return 1
    found = shown(results)
    if "--write" in arguments:
        from tests.support.conformance import statement

        CONFORMANCE.write_text(statement(rows, found))
    print(report(rows, found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
