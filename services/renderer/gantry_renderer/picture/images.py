"""Scale pictures, encode them in rendered media types, and read the frames of GIF files. The only module that imports PIL.

To add a rendered format, add a row to ENCODERS.

Source: PS3.18 §8.7.4.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from gantry_standard import errors

Picture = NDArray[np.uint8]
"""uint8, shape (rows, columns) for grey or (rows, columns, 3) for RGB."""

DEFAULT_QUALITY = 90
MAX_SIDE = 65_500
"""Largest width or height of an image, the limit of JPEG."""
MAX_PIXELS = 100_000_000


def scale(picture: Picture, width: int, height: int, box: tuple[float, float, float, float]) -> Picture:
    """Scale a part of a picture to exactly width x height.

    Args:
        box: left, top, right and bottom of the part in pixels, with fractions.
    """
    image = Image.fromarray(picture)
    # Averages to shrink, interpolates to enlarge; a large reduction begins with a whole factor
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0))


def rgb_from_ybr(picture: Picture) -> Picture:
    """Convert YBR_FULL to RGB (PS3.3 §C.7.6.3.1.2); the conversion of JFIF."""
    return np.asarray(Image.fromarray(picture, "YCbCr").convert("RGB"))


def _save(picture: Picture, form: str, **options: Any) -> bytes:
    with io.BytesIO() as out:
        Image.fromarray(picture).save(out, form, **options)
        return out.getvalue()


def _encode_jpeg(picture: Picture, quality: int) -> bytes:
    # At the default quality and above colour is not sub-sampled
    return _save(picture, "JPEG", quality=quality, subsampling=0 if quality >= DEFAULT_QUALITY else 2)


def _encode_png(picture: Picture, quality: int) -> bytes:
    return _save(picture, "PNG", compress_level=3)


def _encode_gif(picture: Picture, quality: int) -> bytes:
    with io.BytesIO() as out:
        image = Image.fromarray(picture)
        if image.mode == "RGB":
            image = image.quantize(256, Image.Quantize.MEDIANCUT)
        image.save(out, "GIF")
        return out.getvalue()


# PS3.18 Table 8.7.4-1: single frame
ENCODERS: dict[str, Callable[[Picture, int], bytes]] = {
    "image/jpeg": _encode_jpeg,
    "image/png": _encode_png,
    "image/gif": _encode_gif,
}


def encode(media_type: str, picture: Picture, quality: int) -> bytes:
    """Encode a picture.

    Args:
        quality: 1..100, for lossy types; 0 is DEFAULT_QUALITY.

    Raises:
        NotAcceptable: ENCODERS has no row for the media type.
    """
    encoder = ENCODERS.get(media_type)
    if encoder is None:
        raise errors.NotAcceptable(f"{media_type} cannot be rendered; available are {', '.join(ENCODERS)}")
    return encoder(picture, quality or DEFAULT_QUALITY)


def gif_frames(path: Path) -> Iterator[Picture]:
    """Yield the images of a GIF file in RGB, each drawn over the images before it.

    Raises:
        errors.BadRequest: the file is not a GIF file, or is broken.
        errors.PayloadTooLarge: an image has more than MAX_PIXELS pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=("GIF",)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise errors.PayloadTooLarge(f"the image/gif file has {image.width} x {image.height} pixels, at most {MAX_PIXELS}")
                for frame in ImageSequence.Iterator(image):
                    yield np.asarray(frame.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise errors.PayloadTooLarge("the image/gif file has too many pixels") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise errors.BadRequest("the image/gif file cannot be read") from error


def warm() -> None:
    """Load the plug-ins of Pillow, so that the first image does not wait for that."""
    Image.init()
