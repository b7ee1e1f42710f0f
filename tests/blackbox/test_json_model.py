"""The DICOM JSON Model in metadata (PS3.18 Annex F), value by value."""

import base64
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.support import instances
from tests.support.dicomweb import JSON, OCTETS, DicomWeb, Object, parts_of, walk

INLINE_VRS = {"OB", "OD", "OF", "OL", "OV", "OW", "UN"}
BULK_VRS = INLINE_VRS | {"DS", "FL", "FD", "IS", "LT", "SL", "SS", "ST", "SV", "UC", "UL", "US", "UT", "UV"}


def of_everything() -> Dataset:
    """Return a data set with at least one attribute of nearly every VR."""
    data_set = instances.ct(PatientName="Doe^Jane=漢字^名前=かな^なまえ", SpecificCharacterSet="ISO_IR 192")
    data_set.FrameIncrementPointer = [0x00181063, 0x00181065]
    data_set.add_new(0x00189327, "FD", 1.5)
    data_set.add_new(0x00089459, "FL", 0.25)
    data_set.add_new(0x00286040, "US", [1, 65535])
    data_set.add_new(0x00189219, "SS", -5)
    data_set.add_new(0x00186020, "SL", -70000)
    data_set.add_new(0x00186016, "UL", 4_000_000_000)
    data_set.add_new(0x00720082, "SV", -(2**62))
    data_set.add_new(0x00720083, "UV", 2**63)
    data_set.add_new(0x00324000, "LT", "one\\two, not split ")
    data_set.add_new(0x00400280, "ST", "a\\b")
    data_set.add_new(0x00080119, "UC", ["first", "second"])
    data_set.add_new(0x0040A160, "UT", "text \\ text")
    data_set.add_new(0x00081190, "UR", "http://example.org/a?b=c")
    data_set.OtherPatientNames = ["A^B", "", "C^D"]
    data_set.ImageComments = "odd"
    data_set.PatientComments = None
    data_set.ReferencedStudySequence = Sequence([])
    data_set.ProcedureCodeSequence = Sequence([Dataset()])
    data_set.add_new(0x00282000, "OB", b"\x01\x02\x03\x04")
    data_set.WindowCenter = ["40", "-600"]
    data_set.PixelSpacing = ["0.50", "1e-1"]
    return data_set


def metadata(dicomweb: DicomWeb, data_set: Dataset, **options: Any) -> Object:
    """Store a data set and return its metadata."""
    dicomweb.store(instances.encoded(data_set, **options))
    (found,) = dicomweb.metadata(instances.resource(data_set))
    return found


def every_object(data_set: Object) -> list[Object]:
    """Return the data set and all items below it."""
    return [data_set, *(item for _, element in walk(data_set) if element["vr"] == "SQ" for item in element.get("Value", []))]


@pytest.mark.requirement("X-001", "X-002", "X-003")
@pytest.mark.parametrize("make", [of_everything, instances.with_bulk, instances.enhanced_ct])
def test_keys_ascend_and_each_element_has_a_vr_and_at_most_one_value(dicomweb: DicomWeb, make) -> None:  # type: ignore[no-untyped-def]
    found = metadata(dicomweb, make())
    for data_set in every_object(found):
        assert list(data_set) == sorted(data_set)
    for tag, element in walk(found):
        assert len(tag) == 8
        assert tag == tag.upper()
        assert int(tag, 16) % 0x10000
        assert len(element["vr"]) == 2
        assert len({"Value", "BulkDataURI", "InlineBinary"} & set(element)) <= 1
        assert set(element) <= {"vr", "Value", "BulkDataURI", "InlineBinary"}


