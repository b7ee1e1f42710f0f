"""The Native DICOM Model (PS3.19 §A.1) in metadata, search results and store responses, value by value."""

import base64
import io
import json
from typing import Any
from xml.etree.ElementTree import Element

import pydicom
import pytest
from pydicom.dataset import Dataset

from tests.blackbox.test_json_model import BULK_VRS, of_everything
from tests.support import instances, native_xml
from tests.support.dicomweb import JSON, OCTETS, XML, DicomWeb, Part, parts_of

XML_PART = "application/dicom+xml"
EVERYTHING = [
    of_everything,
    instances.with_private_elements,
    instances.with_bulk,
    instances.enhanced_ct,
    instances.segmentation,
    instances.japanese,
]


def xml_parts(dicomweb: DicomWeb, path: str) -> list[Part]:
    """Return the parts of an answer in XML."""
    response = dicomweb.get(path, XML)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith(f"{XML}; boundary=")
    parts = parts_of(response)
    assert {part.header("Content-Type") for part in parts} == {XML_PART}
    return parts


def metadata(dicomweb: DicomWeb, data_set: Dataset, **options: Any) -> Element:
    """Store a data set and return its metadata, whose structure has been checked."""
    dicomweb.store(instances.encoded(data_set, **options))
    (part,) = xml_parts(dicomweb, f"{instances.resource(data_set)}/metadata")
    return native_xml.checked(part.content)


def in_strings(dicomweb: DicomWeb, path: str) -> list[dict[str, Any]]:
    """Return metadata as DICOM JSON, numbers as they are spelled."""
    found: list[dict[str, Any]] = json.loads(dicomweb.get(path, JSON).content, parse_int=str, parse_float=str)
    return found


def attribute(root: Element, tag: str, creator: str = "") -> Element:
    """Return the DicomAttribute of a tag at the top level."""
    (found,) = [child for child in root if child.attrib["tag"] == tag and child.attrib.get("privateCreator", "") == creator]
    return found


@pytest.mark.requirement("R-007", "R-009")
def test_metadata_as_xml_has_a_document_per_instance_at_each_level(dicomweb: DicomWeb) -> None:
    study, series = instances.new_uid(), instances.new_uid()
    data_sets = [instances.ct(StudyInstanceUID=study, SeriesInstanceUID=series, InstanceNumber=number) for number in (1, 2)]
    data_sets.append(instances.ct(StudyInstanceUID=study))
    dicomweb.store(*map(instances.encoded, data_sets))
    urls = {it.SOPInstanceUID: f"{dicomweb.url}{instances.resource(it)}/metadata" for it in data_sets}
    for path, count in ((instances.study_resource, 3), (instances.series_resource, 2), (instances.resource, 1)):
        url = f"{path(data_sets[0])}/metadata"
        parts = xml_parts(dicomweb, url)
        models = [native_xml.read(native_xml.checked(part.content)) for part in parts]
        found = {model["00080018"]["Value"][0]: part.header("Content-Location") for model, part in zip(models, parts, strict=True)}
        assert len(parts) == len(found) == count
        assert found.items() <= urls.items()
        assert dicomweb.get(url, XML).headers["content-location"] == dicomweb.url + url


@pytest.mark.requirement("X-018", "X-024", "X-019")
@pytest.mark.parametrize("make", EVERYTHING)
def test_a_document_has_the_structure_that_ps3_19_gives_it(dicomweb: DicomWeb, make) -> None:  # type: ignore[no-untyped-def]
    root = metadata(dicomweb, make())
    assert root.tag == "{http://dicom.nema.org/PS3.19/models/NativeDICOM}NativeDicomModel"
    assert root.attrib == {"{http://www.w3.org/XML/1998/namespace}space": "preserve"}
    patient_name = attribute(root, "00100010")
    assert patient_name.attrib == {"tag": "00100010", "vr": "PN", "keyword": "PatientName"}
    for found in native_xml.attributes(root):
        assert found.attrib["tag"] == found.attrib["tag"].upper()
        assert len(found.attrib["vr"]) == 2
        assert "keyword" in found.attrib or "privateCreator" in found.attrib


