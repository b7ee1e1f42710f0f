"""Encode elements as DICOM JSON.

Source: PS3.18 Annex F. Choices that it leaves open: numbers for IS and DS that a double holds exactly, strings for integers
beyond 2^53-1, a BulkDataURI for FL and FD with a value that is not finite.
"""

import re
import struct
from binascii import b2a_base64
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import lru_cache

import orjson

from gantry_standard.dicom.charsets import DEFAULT_CHARACTER_SET, CharacterSet, character_set
from gantry_standard.dicom.dictionary import STANDARD_VRS, US_OR_SS
from gantry_standard.dicom.elements import Bulk, Elements, Fragments
from gantry_standard.dicom.scanned import BulkElement, Span
from gantry_standard.dicom.value_representations import VALUE_REPRESENTATIONS, Kind

SPECIFIC_CHARACTER_SET = 0x00080005
PIXEL_REPRESENTATION = 0x00280103
BASE_URL = b"\x00"
"""Marks the position of the base URL in a BulkDataURI; orjson escapes this byte everywhere else."""

_LARGEST_INTEGER = 2**53 - 1
_PADDING = " \0"
_UTF_8 = orjson.dumps(["ISO_IR 192"])
# Decimal strings that are valid JSON numbers and that a double preserves digit by digit: at most 15 digits.
_DECIMAL = rb"(?=[^\\]{1,16}(?:\\|$))-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,14})?(?:[eE][-+]?[0-9]{1,2})?"
_PLAIN_DECIMALS = re.compile(_DECIMAL + rb"(?:\\" + _DECIMAL + rb")*")
_INTEGER = rb"-?(?:0|[1-9][0-9]{0,14})"
_PLAIN_INTEGERS = re.compile(_INTEGER + rb"(?:\\" + _INTEGER + rb")*")
_ANY_INTEGER = re.compile(r"[+-]?[0-9]{1,32}")
_MOST_DECIMAL_CHARACTERS = 64
"""A DS has at most 16 (PS3.5 Table 6.2-1), of some writers 25. A longer one stays text."""
_ANY_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")

Encoder = Callable[[bytes, CharacterSet], bytes]
"""Encodes a non-empty value field as a JSON array; b"" if it contains only padding."""


def _array(values: list[str]) -> bytes:
    if len(values) == 1:
        return orjson.dumps(values) if values[0] else b""
    return orjson.dumps([value or None for value in values])


def _ascii(value: bytes, _: CharacterSet) -> bytes:
    text = value.decode("latin-1")
    if "\\" not in text:
        text = text.strip(_PADDING)
        return orjson.dumps([text]) if text else b""
    return _array([part.strip(_PADDING) for part in text.split("\\")])


def _text(value: bytes, charset: CharacterSet) -> bytes:
    text = charset.decode(value)
    if "\\" not in text:
        text = text.strip(_PADDING)
        return orjson.dumps([text]) if text else b""
    return _array([part.strip(_PADDING) for part in text.split("\\")])


def _unlimited_characters(value: bytes, charset: CharacterSet) -> bytes:
    return _array([part.rstrip(_PADDING) for part in charset.decode(value).split("\\")])


def _long_text(value: bytes, charset: CharacterSet) -> bytes:
    return _array([charset.decode(value).rstrip(_PADDING)])


def _uri(value: bytes, _: CharacterSet) -> bytes:
    return _array([value.decode("latin-1").rstrip(_PADDING)])


_COMPONENT_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


def _person_name(text: str) -> dict[str, str] | None:
    groups = [group.strip(_PADDING) for group in text.split("=", 2)]
    return {name: group for name, group in zip(_COMPONENT_GROUPS, groups, strict=False) if group} or None


def _person_names(value: bytes, charset: CharacterSet) -> bytes:
    names = [_person_name(part) for part in charset.decode(value).split("\\")]
    return orjson.dumps(names) if len(names) > 1 or names[0] else b""


def _integer_string(text: str) -> int | str | None:
    if _ANY_INTEGER.fullmatch(text) and abs(number := int(text)) <= _LARGEST_INTEGER:
        return number
    return text or None


def _integer_strings(value: bytes, _: CharacterSet) -> bytes:
    stripped = value.strip(b" \0")
    if _PLAIN_INTEGERS.fullmatch(stripped):
        return b"[%b]" % stripped.replace(b"\\", b",")
    numbers = [_integer_string(part.strip(_PADDING)) for part in value.decode("latin-1").split("\\")]
    return orjson.dumps(numbers) if len(numbers) > 1 or numbers[0] is not None else b""


def _decimal_string(text: str) -> int | float | str | None:
    if len(text) > _MOST_DECIMAL_CHARACTERS or not _ANY_DECIMAL.fullmatch(text):
        return text or None
    number = float(text)
    try:
        is_exact = Decimal(repr(number)) == Decimal(text)
    except InvalidOperation:
        is_exact = False
    return number if is_exact else text


