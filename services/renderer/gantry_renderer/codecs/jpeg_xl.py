"""JPEG XL, by libjxl.

What is sent for a request follows from DISTANCE: if it changes, `FORM` of `file/derivation.py` must change too.

Source: ISO/IEC 18181-1; PS3.5 §8.2.15, §A.4.
"""

import numpy as np

from gantry_renderer.codecs import library
from gantry_renderer.codecs.samples import DecodedHead, Samples, check_head, conformed, precision_of
from gantry_standard.dicom.scanned import PixelDescription

DISTANCE = 0.1
"""Butteraugli distance that the lossy encoder aims at."""


def decode(data: bytes, description: PixelDescription) -> Samples:
    """Decode one frame.

    Raises:
        ValueError: its size differs from its attributes.
    """
    samples = library.jpegxl_decode(data)
    if samples.ndim == 3 and samples.shape[2] == 1:
        samples = samples[:, :, 0]
    head = DecodedHead(samples.shape[0], samples.shape[1], 1 if samples.ndim == 2 else samples.shape[2], samples.dtype.itemsize * 8)
    check_head(head, description)
    return conformed(samples, head, description)


def encode(samples: Samples, description: PixelDescription) -> bytes:
    """Encode one frame without loss."""
    samples, bits = _of_precision(samples, description)
    return library.jpegxl_encode(samples, lossless=True, effort=1, bitspersample=bits, numthreads=1)


def encode_lossy(samples: Samples, description: PixelDescription) -> bytes:
    """Encode one frame with loss."""
    samples, bits = _of_precision(samples, description)
    return library.jpegxl_encode(samples, distance=DISTANCE, effort=3, bitspersample=bits, numthreads=1)


def _of_precision(samples: Samples, description: PixelDescription) -> tuple[Samples, int]:
    """Return the samples and their precision; samples of up to 8 bits as uint8, which libjxl requires."""
    bits = precision_of(samples, description)
    return (samples.astype(np.uint8, copy=False) if bits <= 8 else samples), bits


def method_of_recompressed_jpeg(data: bytes) -> str:
    """Return the Lossy Image Compression Method of a recompressed JPEG bit stream: it is as lossy as the JPEG was.

    The head of other JPEG XL bit streams does not show whether they are lossy.
    """
    return "ISO_18181_1"
