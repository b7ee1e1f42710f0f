"""A DICOMDIR: the directory of a file-set of one patient and study, written from DICOM JSON.

Records are encoded when they are added, with zeros for offsets; `pieces` fills the offsets in. To add a type of directory record, or a
key of one: a row in RECORD_KEYS. To assign SOP classes to it: a row in RECORD_TYPES.

Source: PS3.3 Annex F (Tables F.3-1 to F.5-…); PS3.10 §8 for File IDs.
"""

import struct
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from gantry_standard.dicom.dictionary import standard_vr
from gantry_standard.dicom.part10 import encode_element, encode_element_header, encode_file_meta, encode_item
from gantry_standard.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN
from gantry_standard.dicom.value_representations import VALUE_REPRESENTATIONS, Kind

Object = dict[str, Any]
"""A DICOM JSON object."""

MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"
UTF_8 = "ISO_IR 192"

_STORAGE = "1.2.840.10008.5.1.4.1.1."

# SOP class, or the root of several that ends with a dot, below 1.2.840.10008.5.1.4.1.1 -> record type; the longest that fits counts
# (Table F.4-1). An instance with pixel data and without a row is an IMAGE.
RECORD_TYPES = {
    "4.2": "SPECTROSCOPY",
    "9.": "WAVEFORM",
    "11.": "PRESENTATION",
    "66": "RAW DATA",
    "66.1": "REGISTRATION",
    "66.2": "FIDUCIAL",
    "66.3": "REGISTRATION",
    "66.5": "SURFACE",
    "66.6": "TRACT",
    "67": "VALUE MAP",
    "68.": "SURFACE SCAN",
    "77.1.5.3": "STEREOMETRIC",
    "78.": "MEASUREMENT",
    "78.6": "SR DOCUMENT",
    "79.1": "SR DOCUMENT",
    "80.1": "MEASUREMENT",
    "88.": "SR DOCUMENT",
    "88.59": "KEY OBJECT DOC",
    "90.1": "ASSESSMENT",
    "104.": "ENCAP DOC",
    "131": "PRESENTATION",
    "481.2": "RT DOSE",
    "481.3": "RT STRUCTURE SET",
    "481.4": "RT TREAT RECORD",
    "481.5": "RT PLAN",
    "481.6": "RT TREAT RECORD",
    "481.7": "RT TREAT RECORD",
    "481.8": "RT PLAN",
    "481.9": "RT TREAT RECORD",
}

_CONTENT = ("00200013", "00080023", "00080033")
_IDENTIFIED = (*_CONTENT, "00700080", "00700081", "00700084")

# Record type -> tags of its keys (§F.5). Those of the upper levels are the first ones of any instance below.
RECORD_KEYS: dict[str, tuple[str, ...]] = {
    "PATIENT": ("00100010", "00100020"),
    "STUDY": ("00080020", "00080030", "00080050", "00081030", "0020000D", "00200010"),
    "SERIES": ("00080060", "0020000E", "00200011"),
    "IMAGE": ("00200013",),
    "RT DOSE": ("00200013", "3004000A"),
    "RT STRUCTURE SET": ("00200013", "30060002", "30060008", "30060009"),
    "RT PLAN": ("00200013", "300A0002", "300A0006", "300A0007"),
    "RT TREAT RECORD": ("00200013", "30080250", "30080251"),
    "PRESENTATION": ("00200013", "00700080", "00700081", "00700082", "00700083", "00700084"),
    "WAVEFORM": _CONTENT,
    "SR DOCUMENT": (*_CONTENT, "0040A030", "0040A043", "0040A491", "0040A493"),
    "KEY OBJECT DOC": (*_CONTENT, "0040A043"),
    "SPECTROSCOPY": (*_CONTENT, "00080008", "00280008", "00280010", "00280011", "00289001", "00289002"),
    "RAW DATA": _CONTENT,
    "REGISTRATION": _IDENTIFIED,
    "FIDUCIAL": _IDENTIFIED,
    "VALUE MAP": _IDENTIFIED,
    "STEREOMETRIC": _CONTENT,
    "MEASUREMENT": _CONTENT,
    "SURFACE": _IDENTIFIED,
    "SURFACE SCAN": ("00080023", "00080033"),
    "TRACT": _IDENTIFIED,
    "ASSESSMENT": ("00200013", "00080012", "00080013"),
    "ENCAP DOC": (*_CONTENT, "00420010", "00420012", "0040A043"),
    "PRIVATE": (),
}

