"""Retrieve (PS3.18 §10.4): instances, metadata, bulkdata and frames, and that every byte is right."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from tests.support import instances
from tests.support.dicomweb import AS_STORED, DICOM, EXPLICIT_LE, JSON, OCTETS, OCTETS_AS_STORED, DicomWeb, parts_of, value, walk

BULK_VRS = {"DS", "FL", "FD", "IS", "LT", "OB", "OD", "OF", "OL", "OV", "OW", "SL", "SS", "ST", "SV", "UC", "UL", "UN", "US", "UT", "UV"}


def a_study(dicomweb: DicomWeb) -> list[Dataset]:
    """Store a study of two series, of two instances and one."""
    study, series = instances.new_uid(), instances.new_uid()
    data_sets = [
        instances.ct(StudyInstanceUID=study, SeriesInstanceUID=series, InstanceNumber=1),
        instances.ct(StudyInstanceUID=study, SeriesInstanceUID=series, InstanceNumber=2),
        instances.multi_frame(StudyInstanceUID=study, SeriesNumber=2),
    ]
    dicomweb.store(*(instances.encoded(data_set) for data_set in data_sets))
    return data_sets


def stored(dicomweb: DicomWeb, data_set: Dataset, transfer_syntax: str = EXPLICIT_LE) -> str:
    """Store one instance and return its path."""
    dicomweb.store(instances.encoded(data_set, transfer_syntax))
    return instances.resource(data_set)


@pytest.mark.distributed
@pytest.mark.requirement("R-001", "R-002", "R-003")
def test_study_series_and_instance_give_one_part_per_instance(dicomweb: DicomWeb) -> None:
    data_sets = a_study(dicomweb)
    files = {data_set.SOPInstanceUID: instances.encoded(data_set) for data_set in data_sets}
    for path, count in ((instances.study_resource, 3), (instances.series_resource, 2), (instances.resource, 1)):
        parts = dicomweb.parts(path(data_sets[0]), DICOM)
        assert len(parts) == count
        for part in parts:
            assert part.content == files[part.header("Content-Location").rsplit("/", 1)[-1]]


@pytest.mark.requirement("A-038", "A-045", "A-046")
def test_each_part_says_what_it_is_and_where_it_is_from(dicomweb: DicomWeb) -> None:
    data_sets = a_study(dicomweb)
    parts = dicomweb.parts(instances.study_resource(data_sets[0]), DICOM)
    assert {part.header("Content-Location") for part in parts} == {dicomweb.url + instances.resource(data_set) for data_set in data_sets}
    for part in parts:
        assert part.header("Content-Type") == f"application/dicom; transfer-syntax={EXPLICIT_LE}"
        assert pydicom.dcmread(io.BytesIO(part.content)).file_meta.TransferSyntaxUID == EXPLICIT_LE


@pytest.mark.requirement("A-042", "A-047", "A-048")
def test_an_answer_has_its_length_a_legal_boundary_and_a_type(dicomweb: DicomWeb) -> None:
    response = dicomweb.get(instances.study_resource(a_study(dicomweb)[0]), DICOM)
    assert parts_of(response)
    assert 'type="application/dicom"' in response.headers["content-type"]
    assert ("content-length" in response.headers) != ("transfer-encoding" in response.headers)
    if "content-length" in response.headers:
        assert int(response.headers["content-length"]) == len(response.content)


@pytest.mark.requirement("R-004", "A-044")
def test_a_single_part_is_sent_where_only_that_is_accepted(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    path = stored(dicomweb, data_set)
    response = dicomweb.get(path, "application/dicom")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("application/dicom")
    assert response.headers["content-location"] == dicomweb.url + path
    assert response.content == instances.encoded(data_set)


@pytest.mark.requirement("R-049", "R-050")
@pytest.mark.parametrize("accept", [DICOM, AS_STORED], ids=["default", "as stored"])
@pytest.mark.parametrize("name", [*instances.NATIVE, *instances.ENCAPSULATED])
def test_every_part_is_a_valid_file_in_the_syntax_that_it_names(dicomweb: DicomWeb, name: str, accept: str) -> None:
    syntax = {**instances.NATIVE, **instances.ENCAPSULATED}[name]
    data_set = instances.ct() if name in instances.NATIVE else instances.encapsulated(name)
    (part,) = dicomweb.parts(stored(dicomweb, data_set, syntax), accept)
    assert part.content[:132] == b"\0" * 128 + b"DICM"
    group_length = int.from_bytes(part.content[140:144], "little")
    read = pydicom.dcmread(io.BytesIO(part.content))
    assert part.content[132:140] == b"\x02\0\0\0UL\x04\0"
    assert part.content[144 + group_length : 146 + group_length] == b"\x08\0"
    assert read.file_meta.TransferSyntaxUID == part.transfer_syntax
    assert read.SOPInstanceUID == data_set.SOPInstanceUID
    assert read.pixel_array.shape[-2:] == (data_set.Rows, data_set.Columns)


@pytest.mark.requirement("A-032")
@pytest.mark.parametrize("name", ["jpeg 2000", "jpeg-ls", "rle"])
def test_compressed_pixels_leave_decompressed_by_default(dicomweb: DicomWeb, name: str) -> None:
    path = stored(dicomweb, instances.encapsulated(name), instances.ENCAPSULATED[name])
    (part,) = dicomweb.parts(path, DICOM)
    assert part.transfer_syntax == EXPLICIT_LE
    assert (pydicom.dcmread(io.BytesIO(part.content)).pixel_array == instances.frame_pixels(3, 16, 24)).all()


@pytest.mark.requirement("A-031", "A-033", "A-034")
def test_any_syntax_means_as_stored_but_never_implicit_or_big_endian(dicomweb: DicomWeb) -> None:
    data_set = instances.encapsulated("jpeg 2000")
    sent = instances.encoded(data_set, instances.ENCAPSULATED["jpeg 2000"])
    dicomweb.store(sent)
    (part,) = dicomweb.parts(instances.resource(data_set), AS_STORED)
    assert part.content == sent
    for name in ("implicit", "big endian", "deflated"):
        (part,) = dicomweb.parts(stored(dicomweb, instances.ct(), instances.NATIVE[name]), AS_STORED)
        assert part.transfer_syntax == EXPLICIT_LE
        read = pydicom.dcmread(io.BytesIO(part.content))
        assert read.file_meta.TransferSyntaxUID == EXPLICIT_LE
        assert (read.pixel_array == instances.ct_pixels()).all()


@pytest.mark.requirement("A-040")
def test_a_long_text_of_an_implicit_file_becomes_un(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    with pydicom.config.disable_value_validation():
        data_set.add_new(0x00324000, "LT", "x" * 70_000)
        path = stored(dicomweb, data_set, instances.NATIVE["implicit"])
    (part,) = dicomweb.parts(path, AS_STORED)
    at = part.content.index(b"\x32\x00\x00\x40")
    assert part.content[at + 4 : at + 12] == b"UN\0\0" + (70_000).to_bytes(4, "little")


@pytest.mark.requirement("R-031")
def test_what_is_not_there_or_not_below_its_parent_is_not_found(dicomweb: DicomWeb) -> None:
    one, other = instances.ct(), instances.ct()
    dicomweb.store(instances.encoded(one), instances.encoded(other))
    nobody = instances.new_uid()
    crossed = instances.resource(one).replace(one.SeriesInstanceUID, other.SeriesInstanceUID)
    for path in (
        f"/studies/{nobody}",
        f"{instances.study_resource(one)}/series/{nobody}",
        crossed,
        f"/studies/{nobody}/metadata",
        f"{crossed}/metadata",
    ):
        response = dicomweb.get(path)
        assert response.status_code == 404, path
        assert response.text
    assert dicomweb.get(f"{crossed}/frames/1").status_code == 404


@pytest.mark.distributed
@pytest.mark.requirement("R-032", "A-054")
def test_what_was_deleted_is_gone_and_the_rest_stays(dicomweb: DicomWeb) -> None:
    one, two, three = a_study(dicomweb)
    assert dicomweb.request("DELETE", instances.resource(one)).status_code in (200, 204)
    assert dicomweb.get(instances.resource(one), AS_STORED).status_code == 410
    assert dicomweb.get(f"{instances.resource(one)}/metadata", JSON).status_code == 410
    assert [value(row, "00080018") for row in dicomweb.search(f"{instances.series_resource(one)}/instances")] == [two.SOPInstanceUID]
    assert dicomweb.request("DELETE", instances.study_resource(one)).status_code in (200, 204)
    assert dicomweb.get(instances.study_resource(one), AS_STORED).status_code == 410
    assert dicomweb.get(instances.resource(three), AS_STORED).status_code == 410
    assert dicomweb.search(f"/studies?StudyInstanceUID={one.StudyInstanceUID}") == []


@pytest.mark.distributed
def test_an_instance_that_was_deleted_can_be_stored_again(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    path = stored(dicomweb, data_set)
    assert dicomweb.request("DELETE", path).status_code in (200, 204)
    stored(dicomweb, data_set)
    assert dicomweb.parts(path, AS_STORED)[0].content == instances.encoded(data_set)


@pytest.mark.requirement("R-033", "A-036", "A-022")
def test_what_cannot_be_produced_is_not_acceptable(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    path = stored(dicomweb, data_set)
    for accept in (f"{DICOM}; transfer-syntax=1.2.840.10008.1.2.4.100", "application/zip", "image/png"):
        assert dicomweb.get(path, accept).status_code == 406, accept
    assert dicomweb.get(instances.study_resource(data_set), "application/dicom").status_code == 406


# Metadata (§10.4.1.1.2)


@pytest.mark.distributed
@pytest.mark.requirement("R-007", "R-008", "R-010")
def test_metadata_of_the_three_levels_are_the_data_sets_without_group_2(dicomweb: DicomWeb) -> None:
    data_sets = a_study(dicomweb)
    for path, count in ((instances.study_resource, 3), (instances.series_resource, 2), (instances.resource, 1)):
        found = dicomweb.metadata(path(data_sets[0]))
        assert len(found) == count
        for data_set in found:
            assert not [tag for tag in data_set if tag < "0008"]
    (found,) = dicomweb.metadata(instances.resource(data_sets[0]))
    assert value(found, "00080018") == data_sets[0].SOPInstanceUID
    assert value(found, "00280010") == 32


@pytest.mark.requirement("R-011")
@pytest.mark.parametrize(
    "make", [instances.ct, instances.enhanced_ct, instances.segmentation, instances.rgb, instances.with_private_elements]
)
def test_metadata_holds_every_attribute_of_the_file(dicomweb: DicomWeb, make) -> None:  # type: ignore[no-untyped-def]
    data_set = make()
    path = stored(dicomweb, data_set)
    (found,) = dicomweb.metadata(path)
    read = Dataset.from_json(found, bulk_data_uri_handler=lambda tag, vr, uri: parts_of(dicomweb.get(uri, OCTETS))[0].content)
    expected = pydicom.dcmread(io.BytesIO(instances.encoded(data_set)))
    assert set(found) == {f"{element.tag:08X}" for element in expected}
    for element in expected:
        assert read[element.tag].VR == element.VR
        assert read[element.tag].value == element.value, element.tag


@pytest.mark.requirement("R-012", "R-013", "R-014")
@pytest.mark.parametrize("name", instances.NATIVE)
def test_bulkdata_uris_stand_only_where_they_may_and_give_the_value_field(dicomweb: DicomWeb, name: str) -> None:
    data_set = instances.with_bulk()
    pixels = data_set.PixelData
    path = stored(dicomweb, data_set, instances.NATIVE[name])
    (found,) = dicomweb.metadata(path)
    uris = {tag: element["BulkDataURI"] for tag, element in walk(found) if "BulkDataURI" in element}
    assert all(element["vr"] in BULK_VRS for _, element in walk(found) if "BulkDataURI" in element)
    assert {element["BulkDataURI"] for _, element in walk(found) if "BulkDataURI" in element} == {
        f"{dicomweb.url}{path}/bulkdata/{place}" for place in ("7FE00010", "00191010", "00880200/1/7FE00010")
    }
    assert uris["00191010"].endswith("/bulkdata/00191010")
    for place, content in {"7FE00010": pixels, "00191010": instances.CURVE, "00880200/1/7FE00010": instances.ICON}.items():
        (part,) = dicomweb.parts(f"{path}/bulkdata/{place}", OCTETS)
        assert part.content == content


@pytest.mark.distributed
@pytest.mark.requirement("R-016")
def test_a_bulkdata_part_names_the_uri_of_the_metadata(dicomweb: DicomWeb) -> None:
    path = stored(dicomweb, instances.with_bulk())
    (found,) = dicomweb.metadata(path)
    for uri in [element["BulkDataURI"] for _, element in walk(found) if "BulkDataURI" in element]:
        (part,) = parts_of(dicomweb.get(uri, OCTETS))
        assert part.header("Content-Location") == uri
        assert part.header("Content-Type") == f"application/octet-stream; transfer-syntax={EXPLICIT_LE}"
        single = dicomweb.get(uri, "application/octet-stream")
        assert single.headers["content-type"].startswith("application/octet-stream")
        assert single.headers["content-location"] == uri
        assert single.content == part.content


def test_bulkdata_that_is_not_there_is_not_found(dicomweb: DicomWeb) -> None:
    path = stored(dicomweb, instances.with_bulk())
    for place in ("00100010", "7FE00009", "00880200/2/7FE00010", "nothing"):
        assert dicomweb.get(f"{path}/bulkdata/{place}", OCTETS).status_code in (400, 404), place


# Frames (§10.4.1.1.6)


@pytest.mark.distributed
@pytest.mark.requirement("R-020", "R-023")
def test_frames_come_in_the_order_asked_for_as_the_bytes_that_were_stored(dicomweb: DicomWeb) -> None:
    path = stored(dicomweb, instances.multi_frame())
    parts = dicomweb.parts(f"{path}/frames/1,3,5", OCTETS)
    assert [part.content for part in parts] == [instances.frame_pixels()[index].tobytes() for index in (0, 2, 4)]
    assert [part.header("Content-Location") for part in parts] == [f"{dicomweb.url}{path}/frames/{number}" for number in (1, 3, 5)]
    assert {part.header("Content-Type") for part in parts} == {f"application/octet-stream; transfer-syntax={EXPLICIT_LE}"}


@pytest.mark.requirement("R-023")
@pytest.mark.parametrize("name", instances.NATIVE)
def test_a_frame_is_little_endian_however_it_was_stored(dicomweb: DicomWeb, name: str) -> None:
    path = stored(dicomweb, instances.ct(), instances.NATIVE[name])
    for accept in (OCTETS, OCTETS_AS_STORED):
        (part,) = dicomweb.parts(f"{path}/frames/1", accept)
        assert part.content == instances.ct_pixels().astype("<u2").tobytes()
        assert part.transfer_syntax == EXPLICIT_LE


@pytest.mark.requirement("R-021", "R-022")
@pytest.mark.parametrize(
    ("frames", "status"),
    [("0", 400), ("3,1", 400), ("1,1", 400), ("a", 400), ("1,", 400), ("-1", 400), ("1.5", 400), ("6", 404), ("1,6", 404)],
)
def test_frame_numbers_are_an_ascending_list_from_1(dicomweb: DicomWeb, frames: str, status: int) -> None:
    path = stored(dicomweb, instances.multi_frame())
    response = dicomweb.get(f"{path}/frames/{frames}", OCTETS)
    assert response.status_code == status
    assert response.text


@pytest.mark.requirement("R-024")
def test_frames_of_one_bit_are_shifted_to_begin_at_bit_0(dicomweb: DicomWeb) -> None:
    path = stored(dicomweb, instances.segmentation())
    parts = dicomweb.parts(f"{path}/frames/1,2,3", OCTETS)
    for part, mask in zip(parts, instances.mask_pixels(), strict=True):
        assert len(part.content) == 5
        assert (np.unpackbits(np.frombuffer(part.content, np.uint8), bitorder="little")[:35] == mask.ravel()).all()


@pytest.mark.requirement("R-025", "R-026")
@pytest.mark.parametrize(
    ("fragments", "offset_table"),
    [(1, "full"), (1, "empty"), (1, "extended"), (2, "full")],
    ids=["offset table", "empty offset table", "extended offset table", "two fragments a frame"],
)
@pytest.mark.parametrize("name", ["jpeg", "jpeg 2000", "jpeg-ls"])
def test_a_compressed_frame_is_its_bit_stream_without_fragment_headers(
    dicomweb: DicomWeb, name: str, fragments: int, offset_table: str
) -> None:
    data_set = instances.encapsulated(name, fragments=fragments, offset_table=offset_table)
    path = stored(dicomweb, data_set, instances.ENCAPSULATED[name])
    for accept in (
        OCTETS_AS_STORED,
        {"jpeg": 'multipart/related; type="image/jpeg"; transfer-syntax=*', "jpeg 2000": 'multipart/related; type="image/jp2"'}.get(
            name, OCTETS_AS_STORED
        ),
    ):
        parts = dicomweb.parts(f"{path}/frames/1,2,3", accept)
        for part, stream in zip(parts, instances.frame_bitstreams(name), strict=True):
            assert part.transfer_syntax == instances.ENCAPSULATED[name]
            assert part.content in (stream, stream + b"\0")


@pytest.mark.distributed
@pytest.mark.requirement("R-029")
@pytest.mark.parametrize("name", ["jpeg 2000", "jpeg-ls", "rle"])
def test_a_frame_is_decompressed_for_octet_stream(dicomweb: DicomWeb, name: str) -> None:
    path = stored(dicomweb, instances.encapsulated(name), instances.ENCAPSULATED[name])
    parts = dicomweb.parts(f"{path}/frames/1,2,3", OCTETS)
    assert [part.content for part in parts] == [frame.tobytes() for frame in instances.frame_pixels(3, 16, 24)]
    assert {part.transfer_syntax for part in parts} == {EXPLICIT_LE}


def test_a_frame_of_an_instance_without_pixels_is_not_found(dicomweb: DicomWeb) -> None:
    path = stored(dicomweb, instances.general(instances.BASIC_TEXT_SR, "SR"))
    assert dicomweb.get(f"{path}/frames/1", OCTETS).status_code == 404


def test_a_single_frame_may_be_a_single_part(dicomweb: DicomWeb) -> None:
    path = stored(dicomweb, instances.multi_frame())
    response = dicomweb.get(f"{path}/frames/2", "application/octet-stream")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("application/octet-stream")
    assert response.content == instances.frame_pixels()[1].tobytes()
    assert dicomweb.get(f"{path}/frames/1,2", "application/octet-stream").status_code == 406


J2K = instances.ENCAPSULATED["jpeg 2000"]
O = "application/octet-stream"  # noqa: E741


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ('multipart/related; type="application/octet-stream"; transfer-syntax=*', (True, O, J2K)),
        ("multipart/related; type=application/octet-stream; transfer-syntax=*", (True, O, J2K)),
        ("multipart/related;type=application/octet-stream;transfer-syntax=*", (True, O, J2K)),
        ('multipart/related ; type = "application/octet-stream" ; transfer-syntax = *', (True, O, J2K)),
        ('multipart/related; type="application/octet-stream"; transfer-syntax="*"', (True, O, J2K)),
        ("multipart/related; type=application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1; transfer-syntax=*", (True, O, J2K)),
        ('multipart/related; type="application/octet-stream"', (True, O, EXPLICIT_LE)),
        (f'multipart/related; type="image/jp2"; transfer-syntax={J2K}', (True, "image/jp2", J2K)),
        ('multipart/related; type="image/*"; transfer-syntax=*', (True, "image/jp2", J2K)),
        (None, (True, O, EXPLICIT_LE)),
        ("*/*", (True, O, EXPLICIT_LE)),
        ("multipart/related", (True, O, EXPLICIT_LE)),
        ("application/octet-stream", (False, O, EXPLICIT_LE)),
        ("application/octet-stream; transfer-syntax=*", (False, O, J2K)),
        ("image/jp2", (False, "image/jp2", J2K)),
        ("?accept=application/octet-stream", (False, O, EXPLICIT_LE)),
        ("?accept=multipart/related;type=application/octet-stream;transfer-syntax=*", (True, O, J2K)),
        ('multipart/related; type="video/mp4"', None),
        ("application/x-unknown", None),
        (f"{OCTETS}; transfer-syntax=1.2.3.4", None),
    ],
)
def test_frames_are_asked_for_in_the_spellings_of_the_clients(
    dicomweb: DicomWeb, accept: str | None, expected: tuple[bool, str, str] | None
) -> None:
    path = f"{stored(dicomweb, instances.encapsulated('jpeg 2000'), J2K)}/frames/1"
    response = dicomweb.get(path + accept, None) if accept and accept.startswith("?") else dicomweb.get(path, accept)
    if expected is None:
        assert response.status_code == 406
        return
    multipart, media_type, syntax = expected
    assert response.headers["content-type"].startswith("multipart/related") == multipart
    content_type = parts_of(response)[0].header("Content-Type") if multipart else response.headers["content-type"]
    assert content_type == f"{media_type}; transfer-syntax={syntax}"


def test_part_headers_are_spelled_as_viewers_look_for_them(dicomweb: DicomWeb) -> None:
    path = stored(dicomweb, instances.multi_frame())
    response = dicomweb.get(f"{path}/frames/1", OCTETS_AS_STORED)
    head = response.content[:1000].split(b"\r\n\r\n")[0]
    assert b"Content-Type: application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1\r\n" in head + b"\r\n"
    assert head.lstrip(b"\r\n").startswith(b"--")
    assert len(head.lstrip(b"\r\n").split(b"\r\n")[0]) >= 32
    assert "content-encoding" not in response.headers


@pytest.mark.distributed
@pytest.mark.requirement("A-050", "A-051")
def test_a_range_of_a_single_part_is_sent_alone(dicomweb: DicomWeb) -> None:
    path = stored(dicomweb, instances.multi_frame())
    frame = instances.frame_pixels()[0].tobytes()
    for url in (f"{path}/frames/1", f"{path}/bulkdata/7FE00010"):
        response = dicomweb.get(url, "application/octet-stream", headers={"Range": "bytes=0-9"})
        assert response.status_code == 206
        assert response.content == frame[:10]
        assert response.headers["content-range"].startswith("bytes 0-9/")
        total = int(response.headers["content-range"].split("/")[1])
        response = dicomweb.get(url, "application/octet-stream", headers={"Range": f"bytes={total + 5}-{total + 9}"})
        assert response.status_code == 416
        assert response.headers["content-range"] == f"bytes */{total}"


@pytest.mark.requirement("R-051")
def test_the_pixel_description_fits_the_decompressed_pixels(dicomweb: DicomWeb) -> None:
    path = stored(dicomweb, instances.encapsulated("jpeg"), instances.ENCAPSULATED["jpeg"])
    (part,) = dicomweb.parts(path, f"{DICOM}; transfer-syntax={EXPLICIT_LE}")
    read = pydicom.dcmread(io.BytesIO(part.content))
    assert read.file_meta.TransferSyntaxUID == EXPLICIT_LE
    assert (read.SamplesPerPixel, read.PhotometricInterpretation, read.BitsAllocated) == (1, "MONOCHROME2", 8)
    assert read.LossyImageCompression == "01"
    assert np.abs(read.pixel_array.astype(int) - instances.frame_pixels(3, 16, 24)).mean() < 3


@pytest.mark.distributed
@pytest.mark.requirement("R-020")
def test_a_long_list_of_frames_is_one_answer(dicomweb: DicomWeb) -> None:
    path = stored(dicomweb, instances.multi_frame(300, 4, 4))
    parts = dicomweb.parts(f"{path}/frames/{','.join(str(number) for number in range(1, 301))}", OCTETS)
    assert [part.content for part in parts] == [frame.tobytes() for frame in instances.frame_pixels(300, 4, 4)]
