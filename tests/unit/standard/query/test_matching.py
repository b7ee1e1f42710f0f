"""Parameters of a search become keys (PS3.18 §8.3.4, PS3.4 §C.2.2.2)."""

import pytest

from gantry_standard import errors
from gantry_standard.query import matching
from gantry_standard.query.levels import Level
from gantry_standard.query.matching import Operation, parse_filter, read_filter


def parsed(*parameters: tuple[str, str]) -> tuple[matching.Query, list[str]]:
    return matching.parse_query(Level.STUDY, "", "", list(parameters), 100)


@pytest.mark.parametrize(
    "parameters",
    [
        [("StudyDate", "foo")],
        [("StudyDate", "2024*")],
        [("PatientID", "1"), ("00100020", "2")],
        [("limit", "-1")],
        [("offset", "")],
        [("fuzzymatching", "yes")],
        [("emptyvaluematching", "1")],
        [("multiplevaluematching", "TRUE")],
        [("StudyTime", "1000-0800")],
        [("StudyDate", "20240220-20240109"), ("StudyTime", "1000-1100")],
        [("includefield", "all,PatientID")],
        [("includefield", "Nonsense")],
        [("PatientID.PatientName", "x")],
        [("OtherPatientIDsSequence", "x")],
        [("StudyInstanceUID", "1.2,,1.3")],
    ],
    ids=str,
)
def test_what_is_wrong_is_refused(parameters: list[tuple[str, str]]) -> None:
    with pytest.raises(errors.BadRequest):
        parsed(*parameters)


def test_a_time_range_with_its_dates_may_end_at_an_earlier_hour() -> None:
    query, _ = parsed(("StudyDate", "20240109-20240220"), ("StudyTime", "1000-0800"))
    assert [(key.low, key.high) for key in query.keys] == [("20240109100000.000000", "20240220080059.999999")]


def test_an_empty_value_or_a_lone_asterisk_matches_all_and_is_returned() -> None:
    query, _ = parsed(("PatientID", ""), ("StudyDescription", "*"))
    assert (query.keys, query.include_fields) == ((), ("00100020", "00081030"))


def test_the_limit_is_never_above_the_maximum() -> None:
    assert parsed(("limit", "500"))[0].limit == 100


def test_fuzzy_matching_has_the_exact_warning() -> None:
    assert parsed(("fuzzymatching", "true"))[1] == [
        "The fuzzymatching parameter is not supported. Only literal matching has been performed."
    ]


def test_an_attribute_of_a_lower_level_is_ignored_with_a_warning() -> None:
    query, warnings = parsed(("Modality", "CT"))
    assert (query.keys, len(warnings)) == ((), 1)


def test_thousands_of_unknown_parameters_have_one_short_warning() -> None:
    _, warnings = parsed(*[(f"Unknown{number}", "x") for number in range(8000)])
    shown = ", ".join(f"Unknown{number}" for number in range(5))
    assert warnings == [f"The parameters {shown} and 7995 more are not known. They have been ignored."]


def test_each_reason_to_ignore_has_one_warning() -> None:
    lower = [(name, "1") for name in ("Modality", "SeriesInstanceUID", "InstanceNumber", "Rows")]
    private = [(f"{group:04X}1001", "1") for group in range(0x0009, 0x2009, 2)]
    long = ("X" * 60_000, "1")
    _, warnings = parsed(*lower, *private, long, ("fuzzymatching", "true"), ("PixelData", "1"))
    assert len(warnings) <= 5
    assert all(len(warning) < 500 for warning in warnings)
    assert f"The parameter {'X' * 64}... is not known. It has been ignored." in warnings
    (of_private,) = [warning for warning in warnings if "private" in warning]
    assert "00091001, 000B1001, 000D1001, 000F1001, 00111001 and 4091 more are given without" in of_private


def test_a_name_with_wildcards_is_folded() -> None:
    (key,) = parsed(("PatientName", "MÖLLER^*"))[0].keys
    assert (key.operation, key.values) == (Operation.PATTERN, ("moller^*",))


@pytest.mark.parametrize(
    "query",
    [
        [("filter", "WorklistLabel=A*,ProcedureStepState=SCHEDULED")],
        [("filter", "ProcedureStepState=SCHEDULED"), ("filter", "00741202=A*")],
        [("filter", "WorklistLabel=A%2A,ProcedureStepState=SCHEDULED")],
        [("WorklistLabel", "A*"), ("ProcedureStepState", "SCHEDULED")],
        [("ProcedureStepState", "SCHEDULED"), ("filter", "WorklistLabel=A*"), ("deletionlock", "true")],
        [("filter", "WorklistLabel=A*,ProcedureStepState=SCHEDULED,emptyvaluematching=false")],
    ],
)
def test_a_filter_is_the_same_in_every_form_that_clients_send(query: list[tuple[str, str]]) -> None:
    found = parse_filter(query)
    assert found.text == "00741000=SCHEDULED&00741202=A%2A"
    assert {key.path for key in found.keys} == {("00741000",), ("00741202",)}
    assert read_filter(found.text) == found


def test_values_of_a_filter_may_hold_commas_and_equals_signs() -> None:
    found = parse_filter([("filter", "SOPInstanceUID=1.2,1.3,WorklistLabel=a%3Db%2Cc")])
    assert [key.values for key in found.keys] == [("1.2", "1.3"), ("a=b,c",)]
    assert read_filter(found.text) == found


@pytest.mark.parametrize(
    "query",
    [
        [],
        [("filter", "")],
        [("filter", "nothing=1")],
        [("filter", "ScheduledProcessingParametersSequence.ValueType=TEXT")],
        [("filter", "emptyvaluematching=true")],
        [("filter", "WorklistLabel=AI"), ("PatientNmae", "x")],
    ],
)
def test_what_is_no_filter_is_refused(query: list[tuple[str, str]]) -> None:
    with pytest.raises(errors.BadRequest):
        parse_filter(query)
