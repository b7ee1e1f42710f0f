"""JPEG 2000, by OpenJPEG.

What is sent for a request follows from PSNR_DB: if it changes, `FORM` of `file/derivation.py` must change too.

Source: ISO/IEC 15444-1; PS3.5 §8.2.4, §A.4.4.
"""

from gantry_renderer.codecs import library
from gantry_renderer.codecs.samples import Samples, check_head, conformed, is_rgb, precision_of
from gantry_standard.bitstreams.heads import BytesSource, read_jpeg_2000_head
from gantry_standard.dicom.scanned import PixelDescription

PSNR_DB = 60
"""Peak signal-to-noise ratio that the lossy encoder aims at."""


def decode(data: bytes, description: PixelDescription) -> Samples:
    """Decode one frame.

    Raises:
        ScanFailure: the bit stream has no head that can be read.
        ValueError: its size differs from its attributes.
    """
    head = read_jpeg_2000_head(BytesSource(data))
    check_head(head, description)
    return conformed(library.jpeg2k_decode(data), head, description)


def encode(samples: Samples, description: PixelDescription) -> bytes:
    """Encode one frame without loss."""
    bits = precision_of(samples, description)
    return library.jpeg2k_encode(samples, level=0, reversible=True, codecformat="j2k", mct=is_rgb(description), bitspersample=bits)


def encode_lossy(samples: Samples, description: PixelDescription) -> bytes:
    """Encode one frame with loss."""
    bits = precision_of(samples, description)
    return library.jpeg2k_encode(samples, level=PSNR_DB, reversible=False, codecformat="j2k", mct=is_rgb(description), bitspersample=bits)


def method_of_loss(data: bytes) -> str:
    """Return the Lossy Image Compression Method of a lossy bit stream, "" of a lossless one."""
    return "" if read_jpeg_2000_head(BytesSource(data)).is_reversible else "ISO_15444_1"
