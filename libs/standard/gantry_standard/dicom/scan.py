"""The streaming scan: collects all facts about an instance in one pass over its bytes.

    scanner = Scanner(write_rendition)
    for chunk in chunks:
        scanner.feed(chunk)
    scanned = scanner.finish()

Memory does not depend on the size of the instance: long values are skipped, short ones are stored within `Limits`.

    scan.py       the stream: head, digests, inflating, windows           file_head.py  preamble and group 2
    elements.py   elements out of the stream                              values.py     elements to DICOM JSON
    frames.py     location of each frame                                  wire_form.py  the served form

If bytes are ambiguous, the scan refuses them instead of guessing. Blob then tries another reader on the whole file (`second_reader.py`)
and scans its result if that accounts for every byte.

Source: PS3.10 §7; PS3.5 §7 and Annex A; PS3.18 §8.7.3 and Annex F.
"""

import hashlib
import re
import zlib
from collections.abc import Callable
from functools import partial

from gantry_standard import reasons
from gantry_standard.dicom.collections import instance_path
from gantry_standard.dicom.elements import (
    DOUBLE_FLOAT_PIXEL_DATA,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    FLOAT_PIXEL_DATA,
    PIXEL_DATA,
    Bulk,
    ElementReader,
    Elements,
    Encoding,
    Fragments,
    Rendition,
)
from gantry_standard.dicom.file_head import FileHead, find_encoding
from gantry_standard.dicom.frames import FragmentTable, is_codestream_start, locate_encapsulated_frames, locate_native_frames
from gantry_standard.dicom.limits import Limits, ScanFailure
from gantry_standard.dicom.part10 import PREAMBLE, encode_file_meta
from gantry_standard.dicom.scanned import FrameTable, NativeFrames, Origin, PixelDescription, ScannedInstance, Span
from gantry_standard.dicom.transfer_syntaxes import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TRANSFER_SYNTAXES,
    TransferSyntax,
    transfer_syntax,
)
from gantry_standard.dicom.uids import is_valid_uid
from gantry_standard.dicom.values import BASE_URL, SPECIFIC_CHARACTER_SET, DicomJson
from gantry_standard.dicom.wire_form import ExplicitEncoder, Wire

__all__ = ["Limits", "ScanFailure", "Scanner"]

_HEAD_BYTES = 1024
# Some writers deflate with a gzip library and append its checksum and length.
_GZIP_TRAILER_BYTES = 8
_WINDOW_BYTES = 64 << 10
_INFLATE_BYTES = 1 << 20
_INFLATION_IS_WATCHED_FROM_BYTES = 64 << 20
_SOP_CLASS_UID, _SOP_INSTANCE_UID = 0x00080016, 0x00080018
_STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID = 0x0020000D, 0x0020000E
_REQUIRED_UIDS = (
    (_STUDY_INSTANCE_UID, "Study Instance UID"),
    (_SERIES_INSTANCE_UID, "Series Instance UID"),
    (_SOP_CLASS_UID, "SOP Class UID"),
    (_SOP_INSTANCE_UID, "SOP Instance UID"),
)
_UIDS_OF_STUDIES = 2
"""So many of them, from the first, are needed in a study only."""
_NUMBER_OF_FRAMES = 0x00280008
_EXTENDED_OFFSET_TABLE = 0x7FE00001
_ORIGINAL_ATTRIBUTES_SEQUENCE = 0x04000561
_FIRST_DATA_SET_TAG = 0x00030000
# A deflated syntax to that of its inflated data set (PS3.5 Annex A.5, A.7, A.9).
_INFLATED = {
    "1.2.840.10008.1.2.1.99": EXPLICIT_VR_LITTLE_ENDIAN,
    "1.2.840.10008.1.2.4.95": "1.2.840.10008.1.2.4.94",
    "1.2.840.10008.1.2.4.205": "1.2.840.10008.1.2.4.204",
}


