"""Codecs: how the bytes of one frame become samples, and samples bytes, in each transfer syntax.

To add a codec, add a row to CODECS. The only module that imports imagecodecs.

What the decoders give, whatever was encoded: colour by pixel (Planar Configuration 0); signed samples where Pixel
Representation is 1, sign extended from Bits Stored; RGB where the codec undoes a colour transform:
- lossy JPEG of YBR_FULL and YBR_FULL_422 gives RGB (every JPEG decoder converts, and up-samples, by itself);
- JPEG 2000 and HTJ2K of YBR_RCT and YBR_ICT, and JPEG XL of anything, give RGB;
- JPEG Lossless, JPEG-LS and RLE do not transform: YBR_FULL stays YBR_FULL;
- native YBR_FULL_422 is up-sampled to YBR_FULL.
`decoded_description` says so in attributes, from the attributes alone, before any frame is decoded.

Source: PS3.5 §8.1, §8.2, Annex A, Annex G; PS3.3 §C.7.6.3.
"""

import dataclasses
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from gantry_renderer.bitstreams import Head, read_jpeg_2000_head, read_jpeg_head
from gantry_standard import errors
from gantry_standard.scanned import PixelDescription

Samples = NDArray[Any]
"""Samples of one frame, shape (rows, columns) or (rows, columns, samples)."""

EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
FLOAT_TAG, DOUBLE_FLOAT_TAG = "7FE00008", "7FE00009"
MAX_FRAME_BYTES = 1 << 30
"""Largest decoded frame; more is not acceptable."""


@dataclass(frozen=True, slots=True)
class Codec:
    """A row: one transfer syntax.

    Attributes:
        name: as PS3.6 has it, shortened.
        decode: bytes of one frame to samples.
        rgb_from: photometric interpretations that come out of `decode` as RGB.
        encode: samples to bytes of one frame, without loss; None where there is no such encoder.
        encoded_rgb: Photometric Interpretation of RGB samples after `encode`.
        is_native: frames are plain values, little endian.
        codec: name of the codec in imagecodecs that must be in the installed build; "" where none is needed.
    """

    name: str
    decode: Callable[[bytes, PixelDescription], Samples]
    rgb_from: frozenset[str] = frozenset()
    encode: Callable[[Samples, PixelDescription], bytes] | None = None
    encoded_rgb: str = "RGB"
    is_native: bool = False
    codec: str = ""

    @property
    def is_available(self) -> bool:
        """Whether the installed build of imagecodecs has it."""
        return not self.codec or bool(getattr(getattr(imagecodecs, self.codec), "available", False))


def frame_bits(description: PixelDescription) -> int:
    """Return the bits of one native frame."""
    samples = 2 if is_subsampled(description) else description.samples_per_pixel or 1
    return description.rows * description.columns * samples * bits_allocated(description)


def is_subsampled(description: PixelDescription) -> bool:
    """Whether native pixels come as Y1 Y2 Cb Cr (PS3.3 §C.7.6.3.1.2)."""
    return description.photometric_interpretation in ("YBR_FULL_422", "YBR_PARTIAL_422")


def bits_allocated(description: PixelDescription) -> int:
    """Return Bits Allocated, which float pixel data may leave out."""
    if description.tag in (FLOAT_TAG, DOUBLE_FLOAT_TAG):
        return 32 if description.tag == FLOAT_TAG else 64
    return description.bits_allocated


