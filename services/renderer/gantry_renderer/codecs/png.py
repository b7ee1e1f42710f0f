"""PNG files, by libpng.

Source: PS3.18 §10.5.2.
"""

from gantry_renderer.codecs import library
from gantry_renderer.codecs.samples import Samples
from gantry_standard import errors


def decode(data: bytes) -> Samples:
    """Decode a PNG file: samples of 8 or 16 bits; shape (rows, columns) for grey, else the last axis has 2 to 4 samples, alpha last.

    Raises:
        errors.BadRequest: it is broken.
    """
    try:
        picture: Samples = library.png_decode(data)
    except (ValueError, RuntimeError, TypeError, MemoryError) as error:
        raise errors.BadRequest("the image/png file cannot be read") from error
    return picture