def _decimal_strings(value: bytes, _: CharacterSet) -> bytes:
    stripped = value.strip(b" \0")
    if _PLAIN_DECIMALS.fullmatch(stripped):
        return b"[%b]" % stripped.replace(b"\\", b",")
    numbers = [_decimal_string(part.strip(_PADDING)) for part in value.decode("latin-1").split("\\")]
    return orjson.dumps(numbers) if len(numbers) > 1 or numbers[0] is not None else b""


def _attribute_tags(value: bytes, _: CharacterSet) -> bytes:
    words = struct.unpack(f"<{len(value) // 4 * 2}H", value)
    return orjson.dumps([f"{group:04X}{element:04X}" for group, element in zip(words[::2], words[1::2], strict=True)])


def _numbers(letter: str, size: int) -> Encoder:
    one = struct.Struct("<" + letter)

    def encode(value: bytes, _: CharacterSet) -> bytes:
        if len(value) == size:
            return orjson.dumps(one.unpack(value))
        return orjson.dumps(struct.unpack(f"<{len(value) // size}{letter}", value))

    return encode


def _large_integers(letter: str) -> Encoder:
    def encode(value: bytes, _: CharacterSet) -> bytes:
        numbers = struct.unpack(f"<{len(value) // 8}{letter}", value)
        return orjson.dumps([number if abs(number) <= _LARGEST_INTEGER else str(number) for number in numbers])

    return encode


_ENCODERS: dict[bytes, Encoder] = {
    **dict.fromkeys((b"AE", b"AS", b"CS", b"DA", b"DT", b"TM", b"UI"), _ascii),
    **dict.fromkeys((b"SH", b"LO"), _text),
    **dict.fromkeys((b"LT", b"ST", b"UT"), _long_text),
    **{
        name: _numbers(VALUE_REPRESENTATIONS[name].format, VALUE_REPRESENTATIONS[name].word)
        for name in (b"FD", b"FL", b"SL", b"SS", b"UL", b"US")
    },
    b"AT": _attribute_tags,
    b"DS": _decimal_strings,
    b"IS": _integer_strings,
    b"PN": _person_names,
    b"SV": _large_integers("q"),
    b"UC": _unlimited_characters,
    b"UR": _uri,
    b"UV": _large_integers("Q"),
}
_IN_CHARACTER_SET = frozenset(
    name for name, row in VALUE_REPRESENTATIONS.items() if row.kind in (Kind.TEXT, Kind.LONG_TEXT) and name != b"UR"
)
_NUMBER_SIZES = {name: 4 if name == b"AT" else row.word for name, row in VALUE_REPRESENTATIONS.items() if row.kind is Kind.NUMBER}


def encode_values(vr: bytes, value: bytes, charset: CharacterSet = DEFAULT_CHARACTER_SET) -> bytes:
    """Encode a value field as the JSON array of its values.

    Args:
        vr: not SQ and not one whose values are bytes or words without further structure.
        value: little endian, not empty; numbers are complete.

    Returns:
        b"" if it contains only padding.
    """
    return _ENCODERS[vr](value, charset)


def _key(tag: int) -> bytes:
    return b'"%08X":{"vr":"' % tag


_KEYS = {tag: _key(tag) for tag in STANDARD_VRS}

REMEMBERED_VALUE_BYTES = 64
"""Elements up to this size are cached: most are equal in consecutive instances of a series or patient."""

REMEMBERED_ELEMENTS = 16384
"""About 7 MB at most."""


@lru_cache(REMEMBERED_ELEMENTS)
def _short_element(tag: int, vr: bytes, value: bytes) -> bytes | None:
    """Encode an element whose JSON depends on nothing else. None if it may depend on the character set or on the location of the value.

    ASCII without escape sequences is the same in all character sets.

    Args:
        vr: US or SS, already resolved.
        value: at most REMEMBERED_VALUE_BYTES.
    """
    head = (_KEYS.get(tag) or _key(tag)) + vr
    if not value:
        return head + b'"}'
    encoder = _ENCODERS.get(vr)
    if encoder is None:
        return head + b'","InlineBinary":"' + b2a_base64(value, newline=False) + b'"}'
    size = _NUMBER_SIZES.get(vr)
    if size is None:
        if vr in _IN_CHARACTER_SET and (not value.isascii() or b"\x1b" in value):
            return None
    elif len(value) % size:
        return None
    values = encoder(value, DEFAULT_CHARACTER_SET)
    if size is not None and b"n" in values:
        return None
    return head + (b'","Value":' + values + b"}" if values else b'"}')