@pytest.mark.requirement("X-004", "X-005", "X-007")
def test_numbers_are_numbers_and_tags_are_hex(dicomweb: DicomWeb) -> None:
    found = metadata(dicomweb, of_everything())
    assert found["00280009"] == {"vr": "AT", "Value": ["00181063", "00181065"]}
    assert found["00189327"] == {"vr": "FD", "Value": [1.5]}
    assert found["00089459"] == {"vr": "FL", "Value": [0.25]}
    assert found["00286040"] == {"vr": "US", "Value": [1, 65535]}
    assert found["00189219"] == {"vr": "SS", "Value": [-5]}
    assert found["00186020"] == {"vr": "SL", "Value": [-70000]}
    assert found["00186016"] == {"vr": "UL", "Value": [4_000_000_000]}
    assert int(found["00720082"]["Value"][0]) == -(2**62)
    assert int(found["00720083"]["Value"][0]) == 2**63
    assert isinstance(found["00720083"]["Value"][0], str)
    assert [float(number) for number in found["00280030"]["Value"]] == [0.5, 0.1]
    assert [float(number) for number in found["00281050"]["Value"]] == [40, -600]


@pytest.mark.requirement("X-008", "X-012")
def test_names_have_the_groups_that_are_not_empty_in_utf_8(dicomweb: DicomWeb) -> None:
    name = {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}
    data_set = instances.japanese()
    assert metadata(dicomweb, data_set)["00100010"] == {"vr": "PN", "Value": [name]}
    assert metadata(dicomweb, instances.ct())["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]}
    response = dicomweb.get(f"{instances.resource(data_set)}/metadata", JSON)
    assert "山田^太郎" in response.content.decode("utf-8")
    assert response.json()[0]["00080005"] == {"vr": "CS", "Value": ["ISO_IR 192"]}


@pytest.mark.requirement("X-009")
def test_what_is_empty_has_only_its_vr_or_null_or_an_empty_item(dicomweb: DicomWeb) -> None:
    found = metadata(dicomweb, of_everything())
    assert found["00104000"] == {"vr": "LT"}
    assert found["00081110"] == {"vr": "SQ"}
    assert found["00081032"] == {"vr": "SQ", "Value": [{}]}
    assert found["00101001"] == {"vr": "PN", "Value": [{"Alphabetic": "A^B"}, None, {"Alphabetic": "C^D"}]}


@pytest.mark.requirement("X-010")
def test_a_short_binary_value_is_inline_little_endian(dicomweb: DicomWeb) -> None:
    words = np.arange(6, dtype="<u2")
    data_set = instances.ct()
    data_set.add_new(0x00281201, "OW", words.tobytes())
    found = metadata(dicomweb, data_set)
    assert base64.b64decode(found["00281201"]["InlineBinary"]) == words.tobytes()
    swapped = instances.ct()
    swapped.add_new(0x00281201, "OW", words.astype(">u2").tobytes())
    assert metadata(dicomweb, swapped, transfer_syntax=instances.NATIVE["big endian"])["00281201"] == found["00281201"]


@pytest.mark.requirement("X-011", "R-012")
def test_bulkdata_uris_and_inline_binaries_stand_on_permitted_vrs_only(dicomweb: DicomWeb) -> None:
    for make in (of_everything, instances.with_bulk, instances.segmentation):
        for tag, element in walk(metadata(dicomweb, make())):
            assert "BulkDataURI" not in element or element["vr"] in BULK_VRS, tag
            assert "InlineBinary" not in element or element["vr"] in INLINE_VRS, tag


@pytest.mark.requirement("X-014")
def test_padding_is_not_shown_and_stays_in_the_file(dicomweb: DicomWeb) -> None:
    data_set = instances.ct(StudyID="odd", PatientID="12345")
    found = metadata(dicomweb, data_set)
    assert found["00200010"] == {"vr": "SH", "Value": ["odd"]}
    assert found["00100020"] == {"vr": "LO", "Value": ["12345"]}
    assert not [tag for tag, element in walk(found) if element["vr"] == "UI" for value in element.get("Value", []) if "\0" in value]
    (part,) = parts_of(dicomweb.get(instances.resource(data_set), 'multipart/related; type="application/dicom"'))
    assert part.content == instances.encoded(data_set)


@pytest.mark.requirement("X-015", "X-026")
def test_a_backslash_divides_the_values_of_some_vrs_and_is_text_in_others(dicomweb: DicomWeb) -> None:
    found = metadata(dicomweb, of_everything())
    assert found["00080119"] == {"vr": "UC", "Value": ["first", "second"]}
    assert found["00324000"] == {"vr": "LT", "Value": ["one\\two, not split"]}
    assert found["00400280"] == {"vr": "ST", "Value": ["a\\b"]}
    assert found["0040A160"] == {"vr": "UT", "Value": ["text \\ text"]}
    assert found["00081190"] == {"vr": "UR", "Value": ["http://example.org/a?b=c"]}


@pytest.mark.requirement("X-015")
def test_a_backslash_divides_the_values_of_short_and_long_strings_and_names(dicomweb: DicomWeb) -> None:
    data_set = instances.ct(SpecificCharacterSet="ISO_IR 13")
    data_set.add_new(0x00081010, "SH", "")
    data_set.PatientID = "ID"
    data_set.OtherPatientNames = ["A^B", "C^D"]
    encoded = instances.encoded(data_set).replace(b"SH\0\0", b"SH\x04\0" + b"\xb1\\\xb2 ", 1)
    dicomweb.store(encoded)
    (found,) = dicomweb.metadata(instances.resource(data_set))
    # In JIS X 0201 the byte 5C is a yen sign, and it still divides values.
    assert found["00081010"] == {"vr": "SH", "Value": ["ｱ", "ｲ"]}
    assert found["00101001"] == {"vr": "PN", "Value": [{"Alphabetic": "A^B"}, {"Alphabetic": "C^D"}]}
    several = instances.ct()
    several.add_new(0x00081010, "SH", ["one", "", "two"])
    several.add_new(0x00080115, "UI", ["1.2", "1.3"])
    several.add_new(0x00181020, "LO", ["first", "second"])
    found = metadata(dicomweb, several)
    assert found["00081010"]["Value"] == ["one", None, "two"]
    assert found["00080115"]["Value"] == ["1.2", "1.3"]
    assert found["00181020"]["Value"] == ["first", "second"]


@pytest.mark.requirement("X-016")
def test_a_number_that_is_none_becomes_bulkdata(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    values = np.array([1.0, np.nan, np.inf])
    data_set.add_new(0x00720074, "FD", [float(value) for value in values])
    found = metadata(dicomweb, data_set)
    assert set(found["00720074"]) == {"vr", "BulkDataURI"}
    (part,) = parts_of(dicomweb.get(found["00720074"]["BulkDataURI"], OCTETS))
    assert part.content == values.astype("<f8").tobytes()


@pytest.mark.requirement("X-017")
def test_private_elements_are_there_with_their_creator(dicomweb: DicomWeb) -> None:
    found = metadata(dicomweb, instances.with_private_elements())
    assert found["00190010"] == {"vr": "LO", "Value": ["ACME 1.0"]}
    assert float(found["00191001"]["Value"][0]) == 1.5
    assert found["00191002"] == {"vr": "LO", "Value": ["one", "two"]}
    assert base64.b64decode(found["00191003"]["InlineBinary"]) == b"\x01\x02\x03\x04"


def test_the_same_data_set_gives_the_same_metadata_in_every_native_encoding(dicomweb: DicomWeb) -> None:
    found = []
    for syntax in instances.NATIVE.values():
        data_set = instances.enhanced_ct()
        answer = metadata(dicomweb, data_set, transfer_syntax=syntax)
        text = str(answer).replace(str(data_set.SOPInstanceUID), "I").replace(str(data_set.StudyInstanceUID), "S")
        found.append(text.replace(str(data_set.SeriesInstanceUID), "E"))
    assert found[0] == found[1] == found[2] == found[3]
