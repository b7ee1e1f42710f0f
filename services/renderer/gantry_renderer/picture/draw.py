"""Render one stored frame to a picture, in the order of PS3.4 §N.2 and PS3.18 §8.3.5.1.

The steps are: Modality LUT, VOI LUT or window, presentation (MONOCHROME1, INVERSE), source region, viewport. Colour images have neither LUT
nor window. The frame is cropped first: each pixel is converted independently, so the result is the same.

Grey samples of at most 16 bits are converted by one table from stored value to grey, which is cached for frames with the same window.
Others are computed one by one with the same formulas.

Where neither the request nor the instance has a window, unsigned samples of at most 8 bits are not changed. Other samples are scaled from
the range of the frame, without padding, to black and white. Padding pixels are black.

Source: PS3.3 §C.11.1, §C.11.2.1.2, §C.11.2.1.3, §C.7.6.3.1.2; PS3.18 §8.3.5.1.3, §8.3.5.1.4.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gantry_renderer.codecs import coding
from gantry_renderer.codecs.samples import Samples, rgb_from_partial
from gantry_renderer.picture import images, lookup
from gantry_renderer.picture.attributes import FrameAttributes, LookupTable, Modality, Window
from gantry_renderer.picture.images import Picture
from gantry_standard import errors
from gantry_standard.dicom.scanned import PixelDescription

FUNCTIONS = ("linear", "linear-exact", "sigmoid")
GREATEST_GREY = 255
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Viewport:
    """The viewport of PS3.18 §8.3.5.1.3.

    Attributes:
        width, height: of the result, in pixels.
        source_x, source_y, source_width, source_height: region of the frame, in pixels of the frame. A width or height of None extends to
            the edge; a negative one flips the image.

    Raises:
        BadRequest: a size is not positive or too large, or the region is empty or not finite.
    """

    width: int
    height: int
    source_x: float = 0.0
    source_y: float = 0.0
    source_width: float | None = None
    source_height: float | None = None

    def __post_init__(self) -> None:
        if not (0 < self.width <= images.MAX_SIDE and 0 < self.height <= images.MAX_SIDE):
            raise errors.BadRequest(f"viewport is {self.width},{self.height}; sides from 1 to {images.MAX_SIDE} are possible")
        numbers = (self.source_x, self.source_y, self.source_width or 0.0, self.source_height or 0.0)
        if not all(math.isfinite(number) for number in numbers) or self.source_width == 0 or self.source_height == 0:
            raise errors.BadRequest("the viewport's source region is empty or not finite")


@dataclass(frozen=True, slots=True)
class Presentation:
    """How the request wants the frame rendered.

    Attributes:
        quality: 1..100; 0 for the default.

    Raises:
        BadRequest: a value is out of its range.
        NotAcceptable: the media type cannot be rendered.
    """

    media_type: str
    quality: int = 0
    window: Window | None = None
    viewport: Viewport | None = None

    def __post_init__(self) -> None:
        if self.media_type not in images.ENCODERS:
            raise errors.NotAcceptable(f"{self.media_type} cannot be rendered; available are {', '.join(images.ENCODERS)}")
        if not 0 <= self.quality <= 100:
            raise errors.BadRequest(f"quality is {self.quality}; expected 1 to 100")
        if self.window:
            _check_window(self.window)


def _check_window(window: Window) -> None:
    if window.function not in FUNCTIONS:
        raise errors.BadRequest(f"window function is {window.function!r}; expected one of {', '.join(FUNCTIONS)}")
    if not math.isfinite(window.center) or not math.isfinite(window.width):
        raise errors.BadRequest("window centre and width must be finite numbers")
    if (window.width < 1 and window.function == "linear") or window.width <= 0:
        least = "at least 1" if window.function == "linear" else "greater than 0"
        raise errors.BadRequest(f"window width is {window.width:g}; with {window.function} it is {least}")


def render(
    transfer_syntax_uid: str, data: bytes, description: PixelDescription, attributes: FrameAttributes, presentation: Presentation
) -> bytes:
    """Return one frame as an image file.

    Raises:
        NotAcceptable: the frame cannot be decoded, or its photometric interpretation is not supported.
        BadRequest: the source region lies outside the frame, or the result would be too large.
    """
    picture = draw(transfer_syntax_uid, data, description, attributes, presentation.window, presentation.viewport)
    return images.encode(presentation.media_type, picture, presentation.quality)


def draw(
    transfer_syntax_uid: str,
    data: bytes,
    description: PixelDescription,
    attributes: FrameAttributes,
    window: Window | None,
    viewport: Viewport | None,
) -> Picture:
    """Return one frame as a picture, not encoded. Raises what `render` raises."""
    region = _region(description, viewport)
    samples = coding.decode(transfer_syntax_uid, data, description)
    decoded = coding.decoded_description(transfer_syntax_uid, description)
    interpretation = decoded.photometric_interpretation
    if decoded.samples_per_pixel in (0, 1):
        if interpretation == "PALETTE COLOR":
            picture = _from_palette(_cropped(samples, region), attributes)
        elif interpretation in ("MONOCHROME1", "MONOCHROME2", ""):
            picture = _grey(samples, region, decoded, attributes, window)
        else:
            raise errors.NotAcceptable(f"Photometric Interpretation {interpretation} of one sample cannot be rendered")
    else:
        picture = _color(_cropped(samples, region), decoded)
    return _placed(picture, region, viewport)


@dataclass(frozen=True, slots=True)
class _Region:
    """Part of a frame, in pixels.

    Attributes:
        left, top, right, bottom: whole pixels that cover the region.
        box: left, top, right and bottom of the region within these pixels.
        width, height: of the region.
    """

    left: int
    top: int
    right: int
    bottom: int
    box: tuple[float, float, float, float]
    width: float
    height: float


def _region(description: PixelDescription, viewport: Viewport | None) -> _Region:
    columns, rows = description.columns, description.rows
    if viewport is None:
        return _Region(0, 0, columns, rows, (0, 0, columns, rows), columns, rows)
    x, y = abs(viewport.source_x), abs(viewport.source_y)
    right = columns if viewport.source_width is None else min(columns, x + abs(viewport.source_width))
    bottom = rows if viewport.source_height is None else min(rows, y + abs(viewport.source_height))
    if x >= right or y >= bottom:
        raise errors.BadRequest(f"the viewport's source region begins at {x:g},{y:g}, outside of {columns} x {rows} pixels")
    left, top = math.floor(x), math.floor(y)
    box = (x - left, y - top, right - left, bottom - top)
    return _Region(left, top, math.ceil(right), math.ceil(bottom), box, right - x, bottom - y)


def _cropped(samples: Samples, region: _Region) -> Samples:
    if (region.bottom - region.top, region.right - region.left) == samples.shape[:2]:
        return samples
    return np.ascontiguousarray(samples[region.top : region.bottom, region.left : region.right])


def fitted(width: float, height: float, viewport: Viewport) -> tuple[int, int]:
    """Return the largest width and height with the aspect ratio of the region that fit into the viewport."""
    if viewport.width * height <= viewport.height * width:
        return viewport.width, max(1, round(viewport.width * height / width))
    return max(1, round(viewport.height * width / height)), viewport.height


def _placed(picture: Picture, region: _Region, viewport: Viewport | None) -> Picture:
    if viewport is None:
        return picture
    width, height = fitted(region.width, region.height, viewport)
    if width * height > images.MAX_PIXELS:
        raise errors.BadRequest(f"the image would have {width} x {height} pixels; {images.MAX_PIXELS} are possible")
    if (height, width) != picture.shape[:2] or region.box != (0, 0, width, height):
        picture = images.scale(picture, width, height, region.box)
    if (viewport.source_width or 1) < 0:
        picture = picture[:, ::-1]
    if (viewport.source_height or 1) < 0:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


def _grey(samples: Samples, region: _Region, description: PixelDescription, attributes: FrameAttributes, window: Window | None) -> Picture:
    inverts = description.photometric_interpretation == "MONOCHROME1" or attributes.is_inverse
    limits = None
    if window is None and attributes.voi_table is None and (window := attributes.window) is None:
        limits = _limits(samples, description, attributes)
    voi_table = attributes.voi_table if window is None else None
    samples = _cropped(samples, region)
    if samples.dtype.kind == "f" or samples.dtype.itemsize > 2:
        grey = _to_grey(_modality(samples.astype(np.float64), attributes.modality), window, voi_table, limits, inverts)
        return _without_padding(grey, samples, attributes.padding)
    bits = 8 * samples.dtype.itemsize if description.pixel_representation else description.bits_stored or 8 * samples.dtype.itemsize
    table = _grey_table(samples.dtype.str, bits, attributes.modality, window, voi_table, limits, inverts, attributes.padding)
    # Lossless bit streams may have values above Bits Stored; these use the last entry
    return np.take(table, samples.view(np.dtype(f"u{samples.dtype.itemsize}")), mode="clip")


@lru_cache(64)
def _grey_table(
    dtype: str,
    bits: int,
    modality: Modality,
    window: Window | None,
    voi_table: LookupTable | None,
    limits: tuple[float, float] | None,
    inverts: bool,
    padding: tuple[int, int] | None,
) -> Picture:
    """Return the grey of every stored value, indexed by the bits of the value as an unsigned number."""
    stored = np.arange(1 << bits, dtype=f"u{np.dtype(dtype).itemsize}").view(dtype)
    grey = _to_grey(_modality(stored.astype(np.float64), modality), window, voi_table, limits, inverts)
    return _without_padding(grey, stored, padding)


def _without_padding(grey: Picture, stored: Samples, padding: tuple[int, int] | None) -> Picture:
    if padding is not None:
        grey[(stored >= padding[0]) & (stored <= padding[1])] = 0
    return grey


def _limits(samples: Samples, description: PixelDescription, attributes: FrameAttributes) -> tuple[float, float]:
    """Return the values after the modality LUT that become black and white where there is no window and no VOI LUT."""
    if samples.dtype.kind == "u" and description.bits_stored <= 8 and samples.dtype.itemsize == 1 and attributes.modality.is_identity:
        return 0.0, float((1 << (description.bits_stored or 8)) - 1)
    values = samples.ravel()
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if attributes.padding is not None:
        kept = values[(values < attributes.padding[0]) | (values > attributes.padding[1])]
        values = kept if kept.size else values
    if not values.size:
        return 0.0, 0.0
    if attributes.modality.table is not None:
        values = _modality(np.unique(values).astype(np.float64), attributes.modality)
        return float(values.min()), float(values.max())
    ends = _modality(np.array([values.min(), values.max()], np.float64), attributes.modality)
    return float(ends.min()), float(ends.max())


def _modality(stored: Values, modality: Modality) -> Values:
    """Apply the modality LUT (PS3.3 §C.11.1)."""
    if modality.table is None:
        return stored if modality.is_identity else stored * modality.slope + modality.intercept
    return _looked_up(stored, modality.table).astype(np.float64)


def _looked_up(values: Values, table: LookupTable) -> NDArray[np.uint16]:
    # Values below the first entry use the first, values above the last entry the last (PS3.3 §C.11.1.1)
    index = np.clip(np.nan_to_num(values) - table.first, 0, table.entries - 1).astype(np.intp)
    return lookup.entries_of(table)[index]


def _to_grey(
    values: Values, window: Window | None, voi_table: LookupTable | None, limits: tuple[float, float] | None, inverts: bool
) -> Picture:
    """Return uint8 greys of values after the modality LUT, rounded to the nearest."""
    grey: Values
    if window is not None:
        grey = apply_window(values, window)
    elif voi_table is not None:
        entries = lookup.entries_of(voi_table)
        grey = _looked_up(values, voi_table).astype(np.float64) * (GREATEST_GREY / lookup.scale_of(voi_table, entries))
    else:
        low, high = limits or (0.0, 0.0)
        grey = np.clip((values - low) * (GREATEST_GREY / (high - low)), 0, GREATEST_GREY) if high > low else np.zeros_like(values)
    if inverts:
        grey = GREATEST_GREY - grey
    rounded: Picture = np.floor(np.nan_to_num(grey) + 0.5).astype(np.uint8)
    return rounded


def apply_window(values: Values, window: Window) -> Values:
    """Apply a window; black is 0, white 255.

    Source: PS3.3 §C.11.2.1.2.1 (linear), §C.11.2.1.3.2 (linear-exact), §C.11.2.1.3.1 (sigmoid).
    """
    center, width, top = window.center, window.width, GREATEST_GREY
    if window.function == "sigmoid":
        with np.errstate(over="ignore"):
            curve: Values = top / (1 + np.exp(-4 * (values - center) / width))
            return curve
    ramp: Values
    if window.function == "linear-exact":
        ramp = (values - center) / width + 0.5
        low, high = center - width / 2, center + width / 2
    else:
        # A width of 1 is a threshold, without a ramp
        ramp = (values - (center - 0.5)) / (width - 1) + 0.5 if width > 1 else np.zeros_like(values)
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    return np.where(values <= low, 0.0, np.where(values > high, float(top), ramp * top))


def _from_palette(samples: Samples, attributes: FrameAttributes) -> Picture:
    if attributes.palette is None:
        raise errors.NotAcceptable("Photometric Interpretation is PALETTE COLOR, but the palette is not complete")
    colors = lookup.colors_of(attributes.palette)
    index = samples.astype(np.intp) - attributes.palette.red.first
    return np.take(colors, index, axis=0, mode="clip")


def _color(samples: Samples, description: PixelDescription) -> Picture:
    interpretation = description.photometric_interpretation
    if description.samples_per_pixel != 3:
        raise errors.NotAcceptable(f"{description.samples_per_pixel} samples per pixel ({interpretation}) cannot be rendered")
    picture = _to_8_bits(samples, description)
    if interpretation in ("RGB", "YBR_RCT", "YBR_ICT"):
        return picture
    if interpretation in ("YBR_FULL", "YBR_FULL_422"):
        return images.rgb_from_ybr(picture)
    if interpretation in ("YBR_PARTIAL_422", "YBR_PARTIAL_420"):
        return rgb_from_partial(picture)
    raise errors.NotAcceptable(f"Photometric Interpretation {interpretation} cannot be rendered")


def _to_8_bits(samples: Samples, description: PixelDescription) -> Picture:
    if samples.dtype.kind == "f":
        raise errors.NotAcceptable("float pixel data of three samples cannot be rendered")
    bits = description.bits_stored or 8 * samples.dtype.itemsize
    if description.pixel_representation:
        samples = samples.astype(np.int64) + (1 << (bits - 1))
    if bits > 8:
        samples = np.right_shift(samples, bits - 8)
    elif bits < 8:
        samples = samples.astype(np.uint16) * GREATEST_GREY // ((1 << bits) - 1)
    return np.ascontiguousarray(samples.astype(np.uint8))
