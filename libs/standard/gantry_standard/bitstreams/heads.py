"""Read the headers of JPEG, JPEG-LS and JPEG 2000 bit streams: size, precision, and the properties that decoding depends on.

Only headers are read, a few bytes at a time; no sample is decoded. Both the store (`still.py`) and the renderer read heads here.

Source: ISO/IEC 10918-1 Annex B, 14495-1 Annex C, 15444-1 Annexes A and I, 15444-2, 15444-15; ITU-T T.872 §6.5.3.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from gantry_standard import reasons
from gantry_standard.dicom.limits import ScanFailure


class Source(Protocol):
    """Bytes with random access."""

    @property
    def length(self) -> int:
        """Number of bytes."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from `offset` on; fewer than `length` at the end."""
        ...


@dataclass(frozen=True, slots=True)
class BytesSource:
    """A bit stream in memory."""

    data: bytes

    @property
    def length(self) -> int:
        """Number of bytes."""
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from `offset` on."""
        return self.data[offset : offset + length]


def corrupt(message: str) -> ScanFailure:
    """Return the failure for an unreadable bit stream."""
    return ScanFailure(message, reasons.CANNOT_UNDERSTAND)


JPEG_LS_FRAME = 0xF7
"""Frame marker of JPEG-LS, the second byte."""

LOSSLESS_FRAMES = frozenset((0xC3, 0xC7, 0xCB, 0xCF))
"""Frame markers of lossless JPEG, the second byte."""

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {JPEG_LS_FRAME}
_START_OF_SCAN, _JFIF, _ADOBE = 0xDA, 0xE0, 0xEE
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xDA)))
_SEGMENT_BYTES = 1024


@dataclass(frozen=True, slots=True)
class JpegHead:
    """Head of a JPEG or JPEG-LS bit stream.

    Attributes:
        frame_marker: second byte of the start of frame marker.
        rows: 0 if a later marker (DNL) contains them.
        precision: bits of a sample.
        component_ids: one byte for each component.
        sampling_factors: one byte for each component, horizontal and vertical.
        adobe_transform: of the Adobe segment (0: none, 1: YCbCr), -1 without such a segment.
        has_jfif: there is a JFIF segment, so three components are YCbCr.
        scan: segment of the first scan header; empty if it is unreadable.
    """

    frame_marker: int
    rows: int
    columns: int
    samples: int
    precision: int
    component_ids: bytes
    sampling_factors: bytes
    adobe_transform: int
    has_jfif: bool
    scan: bytes

    @property
    def scan_parameter(self) -> int:
        """The first scan's Ss (the predictor of lossless JPEG) or, for JPEG-LS, NEAR; 0 if there is no scan header."""
        at = 1 + 2 * self.scan[0] if self.scan else 0
        return self.scan[at] if 0 < at < len(self.scan) else 0

    @property
    def is_signed(self) -> bool:
        """JPEG has no signed samples."""
        return False

    @property
    def is_reversible(self) -> bool:
        """Whether decoding gives exactly the samples that were encoded."""
        return not self.scan_parameter if self.frame_marker == JPEG_LS_FRAME else self.frame_marker in LOSSLESS_FRAMES

    @property
    def names_color_space(self) -> bool:
        """Whether a segment or the component ids distinguish RGB from YCbCr; if not, decoders assume YCbCr for three components."""
        return self.has_jfif or self.adobe_transform >= 0 or self.component_ids == b"RGB"


def read_jpeg_head(source: Source) -> JpegHead:
    """Read the head of a JPEG or JPEG-LS bit stream.

    Raises:
        ScanFailure: there is no readable frame header.
    """
    frame_marker, frame, adobe, has_jfif, scan = 0, b"", -1, False, b""
    try:
        for marker, segment in _jpeg_segments(source):
            if marker in _START_OF_FRAME:
                frame_marker, frame = marker, segment
            elif marker == _ADOBE and segment[:5] == b"Adobe" and len(segment) >= 12:
                adobe = segment[11]
            elif marker == _JFIF and segment[:5] == b"JFIF\0" and len(segment) >= 14:
                has_jfif = True
            elif marker == _START_OF_SCAN:
                scan = segment
    except ScanFailure:
        # A decoder may still be able to read the rest
        if not frame_marker:
            raise
    if not frame_marker:
        raise corrupt("the JPEG bit stream has no frame header")
    if len(frame) < 6 or len(frame) < 6 + 3 * frame[5]:
        raise corrupt("the frame header of the JPEG bit stream is truncated")
    precision, rows, columns, samples = struct.unpack_from(">BHHB", frame)
    ids, factors = frame[6::3][:samples], frame[7::3][:samples]
    return JpegHead(frame_marker, rows, columns, samples, precision, ids, factors, adobe, has_jfif, scan)


def _jpeg_segments(source: Source) -> Iterator[tuple[int, bytes]]:
    """Yield marker and first bytes of each segment, up to the first scan header.

    Raises:
        ScanFailure: a marker is missing.
    """
    if source.read(0, 2) != b"\xff\xd8":
        raise corrupt("the bit stream does not begin with the SOI marker of JPEG")
    position = 2
    while True:
        head = source.read(position, 4)
        if len(head) < 4 or head[0] != 0xFF:
            raise corrupt(f"byte {position} of the JPEG bit stream: expected a marker")
        marker = head[1]
        if marker == 0xFF:
            position += 1
        elif marker in _WITHOUT_LENGTH:
            position += 2
        else:
            (length,) = struct.unpack(">H", head[2:])
            yield marker, source.read(position + 4, min(length - 2, _SEGMENT_BYTES)) if length > 2 else b""
            if marker == _START_OF_SCAN:
                return
            position += 2 + max(length, 2)


