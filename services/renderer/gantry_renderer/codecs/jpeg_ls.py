"""JPEG-LS, by CharLS.

What is sent for a request follows from NEAR: if it changes, `FORM` of `file/derivation.py` must change too.

Source: ISO/IEC 14495-1; PS3.5 §8.2.3, §A.4.3.
"""

import numpy as np

from gantry_renderer.codecs import library
from gantry_renderer.codecs.samples import Samples, check_head, conformed, unsigned
from gantry_standard.bitstreams.heads import BytesSource, read_jpeg_head
from gantry_standard.dicom.scanned import PixelDescription

NEAR = 2
"""Greatest error of the near-lossless encoder, in stored values."""


def decode(data: bytes, description: PixelDescription) -> Samples:
    """Decode one frame.

    Raises:
        ScanFailure: the bit stream has no head that can be read.
        ValueError: its size differs from its attributes.
    """
    head = read_jpeg_head(BytesSource(data))
    check_head(head, description)
    return conformed(library.jpegls_decode(data), head, description)


def encode(samples: Samples, description: PixelDescription, near: int = 0) -> bytes:
    """Encode one frame.

    Args:
        near: greatest error, in stored values.
    """
    # imagecodecs writes a SPIFF header before the frame header (FFF7); DICOM does not use it
    stream = library.jpegls_encode(unsigned(samples), level=near)
    return b"\xff\xd8" + stream[stream.index(b"\xff\xf7") :]


def encode_near(samples: Samples, description: PixelDescription) -> bytes:
    """Encode one frame with an error of at most NEAR."""
    # The bit stream has the precision of Bits Allocated. Without this limit a decoded value could exceed Bits Stored
    if description.bits_stored < description.bits_allocated:
        samples = np.minimum(samples, samples.dtype.type((1 << description.bits_stored) - 1 - NEAR))
    return encode(samples, description, NEAR)


def method_of_loss(data: bytes) -> str:
    """Return the Lossy Image Compression Method of a lossy bit stream, "" of a lossless one."""
    return "" if read_jpeg_head(BytesSource(data)).is_reversible else "ISO_14495_1"
