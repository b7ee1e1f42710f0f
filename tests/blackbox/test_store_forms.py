"""Store in every payload form but PS3.10 files (PS3.18 §10.5.1.4, §10.5.2): what was sent is what can be retrieved."""

import base64
import io
import itertools
from typing import Any

import imagecodecs
import numpy as np
import orjson
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames

from tests.support import instances, videos
from tests.support.dicomweb import AS_STORED, DICOM, OCTETS_AS_STORED, DicomWeb, Object, items, value
from tests.support.payload_forms import (
    OCTETS,
    PIXEL_DATA,
    XML,
    Sent,
    json_model,
    metadata,
    post,
    without_pixel_description,
    xml_document,
)

BULKDATA_DOES_NOT_MATCH, BULKDATA_MISSING, BULKDATA_NOT_REFERENCED = 0xA902, 0xC001, 0xC002
PROCESSING_FAILURE, TRANSFER_SYNTAX_NOT_SUPPORTED = 0x0110, 0xC122
CANNOT_UNDERSTAND = 0xC000
EXPLICIT = "1.2.840.10008.1.2.1"
VIDEO_ENDOSCOPIC = "1.2.840.10008.5.1.4.1.1.77.1.1.1"
ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"


def retrieved(dicomweb: DicomWeb, data_set: Dataset, accept: str = AS_STORED) -> pydicom.FileDataset:
    """Return the instance as the server has it."""
    (part,) = dicomweb.parts(instances.resource(data_set), accept)
    return pydicom.dcmread(io.BytesIO(part.content))


def stored(dicomweb: DicomWeb, *parts: Sent, root: str = "application/dicom+json") -> None:
    """Store parts of which all must be taken without a word."""
    response = post(dicomweb, parts, root=root)
    assert response.status_code == 200, response.text


def frames_of(found: Dataset) -> list[bytes]:
    """Return the frames of encapsulated pixel data, padding included."""
    return list(generate_frames(found.PixelData, number_of_frames=int(found.get("NumberOfFrames", 1))))


def is_frame(sent: bytes, kept: bytes) -> bool:
    """Say whether a frame is kept byte for byte, but for a zero that makes its length even."""
    return kept == sent + b"\0" * (len(sent) % 2)


# Metadata and native bulkdata


