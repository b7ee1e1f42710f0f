"""RLE Lossless.

Source: PS3.5 Annex G.
"""

import dataclasses

import numpy as np

from gantry_renderer.codecs import library, native
from gantry_renderer.codecs.samples import Samples, dtype_of, shaped, stored_bits
from gantry_standard.dicom.scanned import PixelDescription


def decode(data: bytes, description: PixelDescription) -> Samples:
    """Decode one frame.

    Raises:
        ValueError: it has fewer samples than its attributes require.
    """
    if description.bits_allocated == 1:
        return native.decode(library.dicomrle_decode(data, np.dtype("u1")), dataclasses.replace(description, planar_configuration=1))
    unsigned = np.dtype(f"<u{dtype_of(description).itemsize}")
    values = np.frombuffer(library.dicomrle_decode(data, unsigned), unsigned).view(dtype_of(description))
    expected = description.rows * description.columns * (description.samples_per_pixel or 1)
    if values.size < expected:
        raise ValueError(f"{values.size} samples, expected {expected}")
    return shaped(stored_bits(values[:expected], description), dataclasses.replace(description, planar_configuration=1))


def encode(samples: Samples, description: PixelDescription) -> bytes:
    """Encode one frame."""
    # PS3.5 §G.2: one segment per byte of a sample, most significant first, samples one after another
    planes = [samples] if samples.ndim == 2 else [samples[:, :, index] for index in range(samples.shape[2])]
    segments = []
    for plane in planes:
        octets = np.ascontiguousarray(plane).view(np.uint8).reshape(*plane.shape, -1)
        for byte in reversed(range(octets.shape[2])):
            segment = library.packbits_encode(np.ascontiguousarray(octets[:, :, byte]))
            segments.append(segment + b"\0" * (len(segment) % 2))
    offsets, position = [], 64
    for segment in segments:
        offsets.append(position)
        position += len(segment)
    head = [len(segments), *offsets, *[0] * (15 - len(offsets))]
    return np.array(head, "<u4").tobytes() + b"".join(segments)
