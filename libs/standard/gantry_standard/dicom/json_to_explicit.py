"""Encode DICOM JSON as a data set in Explicit VR Little Endian, element by element.

The result is a stream of bytes, with a `BulkReference` in place of each value that is stored elsewhere. Padding is added, and text
becomes UTF-8. Tolerated in the input: tags in upper or lower case, numbers or strings, both base64 alphabets, a missing VR that the
dictionary has, an empty `Value`. A value that cannot be encoded is a ScanFailure, which names the element but not its value.

Source: PS3.18 Annex F; PS3.5 §6.2 and §7.1.2.
"""

import base64
import binascii
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gantry_standard import reasons
from gantry_standard.dicom.dictionary import US_OR_OW, US_OR_SS, standard_vr
from gantry_standard.dicom.limits import ScanFailure
from gantry_standard.dicom.part10 import (
    ITEM_DELIMITER,
    ITEM_UNDEFINED,
    SEQUENCE_DELIMITER,
    UNDEFINED_LENGTH,
    encode_element,
    encode_element_header,
)
from gantry_standard.dicom.value_representations import VALUE_REPRESENTATIONS, Kind
from gantry_standard.dicom.values import PIXEL_REPRESENTATION, SPECIFIC_CHARACTER_SET

JsonDataSet = Mapping[str, Any]
"""A parsed DICOM JSON object."""

UTF_8 = "ISO_IR 192"

_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_FIRST_TAG = 0x00030000  # groups 0000 and 0002 are not part of a data set
_LONGEST_DECIMAL_STRING = 16
_COMPONENT_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf, "inf": math.inf, "-inf": -math.inf, "nan": math.nan}
# In values of these VRs a backslash is the delimiter (PS3.5 §6.2), so one in a JSON value separates values.
_SINGLE_VALUED = frozenset((b"LT", b"ST", b"UT", b"UR"))
_VALUE_KEYS = ("Value", "InlineBinary", "BulkDataURI")
_LEVELS_OF_A_LEAF = 4
"""Levels below the last sequence: data set, element, Value, person name."""


@dataclass(frozen=True, slots=True)
class BulkReference:
    """An element whose value is stored elsewhere.

    Attributes:
        uri: BulkDataURI, unchanged.
        is_root: the element is in the data set itself, not in an item of a sequence.
    """

    tag: int
    vr: bytes
    uri: str
    is_root: bool


Piece = bytes | BulkReference


def parse_data_sets(document: bytes) -> list[dict[str, Any]]:
    """Parse a DICOM JSON document: an array of objects, or a single object.

    The objects may be nested up to 1,024 deep. Check them with `is_too_deep` before a function that calls itself gets them.

    Raises:
        ScanFailure: it is neither.
    """
    try:
        model = orjson.loads(document)
    except orjson.JSONDecodeError as error:
        if " limit " in str(error):  # orjson: "depth limit exceeded" or, older, "Recursion limit reached"
            raise ScanFailure("sequences are nested deeper than any reader allows", reasons.PROCESSING_FAILURE) from None
        raise ScanFailure("the metadata is not JSON", reasons.CANNOT_UNDERSTAND) from None
    data_sets = [model] if isinstance(model, dict) else model
    if not isinstance(data_sets, list) or not data_sets or not all(isinstance(entry, dict) for entry in data_sets):
        raise ScanFailure("the metadata is no array of DICOM JSON objects", reasons.CANNOT_UNDERSTAND)
    return data_sets


def is_too_deep(data_set: JsonDataSet, most_depth: int) -> bool:
    """Return whether a parsed DICOM JSON object has more levels than sequences nested `most_depth` deep can have.

    It goes level by level and does not call itself, so it takes any depth. A sequence is three levels: element, Value, item.
    """
    level: list[Any] = [data_set]
    for _ in range(3 * most_depth + _LEVELS_OF_A_LEAF):
        level = [
            entry
            for container in level
            for entry in (container.values() if type(container) is dict else container)
            if type(entry) in (dict, list)
        ]
        if not level:
            return False
    return True


def serialise(data_set: JsonDataSet) -> bytes:
    """Return a DICOM JSON object as UTF-8.

    Raises:
        ScanFailure: its objects and arrays are nested more than 254 deep, as orjson allows.
    """
    try:
        return orjson.dumps(data_set)
    except orjson.JSONEncodeError:
        raise ScanFailure("the metadata cannot be written as JSON", reasons.PROCESSING_FAILURE) from None


