"""Read the image description of a compressed bit stream, and the transfer syntaxes that fit it.

    picture = read_still(source, "image/jpeg")
    uid = choose_transfer_syntax(picture, "image/jpeg", named)

Only headers are read, a few bytes at a time; those of JPEG, JPEG-LS and JPEG 2000 by `heads.py`. To add a bit stream, add a reader to
`_READERS`, by media type. Videos are in `video.py`.

Source: PS3.18 §8.7.3.3 and §10.5.2; PS3.5 §8.2 and §10; ISO/IEC 18181-1 Annex D for JPEG XL; PS3.5 Annex G for RLE.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from gantry_standard import reasons
from gantry_standard.bitstreams.heads import (
    JPEG_LS_FRAME,
    Jpeg2000Head,
    JpegHead,
    Source,
    boxes,
    corrupt,
    read_jpeg_2000_head,
    read_jpeg_head,
)
from gantry_standard.dicom.limits import ScanFailure
from gantry_standard.http.media_types import bulkdata_media_type

_SYNTAX = "1.2.840.10008.1.2."
_MOST_PRECISION = 64


@dataclass(frozen=True, slots=True)
class Picture:
    """The image description in the headers of a bit stream.

    Attributes:
        transfer_syntax_uids: those that allow the unchanged bit stream, the best first.
        rows, columns: 0 if the bit stream does not contain them (RLE).
        precision: bits of a sample.
        photometric_interpretation: "" if it is unknown.
        number_of_frames: 0 if unknown; 1 for a still image.
        offset, length: the bytes of the frame; a JP2 file contains more than its codestream.
    """

    transfer_syntax_uids: tuple[str, ...]
    rows: int
    columns: int
    samples_per_pixel: int
    precision: int
    photometric_interpretation: str
    offset: int
    length: int
    pixel_representation: int = 0
    number_of_frames: int = 1

    @property
    def bits_allocated(self) -> int:
        """Bits that a sample takes when decoded."""
        return next(bits for bits in (8, 16, 32, 64) if self.precision <= bits)


def syntaxes(*suffixes: str) -> tuple[str, ...]:
    """Return transfer syntax UIDs by what follows 1.2.840.10008.1.2."""
    return tuple(_SYNTAX + suffix for suffix in suffixes)


def not_supported(message: str) -> ScanFailure:
    """Return the failure for a bit stream that fits no transfer syntax."""
    return ScanFailure(message, reasons.TRANSFER_SYNTAX_NOT_SUPPORTED)


def choose_transfer_syntax(picture: Picture, media_type: str, named: str) -> str:
    """Return the transfer syntax of a bit stream: the named one if it fits, else that of the bit stream.

    Args:
        media_type: of the part; of several fitting syntaxes, one of this type is chosen.
        named: value of the transfer-syntax parameter; "" if there is none.
    """
    fitting = picture.transfer_syntax_uids
    if named in fitting:
        return named
    return next((uid for uid in fitting if bulkdata_media_type(uid) == media_type), fitting[0])


def read_still(source: Source, media_type: str) -> Picture:
    """Read the headers of a still image.

    Args:
        media_type: one of STILL_MEDIA_TYPES.

    Raises:
        ScanFailure: they are invalid, or no transfer syntax fits.
    """
    try:
        picture = _READERS[media_type](source)
    except (struct.error, IndexError, ValueError):
        raise corrupt(f"the {media_type} bit stream is truncated") from None
    if not 0 < picture.precision <= _MOST_PRECISION or not picture.samples_per_pixel:
        raise corrupt(f"the {media_type} bit stream has {picture.samples_per_pixel} samples of {picture.precision} bits")
    return picture


# JPEG: start of frame -> transfer syntaxes (PS3.5 Table A-1; ITU-T T.81 Table B.1). The retired ones are the only ones for their process.
_JPEG_PROCESSES = {
    0xC0: syntaxes("4.50", "4.51"),
    0xC1: syntaxes("4.51"),
    0xC2: syntaxes("4.55", "4.53"),
    0xC3: syntaxes("4.57"),
    0xC9: syntaxes("4.52"),
    0xCA: syntaxes("4.56", "4.54"),
    0xCB: syntaxes("4.58"),
}
_FIRST_ORDER_PREDICTION = syntaxes("4.70", "4.57")
_LOSSLESS_HUFFMAN, _BASELINE = 0xC3, 0xC0


def _read_jpeg(source: Source) -> Picture:
    head = read_jpeg_head(source)
    if not head.rows:
        raise not_supported("the JPEG bit stream does not say its number of lines in its frame header")
    if not head.scan:
        raise corrupt("the JPEG bit stream has no scan header")
    marker = head.frame_marker
    if marker == JPEG_LS_FRAME:
        uids = syntaxes("4.80", "4.81") if head.is_reversible else syntaxes("4.81")
        photometric = "RGB" if head.samples == 3 else ""
    else:
        uids = _JPEG_PROCESSES.get(marker, ())
        if marker == _LOSSLESS_HUFFMAN and head.scan_parameter == 1:
            uids = _FIRST_ORDER_PREDICTION
        if marker == _BASELINE and head.precision != 8:
            raise corrupt(f"the JPEG bit stream is baseline with {head.precision} bits, expected 8")
        photometric = _jpeg_colour(head)
    if not uids:
        raise not_supported(f"a JPEG bit stream with frame marker FF{marker:02X} has no transfer syntax here")
    photometric = "MONOCHROME2" if head.samples == 1 else photometric
    return Picture(uids, head.rows, head.columns, head.samples, head.precision, photometric, 0, source.length)


def _jpeg_colour(head: JpegHead) -> str:
    """Return Photometric Interpretation of a colour JPEG.

    Source: PS3.5 §8.2.1; ITU-T T.872 §6.5.3.
    """
    if head.samples != 3:
        return ""
    if head.adobe_transform == 0 or head.component_ids == b"RGB" or (head.is_reversible and head.adobe_transform < 0):
        return "RGB"
    return "YBR_FULL" if len(set(head.sampling_factors)) == 1 else "YBR_FULL_422"


_RPCL = 2
_SYCC = 18


def _read_jpeg_2000(source: Source) -> Picture:
    head = read_jpeg_2000_head(source)
    if head.is_part_15:
        also_rpcl = syntaxes("4.202") if head.progression == _RPCL else ()
        uids = (*syntaxes("4.201"), *also_rpcl, *syntaxes("4.203")) if head.is_reversible else syntaxes("4.203")
    elif head.is_part_2:
        uids = syntaxes("4.92", "4.93") if head.is_reversible else syntaxes("4.93")
    else:
        # A code stream of Part 1 is one of Part 2 too.
        uids = syntaxes("4.90", "4.91", "4.92", "4.93") if head.is_reversible else syntaxes("4.91", "4.93")
    photometric = "MONOCHROME2" if head.samples == 1 else _jpeg_2000_colour(head)
    return Picture(
        uids,
        head.rows,
        head.columns,
        head.samples,
        head.precision,
        photometric,
        head.offset,
        head.length,
        pixel_representation=int(head.is_signed),
    )


def _jpeg_2000_colour(head: Jpeg2000Head) -> str:
    if head.samples != 3:
        return ""
    if head.has_component_transform:
        return "YBR_RCT" if head.is_reversible else "YBR_ICT"
    return "YBR_FULL" if head.enumerated_color_space == _SYCC else "RGB"


_JXL_SIGNATURE = b"\0\0\0\x0cJXL \r\n\x87\n"
_JXL_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_JXL_HEADER_BYTES = 64


class _Bits:
    """Bits of JPEG XL: least significant first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")
        self._left = len(data) * 8

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        return value

    def choice(self, *options: tuple[int, int]) -> int:
        """Read a U32: two bits choose a base and how many bits are added to it."""
        base, bits = options[self.take(2)]
        return base + self.take(bits)


