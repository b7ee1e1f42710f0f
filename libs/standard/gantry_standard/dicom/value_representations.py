"""Value Representations: one row per VR, for readers and writers.

Source: PS3.5 §6.2 (Table 6.2-1) and §7.1.2; PS3.18 Table F.2.3-1 for what may be a BulkDataURI.
"""

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """Kinds of value fields."""

    ASCII = 1
    """Strings of the default repertoire, multi-valued."""
    TEXT = 2
    """Strings in the Specific Character Set, multi-valued."""
    LONG_TEXT = 3
    """One string; a backslash and leading spaces are data."""
    NUMBER = 4
    """Binary numbers of `word` bytes."""
    BINARY = 5
    """Bytes or words without further structure."""
    SEQUENCE = 6


@dataclass(frozen=True, slots=True)
class ValueRepresentation:
    """One VR.

    Attributes:
        name: two letters, as encoded.
        is_long: the length field in Explicit VR has 32 bits.
        word: bytes that a change of byte order swaps together.
        format: `struct` letter of one number, "" if values are not numbers.
        may_be_bulk: PS3.18 Table F.2.3-1 allows a BulkDataURI.
        padding: byte that is appended to make a length even.
    """

    name: bytes
    kind: Kind
    is_long: bool = False
    word: int = 1
    format: str = ""
    may_be_bulk: bool = False
    padding: bytes = b" "


VALUE_REPRESENTATIONS: dict[bytes, ValueRepresentation] = {
    row.name: row
    for row in (
        ValueRepresentation(b"AE", Kind.ASCII),
        ValueRepresentation(b"AS", Kind.ASCII),
        ValueRepresentation(b"AT", Kind.NUMBER, word=2, format="H", padding=b"\0"),
        ValueRepresentation(b"CS", Kind.ASCII),
        ValueRepresentation(b"DA", Kind.ASCII),
        ValueRepresentation(b"DS", Kind.ASCII, may_be_bulk=True),
        ValueRepresentation(b"DT", Kind.ASCII),
        ValueRepresentation(b"FD", Kind.NUMBER, word=8, format="d", may_be_bulk=True, padding=b"\0"),
        ValueRepresentation(b"FL", Kind.NUMBER, word=4, format="f", may_be_bulk=True, padding=b"\0"),
        ValueRepresentation(b"IS", Kind.ASCII, may_be_bulk=True),
        ValueRepresentation(b"LO", Kind.TEXT),
        ValueRepresentation(b"LT", Kind.LONG_TEXT, may_be_bulk=True),
        ValueRepresentation(b"OB", Kind.BINARY, is_long=True, may_be_bulk=True, padding=b"\0"),
        ValueRepresentation(b"OD", Kind.BINARY, is_long=True, word=8, may_be_bulk=True, padding=b"\0"),
        ValueRepresentation(b"OF", Kind.BINARY, is_long=True, word=4, may_be_bulk=True, padding=b"\0"),
        ValueRepresentation(b"OL", Kind.BINARY, is_long=True, word=4, may_be_bulk=True, padding=b"\0"),
        ValueRepresentation(b"OV", Kind.BINARY, is_long=True, word=8, may_be_bulk=True, padding=b"\0"),
        ValueRepresentation(b"OW", Kind.BINARY, is_long=True, word=2, may_be_bulk=True, padding=b"\0"),
        ValueRepresentation(b"PN", Kind.TEXT),
        ValueRepresentation(b"SH", Kind.TEXT),
        ValueRepresentation(b"SL", Kind.NUMBER, word=4, format="i", may_be_bulk=True, padding=b"\0"),
        ValueRepresentation(b"SQ", Kind.SEQUENCE, is_long=True, padding=b"\0"),
        ValueRepresentation(b"SS", Kind.NUMBER, word=2, format="h", may_be_bulk=True, padding=b"\0"),
        ValueRepresentation(b"ST", Kind.LONG_TEXT, may_be_bulk=True),
        ValueRepresentation(b"SV", Kind.NUMBER, is_long=True, word=8, format="q", may_be_bulk=True, padding=b"\0"),
        ValueRepresentation(b"TM", Kind.ASCII),
        ValueRepresentation(b"UC", Kind.TEXT, is_long=True, may_be_bulk=True),
        ValueRepresentation(b"UI", Kind.ASCII, padding=b"\0"),
        ValueRepresentation(b"UL", Kind.NUMBER, word=4, format="I", may_be_bulk=True, padding=b"\0"),
        ValueRepresentation(b"UN", Kind.BINARY, is_long=True, may_be_bulk=True, padding=b"\0"),
        ValueRepresentation(b"UR", Kind.LONG_TEXT, is_long=True),
        ValueRepresentation(b"US", Kind.NUMBER, word=2, format="H", may_be_bulk=True, padding=b"\0"),
        ValueRepresentation(b"UT", Kind.LONG_TEXT, is_long=True, may_be_bulk=True),
        ValueRepresentation(b"UV", Kind.NUMBER, is_long=True, word=8, format="Q", may_be_bulk=True, padding=b"\0"),
    )
}

LONG_VRS = frozenset(name for name, row in VALUE_REPRESENTATIONS.items() if row.is_long)
"""Value Representations whose length field in Explicit VR has 32 bits."""
