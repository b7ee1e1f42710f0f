"""Specific Character Set: from encoded text to Unicode.

ISO 2022 escapes are decoded here too: code elements G0 and G1 change with an escape sequence and fall back to those of the
first value at each delimiter. Unknown defined terms are read as ISO 8859-1, as most archives do.

Source: PS3.3 §C.12.1.1.2 (Tables C.12-2 to C.12-5); PS3.5 §6.1.2.
"""

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

# Defined term, letters and digits only, to a codec of Python.
_CODECS = {
    "": "latin-1",
    "ISOIR6": "latin-1",
    "ISOIR13": "shift_jis",
    "ISOIR100": "latin-1",
    "ISOIR101": "iso8859-2",
    "ISOIR109": "iso8859-3",
    "ISOIR110": "iso8859-4",
    "ISOIR126": "iso8859-7",
    "ISOIR127": "iso8859-6",
    "ISOIR138": "iso8859-8",
    "ISOIR144": "iso8859-5",
    "ISOIR148": "iso8859-9",
    "ISOIR166": "iso8859-11",
    "ISOIR203": "iso8859-15",
    "ISOIR192": "utf-8",
    "GB18030": "gb18030",
    "GBK": "gbk",
    "ISOIR58": "gb2312",
    "ISOIR87": "iso2022_jp",
    "ISOIR149": "euc_kr",
    "ISOIR159": "iso2022_jp_2",
}
# Escape sequence, without ESC, to the codec of what follows (PS3.3 Tables C.12-3 and C.12-4).
_G0 = {
    b"(B": "ascii",
    b"(J": "ascii",
    b"$B": "iso2022_jp",
    b"$@": "iso2022_jp",
    b"$(D": "iso2022_jp_2",
}
_G1 = {
    b")I": "shift_jis",
    b"-A": "latin-1",
    b"-B": "iso8859-2",
    b"-C": "iso8859-3",
    b"-D": "iso8859-4",
    b"-F": "iso8859-7",
    b"-G": "iso8859-6",
    b"-H": "iso8859-8",
    b"-L": "iso8859-5",
    b"-M": "iso8859-9",
    b"-T": "iso8859-11",
    b"-b": "iso8859-15",
    b"$)C": "euc_kr",
    b"$)A": "gb2312",
}
_ESCAPE = re.compile(rb"\x1b(\$\([A-D]|\$\)[A-C]|\$[@AB]|[()\-.][A-Za-z])")
# After these, the code elements of the first value are active again (PS3.5 §6.1.2.5.3).
_DELIMITER = re.compile(rb"[\\^=\r\n\f\t]")


@dataclass(frozen=True, slots=True)
class CharacterSet:
    """A value of Specific Character Set (0008,0005).

    Attributes:
        codec: of text before any escape sequence.
        decode: from value bytes to text; bytes that the codec does not know become U+FFFD.
    """

    codec: str
    decode: Callable[[bytes], str]


def _plain(codec: str) -> Callable[[bytes], str]:
    decoder = codecs.getdecoder(codec)
    return lambda value: decoder(value, "replace")[0]


def _decode_until_delimiter(run: bytes, g1: str, initial: str) -> str:
    if g1 == initial:
        return run.decode(initial, "replace")
    delimiter = _DELIMITER.search(run)
    if delimiter is None:
        return run.decode(g1, "replace")
    end = delimiter.end()
    return run[:end].decode(g1, "replace") + run[end:].decode(initial, "replace")


def _with_escapes(initial: str) -> Callable[[bytes], str]:
    def decode(value: bytes) -> str:
        if b"\x1b" not in value:
            return value.decode(initial, "replace")
        pieces = _ESCAPE.split(value)
        text = [pieces[0].decode(initial, "replace")]
        g0, g1, designation = "ascii", initial, b""
        for escape, run in zip(pieces[1::2], pieces[2::2], strict=True):
            if escape in _G0:
                g0, designation = _G0[escape], escape
            else:
                g1 = _G1.get(escape, g1)
                # A G1 set leaves G0 alone, but no writer stays in a multi-byte G0 while it designates G1.
                g0 = "ascii"
            if g0 == "ascii":
                text.append(_decode_until_delimiter(run, g1, initial))
                g1 = initial if _DELIMITER.search(run) else g1
            else:
                text.append((b"\x1b" + designation + run).decode(g0, "replace"))
        return "".join(text)

    return decode


def _key(term: str) -> str:
    letters = re.sub("[^A-Z0-9]", "", term.upper())
    return letters.replace("ISO2022", "ISO", 1) if letters.startswith("ISO2022IR") else letters.replace("ISO2022", "", 1)


@lru_cache(maxsize=256)
def character_set(value: bytes) -> CharacterSet:
    """Return the character set of a value of Specific Character Set (0008,0005), several terms separated by backslash."""
    terms = [_key(term) for term in value.decode("latin-1").strip(" \0").split("\\")]
    initial = _CODECS.get(terms[0] if terms[0] != "58" else "ISOIR58", "latin-1")
    if initial.startswith("iso2022") or (initial in ("gb2312", "euc_kr") and len(terms) == 1):
        # A multi-byte set of ISO 2022 without its first value: what is outside an escape is ASCII, or the set itself in G1.
        initial = "latin-1" if initial.startswith("iso2022") else initial
        return CharacterSet(initial, _with_escapes(initial))
    if initial in ("utf-8", "gb18030", "gbk"):
        return CharacterSet(initial, _plain(initial))
    has_escapes = len(terms) > 1 or "2022" in value.decode("latin-1")
    return CharacterSet(initial, _with_escapes(initial) if has_escapes else _plain(initial))


DEFAULT_CHARACTER_SET = character_set(b"")