def is_ascii(value: Any) -> bool:
    """Return whether all text of a JSON value is ASCII."""
    if isinstance(value, str):
        return value.isascii()
    if isinstance(value, Mapping):
        return all(is_ascii(entry) for entry in value.values())
    return all(is_ascii(entry) for entry in value) if isinstance(value, list) else True


def encode_data_set(data_set: JsonDataSet, most_depth: int) -> Iterator[Piece]:
    """Encode a data set, in the order of its tags; group lengths and groups below 0003 are left out.

    If text is not ASCII, Specific Character Set becomes ISO_IR 192, also in items that have one.

    Args:
        most_depth: maximum depth of nested sequences.

    Raises:
        ScanFailure: while iterating; an element cannot be encoded.
    """
    return _Encoder(most_depth, is_utf_8=not is_ascii(data_set)).data_set(data_set, b"US", 0)


class _Encoder:
    def __init__(self, most_depth: int, *, is_utf_8: bool) -> None:
        self._most_depth = most_depth
        self._is_utf_8 = is_utf_8

    def data_set(self, data_set: JsonDataSet, us_or_ss: bytes, depth: int) -> Iterator[Piece]:
        elements = {tag: element for tag, element in _elements(data_set) if tag >= _FIRST_TAG and tag & 0xFFFF}
        us_or_ss = _us_or_ss(elements, us_or_ss)
        if self._is_utf_8 and (depth == 0 or SPECIFIC_CHARACTER_SET in elements):
            elements[SPECIFIC_CHARACTER_SET] = {"vr": "CS", "Value": [UTF_8]}
        for tag in sorted(elements):
            element = elements[tag]
            vr = _vr_of(tag, element, us_or_ss)
            key = _value_key(tag, element)
            if vr == b"SQ":
                yield from self._sequence(tag, key, element, us_or_ss, depth)
            elif key == "BulkDataURI":
                yield BulkReference(tag, vr, _text(tag, element[key]), depth == 0)
            else:
                yield encode_element(tag, vr, _value(tag, vr, key, element) if key else b"")

    def _sequence(self, tag: int, key: str, element: JsonDataSet, us_or_ss: bytes, depth: int) -> Iterator[Piece]:
        if key not in ("", "Value"):
            raise _failure(tag, f"a sequence has no {key}")
        items = _list(tag, element.get("Value", []))
        if depth + 1 > self._most_depth:
            raise ScanFailure(f"sequences are nested deeper than {self._most_depth}", reasons.PROCESSING_FAILURE)
        yield encode_element_header(tag, b"SQ", UNDEFINED_LENGTH if items else 0)
        for item in items:
            if item is not None and not isinstance(item, Mapping):
                raise _failure(tag, "an item of a sequence is no object")
            yield ITEM_UNDEFINED
            yield from self.data_set(item or {}, us_or_ss, depth + 1)
            yield ITEM_DELIMITER
        if items:
            yield SEQUENCE_DELIMITER


def _elements(data_set: JsonDataSet) -> Iterator[tuple[int, JsonDataSet]]:
    for key, element in data_set.items():
        if not _TAG.fullmatch(key):
            raise ScanFailure("a key of a DICOM JSON object is no tag: expected 8 hex digits", reasons.CANNOT_UNDERSTAND)
        tag = int(key, 16)
        if not isinstance(element, Mapping):
            raise _failure(tag, "is no object")
        yield tag, element


def _us_or_ss(elements: dict[int, JsonDataSet], outer: bytes) -> bytes:
    values = elements.get(PIXEL_REPRESENTATION, {}).get("Value") or []
    if not isinstance(values, list) or not values:
        return outer
    return b"SS" if values[0] in (1, "1") else b"US"


def _vr_of(tag: int, element: JsonDataSet, us_or_ss: bytes) -> bytes:
    named = element.get("vr")
    if isinstance(named, str) and named.encode("utf-8", "replace") in VALUE_REPRESENTATIONS:
        return named.encode("ascii")
    if named is not None:
        raise _failure(tag, "has no vr that is known")
    vr = standard_vr(tag) or b"UN"
    return {US_OR_SS: us_or_ss, US_OR_OW: b"OW"}.get(vr, vr)


