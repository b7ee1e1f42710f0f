"""Codecs: how the bytes of one frame become samples, and samples bytes, in each transfer syntax.

To add a codec, add a row to CODECS. The only module that imports imagecodecs.

Lossless encoders keep every allocated bit, those above Bits Stored included (overlays once lay there): what is encoded and decoded again is
the same. A row with a `loss` is made for those who name its transfer syntax, never by default.

What the decoders give, whatever was encoded: colour by pixel (Planar Configuration 0); signed samples where Pixel
Representation is 1, sign extended from Bits Stored; RGB where the codec undoes a colour transform:
- lossy JPEG of YBR_FULL and YBR_FULL_422 gives RGB (every JPEG decoder converts, and up-samples, by itself);
- JPEG 2000 and HTJ2K of YBR_RCT and YBR_ICT, and JPEG XL of anything, give RGB;
- JPEG Lossless, JPEG-LS and RLE do not transform: YBR_FULL stays YBR_FULL;
- native YBR_FULL_422 is up-sampled to YBR_FULL; YBR_PARTIAL_422 has no such form and is left alone.
`decoded_description` says so in attributes, from the attributes alone, before any frame is decoded.

Source: PS3.5 §8.1, §8.2, Annex A, Annex G; PS3.3 §C.7.6.3.
"""

import dataclasses
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from gantry_standard import errors
from gantry_standard.bitstreams.heads import BytesSource, read_jpeg_2000_head, read_jpeg_head
from gantry_standard.dicom.limits import ScanFailure
from gantry_standard.dicom.scanned import PixelDescription

Samples = NDArray[Any]
"""Samples of one frame, shape (rows, columns) or (rows, columns, samples)."""

EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
FLOAT_TAG, DOUBLE_FLOAT_TAG = "7FE00008", "7FE00009"
MAX_FRAME_BYTES = 1 << 30
"""Largest decoded frame; more is not acceptable."""


class Head(Protocol):
    """What the head of a bit stream says of its samples."""

    @property
    def rows(self) -> int:
        """0 where a later marker says it."""
        ...

    @property
    def columns(self) -> int:
        """Samples of a row."""
        ...

    @property
    def samples(self) -> int:
        """Samples of a pixel."""
        ...

    @property
    def precision(self) -> int:
        """Bits of a sample."""
        ...

    @property
    def is_signed(self) -> bool:
        """Whether samples are two's complement."""
        ...

    @property
    def is_reversible(self) -> bool:
        """Whether decoding gives exactly the samples that were encoded."""
        ...


@dataclass(frozen=True, slots=True)
class DecodedHead:
    """The same, told by decoded samples."""

    rows: int
    columns: int
    samples: int
    precision: int
    is_signed: bool = False
    is_reversible: bool = True


@dataclass(frozen=True, slots=True)
class Takes:
    """Which decoded pixels an encoder takes (PS3.5 §8.2.1 to §8.2.16 have a table each).

    Attributes:
        allocated, stored: values of Bits Allocated and Bits Stored.
        signed: Pixel Representation may be 1.
        interpretations: Photometric Interpretations; empty for any.
    """

    allocated: frozenset[int]
    stored: range
    interpretations: frozenset[str] = frozenset()
    signed: bool = True

    def fits(self, description: PixelDescription) -> bool:
        """Say whether the encoder takes such pixels."""
        if description.tag in (FLOAT_TAG, DOUBLE_FLOAT_TAG) or description.samples_per_pixel not in (1, 3):
            return False
        if description.pixel_representation and not self.signed:
            return False
        if self.interpretations and description.photometric_interpretation not in self.interpretations:
            return False
        return description.bits_allocated in self.allocated and description.bits_stored in self.stored