@pytest.mark.requirement("X-020", "X-022")
def test_values_items_and_names_are_numbered_from_one_and_empty_ones_are_kept(dicomweb: DicomWeb) -> None:
    data_set = of_everything()
    data_set.ImageType = ["ORIGINAL", "", "AXIAL"]
    root = metadata(dicomweb, data_set)
    for tag, texts in {"00080008": ["ORIGINAL", None, "AXIAL"], "00286040": ["1", "65535"], "00280009": ["00181063", "00181065"]}.items():
        values = list(attribute(root, tag))
        assert [value.attrib["number"] for value in values] == [str(number) for number in range(1, len(texts) + 1)]
        assert [value.text for value in values] == texts
    names = list(attribute(root, "00101001"))
    assert [name.attrib for name in names] == [{"number": "1"}, {"number": "2"}, {"number": "3"}]
    assert len(names[1]) == 0
    found = native_xml.read(root)
    assert found["00101001"]["Value"] == [{"Alphabetic": "A^B"}, None, {"Alphabetic": "C^D"}]
    (item,) = attribute(root, "00081032")
    assert (item.attrib, len(item)) == ({"number": "1"}, 0)
    assert len(attribute(root, "00081110")) == 0
    assert len(attribute(root, "00104000")) == 0


@pytest.mark.requirement("X-021")
def test_private_elements_name_their_creator_and_have_no_block(dicomweb: DicomWeb) -> None:
    data_set = instances.with_private_elements()
    data_set.private_block(0x0019, "OTHER & Co", create=True).add_new(0x02, "LO", "third")
    root = metadata(dicomweb, data_set)
    assert [value.text for value in attribute(root, "00190002", "ACME 1.0")] == ["one", "two"]
    assert [value.text for value in attribute(root, "00190002", "OTHER & Co")] == ["third"]
    assert attribute(root, "00190001", "ACME 1.0").attrib == {"tag": "00190001", "vr": "DS", "privateCreator": "ACME 1.0"}
    assert not [child for child in root if child.attrib["tag"] in ("00190010", "00190011", "00191001")]


@pytest.mark.requirement("X-023", "X-010")
def test_bulkdata_is_named_by_a_uri_that_resolves_and_short_values_are_inline(dicomweb: DicomWeb) -> None:
    data_set = instances.with_bulk()
    data_set.add_new(0x00282000, "OB", b"\x01\x02\x03\x04")
    found = native_xml.read(metadata(dicomweb, data_set))
    uris = {tag: element["BulkDataURI"] for tag, element in found.items() if "BulkDataURI" in element}
    assert set(uris) == {"7FE00010", "00190010 ACME 1.0"}
    assert all(uri.startswith(f"{dicomweb.url}{instances.resource(data_set)}/bulkdata/") for uri in uris.values())
    (part,) = parts_of(dicomweb.get(uris["7FE00010"], OCTETS))
    assert part.content == data_set.PixelData
    (part,) = parts_of(dicomweb.get(uris["00190010 ACME 1.0"], OCTETS))
    assert part.content == instances.CURVE
    (icon,) = found["00880200"]["Value"]
    (part,) = parts_of(dicomweb.get(icon["7FE00010"]["BulkDataURI"], OCTETS))
    assert part.content == instances.ICON
    assert base64.b64decode(found["00282000"]["InlineBinary"]) == b"\x01\x02\x03\x04"


@pytest.mark.requirement("X-025")
@pytest.mark.parametrize("make", EVERYTHING)
def test_xml_and_json_are_the_same_data_set(dicomweb: DicomWeb, make) -> None:  # type: ignore[no-untyped-def]
    data_set = make()
    root = metadata(dicomweb, data_set)
    (in_json,) = in_strings(dicomweb, f"{instances.resource(data_set)}/metadata")
    assert native_xml.read(root) == native_xml.expected(in_json)


@pytest.mark.requirement("R-011", "X-019")
@pytest.mark.parametrize("make", [of_everything, instances.with_private_elements, instances.enhanced_ct])
def test_the_document_holds_every_attribute_of_the_file(dicomweb: DicomWeb, make) -> None:  # type: ignore[no-untyped-def]
    data_set = make()
    root = metadata(dicomweb, data_set)
    expected = [element for element in pydicom.dcmread(io.BytesIO(instances.encoded(data_set))) if not element.tag.is_private_creator]
    assert len(root) == len(expected)
    for element in expected:
        creator = element.private_creator if element.tag.is_private else ""
        tag = f"{element.tag & 0xFFFF00FF if creator else element.tag:08X}"
        found = attribute(root, tag, creator or "")
        assert found.attrib["vr"] == element.VR
        assert found.attrib.get("keyword", "") == ("" if creator else element.keyword)


@pytest.mark.requirement("X-026")
def test_text_is_not_split_and_keeps_its_lines(dicomweb: DicomWeb) -> None:
    data_set = of_everything()
    data_set.add_new(0x00324000, "LT", " one\\two\r\n\tthree & <four> \x0c five")
    found = native_xml.read(metadata(dicomweb, data_set))
    # XML 1.0 has no form feed; it is left out.
    assert found["00324000"]["Value"] == [" one\\two\r\n\tthree & <four>  five"]
    assert found["00400280"]["Value"] == ["a\\b"]
    assert found["0040A160"]["Value"] == ["text \\ text"]
    assert found["00081190"]["Value"] == ["http://example.org/a?b=c"]
    assert found["00080119"]["Value"] == ["first", "second"]


