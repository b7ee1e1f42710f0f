"""The Native DICOM Model: data sets as XML, to and from the DICOM JSON Model.

Both are trees of the same shape (PS3.18 Table F.3.1-1). A document is read into a DICOM JSON object, and an object is written as a
document; no other module knows XML.

Decisions that the standard leaves open: documents without the namespace are accepted, and attribute names in upper or lower case. A
document type declaration, and so every entity, is refused. Characters that XML 1.0 does not allow are left out. Private elements without
a creator keep their tag, block number included.

Source: PS3.19 §A.1; PS3.18 §F.3.1; PS3.5 §7.8.1 for private blocks.
"""

import json
import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from xml.parsers import expat

from gantry_standard import reasons
from gantry_standard.dicom.dictionary import STANDARD_VRS, US_OR_OW, US_OR_SS, implicit_vr, private_vr
from gantry_standard.dicom.limits import Limits, ScanFailure
from gantry_standard.dicom.pydicom_tables import attribute as dictionary_row
from gantry_standard.dicom.value_representations import VALUE_REPRESENTATIONS, Kind

NAMESPACE = "http://dicom.nema.org/PS3.19/models/NativeDICOM"

Object = dict[str, Any]
"""A DICOM JSON object: from tag, 8 upper-case hex digits, to value object."""

ENCODINGS = frozenset(
    {"utf-8", "utf-16", "us-ascii", "tis-620", "windows-1252", "iso-8859-15", *(f"iso-8859-{part}" for part in range(1, 10))}
)
"""Supported encodings of documents: those of Expat, and single-byte sets of PS3.18 Table D-1."""

_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_COMPONENTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
_ROOT, _ATTRIBUTE = "NativeDicomModel", "DicomAttribute"

# Element -> elements that it may hold (PS3.19 §A.1.6); "" is the document.
_CHILDREN: dict[str, tuple[str, ...]] = {
    "": (_ROOT,),
    _ROOT: (_ATTRIBUTE,),
    "Item": (_ATTRIBUTE,),
    _ATTRIBUTE: ("Value", "Item", "PersonName", "InlineBinary", "BulkData"),
    "PersonName": _GROUPS,
    **dict.fromkeys(_GROUPS, _COMPONENTS),
}
_WITH_TEXT = frozenset({"Value", "InlineBinary", *_COMPONENTS})
_NUMBERED = frozenset({"Value", "Item", "PersonName"})

_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_NUMBER = re.compile(r"[1-9][0-9]{0,6}")
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_SPACE = re.compile(r"[ \t\r\n]+")
# Spellings of numbers that are not finite: xs:double, Python, JavaScript -> the DICOM JSON of this program.
_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "infinity": "Infinity", "-inf": "-Infinity", "-infinity": "-Infinity"}

_LARGEST_INTEGER = 2**53 - 1
_PIXEL_REPRESENTATION = 0x00280103
_UIDS = {
    "study_instance_uid": 0x0020000D,
    "series_instance_uid": 0x0020000E,
    "sop_class_uid": 0x00080016,
    "sop_instance_uid": 0x00080018,
}
_FIRST_BLOCK, _LAST_BLOCK = 0x10, 0xFF


class _Wrong(ValueError):
    """The error in the document, without its position."""


def to_json_model(document: bytes, limits: Limits | None = None) -> Object:
    """Read a document.

    Args:
        document: XML 1.0 in one of `ENCODINGS`.
        limits: `elements` bounds attributes, items and values together, `depth` sequences within sequences, `value_bytes` characters.

    Returns:
        A DICOM JSON object, tags ascending. IS and DS are unchanged strings; FL and FD that are not finite are "NaN", "Infinity" or
        "-Infinity"; integers beyond 2^53-1 are strings. BulkDataURI is unchanged. Text is not trimmed. Group lengths are left out.
        Private elements have the block of their creator element if the document has one, else the first free one.

    Raises:
        ScanFailure: the document is invalid, or exceeds a limit. The message names tags, never values.

    Source: PS3.19 §A.1, PS3.18 Table F.3.1-1.
    """
    return _Reader(limits or Limits()).read(document)


