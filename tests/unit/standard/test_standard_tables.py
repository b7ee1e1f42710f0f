"""Tables of the standard: UIDs, SOP classes, transfer syntaxes, reasons, Part 10."""

from io import BytesIO

import pydicom
import pytest
from pydicom.uid import UID, AllTransferSyntaxes

from gantry_standard import reasons
from gantry_standard.dicom.part10 import IMPLEMENTATION_CLASS_UID, encode_element, encode_file_meta
from gantry_standard.dicom.sop_classes import is_storage_sop_class
from gantry_standard.dicom.transfer_syntaxes import TRANSFER_SYNTAXES, transfer_syntax
from gantry_standard.dicom.uids import is_valid_uid


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.2.3", True), ("1", True), ("2.25." + "9" * 59, True), ("2.25." + "9" * 60, False)]
    + [(text, False) for text in ("", ".", "1.", ".1", "1..2", "1.2a", " 1.2", "1.2\n", "1.²")],
)
def test_uid_is_digits_and_dots(text: str, expected: bool) -> None:
    assert is_valid_uid(text) is expected


@pytest.mark.parametrize(
    ("uid", "well_known", "with_private"),
    [
        pytest.param("1.2.840.10008.5.1.4.1.1.2", True, True, id="CT Image Storage"),
        pytest.param("1.2.840.10008.5.1.4.1.1.104.1", True, True, id="Encapsulated PDF Storage"),
        pytest.param("1.2.840.10008.5.1.4.38.1", True, True, id="Hanging Protocol Storage"),
        pytest.param("1.2.840.10008.5.1.4.1.1.999.1", False, True, id="newer than the dictionary"),
        pytest.param("1.3.12.2.1107.5.9.1", False, True, id="private"),
        pytest.param("1.2.840.10008.1.1", False, False, id="Verification"),
        pytest.param("1.2.840.10008.1.3.10", False, False, id="Media Storage Directory"),
        pytest.param("1.2.840.10008.1.20.1", False, False, id="Storage Commitment Push Model"),
        pytest.param("1.2.840.10008.3.1.2.3.3", False, False, id="MPPS"),
        pytest.param("1.2.840.10008.5.1.4.34.6.1", False, False, id="UPS Push"),
        pytest.param("1.2.840.10008.5.1.4.1.2.2.1", False, False, id="Study Root FIND"),
        pytest.param("1.2.840.10008.1.2.1", False, False, id="a transfer syntax"),
        pytest.param("", False, False, id="none"),
    ],
)
def test_which_sop_classes_are_stored(uid: str, well_known: bool, with_private: bool) -> None:
    assert is_storage_sop_class(uid, accept_private=False) is well_known
    assert is_storage_sop_class(uid, accept_private=True) is with_private


@pytest.mark.parametrize("uid", AllTransferSyntaxes)
def test_transfer_syntaxes_are_those_of_the_dictionary(uid: UID) -> None:
    row = TRANSFER_SYNTAXES[uid]
    assert row.is_deflated is (uid.is_deflated or uid.name.endswith("Deflate"))
    assert row.is_explicit is not uid.is_implicit_VR
    assert row.is_big_endian is not uid.is_little_endian
    if row.is_supported and "JPIP" not in row.name:
        assert row.is_encapsulated is uid.is_encapsulated


def test_unknown_transfer_syntax_is_taken_as_explicit_and_may_be_encapsulated() -> None:
    row = transfer_syntax("1.2.3")
    assert (row.is_explicit, row.is_big_endian, row.is_encapsulated, row.is_deflated) == (True, False, True, False)


def test_each_media_type_has_one_default() -> None:
    media_types = {row.media_type for row in TRANSFER_SYNTAXES.values() if row.media_type}
    for media_type in media_types:
        defaults = [row.uid for row in TRANSFER_SYNTAXES.values() if row.media_type == media_type and row.is_default_of_media_type]
        assert len(defaults) == 1, media_type


def test_reasons_lie_in_the_ranges_of_the_standard() -> None:
    assert {code >> 12 for code in reasons.WARNING_REASONS} == {0xB}
    # 0124H, refused: not authorized, is a status of C-STORE (PS3.7 §9.1.1.1.9).
    allowed = (range(0xA700, 0xA800), range(0xA900, 0xAA00), range(0xC000, 0xD000), range(0x0110, 0x0123), {0x0124})
    assert all(any(code in codes for codes in allowed) for code in reasons.FAILURE_REASONS)


def test_file_meta_is_read_back() -> None:
    head = encode_file_meta("1.2.840.10008.5.1.4.1.1.7", "2.25.33", "1.2.840.10008.1.2.1")
    meta = pydicom.dcmread(BytesIO(head + encode_element(0x00080018, b"UI", b"2.25.33"))).file_meta
    assert meta.FileMetaInformationGroupLength == len(head) - 144
    assert meta.FileMetaInformationVersion == b"\0\1"
    assert meta.MediaStorageSOPInstanceUID == "2.25.33"
    assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert is_valid_uid(IMPLEMENTATION_CLASS_UID)
    assert len(str(meta.ImplementationVersionName)) <= 16


def test_odd_values_are_padded_as_their_vr_wants() -> None:
    assert encode_element(0x00080018, b"UI", b"1.2") == b"\x08\0\x18\0UI\4\x001.2\0"
    assert encode_element(0x00080050, b"SH", b"1") == b"\x08\0\x50\0SH\2\x001 "
    assert encode_element(0x00091001, b"OB", b"1") == b"\x09\0\1\x10OB\0\0\2\0\0\x001\0"


def test_value_too_long_for_its_vr_is_written_as_un() -> None:
    encoded = encode_element(0x00081160, b"IS", b"1" * 65536)
    assert encoded[:12] == b"\x08\0\x60\x11UN\0\0\0\0\1\0"
