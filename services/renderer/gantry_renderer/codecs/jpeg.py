"""JPEG, lossy and lossless, by libjpeg-turbo.

What is sent for a request follows from QUALITY: if it changes, `FORM` of `file/derivation.py` must change too.

Source: ISO/IEC 10918-1; PS3.5 §8.2.1, §A.4.1.
"""

from typing import Any

from gantry_renderer.codecs import library
from gantry_renderer.codecs.samples import PARTIAL_RANGE, Samples, check_head, conformed, is_rgb, precision_of, rgb_from_partial, unsigned
from gantry_standard.bitstreams.heads import BytesSource, read_jpeg_head
from gantry_standard.dicom.scanned import PixelDescription

QUALITY = 90
"""Quality of the lossy encoder, 1 to 100."""


def decode(data: bytes, description: PixelDescription) -> Samples:
    """Decode one frame; YBR becomes RGB.

    Raises:
        ScanFailure: the bit stream has no head that can be read.
        ValueError: its size differs from its attributes.
    """
    head = read_jpeg_head(BytesSource(data))
    check_head(head, description)
    # Without a marker for the colour space libjpeg assumes YCbCr for three samples; the attributes are more reliable.
    # Lossless JPEG has no colour transform.
    is_plain = head.is_reversible or (description.photometric_interpretation == "RGB" and not head.names_color_space)
    if head.samples == 3 and is_plain:
        return conformed(library.jpeg8_decode(data, colorspace="RGB", outcolorspace="RGB"), head, description)
    if description.photometric_interpretation in PARTIAL_RANGE:
        return rgb_from_partial(library.jpeg8_decode(data, colorspace="YCBCR", outcolorspace="YCBCR"))
    return conformed(library.jpeg8_decode(data), head, description)


def encode_lossless(samples: Samples, description: PixelDescription) -> bytes:
    """Encode one frame by first-order prediction (Process 14, Selection Value 1)."""
    color: dict[str, Any] = {"colorspace": "RGB", "outcolorspace": "RGB"} if samples.ndim == 3 else {}
    # All allocated bits of signed values are encoded, so that a decoder without signed samples returns the same bits
    is_narrow = samples.itemsize == 2 and not description.pixel_representation
    bits = max(9, precision_of(samples, description)) if is_narrow else 8 * samples.itemsize
    return library.jpeg8_encode(unsigned(samples), lossless=True, predictor=1, bitspersample=bits, **color)


def encode_lossy(samples: Samples, description: PixelDescription) -> bytes:
    """Encode one frame, of 8 or 12 bits; colour is sub-sampled 4:2:2."""
    if samples.itemsize == 2:
        return library.jpeg8_encode(samples, level=QUALITY, bitspersample=12)
    if samples.ndim == 2:
        return library.jpeg8_encode(samples, level=QUALITY)
    source = "RGB" if is_rgb(description) else "YCBCR"
    return library.jpeg8_encode(samples, level=QUALITY, colorspace=source, outcolorspace="YCBCR", subsampling="422")


def method_of_loss(data: bytes) -> str:
    """Return the Lossy Image Compression Method of a lossy bit stream, "" of a lossless one."""
    return "" if read_jpeg_head(BytesSource(data)).is_reversible else "ISO_10918_1"
