"""The job that decodes an image file to native frames; runs in a worker.

PNG: one frame of 8 or 16 bits as in the file; 1, 2 and 4 bits become 8. GIF: each image of an animation is a frame, drawn over the images
before it. Palettes become RGB. Transparency is dropped; the colour of a transparent pixel is kept. A PNG with a grey colour type and a GIF
that has only grey pixels become MONOCHROME2.

Source: PS3.18 §10.5.2 and its notes; PS3.3 §C.7.6.3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gantry_renderer.codecs import png
from gantry_renderer.picture import images
from gantry_standard import errors

FILE, FRAMES = "image", "frames"


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Description of the decoded frames: interleaved unsigned samples in little endian.

    Attributes:
        samples: 1 (grey) or 3 (RGB).
        bits: of a sample, 8 or 16.
    """

    rows: int
    columns: int
    samples: int
    bits: int
    number_of_frames: int


def decode_image(media_type: str, directory: str, most_bytes: int) -> DecodedImage:
    """Decode the file FILE of a directory, and write the native frames one after another to the file FRAMES.

    Args:
        media_type: image/png or image/gif.
        most_bytes: largest size of all frames together.

    Raises:
        errors.BadRequest: the file is not of the media type, or is broken.
        errors.PayloadTooLarge: its frames exceed `most_bytes`.
        errors.UnsupportedMediaType: the media type is another.
    """
    decode = _DECODERS.get(media_type)
    if decode is None:
        raise errors.UnsupportedMediaType(f"{media_type} cannot be decoded; expected one of {', '.join(_DECODERS)}")
    return decode(Path(directory), most_bytes)


def _check_size(rows: int, columns: int, samples: int, bits: int, frames: int, most_bytes: int) -> None:
    size = rows * columns * samples * (bits // 8) * frames
    if size > most_bytes or rows > 0xFFFF or columns > 0xFFFF:
        raise errors.PayloadTooLarge(f"{frames} frames of {columns} x {rows} pixels are {size} bytes, expected at most {most_bytes}")


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_SAMPLES = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}


def _decode_png(directory: Path, most_bytes: int) -> DecodedImage:
    data = (directory / FILE).read_bytes()
    if data[:8] != _PNG_SIGNATURE or data[12:16] != b"IHDR" or len(data) < 33 or data[25] not in _PNG_SAMPLES:
        raise errors.BadRequest("the image/png file does not begin as PNG does")
    columns, rows = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    bits, samples = 16 if data[24] == 16 else 8, _PNG_SAMPLES[data[25]]
    _check_size(rows, columns, samples + 1, bits, 1, most_bytes)
    picture = png.decode(data)
    if picture.ndim == 3 and picture.shape[2] in (2, 4):  # alpha comes last
        picture = picture[:, :, : picture.shape[2] - 1]
    if picture.size != rows * columns * samples:
        raise errors.BadRequest("the image/png file does not hold what its header says")
    with (directory / FRAMES).open("wb") as frames:
        frames.write(np.ascontiguousarray(picture).astype(picture.dtype.newbyteorder("<")).tobytes())
    return DecodedImage(rows, columns, samples, bits, 1)


def _decode_gif(directory: Path, most_bytes: int) -> DecodedImage:
    return _write_gif(directory, most_bytes, is_grey=True) or _write_gif(directory, most_bytes, is_grey=False) or _no_frames()


def _write_gif(directory: Path, most_bytes: int, *, is_grey: bool) -> DecodedImage | None:
    """Write all frames as grey or as RGB; return None if `is_grey` and a pixel has colour."""
    number_of_frames, rows, columns = 0, 0, 0
    samples = 1 if is_grey else 3
    with (directory / FRAMES).open("wb") as frames:
        for picture in images.gif_frames(directory / FILE):
            rows, columns = picture.shape[:2]
            number_of_frames += 1
            _check_size(rows, columns, samples, 8, number_of_frames, most_bytes)
            if is_grey:
                if (picture != picture[:, :, :1]).any():
                    return None
                picture = picture[:, :, 0]
            frames.write(picture.tobytes())
    return DecodedImage(rows, columns, samples, 8, number_of_frames) if number_of_frames else None


def _no_frames() -> DecodedImage:
    raise errors.BadRequest("the image/gif file has no frames")


_DECODERS: dict[str, Callable[[Path, int], DecodedImage]] = {"image/png": _decode_png, "image/gif": _decode_gif}
