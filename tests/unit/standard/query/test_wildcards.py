"""Wildcard matching against Python's regular expressions, and in bounded time."""

import random
import re
import time

import pytest

from gantry_standard import errors
from gantry_standard.query import wildcards
from gantry_standard.query.levels import Level
from gantry_standard.query.matching import parse_filter, parse_query, parse_workitem_query, read_filter


def test_random_patterns_match_what_the_same_regular_expression_matches() -> None:
    rng = random.Random(1)
    for _ in range(20_000):
        pattern = "".join(rng.choice("ab*?.") for _ in range(rng.randrange(8)))
        value = "".join(rng.choice("ab\n.") for _ in range(rng.randrange(8)))
        expression = "".join({"*": ".*", "?": "."}.get(character) or re.escape(character) for character in pattern)
        expected = re.fullmatch(expression, value, re.DOTALL) is not None
        assert wildcards.compiled(pattern).matches(value) is expected, (pattern, value)


@pytest.mark.parametrize(
    ("pattern", "value", "is_match"),
    [
        ("???", "김치국", True),
        ("김?국", "김치국", True),
        ("기*", "김치국", False),
        ("*", "", True),
        ("?", "", False),
        ("?", "\U0001f600", True),
    ],
)
def test_one_character_is_one_character(pattern: str, value: str, is_match: bool) -> None:
    assert wildcards.compiled(pattern).matches(value) is is_match


@pytest.mark.parametrize("pattern", ["*a" * 16 + "b", "*" + "?" * 200 + "b", "*a?" * 16 + "b", "a" * 255 + "*b"])
def test_no_pattern_takes_long(pattern: str) -> None:
    begin = time.thread_time()
    assert not wildcards.compiled(pattern).matches("a" * (64 << 10))
    assert time.thread_time() - begin < 0.1


@pytest.mark.parametrize("pattern", ["*a" * 17, "*" + "a" * 256])
def test_pattern_that_costs_too_much_is_refused_in_every_query(pattern: str) -> None:
    with pytest.raises(errors.BadRequest, match="PatientID: a value"):
        parse_query(Level.STUDY, "", "", [("PatientID", pattern)], 10)
    with pytest.raises(errors.BadRequest, match="ProcedureStepLabel: a value"):
        parse_workitem_query([("ProcedureStepLabel", pattern)], 10)
    with pytest.raises(errors.BadRequest, match="ProcedureStepLabel: a value"):
        parse_filter([("filter", f"ProcedureStepLabel={pattern}")])


def test_filter_of_a_subscription_that_is_stored_already_is_read() -> None:
    assert read_filter("00741204=" + "%2Aa" * 17).keys[0].values == ("*a" * 17,)


def test_private_attribute_is_bounded_too() -> None:
    with pytest.raises(errors.BadRequest, match="asterisks"):
        parse_query(Level.INSTANCE, "", "", [("00091001", "*a" * 17), ("00090010", "ACME")], 10)
