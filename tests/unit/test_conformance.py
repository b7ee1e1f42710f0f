"""The committed pages say what the tables of the code say."""

from pathlib import Path

import pytest

from gantry_gateway.http.server import MAX_MESSAGE_BYTES
from gantry_gateway.worklist.websocket_protocol import PING_INTERVAL_S, PING_TIMEOUT_S
from gantry_runtime.events.streams import DAY_S, REPORTS
from gantry_workflow.settings import WorkflowSettings
from gantry_workflow.workitems.subscriptions import MAX_FILTERS, MAX_FILTERS_OF_ONE
from gantry_workflow.workitems.transactions import DEFAULT_WORKLIST_LABEL
from tests.support import conformance, operations, requirements

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"


@pytest.mark.parametrize(
    ("title", "make"),
    [
        pytest.param(title, make, id=title, marks=pytest.mark.requirement(*ids))
        for (title, make, _), ids in zip(
            conformance.SECTIONS,
            [("D-004",), ("D-008", "D-005"), ("Q-059",), ("D-010",), ("D-006",), ("D-006",), ("R-051",), ("S-043",), ("S-043",)],
            strict=True,
        )
    ],
)
def test_a_section_holds_the_table_of_the_code(title: str, make: object) -> None:
    section = PAGE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    assert callable(make)
    assert make() in section


def test_payloads_of_a_store_are_described_as_the_tables_have_them() -> None:
    section = PAGE.read_text().split("\n## Store payloads\n")[1].split("\n## ")[0]
    assert conformance.STORE_PAYLOADS in section
    assert conformance.store_payloads() in section


@pytest.mark.requirement("D-001")
def test_notifications_are_described_as_the_routes_have_them() -> None:
    section = PAGE.read_text().split("\n## Notifications\n")[1].split("\n## ")[0]
    assert conformance.NOTIFICATIONS in section
    assert any(route.path == "/subscribers/{aetitle}" and route.handler for route in conformance.ROUTES)
    assert (REPORTS.max_age_s, REPORTS.max_messages) == (7 * DAY_S, 1_000_000)
    assert (PING_INTERVAL_S, PING_TIMEOUT_S, MAX_MESSAGE_BYTES) == (20, 20, 64 << 10)


@pytest.mark.requirement("D-010")
def test_the_policies_of_the_worklist_are_described_with_the_numbers_of_the_code() -> None:
    section = PAGE.read_text().split("\n## Worklist\n")[1].split("\n## ")[0]
    assert conformance.WORKLIST in section
    assert f"up to {MAX_FILTERS_OF_ONE} filtered ones ({MAX_FILTERS:,} of all" in section
    assert WorkflowSettings().deletion_locks
    assert f"Worklist Label, where it is missing, is `{DEFAULT_WORKLIST_LABEL}`" in section


@pytest.mark.requirement("A-068")
def test_security_is_described() -> None:
    section = PAGE.read_text().split("\n## Security\n")[1].split("\n## ")[0]
    assert conformance.security() in section
    assert conformance.GatewaySettings().host == "127.0.0.1"
    assert conformance.GatewaySettings().cors_origins == ()


def test_operations_lists_every_setting() -> None:
    text = operations.PAGE.read_text()
    assert operations.page_with(text) == text


def test_the_statement_names_every_row_that_is_not_shown() -> None:
    rows = requirements.read_table()
    text = conformance.statement(rows, {"S-001": ["tests/blackbox/test_store.py::test_x"]})
    assert "S-002" in text.split("## Requirements")[1]
    assert "S-001" not in text.split("## Requirements")[1].split("## Tests")[0]
    assert "tests/blackbox/test_store.py" in text


def test_the_tables_of_the_code_are_written_without_a_run_of_the_tests() -> None:
    page = PAGE.read_text()
    outdated = page.replace("# Conformance statement\n", "# Conformance statement\n\nA sentence that no table has.\n", 1)
    assert conformance.with_tables_of_code(outdated) == page
