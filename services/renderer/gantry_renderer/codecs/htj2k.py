"""High-Throughput JPEG 2000, by OpenJPH; irreversible bit streams are decoded by OpenJPEG.

What is sent for a request follows from STEP: if it changes, `FORM` of `file/derivation.py` must change too.

Source: ISO/IEC 15444-15; PS3.5 §8.2, §10.18, §A.4.
"""

import numpy as np

from gantry_renderer.codecs import library
from gantry_renderer.codecs.samples import Samples, check_head, conformed, is_rgb
from gantry_standard.bitstreams.heads import BytesSource, read_jpeg_2000_head
from gantry_standard.dicom.scanned import PixelDescription

STEP = 1.6e-3
"""Quantization step of the lossy encoder, as a share of the range of Bits Stored."""


def decode(data: bytes, description: PixelDescription) -> Samples:
    """Decode one frame.

    Raises:
        ScanFailure: the bit stream has no head that can be read.
        ValueError: its size differs from its attributes.
    """
    head = read_jpeg_2000_head(BytesSource(data))
    check_head(head, description)
    # OpenJPH is fast, but wraps values around where the 9-7 transform exceeds the range (0 becomes 255); OpenJPEG saturates
    samples = library.htj2k_decode(data, planar=False) if head.is_reversible else library.jpeg2k_decode(data)
    return conformed(samples, head, description)


def encode(samples: Samples, description: PixelDescription) -> bytes:
    """Encode one frame without loss."""
    return library.htj2k_encode(samples, reversible=True, rgb=is_rgb(description), planar=False)


def encode_rpcl(samples: Samples, description: PixelDescription) -> bytes:
    """Encode one frame without loss, in the progression RPCL."""
    # PS3.5 §10.18: progression RPCL (the encoder's only one), TLM present, a base resolution of at most 64; a tile-part per resolution
    levels = max(5, (max(samples.shape[:2]) - 1).bit_length() - 6)
    return library.htj2k_encode(
        samples, reversible=True, rgb=is_rgb(description), planar=False, tlm=True, tilepart=1, resolutions=min(levels, 32)
    )


def encode_lossy(samples: Samples, description: PixelDescription) -> bytes:
    """Encode one frame with loss; without loss where decoded values could exceed their range."""
    step = STEP * 2.0 ** (description.bits_stored - description.bits_allocated)
    stream = library.htj2k_encode(samples, level=step, reversible=False, rgb=is_rgb(description), planar=False)
    # Where the transform exceeds the range some decoders wrap values around. Such a frame is encoded without loss, which this
    # transfer syntax allows
    decoded = library.htj2k_decode(stream, planar=False)
    range_of = 1 << description.bits_stored
    low, high = (-range_of // 2, range_of // 2) if description.pixel_representation else (0, range_of)
    is_within = decoded.min() >= low and decoded.max() < high
    if is_within and np.abs(decoded.astype(np.int64) - samples).max() * 32 <= range_of:
        return stream
    return encode(samples, description)


def method_of_loss(data: bytes) -> str:
    """Return the Lossy Image Compression Method of a lossy bit stream, "" of a lossless one."""
    return "" if read_jpeg_2000_head(BytesSource(data)).is_reversible else "ISO_15444_15"
