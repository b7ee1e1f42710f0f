"""Elements written in Explicit VR Little Endian.

Source: PS3.5 §7.1.2, §7.5.
"""

import struct

LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
"""Value Representations whose length has 32 bits."""


def element(tag: int, vr: str, value: bytes) -> bytes:
    """Return one element; the value is padded to an even length."""
    pad = b"\0" if vr in ("UI", "OB", "UN") else b" "
    value += pad * (len(value) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    if vr.encode() in LONG:
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def us(tag: int, value: int) -> bytes:
    """Return an element of VR US."""
    return element(tag, "US", struct.pack("<H", value))


def item(value: bytes) -> bytes:
    """Return one item of a sequence."""
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(value)) + value


def sequence(tag: int, items: bytes) -> bytes:
    """Return a sequence of items that are written already."""
    return element(tag, "SQ", items)
