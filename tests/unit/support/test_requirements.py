"""The tracing itself: what counts as shown, and what is refused."""

import json
from pathlib import Path

from tests.support import requirements

BOTH = [
    {"test": "tests/blackbox/test_store.py::test_stores[one-machine]", "outcome": "passed"},
    {"test": "tests/blackbox/test_store.py::test_stores[distributed]", "outcome": "passed"},
]


def test_the_table_has_all_rows_in_their_sections() -> None:
    rows = requirements.read_table()
    assert len(rows) == 517
    assert rows["A-014"].section == "A. Common: HTTP, URIs, negotiation"
    assert rows["A-014"].source == "8.7.5"
    assert rows["A-014"].level == "shall"


def test_a_row_counts_when_it_passed_on_both_store_sets() -> None:
    assert requirements.shown({"S-001": BOTH}) == {"S-001": ["tests/blackbox/test_store.py::test_stores"]}


def test_a_row_that_failed_on_one_store_set_is_not_shown() -> None:
    failed = [BOTH[0], {**BOTH[1], "outcome": "failed"}]
    assert requirements.shown({"S-001": failed}) == {}


def test_a_skipped_store_set_neither_shows_nor_hides() -> None:
    skipped = [BOTH[0], {**BOTH[1], "outcome": "skipped"}]
    assert "S-001" in requirements.shown({"S-001": skipped})
    assert requirements.shown({"S-001": [{**BOTH[1], "outcome": "skipped"}]}) == {}


def test_a_unit_test_shows_nothing() -> None:
    assert requirements.shown({"S-001": [{"test": "tests/unit/blob/test_x.py::test_x", "outcome": "passed"}]}) == {}


def test_an_unknown_id_and_a_fourth_id_are_refused() -> None:
    rows = requirements.read_table()
    assert "Z-999" in requirements.check_ids(("Z-999",), rows)
    assert "at most 3" in requirements.check_ids(("S-001", "S-002", "S-003", "S-004"), rows)
    assert requirements.check_ids(("S-001",), rows) == ""


def test_the_last_line_counts() -> None:
    rows = requirements.read_table()
    assert requirements.report(rows, {"S-001": ["x"]}).splitlines()[-1] == "1 of 517 requirements shown"


def test_a_later_run_is_added_and_replaces_only_the_tests_that_it_repeated(tmp_path: Path) -> None:
    path = tmp_path / "requirements.json"
    first = {
        "tests/blackbox/a.py::a": {"ids": "S-001 S-002", "outcome": "failed"},
        "tests/blackbox/b.py::b": {"ids": "S-001", "outcome": "passed"},
    }
    requirements.write_results(first, path)
    requirements.write_results({"tests/blackbox/a.py::a": {"ids": "S-001", "outcome": "passed"}}, path, is_added=True)
    results = json.loads(path.read_text())
    assert set(results) == {"S-001"}
    assert {test["test"]: test["outcome"] for test in results["S-001"]} == {
        "tests/blackbox/a.py::a": "passed",
        "tests/blackbox/b.py::b": "passed",
    }
    requirements.write_results({"tests/blackbox/c.py::c": {"ids": "S-003", "outcome": "passed"}}, path)
    assert set(json.loads(path.read_text())) == {"S-003"}
