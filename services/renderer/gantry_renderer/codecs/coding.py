"""Decode and encode the frames of every transfer syntax, by the rows of `table.CODECS`.

Source: PS3.5 §8.2; PS3.18 §8.7.3.5.
"""

import dataclasses

from gantry_renderer.codecs.samples import PARTIAL_RANGE, Samples, bits_allocated, dtype_of
from gantry_renderer.codecs.table import CODECS, REWRITES, Codec
from gantry_standard import errors
from gantry_standard.dicom.limits import ScanFailure
from gantry_standard.dicom.scanned import PixelDescription

MAX_FRAME_BYTES = 1 << 30
"""Largest decoded frame; more is not acceptable."""


def decodes() -> list[str]:
    """Return the UIDs of the transfer syntaxes that this installation can decode."""
    return [uid for uid, codec in CODECS.items() if codec.is_available]


def encodes() -> list[str]:
    """Return the UIDs of the transfer syntaxes that this installation can encode, or can make by rewriting another bit stream."""
    rewritten = {target for _, target in REWRITES}
    return [uid for uid, codec in CODECS.items() if (codec.encode or uid in rewritten) and codec.is_available]


def is_native(transfer_syntax_uid: str) -> bool:
    """Whether frames of a transfer syntax are uncompressed values."""
    return transfer_syntax_uid in CODECS and CODECS[transfer_syntax_uid].is_native


def require_decodable(transfer_syntax_uid: str, description: PixelDescription) -> Codec:
    """Return the row of the transfer syntax of stored frames.

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
    """Return the row of the transfer syntax to encode to, for decoded pixels of `description`.

    Raises:
        NotAcceptable: there is no encoder for such pixels; the message lists the transfer syntaxes that there are.
    """
    codec = CODECS.get(transfer_syntax_uid)
    available = ", ".join(uid for uid in encodes() if _fits(uid, description))
    if description.photometric_interpretation in PARTIAL_RANGE:
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
    """Return the pixel description of frames after `decode`: colour by pixel, and RGB where the codec undoes a colour transform."""
    codec = CODECS[transfer_syntax_uid]
    interpretation = description.photometric_interpretation
    if description.samples_per_pixel == 3 and interpretation in codec.rgb_from:
        interpretation = "RGB"
    elif interpretation == "YBR_FULL_422" and codec.is_bytewise:
        interpretation = "YBR_FULL"
    return dataclasses.replace(description, photometric_interpretation=interpretation, planar_configuration=0)


def encoded_description(transfer_syntax_uid: str, description: PixelDescription) -> PixelDescription:
    """Return the pixel description of frames after `encode`, from that of the decoded frames."""
    renamed = dict(CODECS[transfer_syntax_uid].renamed)
    interpretation = renamed.get(description.photometric_interpretation, description.photometric_interpretation)
    return dataclasses.replace(description, photometric_interpretation=interpretation)


def decode(transfer_syntax_uid: str, data: bytes, description: PixelDescription, *, keeps_bits: bool = False) -> Samples:
    """Decode one frame.

    Args:
        data: bit stream without item headers, or native values in little endian from bit 0 on.
        description: of the stored frame.
        keeps_bits: keep the bits outside of Bits Stored, where the transfer syntax stores them.

    Returns:
        Samples of `dtype_of(description)`, described by `decoded_description`.

    Raises:
        NotAcceptable: the bytes cannot be decoded.
    """
    codec = require_decodable(transfer_syntax_uid, description)
    if keeps_bits and codec.is_bytewise:
        bits = bits_allocated(description)
        description = dataclasses.replace(description, bits_stored=bits, high_bit=bits - 1)
    try:
        samples = codec.decode(data, description)
    except (ValueError, RuntimeError, TypeError, IndexError, OverflowError, MemoryError, NotImplementedError, ScanFailure) as error:
        raise errors.NotAcceptable(f"a frame cannot be decoded from {codec.name} ({transfer_syntax_uid}): {error}") from error
    expected = (description.rows, description.columns, *([description.samples_per_pixel] if description.samples_per_pixel > 1 else []))
    if samples.shape != tuple(expected):
        raise errors.NotAcceptable(f"a decoded frame has the shape {samples.shape}, its attributes say {tuple(expected)}")
    return samples


def encode(transfer_syntax_uid: str, samples: Samples, description: PixelDescription) -> bytes:
    """Encode one frame; without loss unless the row has a method of loss.

    Args:
        description: of the decoded frame.

    Raises:
        NotAcceptable: there is no encoder for such samples.
    """
    codec = require_encodable(transfer_syntax_uid, description)
    try:
        return codec.encode(samples, description)  # type: ignore[misc]  # require_encodable has checked it
    except (ValueError, RuntimeError, TypeError, NotImplementedError) as error:
        raise errors.NotAcceptable(f"a frame cannot be encoded to {codec.name} ({transfer_syntax_uid}): {error}") from error


def rewrite(transfer_syntax_uid: str, data: bytes, target_uid: str) -> bytes:
    """Convert a bit stream to another transfer syntax without decoding it, by a row of `REWRITES`.

    Raises:
        NotAcceptable: it cannot be rewritten.
    """
    try:
        return REWRITES[transfer_syntax_uid, target_uid](data)
    except (ValueError, RuntimeError) as error:
        raise errors.NotAcceptable(f"a frame cannot be rewritten from {transfer_syntax_uid} to {target_uid}: {error}") from error


def method_of_loss(transfer_syntax_uid: str, data: bytes) -> str:
    """Return the Lossy Image Compression Method of a bit stream; "" where it is lossless or its head does not show it."""
    codec = CODECS.get(transfer_syntax_uid)
    if codec is None or codec.method_of_loss is None:
        return ""
    try:
        return codec.method_of_loss(data)
    except ScanFailure:
        return ""


def warm() -> None:
    """Load every codec, so that the first frame does not wait for that."""
    decodes()
