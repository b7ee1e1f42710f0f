"""Read the file header: preamble, prefix and File Meta Information, as far as a file has them.

Source: PS3.10 §7.1.
"""

import struct
from dataclasses import dataclass, field

from gantry_standard import reasons
from gantry_standard.dicom.dictionary import standard_vr
from gantry_standard.dicom.elements import EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE, Encoding
from gantry_standard.dicom.limits import ScanFailure
from gantry_standard.dicom.part10 import PREAMBLE, PREFIX
from gantry_standard.dicom.transfer_syntaxes import TransferSyntax, transfer_syntax
from gantry_standard.dicom.value_representations import VALUE_REPRESENTATIONS

_GROUP_2 = b"\2\0"
_GROUP_LENGTH = 0x0000
_MEDIA_STORAGE_SOP_CLASS_UID = 0x0002
_MEDIA_STORAGE_SOP_INSTANCE_UID = 0x0003
_TRANSFER_SYNTAX_UID = 0x0010


@dataclass(slots=True)
class FileHead:
    """Reads the header of a file from chunks.

    Attributes:
        data: the header, and the rest of the last chunk.
        length: of the header, after `read` has returned True.
    """

    limit_bytes: int
    data: bytearray = field(default_factory=bytearray)
    length: int = 0
    is_explicit: bool = True
    has_right_length: bool = False
    _is_begun: bool = False
    _group_at: int = 0
    _values: dict[int, bytes] = field(default_factory=dict)

    @property
    def has_zero_preamble(self) -> bool:
        """Return whether the file begins with 128 zero bytes and DICM."""
        return self.data[:132] == PREAMBLE + PREFIX

    @property
    def has_preamble(self) -> bool:
        """Return whether the file begins with 128 bytes and DICM."""
        return self.data[128:132] == PREFIX

    @property
    def transfer_syntax_uid(self) -> str:
        """Return (0002,0010); "" if it is absent."""
        return self._uid(_TRANSFER_SYNTAX_UID)

    def agrees(self, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bool:
        """Return whether the header, apart from its preamble, is correct for a data set of these UIDs."""
        named = (self._uid(_MEDIA_STORAGE_SOP_CLASS_UID), self._uid(_MEDIA_STORAGE_SOP_INSTANCE_UID), self.transfer_syntax_uid)
        is_whole = self.has_preamble and self.is_explicit and self.has_right_length
        return is_whole and named == (sop_class_uid, sop_instance_uid, transfer_syntax_uid)

    def read(self, *, is_last: bool) -> bool:
        """Continue reading `data`. Return whether the header is complete and enough bytes follow to recognise the encoding."""
        if not self._is_begun:
            if len(self.data) < 132 and not is_last:
                return False
            self.length = 132 if self.has_preamble else 4 if self.data[:4] == PREFIX else 0
            self._is_begun, self._group_at = True, self.length
        while not self._is_at_data_set():
            if not self._read_element():
                if is_last and self.data[self.length : self.length + 2] == _GROUP_2:
                    raise ScanFailure(f"byte {len(self.data)}: the file ends inside its File Meta Information", reasons.CANNOT_UNDERSTAND)
                return is_last
        return len(self.data) - self.length >= 8 or is_last

    def _is_at_data_set(self) -> bool:
        rest = self.data[self.length : self.length + 2]
        if len(rest) == 2 and rest != _GROUP_2:
            self._note_length()
            return True
        return (
            self._note_length() and transfer_syntax(self.transfer_syntax_uid).is_deflated
        )  # a deflated data set may begin with the same two bytes

    def _note_length(self) -> bool:
        value = self._values.get(_GROUP_LENGTH, b"")
        expected = int.from_bytes(value, "little") if len(value) == 4 else -1
        self.has_right_length = self.length == self._group_at + 12 + expected
        return self.has_right_length

    def _read_element(self) -> bool:
        at, data = self.length, self.data
        if len(data) - at < 12:
            return False
        element, vr = int.from_bytes(data[at + 2 : at + 4], "little"), bytes(data[at + 4 : at + 6])
        row = VALUE_REPRESENTATIONS.get(vr)
        if row is None:
            self.is_explicit = False
        value_at = at + (12 if row and row.is_long else 8)
        length = int.from_bytes(data[value_at - (4 if row is None or row.is_long else 2) : value_at], "little")
        if value_at + length > self.limit_bytes:
            raise ScanFailure(f"byte {at}: File Meta Information has more than {self.limit_bytes} bytes", reasons.CANNOT_UNDERSTAND)
        if value_at + length > len(data):
            return False
        self._values[element] = bytes(data[value_at : value_at + length])
        self.length = value_at + length
        return True

    def _uid(self, element: int) -> str:
        return self._values.get(element, b"").decode("latin-1").strip(" \0")


def find_encoding(first_bytes: bytes, syntax: TransferSyntax | None) -> Encoding | None:
    """Return the encoding of a data set: that of its transfer syntax, unless its first element contradicts it clearly.

    Args:
        first_bytes: 8 bytes, or fewer if the data set is shorter.
        syntax: None if the file has none.

    Returns:
        None if the bytes are not a data set.
    """
    encoding = _recognise(first_bytes)
    if syntax is None:
        return encoding
    said = EXPLICIT_BIG if syntax.is_big_endian else EXPLICIT_LITTLE if syntax.is_explicit else IMPLICIT_LITTLE
    if encoding is None:
        return said
    if said.is_explicit and first_bytes[4:6].isalpha() and first_bytes[4:6].isupper():
        # The other byte order only where it makes the group that data sets begin with.
        is_other_order = encoding.is_explicit and int.from_bytes(first_bytes[:2], "big" if encoding.is_big_endian else "little") == 8
        return encoding if is_other_order else said
    return encoding


def _recognise(first_bytes: bytes) -> Encoding | None:
    if len(first_bytes) < 8:
        return None
    little, big = int.from_bytes(first_bytes[:2], "little"), int.from_bytes(first_bytes[:2], "big")
    if first_bytes[4:6] in VALUE_REPRESENTATIONS:
        return EXPLICIT_LITTLE if little <= big else EXPLICIT_BIG
    group, element, length = struct.unpack("<HHI", first_bytes)
    is_plausible = standard_vr(group << 16 | element) is not None and (length < 1 << 24 or length == 0xFFFFFFFF)
    return IMPLICIT_LITTLE if group >= 8 and is_plausible else None