# Keys that are left out where an instance does not have them (type 1C and 3); the others are then empty, but for the ordinals.
_CONDITIONAL = frozenset({"0040A030", "0040A043"})
_ORDINALS = frozenset({"00200011", "00200013"})
"""Series Number and Instance Number are mandatory in a record; if they are missing, the position among the siblings is used."""

TAGS = frozenset(tag for keys in RECORD_KEYS.values() for tag in keys)
"""All attributes that are read from instances."""

_OFFSETS_AT = 16
_LOWER_AT = 38


def record_type(sop_class_uid: str, has_pixel_data: bool) -> str:
    """Return the type of the directory record of an instance (Table F.4-1); PRIVATE for an unknown SOP class."""
    below = sop_class_uid.removeprefix(_STORAGE) if sop_class_uid.startswith(_STORAGE) else ""
    fitting = [name for name in RECORD_TYPES if below == name or (name.endswith(".") and below.startswith(name))]
    if fitting:
        return RECORD_TYPES[max(fitting, key=len)]
    return "IMAGE" if has_pixel_data else "PRIVATE"


def picked(data_set: Object) -> Object:
    """Return the attributes of an instance that a directory uses."""
    return {tag: element for tag, element in data_set.items() if tag in TAGS}


class Directory:
    """The records of one file-set, added in the order of the tree: a study, then each series and the instances in it."""

    def __init__(self, sop_instance_uid: str) -> None:
        self._sop_instance_uid = sop_instance_uid
        self._records: list[bytes] = []
        self._levels = bytearray()
        self._ordinals = [0, 0, 0, 0]

    def add_study(self, data_set: Object) -> None:
        """Begin with the patient and the study of any of their instances."""
        self._add(0, "PATIENT", data_set)
        self._add(1, "STUDY", data_set)

    def add_series(self, data_set: Object) -> None:
        """Begin a series, as any of its instances describes it."""
        self._add(2, "SERIES", data_set)

    def add_instance(
        self, data_set: Object, kind: str, file_id: str, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str
    ) -> None:
        """Add an instance to the last series.

        Args:
            kind: its record type.
            file_id: components separated by "/", of at most 8 characters each.
            transfer_syntax_uid: of the file.
        """
        reference = {
            0x00041500: (b"CS", file_id.replace("/", "\\")),
            0x00041510: (b"UI", sop_class_uid),
            0x00041511: (b"UI", sop_instance_uid),
            0x00041512: (b"UI", transfer_syntax_uid),
        }
        if kind == "PRIVATE":
            reference[0x00041432] = (b"UI", sop_class_uid)
        encoded = {tag: encode_element(tag, vr, value.encode("ascii")) for tag, (vr, value) in reference.items()}
        self._add(3, kind, data_set, encoded)

    def _add(self, level: int, kind: str, data_set: Object, elements: dict[int, bytes] | None = None) -> None:
        self._ordinals[level] += 1
        self._ordinals[level + 1 :] = [0] * (3 - level)
        # Read by its offset: item header, then these three elements.
        head = struct.pack("<HH2sHI", 4, 0x1400, b"UL", 4, 0) + struct.pack("<HH2sHH", 4, 0x1410, b"US", 2, 0xFFFF)
        head += struct.pack("<HH2sHI", 4, 0x1420, b"UL", 4, 0)
        record_elements = {0x00041430: encode_element(0x00041430, b"CS", kind.encode("ascii")), **(elements or {})}
        for key in RECORD_KEYS[kind]:
            element = data_set.get(key, {})
            if not element.get("Value") and key in _ORDINALS:
                element = {"Value": [self._ordinals[level]]}
            if element.get("Value") or key not in _CONDITIONAL:
                record_elements[int(key, 16)] = encode_json_element(key, element)
        if not all(piece.isascii() for tag, piece in record_elements.items() if tag >= 0x00080000):
            record_elements[0x00080005] = encode_element(0x00080005, b"CS", UTF_8.encode("ascii"))
        body = head + b"".join(record_elements[tag] for tag in sorted(record_elements))
        self._records.append(encode_item(body))
        self._levels.append(level)

    @property
    def length(self) -> int:
        """Length of the file in bytes."""
        return len(self._head(0, 0)) + sum(len(record) for record in self._records)

    def pieces(self) -> Iterator[bytes]:
        """Yield the file."""
        begin = len(self._head(0, 0))
        following, lower = self._offsets(begin)
        yield self._head(begin if self._records else 0, begin if self._records else 0)
        for index, record in enumerate(self._records):
            piece = bytearray(record)
            struct.pack_into("<I", piece, _OFFSETS_AT, following[index])
            struct.pack_into("<I", piece, _LOWER_AT, lower[index])
            yield bytes(piece)

    def _offsets(self, begin: int) -> tuple["array[int]", "array[int]"]:
        """Return for each record the offsets of its next sibling and of its first child; 0 for none."""
        following, lower = array("I", bytes(4 * len(self._records))), array("I", bytes(4 * len(self._records)))
        latest = [-1, -1, -1, -1]
        at = begin
        for index, (level, record) in enumerate(zip(self._levels, self._records, strict=True)):
            if latest[level] >= 0:
                following[latest[level]] = at
            elif level:
                lower[index - 1] = at
            latest[level:] = [index, *[-1] * (3 - level)]
            at += len(record)
        return following, lower

    def _head(self, first: int, last: int) -> bytes:
        """Return the bytes before the records; their length does not depend on the offsets."""
        elements = (
            encode_element(0x00041130, b"CS", b""),
            encode_element(0x00041200, b"UL", struct.pack("<I", first)),
            encode_element(0x00041202, b"UL", struct.pack("<I", last)),
            encode_element(0x00041212, b"US", b"\0\0"),
            encode_element_header(0x00041220, b"SQ", sum(len(record) for record in self._records)),
        )
        return encode_file_meta(MEDIA_STORAGE_DIRECTORY, self._sop_instance_uid, EXPLICIT_VR_LITTLE_ENDIAN) + b"".join(elements)


