"""Change elements in the head of a PS3.10 file: replace, add and remove them. Every other byte stays the same.

The head is everything before the pixel element, in Explicit VR Little Endian.

Source: PS3.5 §7.1, §7.5; PS3.10 §7.1.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from gantry_renderer.file import derivation
from gantry_renderer.file.derivation import Compression
from gantry_standard import errors
from gantry_standard.dicom.part10 import encode_element
from gantry_standard.dicom.value_representations import LONG_VRS

PREAMBLE_BYTES = 132
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_TRANSFER_SYNTAX_UID = 0x00020010
_FILE_META_GROUP_LENGTH = 0x00020000
_ICON_IMAGE_SEQUENCE = 0x00880200
_ENCAPSULATED_ICON = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff"

# Extended Offset Table, its lengths and total length describe the fragments that are replaced
_OFFSET_TABLES = frozenset((0x7FE00001, 0x7FE00002, 0x7FE00003))

# Group lengths are retired and optional, and wrong when an element of the group changes (PS3.5 §7.2)
_GROUP_LENGTHS = frozenset((0x00080000, 0x00280000, 0x00880000, 0x7FE00000))


@dataclass(frozen=True, slots=True)
class _Element:
    tag: int
    begin: int
    end: int


def patch(head: bytes, transfer_syntax_uid: str, changes: Mapping[int, bytes], compression: Compression | None = None) -> bytes:
    """Return a head for pixel data in another transfer syntax.

    Args:
        head: preamble, DICM, group 0002 and the data set up to the pixel element.
        changes: encoded elements of group 0028 by tag. They replace existing elements, or are inserted in the order of tags.
        compression: of lossy pixels; None without loss.

    Raises:
        CorruptInstance: the head is not in Explicit VR Little Endian.
    """
    if head[128:PREAMBLE_BYTES] != b"DICM":
        raise errors.CorruptInstance("the file's head has no DICM after its preamble")
    elements = list(_elements(head, PREAMBLE_BYTES))
    meta_end = next((element.begin for element in elements if element.tag >> 16 != 2), len(head))
    changes = {**changes, _TRANSFER_SYNTAX_UID: encode_element(_TRANSFER_SYNTAX_UID, b"UI", transfer_syntax_uid.encode())}
    if compression is not None:
        changes |= derivation.elements_of(compression, _values(head, elements))
    of_meta = {tag: change for tag, change in changes.items() if tag >> 16 == 2}
    meta = b"".join(
        head[element.begin : element.end]
        for element in elements
        if element.begin < meta_end and element.tag != _FILE_META_GROUP_LENGTH and element.tag not in of_meta
    )
    meta = _with(meta, of_meta)
    group_length = encode_element(_FILE_META_GROUP_LENGTH, b"UL", struct.pack("<I", len(meta)))
    of_data_set = {tag: change for tag, change in changes.items() if tag not in of_meta}
    return head[:PREAMBLE_BYTES] + group_length + meta + _with(head[meta_end:], of_data_set)


def _values(head: bytes, elements: Iterable[_Element]) -> dict[int, bytes]:
    """Return the values that `derivation.elements_of` reads, by tag.

    For a sequence these are its encoded items; a sequence that is not encoded with VR SQ is left out.
    """
    values = {}
    for element in elements:
        if element.tag in derivation.CONSULTED:
            _, begin, length = _element_head(head, element.begin, is_implicit=False)
            is_sequence = element.tag in (derivation.SOURCE_IMAGE_SEQUENCE, derivation.DERIVATION_CODE_SEQUENCE)
            if is_sequence and head[element.begin + 4 : element.begin + 6] != b"SQ":
                continue
            values[element.tag] = head[begin : element.end - (8 if length == _UNDEFINED else 0)]
    return values


def _with(data: bytes, changes: Mapping[int, bytes]) -> bytes:
    """Return elements with `changes` inserted or replaced, without elements that transcoding makes wrong."""
    pieces: list[bytes] = []
    waiting = sorted(changes.items())
    for element in _elements(data, 0):
        while waiting and waiting[0][0] < element.tag:
            pieces.append(waiting.pop(0)[1])
        if waiting and waiting[0][0] == element.tag:
            pieces.append(waiting.pop(0)[1])
        elif not _is_outdated(element, data):
            pieces.append(data[element.begin : element.end])
    return b"".join([*pieces, *(change for _, change in waiting)])


def _is_outdated(element: _Element, data: bytes) -> bool:
    if element.tag in _OFFSET_TABLES or element.tag in _GROUP_LENGTHS:
        return True
    # A compressed icon must be in the transfer syntax of the data set, which changes; icons are optional
    return element.tag == _ICON_IMAGE_SEQUENCE and data.find(_ENCAPSULATED_ICON, element.begin, element.end) >= 0


def _elements(data: bytes, position: int) -> Iterator[_Element]:
    """Yield the elements of the top level.

    Raises:
        CorruptInstance: an element extends beyond the end of the head.
    """
    while position < len(data):
        tag, value, length = _element_head(data, position, is_implicit=False)
        end = _skip_undefined(data, value, _is_un(data, position)) if length == _UNDEFINED else value + length
        if end > len(data):
            raise errors.CorruptInstance(f"element {tag:08X} reaches past the end of the head")
        yield _Element(tag, position, end)
        position = end


def _is_un(data: bytes, position: int) -> bool:
    """Whether the VR is UN; a UN value of undefined length contains items in Implicit VR (PS3.5 §6.2.2 note 4)."""
    return data[position + 4 : position + 6] == b"UN"


def _element_head(data: bytes, position: int, is_implicit: bool) -> tuple[int, int, int]:
    """Return the tag, the position of the value and its length.

    Raises:
        CorruptInstance: the header of the element is cut off.
    """
    if position + 8 > len(data):
        raise errors.CorruptInstance("the head ends in the middle of an element")
    group, number = struct.unpack_from("<HH", data, position)
    if is_implicit or group == 0xFFFE:
        return group << 16 | number, position + 8, struct.unpack_from("<I", data, position + 4)[0]
    if data[position + 4 : position + 6] in LONG_VRS:
        if position + 12 > len(data):
            raise errors.CorruptInstance("the head ends in the middle of an element")
        return group << 16 | number, position + 12, struct.unpack_from("<I", data, position + 8)[0]
    return group << 16 | number, position + 8, struct.unpack_from("<H", data, position + 6)[0]


def _skip_undefined(data: bytes, position: int, is_implicit: bool) -> int:
    """Return the end of a value of undefined length. Nested sequences are walked without recursion."""
    levels = [(_SEQUENCE_END, is_implicit)]
    while levels:
        end_tag, is_implicit = levels[-1]
        tag, value, length = _element_head(data, position, is_implicit)
        if tag == end_tag:
            levels.pop()
            position = value
        elif length == _UNDEFINED:
            is_item = tag == _ITEM
            levels.append((_ITEM_END if is_item else _SEQUENCE_END, is_implicit or (not is_item and _is_un(data, position))))
            position = value
        else:
            position = value + length
    return position
