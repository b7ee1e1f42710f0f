"""The served form: the PS3.10 file that clients receive. Bytes that may be sent unchanged are referenced, the others are rewritten.

PS3.18 forbids Implicit VR and Explicit VR Big Endian in responses. Such a data set is encoded again in Explicit VR Little Endian. Its
long values are referenced in the original if they are little endian.

Source: PS3.18 §8.7.3.2; PS3.5 §7.
"""

from gantry_standard.dicom.dictionary import US_OR_SS
from gantry_standard.dicom.elements import PIXEL_TAGS, Bulk, Elements, Fragments, Rendition
from gantry_standard.dicom.part10 import (
    ITEM_DELIMITER,
    ITEM_UNDEFINED,
    SEQUENCE_DELIMITER,
    UNDEFINED_LENGTH,
    encode_element,
    encode_element_header,
)
from gantry_standard.dicom.scanned import Origin, Span
from gantry_standard.dicom.value_representations import VALUE_REPRESENTATIONS, Kind
from gantry_standard.dicom.values import us_or_ss_of

_FLUSH_BYTES = 64 << 10
_EXPLICIT_HEADER_BYTES = 12


class Wire:
    """Collects the spans of the served form; new bytes are written to the rendition."""

    def __init__(self, rendition: Rendition) -> None:
        self._rendition = rendition
        self._pending = bytearray()
        self._spans: list[Span] = []

    def write(self, piece: bytes) -> None:
        """Append new bytes."""
        self._pending += piece
        if len(self._pending) > _FLUSH_BYTES:
            self._flush()

    def refer(self, origin: Origin, offset: int, length: int) -> None:
        """Append existing bytes of a stream."""
        self._flush()
        self._append(Span(origin, offset, length))

    def begin_span(self) -> int:
        """Start a new span in the rendition, and return its offset."""
        self._flush()
        return self._rendition.length

    def finish(self) -> tuple[Span, ...]:
        """Return the spans in order, adjacent ones merged."""
        self._flush()
        return tuple(self._spans)

    def _flush(self) -> None:
        if self._pending:
            offset = self._rendition.length
            self._rendition.write(bytes(self._pending))
            self._append(Span(Origin.RENDITION, offset, len(self._pending)))
            self._pending.clear()

    def _append(self, span: Span) -> None:
        if not span.length:
            return
        if self._spans:
            last = self._spans[-1]
            if last.origin is span.origin and last.offset + last.length == span.offset:
                self._spans[-1] = Span(last.origin, last.offset, last.length + span.length)
                return
        self._spans.append(span)


class ExplicitEncoder:
    """Encodes elements in Explicit VR Little Endian.

    Args:
        is_swapped: bulkdata in the rendition was swapped from big endian, between its header and padding.

    Attributes:
        pixel_header: header of the pixel element in the rendition, if the value stays in the original.
        pixel_element: header, value and delimiter if they are adjacent, else the value.
    """

    def __init__(self, wire: Wire, *, is_swapped: bool) -> None:
        self._wire = wire
        self._is_swapped = is_swapped
        self.pixel_header: Span | None = None
        self.pixel_element: Span | None = None

    def encode(self, root: Elements) -> None:
        """Encode a data set; group lengths are left out (PS3.5 §7.2)."""
        self._data_set(root, b"US", is_root=True)

    def _data_set(self, elements: Elements, us_or_ss: bytes, *, is_root: bool = False) -> None:
        us_or_ss = us_or_ss_of(elements, us_or_ss)
        write = self._wire.write
        for tag in sorted(elements):
            if tag & 0xFFFF == 0 or tag < 0x00030000:
                continue
            vr, value, _ = elements[tag]
            if vr == US_OR_SS:
                vr = us_or_ss
            if isinstance(value, bytes):
                row = VALUE_REPRESENTATIONS[vr]
                write(encode_element(tag, b"UN" if row.kind is Kind.NUMBER and len(value) % row.word else vr, value))
            elif isinstance(value, list):
                self._sequence(tag, value, us_or_ss)
            elif isinstance(value, Bulk):
                self._bulk(tag, vr, value, is_pixel_element=is_root and tag in PIXEL_TAGS)
            else:
                self._fragments(tag, vr, value, is_pixel_element=is_root and tag in PIXEL_TAGS)

    def _sequence(self, tag: int, items: list[Elements], us_or_ss: bytes) -> None:
        write = self._wire.write
        write(encode_element_header(tag, b"SQ", UNDEFINED_LENGTH if items else 0))
        for item in items:
            write(ITEM_UNDEFINED)
            self._data_set(item, us_or_ss)
            write(ITEM_DELIMITER)
        if items:
            write(SEQUENCE_DELIMITER)

    def _bulk(self, tag: int, vr: bytes, bulk: Bulk, *, is_pixel_element: bool) -> None:
        # Padding would need a third span; an odd pixel element stays odd.
        is_swapped = self._is_swapped and bulk.origin is Origin.RENDITION
        padding = 0 if is_pixel_element and not is_swapped else bulk.length & 1
        if is_swapped:
            length = bulk.offset + bulk.length + padding - bulk.header_offset
            self._wire.refer(bulk.origin, bulk.header_offset, length)
            if is_pixel_element:
                self.pixel_element = Span(bulk.origin, bulk.header_offset, length)
            return
        header = self._apart(encode_element_header(tag, vr, bulk.length + padding))
        self._wire.refer(bulk.origin, bulk.offset, bulk.length)
        if padding:
            self._wire.write(b"\0")
        if is_pixel_element:
            self.pixel_header = header
            self.pixel_element = Span(bulk.origin, bulk.offset, bulk.length)

    def _fragments(self, tag: int, vr: bytes, fragments: Fragments, *, is_pixel_element: bool) -> None:
        if fragments.offset - fragments.header_offset == _EXPLICIT_HEADER_BYTES:
            element, header = Span(fragments.origin, fragments.header_offset, fragments.end - fragments.header_offset), None
        else:  # encapsulated pixel data after an implicit header: no transfer syntax allows it, but some writers write it
            element = Span(fragments.origin, fragments.offset, fragments.end - fragments.offset)
            header = self._apart(encode_element_header(tag, vr, UNDEFINED_LENGTH))
        self._wire.refer(element.origin, element.offset, element.length)
        if is_pixel_element:
            self.pixel_header, self.pixel_element = header, element

    def _apart(self, header: bytes) -> Span:
        """Write the header of a value that stays in the original; return its span."""
        at = self._wire.begin_span()
        self._wire.write(header)
        return Span(Origin.RENDITION, at, len(header))