@pytest.mark.distributed
@pytest.mark.requirement("S-005", "S-010")
def test_json_metadata_and_a_bulkdata_part_make_the_instance(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    stored(dicomweb, metadata(json_model(data_set)), Sent(OCTETS, data_set.PixelData, "bulk/pixels"))
    found = retrieved(dicomweb, data_set)
    assert found == data_set
    assert found.file_meta.TransferSyntaxUID == EXPLICIT
    assert found.file_meta.MediaStorageSOPClassUID == data_set.SOPClassUID
    assert found.file_meta.MediaStorageSOPInstanceUID == data_set.SOPInstanceUID
    assert found.preamble == bytes(128)
    assert (found.pixel_array == instances.ct_pixels()).all()


@pytest.mark.requirement("S-006", "S-008")
def test_xml_metadata_of_several_instances_one_document_a_part(dicomweb: DicomWeb) -> None:
    study = instances.new_uid()
    data_sets = [instances.ct(StudyInstanceUID=study, InstanceNumber=number, PatientName="Müller^Jörg") for number in (1, 2)]
    parts = [
        Sent(f"{XML}; transfer-syntax={EXPLICIT}", xml_document(json_model(data_set, f"{data_set.InstanceNumber}/pixels")))
        for data_set in data_sets
    ]
    bulk = [Sent(OCTETS, data_set.PixelData, f"{data_set.InstanceNumber}/pixels") for data_set in data_sets]
    stored(dicomweb, *parts, *bulk, root=XML)
    for data_set in data_sets:
        assert retrieved(dicomweb, data_set) == data_set


@pytest.mark.requirement("S-007")
def test_one_array_holds_several_data_sets(dicomweb: DicomWeb) -> None:
    data_sets = [instances.ct(InstanceNumber=number) for number in (1, 2, 3)]
    models = [json_model(data_set, f"bulk/{data_set.InstanceNumber}") for data_set in data_sets]
    for data_set in data_sets:
        data_set.PixelData = bytes(reversed(data_set.PixelData)) if data_set.InstanceNumber == 2 else data_set.PixelData
    bulk = [Sent(OCTETS, data_set.PixelData, f"bulk/{data_set.InstanceNumber}") for data_set in data_sets]
    response = post(dicomweb, [metadata(*models), *bulk])
    assert response.status_code == 200
    assert [value(item, "00081155") for item in items(response.json(), "00081199")] == [data_set.SOPInstanceUID for data_set in data_sets]
    for data_set in data_sets:
        assert retrieved(dicomweb, data_set) == data_set


@pytest.mark.requirement("S-009")
@pytest.mark.parametrize(
    ("uri", "location"),
    [
        pytest.param("bulk/1", "bulk/1", id="both relative"),
        pytest.param("{root}/bulk/1", "bulk/1", id="absolute in the metadata"),
        pytest.param("bulk/1", "{root}/bulk/1", id="absolute in the part"),
        pytest.param("/dicom-web/bulk/1", "./x/../bulk/1", id="other spellings"),
        pytest.param("urn:uuid:8b1b1f2e-6f0e-4d6b-9f5e-0f6f7a1c1c11", "urn:uuid:8b1b1f2e-6f0e-4d6b-9f5e-0f6f7a1c1c11", id="a name"),
        pytest.param("http://elsewhere.example/a b", "http://elsewhere.example/a b", id="literally equal"),
    ],
)
def test_bulkdata_is_found_by_its_content_location(dicomweb: DicomWeb, uri: str, location: str) -> None:
    data_set = instances.ct()
    model = json_model(data_set, uri.format(root=dicomweb.url))
    stored(dicomweb, metadata(model), Sent(OCTETS, data_set.PixelData, location.format(root=dicomweb.url)))
    assert retrieved(dicomweb, data_set) == data_set


@pytest.mark.requirement("A-049")
def test_metadata_comes_before_bulkdata_and_the_other_order_is_taken_too(dicomweb: DicomWeb) -> None:
    for order in itertools.permutations((0, 1, 2)):
        first, second = instances.ct(), instances.ct()
        parts = [
            metadata(json_model(first, "1"), json_model(second, "2")),
            Sent(OCTETS, first.PixelData, "1"),
            Sent(OCTETS, second.PixelData, "2"),
        ]
        stored(dicomweb, *(parts[index] for index in order))
        assert retrieved(dicomweb, first) == first
        assert retrieved(dicomweb, second) == second


def test_files_and_metadata_may_stand_in_one_request(dicomweb: DicomWeb) -> None:
    as_file, as_metadata = instances.ct(), instances.ct()
    parts = [
        metadata(json_model(as_metadata)),
        Sent("application/dicom", instances.encoded(as_file)),
        Sent(OCTETS, as_metadata.PixelData, "bulk/pixels"),
    ]
    response = post(dicomweb, parts)
    assert response.status_code == 200
    assert len(items(response.json(), "00081199")) == 2
    assert retrieved(dicomweb, as_file) == as_file
    assert retrieved(dicomweb, as_metadata) == as_metadata


def test_nested_and_private_bulkdata_goes_where_it_belongs(dicomweb: DicomWeb) -> None:
    data_set = instances.with_bulk()
    model = json_model(data_set)
    model["00880200"]["Value"][0][PIXEL_DATA] = {"vr": "OB", "BulkDataURI": "bulk/icon"}
    (curve,) = [tag for tag in model if tag.startswith("0019") and tag.endswith("10") and tag != "00190010"]
    model[curve] = {"vr": "OB", "BulkDataURI": "bulk/curve"}
    bulk = [Sent(OCTETS, instances.CURVE, "bulk/curve"), Sent(OCTETS, instances.ICON, "bulk/icon")]
    stored(dicomweb, metadata(model), *bulk, Sent(OCTETS, data_set.PixelData, "bulk/pixels"))
    found = retrieved(dicomweb, data_set)
    assert found == data_set
    assert found.IconImageSequence[0].PixelData == instances.ICON


def test_what_our_own_answers_hold_can_be_stored_again_under_another_uid(dicomweb: DicomWeb) -> None:
    data_set = instances.encapsulated("jpeg-ls")
    dicomweb.store(instances.encoded(data_set, instances.ENCAPSULATED["jpeg-ls"]))
    (model,) = dicomweb.metadata(instances.resource(data_set))
    uri = model[PIXEL_DATA]["BulkDataURI"]
    frames = dicomweb.parts(instances.resource(data_set) + "/frames/1,2,3", OCTETS_AS_STORED)
    copy = instances.new_uid()
    model["00080018"]["Value"] = [copy]
    bulk = [Sent(f"image/jls; transfer-syntax={frame.transfer_syntax}", frame.content, uri) for frame in frames]
    stored(dicomweb, metadata(model), *bulk)
    data_set.SOPInstanceUID = copy
    assert retrieved(dicomweb, data_set) == data_set


# What JSON may hold


@pytest.mark.requirement("S-039")
def test_private_elements_keep_their_creator_and_values(dicomweb: DicomWeb) -> None:
    for form in ("json", "xml"):
        data_set = instances.with_private_elements()
        model = json_model(data_set)
        part = metadata(model) if form == "json" else Sent(XML, xml_document(model))
        stored(dicomweb, part, Sent(OCTETS, data_set.PixelData, "bulk/pixels"), root=part.content_type)
        block = retrieved(dicomweb, data_set).private_block(0x0019, "ACME 1.0")
        assert (block[1].value, list(block[2].value), block[3].value) == (1.5, ["one", "two"], b"\x01\x02\x03\x04")


@pytest.mark.requirement("X-006", "X-007")
@pytest.mark.parametrize("form", [lambda number: number, str], ids=["numbers", "strings"])
def test_numbers_may_be_json_numbers_or_strings(dicomweb: DicomWeb, form: Any) -> None:
    data_set = instances.general(instances.SECONDARY_CAPTURE, "OT")
    model = json_model(data_set) | {
        "00201209": {"vr": "IS", "Value": [form(17)]},
        "00180050": {"vr": "DS", "Value": [form(2.5)]},
        "00189328": {"vr": "FD", "Value": [form(0.1)]},
        "00080019": {"vr": "UI", "Value": ["1.2"]},
        "0040A161": {"vr": "SV", "Value": [form(-(2**63)), form(7)]},
        "0008040C": {"vr": "UV", "Value": [form(2**63 + 1)]},
        "00280010": {"vr": "US", "Value": [form(65535)]},
    }
    stored(dicomweb, metadata(model))
    found = retrieved(dicomweb, data_set)
    assert (found.NumberOfSeriesRelatedInstances, found.SliceThickness) == (17, 2.5)
    assert found[0x00189328].value == 0.1
    assert list(found[0x0040A161].value) == [-(2**63), 7]
    assert found[0x0008040C].value == 2**63 + 1
    assert found.Rows == 65535


@pytest.mark.requirement("X-014")
def test_padding_is_put_back_as_each_vr_wants_it(dicomweb: DicomWeb) -> None:
    data_set = instances.general(instances.SECONDARY_CAPTURE, "OT", PatientID="ODD", SOPInstanceUID="1.2.345")
    data_set.SOPInstanceUID = instances.new_uid()
    data_set.FrameOfReferenceUID = "1.2.345"
    model = json_model(data_set) | {"00420011": {"vr": "OB", "InlineBinary": base64.b64encode(b"abc").decode()}}
    stored(dicomweb, metadata(model))
    (part,) = dicomweb.parts(instances.resource(data_set), AS_STORED)
    assert b"\x10\x00\x20\x00LO\x04\x00ODD " in part.content
    assert b"\x20\x00\x52\x00UI\x08\x001.2.345\x00" in part.content
    assert b"\x42\x00\x11\x00OB\x00\x00\x04\x00\x00\x00abc\x00" in part.content
    (found,) = dicomweb.metadata(instances.resource(data_set))
    assert value(found, "00100020") == "ODD"
    assert value(found, "00200052") == "1.2.345"


@pytest.mark.requirement("X-015")
def test_several_values_of_text_stay_several(dicomweb: DicomWeb) -> None:
    data_set = instances.general(instances.SECONDARY_CAPTURE, "OT")
    several: Object = {
        "00080060": {"vr": "CS", "Value": ["OT"]},
        "00081080": {"vr": "LO", "Value": ["one", "zwölf", None, "three"]},
        "00100033": {"vr": "LO", "Value": ["a"]},
        "00120064": {"vr": "SQ", "Value": [{"00080104": {"vr": "LO", "Value": ["x"]}, "00080119": {"vr": "UC", "Value": ["u", "v"]}}]},
        "00101001": {"vr": "PN", "Value": [{"Alphabetic": "A^B"}, {"Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}]},
        "00081052": {"vr": "SQ"},
        "00400007": {"vr": "LO", "Value": ["one"]},
        "00204000": {"vr": "LT", "Value": ["back\\slash"]},
    }
    stored(dicomweb, metadata(json_model(data_set) | several))
    (found,) = dicomweb.metadata(instances.resource(data_set))
    assert {tag: found[tag] for tag in several} == several
    assert list(retrieved(dicomweb, data_set).AdmittingDiagnosesDescription) == ["one", "zwölf", "", "three"]


def test_text_of_any_script_is_stored_as_utf_8(dicomweb: DicomWeb) -> None:
    data_set = instances.japanese()
    stored(dicomweb, metadata(json_model(data_set)), Sent(OCTETS, data_set.PixelData, "bulk/pixels"))
    found = retrieved(dicomweb, data_set)
    assert found.SpecificCharacterSet == "ISO_IR 192"
    assert str(found.PatientName) == "Yamada^Tarou=山田^太郎=やまだ^たろう"


# Compressed pixel data

GREY = instances.frame_pixels(1, 16, 24)[0]
WIDE = (np.arange(16 * 24, dtype=np.uint16) * 10 % 4096).reshape(16, 24)
COLOUR = instances.rgb_pixels(16, 24)

STILL = [
    pytest.param("image/jpeg", imagecodecs.jpeg8_encode(GREY, level=90), "4.50", GREY, "MONOCHROME2", id="jpeg baseline"),
    pytest.param("image/jpeg", imagecodecs.jpeg8_encode(COLOUR, level=90), "4.50", COLOUR, "YBR_FULL_422", id="jpeg baseline, colour"),
    pytest.param(
        "image/jpeg", imagecodecs.jpeg8_encode(WIDE, level=90, bitspersample=12), "4.51", WIDE, "MONOCHROME2", id="jpeg extended, 12 bits"
    ),
    pytest.param(
        "image/jpeg",
        imagecodecs.jpeg8_encode(WIDE, lossless=True, predictor=1, bitspersample=16),
        "4.70",
        WIDE,
        "MONOCHROME2",
        id="jpeg lossless SV1",
    ),
    pytest.param(
        "image/jpeg",
        imagecodecs.jpeg8_encode(WIDE, lossless=True, predictor=6, bitspersample=16),
        "4.57",
        WIDE,
        "MONOCHROME2",
        id="jpeg lossless",
    ),
    pytest.param("image/jls", imagecodecs.jpegls_encode(WIDE), "4.80", WIDE, "MONOCHROME2", id="jpeg-ls"),
    pytest.param("image/jls", imagecodecs.jpegls_encode(GREY, level=3), "4.81", GREY, "MONOCHROME2", id="jpeg-ls, near lossless"),
    pytest.param(
        "image/jp2", imagecodecs.jpeg2k_encode(WIDE, reversible=True, codecformat="j2k"), "4.90", WIDE, "MONOCHROME2", id="jpeg 2000"
    ),
    pytest.param(
        "image/jp2", imagecodecs.jpeg2k_encode(COLOUR, level=60, codecformat="j2k"), "4.91", COLOUR, "YBR_ICT", id="jpeg 2000, irreversible"
    ),
    pytest.param(
        "image/jpx", imagecodecs.jpeg2k_encode(COLOUR, reversible=True, codecformat="j2k"), "4.92", COLOUR, "YBR_RCT", id="jpx, reversible"
    ),
    pytest.param("image/jphc", imagecodecs.htj2k_encode(GREY, reversible=True), "4.201", GREY, "MONOCHROME2", id="htj2k"),
    pytest.param("image/jxl", imagecodecs.jpegxl_encode(GREY, lossless=True), "4.112", GREY, "MONOCHROME2", id="jpeg xl"),
]


def secondary_capture(**attributes: Any) -> tuple[Dataset, Object]:
    """Return an image without any attribute of its pixels, and its metadata."""
    data_set = instances.general(instances.SECONDARY_CAPTURE, "OT", **attributes)
    return data_set, json_model(data_set) | {PIXEL_DATA: {"vr": "OB", "BulkDataURI": "bulk/pixels"}}


@pytest.mark.requirement("S-013", "S-014", "S-017")
@pytest.mark.parametrize(("media_type", "bits", "suffix", "pixels", "photometric"), STILL)
def test_a_compressed_image_is_kept_unchanged_and_described_from_its_bits(
    dicomweb: DicomWeb, media_type: str, bits: bytes, suffix: str, pixels: NDArray[Any], photometric: str
) -> None:
    data_set, model = secondary_capture()
    stored(dicomweb, metadata(model), Sent(media_type, bits, "bulk/pixels"))
    found = retrieved(dicomweb, data_set)
    assert found.file_meta.TransferSyntaxUID == f"1.2.840.10008.1.2.{suffix}"
    (frame,) = frames_of(found)
    assert is_frame(bits, frame)
    assert (found.Rows, found.Columns) == pixels.shape[:2]
    assert (found.SamplesPerPixel, found.PhotometricInterpretation) == (pixels.shape[2] if pixels.ndim == 3 else 1, photometric)
    assert found.BitsAllocated == pixels.dtype.itemsize * 8
    assert found.HighBit == found.BitsStored - 1
    assert found.PixelRepresentation == 0
    assert ("PlanarConfiguration" in found) is (pixels.ndim == 3)


@pytest.mark.requirement("S-014")
def test_a_jp2_file_is_stored_as_its_codestream(dicomweb: DicomWeb) -> None:
    bits = imagecodecs.jpeg2k_encode(WIDE, reversible=True, codecformat="jp2")
    codestream = bits[bits.index(b"\xff\x4f\xff\x51") :]
    data_set, model = secondary_capture()
    stored(dicomweb, metadata(model), Sent("image/jp2", bits, "bulk/pixels"))
    found = retrieved(dicomweb, data_set)
    assert is_frame(codestream, frames_of(found)[0])
    assert (found.pixel_array == WIDE).all()


def test_rle_needs_rows_and_columns_of_the_metadata(dicomweb: DicomWeb) -> None:
    (bits,) = instances.frame_bitstreams("rle", 1)
    data_set, model = secondary_capture()
    response = post(dicomweb, [metadata(model), Sent("image/dicom-rle", bits, "bulk/pixels")])
    assert response.status_code == 409
    assert value(items(response.json(), "00081198")[0], "00081197") == BULKDATA_DOES_NOT_MATCH
    model |= {"00280010": {"vr": "US", "Value": [16]}, "00280011": {"vr": "US", "Value": [24]}}
    stored(dicomweb, metadata(model), Sent("image/x-dicom-rle", bits, "bulk/pixels"))
    found = retrieved(dicomweb, data_set)
    assert is_frame(bits, frames_of(found)[0])
    assert (found.pixel_array == GREY).all()


@pytest.mark.requirement("S-011")
@pytest.mark.parametrize("name", ["jpeg", "jpeg-ls", "jpeg 2000", "rle"])
@pytest.mark.parametrize("numbered", [False, True], ids=["one location", "frames by number"])
def test_each_frame_of_a_multi_frame_image_is_a_part(dicomweb: DicomWeb, name: str, numbered: bool) -> None:
    media_type = {"jpeg": "image/jpeg", "jpeg-ls": "image/jls", "jpeg 2000": "image/jp2", "rle": "image/dicom-rle"}[name]
    data_set, bits = instances.encapsulated(name, 5), instances.frame_bitstreams(name, 5)
    model = json_model(data_set)
    if name != "rle":
        model = without_pixel_description(model)
        del model["00280008"]
    parts = [Sent(media_type, frame, f"bulk/pixels/frames/{index + 1}" if numbered else "bulk/pixels") for index, frame in enumerate(bits)]
    if numbered:
        parts.reverse()
    stored(dicomweb, metadata(model), *parts)
    found = retrieved(dicomweb, data_set)
    assert found.file_meta.TransferSyntaxUID == instances.ENCAPSULATED[name]
    assert found.NumberOfFrames == 5
    assert all(is_frame(sent, kept) for sent, kept in zip(bits, frames_of(found), strict=True))
    (fourth,) = dicomweb.parts(instances.resource(data_set) + "/frames/4", OCTETS_AS_STORED)
    assert is_frame(bits[3], fourth.content)


def test_the_named_transfer_syntax_counts_where_it_agrees_with_the_bits(dicomweb: DicomWeb) -> None:
    bits = imagecodecs.jpeg2k_encode(GREY, reversible=True, codecformat="j2k")
    for named, kept in (("4.91", "4.91"), ("4.90", "4.90"), ("4.201", "4.90"), ("4.50", "4.90")):
        for on_part in (False, True):
            data_set, model = secondary_capture()
            uid = f"1.2.840.10008.1.2.{named}"
            part = Sent(f"image/jp2; transfer-syntax={uid}" if on_part else "image/jp2", bits, "bulk/pixels")
            stored(dicomweb, metadata(model, transfer_syntax="" if on_part else uid), part)
            assert retrieved(dicomweb, data_set).file_meta.TransferSyntaxUID == f"1.2.840.10008.1.2.{kept}"


def test_attributes_that_are_there_stay_and_must_agree_with_the_bits(dicomweb: DicomWeb) -> None:
    bits = imagecodecs.jpegls_encode(WIDE)
    data_set, model = secondary_capture(BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    stored(dicomweb, metadata(model), Sent("image/jls", bits, "bulk/pixels"))
    found = retrieved(dicomweb, data_set)
    assert (found.BitsAllocated, found.BitsStored, found.HighBit, found.PhotometricInterpretation) == (16, 12, 11, "MONOCHROME1")
    for wrong in ({"Rows": 17}, {"Columns": 23}, {"SamplesPerPixel": 3}, {"BitsAllocated": 8}):
        data_set, model = secondary_capture(**wrong)
        response = post(dicomweb, [metadata(model), Sent("image/jls", bits, "bulk/pixels")])
        assert response.status_code == 409
        assert value(items(response.json(), "00081198")[0], "00081197") == BULKDATA_DOES_NOT_MATCH


AVC = videos.avc_parameter_set(1080, 1920)
VIDEOS = [
    pytest.param("video/mpeg", videos.mpeg_2(480, 720), "4.100", (480, 720), False, id="mpeg-2 main level"),
    pytest.param("video/mpeg", videos.mpeg_2(1080, 1920, level=4), "4.101", (1080, 1920), False, id="mpeg-2 high level"),
    pytest.param("video/mpeg", videos.transport_stream(videos.mpeg_2(480, 720)), "4.100", (480, 720), False, id="mpeg-2 transport stream"),
    pytest.param("video/mp4", videos.mp4(b"avc1", videos.avc_configuration(AVC), 77), "4.102", (1080, 1920), True, id="h.264 in mp4"),
    pytest.param("video/mp4", videos.byte_stream(b"\x09\xf0", AVC, b"\x68\xee"), "4.102", (1080, 1920), False, id="h.264 byte stream"),
    pytest.param(
        "video/H265",
        videos.mp4(b"hvc1", videos.hevc_configuration(videos.hevc_parameter_set(2160, 3840, level=153)), 77),
        "4.107",
        (2160, 3840),
        True,
        id="h.265 in mp4",
    ),
    pytest.param(
        "video/H265",
        videos.byte_stream(b"\x40\x01\x0c", videos.hevc_parameter_set(480, 640, profile=2, precision=10)),
        "4.108",
        (480, 640),
        False,
        id="h.265 main 10",
    ),
]


@pytest.mark.requirement("S-016", "S-017")
@pytest.mark.parametrize(("media_type", "bits", "suffix", "size", "tells_frames"), VIDEOS)
def test_a_video_is_kept_unchanged_and_described_from_its_headers(
    dicomweb: DicomWeb, media_type: str, bits: bytes, suffix: str, size: tuple[int, int], tells_frames: bool
) -> None:
    data_set = instances.general(VIDEO_ENDOSCOPIC, "ES", FrameTime="40")
    if not tells_frames:
        data_set.NumberOfFrames = 77
    model = json_model(data_set) | {PIXEL_DATA: {"vr": "OB", "BulkDataURI": "bulk/video"}}
    stored(dicomweb, metadata(model), Sent(media_type, bits, "bulk/video"))
    found = retrieved(dicomweb, data_set)
    assert found.file_meta.TransferSyntaxUID == f"1.2.840.10008.1.2.{suffix}"
    assert (found.Rows, found.Columns, found.NumberOfFrames) == (*size, 77)
    assert (found.SamplesPerPixel, found.PhotometricInterpretation, found.PlanarConfiguration) == (3, "YBR_PARTIAL_420", 0)
    (kept,) = generate_frames(found.PixelData, number_of_frames=1)
    assert is_frame(bits, kept)


def test_a_video_that_no_transfer_syntax_takes_is_refused(dicomweb: DicomWeb) -> None:
    bits = videos.byte_stream(videos.avc_parameter_set(2160, 3840, profile=110, level=51))
    data_set = instances.general(VIDEO_ENDOSCOPIC, "ES", NumberOfFrames=3)
    model = json_model(data_set) | {PIXEL_DATA: {"vr": "OB", "BulkDataURI": "bulk/video"}}
    response = post(dicomweb, [metadata(model), Sent("video/mp4", bits, "bulk/video")])
    assert response.status_code == 409
    assert value(items(response.json(), "00081198")[0], "00081197") == TRANSFER_SYNTAX_NOT_SUPPORTED


# Pictures that are transformed


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    """Return an image as a file."""
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


RAMP = np.arange(16 * 24, dtype=np.uint16).reshape(16, 24)
PICTURES = [
    pytest.param("image/png", saved(Image.fromarray(GREY), "PNG"), GREY, id="png grey"),
    pytest.param("image/png", imagecodecs.png_encode(WIDE * 16 + 3), WIDE * 16 + 3, id="png grey, 16 bits"),
    pytest.param("image/png", saved(Image.fromarray(COLOUR), "PNG"), COLOUR, id="png colour"),
    pytest.param(
        "image/png",
        imagecodecs.png_encode(np.stack([RAMP, RAMP * 3, RAMP * 100], -1)),
        np.stack([RAMP, RAMP * 3, RAMP * 100], -1),
        id="png colour, 16 bits",
    ),
    pytest.param(
        "image/png",
        saved(Image.fromarray(np.dstack([COLOUR, GREY])), "PNG"),
        COLOUR,
        id="png with alpha",
    ),
    pytest.param("image/png", saved(Image.fromarray(np.dstack([GREY, GREY // 2]), "LA"), "PNG"), GREY, id="png grey with alpha"),
    pytest.param("image/png", saved(Image.fromarray(GREY > 100), "PNG"), (GREY > 100) * np.uint8(255), id="png of 1 bit"),
    pytest.param("image/gif", saved(Image.fromarray(GREY), "GIF"), GREY, id="gif grey"),
]


@pytest.mark.requirement("S-015")
@pytest.mark.parametrize(("media_type", "file", "pixels"), PICTURES)
def test_a_picture_becomes_native_pixel_data(dicomweb: DicomWeb, media_type: str, file: bytes, pixels: NDArray[Any]) -> None:
    data_set, model = secondary_capture()
    stored(dicomweb, metadata(model), Sent(media_type, file, "bulk/pixels"))
    found = retrieved(dicomweb, data_set)
    assert found.file_meta.TransferSyntaxUID == EXPLICIT
    assert found.PhotometricInterpretation == ("RGB" if pixels.ndim == 3 else "MONOCHROME2")
    assert found.BitsAllocated == found.BitsStored == found.HighBit + 1 == pixels.dtype.itemsize * 8
    assert (found.pixel_array == pixels).all()
    assert "NumberOfFrames" not in found


@pytest.mark.requirement("S-015")
@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_palette_becomes_rgb(dicomweb: DicomWeb, form: str) -> None:
    image = Image.fromarray(GREY).convert("P")
    image.putpalette([channel for entry in range(256) for channel in (entry, 255 - entry, entry // 2)])
    data_set, model = secondary_capture(SamplesPerPixel=1, PhotometricInterpretation="PALETTE COLOR")
    stored(dicomweb, metadata(model), Sent(f"image/{form.lower()}", saved(image, form), "bulk/pixels"))
    found = retrieved(dicomweb, data_set)
    assert (found.SamplesPerPixel, found.PhotometricInterpretation, found.PlanarConfiguration) == (3, "RGB", 0)
    assert (found.pixel_array == np.stack([GREY, 255 - GREY, GREY // 2], -1)).all()


@pytest.mark.requirement("S-018")
def test_an_animation_becomes_all_its_frames_as_they_are_seen(dicomweb: DicomWeb) -> None:
    frames = [COLOUR // 64 * 64]
    for index in range(1, 4):
        frames.append(frames[-1].copy())
        frames[-1][index : index + 3, 2 * index : 2 * index + 4] = (255, 32 * index, 0)
    first, *others = (Image.fromarray(frame) for frame in frames)
    file = saved(first, "GIF", save_all=True, append_images=others)
    with Image.open(io.BytesIO(file)) as read:
        read.seek(1)
        assert read.tile[0][1] != (0, 0, 24, 16), "the test needs a file whose frames are deltas"
    data_set, model = secondary_capture(SOPClassUID="1.2.840.10008.5.1.4.1.1.7.4")
    stored(dicomweb, metadata(model), Sent("image/gif", file, "bulk/pixels"))
    found = retrieved(dicomweb, data_set)
    assert found.NumberOfFrames == 4
    assert (found.pixel_array == np.stack(frames)).all()


def test_a_picture_that_is_none_fails_its_instance_and_nothing_else(dicomweb: DicomWeb) -> None:
    good, good_model = secondary_capture()
    bad, bad_model = secondary_capture()
    bad_model[PIXEL_DATA] = {"vr": "OB", "BulkDataURI": "bulk/bad"}
    file = saved(Image.fromarray(GREY), "PNG")
    parts = [metadata(bad_model, good_model), Sent("image/png", file[:-60], "bulk/bad"), Sent("image/png", file, "bulk/pixels")]
    response = post(dicomweb, parts)
    assert response.status_code == 202
    (failed,) = items(response.json(), "00081198")
    assert (value(failed, "00081155"), value(failed, "00081197")) == (bad.SOPInstanceUID, CANNOT_UNDERSTAND)
    assert (retrieved(dicomweb, good).pixel_array == GREY).all()


# Encapsulated documents


@pytest.mark.requirement("S-012")
@pytest.mark.parametrize("named", [True, False], ids=["named in the metadata", "by its part"])
def test_a_document_is_stored_by_its_mime_type(dicomweb: DicomWeb, named: bool) -> None:
    document = b"%PDF-1.4\nnot much of a document, and of an odd length\n%%EOF"
    assert len(document) % 2
    data_set = instances.general(ENCAPSULATED_PDF, "DOC", DocumentTitle="Report")
    if named:
        data_set.MIMETypeOfEncapsulatedDocument = "application/pdf"
    model = json_model(data_set) | {"00420011": {"vr": "OB", "BulkDataURI": "document"}}
    stored(dicomweb, metadata(model), Sent("application/pdf", document, "document"))
    found = retrieved(dicomweb, data_set)
    assert found.EncapsulatedDocument == document + b"\0"
    assert found.EncapsulatedDocumentLength == len(document)
    assert found.MIMETypeOfEncapsulatedDocument == "application/pdf"


def test_a_document_of_another_type_than_its_metadata_says_fails(dicomweb: DicomWeb) -> None:
    data_set = instances.general(ENCAPSULATED_PDF, "DOC", MIMETypeOfEncapsulatedDocument="application/pdf")
    model = json_model(data_set) | {"00420011": {"vr": "OB", "BulkDataURI": "document"}}
    response = post(dicomweb, [metadata(model), Sent("text/xml", b"<a/>", "document")])
    assert response.status_code == 409
    assert value(items(response.json(), "00081198")[0], "00081197") == BULKDATA_DOES_NOT_MATCH


# What fails, and only that


def test_an_instance_without_its_bulkdata_fails_and_the_others_are_stored(dicomweb: DicomWeb) -> None:
    good, bad = instances.ct(), instances.ct()
    parts = [metadata(json_model(bad, "nowhere"), json_model(good)), Sent(OCTETS, good.PixelData, "bulk/pixels")]
    response = post(dicomweb, parts)
    assert response.status_code == 202
    (failed,) = items(response.json(), "00081198")
    assert (value(failed, "00081155"), value(failed, "00081197")) == (bad.SOPInstanceUID, BULKDATA_MISSING)
    assert value(failed, "00081150") == instances.CT_IMAGE
    assert retrieved(dicomweb, good) == good


def test_bulkdata_that_nobody_asks_for_is_told_as_another_failure(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    parts = [metadata(json_model(data_set)), Sent(OCTETS, b"lost", "lost"), Sent(OCTETS, data_set.PixelData, "bulk/pixels")]
    response = post(dicomweb, parts)
    assert response.status_code == 202
    assert [value(item, "00081197") for item in items(response.json(), "0008119A")] == [BULKDATA_NOT_REFERENCED]
    assert retrieved(dicomweb, data_set) == data_set


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda model: model | {"00280010": {"vr": "US", "Value": [70000]}}, id="number out of range"),
        pytest.param(lambda model: model | {"00280010": {"vr": "US", "Value": ["many"]}}, id="no number"),
        pytest.param(lambda model: model | {"00100010": {"vr": "PN", "Value": [17]}}, id="no name"),
        pytest.param(lambda model: model | {"00080060": {"vr": "ZZ", "Value": ["CT"]}}, id="no VR"),
        pytest.param(lambda model: model | {"Modality": {"vr": "CS", "Value": ["CT"]}}, id="no tag"),
        pytest.param(lambda model: model | {"00420011": {"vr": "OB", "InlineBinary": "?"}}, id="no base64"),
        pytest.param(lambda model: model | {"00081140": {"vr": "SQ", "Value": ["x"]}}, id="no item"),
        pytest.param(lambda model: model | {"00081140": 3}, id="no element"),
        pytest.param(lambda model: model | {"00080060": {"vr": "CS", "Value": ["CT"], "InlineBinary": "QQ=="}}, id="two values"),
    ],
)
def test_a_data_set_that_cannot_be_encoded_fails_alone(dicomweb: DicomWeb, broken: Any) -> None:
    good, bad = instances.ct(), instances.ct()
    parts = [metadata(broken(json_model(bad)), json_model(good)), Sent(OCTETS, good.PixelData, "bulk/pixels")]
    response = post(dicomweb, parts)
    assert response.status_code == 202
    (failed,) = items(response.json(), "00081198")
    assert (value(failed, "00081155"), value(failed, "00081197")) == (bad.SOPInstanceUID, CANNOT_UNDERSTAND)
    assert retrieved(dicomweb, good) == good
    assert dicomweb.get(instances.resource(bad), AS_STORED).status_code == 404


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"[1]", b'"text"', b"\xff\xfe"], ids=["broken", "empty", "no object", "a string", "no UTF-8"]
)
def test_metadata_that_is_no_dicom_json_is_told_as_another_failure(dicomweb: DicomWeb, content: bytes) -> None:
    good = instances.ct()
    response = post(dicomweb, [Sent("application/dicom+json", content), Sent("application/dicom", instances.encoded(good))])
    assert response.status_code == 202
    assert [value(item, "00081197") for item in items(response.json(), "0008119A")] == [CANNOT_UNDERSTAND]
    assert retrieved(dicomweb, good) == good


@pytest.mark.requirement("S-004")
def test_metadata_of_another_study_than_the_path_fails(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    parts = [metadata(json_model(data_set)), Sent(OCTETS, data_set.PixelData, "bulk/pixels")]
    response = post(dicomweb, parts, study=instances.new_uid())
    assert response.status_code == 409
    assert value(items(response.json(), "00081198")[0], "00081197") == 0xA900


@pytest.mark.requirement("A-029")
def test_the_type_of_the_request_may_be_quoted_or_not_for_every_form(dicomweb: DicomWeb) -> None:
    for content_type in (
        "multipart/related; type=application/dicom+json; boundary=B",
        'multipart/related; type="application/dicom+json"; boundary="B"',
    ):
        data_set = instances.ct()
        body = b"".join(part.encoded("B") for part in (metadata(json_model(data_set)), Sent(OCTETS, data_set.PixelData, "bulk/pixels")))
        assert dicomweb.post_related(body + b"--B--", "B", content_type=content_type).status_code == 200
        assert retrieved(dicomweb, data_set) == data_set


@pytest.mark.requirement("S-026", "A-056")
def test_a_content_type_that_is_not_taken_is_answered_with_those_that_are(dicomweb: DicomWeb) -> None:
    response = dicomweb.post_related(b"--B--", "B", content_type='multipart/related; type="image/webp"; boundary=B')
    assert response.status_code == 415
    for name in (
        "application/dicom",
        "application/dicom+json",
        "application/dicom+xml",
        "application/octet-stream",
        "image/jp2",
        "image/png",
    ):
        assert f'type=\\"{name}\\"' in response.text


@pytest.mark.distributed
def test_the_same_metadata_and_bulkdata_again_are_the_same_content(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    parts = [metadata(json_model(data_set)), Sent(OCTETS, data_set.PixelData, "bulk/pixels")]
    stored(dicomweb, *parts)
    stored(dicomweb, *parts)
    stored(dicomweb, Sent("application/dicom", retrieved_bytes(dicomweb, data_set)), root="application/dicom")
    assert orjson.loads(dicomweb.get(instances.study_resource(data_set) + "/metadata").content)[0]["00080018"]["Value"] == [
        data_set.SOPInstanceUID
    ]


def retrieved_bytes(dicomweb: DicomWeb, data_set: Dataset) -> bytes:
    """Return the file as the server has it."""
    (part,) = dicomweb.parts(instances.resource(data_set), DICOM)
    return part.content
