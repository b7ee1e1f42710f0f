"""Errors over HTTP: status, readable body, headers."""

import json

import pytest

from gantry_gateway.http import problems
from gantry_standard import errors


def _all_errors(cls: type[errors.GantryError] = errors.GantryError) -> list[type[errors.GantryError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in _all_errors(sub))]


GROUPS = {errors.GantryError, errors.RequestError, errors.ResourceError, errors.RetryLater}


@pytest.mark.parametrize("cls", [cls for cls in _all_errors() if cls not in GROUPS and cls.__module__ == errors.__name__])
def test_every_error_has_a_row(cls: type[errors.GantryError]) -> None:
    assert cls in problems.STATUS


def test_error_without_a_row_is_500() -> None:
    assert problems.status_of(errors.GantryError("x")) == 500


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", "text/html; charset=utf-8"),
        ("*/*", "text/html; charset=utf-8"),
        ("image/png", "text/html; charset=utf-8"),
        ("application/dicom+json", "application/json"),
        ("application/json", "application/json"),
        ("text/plain", "text/plain; charset=utf-8"),
    ],
)
def test_body_is_readable_whatever_is_accepted(accept: str, media_type: str) -> None:
    answer = problems.problem(errors.NotFound("there is no <study>"), accept, "http://h/dicom-web")
    assert (answer.status_code, answer.headers["content-type"]) == (404, media_type)
    if media_type == "application/json":
        assert json.loads(answer.body) == {"status": 404, "error": "Not Found", "message": "there is no <study>"}
    else:
        assert b"404 Not Found" in answer.body
        assert b"there is no &lt;study&gt;" in answer.body or media_type.startswith("text/plain")


def test_retry_later_says_when() -> None:
    answer = problems.problem(errors.Overloaded("queue is full", retry_after_s=7), "", "b")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")


def test_out_of_resources_is_a700() -> None:
    assert problems.problem(errors.OutOfResources("full"), "", "http://h").headers["warning"] == "A700 http://h: full"


def test_warning_cannot_break_out_of_its_header() -> None:
    answer = problems.problem(errors.BadRequest("x", warning="a\r\nSet-Cookie: b\x00ä"), "", "http://h")
    assert answer.headers["warning"] == "299 http://h: a??Set-Cookie: b??"
    assert "set-cookie" not in answer.headers


def test_allow_is_told() -> None:
    assert problems.problem(errors.MethodNotAllowed("x"), "", "b", "GET, HEAD").headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("accept", ["", "text/plain", "application/json"])
def test_a_message_is_cut_where_it_repeats_what_a_client_sent(accept: str) -> None:
    answer = problems.problem(errors.OutOfResources("<" * 65_000, warning="<" * 65_000), accept, "http://h")
    assert len(answer.body) < 6_000
    assert sum(len(name) + len(value) for name, value in answer.raw_headers) < 2_000