class Scanner:
    """Scans one instance.

    Args:
        write_rendition: called with the bytes of the stream `Origin.RENDITION`, in chunks; its exceptions are not caught.
        limits: of memory and sizes.
        amend: changes attributes of the data set in place, and returns the item that it added to the Original Attributes Sequence; None
            if it changed nothing. It must not change UIDs, pixel data or the attributes that describe pixel data. The served form and
            DICOM JSON are those of the changed data set; the digest and the original are not.
        resource: name of the non-patient resource that the instance goes to, which has no studies and series; "" for a study.
    """

    def __init__(
        self,
        write_rendition: Callable[[bytes | memoryview], None],
        limits: Limits = Limits(),  # noqa: B008
        amend: "Callable[[Elements], Elements | None] | None" = None,
        resource: str = "",
    ) -> None:
        self._resource = resource
        self._amend = amend
        self._rendition = Rendition(write_rendition)
        self._limits = limits
        self._head = FileHead(limits.head_bytes)
        self._digest = hashlib.sha256()
        self._length = 0
        self._reader: ElementReader | None = None
        self._syntax: TransferSyntax | None = None
        self._encoding: Encoding = EXPLICIT_LITTLE
        self._carry = bytearray()
        self._inflator: zlib._Decompress | None = None
        self._inflated_length = 0

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes of the instance, in chunks of any size.

        Raises:
            ScanFailure: the bytes cannot be read; `feed` must not be called again.
        """
        view = memoryview(chunk)
        self._length += len(view)
        try:
            while self._reader is None and view:
                self._head.data += view[:_HEAD_BYTES]
                view = view[_HEAD_BYTES:]
                if self._head.read(is_last=False):
                    self._begin_data_set()
            if self._reader is not None and view:
                self._take_data_set(view, self._reader)
        except ScanFailure as failure:
            raise self._with_uids(failure) from None

    def finish(self) -> ScannedInstance:
        """Conclude the scan at the end of the instance.

        Raises:
            ScanFailure: the instance is truncated, or a mandatory UID is missing or invalid.
        """
        try:
            reader = self._reader
            if reader is None:
                self._head.read(is_last=True)
                reader = self._begin_data_set()
            if self._inflator is not None and not self._inflator.eof:
                raise ScanFailure("the deflated data set is truncated", reasons.CANNOT_UNDERSTAND)
            reader.finish(bytes(self._carry))
            return self._conclude(reader)
        except ScanFailure as failure:
            raise self._with_uids(failure) from None

    def _begin_data_set(self) -> ElementReader:
        head = self._head
        rest = bytes(head.data[head.length :])
        del head.data[head.length :]
        syntax = transfer_syntax(head.transfer_syntax_uid) if head.transfer_syntax_uid else None
        if syntax is not None and not (syntax.is_supported and is_valid_uid(syntax.uid)):
            raise ScanFailure(f"transfer syntax {syntax.uid[:64]} is not supported", reasons.TRANSFER_SYNTAX_NOT_SUPPORTED)
        is_deflated = syntax is not None and syntax.is_deflated
        is_known = syntax is not None and syntax.uid in TRANSFER_SYNTAXES
        encoding = EXPLICIT_LITTLE if is_deflated else find_encoding(rest[:8], syntax if is_known else None)
        if encoding is None and syntax is None:
            raise ScanFailure("neither a PS3.10 file nor a data set", reasons.CANNOT_UNDERSTAND)
        if encoding is None or (syntax is not None and not is_known and encoding is not EXPLICIT_LITTLE):
            raise ScanFailure(
                "the transfer syntax is unknown and the data set is not Explicit VR Little Endian", reasons.TRANSFER_SYNTAX_NOT_SUPPORTED
            )
        if is_deflated:
            self._inflator = zlib.decompressobj(-zlib.MAX_WBITS)
        self._syntax, self._encoding = syntax, encoding
        reader = self._reader = ElementReader(
            encoding,
            0 if is_deflated else head.length,
            Origin.RENDITION if is_deflated else Origin.ORIGINAL,
            self._limits,
            may_be_encapsulated=syntax is not None and syntax.is_encapsulated,
            is_start=partial(is_codestream_start, syntax.codestream) if syntax is not None else lambda _: False,
            rendition=self._rendition,
        )
        self._take_data_set(memoryview(rest), reader)
        return reader

    def _take_data_set(self, view: memoryview, reader: ElementReader) -> None:
        self._digest.update(view)
        if self._inflator is None:
            self._take(view, reader)
        else:
            self._inflate(view, reader, self._inflator)

    def _inflate(self, view: memoryview, reader: ElementReader, inflator: "zlib._Decompress") -> None:
        data: bytes | memoryview = view
        while not inflator.eof:
            try:
                piece = inflator.decompress(data, _INFLATE_BYTES)
            except zlib.error as error:
                raise ScanFailure(f"the deflated data set is corrupt: {error}", reasons.CANNOT_UNDERSTAND) from error
            data = inflator.unconsumed_tail
            self._inflated_length += len(piece)
            self._check_inflation()
            self._rendition.write(piece)
            self._take(memoryview(piece), reader)
            if not data and len(piece) < _INFLATE_BYTES:
                break
        if len(inflator.unused_data.rstrip(b"\0")) > _GZIP_TRAILER_BYTES:
            raise ScanFailure("bytes follow the deflated data set", reasons.CANNOT_UNDERSTAND)

    def _check_inflation(self) -> None:
        limits, inflated = self._limits, self._inflated_length
        deflated = self._length - self._head.length
        is_bomb = inflated > _INFLATION_IS_WATCHED_FROM_BYTES and inflated > deflated * limits.inflation_ratio
        if is_bomb or inflated > limits.inflated_bytes:
            raise ScanFailure(f"{deflated} deflated bytes inflate to more than {inflated} bytes", reasons.PROCESSING_FAILURE)

    def _take(self, view: memoryview, reader: ElementReader) -> None:
        position, end, carry = 0, len(view), self._carry
        while position < end:
            if reader.is_padding:
                if bytes(view[position:]).strip(b"\0"):
                    raise ScanFailure(f"byte {reader.at}: zeros, and then more, follow the last element", reasons.CANNOT_UNDERSTAND)
                return
            if reader.skip:
                piece = view[position : position + reader.skip]
                reader.skipped(piece)
                position += len(piece)
                continue
            wanted = reader.need - len(carry)
            piece = view[position : position + max(wanted, _WINDOW_BYTES)]
            position += len(piece)
            carry += piece
            if len(piece) < wanted:
                return
            data = bytes(carry)
            carry.clear()
            rest = data[reader.read(data) :]
            if reader.skip or reader.is_padding:
                position -= len(rest)
            else:
                carry += rest

    def _conclude(self, reader: ElementReader) -> ScannedInstance:
        root, head = reader.root, self._head
        study, series, sop_class, sop_instance = self._required_uids(root)
        path = instance_path(self._resource or study, series, sop_instance)
        is_all_kept = _count_kept(root) == reader.count
        item = self._amend(root) if self._amend is not None else None
        uri_prefix = BASE_URL + f"{path}/bulkdata/".encode("ascii")
        json = DicomJson(uri_prefix, self._place_of)
        dicom_json = json.encode(root)
        wire_syntax = self._wire_transfer_syntax_uid()
        wire = Wire(self._rendition)
        header, pixel_element = self._write_wire(wire, reader, sop_class, sop_instance, wire_syntax, is_amended=item is not None)
        pixel, frames, is_complete = self._pixel_data(root)
        return ScannedInstance(
            study_instance_uid=study,
            series_instance_uid=series,
            sop_instance_uid=sop_instance,
            sop_class_uid=sop_class,
            transfer_syntax_uid=self._transfer_syntax_uid(),
            length=self._length,
            head_length=head.length,
            head_digest=hashlib.sha256(head.data).digest(),
            dataset_digest=self._digest.digest(),
            dicom_json=dicom_json,
            wire_transfer_syntax_uid=wire_syntax,
            wire=wire.finish(),
            pixel_element=pixel_element,
            pixel_element_header=header,
            frames=frames,
            bulk=tuple(json.bulk),
            pixel=pixel,
            warning_reasons=_warnings(is_coerced=item is not None, is_all_kept=is_all_kept, is_complete=is_complete),
            resource=self._resource,
            original_attributes=DicomJson(uri_prefix, self._place_of).encode(_told(root, item)) if item is not None else b"",
        )

    def _required_uids(self, root: Elements) -> tuple[str, str, str, str]:
        """Return Study, Series, SOP Class and SOP Instance UID; the first two are "" in a non-patient resource."""
        uids = ["", "", "", ""]
        for number, (tag, name) in enumerate(_REQUIRED_UIDS):
            if self._resource and number < _UIDS_OF_STUDIES:
                continue
            uid = uids[number] = _text_of(root, tag)
            if not uid:
                raise ScanFailure(f"{name} is missing", reasons.REQUIRED_UID_MISSING)
            if not is_valid_uid(uid):
                raise ScanFailure(f"{name} is not a UID", reasons.INVALID_SOP_INSTANCE)
        study, series, sop_class, sop_instance = uids
        return study, series, sop_class, sop_instance

    def _transfer_syntax_uid(self) -> str:
        """Return the transfer syntax as sent; if the file has none, that of the bytes."""
        if self._syntax is not None:
            return self._syntax.uid
        by_encoding = {EXPLICIT_LITTLE: EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_BIG: EXPLICIT_VR_BIG_ENDIAN}
        return by_encoding.get(self._encoding, IMPLICIT_VR_LITTLE_ENDIAN)

    def _wire_transfer_syntax_uid(self) -> str:
        syntax = self._syntax
        if syntax is None or not syntax.is_explicit or syntax.is_big_endian:
            return EXPLICIT_VR_LITTLE_ENDIAN
        return _INFLATED.get(syntax.uid, syntax.uid)

    def _place_of(self, vr: bytes, value: bytes, offset: int) -> Span:
        if self._encoding is EXPLICIT_BIG:
            at = self._rendition.length
            self._rendition.write(value)
            return Span(Origin.RENDITION, at, len(value))
        return Span(Origin.ORIGINAL if self._inflator is None else Origin.RENDITION, offset, len(value))

    def _write_wire(
        self, wire: Wire, reader: ElementReader, sop_class_uid: str, sop_instance_uid: str, wire_syntax: str, *, is_amended: bool
    ) -> tuple[Span | None, Span | None]:
        """Lay out the served form; return the spans of the pixel element's header, if it is separate, and of the pixel element."""
        head = self._head

        def write_meta() -> None:
            wire.write(encode_file_meta(sop_class_uid, sop_instance_uid, wire_syntax))

        if is_amended or self._encoding is not EXPLICIT_LITTLE or (reader.is_mixed and self._inflator is None):
            write_meta()
            encoder = ExplicitEncoder(wire, is_swapped=self._encoding is EXPLICIT_BIG)
            encoder.encode(reader.root)
            return encoder.pixel_header, encoder.pixel_element
        if self._inflator is not None:
            write_meta()
            wire.refer(Origin.RENDITION, 0, reader.at)
            return None, _whole_element(reader.root)
        if head.agrees(sop_class_uid, sop_instance_uid, wire_syntax):
            if head.has_zero_preamble:
                wire.refer(Origin.ORIGINAL, 0, len(PREAMBLE))
            else:
                wire.write(PREAMBLE)
            wire.refer(Origin.ORIGINAL, len(PREAMBLE), head.length - len(PREAMBLE))
        else:
            write_meta()
        wire.refer(Origin.ORIGINAL, head.length, reader.at - head.length)
        return None, _whole_element(reader.root)

    def _pixel_data(self, root: Elements) -> tuple[PixelDescription, FrameTable | None, bool]:
        """Describe pixel data; the last item is whether all frames of Number of Frames exist."""
        tag = _pixel_tag(root)
        pixel = _describe(root, tag)
        if tag is None:
            return pixel, None, True
        value = root[tag][1]
        number_of_frames, is_right = _number_of_frames(root)
        if isinstance(value, Bulk):
            if self._syntax is not None and self._syntax.is_encapsulated and self._syntax.uid in TRANSFER_SYNTAXES:
                return pixel, None, False  # native bytes, but a compressed transfer syntax
            span = Span(value.origin, value.offset, value.length)
            frames = locate_native_frames(span, pixel, number_of_frames)
            return pixel, frames, is_right and frames is not None and _is_filled(frames, number_of_frames, value.length)
        assert isinstance(value, Fragments)
        is_video = self._syntax is not None and self._syntax.is_video
        table = _fragment_table(root, value)
        frames = locate_encapsulated_frames(table, number_of_frames, is_video=is_video)
        return pixel, frames, frames is not None and (is_video or (is_right and frames.number_of_frames == number_of_frames))

    def _with_uids(self, failure: ScanFailure) -> ScanFailure:
        root = self._reader.root if self._reader is not None else {}
        return type(failure)(
            failure.message,
            failure.reason,
            study_instance_uid=_uid_of(root, _STUDY_INSTANCE_UID),
            series_instance_uid=_uid_of(root, _SERIES_INSTANCE_UID),
            sop_class_uid=_uid_of(root, _SOP_CLASS_UID),
            sop_instance_uid=_uid_of(root, _SOP_INSTANCE_UID),
        )


