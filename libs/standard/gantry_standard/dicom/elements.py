"""Read data elements from a stream of chunks of any size.

The reader stores short values. Of long values it stores the offsets (`Bulk`, `Fragments`) and skips the bytes. It reads Explicit VR in
both byte orders and Implicit VR, nested and mixed as PS3.5 allows. It tolerates common faults: Implicit VR inside an Explicit VR data
set, unknown VRs, delimiters although lengths are defined, zeros after the last element.

Source: PS3.5 §7 and Annex A.
"""

import struct
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Union

from gantry_standard import reasons
from gantry_standard.dicom.dictionary import STANDARD_VRS, US_OR_SS, implicit_vr
from gantry_standard.dicom.limits import BrokenStructure, Limits, ScanFailure
from gantry_standard.dicom.part10 import UNDEFINED_LENGTH, encode_element_header
from gantry_standard.dicom.scanned import Origin
from gantry_standard.dicom.value_representations import VALUE_REPRESENTATIONS, Kind, ValueRepresentation

PIXEL_DATA = 0x7FE00010
FLOAT_PIXEL_DATA = 0x7FE00008
DOUBLE_FLOAT_PIXEL_DATA = 0x7FE00009
PIXEL_TAGS = frozenset((PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA))

FRAGMENT_HEAD_BYTES = 16
"""Number of first bytes of each fragment that are checked for the start of a codestream."""

_BITS_ALLOCATED = 0x00280100
_ITEM = 0xFFFEE000
_ITEM_DELIMITER = 0xFFFEE00D
_SEQUENCE_DELIMITER = 0xFFFEE0DD
_NO_END = 1 << 63
_EMPTY_HEADER = bytes(8)
# A longer number of a VR with 16-bit length (possible in Implicit VR) is sent as UN, and in DICOM JSON as bulkdata.
_LONGEST_SHORT_VALUE = 0xFFFE
# A value labelled UN of a known attribute is read as that attribute, if its VR could have held it (PS3.5 §6.2.2 Note 2).
_LONGEST_RELABELLED_VALUE = 0xFFFE


@dataclass(slots=True)
class Bulk:
    """A value that was skipped.

    Attributes:
        header_offset, offset: of the element's header and of its value field in the stream `origin`.
    """

    origin: Origin
    header_offset: int
    offset: int
    length: int


@dataclass(slots=True)
class Fragments:
    """Encapsulated Pixel Data that was skipped.

    Attributes:
        offset: of the first item (the Basic Offset Table), header included.
        end: after the sequence delimiter.
        basic_offset_table: value of the first item.
        offsets, lengths: of the fragments, item headers left out.
        starts: per fragment 1 where its first bytes are those of a codestream, else 0.
    """

    origin: Origin
    header_offset: int
    offset: int
    end: int = 0
    basic_offset_table: bytes | None = None
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    lengths: "array[int]" = field(default_factory=lambda: array("Q"))
    starts: bytearray = field(default_factory=bytearray)


Value = Union[bytes, Bulk, Fragments, "list[Elements]"]
Element = tuple[bytes, Value, int]
"""VR, value (little endian), offset of the value field."""
Elements = dict[int, Element]
"""Tag (group in the upper 16 bits) to element, in the order of the bytes; the last of duplicates."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How elements are encoded."""

    is_explicit: bool
    is_big_endian: bool

    @property
    def byte_order(self) -> str:
        """Return the prefix of a `struct` format."""
        return ">" if self.is_big_endian else "<"


EXPLICIT_LITTLE = Encoding(True, False)
IMPLICIT_LITTLE = Encoding(False, False)
EXPLICIT_BIG = Encoding(True, True)