def _read_jpeg_xl(source: Source) -> Picture:
    data, is_recompressed = source.read(0, _JXL_HEADER_BYTES), False
    if data[:12] == _JXL_SIGNATURE:
        data = b""
        for kind, begin, _ in boxes(source, 0, source.length):
            is_recompressed |= kind == b"jbrd"
            if not data and kind in (b"jxlc", b"jxlp"):
                data = source.read(begin + (4 if kind == b"jxlp" else 0), _JXL_HEADER_BYTES)
    if data[:2] != b"\xff\x0a":
        raise corrupt("the bit stream does not begin with the signature of JPEG XL")
    bits = _Bits(data[2:])
    rows, columns = _jpeg_xl_size(bits)
    precision, samples, is_xyb = _jpeg_xl_metadata(bits)
    # Only decoding shows whether the frames are lossy, so the client must name the lossless syntax.
    also_lossless = () if is_xyb else syntaxes("4.110")
    uids = syntaxes("4.111", "4.112") if is_recompressed else (*syntaxes("4.112"), *also_lossless)
    photometric = "MONOCHROME2" if samples == 1 else "XYB" if is_xyb else "YBR_FULL_422" if is_recompressed else "RGB"
    return Picture(uids, rows, columns, samples, precision, photometric, 0, source.length)


