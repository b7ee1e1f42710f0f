"""Native frames: plain values in little endian.

Source: PS3.5 §8.1.1, §8.2; PS3.3 §C.7.6.3.1.2 for shared chrominance.
"""

import numpy as np

from gantry_renderer.codecs.samples import Samples, dtype_of, frame_bits, is_subsampled, shaped, stored_bits
from gantry_standard import errors
from gantry_standard.dicom.scanned import PixelDescription


def decode(data: bytes, description: PixelDescription) -> Samples:
    """Return the samples of a native frame; bits outside of Bits Stored are cleared.

    Raises:
        NotAcceptable: the frame is shorter than its attributes require.
    """
    needed = (frame_bits(description) + 7) // 8
    if len(data) < needed:
        raise errors.NotAcceptable(f"frame has {len(data)} bytes; its attributes say {needed}")
    rows, columns, samples = description.rows, description.columns, description.samples_per_pixel or 1
    if description.bits_allocated == 1:
        bits = np.frombuffer(data, np.uint8, needed)
        return shaped(np.unpackbits(bits, bitorder="little", count=rows * columns * samples), description)
    values: Samples = np.frombuffer(data, dtype_of(description), needed // dtype_of(description).itemsize)
    values = stored_bits(values, description)
    return _upsampled(values, description) if is_subsampled(description) else shaped(values, description)


def _upsampled(values: Samples, description: PixelDescription) -> Samples:
    pairs = values.reshape(-1, 4)
    pixels = np.empty((len(pairs), 2, 3), values.dtype)
    pixels[:, 0, 0], pixels[:, 1, 0] = pairs[:, 0], pairs[:, 1]
    pixels[:, :, 1:] = pairs[:, None, 2:]
    return pixels.reshape(description.rows, description.columns, 3)


def encode(samples: Samples, description: PixelDescription) -> bytes:
    """Return the values of a native frame."""
    if description.bits_allocated == 1:
        return np.packbits(samples.astype(np.uint8, copy=False).ravel(), bitorder="little").tobytes()
    return samples.astype(dtype_of(description), copy=False).tobytes()