def dtype_of(description: PixelDescription) -> np.dtype[Any]:
    """Return the type of decoded samples: uint8 for 1-bit pixels, little endian."""
    if description.tag in (FLOAT_TAG, DOUBLE_FLOAT_TAG):
        return np.dtype("<f4" if description.tag == FLOAT_TAG else "<f8")
    size = max(1, description.bits_allocated // 8)
    if size not in (1, 2, 4, 8) or description.bits_allocated not in (1, 8 * size):
        raise errors.NotAcceptable(f"Bits Allocated is {description.bits_allocated}; 1, 8, 16, 32 and 64 can be decoded")
    return np.dtype(f"<{'i' if description.pixel_representation else 'u'}{size}")


def _decode_native(data: bytes, description: PixelDescription) -> Samples:
    needed = (frame_bits(description) + 7) // 8
    if len(data) < needed:
        raise errors.NotAcceptable(f"frame has {len(data)} bytes; its attributes say {needed}")
    rows, columns, samples = description.rows, description.columns, description.samples_per_pixel or 1
    if description.bits_allocated == 1:
        bits = np.frombuffer(data, np.uint8, needed)
        return _shaped(np.unpackbits(bits, bitorder="little", count=rows * columns * samples), description)
    values: Samples = np.frombuffer(data, dtype_of(description), needed // dtype_of(description).itemsize)
    values = _stored_bits(values, description)
    return _upsampled(values, description) if is_subsampled(description) else _shaped(values, description)


def _shaped(values: Samples, description: PixelDescription) -> Samples:
    rows, columns, samples = description.rows, description.columns, description.samples_per_pixel or 1
    if samples == 1:
        return values.reshape(rows, columns)
    if description.planar_configuration == 1:
        return np.ascontiguousarray(np.moveaxis(values.reshape(samples, rows, columns), 0, -1))
    return values.reshape(rows, columns, samples)


def _upsampled(values: Samples, description: PixelDescription) -> Samples:
    pairs = values.reshape(-1, 4)
    pixels = np.empty((len(pairs), 2, 3), values.dtype)
    pixels[:, 0, 0], pixels[:, 1, 0] = pairs[:, 0], pairs[:, 1]
    pixels[:, :, 1:] = pairs[:, None, 2:]
    return pixels.reshape(description.rows, description.columns, 3)


def _stored_bits(values: Samples, description: PixelDescription) -> Samples:
    """Leave only the stored bits: PS3.5 §8.1.1 says nothing about the others (overlays once lay there)."""
    stored, allocated = description.bits_stored, description.bits_allocated
    if values.dtype.kind == "f" or not 0 < stored < allocated:
        return values
    unused_below = max(0, (description.high_bit or stored - 1) + 1 - stored)
    unused_above = max(0, allocated - stored - unused_below)
    if description.pixel_representation:
        signed: Samples = np.right_shift(np.left_shift(values, unused_above), unused_above + unused_below)
        return signed
    if unused_below:
        values = np.right_shift(values, unused_below)
    masked: Samples = np.bitwise_and(values, values.dtype.type((1 << stored) - 1))
    return masked


def _encode_native(samples: Samples, description: PixelDescription) -> bytes:
    if description.bits_allocated == 1:
        return np.packbits(samples.astype(np.uint8, copy=False).ravel(), bitorder="little").tobytes()
    return samples.astype(dtype_of(description), copy=False).tobytes()


def _decode_deflated(data: bytes, description: PixelDescription) -> Samples:
    needed = (frame_bits(description) + 7) // 8
    return _decode_native(zlib.decompressobj(-15).decompress(data, needed), description)


def _decode_rle(data: bytes, description: PixelDescription) -> Samples:
    if description.bits_allocated == 1:
        return _decode_native(bytes(imagecodecs.dicomrle_decode(data, "u1")), dataclasses.replace(description, planar_configuration=1))
    unsigned = np.dtype(f"<u{dtype_of(description).itemsize}")
    values = np.frombuffer(imagecodecs.dicomrle_decode(data, unsigned), unsigned).view(dtype_of(description))
    expected = description.rows * description.columns * (description.samples_per_pixel or 1)
    if values.size < expected:
        raise ValueError(f"{values.size} samples, expected {expected}")
    return _shaped(_stored_bits(values[:expected], description), dataclasses.replace(description, planar_configuration=1))


def _encode_rle(samples: Samples, description: PixelDescription) -> bytes:
    # PS3.5 §G.2: one segment per byte of a sample, most significant first, samples one after another
    planes = [samples] if samples.ndim == 2 else [samples[:, :, index] for index in range(samples.shape[2])]
    segments = []
    for plane in planes:
        octets = np.ascontiguousarray(plane).view(np.uint8).reshape(*plane.shape, -1)
        for byte in reversed(range(octets.shape[2])):
            segment = bytes(imagecodecs.packbits_encode(np.ascontiguousarray(octets[:, :, byte])))
            segments.append(segment + b"\0" * (len(segment) % 2))
    offsets, position = [], 64
    for segment in segments:
        offsets.append(position)
        position += len(segment)
    head = [len(segments), *offsets, *[0] * (15 - len(offsets))]
    return np.array(head, "<u4").tobytes() + b"".join(segments)


def _checked(head: Head | None, description: PixelDescription, kind: str) -> Head:
    if head is None:
        raise ValueError(f"no {kind} header found")
    found = (head.rows, head.columns, head.samples)
    # A stream may leave the number of rows to a later marker (DNL).
    expected = (description.rows if head.rows else 0, description.columns, description.samples_per_pixel or 1)
    if found != expected:
        raise ValueError(f"the bit stream has rows, columns, samples {found}, the attributes say {expected}")
    if description.bits_allocated > 1 and head.precision > description.bits_allocated:
        raise ValueError(f"the bit stream has {head.precision} bits, Bits Allocated is {description.bits_allocated}")
    return head


def _decode_jpeg(data: bytes, description: PixelDescription) -> Samples:
    head = _checked(read_jpeg_head(data), description, "JPEG")
    # Without a marker that names the colour space libjpeg takes three samples for YCbCr; the attributes know better.
    # Lossless JPEG has no colour transform at all.
    is_plain = head.is_reversible or (description.photometric_interpretation == "RGB" and not head.names_color_space)
    if head.samples == 3 and is_plain:
        return _conformed(imagecodecs.jpeg8_decode(data, colorspace="RGB", outcolorspace="RGB"), head, description)
    return _conformed(imagecodecs.jpeg8_decode(data), head, description)


def _decode_jpeg_ls(data: bytes, description: PixelDescription) -> Samples:
    head = _checked(read_jpeg_head(data), description, "JPEG-LS")
    return _conformed(imagecodecs.jpegls_decode(data), head, description)


def _decode_jpeg_2000(data: bytes, description: PixelDescription) -> Samples:
    head = _checked(read_jpeg_2000_head(data), description, "JPEG 2000")
    return _conformed(imagecodecs.jpeg2k_decode(data), head, description)


def _decode_htj2k(data: bytes, description: PixelDescription) -> Samples:
    head = _checked(read_jpeg_2000_head(data), description, "HTJ2K")
    # OpenJPH is fast, but wraps round where the 9-7 transform overshoots the range (0 becomes 255); OpenJPEG saturates.
    samples = imagecodecs.htj2k_decode(data, planar=False) if head.is_reversible else imagecodecs.jpeg2k_decode(data)
    return _conformed(samples, head, description)


def _decode_jpeg_xl(data: bytes, description: PixelDescription) -> Samples:
    samples = imagecodecs.jpegxl_decode(data)
    if samples.ndim == 3 and samples.shape[2] == 1:
        samples = samples[:, :, 0]
    head = Head(samples.shape[0], samples.shape[1], 1 if samples.ndim == 2 else samples.shape[2], samples.dtype.itemsize * 8)
    return _conformed(samples, _checked(head, description, "JPEG XL"), description)


def _conformed(samples: Samples, head: Head, description: PixelDescription) -> Samples:
    """Give decoded samples the type that the attributes say.

    JPEG, JPEG-LS and some JPEG 2000 streams carry signed samples as unsigned ones: the sign is then the highest bit of
    the lesser of Bits Stored and the stream's precision. Lossy overshoot beyond Bits Stored is cut, not wrapped round.
    """
    wanted = dtype_of(description)
    samples = np.ascontiguousarray(samples)
    stored = min(description.bits_stored or head.precision, head.precision)
    if description.pixel_representation:
        samples = samples.astype(wanted, copy=False)
        unused = wanted.itemsize * 8 - stored
        return samples if head.is_signed or not unused else np.right_shift(np.left_shift(samples, unused), unused)
    if head.is_signed:
        samples = np.bitwise_and(samples.astype(wanted, copy=False), wanted.type((1 << stored) - 1))
    elif stored < head.precision and not head.is_reversible:
        samples = np.minimum(samples, samples.dtype.type((1 << stored) - 1))
    return samples.astype(wanted, copy=False)


def _unsigned(samples: Samples) -> Samples:
    return np.ascontiguousarray(samples).view(np.dtype(f"u{samples.dtype.itemsize}"))


def _encode_jpeg_lossless(samples: Samples, description: PixelDescription) -> bytes:
    color: dict[str, Any] = {"colorspace": "RGB", "outcolorspace": "RGB"} if samples.ndim == 3 else {}
    return bytes(imagecodecs.jpeg8_encode(_unsigned(samples), lossless=True, predictor=1, bitspersample=8 * samples.itemsize, **color))


def _encode_jpeg_ls(samples: Samples, description: PixelDescription) -> bytes:
    # imagecodecs writes a SPIFF header before the frame header (FFF7); in DICOM it would only be in the way
    stream = bytes(imagecodecs.jpegls_encode(_unsigned(samples)))
    return b"\xff\xd8" + stream[stream.index(b"\xff\xf7") :]


def _encode_jpeg_2000(samples: Samples, description: PixelDescription) -> bytes:
    color = description.photometric_interpretation == "RGB"
    return bytes(
        imagecodecs.jpeg2k_encode(
            samples, level=0, reversible=True, codecformat="j2k", mct=color, bitspersample=description.bits_stored or None
        )
    )


def _encode_htj2k(samples: Samples, description: PixelDescription) -> bytes:
    return bytes(imagecodecs.htj2k_encode(samples, reversible=True, rgb=description.photometric_interpretation == "RGB", planar=False))


_YBR = frozenset(("YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420"))
_MCT = frozenset(("YBR_RCT", "YBR_ICT"))

# PS3.6 Table A-1; PS3.5 §8.2
CODECS: dict[str, Codec] = {
    "1.2.840.10008.1.2": Codec("Implicit VR Little Endian", _decode_native, is_native=True),
    "1.2.840.10008.1.2.1": Codec("Explicit VR Little Endian", _decode_native, encode=_encode_native, is_native=True),
    "1.2.840.10008.1.2.1.99": Codec("Deflated Explicit VR Little Endian", _decode_native, is_native=True),
    "1.2.840.10008.1.2.8.1": Codec("Deflated Image Frame", _decode_deflated),
    "1.2.840.10008.1.2.5": Codec("RLE Lossless", _decode_rle, encode=_encode_rle, codec="DICOMRLE"),
    "1.2.840.10008.1.2.4.50": Codec("JPEG Baseline", _decode_jpeg, rgb_from=_YBR, codec="JPEG8"),
    "1.2.840.10008.1.2.4.51": Codec("JPEG Extended", _decode_jpeg, rgb_from=_YBR, codec="JPEG8"),
    "1.2.840.10008.1.2.4.53": Codec("JPEG Spectral Selection", _decode_jpeg, rgb_from=_YBR, codec="JPEG8"),
    "1.2.840.10008.1.2.4.55": Codec("JPEG Full Progression", _decode_jpeg, rgb_from=_YBR, codec="JPEG8"),
    "1.2.840.10008.1.2.4.57": Codec("JPEG Lossless", _decode_jpeg, codec="JPEG8"),
    "1.2.840.10008.1.2.4.70": Codec("JPEG Lossless SV1", _decode_jpeg, encode=_encode_jpeg_lossless, codec="JPEG8"),
    "1.2.840.10008.1.2.4.80": Codec("JPEG-LS Lossless", _decode_jpeg_ls, encode=_encode_jpeg_ls, codec="JPEGLS"),
    "1.2.840.10008.1.2.4.81": Codec("JPEG-LS Near-lossless", _decode_jpeg_ls, codec="JPEGLS"),
    "1.2.840.10008.1.2.4.90": Codec(
        "JPEG 2000 Lossless", _decode_jpeg_2000, rgb_from=_MCT, encode=_encode_jpeg_2000, encoded_rgb="YBR_RCT", codec="JPEG2K"
    ),
    "1.2.840.10008.1.2.4.91": Codec("JPEG 2000", _decode_jpeg_2000, rgb_from=_MCT, codec="JPEG2K"),
    "1.2.840.10008.1.2.4.92": Codec("JPEG 2000 Part 2 Lossless", _decode_jpeg_2000, rgb_from=_MCT, codec="JPEG2K"),
    "1.2.840.10008.1.2.4.93": Codec("JPEG 2000 Part 2", _decode_jpeg_2000, rgb_from=_MCT, codec="JPEG2K"),
    "1.2.840.10008.1.2.4.201": Codec(
        "HTJ2K Lossless", _decode_htj2k, rgb_from=_MCT, encode=_encode_htj2k, encoded_rgb="YBR_RCT", codec="HTJ2K"
    ),
    "1.2.840.10008.1.2.4.202": Codec("HTJ2K Lossless RPCL", _decode_htj2k, rgb_from=_MCT, codec="HTJ2K"),
    "1.2.840.10008.1.2.4.203": Codec("HTJ2K", _decode_htj2k, rgb_from=_MCT, codec="HTJ2K"),
    "1.2.840.10008.1.2.4.110": Codec("JPEG XL Lossless", _decode_jpeg_xl, rgb_from=_YBR | {"XYB"}, codec="JPEGXL"),
    "1.2.840.10008.1.2.4.111": Codec("JPEG XL JPEG Recompression", _decode_jpeg_xl, rgb_from=_YBR | {"XYB"}, codec="JPEGXL"),
    "1.2.840.10008.1.2.4.112": Codec("JPEG XL", _decode_jpeg_xl, rgb_from=_YBR | {"XYB"}, codec="JPEGXL"),
}


def decode_png(data: bytes) -> NDArray[Any]:
    """Decode a PNG file: samples of 8 or 16 bits; shape (rows, columns) for grey, else the last axis has 2 to 4 samples, alpha last.

    Raises:
        errors.BadRequest: it is broken.
    """
    try:
        picture: NDArray[Any] = imagecodecs.png_decode(data)
    except (ValueError, RuntimeError, TypeError, MemoryError) as error:
        raise errors.BadRequest("the image/png file cannot be read") from error
    return picture


def decodes() -> list[str]:
    """Return the transfer syntaxes that this installation decodes."""
    return [uid for uid, codec in CODECS.items() if codec.is_available]


def encodes() -> list[str]:
    """Return the transfer syntaxes that this installation encodes to."""
    return [uid for uid, codec in CODECS.items() if codec.encode and codec.is_available]


def is_native(transfer_syntax_uid: str) -> bool:
    """Whether frames of a transfer syntax are plain values."""
    return transfer_syntax_uid in CODECS and CODECS[transfer_syntax_uid].is_native


def require_decodable(transfer_syntax_uid: str, description: PixelDescription) -> Codec:
    """Return the row of a source.

    Raises:
        NotAcceptable: there is no decoder, or the attributes do not describe an image that can be decoded.
    """
    codec = CODECS.get(transfer_syntax_uid)
    if codec is None or not codec.is_available:
        raise errors.NotAcceptable(f"pixel data in {transfer_syntax_uid} cannot be decoded; it is available as stored only")
    if not description.rows or not description.columns:
        raise errors.NotAcceptable("the instance has no Rows or Columns, so its pixel data cannot be decoded")
    if description.rows * description.columns * (description.samples_per_pixel or 1) * dtype_of(description).itemsize > MAX_FRAME_BYTES:
        raise errors.NotAcceptable(f"a decoded frame would pass {MAX_FRAME_BYTES} bytes; it is available as stored only")
    return codec


def require_encodable(transfer_syntax_uid: str, description: PixelDescription) -> Codec:
    """Return the row of a target for decoded pixels of `description`.

    Raises:
        NotAcceptable: there is no encoder for such pixels; the message says what there is.
    """
    codec = CODECS.get(transfer_syntax_uid)
    available = ", ".join(uid for uid in encodes() if _fits(uid, description))
    if codec is None or codec.encode is None or not codec.is_available or not _fits(transfer_syntax_uid, description):
        raise errors.NotAcceptable(f"pixel data cannot be encoded to {transfer_syntax_uid}; available are the stored syntax, {available}")
    return codec


def _fits(transfer_syntax_uid: str, description: PixelDescription) -> bool:
    if is_native(transfer_syntax_uid):
        return True
    is_plain = description.high_bit + 1 == description.bits_stored and description.samples_per_pixel in (1, 3)
    if description.tag in (FLOAT_TAG, DOUBLE_FLOAT_TAG) or not is_plain:
        return False
    return description.bits_allocated in ((8, 16, 32) if transfer_syntax_uid == "1.2.840.10008.1.2.5" else (8, 16))


def decoded_description(transfer_syntax_uid: str, description: PixelDescription) -> PixelDescription:
    """Return the attributes of frames after `decode`: colour by pixel, and RGB where the codec undoes a transform."""
    codec = CODECS[transfer_syntax_uid]
    interpretation = description.photometric_interpretation
    if description.samples_per_pixel == 3 and interpretation in codec.rgb_from:
        interpretation = "RGB"
    elif interpretation == "YBR_FULL_422" and (codec.is_native or codec.decode is _decode_deflated):
        interpretation = "YBR_FULL"
    return dataclasses.replace(description, photometric_interpretation=interpretation, planar_configuration=0)


def encoded_description(transfer_syntax_uid: str, description: PixelDescription) -> PixelDescription:
    """Return the attributes of frames after `encode`, from those of decoded frames."""
    interpretation = description.photometric_interpretation
    if interpretation == "RGB":
        interpretation = CODECS[transfer_syntax_uid].encoded_rgb
    return dataclasses.replace(description, photometric_interpretation=interpretation)


def decode(transfer_syntax_uid: str, data: bytes, description: PixelDescription) -> Samples:
    """Decode one frame.

    Args:
        data: bare bit stream, or native values in little endian from bit 0 on.
        description: as stored.

    Returns:
        Samples of `dtype_of(description)`; what they are, `decoded_description` says.

    Raises:
        NotAcceptable: the bytes cannot be decoded.
    """
    codec = require_decodable(transfer_syntax_uid, description)
    try:
        samples = codec.decode(data, description)
    except (ValueError, RuntimeError, TypeError, IndexError, OverflowError, MemoryError, NotImplementedError, zlib.error) as error:
        raise errors.NotAcceptable(f"a frame cannot be decoded from {codec.name} ({transfer_syntax_uid}): {error}") from error
    expected = (description.rows, description.columns, *([description.samples_per_pixel] if description.samples_per_pixel > 1 else []))
    if samples.shape != tuple(expected):
        raise errors.NotAcceptable(f"a decoded frame has the shape {samples.shape}, its attributes say {tuple(expected)}")
    return samples


def encode(transfer_syntax_uid: str, samples: Samples, description: PixelDescription) -> bytes:
    """Encode one frame without loss; `description` is that of the decoded frame.

    Raises:
        NotAcceptable: there is no encoder for such samples.
    """
    codec = require_encodable(transfer_syntax_uid, description)
    try:
        return codec.encode(samples, description)  # type: ignore[misc]  # require_encodable has checked it
    except (ValueError, RuntimeError, TypeError, NotImplementedError) as error:
        raise errors.NotAcceptable(f"a frame cannot be encoded to {codec.name} ({transfer_syntax_uid}): {error}") from error


def warm() -> None:
    """Load every codec, so that the first frame does not wait for it."""
    decodes()
