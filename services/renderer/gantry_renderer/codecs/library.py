"""The functions of imagecodecs that the codecs call; the only module that imports it.

imagecodecs loads the library behind a function at the first call. Its errors are ValueError, RuntimeError and TypeError.
"""

from typing import Any

import imagecodecs
import numpy as np

from gantry_renderer.codecs.samples import Samples


def has(codec: str) -> bool:
    """Say whether the installed build has a codec, by its name in imagecodecs such as JPEG8; loads its library."""
    return bool(getattr(getattr(imagecodecs, codec), "available", False))


def jpeg8_decode(data: bytes, **options: Any) -> Samples:
    """Decode JPEG by libjpeg-turbo."""
    samples: Samples = imagecodecs.jpeg8_decode(data, **options)
    return samples


def jpeg8_encode(samples: Samples, **options: Any) -> bytes:
    """Encode JPEG by libjpeg-turbo."""
    return bytes(imagecodecs.jpeg8_encode(samples, **options))


def jpegls_decode(data: bytes) -> Samples:
    """Decode JPEG-LS by CharLS."""
    samples: Samples = imagecodecs.jpegls_decode(data)
    return samples


def jpegls_encode(samples: Samples, **options: Any) -> bytes:
    """Encode JPEG-LS by CharLS."""
    return bytes(imagecodecs.jpegls_encode(samples, **options))


def jpeg2k_decode(data: bytes) -> Samples:
    """Decode JPEG 2000 by OpenJPEG."""
    samples: Samples = imagecodecs.jpeg2k_decode(data)
    return samples


def jpeg2k_encode(samples: Samples, **options: Any) -> bytes:
    """Encode JPEG 2000 by OpenJPEG."""
    return bytes(imagecodecs.jpeg2k_encode(samples, **options))


def htj2k_decode(data: bytes, **options: Any) -> Samples:
    """Decode HTJ2K by OpenJPH."""
    samples: Samples = imagecodecs.htj2k_decode(data, **options)
    return samples


def htj2k_encode(samples: Samples, **options: Any) -> bytes:
    """Encode HTJ2K by OpenJPH."""
    return bytes(imagecodecs.htj2k_encode(samples, **options))


def jpegxl_decode(data: bytes) -> Samples:
    """Decode JPEG XL by libjxl."""
    samples: Samples = imagecodecs.jpegxl_decode(data)
    return samples


def jpegxl_encode(samples: Samples, **options: Any) -> bytes:
    """Encode JPEG XL by libjxl."""
    return bytes(imagecodecs.jpegxl_encode(samples, **options))


def jpegxl_from_jpeg(data: bytes) -> bytes:
    """Recompress a JPEG bit stream as JPEG XL by libjxl."""
    return bytes(imagecodecs.jpegxl_encode_jpeg(data, numthreads=1))


def jpeg_from_jpegxl(data: bytes) -> bytes:
    """Return the JPEG bit stream that was recompressed as JPEG XL, by libjxl."""
    return bytes(imagecodecs.jpegxl_decode_jpeg(data, numthreads=1))


def dicomrle_decode(data: bytes, dtype: "np.dtype[Any]") -> bytes:
    """Decode a frame of RLE Lossless: planes of samples, in the byte order of `dtype`."""
    return bytes(imagecodecs.dicomrle_decode(data, dtype))


def packbits_encode(octets: Samples) -> bytes:
    """Encode bytes by PackBits, row by row."""
    return bytes(imagecodecs.packbits_encode(octets))


def png_decode(data: bytes) -> Samples:
    """Decode PNG by libpng."""
    samples: Samples = imagecodecs.png_decode(data)
    return samples