@dataclass(frozen=True, slots=True)
class Codec:
    """A row: one transfer syntax.

    Attributes:
        name: as PS3.6 has it, shortened.
        decode: bytes of one frame to samples.
        rgb_from: photometric interpretations that come out of `decode` as RGB.
        encode: samples to bytes of one frame; None where there is no encoder.
        takes: what the encoder can be given; one of them must fit.
        renamed: Photometric Interpretation of decoded samples to that of encoded ones, where it is another.
        loss: Lossy Image Compression Method of `encode` (PS3.3 §C.7.6.1.1.5.1); "" where it keeps every bit.
        is_native: frames are plain values, little endian.
        is_bytewise: frames hold every allocated bit as it was.
        codec: name of the codec in imagecodecs that must be in the installed build; "" where none is needed.
    """

    name: str
    decode: Callable[[bytes, PixelDescription], Samples]
    rgb_from: frozenset[str] = frozenset()
    encode: Callable[[Samples, PixelDescription], bytes] | None = None
    takes: tuple[Takes, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    loss: str = ""
    is_native: bool = False
    is_bytewise: bool = False
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


def _check_head(head: Head, description: PixelDescription) -> None:
    """Check that a bit stream has the size that its attributes say, before memory is taken for its samples.

    Raises:
        ValueError: it has another size, or samples that do not fit into Bits Allocated.
    """
    stated = (head.rows, head.columns, head.samples)
    # A stream may leave the number of rows to a later marker (DNL).
    expected = (description.rows if head.rows else 0, description.columns, description.samples_per_pixel or 1)
    if stated != expected:
        raise ValueError(f"the bit stream has rows, columns, samples {stated}, the attributes say {expected}")
    if description.bits_allocated > 1 and head.precision > description.bits_allocated:
        raise ValueError(f"the bit stream has {head.precision} bits, Bits Allocated is {description.bits_allocated}")


def _decode_jpeg(data: bytes, description: PixelDescription) -> Samples:
    head = read_jpeg_head(BytesSource(data))
    _check_head(head, description)
    # Without a marker that names the colour space libjpeg takes three samples for YCbCr; the attributes know better.
    # Lossless JPEG has no colour transform at all.
    is_plain = head.is_reversible or (description.photometric_interpretation == "RGB" and not head.names_color_space)
    if head.samples == 3 and is_plain:
        return _conformed(imagecodecs.jpeg8_decode(data, colorspace="RGB", outcolorspace="RGB"), head, description)
    if description.photometric_interpretation in _PARTIAL_RANGE:
        return rgb_from_partial(imagecodecs.jpeg8_decode(data, colorspace="YCBCR", outcolorspace="YCBCR"))
    return _conformed(imagecodecs.jpeg8_decode(data), head, description)


def _decode_jpeg_ls(data: bytes, description: PixelDescription) -> Samples:
    head = read_jpeg_head(BytesSource(data))
    _check_head(head, description)
    return _conformed(imagecodecs.jpegls_decode(data), head, description)


def _decode_jpeg_2000(data: bytes, description: PixelDescription) -> Samples:
    head = read_jpeg_2000_head(BytesSource(data))
    _check_head(head, description)
    return _conformed(imagecodecs.jpeg2k_decode(data), head, description)


def _decode_htj2k(data: bytes, description: PixelDescription) -> Samples:
    head = read_jpeg_2000_head(BytesSource(data))
    _check_head(head, description)
    # OpenJPH is fast, but wraps round where the 9-7 transform overshoots the range (0 becomes 255); OpenJPEG saturates.
    samples = imagecodecs.htj2k_decode(data, planar=False) if head.is_reversible else imagecodecs.jpeg2k_decode(data)
    return _conformed(samples, head, description)


def _decode_jpeg_xl(data: bytes, description: PixelDescription) -> Samples:
    samples = imagecodecs.jpegxl_decode(data)
    if samples.ndim == 3 and samples.shape[2] == 1:
        samples = samples[:, :, 0]
    head = DecodedHead(samples.shape[0], samples.shape[1], 1 if samples.ndim == 2 else samples.shape[2], samples.dtype.itemsize * 8)
    _check_head(head, description)
    return _conformed(samples, head, description)


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


def _precision(samples: Samples, description: PixelDescription) -> int:
    """Return Bits Stored, or Bits Allocated where a value needs more than that."""
    stored = description.bits_stored
    if not 0 < stored < description.bits_allocated:
        return description.bits_allocated
    low, high = (-(1 << (stored - 1)), 1 << (stored - 1)) if description.pixel_representation else (0, 1 << stored)
    return stored if samples.min(initial=0) >= low and samples.max(initial=0) < high else description.bits_allocated


def _is_rgb(description: PixelDescription) -> bool:
    return description.photometric_interpretation == "RGB"


def _encode_deflated(samples: Samples, description: PixelDescription) -> bytes:
    compressor = zlib.compressobj(DEFLATE_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(_encode_native(samples, description)) + compressor.flush()


def _encode_jpeg_lossless(samples: Samples, description: PixelDescription) -> bytes:
    color: dict[str, Any] = {"colorspace": "RGB", "outcolorspace": "RGB"} if samples.ndim == 3 else {}
    # Signed values are sent as all their allocated bits, so that a decoder that knows nothing of signs gives them back
    is_narrow = samples.itemsize == 2 and not description.pixel_representation
    bits = max(9, _precision(samples, description)) if is_narrow else 8 * samples.itemsize
    return bytes(imagecodecs.jpeg8_encode(_unsigned(samples), lossless=True, predictor=1, bitspersample=bits, **color))


def _encode_jpeg_lossy(samples: Samples, description: PixelDescription) -> bytes:
    if samples.itemsize == 2:
        return bytes(imagecodecs.jpeg8_encode(samples, level=JPEG_QUALITY, bitspersample=12))
    if samples.ndim == 2:
        return bytes(imagecodecs.jpeg8_encode(samples, level=JPEG_QUALITY))
    source = "RGB" if _is_rgb(description) else "YCBCR"
    return bytes(imagecodecs.jpeg8_encode(samples, level=JPEG_QUALITY, colorspace=source, outcolorspace="YCBCR", subsampling="422"))


def _encode_jpeg_ls(samples: Samples, description: PixelDescription, near: int = 0) -> bytes:
    # imagecodecs writes a SPIFF header before the frame header (FFF7); in DICOM it would only be in the way
    stream = bytes(imagecodecs.jpegls_encode(_unsigned(samples), level=near))
    return b"\xff\xd8" + stream[stream.index(b"\xff\xf7") :]


def _encode_jpeg_ls_near(samples: Samples, description: PixelDescription) -> bytes:
    # The stream knows all allocated bits only: without this a decoder could give a value that Bits Stored cannot hold
    if description.bits_stored < description.bits_allocated:
        samples = np.minimum(samples, samples.dtype.type((1 << description.bits_stored) - 1 - NEAR))
    return _encode_jpeg_ls(samples, description, NEAR)


def _encode_jpeg_2000(samples: Samples, description: PixelDescription) -> bytes:
    bits = _precision(samples, description)
    return bytes(
        imagecodecs.jpeg2k_encode(samples, level=0, reversible=True, codecformat="j2k", mct=_is_rgb(description), bitspersample=bits)
    )


def _encode_jpeg_2000_lossy(samples: Samples, description: PixelDescription) -> bytes:
    bits = _precision(samples, description)
    return bytes(
        imagecodecs.jpeg2k_encode(
            samples, level=JPEG_2000_PSNR_DB, reversible=False, codecformat="j2k", mct=_is_rgb(description), bitspersample=bits
        )
    )


def _encode_htj2k(samples: Samples, description: PixelDescription) -> bytes:
    return bytes(imagecodecs.htj2k_encode(samples, reversible=True, rgb=_is_rgb(description), planar=False))


def _encode_htj2k_rpcl(samples: Samples, description: PixelDescription) -> bytes:
    # PS3.5 §10.18: progression RPCL (the encoder's only one), TLM present, a base resolution of at most 64; a tile-part per resolution
    levels = max(5, (max(samples.shape[:2]) - 1).bit_length() - 6)
    return bytes(
        imagecodecs.htj2k_encode(
            samples, reversible=True, rgb=_is_rgb(description), planar=False, tlm=True, tilepart=1, resolutions=min(levels, 32)
        )
    )


def _encode_htj2k_lossy(samples: Samples, description: PixelDescription) -> bytes:
    step = HTJ2K_STEP * 2.0 ** (description.bits_stored - description.bits_allocated)
    stream = bytes(imagecodecs.htj2k_encode(samples, level=step, reversible=False, rgb=_is_rgb(description), planar=False))
    # Where the transform overshoots the range some decoders wrap round; such a frame is sent without loss, as this syntax allows
    decoded = imagecodecs.htj2k_decode(stream, planar=False)
    range_of = 1 << description.bits_stored
    low, high = (-range_of // 2, range_of // 2) if description.pixel_representation else (0, range_of)
    is_within = decoded.min() >= low and decoded.max() < high
    if is_within and np.abs(decoded.astype(np.int64) - samples).max() * 32 <= range_of:
        return stream
    return _encode_htj2k(samples, description)


def _encode_jpeg_xl(samples: Samples, description: PixelDescription) -> bytes:
    samples, bits = _of_precision(samples, description)
    return bytes(imagecodecs.jpegxl_encode(samples, lossless=True, effort=1, bitspersample=bits, numthreads=1))


def _encode_jpeg_xl_lossy(samples: Samples, description: PixelDescription) -> bytes:
    samples, bits = _of_precision(samples, description)
    return bytes(imagecodecs.jpegxl_encode(samples, distance=JPEG_XL_DISTANCE, effort=3, bitspersample=bits, numthreads=1))


def _of_precision(samples: Samples, description: PixelDescription) -> tuple[Samples, int]:
    """Return the samples and their precision; up to 8 bits in bytes, as libjxl takes them."""
    bits = _precision(samples, description)
    return (samples.astype(np.uint8, copy=False) if bits <= 8 else samples), bits


DEFLATE_LEVEL = 6

# What the lossy encoders aim at; a change of one changes what is sent for the same request, so FORM of derivation.py must change too
JPEG_QUALITY = 90
NEAR = 2
"""Greatest error of JPEG-LS near-lossless, in stored values."""
JPEG_2000_PSNR_DB = 60
HTJ2K_STEP = 1.6e-3
"""Quantization step of HTJ2K, as a share of the range of Bits Stored."""
JPEG_XL_DISTANCE = 0.1

_PARTIAL_RANGE = frozenset(("YBR_PARTIAL_422", "YBR_PARTIAL_420"))
_YBR = frozenset(("YBR_FULL", "YBR_FULL_422")) | _PARTIAL_RANGE
_MCT = frozenset(("YBR_RCT", "YBR_ICT"))
_LOSSY_XL = frozenset(("1.2.840.10008.1.2.4.111",))
_XL = _YBR | {"XYB"}

_GREY = frozenset(("MONOCHROME1", "MONOCHROME2"))
_INDEXED = _GREY | {"PALETTE COLOR"}
_COLOR = frozenset(("RGB", "YBR_FULL"))
_BITS_8, _BITS_16, _BITS_32 = frozenset((8,)), frozenset((8, 16)), frozenset((8, 16, 32))
_TO_16 = range(1, 17)
_TO_RCT, _TO_ICT = (("RGB", "YBR_RCT"),), (("RGB", "YBR_ICT"),)
_TO_422 = (("RGB", "YBR_FULL_422"), ("YBR_FULL", "YBR_FULL_422"))
_JPEG_2000_TAKES = (Takes(_BITS_16, _TO_16, _INDEXED), Takes(_BITS_16, _TO_16, _COLOR, signed=False))
_JPEG_LOSSLESS_TAKES = _JPEG_2000_TAKES
_JPEG_LS_TAKES = (
    Takes(_BITS_16, range(2, 17), _INDEXED),
    Takes(_BITS_16, range(2, 17), frozenset(("RGB",)), signed=False),
    Takes(_BITS_8, range(2, 9), frozenset(("YBR_FULL",)), signed=False),
)
_PLAIN_8 = Takes(_BITS_8, range(8, 9), _GREY | _COLOR, signed=False)

# PS3.6 Table A-1; PS3.5 §8.2
CODECS: dict[str, Codec] = {
    "1.2.840.10008.1.2": Codec("Implicit VR Little Endian", _decode_native, is_native=True, is_bytewise=True),
    "1.2.840.10008.1.2.1": Codec("Explicit VR Little Endian", _decode_native, encode=_encode_native, is_native=True, is_bytewise=True),
    "1.2.840.10008.1.2.1.99": Codec("Deflated Explicit VR Little Endian", _decode_native, is_native=True, is_bytewise=True),
    "1.2.840.10008.1.2.8.1": Codec(
        "Deflated Image Frame",
        _decode_deflated,
        encode=_encode_deflated,
        takes=(Takes(frozenset((1, 8, 16, 32, 64)), range(1, 65)),),
        is_bytewise=True,
    ),
    "1.2.840.10008.1.2.5": Codec(
        "RLE Lossless",
        _decode_rle,
        encode=_encode_rle,
        takes=(Takes(_BITS_32, range(1, 33)),),
        is_bytewise=True,
        codec="DICOMRLE",
    ),
    "1.2.840.10008.1.2.4.50": Codec(
        "JPEG Baseline",
        _decode_jpeg,
        rgb_from=_YBR,
        encode=_encode_jpeg_lossy,
        takes=(_PLAIN_8,),
        renamed=_TO_422,
        loss="ISO_10918_1",
        codec="JPEG8",
    ),
    "1.2.840.10008.1.2.4.51": Codec(
        "JPEG Extended",
        _decode_jpeg,
        rgb_from=_YBR,
        encode=_encode_jpeg_lossy,
        takes=(Takes(_BITS_8, range(8, 9), _GREY, signed=False), Takes(frozenset((16,)), range(12, 13), _GREY, signed=False)),
        loss="ISO_10918_1",
        codec="JPEG8",
    ),
    "1.2.840.10008.1.2.4.53": Codec("JPEG Spectral Selection", _decode_jpeg, rgb_from=_YBR, codec="JPEG8"),
    "1.2.840.10008.1.2.4.55": Codec("JPEG Full Progression", _decode_jpeg, rgb_from=_YBR, codec="JPEG8"),
    "1.2.840.10008.1.2.4.57": Codec("JPEG Lossless", _decode_jpeg, encode=_encode_jpeg_lossless, takes=_JPEG_LOSSLESS_TAKES, codec="JPEG8"),
    "1.2.840.10008.1.2.4.70": Codec(
        "JPEG Lossless SV1", _decode_jpeg, encode=_encode_jpeg_lossless, takes=_JPEG_LOSSLESS_TAKES, codec="JPEG8"
    ),
    "1.2.840.10008.1.2.4.80": Codec("JPEG-LS Lossless", _decode_jpeg_ls, encode=_encode_jpeg_ls, takes=_JPEG_LS_TAKES, codec="JPEGLS"),
    "1.2.840.10008.1.2.4.81": Codec(
        "JPEG-LS Near-lossless",
        _decode_jpeg_ls,
        encode=_encode_jpeg_ls_near,
        takes=(
            Takes(_BITS_16, range(6, 17), _GREY | {"RGB"}, signed=False),
            Takes(_BITS_8, range(6, 9), frozenset(("YBR_FULL",)), signed=False),
        ),
        loss="ISO_14495_1",
        codec="JPEGLS",
    ),
    "1.2.840.10008.1.2.4.90": Codec(
        "JPEG 2000 Lossless",
        _decode_jpeg_2000,
        rgb_from=_MCT,
        encode=_encode_jpeg_2000,
        takes=_JPEG_2000_TAKES,
        renamed=_TO_RCT,
        codec="JPEG2K",
    ),
    "1.2.840.10008.1.2.4.91": Codec(
        "JPEG 2000",
        _decode_jpeg_2000,
        rgb_from=_MCT,
        encode=_encode_jpeg_2000_lossy,
        takes=(Takes(_BITS_16, range(8, 17), _GREY), Takes(_BITS_16, range(8, 17), _COLOR, signed=False)),
        renamed=_TO_ICT,
        loss="ISO_15444_1",
        codec="JPEG2K",
    ),
    "1.2.840.10008.1.2.4.92": Codec("JPEG 2000 Part 2 Lossless", _decode_jpeg_2000, rgb_from=_MCT, codec="JPEG2K"),
    "1.2.840.10008.1.2.4.93": Codec("JPEG 2000 Part 2", _decode_jpeg_2000, rgb_from=_MCT, codec="JPEG2K"),
    "1.2.840.10008.1.2.4.201": Codec(
        "HTJ2K Lossless", _decode_htj2k, rgb_from=_MCT, encode=_encode_htj2k, takes=_JPEG_2000_TAKES, renamed=_TO_RCT, codec="HTJ2K"
    ),
    "1.2.840.10008.1.2.4.202": Codec(
        "HTJ2K Lossless RPCL",
        _decode_htj2k,
        rgb_from=_MCT,
        encode=_encode_htj2k_rpcl,
        takes=_JPEG_2000_TAKES,
        renamed=_TO_RCT,
        codec="HTJ2K",
    ),
    # A frame of colour may turn out reversible, and YBR_ICT would then be wrong: grey only
    "1.2.840.10008.1.2.4.203": Codec(
        "HTJ2K",
        _decode_htj2k,
        rgb_from=_MCT,
        encode=_encode_htj2k_lossy,
        takes=(Takes(_BITS_16, range(8, 17), _GREY),),
        loss="ISO_15444_15",
        codec="HTJ2K",
    ),
    "1.2.840.10008.1.2.4.110": Codec(
        "JPEG XL Lossless",
        _decode_jpeg_xl,
        rgb_from=_XL,
        encode=_encode_jpeg_xl,
        takes=(Takes(_BITS_16, _TO_16, _GREY | {"RGB"}, signed=False),),
        codec="JPEGXL",
    ),
    "1.2.840.10008.1.2.4.111": Codec("JPEG XL JPEG Recompression", _decode_jpeg_xl, rgb_from=_XL, codec="JPEGXL"),
    "1.2.840.10008.1.2.4.112": Codec(
        "JPEG XL",
        _decode_jpeg_xl,
        rgb_from=_XL,
        encode=_encode_jpeg_xl_lossy,
        takes=(Takes(_BITS_16, range(8, 17), _GREY | {"RGB"}, signed=False),),
        renamed=(("RGB", "XYB"),),
        loss="ISO_18181_1",
        codec="JPEGXL",
    ),
}

# Bit streams that become others and keep what they hold: from, to -> how. No pixel is decoded; attributes stay (PS3.5 §8.2.15)
REWRITES: dict[tuple[str, str], Callable[[bytes], bytes]] = {
    ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.111"): lambda data: bytes(imagecodecs.jpegxl_encode_jpeg(data, numthreads=1)),
    ("1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.50"): lambda data: bytes(imagecodecs.jpegxl_decode_jpeg(data, numthreads=1)),
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
    """Return the transfer syntaxes that this installation encodes to, those included that some bit stream can be rewritten to."""
    rewritten = {target for _, target in REWRITES}
    return [uid for uid, codec in CODECS.items() if (codec.encode or uid in rewritten) and codec.is_available]


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
    if description.photometric_interpretation in _PARTIAL_RANGE:
        raise errors.NotAcceptable(f"{description.photometric_interpretation} cannot be encoded; it is available as stored only")
    if codec is None or codec.encode is None or not codec.is_available or not _fits(transfer_syntax_uid, description):
        raise errors.NotAcceptable(f"pixel data cannot be encoded to {transfer_syntax_uid}; available are the stored syntax, {available}")
    return codec


def _fits(transfer_syntax_uid: str, description: PixelDescription) -> bool:
    codec = CODECS[transfer_syntax_uid]
    if codec.is_native:
        return True
    is_plain = codec.is_bytewise or description.high_bit + 1 == description.bits_stored
    return is_plain and any(takes.fits(description) for takes in codec.takes)


def decoded_description(transfer_syntax_uid: str, description: PixelDescription) -> PixelDescription:
    """Return the attributes of frames after `decode`: colour by pixel, and RGB where the codec undoes a transform."""
    codec = CODECS[transfer_syntax_uid]
    interpretation = description.photometric_interpretation
    if description.samples_per_pixel == 3 and interpretation in codec.rgb_from:
        interpretation = "RGB"
    elif interpretation == "YBR_FULL_422" and codec.is_bytewise:
        interpretation = "YBR_FULL"
    return dataclasses.replace(description, photometric_interpretation=interpretation, planar_configuration=0)


def encoded_description(transfer_syntax_uid: str, description: PixelDescription) -> PixelDescription:
    """Return the attributes of frames after `encode`, from those of decoded frames."""
    renamed = dict(CODECS[transfer_syntax_uid].renamed)
    interpretation = renamed.get(description.photometric_interpretation, description.photometric_interpretation)
    return dataclasses.replace(description, photometric_interpretation=interpretation)


def decode(transfer_syntax_uid: str, data: bytes, description: PixelDescription, *, keeps_bits: bool = False) -> Samples:
    """Decode one frame.

    Args:
        data: bare bit stream, or native values in little endian from bit 0 on.
        description: as stored.
        keeps_bits: leave bits outside of Bits Stored as they are, where the transfer syntax holds them.

    Returns:
        Samples of `dtype_of(description)`; what they are, `decoded_description` says.

    Raises:
        NotAcceptable: the bytes cannot be decoded.
    """
    codec = require_decodable(transfer_syntax_uid, description)
    if keeps_bits and codec.is_bytewise:
        bits = bits_allocated(description)
        description = dataclasses.replace(description, bits_stored=bits, high_bit=bits - 1)
    try:
        samples = codec.decode(data, description)
    except (
        ValueError,
        RuntimeError,
        TypeError,
        IndexError,
        OverflowError,
        MemoryError,
        NotImplementedError,
        zlib.error,
        ScanFailure,
    ) as error:
        raise errors.NotAcceptable(f"a frame cannot be decoded from {codec.name} ({transfer_syntax_uid}): {error}") from error
    expected = (description.rows, description.columns, *([description.samples_per_pixel] if description.samples_per_pixel > 1 else []))
    if samples.shape != tuple(expected):
        raise errors.NotAcceptable(f"a decoded frame has the shape {samples.shape}, its attributes say {tuple(expected)}")
    return samples


def encode(transfer_syntax_uid: str, samples: Samples, description: PixelDescription) -> bytes:
    """Encode one frame, without loss where the row has none; `description` is that of the decoded frame.

    Raises:
        NotAcceptable: there is no encoder for such samples.
    """
    codec = require_encodable(transfer_syntax_uid, description)
    try:
        return codec.encode(samples, description)  # type: ignore[misc]  # require_encodable has checked it
    except (ValueError, RuntimeError, TypeError, NotImplementedError) as error:
        raise errors.NotAcceptable(f"a frame cannot be encoded to {codec.name} ({transfer_syntax_uid}): {error}") from error


def rewrite(transfer_syntax_uid: str, data: bytes, target_uid: str) -> bytes:
    """Return a bit stream as another one that holds the same, by one of `REWRITES`.

    Raises:
        NotAcceptable: it cannot be rewritten.
    """
    try:
        return REWRITES[transfer_syntax_uid, target_uid](data)
    except (ValueError, RuntimeError) as error:
        raise errors.NotAcceptable(f"a frame cannot be rewritten from {transfer_syntax_uid} to {target_uid}: {error}") from error


_PARTIAL_MATRIX = np.array([[1.1644, 0.0, 1.5960], [1.1644, -0.3918, -0.8130], [1.1644, 2.0172, 0.0]])


def rgb_from_partial(picture: Samples) -> Samples:
    """Return 8-bit RGB of YBR_PARTIAL samples: luminance 16 to 235, chrominance 16 to 240 (PS3.3 §C.7.6.3.1.2)."""
    values = (picture.astype(np.float64) - (16, 128, 128)) @ _PARTIAL_MATRIX.T
    rgb: Samples = np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)
    return rgb


def method_of_loss(transfer_syntax_uid: str, data: bytes) -> str:
    """Return the Lossy Image Compression Method by which a bit stream has lost something, as far as its head tells; else ""."""
    codec = CODECS.get(transfer_syntax_uid)
    if codec is None or codec.is_bytewise:
        return ""
    if codec.decode is _decode_jpeg_xl:
        # The lossy form of JPEG XL does not show; recompressed JPEG is as lossy as that was
        return "ISO_18181_1" if transfer_syntax_uid in _LOSSY_XL else ""
    is_jpeg = codec.decode in (_decode_jpeg, _decode_jpeg_ls)
    try:
        head: Head = read_jpeg_head(BytesSource(data)) if is_jpeg else read_jpeg_2000_head(BytesSource(data))
    except ScanFailure:
        return ""
    if head.is_reversible:
        return ""
    if codec.decode is _decode_jpeg_ls:
        return "ISO_14495_1"
    return "ISO_10918_1" if is_jpeg else "ISO_15444_15" if codec.decode is _decode_htj2k else "ISO_15444_1"


def warm() -> None:
    """Load every codec, so that the first frame does not wait for it."""
    decodes()