def _value_key(tag: int, element: JsonDataSet) -> str:
    keys = [key for key in _VALUE_KEYS if element.get(key) is not None]
    if len(keys) > 1:
        raise _failure(tag, f"has {' and '.join(keys)}, expected at most one of them")
    return keys[0] if keys else ""


def _value(tag: int, vr: bytes, key: str, element: JsonDataSet) -> bytes:
    row = VALUE_REPRESENTATIONS[vr]
    if key == "InlineBinary":
        data = _inline_binary(tag, element[key])
        if row.word > 1 and row.kind is Kind.NUMBER and len(data) % row.word:
            raise _failure(tag, f"has an InlineBinary of {len(data)} bytes, expected numbers of VR {vr.decode()}")
        return data
    values = _list(tag, element[key])
    if row.kind is Kind.BINARY:
        if values:
            raise _failure(tag, "has Value, expected InlineBinary or BulkDataURI")
        return b""
    try:
        if row.kind is Kind.NUMBER:
            return _numbers(vr, values)
        return _strings(vr, values)
    except (ValueError, TypeError, KeyError, OverflowError, struct.error):
        raise _failure(tag, f"has a value that VR {vr.decode()} cannot hold") from None


def _inline_binary(tag: int, text: Any) -> bytes:
    # Some writers use the URL-safe alphabet, omit the padding, or break lines.
    plain = "".join(_text(tag, text).split()).translate({0x2D: "+", 0x5F: "/"}).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _failure(tag, "has an InlineBinary that is not base64") from None


def _numbers(vr: bytes, values: list[Any]) -> bytes:
    if values in ([], [None]):
        return b""
    if vr == b"AT":
        return b"".join(struct.pack("<HH", tag >> 16, tag & 0xFFFF) for tag in map(_tag_value, values))
    letter = VALUE_REPRESENTATIONS[vr].format
    convert: Callable[[Any], int | float] = _float if letter in "fd" else _integer
    return struct.pack(f"<{len(values)}{letter}", *map(convert, values))


def _tag_value(value: Any) -> int:
    if not isinstance(value, str) or not _TAG.fullmatch(value):
        raise ValueError
    return int(value, 16)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    if isinstance(value, float) and not value.is_integer():
        raise ValueError
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    return _NOT_FINITE[value] if isinstance(value, str) and value in _NOT_FINITE else float(value)


def _strings(vr: bytes, values: list[Any]) -> bytes:
    if vr == b"PN":
        convert: Callable[[Any], str] = _person_name
    elif vr == b"DS":
        convert = _decimal_string
    elif vr == b"IS":
        convert = _integer_string
    else:
        convert = _string
    if vr in _SINGLE_VALUED and len(values) > 1:
        raise ValueError
    text = "\\".join("" if value is None else convert(value) for value in values)
    return text.encode("utf-8" if VALUE_REPRESENTATIONS[vr].kind is not Kind.ASCII else "ascii")


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _person_name(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping) or not set(value) <= set(_COMPONENT_GROUPS):
        raise TypeError
    return "=".join(_string(value.get(group) or "") for group in _COMPONENT_GROUPS).rstrip("=")


def _integer_string(value: Any) -> str:
    return value if isinstance(value, str) else str(_integer(value))


def _decimal_string(value: Any) -> str:
    """Return a number in at most 16 characters, as exactly as possible (PS3.5 Table 6.2-1)."""
    if isinstance(value, str):
        return value
    number = _float(value)
    if not math.isfinite(number):
        raise ValueError
    text = str(value)
    for digits in range(17, 0, -1):
        if len(text) <= _LONGEST_DECIMAL_STRING:
            break
        text = f"{number:.{digits}g}"
    return text


def _list(tag: int, values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise _failure(tag, "has a Value that is no array")
    return values


def _text(tag: int, value: Any) -> str:
    if not isinstance(value, str):
        raise _failure(tag, "has an InlineBinary or BulkDataURI that is no string")
    return value


def _failure(tag: int, message: str) -> ScanFailure:
    return ScanFailure(f"({tag:08X}) {message}", reasons.CANNOT_UNDERSTAND)