@pytest.mark.requirement("X-027")
def test_text_is_in_the_encoding_of_the_document_whatever_the_file_has(dicomweb: DicomWeb) -> None:
    latin = instances.ct(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg", StudyDescription="Schädel-Röntgen")
    found = native_xml.read(metadata(dicomweb, latin))
    assert found["00100010"]["Value"] == [{"Alphabetic": "Müller^Jörg"}]
    assert found["00081030"]["Value"] == ["Schädel-Röntgen"]
    assert found["00080005"]["Value"] == ["ISO_IR 192"]
    japanese = instances.japanese()
    dicomweb.store(instances.encoded(japanese))
    (part,) = xml_parts(dicomweb, f"{instances.resource(japanese)}/metadata")
    assert part.content.startswith(b'<?xml version="1.0" encoding="UTF-8"?>')
    assert "<Ideographic><FamilyName>山田</FamilyName><GivenName>太郎</GivenName></Ideographic>" in part.content.decode("utf-8")


@pytest.mark.requirement("R-010", "R-012")
def test_a_document_has_no_group_2_and_no_group_length_and_bulkdata_on_permitted_vrs_only(dicomweb: DicomWeb) -> None:
    for make in EVERYTHING:
        for found in native_xml.attributes(metadata(dicomweb, make())):
            assert found.attrib["tag"] >= "00080000"
            assert found.attrib["tag"][4:] != "0000" or "privateCreator" in found.attrib
            assert found.attrib["vr"] in BULK_VRS or not [child for child in found if child.tag.endswith("BulkData")]


@pytest.mark.requirement("R-035")
def test_the_parameters_accept_and_charset_are_taken(dicomweb: DicomWeb) -> None:
    data_set = instances.japanese()
    dicomweb.store(instances.encoded(data_set))
    path = f"{instances.resource(data_set)}/metadata"
    in_json = dicomweb.get(f"{path}?accept=application%2Fdicom%2Bjson", f"{XML}, */*;q=0.1")
    assert in_json.headers["content-type"] == JSON
    for query in ("charset=utf-8", "charset=ISO_IR%20192", "charset=no-such-set", "charset=no-such-set,utf-8"):
        response = dicomweb.get(f"{path}?{query}", JSON)
        assert (response.status_code, response.content) == (200, in_json.content)
    response = dicomweb.get(path, f"{JSON}; charset=utf-8", headers={"Accept-Charset": "no-such-set, utf-8;q=0.5"})
    assert (response.status_code, response.content) == (200, in_json.content)


@pytest.mark.requirement("S-029", "S-040")
@pytest.mark.parametrize("accept", [XML, XML_PART, f"{JSON};q=0.1, {XML}"])
def test_the_store_response_is_xml_where_the_client_wants_it(dicomweb: DicomWeb, accept: str) -> None:
    data_set = instances.ct()
    response = dicomweb.stow(instances.encoded(data_set), accept=accept)
    assert response.status_code == 200
    if accept == XML_PART:
        assert response.headers["content-type"] == XML_PART
        document = response.content
    else:
        (part,) = parts_of(response)
        assert part.header("Content-Type") == XML_PART
        document = part.content
    found = native_xml.read(native_xml.checked(document))
    assert found["00081190"] == {"vr": "UR", "Value": [dicomweb.url + instances.study_resource(data_set)]}
    assert found["00081199"]["Value"] == [
        {
            "00081150": {"vr": "UI", "Value": [instances.CT_IMAGE]},
            "00081155": {"vr": "UI", "Value": [data_set.SOPInstanceUID]},
            "00081190": {"vr": "UR", "Value": [dicomweb.url + instances.resource(data_set)]},
        }
    ]


@pytest.mark.requirement("S-029")
def test_what_could_not_be_stored_is_told_in_xml(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    response = dicomweb.stow(instances.encoded(data_set), study=instances.new_uid(), accept=XML)
    (part,) = parts_of(response, statuses=(409,))
    (item,) = native_xml.read(native_xml.checked(part.content))["00081198"]["Value"]
    assert item["00081155"]["Value"] == [data_set.SOPInstanceUID]
    assert item["00081197"] == {"vr": "US", "Value": ["43264"]}


@pytest.mark.requirement("X-013")
def test_search_results_are_one_document_per_match(dicomweb: DicomWeb) -> None:
    study = instances.new_uid()
    data_sets = [instances.ct(StudyInstanceUID=study) for _ in range(3)]
    dicomweb.store(*map(instances.encoded, data_sets))
    for path in (f"/studies?StudyInstanceUID={study}", f"/studies/{study}/series", f"/studies/{study}/instances?includefield=all"):
        rows = in_strings(dicomweb, path)
        parts = xml_parts(dicomweb, path)
        assert [native_xml.read(native_xml.checked(part.content)) for part in parts] == [native_xml.expected(row) for row in rows]
        assert not [part for part in parts if part.header("Content-Location")]
    nothing = dicomweb.get(f"/studies?StudyInstanceUID={instances.new_uid()}", XML)
    assert (nothing.status_code, nothing.content) == (204, b"")


@pytest.mark.requirement("X-025", "S-006")
@pytest.mark.parametrize("make", EVERYTHING)
def test_a_document_that_is_stored_comes_back_as_it_was(dicomweb: DicomWeb, make) -> None:  # type: ignore[no-untyped-def]
    data_set, uid = make(), instances.new_uid()
    dicomweb.store(instances.encoded(data_set))
    path = instances.resource(data_set)
    (part,) = xml_parts(dicomweb, f"{path}/metadata")
    uris = [child.attrib["uri"] for child in native_xml.checked(part.content).iter() if child.tag.endswith("BulkData")]
    document = part.content.replace(str(data_set.SOPInstanceUID).encode(), uid.encode())
    pieces = [f"Content-Type: {XML_PART}\r\n\r\n".encode() + document]
    for uri in uris:
        (bulk,) = parts_of(dicomweb.get(uri, OCTETS))
        location = uri.replace(str(data_set.SOPInstanceUID), uid)
        pieces.append(f"Content-Type: application/octet-stream\r\nContent-Location: {location}\r\n\r\n".encode() + bulk.content)
    body = b"".join(b"--b0undary\r\n" + piece + b"\r\n" for piece in pieces) + b"--b0undary--\r\n"
    response = dicomweb.post_related(body, "b0undary", content_type=XML + "; boundary={boundary}")
    assert response.status_code == 200, response.text
    (again,) = xml_parts(dicomweb, f"{path.replace(str(data_set.SOPInstanceUID), uid)}/metadata")
    assert again.content == document


ATTACK = b"""<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE NativeDicomModel [<!ENTITY file SYSTEM "file:///etc/hostname"> <!ENTITY many "&file;&file;&file;">]>
<NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">
<DicomAttribute tag="00080018" vr="UI"><Value number="1">%(uid)s</Value></DicomAttribute>
<DicomAttribute tag="00081030" vr="LO"><Value number="1">&many;</Value></DicomAttribute>
</NativeDicomModel>"""


@pytest.mark.requirement("X-028")
def test_a_document_with_entities_is_refused_and_nothing_is_read_or_stored(dicomweb: DicomWeb) -> None:
    uid = instances.new_uid()
    body = b"--b\r\nContent-Type: application/dicom+xml\r\n\r\n" + ATTACK % {b"uid": uid.encode()} + b"\r\n--b--\r\n"
    response = dicomweb.post_related(body, "b", content_type=XML + "; boundary={boundary}")
    assert response.status_code in (400, 409), response.text
    with open("/etc/hostname", encoding="utf-8") as file:
        assert file.read().strip() not in response.text.replace(dicomweb.url, "")
    assert dicomweb.search(f"/instances?SOPInstanceUID={uid}") == []


def test_identical_metadata_is_not_sent_again_and_head_has_no_body(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    dicomweb.store(instances.encoded(data_set))
    path = f"{instances.resource(data_set)}/metadata"
    etag = dicomweb.get(path, XML).headers["etag"]
    assert dicomweb.get(path, XML, headers={"If-None-Match": etag}).status_code == 304
    assert dicomweb.get(path, JSON, headers={"If-None-Match": etag}).status_code == 200
    head = dicomweb.request("HEAD", path, XML)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"].startswith(XML)


@pytest.mark.parametrize("accept", [JSON, XML])
def test_metadata_is_sent_in_the_coding_that_the_client_likes_best(dicomweb: DicomWeb, accept: str) -> None:
    data_set = instances.enhanced_ct(number_of_frames=30)
    dicomweb.store(instances.encoded(data_set))
    path = f"{instances.resource(data_set)}/metadata"
    plain = dicomweb.get(path, accept, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    for accept_encoding, coding in {"gzip": "gzip", "br, zstd;q=0.9, gzip;q=0.5": "zstd", "zstd;q=0.1, gzip": "gzip"}.items():
        response = dicomweb.get(path, accept, headers={"Accept-Encoding": accept_encoding})
        assert response.headers["content-encoding"] == coding
        assert response.headers["vary"].startswith("Accept, Accept-Encoding")
        assert int(response.headers["content-length"]) < len(plain.content) / 3
        if accept == JSON:
            assert response.content == plain.content
    assert dicomweb.get(path, accept, headers={"Accept-Encoding": "br, identity;q=0"}).status_code == 406
