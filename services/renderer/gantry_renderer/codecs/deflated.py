"""Deflated Image Frame Compression, by zlib.

Source: PS3.5 §8.2, §A.4; RFC 1951.
"""

import zlib

from gantry_renderer.codecs import native
from gantry_renderer.codecs.samples import Samples, frame_bits
from gantry_standard.dicom.scanned import PixelDescription

LEVEL = 6


def decode(data: bytes, description: PixelDescription) -> Samples:
    """Inflate one frame.

    Raises:
        ValueError: the stream is broken.
    """
    needed = (frame_bits(description) + 7) // 8
    try:
        values = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, needed)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    return native.decode(values, description)


def encode(samples: Samples, description: PixelDescription) -> bytes:
    """Deflate one frame."""
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(native.encode(samples, description)) + compressor.flush()