def _count_kept(elements: Elements) -> int:
    """Count elements, items and fragments in DICOM JSON, plus group lengths."""
    count = len(elements)
    if count and min(elements) < _FIRST_DATA_SET_TAG:
        # Groups up to 2 are not part of a data set.
        elements = {tag: element for tag, element in elements.items() if tag >= _FIRST_DATA_SET_TAG or not tag & 0xFFFF}
        count = len(elements)
    for _, value, _ in elements.values():
        if type(value) is list:
            count += len(value) + sum(map(_count_kept, value))
        elif type(value) is Fragments:
            count += len(value.offsets)
    return count


def _warnings(*, is_coerced: bool, is_all_kept: bool, is_complete: bool) -> tuple[int, ...]:
    """Return Warning Reasons, the most important first: the response has room for one."""
    told = (
        (is_coerced, reasons.COERCION),
        (not is_complete, reasons.DATA_SET_DOES_NOT_MATCH_SOP_CLASS_WARNING),
        (not is_all_kept, reasons.ELEMENTS_DISCARDED),
    )
    return tuple(reason for applies, reason in told if applies)


def _told(root: Elements, item: Elements) -> Elements:
    """Return a data set with only the item that coercion added, in the character set of its instance."""
    told: Elements = {_ORIGINAL_ATTRIBUTES_SEQUENCE: (b"SQ", [item], 0)}
    if (charset := root.get(SPECIFIC_CHARACTER_SET)) is not None:
        told[SPECIFIC_CHARACTER_SET] = charset
    return told