def encode_json_element(tag: str, element: Object) -> bytes:
    """Encode an element of DICOM JSON in Explicit VR Little Endian, text in UTF-8; only text, unsigned numbers and sequences."""
    vr = (element.get("vr") or (standard_vr(int(tag, 16)) or b"UN").decode()).encode("ascii")
    values = [value for value in element.get("Value", []) if value is not None]
    if vr == b"SQ":
        items = b"".join(_item(value) for value in values)
        return encode_element_header(int(tag, 16), b"SQ", len(items)) + items
    row = VALUE_REPRESENTATIONS[vr]
    if row.kind is Kind.NUMBER:
        # An invalid number in the instance is left out of its directory record.
        numbers = [value for value in values if isinstance(value, int) and 0 <= value < 1 << (8 * row.word - row.format.islower())]
        return encode_element(int(tag, 16), vr, struct.pack(f"<{len(numbers)}{row.format}", *numbers))
    return encode_element(int(tag, 16), vr, "\\".join(texts(values)).encode("utf-8"))


def texts(values: Iterable[Any]) -> Iterator[str]:
    """Yield values of DICOM JSON as text; component groups of names joined by "="."""
    for value in values:
        if isinstance(value, dict):
            groups = (value.get(name, "") for name in ("Alphabetic", "Ideographic", "Phonetic"))
            yield "=".join(groups).rstrip("=")
        else:
            yield str(value)


def _item(data_set: Object) -> bytes:
    body = b"".join(encode_json_element(tag, data_set[tag]) for tag in sorted(data_set) if "BulkDataURI" not in data_set[tag])
    return encode_item(body)
