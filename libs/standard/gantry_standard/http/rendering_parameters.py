"""Query parameters of rendered resources: quality, window, viewport, annotation, iccprofile.

Source: PS3.18 §8.3.5.1.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from gantry_standard import errors
from gantry_standard.http.media_types import ICC_CAPABLE
from gantry_standard.http.warning_texts import first_of

WINDOW_FUNCTIONS = ("linear", "linear-exact", "sigmoid")
ICC_PROFILES = ("no", "yes", "srgb", "adobergb", "rommrgb")
SUPPORTED_ANNOTATIONS: frozenset[str] = frozenset()
"""Supported annotation keywords; for others the response has a Warning."""

LARGEST_VIEWPORT = 8192
"""Maximum number of columns or rows of a rendered image."""

_DECIMAL = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:[Ee][+-]?[0-9]+)?")
_KEYWORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Window:
    """VOI window in units after the modality LUT (§8.3.5.1.4)."""

    center: float
    width: float
    function: str


@dataclass(frozen=True, slots=True)
class Viewport:
    """Size of the result in pixels, and the source region in pixels of the frame (§8.3.5.1.3).

    Attributes:
        source_x, source_y: None: 0.
        source_width, source_height: None: to the edge; negative: flipped.
    """

    width: int
    height: int
    source_x: float | None = None
    source_y: float | None = None
    source_width: float | None = None
    source_height: float | None = None


@dataclass(frozen=True, slots=True)
class Rendering:
    """The rendering parameters of a request.

    Attributes:
        quality: 1 to 100; 0 if not given.
        unsupported_annotations: keywords that are ignored with a Warning.
        icc_profile: "" if not given.
    """

    quality: int = 0
    window: Window | None = None
    viewport: Viewport | None = None
    unsupported_annotations: tuple[str, ...] = ()
    icc_profile: str = ""

    def check_media_type(self, media_type: str) -> None:
        """Check that the media type can embed the requested ICC profile (§8.3.5.1.5).

        Raises:
            errors.BadRequest: it cannot.
        """
        if self.icc_profile not in ("", "no") and media_type not in ICC_CAPABLE:
            raise errors.BadRequest(f"iccprofile={self.icc_profile}: {media_type} holds no ICC profile; expected no")

    @property
    def warning(self) -> str:
        """Text of the Warning header for annotations that are ignored, or ""."""
        if not self.unsupported_annotations:
            return ""
        return f"The following annotation values are not supported: {first_of(self.unsupported_annotations)}"


def _decimal(text: str, name: str) -> float:
    if len(text) > 16 or not _DECIMAL.fullmatch(text) or not math.isfinite(float(text)):
        raise errors.BadRequest(f"parameter {name}: found {text!r}, expected a decimal number of at most 16 characters")
    return float(text)


def parse_quality(text: str) -> int:
    """Return the quality, 1 to 100 (§8.3.5.1.2).

    Raises:
        errors.BadRequest: it is something else.
    """
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= 100:
        raise errors.BadRequest(f"parameter quality: found {text!r}, expected a whole number from 1 to 100")
    return int(text)


def parse_window(text: str) -> Window:
    """Return the window of `center,width,function` (§8.3.5.1.4).

    Raises:
        errors.BadRequest: a value is missing or wrong.
    """
    pieces = text.split(",")
    if len(pieces) != 3:
        raise errors.BadRequest(f"parameter window: found {len(pieces)} values, expected center,width,function")
    center, width = (_decimal(piece.strip(), "window") for piece in pieces[:2])
    function = pieces[2].strip()
    if function not in WINDOW_FUNCTIONS:
        raise errors.BadRequest(f"parameter window: found function {function!r}, expected {', '.join(WINDOW_FUNCTIONS)}")
    # PS3.3 C.11.2.1.2 and C.11.2.1.3: linear needs a width of at least 1, the others more than 0.
    if width < 1 if function == "linear" else width <= 0:
        raise errors.BadRequest(
            f"parameter window: found width {pieces[1]}, expected {'1 or more' if function == 'linear' else 'more than 0'}"
        )
    return Window(center, width, function)


def parse_viewport(text: str, size_only: bool = False) -> Viewport:
    """Return the viewport of `vw,vh[,[sx],[sy],[sw],[sh]]` (§8.3.5.1.3).

    Args:
        size_only: only `vw,vh` is allowed: presentation states and thumbnails.

    Raises:
        errors.BadRequest: it is ill-formed, or larger than `LARGEST_VIEWPORT`.
    """
    pieces = [piece.strip() for piece in text.split(",")]
    most = 2 if size_only else 6
    if not 2 <= len(pieces) <= most or (len(pieces) > 2 and not pieces[-1]):
        expected = "vw,vh" if size_only else "vw,vh or vw,vh,[sx],[sy],[sw],[sh] without trailing commas"
        raise errors.BadRequest(f"parameter viewport: found {text!r}, expected {expected}")
    size = []
    for piece in pieces[:2]:
        if not re.fullmatch(r"[0-9]{1,5}", piece) or not 1 <= int(piece) <= LARGEST_VIEWPORT:
            raise errors.BadRequest(f"parameter viewport: found size {piece!r}, expected a whole number from 1 to {LARGEST_VIEWPORT}")
        size.append(int(piece))
    source = [_decimal(piece, "viewport") if piece else None for piece in pieces[2:]]
    source += [None] * (4 - len(source))
    if 0.0 in source[2:]:
        raise errors.BadRequest("parameter viewport: the source region is empty, expected sw and sh other than 0")
    x, y = (None if value is None else abs(value) for value in source[:2])
    return Viewport(size[0], size[1], x, y, source[2], source[3])


def parse_annotation(text: str) -> tuple[str, ...]:
    """Return the keywords of an annotation list (§8.3.5.1.1).

    Raises:
        errors.BadRequest: it is empty, or a value is not a keyword.
    """
    keywords = tuple(piece.strip() for piece in text.split(","))
    for keyword in keywords:
        if not _KEYWORD.fullmatch(keyword):
            raise errors.BadRequest(f"parameter annotation: found {keyword!r}, expected keywords such as patient or technique")
    return keywords


def parse_icc_profile(text: str) -> str:
    """Return the keyword of an iccprofile parameter (§8.3.5.1.5).

    Raises:
        errors.BadRequest: it is not a keyword.
    """
    if text not in ICC_PROFILES:
        raise errors.BadRequest(f"parameter iccprofile: found {text!r}, expected {', '.join(ICC_PROFILES)}")
    return text


def parse_rendering(parameter: Callable[[str], str | None]) -> Rendering:
    """Read all rendering parameters of a request.

    Args:
        parameter: returns the value of a parameter, None if it is not in the query.

    Raises:
        errors.BadRequest: one of them is wrong.
    """
    quality, window, viewport = parameter("quality"), parameter("window"), parameter("viewport")
    annotation, icc_profile = parameter("annotation"), parameter("iccprofile")
    keywords = () if annotation is None else parse_annotation(annotation)
    return Rendering(
        0 if quality is None else parse_quality(quality),
        None if window is None else parse_window(window),
        None if viewport is None else parse_viewport(viewport),
        tuple(keyword for keyword in keywords if keyword not in SUPPORTED_ANNOTATIONS),
        "" if icc_profile is None else parse_icc_profile(icc_profile),
    )
