"""Read the frame description in the sequence headers of a video, and the transfer syntaxes that fit it.

MPEG-2: elementary, program or transport stream. MPEG-4 AVC and HEVC: MP4 file, transport stream, or byte stream with start codes.

Source: PS3.5 §8.2.5 to §8.2.11 and §10; ISO/IEC 13818-1 §2.4.3, 13818-2 §6.2.2, 14496-10 §7.3.2.1.1, 14496-12 §8, 14496-15,
23008-2 §7.3.2.2.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gantry_standard.bitstreams.heads import Source, boxes, corrupt
from gantry_standard.bitstreams.still import Picture, not_supported, syntaxes

_LOOKED_THROUGH_BYTES = 4 << 20
"""Sequence headers are searched in this many first bytes."""

_TS_PACKET = 188
_MPEG_2_SEQUENCE, _MPEG_2_EXTENSION = b"\0\0\1\xb3", b"\0\0\1\xb5"
_MAIN_LEVEL = 8  # level codes fall as levels rise: Low 10, Main 8, High-1440 6, High 4
_MAIN_PROFILE, _SIMPLE_PROFILE = 4, 5
_AVC_SPS, _HEVC_SPS = 7, 33
_STEREO_HIGH = 128
_AVC_PROFILES = frozenset((66, 77, 88, 100, _STEREO_HIGH))
# Profiles whose parameter sets name chroma format and bit depths.
_AVC_HIGH_PROFILES = frozenset((100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134))
_HEVC_MAIN, _HEVC_MAIN_10 = 1, 2
_HEVC_LEVEL_5_1 = 153
_CHROMA_420 = 1


def read_video(source: Source, media_type: str) -> Picture:
    """Read the headers of a video.

    Args:
        media_type: one of VIDEO_MEDIA_TYPES.

    Returns:
        A picture; its number of frames is 0 unless the container has it.

    Raises:
        ScanFailure: they are invalid, or no transfer syntax fits.
    """
    try:
        return _READERS[media_type](source)
    except (struct.error, IndexError, ValueError):
        raise corrupt(f"the {media_type} bit stream is truncated") from None


def _picture(source: Source, uids: tuple[str, ...], rows: int, columns: int, precision: int = 8, number_of_frames: int = 0) -> Picture:
    return Picture(uids, rows, columns, 3, precision, "YBR_PARTIAL_420", 0, source.length, number_of_frames=number_of_frames)


def _elementary_stream(source: Source) -> bytes:
    """Return the beginning of the video: without the packets of a transport stream."""
    data = source.read(0, _LOOKED_THROUGH_BYTES)
    if data[:1] != b"\x47" or data[_TS_PACKET : _TS_PACKET + 1] != b"\x47":
        return data
    video_pid, pieces = -1, []
    for at in range(0, len(data) - _TS_PACKET + 1, _TS_PACKET):
        packet = data[at : at + _TS_PACKET]
        pid, has_start = int.from_bytes(packet[1:3], "big") & 0x1FFF, bool(packet[1] & 0x40)
        begin = 4 + (1 + packet[4] if packet[3] & 0x20 else 0)
        payload = packet[begin:] if packet[3] & 0x10 else b""
        if has_start and payload[:3] == b"\0\0\1" and payload[3:4] and payload[3] & 0xF0 == 0xE0:
            if video_pid in (-1, pid):
                video_pid = pid
                pieces.append(payload[9 + payload[8] :])
        elif pid == video_pid:
            pieces.append(payload)
    return b"".join(pieces)


def _read_mpeg_2(source: Source) -> Picture:
    data = _elementary_stream(source)
    at = data.find(_MPEG_2_SEQUENCE)
    if at < 0:
        raise corrupt("the MPEG-2 bit stream has no sequence header")
    size = int.from_bytes(data[at + 4 : at + 7], "big")
    columns, rows = size >> 12, size & 0xFFF
    extension = data.find(_MPEG_2_EXTENSION, at, at + 512)
    if extension < 0 or data[extension + 4] >> 4 != 1:
        raise not_supported("MPEG-1 video has no transfer syntax")
    bits = int.from_bytes(data[extension + 4 : extension + 10], "big") >> 8  # 40 bits: id 4, profile and level 8, …
    profile_and_level, chroma = bits >> 28 & 0xFF, bits >> 25 & 3
    columns |= (bits >> 23 & 3) << 12
    rows |= (bits >> 21 & 3) << 12
    profile, level = profile_and_level >> 4, profile_and_level & 0xF
    if profile not in (_MAIN_PROFILE, _SIMPLE_PROFILE) or chroma != _CHROMA_420:
        raise not_supported(f"MPEG-2 video of profile and level {profile_and_level:02X} has no transfer syntax")
    uids = syntaxes("4.100", "4.100.1") if level >= _MAIN_LEVEL else syntaxes("4.101", "4.101.1")
    return _picture(source, uids, rows, columns)


@dataclass(frozen=True, slots=True)
class _Track:
    """The video track of an MP4 file: number of samples, kind of sample entry, content of avcC or hvcC."""

    samples: int
    kind: bytes
    configuration: bytes


def _children(source: Source, begin: int, end: int, *path: bytes) -> Iterator[tuple[int, int]]:
    for kind, inner, inner_end in boxes(source, begin, end):
        if kind == path[0]:
            if len(path) == 1:
                yield inner, inner_end
            else:
                yield from _children(source, inner, inner_end, *path[1:])


_SAMPLE_ENTRY_BYTES = 78  # VisualSampleEntry, ISO/IEC 14496-12 §12.1.3.2


def _video_track(source: Source) -> _Track | None:
    """Return the first video track of an MP4 file; None if it is not an MP4 file or has none."""
    if source.read(4, 4) != b"ftyp":
        return None
    for begin, end in _children(source, 0, source.length, b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        for table, table_end in _children(source, begin, end, b"stsd"):
            for kind, entry, entry_end in boxes(source, table + 8, table_end):
                for name in (b"avcC", b"hvcC"):
                    for inner, inner_end in _children(source, entry + _SAMPLE_ENTRY_BYTES, entry_end, name):
                        sizes = next(_children(source, begin, end, b"stsz"), (0, 0))[0]
                        samples = int.from_bytes(source.read(sizes + 8, 4), "big") if sizes else 0
                        return _Track(samples, kind, source.read(inner, min(inner_end - inner, 64 << 10)))
    raise corrupt("the MP4 file has no video track of MPEG-4 AVC or HEVC")


class _Bits:
    """Bits of a parameter set, most significant first, emulation prevention bytes left out."""

    def __init__(self, data: bytes) -> None:
        plain = data.replace(b"\0\0\3", b"\0\0")
        self._value = int.from_bytes(plain, "big")
        self._left = len(plain) * 8

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError
        return self._value >> self._left & ((1 << count) - 1)

    def unsigned(self) -> int:
        """Read an Exp-Golomb code."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + (self.take(zeros) if zeros else 0)

    def signed(self) -> int:
        code = self.unsigned()
        return (code + 1) // 2 if code & 1 else -(code // 2)