def _jpeg_xl_size(bits: _Bits) -> tuple[int, int]:
    def side(is_small: int) -> int:
        return (1 + bits.take(5)) * 8 if is_small else 1 + bits.choice((0, 9), (0, 13), (0, 18), (0, 30))

    is_small = bits.take(1)
    rows = side(is_small)
    ratio = bits.take(3)
    if not ratio:
        return rows, side(is_small)
    numerator, denominator = _JXL_RATIOS[ratio]
    return rows, rows * numerator // denominator


def _jpeg_xl_metadata(bits: _Bits) -> tuple[int, int, bool]:
    """Return bits per sample, samples per pixel, and whether colours are XYB."""
    if bits.take(1):  # all_default
        return 8, 3, True
    if bits.take(1):  # extra_fields
        bits.take(3)  # orientation
        if bits.take(1):  # intrinsic size
            _jpeg_xl_size(bits)
        if bits.take(1) or bits.take(1):
            raise not_supported("a JPEG XL bit stream with a preview or an animation has no transfer syntax")
    if bits.take(1):  # floating point samples
        raise not_supported("a JPEG XL bit stream of floating point samples has no transfer syntax")
    precision = bits.choice((8, 0), (10, 0), (12, 0), (1, 6))
    bits.take(1)  # modular_16bit_buffers
    extra_channels = bits.choice((0, 0), (1, 0), (2, 4), (1, 12))
    if extra_channels:
        raise not_supported("a JPEG XL bit stream with extra channels has no transfer syntax")
    is_xyb = bool(bits.take(1))
    if bits.take(1):  # colour encoding all_default: sRGB
        return precision, 3, is_xyb
    bits.take(1)  # want_icc
    is_grey = bits.choice((0, 0), (1, 0), (2, 4), (18, 6)) == 1
    return precision, 1 if is_grey else 3, is_xyb


# Segments of a frame -> samples and bits of a sample (PS3.5 §G.2): one segment per byte of a sample.
_RLE_SEGMENTS = {1: (1, 8), 2: (1, 16), 3: (3, 8), 4: (1, 32), 6: (3, 16), 8: (1, 64), 12: (3, 32)}


def _read_rle(source: Source) -> Picture:
    segments, first = struct.unpack("<II", source.read(0, 8))
    if segments not in _RLE_SEGMENTS or first != 64:
        raise corrupt("the bit stream does not begin with the header of a DICOM RLE frame")
    samples, bits = _RLE_SEGMENTS[segments]
    return Picture(syntaxes("5"), 0, 0, samples, bits, "RGB" if samples == 3 else "MONOCHROME2", 0, source.length)


_READERS: dict[str, Callable[[Source], Picture]] = {
    "image/jpeg": _read_jpeg,
    "image/jls": _read_jpeg,
    "image/jp2": _read_jpeg_2000,
    "image/jpx": _read_jpeg_2000,
    "image/jphc": _read_jpeg_2000,
    "image/jxl": _read_jpeg_xl,
    "image/dicom-rle": _read_rle,
}
STILL_MEDIA_TYPES = frozenset(_READERS)


def agree(first: Picture, other: Picture) -> bool:
    """Return whether two bit streams can be frames of one multi-frame image."""
    return replace(other, offset=first.offset, length=first.length, transfer_syntax_uids=first.transfer_syntax_uids) == first