@dataclass(slots=True)
class _DataSet:
    """The root or an item while it is read; private elements wait for their blocks."""

    outer: "_DataSet | None" = None
    elements: dict[int, Object] = field(default_factory=dict)
    private: dict[tuple[str, int], Object] = field(default_factory=dict)

    def value_of(self, tag: int) -> Any:
        """Return the first value of an attribute; None if there is none."""
        values = self.elements.get(tag, {}).get("Value")
        return values[0] if values else None

    def finished(self) -> Object:
        """Return it as a DICOM JSON object."""
        blocks: dict[tuple[int, str], int] = {}
        for (creator, tag), element in self.private.items():
            group = tag >> 16
            block = blocks.get((group, creator)) or blocks.setdefault((group, creator), self._block(group, creator))
            self.elements[tag | block << 8] = element
        return {f"{tag:08X}": self.elements[tag] for tag in sorted(self.elements)}

    def _block(self, group: int, creator: str) -> int:
        """Return the block of a creator, or assign the first free one (PS3.5 §7.8.1)."""
        taken = set()
        for tag in self.elements:
            if tag >> 16 == group:
                element = tag & 0xFFFF
                taken.add(element if element <= _LAST_BLOCK else element >> 8)
        for block in range(_FIRST_BLOCK, _LAST_BLOCK + 1):
            if str(self.value_of(group << 16 | block)).strip() == creator:
                return block
        for block in range(_FIRST_BLOCK, _LAST_BLOCK + 1):
            if block not in taken:
                self.elements[group << 16 | block] = {"vr": "LO", "Value": [creator]}
                return block
        raise _Wrong(f"group {group:04X} has more than {_LAST_BLOCK - _FIRST_BLOCK + 1} private creators")


@dataclass(slots=True)
class _Attribute:
    """A DicomAttribute while it is read.

    `kind` is the name of its children, "" before the first; `content` their values by number, number 1 where they have none.
    """

    data_set: _DataSet
    tag: int
    vr: str
    creator: str
    kind: str = ""
    content: dict[int, Any] = field(default_factory=dict)