_SOC_SIZ = b"\xff\x4f\xff\x51"
_JP2_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
_COD, _CAP, _SOT = 0xFF52, 0xFF50, 0xFF90
_PART_2 = 0x8000
_PART_15_IN_CAP = 1 << 17  # Pcap^15, counted from the most significant bit
_MOST_COMPONENTS = 16384


@dataclass(frozen=True, slots=True)
class Jpeg2000Head:
    """Head of a JPEG 2000 or HTJ2K code stream.

    Attributes:
        offset, length: of the code stream; a JP2 file has other boxes around it.
        precision: bits of a sample, of the deepest component.
        is_signed: samples are two's complement.
        is_reversible: decoding gives exactly the samples that were encoded (the 5-3 transform).
        is_part_2, is_part_15: the code stream needs a decoder of ISO/IEC 15444-2, of 15444-15 (HTJ2K).
        progression: order of the packets, as in COD.
        has_component_transform: the first three components were transformed together (RCT or ICT).
        enumerated_color_space: of the JP2 file; 0 if there is none.
    """

    offset: int
    length: int
    rows: int
    columns: int
    samples: int
    precision: int
    is_signed: bool
    is_reversible: bool
    is_part_2: bool
    is_part_15: bool
    progression: int
    has_component_transform: bool
    enumerated_color_space: int


def read_jpeg_2000_head(source: Source) -> Jpeg2000Head:
    """Read the head of a JPEG 2000 or HTJ2K code stream, with or without the boxes of a JP2 file.

    Raises:
        ScanFailure: there is no readable main header.
    """
    try:
        return _read_jpeg_2000_head(source)
    except (struct.error, IndexError, ValueError):
        raise corrupt("the JPEG 2000 bit stream is truncated") from None


def _read_jpeg_2000_head(source: Source) -> Jpeg2000Head:
    offset, length, color_space = _code_stream(source)
    head = source.read(offset, 44)
    if head[:4] != _SOC_SIZ:
        raise corrupt("the bit stream does not begin with the SOC and SIZ markers of JPEG 2000")
    size, capabilities, right, bottom, left, top = struct.unpack_from(">HHIIII", head, 4)
    (samples,) = struct.unpack_from(">H", head, 40)
    depths = source.read(offset + 42, 3 * min(samples, _MOST_COMPONENTS))[::3]
    is_part_15, style = _coding_style(source, offset + 4 + size)
    return Jpeg2000Head(
        offset=offset,
        length=length,
        rows=bottom - top,
        columns=right - left,
        samples=samples,
        precision=(max(depths) & 0x7F) + 1,
        is_signed=bool(depths[0] >> 7),
        is_reversible=style[9] == 1,
        is_part_2=bool(capabilities & _PART_2),
        is_part_15=is_part_15,
        progression=style[1],
        has_component_transform=bool(style[4]),
        enumerated_color_space=color_space,
    )


def _coding_style(source: Source, position: int) -> tuple[bool, bytes]:
    """Walk the main header; return whether CAP names Part 15, and the content of COD."""
    is_part_15 = False
    while True:
        marker, length = struct.unpack(">HH", source.read(position, 4))
        if marker == _COD:
            return is_part_15, source.read(position + 4, length - 2)
        if marker == _CAP:
            is_part_15 = bool(int.from_bytes(source.read(position + 4, 4), "big") & _PART_15_IN_CAP)
        if marker < 0xFF00 or marker == _SOT or length < 2:
            raise corrupt(f"byte {position} of the JPEG 2000 code stream: the main header has no COD segment")
        position += 2 + length


def _code_stream(source: Source) -> tuple[int, int, int]:
    """Return offset and length of a JPEG 2000 code stream, and the enumerated colour space of its file (0: none)."""
    if source.read(0, 12) != _JP2_SIGNATURE:
        return 0, source.length, 0
    color_space = 0
    for kind, begin, end in boxes(source, 0, source.length):
        if kind == b"jp2h":
            for inner, inner_begin, _ in boxes(source, begin, end):
                content = source.read(inner_begin, 7)
                if inner == b"colr" and len(content) == 7 and content[0] == 1:
                    color_space = int.from_bytes(content[3:7], "big")
        elif kind == b"jp2c":
            return begin, end - begin, color_space
    raise corrupt("the JP2 file has no code stream")


def boxes(source: Source, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, begin and end of the content of each box of an ISO base media or JP2 family file.

    Raises:
        ScanFailure: a box is shorter than its own header.
    """
    position = begin
    while position + 8 <= end:
        length, kind = struct.unpack(">I4s", source.read(position, 8))
        header = 8
        if length == 1:
            (length,) = struct.unpack(">Q", source.read(position + 8, 8))
            header = 16
        elif length == 0:
            length = end - position
        if length < header:
            raise corrupt(f"byte {position}: a box has {length} bytes")
        yield kind, position + header, min(position + length, end)
        position += length
