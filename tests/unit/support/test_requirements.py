"""The tracing itself: what counts as shown, and what is refused."""

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