class _Reader:
    """Handles the events of Expat. `_path` holds the names of the open elements, "" first."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._left = limits.elements
        self._characters_left = limits.value_bytes
        self._path = [""]
        self._text: list[str] = []
        self._root = _DataSet()
        self._data_set = self._root
        self._attributes: list[_Attribute] = []
        self._numbers: list[int] = []
        self._name: dict[str, str] = {}
        self._components: dict[str, str] = {}
        self._undecided: list[tuple[_Attribute, Object]] = []
        self._model: Object = {}

    def read(self, document: bytes) -> Object:
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        try:
            parser.Parse(document, True)
        except expat.ExpatError as error:
            raise self._failure(f"line {error.lineno}: not well-formed XML ({expat.ErrorString(error.code)})") from error
        except _Wrong as error:
            raise self._failure(f"line {parser.CurrentLineNumber}: {error}") from error
        except _TooMuch as error:
            raise self._failure(f"instance has {error}", reasons.PROCESSING_FAILURE) from error
        self._decide_vrs()
        return self._model

    def _decide_vrs(self) -> None:
        """Set the VR of elements without one; it can depend on other elements of the data set."""
        try:
            for attribute, element in self._undecided:
                attribute.vr = _decided_vr(attribute)
                element.update(_value_object(attribute))
        except _Wrong as error:
            raise self._failure(str(error)) from error

    def _failure(self, message: str, reason: int = reasons.CANNOT_UNDERSTAND) -> ScanFailure:
        uids = {name: self._root.value_of(tag) or "" for name, tag in _UIDS.items()}
        return ScanFailure(message, reason, **uids)

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if version != "1.0":
            raise _Wrong("the document is not XML 1.0")
        if encoding is not None and encoding.lower() not in ENCODINGS:
            raise _Wrong(f"encoding {encoding[:32]} is not supported; supported is UTF-8")

    def _refuse_doctype(self, name: str, system: str | None, public: str | None, has_internal_subset: bool) -> None:
        raise _Wrong("a document type declaration is not allowed")

    def _start(self, full_name: str, full_attributes: dict[str, str]) -> None:
        namespace, _, name = full_name.rpartition(" ")
        parent = self._path[-1]
        if namespace not in ("", NAMESPACE) or name not in _CHILDREN.get(parent, ()):
            raise _Wrong(f"element {name[:32]} is not allowed in {parent or 'the document'}")
        self._path.append(name)
        self._text.clear()
        if name in _WITH_TEXT and name not in _NUMBERED and name != "InlineBinary":
            return
        attributes = {key.lower(): value for key, value in full_attributes.items()}
        if name == _ATTRIBUTE:
            self._count()
            self._attributes.append(_attribute(self._data_set, attributes))
        elif parent == _ATTRIBUTE:
            self._start_content(name, attributes)

    def _start_content(self, name: str, attributes: dict[str, str]) -> None:
        self._count()
        attribute = self._attributes[-1]
        if attribute.kind not in ("", name) or (attribute.kind and name not in _NUMBERED):
            raise _Wrong(f"({attribute.tag:08X}) has a {name} after a {attribute.kind}")
        attribute.kind = name
        if name == "BulkData":
            attribute.content[1] = _uri(attribute, attributes)
        if name in _NUMBERED:
            number = attributes.get("number", "").strip()
            if not _NUMBER.fullmatch(number) or int(number) in attribute.content:
                raise _Wrong(f"({attribute.tag:08X}) has a {name} whose number is missing, repeated or none")
            self._numbers.append(int(number))
            attribute.content[int(number)] = None
        if name == "Item":
            self._data_set = _DataSet(self._data_set)
            if len(self._attributes) > self._limits.depth:
                raise _TooMuch(f"sequences nested deeper than {self._limits.depth}")

    def _end(self, _: str) -> None:
        name = self._path.pop()
        text = "".join(self._text)
        self._text.clear()
        if name in _WITH_TEXT:
            self._end_text(name, text)
        elif name in _GROUPS:
            joined = "^".join([self._components.get(component, "") for component in _COMPONENTS]).rstrip("^")
            self._components = {}
            self._refuse_second(name, self._name, "name")
            self._name[name] = joined
        elif name == "PersonName":
            self._attributes[-1].content[self._numbers.pop()] = {key: value for key, value in self._name.items() if value} or None
            self._name = {}
        elif name == "Item":
            self._attributes[-1].content[self._numbers.pop()] = self._data_set.finished()
            assert self._data_set.outer is not None
            self._data_set = self._data_set.outer
        elif name == _ATTRIBUTE:
            self._end_attribute(self._attributes.pop())
        elif name == _ROOT:
            self._model = self._root.finished()

    def _end_text(self, name: str, text: str) -> None:
        if name == "Value":
            self._attributes[-1].content[self._numbers.pop()] = text
        elif name == "InlineBinary":
            self._attributes[-1].content[1] = text
        else:
            self._refuse_second(name, self._components, "component group")
            self._components[name] = text

    def _refuse_second(self, name: str, seen: dict[str, str], where: str) -> None:
        if name in seen:
            raise _Wrong(f"({self._attributes[-1].tag:08X}) has two {name} in one {where}")

    def _end_attribute(self, attribute: _Attribute) -> None:
        element: Object = {"vr": attribute.vr}
        if attribute.vr:
            element.update(_value_object(attribute))
        else:
            self._undecided.append((attribute, element))
        if attribute.tag & 0xFFFF == 0 and not attribute.creator:
            return
        if attribute.creator:
            is_new = attribute.data_set.private.setdefault((attribute.creator, attribute.tag), element) is element
        else:
            is_new = attribute.data_set.elements.setdefault(attribute.tag, element) is element
        if not is_new:
            raise _Wrong(f"({attribute.tag:08X}) stands twice in one data set")

    def _characters(self, text: str) -> None:
        if self._path[-1] in _WITH_TEXT:
            self._characters_left -= len(text)
            if self._characters_left < 0:
                raise _TooMuch(f"more than {self._limits.value_bytes} characters of values")
            self._text.append(text)
        elif text.strip():
            raise _Wrong(f"there is text in {self._path[-1]}")

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _TooMuch(f"more than {self._limits.elements} attributes, items and values")


class _TooMuch(ValueError):
    """The limit that a document exceeds."""


def _attribute(data_set: _DataSet, attributes: dict[str, str]) -> _Attribute:
    """Read the attributes of a DicomAttribute, whose names are in lower case here."""
    text = attributes.get("tag", "").strip()
    if not _TAG.fullmatch(text):
        raise _Wrong("a DicomAttribute has no tag of eight hexadecimal digits")
    tag, creator, vr = int(text, 16), attributes.get("privatecreator", "").strip(), attributes.get("vr", "").strip()
    if vr and vr.encode() not in VALUE_REPRESENTATIONS:
        raise _Wrong(f"({tag:08X}) has a vr that is not known")
    is_private = bool(tag >> 16 & 1)
    if creator and not is_private:
        raise _Wrong(f"({tag:08X}) has a privateCreator and is not private")
    if creator:
        tag &= 0xFFFF00FF
    elif is_private and 0 < tag & 0xFFFF < _FIRST_BLOCK:
        raise _Wrong(f"({tag:08X}) has no privateCreator")
    elif is_private and _FIRST_BLOCK <= tag & 0xFFFF <= _LAST_BLOCK and vr not in ("", "LO"):
        raise _Wrong(f"({tag:08X}) has no privateCreator, and its vr is not that of a private creator element")
    return _Attribute(data_set, tag, vr, creator)


def _uri(attribute: _Attribute, attributes: dict[str, str]) -> str:
    if "uuid" in attributes:
        raise _Wrong(f"({attribute.tag:08X}) has its BulkData by uuid, which nobody can resolve here; expected uri")
    uri = attributes.get("uri", "").strip()
    if not uri:
        raise _Wrong(f"({attribute.tag:08X}) has a BulkData without uri")
    return uri


def _decided_vr(attribute: _Attribute) -> str:
    """Return the VR of an attribute that does not name it; its data set has been read."""

    def value_of(tag: int) -> bytes | None:
        value = attribute.data_set.value_of(tag)
        if isinstance(value, int) and 0 <= value <= 0xFFFF:
            return value.to_bytes(2, "little")
        return value.encode("latin-1", "replace") if isinstance(value, str) else None

    vr = private_vr(attribute.creator, attribute.tag) or b"UN" if attribute.creator else implicit_vr(attribute.tag, value_of)
    is_numbers = attribute.kind == "Value"
    if vr == US_OR_SS or (is_numbers and US_OR_OW in (vr, STANDARD_VRS.get(attribute.tag))):
        return "SS" if _is_signed(attribute.data_set) else "US"
    if vr == US_OR_OW:
        return "OW"
    if vr not in VALUE_REPRESENTATIONS or (vr == b"UN" and attribute.kind not in ("", "BulkData", "InlineBinary")):
        raise _Wrong(f"({attribute.tag:08X}) has no vr, and the dictionary does not know it")
    return vr.decode()


def _is_signed(data_set: _DataSet | None) -> bool:
    """Return whether Pixel Representation is 1 in a data set or, if absent there, in the enclosing one."""
    while data_set is not None:
        if _PIXEL_REPRESENTATION in data_set.elements:
            return bool(data_set.value_of(_PIXEL_REPRESENTATION) == 1)
        data_set = data_set.outer
    return False


# Kind of VR -> name of the element with its values; bulkdata is checked with the instance.
_CONTENT_OF = {Kind.BINARY: "InlineBinary", Kind.SEQUENCE: "Item"}


def _value_object(attribute: _Attribute) -> Object:
    """Return the value object of an attribute whose VR is known."""
    vr, kind = attribute.vr, attribute.kind
    if not kind:
        return {"vr": vr}
    if kind == "BulkData":
        return {"vr": vr, "BulkDataURI": attribute.content[1]}
    expected = "PersonName" if vr == "PN" else _CONTENT_OF.get(VALUE_REPRESENTATIONS[vr.encode()].kind, "Value")
    if kind != expected:
        raise _Wrong(f"({attribute.tag:08X}) of VR {vr} has a {kind}; expected {expected}")
    if kind == "InlineBinary":
        return _inline_binary(attribute)
    numbers = sorted(attribute.content)
    if numbers[-1] != len(numbers):
        raise _Wrong(f"({attribute.tag:08X}) has {len(numbers)} {kind} elements, and their numbers are not 1 to {len(numbers)}")
    values = [attribute.content[number] for number in numbers]
    if kind == "Value":
        values = _values(attribute, values)
    # One empty value is an empty element; in between it is null.
    return {"vr": vr} if values == [None] else {"vr": vr, "Value": values}


def _inline_binary(attribute: _Attribute) -> Object:
    text = _SPACE.sub("", attribute.content[1])
    try:
        a2b_base64(text, strict_mode=True)
    except (Base64Error, ValueError) as error:
        raise _Wrong(f"({attribute.tag:08X}) has an InlineBinary that is not base64") from error
    return {"vr": attribute.vr, "InlineBinary": text} if text else {"vr": attribute.vr}


def _values(attribute: _Attribute, texts: list[str]) -> list[Any]:
    if len(texts) > 1 and VALUE_REPRESENTATIONS[attribute.vr.encode()].kind is Kind.LONG_TEXT:
        raise _Wrong(f"({attribute.tag:08X}) of VR {attribute.vr} has {len(texts)} values; expected at most one")
    read = _READERS.get(attribute.vr)
    if read is None:
        return [text or None for text in texts]
    try:
        return [read(stripped) if (stripped := text.strip()) else None for text in texts]
    except _Wrong as error:
        raise _Wrong(f"({attribute.tag:08X}) of VR {attribute.vr} has a value that is {error}") from None


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise _Wrong("no integer")
    return int(text)


def _long_integer(text: str) -> int | str:
    number = _integer(text)
    return number if abs(number) <= _LARGEST_INTEGER else str(number)


def _real(text: str) -> float | str:
    if number := _NOT_FINITE.get(text.lower().removeprefix("+")):
        return number
    if not _DECIMAL.fullmatch(text):
        raise _Wrong("no number")
    return float(text)


def _attribute_tag(text: str) -> str:
    if not _TAG.fullmatch(text):
        raise _Wrong("no tag of eight hexadecimal digits")
    return text.upper()


# VR -> reader of one value that is not empty, stripped; other VRs are unchanged text.
_READERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("SL", "SS", "UL", "US"), _integer),
    **dict.fromkeys(("SV", "UV"), _long_integer),
    **dict.fromkeys(("FD", "FL"), _real),
    **dict.fromkeys(("DS", "IS"), str),
    "AT": _attribute_tag,
}


_BEGIN = f'<?xml version="1.0" encoding="UTF-8"?><{_ROOT} xmlns="{NAMESPACE}" xml:space="preserve">'
_END = f"</{_ROOT}>"

# XML readers turn CR LF into LF, and white space in attributes into spaces, unless they are references.
_REFERENCES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}
_NO_XML = "".join(map(chr, (*range(0x20), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF)))
_ESCAPES = str.maketrans({**dict.fromkeys(_NO_XML), **_REFERENCES})
_TO_ESCAPE = re.compile('[\x00-\x1f&<>"\ud800-\udfff\ufffe\uffff]')


def write(model: Object) -> bytes:
    """Write a DICOM JSON object as a document in UTF-8.

    Args:
        model: numbers may be strings; they are written unchanged.

    Returns:
        Attributes in ascending order of their tags. Private creator elements are attributes of their elements. Group lengths are left
        out, and characters that XML 1.0 does not allow.

    Source: PS3.19 §A.1, PS3.18 Table F.3.1-1.
    """
    out = [_BEGIN]
    _write_data_set(model, out)
    out.append(_END)
    return "".join(out).encode()


def write_encoded(dicom_json: bytes) -> Iterator[bytes]:
    """Write an encoded DICOM JSON object as a document, in chunks.

    The object and the document never exist as a whole in Python. Top-level attributes are read one by one, and sequences item by item.
    So a thread that does this lets other threads run in between.

    Args:
        dicom_json: as Gantry stores it, tags ascending. Numbers keep their digits (1.50 stays 1.50).

    Yields:
        The chunks of what `write` returns.
    """
    text = dicom_json.decode()
    private: Object = {}
    out = [_BEGIN]
    position = 0
    while key_match := _KEY.match(text, position):
        key, position = key_match[1], key_match.end()
        if private and next(iter(private))[:4] != key[:4]:
            _write_data_set(private, out)
            private = {}
        is_private = int(key[3], 16) & 1
        if not is_private and (sequence := _SEQUENCE.match(text, position)):
            yield "".join(out).encode()
            out.clear()
            position = yield from _sequence_pieces(text, key, sequence.end())
            continue
        element, position = _DECODER.raw_decode(text, position)
        if is_private:
            private[key] = element  # creators, and the order as written, need the whole group
        elif key[4:] != "0000":
            _write_element(_head(key, element["vr"]), element, out)
    _write_data_set(private, out)
    out.append(_END)
    yield "".join(out).encode()


def first_values(dicom_json: bytes, keys: Collection[str]) -> dict[str, str]:
    """Return the first values of top-level attributes of an encoded DICOM JSON object, without those that have none.

    Args:
        dicom_json: as Gantry keeps it, tags ascending; it is read up to the last of `keys` only.
        keys: of attributes whose values are strings.
    """
    text = dicom_json.decode()
    last = max(keys)
    values: dict[str, str] = {}
    position = 0
    while (key_match := _KEY.match(text, position)) and key_match[1] <= last:
        element, position = _DECODER.raw_decode(text, key_match.end())
        if key_match[1] in keys and "Value" in element:
            values[key_match[1]] = element["Value"][0]
    return values


_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)
_KEY = re.compile(r'[\s{,]*"([0-9A-F]{8})"\s*:\s*')
_SEQUENCE = re.compile(r'\{\s*"vr"\s*:\s*"SQ"\s*,\s*"Value"\s*:\s*\[\s*(?=\{)')
_NEXT_ITEM = re.compile(r"\s*,\s*")
_END_OF_SEQUENCE = re.compile(r"\s*\]\s*\}")


def _sequence_pieces(text: str, key: str, position: int) -> Generator[bytes, None, int]:
    """Yield a sequence item by item, and return the end of its value object.

    Args:
        position: of the first item.
    """
    yield f"{_head(key, 'SQ')}>".encode()
    number, is_more = 0, True
    while is_more:
        item, position = _DECODER.raw_decode(text, position)
        number += 1
        out: list[str] = []
        _write_item(number, item, out)
        yield "".join(out).encode()
        if is_more := (comma := _NEXT_ITEM.match(text, position)) is not None:
            position = comma.end()
    yield f"</{_ATTRIBUTE}>".encode()
    end = _END_OF_SEQUENCE.match(text, position)
    if end is None:
        raise ValueError(f"({key}) does not end after its items")
    return end.end()


def _escaped(text: str) -> str:
    return text.translate(_ESCAPES) if _TO_ESCAPE.search(text) else text


@lru_cache(8192)
def _head(key: str, vr: str) -> str:
    """Return the begin of a standard attribute's element, without ">"."""
    row = dictionary_row(int(key, 16))
    return f'<{_ATTRIBUTE} tag="{key}" vr="{vr}"' + (f' keyword="{row.keyword}"' if row and row.keyword else "")


