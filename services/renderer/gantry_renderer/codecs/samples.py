"""Samples of one frame: their type and shape, and how those follow from Image Pixel Description.

Source: PS3.5 §8.1; PS3.3 §C.7.6.3.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gantry_standard import errors
from gantry_standard.dicom.scanned import PixelDescription

Samples = NDArray[Any]
"""Samples of one frame, shape (rows, columns) or (rows, columns, samples)."""

FLOAT_TAG, DOUBLE_FLOAT_TAG = "7FE00008", "7FE00009"
PARTIAL_RANGE = frozenset(("YBR_PARTIAL_422", "YBR_PARTIAL_420"))
"""Photometric Interpretations whose luminance goes from 16 to 235 and chrominance from 16 to 240."""


def frame_bits(description: PixelDescription) -> int:
    """Return the bits of one native frame."""
    samples = 2 if is_subsampled(description) else description.samples_per_pixel or 1
    return description.rows * description.columns * samples * bits_allocated(description)


def is_subsampled(description: PixelDescription) -> bool:
    """Whether native pixels come as Y1 Y2 Cb Cr (PS3.3 §C.7.6.3.1.2)."""
    return description.photometric_interpretation in ("YBR_FULL_422", "YBR_PARTIAL_422")


def bits_allocated(description: PixelDescription) -> int:
    """Return Bits Allocated, which float pixel data may leave out."""
    if description.tag in (FLOAT_TAG, DOUBLE_FLOAT_TAG):
        return 32 if description.tag == FLOAT_TAG else 64
    return description.bits_allocated


def dtype_of(description: PixelDescription) -> np.dtype[Any]:
    """Return the type of decoded samples: uint8 for 1-bit pixels, little endian."""
    if description.tag in (FLOAT_TAG, DOUBLE_FLOAT_TAG):
        return np.dtype("<f4" if description.tag == FLOAT_TAG else "<f8")
    size = max(1, description.bits_allocated // 8)
    if size not in (1, 2, 4, 8) or description.bits_allocated not in (1, 8 * size):
        raise errors.NotAcceptable(f"Bits Allocated is {description.bits_allocated}; 1, 8, 16, 32 and 64 can be decoded")
    return np.dtype(f"<{'i' if description.pixel_representation else 'u'}{size}")


def shaped(values: Samples, description: PixelDescription) -> Samples:
    """Give the values of one frame the shape of `Samples`, colour by pixel."""
    rows, columns, samples = description.rows, description.columns, description.samples_per_pixel or 1
    if samples == 1:
        return values.reshape(rows, columns)
    if description.planar_configuration == 1:
        return np.ascontiguousarray(np.moveaxis(values.reshape(samples, rows, columns), 0, -1))
    return values.reshape(rows, columns, samples)


def stored_bits(values: Samples, description: PixelDescription) -> Samples:
    """Leave only the stored bits: PS3.5 §8.1.1 says nothing about the others (overlays once lay there)."""
    stored, allocated = description.bits_stored, description.bits_allocated
    if values.dtype.kind == "f" or not 0 < stored < allocated:
        return values
    unused_below = max(0, (description.high_bit or stored - 1) + 1 - stored)
    unused_above = max(0, allocated - stored - unused_below)
    if description.pixel_representation:
        signed: Samples = np.right_shift(np.left_shift(values, unused_above), unused_above + unused_below)
        return signed
    if unused_below:
        values = np.right_shift(values, unused_below)
    masked: Samples = np.bitwise_and(values, values.dtype.type((1 << stored) - 1))
    return masked


class Head(Protocol):
    """What the head of a bit stream says about its samples."""

    @property
    def rows(self) -> int:
        """Rows of the image; 0 where a later marker says it."""
        ...

    @property
    def columns(self) -> int:
        """Columns of the image."""
        ...

    @property
    def samples(self) -> int:
        """Samples of a pixel."""
        ...

    @property
    def precision(self) -> int:
        """Bits of a sample."""
        ...

    @property
    def is_signed(self) -> bool:
        """Whether samples are two's complement."""
        ...

    @property
    def is_reversible(self) -> bool:
        """Whether decoding gives exactly the samples that were encoded."""
        ...


@dataclass(frozen=True, slots=True)
class DecodedHead:
    """Head of samples that are decoded already, for codecs that read no head."""

    rows: int
    columns: int
    samples: int
    precision: int
    is_signed: bool = False
    is_reversible: bool = True


def check_head(head: Head, description: PixelDescription) -> None:
    """Check that a bit stream has the size that its attributes say, before memory is taken for its samples.

    Raises:
        ValueError: it has another size, or samples that do not fit into Bits Allocated.
    """
    stated = (head.rows, head.columns, head.samples)
    # A stream may leave the number of rows to a later marker (DNL).
    expected = (description.rows if head.rows else 0, description.columns, description.samples_per_pixel or 1)
    if stated != expected:
        raise ValueError(f"the bit stream has rows, columns, samples {stated}, the attributes say {expected}")
    if description.bits_allocated > 1 and head.precision > description.bits_allocated:
        raise ValueError(f"the bit stream has {head.precision} bits, Bits Allocated is {description.bits_allocated}")


def conformed(samples: Samples, head: Head, description: PixelDescription) -> Samples:
    """Give decoded samples the type that the attributes say.

    JPEG, JPEG-LS and some JPEG 2000 streams carry signed samples as unsigned ones: the sign is then the highest bit of
    the lesser of Bits Stored and the stream's precision. Lossy overshoot beyond Bits Stored is cut, not wrapped round.
    """
    wanted = dtype_of(description)
    samples = np.ascontiguousarray(samples)
    stored = min(description.bits_stored or head.precision, head.precision)
    if description.pixel_representation:
        samples = samples.astype(wanted, copy=False)
        unused = wanted.itemsize * 8 - stored
        return samples if head.is_signed or not unused else np.right_shift(np.left_shift(samples, unused), unused)
    if head.is_signed:
        samples = np.bitwise_and(samples.astype(wanted, copy=False), wanted.type((1 << stored) - 1))
    elif stored < head.precision and not head.is_reversible:
        samples = np.minimum(samples, samples.dtype.type((1 << stored) - 1))
    return samples.astype(wanted, copy=False)


def unsigned(samples: Samples) -> Samples:
    """Return the same bits as unsigned samples."""
    return np.ascontiguousarray(samples).view(np.dtype(f"u{samples.dtype.itemsize}"))


def precision_of(samples: Samples, description: PixelDescription) -> int:
    """Return Bits Stored, or Bits Allocated where a value needs more than that."""
    stored = description.bits_stored
    if not 0 < stored < description.bits_allocated:
        return description.bits_allocated
    low, high = (-(1 << (stored - 1)), 1 << (stored - 1)) if description.pixel_representation else (0, 1 << stored)
    return stored if samples.min(initial=0) >= low and samples.max(initial=0) < high else description.bits_allocated


def is_rgb(description: PixelDescription) -> bool:
    """Say whether pixels are RGB."""
    return description.photometric_interpretation == "RGB"


_PARTIAL_MATRIX = np.array([[1.1644, 0.0, 1.5960], [1.1644, -0.3918, -0.8130], [1.1644, 2.0172, 0.0]])


def rgb_from_partial(picture: Samples) -> Samples:
    """Return 8-bit RGB of YBR_PARTIAL samples: luminance 16 to 235, chrominance 16 to 240 (PS3.3 §C.7.6.3.1.2)."""
    values = (picture.astype(np.float64) - (16, 128, 128)) @ _PARTIAL_MATRIX.T
    rgb: Samples = np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)
    return rgb
