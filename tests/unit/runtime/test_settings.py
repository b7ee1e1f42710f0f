"""Settings are read from a mapping, and all problems are told together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from gantry_runtime.settings import SettingsError, describe, load, setting


@dataclass(frozen=True, kw_only=True)
class Example:
    """Settings of every type."""

    name: str = setting("gantry", "A name.")
    number: int = setting(5, "A number.")
    seconds: float = setting(1.5, "Seconds.")
    yes: bool = setting(False, "A switch.")
    kind: Literal["directory", "s3"] = setting("directory", "A kind.")
    origins: tuple[str, ...] = setting((), "Origins.")
    place: Path | None = setting(None, "A place.")

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError(f"GANTRY_NUMBER={self.number}: expected 0 or more")


def test_without_an_environment_every_field_has_its_default() -> None:
    assert load(Example, {}) == Example()


def test_an_empty_value_means_the_default() -> None:
    assert load(Example, {"GANTRY_NUMBER": "", "GANTRY_PLACE": ""}) == Example()


def test_values_are_read_as_their_types() -> None:
    environment = {
        "GANTRY_NAME": "other",
        "GANTRY_NUMBER": "7",
        "GANTRY_SECONDS": "0.25",
        "GANTRY_YES": "True",
        "GANTRY_KIND": "s3",
        "GANTRY_ORIGINS": "https://a.example, https://b.example,",
        "GANTRY_PLACE": "/data",
        "UNRELATED": "x",
    }
    expected = Example(
        name="other", number=7, seconds=0.25, yes=True, kind="s3", origins=("https://a.example", "https://b.example"), place=Path("/data")
    )
    assert load(Example, environment) == expected


def test_all_problems_are_told_together() -> None:
    with pytest.raises(SettingsError) as raised:
        load(Example, {"GANTRY_NUMBER": "many", "GANTRY_SECONDS": "soon", "GANTRY_YES": "1", "GANTRY_KIND": "tape"})
    assert str(raised.value).splitlines() == [
        "GANTRY_NUMBER='many': expected a whole number",
        "GANTRY_SECONDS='soon': expected a number",
        "GANTRY_YES='1': expected true or false",
        "GANTRY_KIND='tape': expected one of directory, s3",
    ]


def test_what_the_dataclass_refuses_is_a_problem_too() -> None:
    with pytest.raises(SettingsError, match="expected 0 or more"):
        load(Example, {"GANTRY_NUMBER": "-1"})


def test_settings_describe_themselves() -> None:
    assert describe(Example)[:2] == [("GANTRY_NAME", "gantry", "A name."), ("GANTRY_NUMBER", "5", "A number.")]
