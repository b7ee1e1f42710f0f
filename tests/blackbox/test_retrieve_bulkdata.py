"""Retrieve of bulkdata and pixel data at every level (PS3.18 §10.4.1.1.5, §10.4.1.1.6), and of studies as octet-stream."""

from collections.abc import Callable

import pytest
from pydicom.dataset import Dataset

from tests.support import instances
from tests.support.dicomweb import AS_STORED, DICOM, EXPLICIT_LE, OCTETS, OCTETS_AS_STORED, DicomWeb, parts_of, walk
from tests.support.instances import ENCAPSULATED

LEVELS = (instances.study_resource, instances.series_resource, instances.resource)
J2K = ENCAPSULATED["jpeg 2000"]
JP2 = 'multipart/related; type="image/jp2"'

Path = Callable[[Dataset], str]


def a_study(dicomweb: DicomWeb) -> list[Dataset]:
    """Store a study of two series: a CT with three bulk values, a report without any; three native frames; three in JPEG 2000."""
    study, series = instances.new_uid(), instances.new_uid()
    native = [
        instances.with_bulk(StudyInstanceUID=study, SeriesInstanceUID=series),
        instances.general(instances.BASIC_TEXT_SR, "SR", StudyInstanceUID=study, SeriesInstanceUID=series, InstanceNumber=2),
        instances.multi_frame(3, StudyInstanceUID=study, SeriesNumber=2),
    ]
    compressed = instances.encapsulated("jpeg 2000", StudyInstanceUID=study, SeriesNumber=3)
    dicomweb.store(*(instances.encoded(data_set) for data_set in native), instances.encoded(compressed, J2K))
    return [*native, compressed]


def uris_of(dicomweb: DicomWeb, path: str) -> list[str]:
    """Return the BulkDataURIs of the metadata, in order."""
    return [element["BulkDataURI"] for found in dicomweb.metadata(path) for _, element in walk(found) if "BulkDataURI" in element]


@pytest.mark.distributed
@pytest.mark.requirement("R-015", "R-016")
@pytest.mark.parametrize("path", LEVELS)
def test_all_bulkdata_are_the_values_behind_the_uris_of_the_metadata(dicomweb: DicomWeb, path: Path) -> None:
    target = path(a_study(dicomweb)[0])
    parts = dicomweb.parts(f"{target}/bulkdata", OCTETS)
    uris = uris_of(dicomweb, target)
    assert [part.header("Content-Location") for part in parts] == uris
    assert len(uris) == {instances.study_resource: 5, instances.series_resource: 3, instances.resource: 3}[path]
    for part, uri in zip(parts, uris, strict=True):
        (single,) = parts_of(dicomweb.get(uri, OCTETS))
        assert (part.content, part.header("Content-Type")) == (single.content, single.header("Content-Type"))
    by_end = {uri.split("/bulkdata/")[1]: part.content for part, uri in zip(parts[:3], uris[:3], strict=True)}
    assert by_end["00880200/1/7FE00010"] == instances.ICON
    assert by_end["00191010"] == instances.CURVE
    assert by_end["7FE00010"] == instances.ct_pixels().tobytes()


@pytest.mark.requirement("R-017", "R-018")
@pytest.mark.parametrize("path", LEVELS)
def test_pixel_data_are_those_of_the_data_set_alone(dicomweb: DicomWeb, path: Path) -> None:
    data_sets = a_study(dicomweb)
    pixels = {
        data_sets[0].SOPInstanceUID: instances.ct_pixels().tobytes(),
        data_sets[2].SOPInstanceUID: instances.frame_pixels(3).tobytes(),
        data_sets[3].SOPInstanceUID: instances.frame_pixels(3, 16, 24).tobytes(),
    }
    target = path(data_sets[0])
    parts = dicomweb.parts(f"{target}/pixeldata", OCTETS)
    assert len(parts) == (3 if path is instances.study_resource else 1)
    for part in parts:
        uri = part.header("Content-Location")
        assert uri in uris_of(dicomweb, target)
        assert uri.endswith(("/instances/" + uri.split("/instances/")[1].split("/")[0] + "/bulkdata/7FE00010",))
        assert part.content == pixels[uri.split("/instances/")[1].split("/")[0]]