def _find_unit(data: bytes, is_wanted: Callable[[int], bool]) -> bytes:
    """Return the first NAL unit of a kind in a byte stream; b"" if there is none."""
    at = data.find(b"\0\0\1")
    while at >= 0 and at + 3 < len(data):
        following = data.find(b"\0\0\1", at + 3)
        if is_wanted(data[at + 3]):
            return data[at + 3 : following if following >= 0 else min(len(data), at + 4096)]
        at = following
    return b""


def _read_avc(source: Source) -> Picture:
    track = _video_track(source)
    if track is not None and track.kind not in (b"avc1", b"avc3"):
        raise not_supported("the video/mp4 file does not hold MPEG-4 AVC")
    if track is not None:
        if len(track.configuration) < 8 or not track.configuration[5] & 0x1F:
            raise corrupt("the MP4 file has no sequence parameter set")
        length = int.from_bytes(track.configuration[6:8], "big")
        unit = track.configuration[8 : 8 + length]
    else:
        unit = _find_unit(_elementary_stream(source), lambda head: head & 0x1F == _AVC_SPS)
    if not unit:
        raise corrupt("the MPEG-4 AVC bit stream has no sequence parameter set")
    return _avc_picture(source, unit, track.samples if track else 0)


def _avc_picture(source: Source, unit: bytes, number_of_frames: int) -> Picture:
    profile, level = unit[1], unit[3]
    bits = _Bits(unit[4:])
    bits.unsigned()  # seq_parameter_set_id
    chroma, luma_bits, chroma_bits = _CHROMA_420, 8, 8
    if profile in _AVC_HIGH_PROFILES:
        chroma = bits.unsigned()
        if chroma == 3:
            bits.take(1)
        luma_bits, chroma_bits = 8 + bits.unsigned(), 8 + bits.unsigned()
        bits.take(1)
        if bits.take(1):
            _skip_scaling_lists(bits, 12 if chroma == 3 else 8)
    rows, columns = _avc_size(bits)
    if profile not in _AVC_PROFILES or (chroma, luma_bits, chroma_bits) != (_CHROMA_420, 8, 8) or level > 42:
        raise not_supported(f"MPEG-4 AVC video of profile {profile}, level {level / 10:g} has no transfer syntax")
    if profile == _STEREO_HIGH:
        uids = syntaxes("4.106", "4.106.1")
    else:
        level_4_2 = syntaxes("4.104", "4.104.1", "4.105", "4.105.1")
        uids = level_4_2 if level == 42 else (*syntaxes("4.102", "4.102.1", "4.103", "4.103.1"), *level_4_2)
    return _picture(source, uids, rows, columns, number_of_frames=number_of_frames)