def _is_filled(frames: FrameTable, number_of_frames: int, length: int) -> bool:
    """Return whether native pixel data has the length that its attributes imply, apart from one padding byte."""
    assert isinstance(frames.encoding, NativeFrames)
    needed = (frames.encoding.frame_bits * number_of_frames + 7) // 8
    return frames.number_of_frames == number_of_frames and needed <= length <= needed + (needed & 1)


def _text_of(root: Elements, tag: int) -> str:
    element = root.get(tag)
    return element[1].decode("latin-1").strip(" \0") if element is not None and isinstance(element[1], bytes) else ""


def _uid_of(root: Elements, tag: int) -> str:
    uid = _text_of(root, tag)
    return uid if is_valid_uid(uid) else ""


def _unsigned_of(root: Elements, tag: int) -> int:
    element = root.get(tag)
    return int.from_bytes(element[1][:2], "little") if element is not None and isinstance(element[1], bytes) else 0


def _number_of_frames(root: Elements) -> tuple[int, bool]:
    """Return Number of Frames (1 if it is absent or invalid) and whether it is valid."""
    text = _text_of(root, _NUMBER_OF_FRAMES)
    is_number = re.fullmatch(r"\+?[0-9]{1,10}", text) is not None and int(text) > 0
    return int(text) if is_number else 1, is_number or not text


