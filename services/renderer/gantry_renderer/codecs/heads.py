"""What the heads of JPEG, JPEG-LS and JPEG 2000 bit streams say about their samples.

Read before decoding: a stream that claims another size than its attributes is refused before memory is taken for it.

Source: ISO/IEC 10918-1 Annex B, 14495-1 Annex C, 15444-1 Annex A.
"""

import struct
from dataclasses import dataclass

_START_OF_FRAME = frozenset((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7))
_LOSSLESS_FRAME = frozenset((0xC3, 0xC7, 0xCB, 0xCF))
_ALONE = frozenset((0x01, *range(0xD0, 0xDA)))
_SOC_SIZ = b"\xff\x4f\xff\x51"


@dataclass(frozen=True, slots=True)
class Head:
    """The head of one bit stream.

    Attributes:
        precision: bits per sample.
        is_signed: samples are two's complement (JPEG 2000 only).
        is_reversible: decodes to exactly what was encoded; True where the head does not say.
        names_color_space: markers or component ids say whether three samples are RGB or YCbCr (JPEG only).
    """

    rows: int
    columns: int
    samples: int
    precision: int
    is_signed: bool = False
    is_reversible: bool = True
    names_color_space: bool = False


def read_jpeg_head(data: bytes) -> Head | None:
    """Return the head of a JPEG or JPEG-LS stream; None where there is no readable frame header."""
    position, names_color_space = 2, False
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker in _ALONE:
            position += 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position + 4 : position + 2 + length]
        if marker in _START_OF_FRAME:
            return _jpeg_head(marker, segment, names_color_space)
        names_color_space |= (segment.startswith(b"JFIF\0") and length >= 16) or (segment.startswith(b"Adobe") and length >= 14)
        position += 2 + length
    return None


def read_jpeg_ls_near(data: bytes) -> int:
    """Return NEAR of the first scan of a JPEG-LS stream: the greatest error, 0 without loss or where there is no scan header."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position + 1] == 0xDA:
            # Ns, two bytes for each component, then NEAR (ISO/IEC 14495-1 §C.2.3)
            at = position + 5 + 2 * data[position + 4] if position + 4 < len(data) else len(data)
            return data[at] if at < len(data) else 0
        position += 2 + length
    return 0


def _jpeg_head(marker: int, segment: bytes, names_color_space: bool) -> Head | None:
    if len(segment) < 6:
        return None
    precision, rows, columns, samples = struct.unpack_from(">BHHB", segment)
    ids = bytes(segment[6::3][:samples])
    return Head(
        rows,
        columns,
        samples,
        precision,
        is_reversible=marker in _LOSSLESS_FRAME,
        names_color_space=names_color_space or ids == b"RGB",
    )


def read_jpeg_2000_head(data: bytes) -> Head | None:
    """Return the head of a JPEG 2000 or HTJ2K code stream, with or without JP2 boxes; None where there is none."""
    start = 0 if data.startswith(_SOC_SIZ) else data.find(_SOC_SIZ)
    if start < 0 or len(data) < start + 45:
        return None
    length, _, right, bottom, left, top = struct.unpack_from(">HHIIII", data, start + 4)
    (samples,) = struct.unpack_from(">H", data, start + 40)
    size = data[start + 42]
    return Head(
        bottom - top,
        right - left,
        samples,
        (size & 0x7F) + 1,
        is_signed=bool(size & 0x80),
        is_reversible=_is_reversible(data, start + 4 + length),
    )


def _is_reversible(data: bytes, position: int) -> bool:
    while position + 14 <= len(data) and data[position] == 0xFF:
        if data[position + 1] == 0x52:
            return data[position + 13] == 1
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return True
