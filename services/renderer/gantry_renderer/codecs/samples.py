"""Samples of one frame: their data type, shape and bits, as Image Pixel Description defines them.

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
    """Return the length of one native frame in bits."""
    samples = 2 if is_subsampled(description) else description.samples_per_pixel or 1
    return description.rows * description.columns * samples * bits_allocated(description)


def is_subsampled(description: PixelDescription) -> bool:
    """Whether two native pixels are stored as Y1 Y2 Cb Cr (PS3.3 §C.7.6.3.1.2)."""
    return description.photometric_interpretation in ("YBR_FULL_422", "YBR_PARTIAL_422")


def bits_allocated(description: PixelDescription) -> int:
    """Return Bits Allocated; of float pixel data, which may lack the attribute, that of its tag."""
    if description.tag in (FLOAT_TAG, DOUBLE_FLOAT_TAG):
        return 32 if description.tag == FLOAT_TAG else 64
    return description.bits_allocated


def dtype_of(description: PixelDescription) -> np.dtype[Any]:
    """Return the data type of decoded samples, little endian; uint8 for 1-bit pixels.

    Raises:
        NotAcceptable: Bits Allocated is a number that cannot be decoded.
    """
    if description.tag in (FLOAT_TAG, DOUBLE_FLOAT_TAG):
        return np.dtype("<f4" if description.tag == FLOAT_TAG else "<f8")
    size = max(1, description.bits_allocated // 8)
    if size not in (1, 2, 4, 8) or description.bits_allocated not in (1, 8 * size):
        raise errors.NotAcceptable(f"Bits Allocated is {description.bits_allocated}; 1, 8, 16, 32 and 64 can be decoded")
    return np.dtype(f"<{'i' if description.pixel_representation else 'u'}{size}")


def shaped(values: Samples, description: PixelDescription) -> Samples:
    """Reshape the values of one frame to `Samples`; planes become colour by pixel."""
    rows, columns, samples = description.rows, description.columns, description.samples_per_pixel or 1
    if samples == 1:
        return values.reshape(rows, columns)
    if description.planar_configuration == 1:
        return np.ascontiguousarray(np.moveaxis(values.reshape(samples, rows, columns), 0, -1))
    return values.reshape(rows, columns, samples)


def stored_bits(values: Samples, description: PixelDescription) -> Samples:
    """Remove the bits outside of Bits Stored, and extend the sign. PS3.5 §8.1.1 does not define those bits; retired overlays used them."""
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
    """Check that a bit stream has the size that its attributes give, before memory is allocated for its samples.

    Raises:
        ValueError: the sizes differ, or a sample does not fit into Bits Allocated.
    """
    stated = (head.rows, head.columns, head.samples)
    # A bit stream may give the number of rows in a later marker (DNL)
    expected = (description.rows if head.rows else 0, description.columns, description.samples_per_pixel or 1)
    if stated != expected:
        raise ValueError(f"the bit stream has rows, columns, samples {stated}, the attributes say {expected}")
    if description.bits_allocated > 1 and head.precision > description.bits_allocated:
        raise ValueError(f"the bit stream has {head.precision} bits, Bits Allocated is {description.bits_allocated}")


def conformed(samples: Samples, head: Head, description: PixelDescription) -> Samples:
    """Convert decoded samples to `dtype_of(description)`.

    JPEG, JPEG-LS and some JPEG 2000 bit streams hold signed samples as unsigned ones. The sign is then the highest bit of the smaller of
    Bits Stored and the precision of the bit stream. Values of lossy bit streams that exceed Bits Stored are set to its largest value.
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
    """Return the precision to encode with: Bits Stored, or Bits Allocated where a sample needs more bits."""
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
    """Convert 8-bit YBR_PARTIAL samples, luminance 16 to 235 and chrominance 16 to 240, to RGB (PS3.3 §C.7.6.3.1.2)."""
    values = (picture.astype(np.float64) - (16, 128, 128)) @ _PARTIAL_MATRIX.T
    rgb: Samples = np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)
    return rgb
