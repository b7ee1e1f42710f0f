"""The Store Instances Response Module: PS3.18 Annex I, row by row."""

import pytest

from gantry_standard.http import store_response
from gantry_standard.http.store_response import StoreResult

OK = StoreResult("1.2", "1.2.3", "1.9", "1.2.3.4")
WARNED = StoreResult("1.2", "1.2.3", "1.9", "1.2.3.5", warning_reasons=(0xB007, 0xB006))
FAILED = StoreResult("1.2", "1.2.3", "1.9", "1.2.3.6", failure_reason=0x0122)
UNREADABLE = StoreResult(failure_reason=0xC000)
WITHOUT_CLASS = StoreResult("1.2", "1.2.3", "", "1.2.3.7", failure_reason=0xA901)
ELSEWHERE = StoreResult("1.5", "1.5.3", "1.9", "1.5.3.4")


def module(*results: StoreResult) -> dict:
    """Build a module with short URLs."""
    return store_response.module(results, lambda study: f"s/{study}", lambda it: f"i/{it.sop_instance_uid}")


@pytest.mark.parametrize(
    ("results", "status"),
    [
        pytest.param([OK], 200, id="all stored"),
        pytest.param([OK, ELSEWHERE], 200, id="all stored, two studies"),
        pytest.param([WARNED], 202, id="a warning alone"),
        pytest.param([OK, FAILED], 202, id="some failed"),
        pytest.param([OK, UNREADABLE], 202, id="other failures"),
        pytest.param([FAILED], 409, id="all failed"),
        pytest.param([UNREADABLE, FAILED], 409, id="all failed for different reasons"),
    ],
)
def test_status_is_that_of_table_10_5_3_1(results: list[StoreResult], status: int) -> None:
    assert store_response.status(results) == status


def test_stored_instance_is_referenced_with_its_url() -> None:
    assert module(OK) == {
        "00081190": {"vr": "UR", "Value": ["s/1.2"]},
        "00081199": {
            "vr": "SQ",
            "Value": [
                {
                    "00081150": {"vr": "UI", "Value": ["1.9"]},
                    "00081155": {"vr": "UI", "Value": ["1.2.3.4"]},
                    "00081190": {"vr": "UR", "Value": ["i/1.2.3.4"]},
                }
            ],
        },
    }


def test_warning_reason_is_the_first() -> None:
    assert module(WARNED)["00081199"]["Value"][0]["00081196"] == {"vr": "US", "Value": [0xB007]}


def test_failed_instance_is_named_with_its_reason_and_without_url() -> None:
    assert module(FAILED) == {
        "00081190": {"vr": "UR"},
        "00081198": {
            "vr": "SQ",
            "Value": [
                {
                    "00081150": {"vr": "UI", "Value": ["1.9"]},
                    "00081155": {"vr": "UI", "Value": ["1.2.3.6"]},
                    "00081197": {"vr": "US", "Value": [0x0122]},
                }
            ],
        },
    }


@pytest.mark.parametrize("result", [UNREADABLE, WITHOUT_CLASS])
def test_failure_without_both_uids_is_an_other_failure(result: StoreResult) -> None:
    built = module(OK, result)
    assert built["0008119A"] == {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [result.failure_reason]}}]}
    assert "00081198" not in built


def test_several_studies_leave_the_retrieve_url_empty() -> None:
    assert module(OK, ELSEWHERE)["00081190"] == {"vr": "UR"}
    assert store_response.stored_studies([OK, WARNED, ELSEWHERE, FAILED]) == ["1.2", "1.5"]