@dataclass(slots=True)
class DicomJson:
    """Writes DICOM JSON objects, and records the locations of values that it leaves out.

    Attributes:
        uri_prefix: BulkDataURI up to the path of the element, JSON-escaped, without quotes.
        place_of: returns the span of a value that DICOM JSON cannot represent (FL, FD not finite; numbers of wrong length), from VR, value
            and offset.
        bulk: the values left out, in the order of their tags.
    """

    uri_prefix: bytes
    place_of: Callable[[bytes, bytes, int], Span]
    bulk: list[BulkElement] = field(default_factory=list)
    _has_text_beyond_ascii: bool = False

    def encode(self, root: Elements) -> bytes:
        """Encode a whole data set as one object."""
        return self._data_set(root, DEFAULT_CHARACTER_SET, b"US", "", is_root=True)

    def _data_set(self, elements: Elements, charset: CharacterSet, us_or_ss: bytes, path: str, *, is_root: bool = False) -> bytes:
        outer, self._has_text_beyond_ascii = self._has_text_beyond_ascii, False
        charset, us_or_ss = _inherit(elements, charset, us_or_ss)
        charset_at = -1
        out: list[bytes] = []
        for tag in sorted(elements):
            vr, value, offset = elements[tag]
            if tag & 0xFFFF == 0 or tag < 0x00030000:
                continue
            if tag == SPECIFIC_CHARACTER_SET:
                charset_at = len(out)
            if vr == US_OR_SS:
                vr = us_or_ss
            if type(value) is bytes and len(value) <= REMEMBERED_VALUE_BYTES and (short := _short_element(tag, vr, value)) is not None:
                out.append(short)
                continue
            head = (_KEYS.get(tag) or _key(tag)) + vr
            if type(value) is bytes:
                out.append(head + (self._value(tag, vr, value, offset, charset, path) if value else b'"}'))
            elif type(value) is list:
                out.append(head + self._sequence(tag, value, charset, us_or_ss, path))
            else:
                assert isinstance(value, Bulk | Fragments)
                out.append(head + self._left_out(tag, vr, _span(value), path))
        if self._has_text_beyond_ascii and (is_root or charset_at >= 0):
            element = _key(SPECIFIC_CHARACTER_SET) + b'CS","Value":' + _UTF_8 + b"}"
            if charset_at >= 0:
                out[charset_at] = element
            else:
                out.insert(sum(tag < SPECIFIC_CHARACTER_SET and tag >= 0x00030000 and tag & 0xFFFF != 0 for tag in elements), element)
        self._has_text_beyond_ascii |= outer
        return b"{" + b",".join(out) + b"}"

    def _value(self, tag: int, vr: bytes, value: bytes, offset: int, charset: CharacterSet, path: str) -> bytes:
        encoder = _ENCODERS.get(vr)
        if encoder is None:
            return b'","InlineBinary":"' + b2a_base64(value, newline=False) + b'"}'
        size = _NUMBER_SIZES.get(vr)
        if size is None:
            if vr in _IN_CHARACTER_SET and (not value.isascii() or b"\x1b" in value):
                self._has_text_beyond_ascii = True
            values = encoder(value, charset)
            return b'","Value":' + values + b"}" if values else b'"}'
        if len(value) % size == 0:
            values = encoder(value, charset)
            if b"n" not in values:  # orjson writes null for numbers that are not finite
                return b'","Value":' + values + b"}"
        return self._left_out(tag, vr, self.place_of(vr, value, offset), path)

    def _sequence(self, tag: int, items: list[Elements], charset: CharacterSet, us_or_ss: bytes, path: str) -> bytes:
        if not items:
            return b'"}'
        place = f"{path}{tag:08X}/"
        encoded = [self._data_set(item, charset, us_or_ss, f"{place}{number}/") for number, item in enumerate(items, 1)]
        return b'","Value":[' + b",".join(encoded) + b"]}"

    def _left_out(self, tag: int, vr: bytes, span: Span, path: str) -> bytes:
        place = f"{path}{tag:08X}"
        self.bulk.append(BulkElement(place, vr.decode("ascii"), span))
        return b'","BulkDataURI":"' + self.uri_prefix + place.encode("ascii") + b'"}'


def _inherit(elements: Elements, charset: CharacterSet, us_or_ss: bytes) -> tuple[CharacterSet, bytes]:
    """Return the character set and the VR for "US or SS" of a data set: its own or those of the enclosing one."""
    own_charset = elements.get(SPECIFIC_CHARACTER_SET)
    if own_charset is not None and isinstance(own_charset[1], bytes):
        charset = character_set(own_charset[1])
    return charset, us_or_ss_of(elements, us_or_ss)


def us_or_ss_of(elements: Elements, outer: bytes) -> bytes:
    """Return US or SS by Pixel Representation (0028,0103); that of the enclosing data set if it is absent."""
    own = elements.get(PIXEL_REPRESENTATION)
    if own is None or not isinstance(own[1], bytes) or len(own[1]) < 2:
        return outer
    return b"SS" if own[1][:2] == b"\1\0" else b"US"


def _span(value: Bulk | Fragments) -> Span:
    if isinstance(value, Bulk):
        return Span(value.origin, value.offset, value.length)
    return Span(value.origin, value.offset, value.end - 8 - value.offset)
