"""The first bytes of videos, written bit by bit: complete headers without real pictures.

Source: ISO/IEC 13818-2 §6.2.2, 14496-10 §7.3.2.1.1, 14496-12 §8, 14496-15 §5.2.4, 23008-2 §7.3.2.2.
"""

import struct


class Bits:
    """Bits, most significant first."""

    def __init__(self) -> None:
        self._text = ""

    def put(self, value: int, count: int) -> "Bits":
        """Append a number of `count` bits."""
        self._text += f"{value:0{count}b}"
        return self

    def golomb(self, *values: int) -> "Bits":
        """Append Exp-Golomb codes."""
        for value in values:
            binary = f"{value + 1:b}"
            self._text += "0" * (len(binary) - 1) + binary
        return self

    def bytes(self) -> bytes:
        """Return the bits with the stop bit and zeros after them."""
        text = self._text + "1"
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big")


def _with_emulation_prevention(data: bytes) -> bytes:
    out = bytearray()
    for byte in data:
        if byte <= 3 and out[-2:] == b"\0\0":
            out.append(3)
        out.append(byte)
    return bytes(out)


def mpeg_2(rows: int, columns: int, *, level: int = 8) -> bytes:
    """Return an elementary stream of Main profile: sequence header and extension, then arbitrary bytes.

    Args:
        level: 8 is Main, 4 is High.
    """
    size = (columns & 0xFFF) << 12 | (rows & 0xFFF)
    header = b"\0\0\1\xb3" + size.to_bytes(3, "big") + b"\x23\xff\xff\xe0\x18"
    extension = Bits().put(1, 4).put(4 << 4 | level, 8).put(1, 1).put(1, 2).put(columns >> 12, 2).put(rows >> 12, 2).put(0, 21)
    return header + b"\0\0\1\xb5" + extension.bytes()[:5] + b"\0\0\1\xb8" + bytes(range(200))


def avc_parameter_set(rows: int, columns: int, *, profile: int = 100, level: int = 41) -> bytes:
    """Return a sequence parameter set (NAL unit) of 4:2:0, 8 bits, frames only; cropped where the size is no multiple of 16."""
    bits = Bits().golomb(0)
    if profile in (100, 110, 122, 128, 244):
        bits.golomb(1, 2 if profile == 110 else 0, 2 if profile == 110 else 0).put(0, 2)
    bits.golomb(0, 0, 0, 1).put(0, 1)
    bits.golomb(-(-columns // 16) - 1, -(-rows // 16) - 1).put(1, 1).put(1, 1)
    cropped_columns, cropped_rows = -columns % 16, -rows % 16
    if cropped_columns or cropped_rows:
        bits.put(1, 1).golomb(0, cropped_columns // 2, 0, cropped_rows // 2)
    else:
        bits.put(0, 1)
    bits.put(0, 1)
    return bytes((0x67, profile, 0, level)) + _with_emulation_prevention(bits.bytes())


def hevc_parameter_set(rows: int, columns: int, *, profile: int = 1, level: int = 123, precision: int = 8) -> bytes:
    """Return a sequence parameter set (NAL unit) of 4:2:0."""
    bits = Bits().put(0, 4).put(0, 3).put(1, 1).put(profile, 8).put(1 << (31 - profile), 32).put(0, 48).put(level, 8)
    bits.golomb(0, 1, columns, rows).put(0, 1).golomb(precision - 8, precision - 8, 4)
    return b"\x42\x01" + _with_emulation_prevention(bits.bytes())


def byte_stream(*units: bytes) -> bytes:
    """Return NAL units with start codes."""
    return b"".join(b"\0\0\0\1" + unit for unit in units)


def box(kind: bytes, *contents: bytes) -> bytes:
    """Return one box."""
    content = b"".join(contents)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def mp4(entry: bytes, configuration: bytes, samples: int, *, moov_last: bool = True) -> bytes:
    """Return an MP4 file with one video track.

    Args:
        entry: kind of sample entry, avc1 or hvc1.
        configuration: the avcC or hvcC box.
    """
    sample_entry = box(entry, bytes(78), configuration)
    sizes = box(b"stsz", bytes(4), struct.pack(">II", 1, samples))
    table = box(b"stbl", box(b"stsd", bytes(4), struct.pack(">I", 1), sample_entry), sizes)
    moov = box(b"moov", box(b"mvhd", bytes(100)), box(b"trak", box(b"mdia", box(b"minf", table))))
    media = box(b"mdat", bytes(index % 251 for index in range(4001)))
    return box(b"ftyp", b"isom\0\0\2\0isomavc1") + (media + moov if moov_last else moov + media)


def avc_configuration(parameter_set: bytes) -> bytes:
    """Return an avcC box."""
    return box(b"avcC", bytes((1, *parameter_set[1:4], 0xFF, 0xE1)), struct.pack(">H", len(parameter_set)), parameter_set, b"\0")


def hevc_configuration(parameter_set: bytes) -> bytes:
    """Return an hvcC box."""
    return box(b"hvcC", bytes(22), b"\1", b"\xa1", struct.pack(">HH", 1, len(parameter_set)), parameter_set)


def transport_stream(elementary: bytes, pid: int = 0x100) -> bytes:
    """Return a video in packets of 188 bytes, one packetised elementary stream after an arbitrary table."""
    packets = [b"\x47\x40\x00\x10" + bytes(184)]
    payload = b"\0\0\1\xe0\0\0\x80\0\0" + elementary
    for number, at in enumerate(range(0, len(payload), 184)):
        piece = payload[at : at + 184]
        head = struct.pack(">BH", 0x47, (0x4000 if number == 0 else 0) | pid)
        stuffing = 184 - len(piece)
        if stuffing:
            field = bytes((stuffing - 1,)) + (b"\0" + b"\xff" * (stuffing - 2) if stuffing > 1 else b"")
            packets.append(head + bytes((0x30 | number & 0xF,)) + field + piece)
        else:
            packets.append(head + bytes((0x10 | number & 0xF,)) + piece)
    return b"".join(packets)