_HEADERS = {
    EXPLICIT_LITTLE: struct.Struct("<HH2sH").unpack_from,
    IMPLICIT_LITTLE: struct.Struct("<HHI").unpack_from,
    EXPLICIT_BIG: struct.Struct(">HH2sH").unpack_from,
}
_ITEM_HEADERS: dict[bool, Callable[[bytes, int], tuple[int, int, int]]] = {
    False: struct.Struct("<HHI").unpack_from,
    True: struct.Struct(">HHI").unpack_from,
}
_LONG = {False: struct.Struct("<I").unpack_from, True: struct.Struct(">I").unpack_from}
# Explicit VR: word size where the length has 16 bits, 0 where it has 32.
_SHORT = {name: 0 if row.is_long else row.word for name, row in VALUE_REPRESENTATIONS.items()}
_ITEM_TAG = b"\xfe\xff\x00\xe0"
# Implicit VR: elements whose VR needs no further rule.
_IMPLICIT_SHORT = frozenset(
    [name for name, row in VALUE_REPRESENTATIONS.items() if row.kind not in (Kind.BINARY, Kind.SEQUENCE, Kind.NUMBER)]
) | {
    b"US",
    b"UL",
    US_OR_SS,
}
_US, _UN = VALUE_REPRESENTATIONS[b"US"], VALUE_REPRESENTATIONS[b"UN"]
# Limits are checked when so many bytes have been read at once.
_CHECK_EVERY = 1 << 20
_SWAP_TYPES = {2: "H", 4: "I", 8: "Q"}


def swap_words(value: bytes | memoryview, word: int) -> bytes:
    """Return words of `word` bytes with their bytes reversed; a last incomplete word stays as it is."""
    if word == 1:
        return bytes(value)
    whole = len(value) - len(value) % word
    words = array(_SWAP_TYPES[word], bytes(value[:whole]))
    words.byteswap()
    return words.tobytes() + bytes(value[whole:])


class Rendition:
    """Bytes that the scan writes, with a count.

    Args:
        write: called with the chunks in order.
    """

    def __init__(self, write: Callable[[bytes | memoryview], None]) -> None:
        self._write = write
        self.length = 0

    def write(self, piece: bytes) -> None:
        """Write a piece; `length` is the offset of the next one."""
        if piece:
            self._write(piece)
            self.length += len(piece)


@dataclass(slots=True)
class _Container:
    """An open structure at the current offset: a data set, a sequence (`items`) or encapsulated pixel data (`fragments`)."""

    elements: Elements
    end: int
    encoding: Encoding
    items: "list[Elements] | None" = None
    fragments: Fragments | None = None