@pytest.mark.requirement("R-019")
@pytest.mark.parametrize(("keyword", "tag"), [("FloatPixelData", "7FE00008"), ("DoubleFloatPixelData", "7FE00009")])
def test_floating_point_pixel_data_are_pixel_data(dicomweb: DicomWeb, keyword: str, tag: str) -> None:
    data_set = instances.parametric_map(keyword)
    dicomweb.store(instances.encoded(data_set))
    path, pixels = instances.resource(data_set), instances.float_pixels(keyword)
    (part,) = dicomweb.parts(f"{path}/pixeldata", OCTETS)
    assert part.header("Content-Location") == f"{dicomweb.url}{path}/bulkdata/{tag}"
    assert part.content == pixels.tobytes()
    assert [part.content for part in dicomweb.parts(f"{path}/frames/1,2", OCTETS)] == [frame.tobytes() for frame in pixels]


@pytest.mark.requirement("R-006")
@pytest.mark.parametrize("path", LEVELS)
def test_a_resource_as_octet_stream_is_its_bulkdata(dicomweb: DicomWeb, path: Path) -> None:
    target = path(a_study(dicomweb)[0])
    for accept in (OCTETS, OCTETS_AS_STORED):
        legacy, bulkdata = dicomweb.parts(target, accept), dicomweb.parts(f"{target}/bulkdata", accept)
        assert [(part.headers, part.content) for part in legacy] == [(part.headers, part.content) for part in bulkdata]
        assert len(legacy) >= 3


@pytest.mark.requirement("R-005")
def test_a_single_part_is_for_one_item_only(dicomweb: DicomWeb) -> None:
    data_sets = a_study(dicomweb)
    study, series = instances.study_resource(data_sets[2]), instances.series_resource(data_sets[2])
    for path in (study, series):
        for accept in ("application/dicom", "application/octet-stream"):
            assert dicomweb.get(path, accept).status_code == 406
        assert dicomweb.get(path, f"application/dicom, {DICOM};q=0.1").status_code == 200
    for path in (study, series, instances.resource(data_sets[0])):
        assert dicomweb.get(f"{path}/bulkdata", "application/octet-stream").status_code == 406
    assert dicomweb.get(f"{series}/pixeldata", "application/octet-stream").status_code == 406
    one = instances.resource(data_sets[2])
    for path in (one, f"{one}/bulkdata", f"{one}/pixeldata"):
        response = dicomweb.get(path, "application/octet-stream")
        assert response.content == instances.frame_pixels(3).tobytes()
        assert response.headers["content-location"] == f"{dicomweb.url}{one}/bulkdata/7FE00010"


@pytest.mark.requirement("R-026", "R-029")
def test_compressed_pixel_data_are_one_part_per_frame_and_uncompressed_one_part(dicomweb: DicomWeb) -> None:
    data_set = a_study(dicomweb)[3]
    streams, path = instances.frame_bitstreams("jpeg 2000"), instances.resource(data_set)
    uri = f"{dicomweb.url}{path}/bulkdata/7FE00010"
    for accept, kind in ((JP2, "image/jp2"), (OCTETS_AS_STORED, "application/octet-stream"), ("*/*", "image/jp2")):
        for target in (f"{path}/bulkdata", f"{path}/pixeldata", uri):
            parts = dicomweb.parts(target, accept)
            assert {part.header("Content-Location") for part in parts} == {uri}
            assert {part.header("Content-Type") for part in parts} == {f"{kind}; transfer-syntax={J2K}"}
            for part, stream in zip(parts, streams, strict=True):
                assert part.content in (stream, stream + b"\0")
    (part,) = dicomweb.parts(f"{path}/pixeldata", OCTETS)
    assert part.content == instances.frame_pixels(3, 16, 24).tobytes()
    assert part.header("Content-Type") == f"application/octet-stream; transfer-syntax={EXPLICIT_LE}"
    assert dicomweb.get(uri, "application/octet-stream").content == part.content
    assert dicomweb.get(uri, "image/jp2").status_code == 406


