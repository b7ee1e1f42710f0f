"""Rendering parameters, row by row (PS3.18 §8.3.5.1)."""

import pytest

from gantry_standard import errors
from gantry_standard.http.rendering_parameters import (
    Rendering,
    Viewport,
    Window,
    parse_annotation,
    parse_icc_profile,
    parse_quality,
    parse_rendering,
    parse_viewport,
    parse_window,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("40,400,linear", Window(40, 400, "linear")),
        ("-40.5,1,linear", Window(-40.5, 1, "linear")),
        ("1e2,1E-1,linear-exact", Window(100, 0.1, "linear-exact")),
        ("+4,0.5,sigmoid", Window(4, 0.5, "sigmoid")),
    ],
)
def test_window(text: str, expected: Window) -> None:
    assert parse_window(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "40", "40,400", "40,400,", "40,400,LINEAR", "40,400,cubic", "x,400,linear", "40,,linear", "40,0.5,linear", "40,0,sigmoid",
     "40,-1,linear-exact",
     "nan,1,linear", "inf,1,linear", "1e999,1,linear", "12345678901234567,1,linear", "40,400,linear,1", ".5,1,linear"],
)  # fmt: skip
def test_no_window(text: str) -> None:
    with pytest.raises(errors.BadRequest, match="window"):
        parse_window(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512,256", Viewport(512, 256)),
        ("512,512,,,512,512", Viewport(512, 512, None, None, 512, 512)),
        ("512,512,10", Viewport(512, 512, 10)),
        ("512,512,-10,-2.5", Viewport(512, 512, 10, 2.5)),
        ("512,512,,,-100,", None),
        ("512,512,,,-100", Viewport(512, 512, None, None, -100)),
        ("512,512,1,2,3,-4.5", Viewport(512, 512, 1, 2, 3, -4.5)),
        ("8192,1", Viewport(8192, 1)),
    ],
)
def test_viewport(text: str, expected: Viewport | None) -> None:
    if expected is None:
        with pytest.raises(errors.BadRequest):
            parse_viewport(text)
        return
    assert parse_viewport(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "10", "10,", ",10", "0,10", "10,0", "-1,10", "10.5,10", "a,b", "10,10,", "10,10,a", "10,10,0,0,0,5", "10,10,0,0,5,0.0",
     "10,10,1,2,3,4,5",
     "8193,10", "99999,10", "+10,10"],
)  # fmt: skip
def test_no_viewport(text: str) -> None:
    with pytest.raises(errors.BadRequest, match="viewport"):
        parse_viewport(text)


def test_a_viewport_of_a_thumbnail_has_only_a_size() -> None:
    assert parse_viewport("64,64", size_only=True) == Viewport(64, 64)
    with pytest.raises(errors.BadRequest):
        parse_viewport("64,64,0,0", size_only=True)


@pytest.mark.parametrize("text", ["1", "100", "075"])
def test_quality(text: str) -> None:
    assert parse_quality(text) == int(text)


@pytest.mark.parametrize("text", ["", "0", "101", "a", "-5", "50.5", "+50", "1000"])
def test_no_quality(text: str) -> None:
    with pytest.raises(errors.BadRequest, match="quality"):
        parse_quality(text)


def test_annotation() -> None:
    assert parse_annotation("patient,technique") == ("patient", "technique")


@pytest.mark.parametrize("text", ["", "1/2", "patient,", "pa tient", "1x"])
def test_no_annotation(text: str) -> None:
    with pytest.raises(errors.BadRequest, match="annotation"):
        parse_annotation(text)


@pytest.mark.parametrize("text", ["no", "yes", "srgb", "adobergb", "rommrgb"])
def test_icc_profile(text: str) -> None:
    assert parse_icc_profile(text) == text


@pytest.mark.parametrize("text", ["", "sRGB", "true"])
def test_no_icc_profile(text: str) -> None:
    with pytest.raises(errors.BadRequest, match="iccprofile"):
        parse_icc_profile(text)


def test_all_together() -> None:
    query = {"window": "1,2,sigmoid", "viewport": "3,4", "quality": "5", "annotation": "patient,x", "iccprofile": "no"}
    found = parse_rendering(query.get)
    assert found == Rendering(5, Window(1, 2, "sigmoid"), Viewport(3, 4), ("patient", "x"), "no")
    assert found.warning == "The following annotation values are not supported: patient, x"


def test_the_warning_of_many_annotations_is_short() -> None:
    found = parse_rendering({"annotation": ",".join(f"a{number}" for number in range(10_000))}.get)
    assert found.warning == "The following annotation values are not supported: a0, a1, a2, a3, a4 and 9995 more"


def test_nothing_said() -> None:
    assert parse_rendering({}.get) == Rendering()
    assert Rendering().warning == ""


def test_a_media_type_without_icc_profiles() -> None:
    Rendering(icc_profile="no").check_media_type("image/gif")
    Rendering(icc_profile="srgb").check_media_type("image/png")
    with pytest.raises(errors.BadRequest):
        Rendering(icc_profile="srgb").check_media_type("image/gif")