class ElementReader:
    """Reads elements from a stream.

    `read` takes unread bytes and returns how many it has used. Pass the rest again with the following bytes, at least `need` in total.
    While `skip` is not 0, pass that many bytes to `skipped` instead. `at` is the offset of the next byte in its stream.
    `count`: elements, items and fragments that were read, including those replaced by a later one of the same tag.
    `is_padding`: only zeros may follow. `is_mixed`: Implicit VR was met in Explicit VR (some writers change inside a sequence).

    Args:
        at: offset of the first byte; all offsets are relative to the same start.
        origin: stream of the offsets.
        may_be_encapsulated: the transfer syntax allows Pixel Data of undefined length.
        is_start: returns whether bytes are the start of a codestream.
        rendition: receives big endian bulkdata with its bytes swapped.
    """

    def __init__(
        self,
        encoding: Encoding,
        at: int,
        origin: Origin,
        limits: Limits,
        *,
        may_be_encapsulated: bool,
        is_start: Callable[[bytes], bool],
        rendition: Rendition,
    ) -> None:
        self.root: Elements = {}
        self.at = at
        self.need = 8
        self.skip = 0
        self.is_padding = False
        self.is_mixed = False
        self._origin = origin
        self._limits = limits
        self._may_be_encapsulated = may_be_encapsulated
        self._is_start = is_start
        self._rendition = rendition
        self._current = _Container(self.root, _NO_END, encoding)
        self._outer: list[_Container] = []
        self._depth = 0
        self._count = 0
        self._value_bytes = 0
        self._is_starved = False
        self._swap_word = 0
        self._swap_rest = b""
        self._swap_padding = b""

    @property
    def count(self) -> int:
        """Return how many elements, items and fragments were read."""
        return self._count

    def read(self, data: bytes) -> int:
        """Take elements from the front of `data`; return how many bytes were taken."""
        position = 0
        self.need = 8
        self._is_starved = False
        while True:
            current = self._current
            while self.at + position >= current.end:
                if self.at + position > current.end:
                    raise self._corrupt("a value reaches past the end of its item or sequence", self.at + position)
                current = self._close()
            if current.fragments is not None:
                position = self._read_fragment(data, position, current.fragments)
            elif current.items is not None:
                position = self._read_item(data, position, current, current.items)
            elif current.encoding.is_explicit:
                position = self._read_explicit(data, position, current)
            else:
                position = self._read_implicit(data, position, current)
            if self._count > self._limits.elements:
                raise self._too_much(f"more than {self._limits.elements} elements, items and fragments")
            if self._value_bytes > self._limits.value_bytes:
                raise self._too_much(f"more than {self._limits.value_bytes} bytes of values that are not bulk")
            if self._is_starved or self.skip or self.is_padding:
                self.at += position
                return position

    def skipped(self, piece: memoryview) -> None:
        """Take bytes of a value that is being skipped."""
        self.skip -= len(piece)
        self.at += len(piece)
        if not self._swap_word:
            return
        data = self._swap_rest + bytes(piece)
        whole = len(data) - len(data) % self._swap_word if self.skip else len(data)
        self._rendition.write(swap_words(data[:whole], self._swap_word))
        self._swap_rest = data[whole:]
        if not self.skip:
            self._rendition.write(self._swap_padding)
            self._swap_word = 0

    def finish(self, rest: bytes) -> None:
        """Check that the stream ended with a complete data set; `rest` is what `read` has not used."""
        if self.skip:
            raise self._cut_off(f"{self.skip} bytes before the end of a value")
        while self._outer and self.at == self._current.end:
            self._close()
        if self._outer:
            raise self._cut_off("inside a sequence or encapsulated pixel data")
        if rest.strip(b"\0"):
            raise self._cut_off("inside an element")

    def _read_explicit(self, data: bytes, position: int, current: _Container) -> int:
        """Read consecutive elements of Explicit VR; the hot path of the scan."""
        start, end, at = position, len(data), self.at
        container_end, elements = current.end, current.elements
        unpack, is_big_endian, count = _HEADERS[current.encoding], current.encoding.is_big_endian, 0
        while at + position < container_end:
            value_at = position + 8
            if value_at > end:
                self._starve(8)
                break
            group, element, vr, length = unpack(data, position)
            word = _SHORT.get(vr)
            if word:
                next_position = value_at + length
                if next_position > end:
                    self._starve(8 + length)
                    break
                value = data[value_at:next_position]
                if is_big_endian and word > 1:
                    value = swap_words(value, word)
                elements[group << 16 | element] = (vr, value, at + value_at)
                count += 1
                position = next_position
                continue
            before = position
            if word is None:
                position = self._read_unusual(data, position, current, group << 16 | element, vr)
            else:
                position = self._read_long(data, position, current, group << 16 | element, vr)
            if self._current is not current or self.skip or position == before or position - start > _CHECK_EVERY:
                break
        self._count += count
        self._value_bytes += position - start - 8 * count
        return position

    def _read_long(self, data: bytes, position: int, current: _Container, tag: int, vr: bytes) -> int:
        """Read an element of Explicit VR with a 32-bit length."""
        if position + 12 > len(data):
            return self._starve(12, position)
        (length,) = _LONG[current.encoding.is_big_endian](data, position + 8)
        return self._read_value(data, position, position + 12, current, tag, vr, length)

    def _read_unusual(self, data: bytes, position: int, current: _Container, tag: int, vr: bytes) -> int:
        """Read an element without a known VR in Explicit VR."""
        if tag >> 16 == 0xFFFE:
            return self._read_delimiter(position, tag)
        if not self._outer and data[position : position + 8] == _EMPTY_HEADER:
            self.is_padding = True
            return position
        if vr.isalpha() and vr.isupper():
            if data[position + 6 : position + 8] == b"\0\0":  # PS3.5 §6.2: VRs to come have a 32-bit length
                return self._read_long(data, position, current, tag, b"UN")
            length = int.from_bytes(data[position + 6 : position + 8], "big" if current.encoding.is_big_endian else "little")
            return self._read_value(data, position, position + 8, current, tag, b"UN", length)
        if current.encoding.is_big_endian:
            raise self._corrupt(f"({tag:08X}) has no VR", self.at + position)
        self.is_mixed = True
        (length,) = _LONG[False](data, position + 4)
        return self._read_value(data, position, position + 8, current, tag, self._implicit_vr(tag, current), length)

    def _read_implicit(self, data: bytes, position: int, current: _Container) -> int:
        """Read consecutive elements of Implicit VR."""
        start, end, at = position, len(data), self.at
        container_end, elements, count = current.end, current.elements, 0
        unpack = _HEADERS[IMPLICIT_LITTLE]
        while at + position < container_end:
            value_at = position + 8
            if value_at > end:
                self._starve(8)
                break
            group, element, length = unpack(data, position)
            tag = group << 16 | element
            vr = STANDARD_VRS.get(tag)
            if vr in _IMPLICIT_SHORT and length <= _LONGEST_SHORT_VALUE:
                next_position = value_at + length
                if next_position > end:
                    self._starve(8 + length)
                    break
                elements[tag] = (vr, data[value_at:next_position], at + value_at)
                count += 1
                position = next_position
                continue
            before = position
            position = self._read_other_implicit(data, position, current, tag, length)
            if self._current is not current or self.skip or position == before or position - start > _CHECK_EVERY:
                break
        self._count += count
        self._value_bytes += position - start - 8 * count
        return position

    def _read_other_implicit(self, data: bytes, position: int, current: _Container, tag: int, length: int) -> int:
        if tag >> 16 == 0xFFFE:
            return self._read_delimiter(position, tag)
        if not self._outer and data[position : position + 8] == _EMPTY_HEADER:
            self.is_padding = True
            return position
        return self._read_value(data, position, position + 8, current, tag, self._implicit_vr(tag, current), length)

    def _implicit_vr(self, tag: int, current: _Container) -> bytes:
        def value_of(other: int) -> bytes | None:
            element = current.elements.get(other)
            return element[1] if element is not None and isinstance(element[1], bytes) else None

        return implicit_vr(tag, value_of)

    def _read_delimiter(self, position: int, tag: int) -> int:
        """Read a delimiter in place of an element; some writers add them although the length is defined."""
        if tag == _ITEM:
            raise self._corrupt("an item begins outside a sequence", self.at + position)
        is_open = self._outer and self._current.end == _NO_END
        if tag == _SEQUENCE_DELIMITER and is_open:
            self._close()  # of the item, whose own delimiter is missing; the sequence reads this one again
            return position
        if tag == _ITEM_DELIMITER and is_open:
            self._close()
        return position + 8

    def _read_value(self, data: bytes, header_at: int, value_at: int, current: _Container, tag: int, vr: bytes, length: int) -> int:
        """Read, skip or enter the value of an element whose header has been read."""
        at = self.at + value_at
        self._count += 1
        if length == UNDEFINED_LENGTH:
            return self._enter_undefined(header_at, value_at, current, tag, vr)
        is_unknown = vr == b"UN" and current.encoding.is_explicit
        if is_unknown and (length <= _LONGEST_RELABELLED_VALUE or tag in PIXEL_TAGS):
            vr = self._implicit_vr(tag, current)
        if vr == b"SQ":
            if length and value_at + 4 > len(data):
                self._count -= 1
                return self._starve(value_at + 4 - header_at, header_at)
            # If SQ comes from the dictionary and not from the file, the bytes must agree.
            is_guess = is_unknown or (tag >> 16 & 1 and not current.encoding.is_explicit)
            if not length or not is_guess or data[value_at : value_at + 4] == _ITEM_TAG:
                self._enter_sequence(tag, at, at + length, IMPLICIT_LITTLE if is_unknown else current.encoding)
                return value_at
            vr = b"UN"
        row = VALUE_REPRESENTATIONS.get(vr) or _US
        if length % row.word and row.kind is Kind.NUMBER and (is_unknown or not current.encoding.is_explicit):
            vr, row = b"UN", _UN  # the dictionary does not fit the bytes
        if length and self._is_bulk(tag, row, length):
            return self._enter_bulk(data, header_at, value_at, current, tag, vr, length)
        self._allow(length)
        if value_at + length > len(data):
            self._count -= 1
            return self._starve(value_at + length - header_at, header_at)
        value = data[value_at : value_at + length]
        if current.encoding.is_big_endian and not is_unknown:
            value = swap_words(value, row.word)
        current.elements[tag] = (vr, value, at)
        return value_at + length

    def _is_bulk(self, tag: int, row: ValueRepresentation, length: int) -> bool:
        if tag in PIXEL_TAGS:
            return True
        if row.kind is Kind.BINARY:
            return length > self._limits.inline_bytes
        return row.kind in (Kind.NUMBER, Kind.ASCII) and row.may_be_bulk and length > _LONGEST_SHORT_VALUE and not row.is_long

    def _enter_undefined(self, header_at: int, value_at: int, current: _Container, tag: int, vr: bytes) -> int:
        at = self.at + value_at
        encoding = current.encoding
        if tag == PIXEL_DATA and not encoding.is_big_endian and (not self._outer or encoding.is_explicit):
            if not (self._outer or self._may_be_encapsulated):
                raise self._corrupt("pixel data is encapsulated, and the transfer syntax is not", at)
            self._enter_fragments(header_at, at, current, tag, vr if encoding.is_explicit else b"OB")
        elif vr == b"SQ" or not encoding.is_explicit:
            if tag in PIXEL_TAGS or vr not in (b"SQ", b"UN"):
                raise self._corrupt(f"({tag:08X}) has undefined length, which its VR does not allow", at)
            self._enter_sequence(tag, at, _NO_END, encoding)
        elif vr == b"UN":
            self._enter_sequence(tag, at, _NO_END, IMPLICIT_LITTLE)  # PS3.5 §6.2.2 Note 4
        elif vr in (b"OB", b"OW") and not encoding.is_big_endian:
            self._enter_fragments(header_at, at, current, tag, vr)
        else:
            raise self._corrupt(f"({tag:08X}) has undefined length, which its VR does not allow", at)
        return value_at

    def _enter_fragments(self, header_at: int, at: int, current: _Container, tag: int, vr: bytes) -> None:
        fragments = Fragments(self._origin, self.at + header_at, at)
        current.elements[tag] = (vr, fragments, at)
        self._outer.append(current)
        self._current = _Container(current.elements, _NO_END, current.encoding, fragments=fragments)

    def _enter_sequence(self, tag: int, at: int, end: int, encoding: Encoding) -> None:
        self._depth += 1
        if self._depth > self._limits.depth:
            raise self._too_much(f"sequences are nested deeper than {self._limits.depth}")
        items: list[Elements] = []
        current = self._current
        current.elements[tag] = (b"SQ", items, at)
        self._outer.append(current)
        self._current = _Container(current.elements, end, encoding, items=items)

    def _enter_bulk(self, data: bytes, header_at: int, value_at: int, current: _Container, tag: int, vr: bytes, length: int) -> int:
        if current.encoding.is_big_endian:
            word = self._swapped_word(tag, vr, current)
            header_offset = self._rendition.length
            self._rendition.write(encode_element_header(tag, vr, length + (length & 1)))
            current.elements[tag] = (vr, Bulk(Origin.RENDITION, header_offset, self._rendition.length, length), self.at + value_at)
            self._swap_word, self._swap_padding = word, b"\0" * (length & 1)
            self.skip = length
            return value_at
        bulk = Bulk(self._origin, self.at + header_at, self.at + value_at, length)
        current.elements[tag] = (vr, bulk, self.at + value_at)
        return self._pass_over(data, value_at, length)

    @staticmethod
    def _swapped_word(tag: int, vr: bytes, current: _Container) -> int:
        """Return the word size for byte swapping; samples of 32 and 64 bits in OW are swapped as a whole, as all writers do."""
        allocated = current.elements.get(_BITS_ALLOCATED)
        if tag == PIXEL_DATA and vr == b"OW" and allocated is not None and allocated[1] in (b"\x20\0", b"\x40\0"):
            return 4 if allocated[1] == b"\x20\0" else 8
        return VALUE_REPRESENTATIONS[vr].word

    def _pass_over(self, data: bytes, value_at: int, length: int) -> int:
        available = min(length, len(data) - value_at)
        self.skip = length - available
        self._value_bytes -= available  # skipped bytes are not stored
        return value_at + available

    def _read_item(self, data: bytes, position: int, current: _Container, items: "list[Elements]") -> int:
        if position + 8 > len(data):
            return self._starve(8, position)
        group, element, length = _ITEM_HEADERS[current.encoding.is_big_endian](data, position)
        tag = group << 16 | element
        if tag == _ITEM:
            self._count += 1
            elements: Elements = {}
            items.append(elements)
            self._outer.append(current)
            end = _NO_END if length == UNDEFINED_LENGTH else self.at + position + 8 + length
            self._current = _Container(elements, end, current.encoding)
        elif tag == _SEQUENCE_DELIMITER:
            if current.end == _NO_END:
                self._close()
        elif tag != _ITEM_DELIMITER:
            raise self._corrupt(f"({tag:08X}) where an item should be", self.at + position)
        return position + 8

    def _read_fragment(self, data: bytes, position: int, fragments: Fragments) -> int:
        if position + 8 > len(data):
            return self._starve(8, position)
        group, element, length = _ITEM_HEADERS[False](data, position)
        tag = group << 16 | element
        if tag == _SEQUENCE_DELIMITER:
            fragments.end = self.at + position + 8
            self._close()
            return position + 8
        if tag != _ITEM or length == UNDEFINED_LENGTH:
            raise self._corrupt(f"({tag:08X}) where a fragment of pixel data should be", self.at + position)
        is_table = fragments.basic_offset_table is None
        if is_table:
            self._allow(length)
        wanted = position + 8 + (length if is_table else min(length, FRAGMENT_HEAD_BYTES))
        if wanted > len(data):
            return self._starve(wanted - position, position)
        head = data[position + 8 : wanted]
        if is_table:
            fragments.basic_offset_table = head
            self._value_bytes += length
            return wanted
        self._count += 1
        fragments.offsets.append(self.at + position + 8)
        fragments.lengths.append(length)
        fragments.starts.append(self._is_start(head))
        available = min(length, len(data) - position - 8)
        self.skip = length - available
        return position + 8 + available

    def _close(self) -> _Container:
        if self._current.items is not None:
            self._depth -= 1
        self._current = self._outer.pop()
        return self._current

    def _starve(self, need: int, position: int = 0) -> int:
        self._is_starved = True
        self.need = need
        return position

    def _allow(self, length: int) -> None:
        if self._value_bytes + length > self._limits.value_bytes:
            raise self._too_much(f"more than {self._limits.value_bytes} bytes of values that are not bulk")

    def _corrupt(self, message: str, at: int) -> ScanFailure:
        return BrokenStructure(f"byte {at}: {message}", reasons.CANNOT_UNDERSTAND)

    def _cut_off(self, where: str) -> ScanFailure:
        return ScanFailure(f"byte {self.at}: the data set ends {where}", reasons.CANNOT_UNDERSTAND)

    def _too_much(self, message: str) -> ScanFailure:
        return ScanFailure(f"instance has {message}", reasons.PROCESSING_FAILURE)