@pytest.mark.requirement("R-028")
@pytest.mark.parametrize(
    ("media_type", "default"), [("image/jp2", J2K), ("image/jls", ENCAPSULATED["jpeg-ls"]), ("image/dicom-rle", ENCAPSULATED["rle"])]
)
def test_a_compressed_type_without_a_transfer_syntax_means_its_default(dicomweb: DicomWeb, media_type: str, default: str) -> None:
    data_set = instances.multi_frame(2)
    dicomweb.store(instances.encoded(data_set))
    path = instances.resource(data_set)
    for target in (f"{path}/frames/1,2", f"{path}/pixeldata"):
        parts = dicomweb.parts(target, f'multipart/related; type="{media_type}"')
        assert {part.header("Content-Type") for part in parts} == {f"{media_type}; transfer-syntax={default}"}
        assert len(parts) == 2


@pytest.mark.requirement("R-027", "A-035")
def test_a_video_is_one_part_and_stays_what_it_is(dicomweb: DicomWeb) -> None:
    data_set = instances.video()
    sent = instances.encoded(data_set, instances.VIDEO)
    dicomweb.store(sent)
    path = instances.resource(data_set)
    uri = f"{dicomweb.url}{path}/bulkdata/7FE00010"
    for target in (f"{path}/bulkdata", f"{path}/pixeldata", uri):
        for accept in ('multipart/related; type="video/mp4"', OCTETS_AS_STORED, OCTETS):
            (part,) = dicomweb.parts(target, accept)
            assert part.content == instances.VIDEO_STREAM
            assert part.transfer_syntax == instances.VIDEO
    response = dicomweb.get(uri, "video/mp4", headers={"Range": "bytes=1990-2009"})
    assert (response.status_code, response.content) == (206, instances.VIDEO_STREAM[1990:2010])
    for accept in (DICOM, AS_STORED):
        (part,) = dicomweb.parts(path, accept)
        assert (part.content, part.transfer_syntax) == (sent, instances.VIDEO)
    assert dicomweb.get(path, f"{DICOM}; transfer-syntax={EXPLICIT_LE}").status_code == 406
    assert dicomweb.get(f"{path}/frames/1", OCTETS_AS_STORED).status_code == 406


@pytest.mark.distributed
@pytest.mark.requirement("R-030", "R-033")
def test_what_some_instances_cannot_be_had_as_gives_206_with_the_others(dicomweb: DicomWeb) -> None:
    image = instances.ct()
    video = instances.video(StudyInstanceUID=image.StudyInstanceUID)
    dicomweb.store(instances.encoded(image), instances.encoded(video, instances.VIDEO))
    study = instances.study_resource(image)
    response = dicomweb.get(study, f"{DICOM}; transfer-syntax={EXPLICIT_LE}")
    assert response.status_code == 206
    (part,) = parts_of(response)
    assert part.content == instances.encoded(image)
    response = dicomweb.get(f"{study}/pixeldata", 'multipart/related; type="video/mp4"')
    assert response.status_code == 206
    (part,) = parts_of(response)
    assert part.content == instances.VIDEO_STREAM
    response = dicomweb.get(instances.resource(video), f"{DICOM}; transfer-syntax={EXPLICIT_LE}")
    assert response.status_code == 406
    assert instances.VIDEO in response.text


def test_without_bulkdata_there_is_nothing_to_be_found(dicomweb: DicomWeb) -> None:
    data_set = instances.general(instances.BASIC_TEXT_SR, "SR")
    dicomweb.store(instances.encoded(data_set))
    for path in (instances.study_resource(data_set), instances.resource(data_set)):
        assert dicomweb.get(f"{path}/bulkdata", OCTETS).status_code == 404
        assert dicomweb.get(f"{path}/pixeldata", OCTETS).status_code == 404
        assert dicomweb.get(path, OCTETS).status_code == 406
    assert dicomweb.get(f"/studies/{instances.new_uid()}/bulkdata", OCTETS).status_code == 404