def _skip_scaling_lists(bits: _Bits, count: int) -> None:
    for index in range(count):
        if bits.take(1):
            last = following = 8
            for _ in range(16 if index < 6 else 64):
                if following:
                    following = (last + bits.signed()) % 256
                last = following or last


def _avc_size(bits: _Bits) -> tuple[int, int]:
    """Return rows and columns after cropping, of 4:2:0."""
    bits.unsigned()  # log2_max_frame_num_minus4
    order = bits.unsigned()
    if order == 0:
        bits.unsigned()
    elif order == 1:
        bits.take(1)
        bits.signed()
        bits.signed()
        for _ in range(min(bits.unsigned(), 255)):
            bits.signed()
    bits.unsigned()  # max_num_ref_frames
    bits.take(1)
    columns = (bits.unsigned() + 1) * 16
    map_rows = bits.unsigned() + 1
    is_frame_only = bits.take(1)
    rows = map_rows * 16 * (2 - is_frame_only)
    if not is_frame_only:
        bits.take(1)
    bits.take(1)
    if bits.take(1):
        left, right, top, bottom = (bits.unsigned() for _ in range(4))
        columns -= 2 * (left + right)
        rows -= 2 * (2 - is_frame_only) * (top + bottom)
    return rows, columns


def _read_hevc(source: Source) -> Picture:
    track = _video_track(source)
    if track is not None and track.kind not in (b"hvc1", b"hev1"):
        raise not_supported("the video/H265 file does not hold HEVC")
    if track is None:
        unit = _find_unit(_elementary_stream(source), lambda head: head >> 1 & 0x3F == _HEVC_SPS)
    else:
        unit = _unit_of_hvcc(track.configuration)
    if not unit:
        raise corrupt("the HEVC bit stream has no sequence parameter set")
    return _hevc_picture(source, unit, track.samples if track else 0)


def _unit_of_hvcc(configuration: bytes) -> bytes:
    position = 23
    for _ in range(configuration[22]):
        kind, count = configuration[position] & 0x3F, int.from_bytes(configuration[position + 1 : position + 3], "big")
        position += 3
        for _ in range(count):
            length = int.from_bytes(configuration[position : position + 2], "big")
            if kind == _HEVC_SPS:
                return configuration[position + 2 : position + 2 + length]
            position += 2 + length
    return b""


def _hevc_picture(source: Source, unit: bytes, number_of_frames: int) -> Picture:
    bits = _Bits(unit[2:])
    bits.take(4)  # sps_video_parameter_set_id
    sub_layers = bits.take(3)
    bits.take(1)
    profile = bits.take(8) & 0x1F
    compatible = bits.take(32)
    bits.take(48)
    level = bits.take(8)
    present = [bits.take(2) for _ in range(sub_layers)]
    if sub_layers:
        bits.take(2 * (8 - sub_layers))
    for flags in present:
        bits.take((88 if flags & 2 else 0) + (8 if flags & 1 else 0))
    bits.unsigned()  # sps_seq_parameter_set_id
    chroma = bits.unsigned()
    if chroma == 3:
        bits.take(1)
    columns, rows = bits.unsigned(), bits.unsigned()
    if bits.take(1):
        left, right, top, bottom = (bits.unsigned() for _ in range(4))
        columns, rows = columns - 2 * (left + right), rows - 2 * (top + bottom)
    precision = 8 + bits.unsigned()
    is_main = profile == _HEVC_MAIN or bool(compatible >> (31 - _HEVC_MAIN) & 1)
    is_main_10 = profile == _HEVC_MAIN_10 or bool(compatible >> (31 - _HEVC_MAIN_10) & 1)
    if chroma != _CHROMA_420 or level > _HEVC_LEVEL_5_1 or precision > 10 or not (is_main or is_main_10):
        raise not_supported(f"HEVC video of profile {profile}, level {level / 30:g} has no transfer syntax")
    uids = syntaxes("4.107", "4.108") if is_main and precision == 8 else syntaxes("4.108")
    return _picture(source, uids, rows, columns, precision, number_of_frames)


_READERS: dict[str, Callable[[Source], Picture]] = {
    "video/mpeg": _read_mpeg_2,
    "video/mp4": _read_avc,
    "video/h265": _read_hevc,
}
VIDEO_MEDIA_TYPES = frozenset(_READERS)