def _pixel_tag(root: Elements) -> int | None:
    tags = (PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA)
    return next((tag for tag in tags if tag in root and isinstance(root[tag][1], Bulk | Fragments)), None)


def _describe(root: Elements, tag: int | None) -> PixelDescription:
    return PixelDescription(
        rows=_unsigned_of(root, 0x00280010),
        columns=_unsigned_of(root, 0x00280011),
        samples_per_pixel=_unsigned_of(root, 0x00280002),
        photometric_interpretation=_text_of(root, 0x00280004),
        planar_configuration=_unsigned_of(root, 0x00280006),
        bits_allocated=_unsigned_of(root, 0x00280100),
        bits_stored=_unsigned_of(root, 0x00280101),
        high_bit=_unsigned_of(root, 0x00280102),
        pixel_representation=_unsigned_of(root, 0x00280103),
        tag=f"{tag:08X}" if tag is not None else "",
        vr=root[tag][0].decode("ascii") if tag is not None else "",
    )


def _whole_element(root: Elements) -> Span | None:
    tag = _pixel_tag(root)
    value = root[tag][1] if tag is not None else None
    if isinstance(value, Bulk):
        return Span(value.origin, value.header_offset, value.offset + value.length - value.header_offset)
    if isinstance(value, Fragments):
        return Span(value.origin, value.header_offset, value.end - value.header_offset)
    return None


def _fragment_table(root: Elements, value: Fragments) -> FragmentTable:
    extended = root.get(_EXTENDED_OFFSET_TABLE)
    return FragmentTable(
        value.origin,
        value.offsets,
        value.lengths,
        value.starts,
        value.basic_offset_table or b"",
        extended[1] if extended is not None and isinstance(extended[1], bytes) else b"",
    )