def _write_data_set(data_set: Object, out: list[str]) -> None:
    order: list[tuple[str, str, str]] = []  # tag as written, creator, key
    for key in data_set:
        if int(key[3], 16) & 1:
            order += _private(data_set, key)
        elif key[4:] != "0000":
            order.append((key, "", key))
    for tag, creator, key in sorted(order):
        element = data_set[key]
        if creator:
            head = f'<{_ATTRIBUTE} tag="{tag}" vr="{element["vr"]}" privateCreator="{_escaped(creator)}"'
        else:
            head = _head(tag, element["vr"])
        _write_element(head, element, out)


def _private(data_set: Object, key: str) -> list[tuple[str, str, str]]:
    """Return the XML of a private element; nothing for a creator element or a group length."""
    if key[4:6] == "00":
        return [(key, "", key)] if "0000" < key[4:] < "0010" else []
    creators = data_set.get(f"{key[:4]}00{key[4:6]}", {}).get("Value")
    creator = creators[0] if creators and isinstance(creators[0], str) else ""
    return [(f"{key[:4]}00{key[6:]}", creator, key)] if creator else [(key, "", key)]


def _write_element(head: str, element: Object, out: list[str]) -> None:
    if values := element.get("Value"):
        out.append(head + ">")
        vr = element["vr"]
        if vr == "SQ":
            for number, item in enumerate(values, 1):
                _write_item(number, item, out)
        elif vr == "PN":
            out += [_person_name(number, name) for number, name in enumerate(values, 1)]
        else:
            out += [_value(number, value) for number, value in enumerate(values, 1)]
        out.append(f"</{_ATTRIBUTE}>")
    elif (uri := element.get("BulkDataURI")) is not None:
        out.append(f'{head}><BulkData uri="{_escaped(uri)}"/></{_ATTRIBUTE}>')
    elif binary := element.get("InlineBinary"):
        out.append(f"{head}><InlineBinary>{_escaped(binary)}</InlineBinary></{_ATTRIBUTE}>")
    else:
        out.append(head + "/>")


def _value(number: int, value: str | int | float | None) -> str:
    if value is None or value == "":
        return f'<Value number="{number}"/>'
    text = _escaped(value) if isinstance(value, str) else repr(value)
    return f'<Value number="{number}">{text}</Value>'


def _write_item(number: int, item: Object | None, out: list[str]) -> None:
    if item:
        out.append(f'<Item number="{number}">')
        _write_data_set(item, out)
        out.append("</Item>")
    else:
        out.append(f'<Item number="{number}"/>')


def _person_name(number: int, name: dict[str, str] | None) -> str:
    groups = [_component_group(group, text) for group in _GROUPS if (text := (name or {}).get(group, "").rstrip("^"))]
    return f'<PersonName number="{number}">{"".join(groups)}</PersonName>' if groups else f'<PersonName number="{number}"/>'


def _component_group(group: str, text: str) -> str:
    components = zip(_COMPONENTS, text.split("^", len(_COMPONENTS) - 1), strict=False)
    return f"<{group}>" + "".join([f"<{name}>{_escaped(part)}</{name}>" for name, part in components if part]) + f"</{group}>"
