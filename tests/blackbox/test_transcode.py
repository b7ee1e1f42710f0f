"""Other transfer syntaxes than the stored one (PS3.18 §8.7.3.5, §10.4): every kind of pixel data, read by decoders that are not ours."""

import io
from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRBigEndian

from tests.support import instances, pixel_kinds
from tests.support.dicomweb import DICOM, OCTETS, DicomWeb
from tests.support.pixel_kinds import (
    BASELINE,
    DEFLATED_FRAME,
    EXTENDED,
    HTJ2K,
    J2K,
    J2K_LOSSY,
    JPEG_LS,
    JPEG_XL,
    KINDS,
    LE,
    LOSSLESS,
    RLE,
    RPCL,
    SV1,
)
from tests.support.suite import Suite

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:pydicom")

MEDIA_TYPES = {
    RLE: "image/dicom-rle",
    SV1: "image/jpeg",
    JPEG_LS: "image/jls",
    J2K: "image/jp2",
    HTJ2K: "image/jphc",
    RPCL: "image/jphc",
    JPEG_XL: "image/jxl",
}
BEGINNINGS = {
    "image/jpeg": b"\xff\xd8\xff",
    "image/jls": b"\xff\xd8\xff\xf7",
    "image/jp2": b"\xff\x4f\xff\x51",
    "image/jphc": b"\xff\x4f\xff\x51",
    "image/jxl": b"\xff\x0a",
}


def stored(dicomweb: DicomWeb, made: Dataset, transfer_syntax: str = LE) -> str:
    dicomweb.store(instances.encoded(made, transfer_syntax))
    return instances.resource(made)


def file_in(dicomweb: DicomWeb, path: str, transfer_syntax: str) -> Dataset:
    """Return an instance as one transfer syntax."""
    (part,) = dicomweb.parts(path, f"{DICOM}; transfer-syntax={transfer_syntax}")
    assert part.transfer_syntax == transfer_syntax
    found = dcmread(io.BytesIO(part.content))
    assert found.file_meta.TransferSyntaxUID == transfer_syntax
    return found


@pytest.fixture(scope="module")
def client(suite: Suite) -> Iterator[DicomWeb]:
    """A client for the fixtures of this module."""
    made = DicomWeb(suite.url, suite.origin)
    yield made
    made.http.close()


@pytest.fixture(scope="module")
def originals(client: DicomWeb) -> dict[str, Dataset]:
    """A series with one instance of each kind, stored by one request and left alone by every test."""
    made = {name: pixel_kinds.data_set(kind) for name, kind in KINDS.items()}
    study, series = instances.new_uid(), instances.new_uid()
    for data_set in made.values():
        data_set.StudyInstanceUID, data_set.SeriesInstanceUID = study, series
    client.store(*(instances.encoded(data_set) for data_set in made.values()))
    return made


@pytest.fixture(scope="module")
def compressed(client: DicomWeb, originals: dict[str, Dataset]) -> dict[tuple[str, str], str]:
    """Paths of instances that are stored compressed, by kind and transfer syntax."""
    paths, files = {}, []
    for name, target in [*(("12 of 16 bits", target) for target in sorted(LOSSLESS)), ("1 bit", DEFLATED_FRAME)]:
        copy, before = deepcopy(originals[name]), originals[name].SOPInstanceUID
        (part,) = client.parts(instances.resource(copy), f"{DICOM}; transfer-syntax={target}")
        # pydicom writes no file in Deflated Image Frame Compression: the UID, of the same length, is replaced in the bytes
        copy.SOPInstanceUID = instances.new_uid()[: len(before)].ljust(len(before), "1")
        files.append(part.content.replace(before.encode(), copy.SOPInstanceUID.encode()))
        paths[name, target] = instances.resource(copy)
    client.store(*files)
    return paths


@pytest.mark.requirement("R-051", "A-030", "A-036")
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_pixel_data_in_every_lossless_syntax(dicomweb: DicomWeb, originals: dict[str, Dataset], name: str) -> None:
    kind, original = KINDS[name], originals[name]
    path = instances.resource(original)
    for target in sorted(LOSSLESS):
        if target not in kind.lossless:
            response = dicomweb.get(path, f"{DICOM}; transfer-syntax={target}")
            assert response.status_code == 406
            continue
        found = file_in(dicomweb, path, target)
        assert found.SOPInstanceUID == original.SOPInstanceUID
        assert np.array_equal(kind.stored_bits(pixel_kinds.decoded(found)), kind.stored_bits(kind.values)), target
        transform = {J2K: "YBR_RCT", HTJ2K: "YBR_RCT", RPCL: "YBR_RCT"}.get(target, "RGB")
        assert found.PhotometricInterpretation == (transform if kind.after == "RGB" else kind.after)
        assert found.get("PlanarConfiguration", 0) == 0
        assert "LossyImageCompression" not in found


@pytest.mark.requirement("R-023", "R-029")
@pytest.mark.parametrize("source", sorted(LOSSLESS))
def test_frames_leave_decoded_whatever_they_were_stored_in(dicomweb: DicomWeb, compressed: dict[tuple[str, str], str], source: str) -> None:
    kind, path = KINDS["12 of 16 bits"], compressed["12 of 16 bits", source]
    parts = dicomweb.parts(f"{path}/frames/1,2", OCTETS)
    assert [part.content for part in parts] == [frame.tobytes() for frame in kind.values]
    assert {part.transfer_syntax for part in parts} == {LE}
    decoded = file_in(dicomweb, path, LE)
    assert decoded.PixelData == kind.values.tobytes()
    assert decoded["PixelData"].VR == "OW"


@pytest.mark.distributed
@pytest.mark.requirement("R-025", "R-026", "R-028")
@pytest.mark.parametrize("target", sorted(MEDIA_TYPES))
def test_native_frames_are_compressed_one_part_each(dicomweb: DicomWeb, originals: dict[str, Dataset], target: str) -> None:
    kind, media_type, path = KINDS["8 bits"], MEDIA_TYPES[target], instances.resource(originals["8 bits"])
    # RPCL is no default of its media type: it is asked for by name
    accept = f'multipart/related; type="{media_type}"' + ("; transfer-syntax=" + target if target == RPCL else "")
    parts = dicomweb.parts(f"{path}/frames/1,2,3", accept)
    assert [part.header("Content-Type") for part in parts] == [f"{media_type}; transfer-syntax={target}"] * 3
    for part in parts:
        assert part.content.startswith(BEGINNINGS.get(media_type, b"\1\0\0\0\x40\0\0\0"))
    whole = file_in(dicomweb, path, target)
    whole.PixelData = encapsulate([part.content for part in parts])
    assert np.array_equal(pixel_kinds.decoded(whole), kind.values)


@pytest.mark.requirement("R-024")
def test_one_bit_frames_in_a_compressed_syntax_and_back(dicomweb: DicomWeb, compressed: dict[tuple[str, str], str]) -> None:
    kind, path = KINDS["1 bit"], compressed["1 bit", DEFLATED_FRAME]
    parts = dicomweb.parts(f"{path}/frames/1,2,3", OCTETS)
    expected = [np.packbits(frame.ravel(), bitorder="little").tobytes() for frame in kind.values]
    assert [part.content for part in parts] == expected
    assert file_in(dicomweb, path, LE).PixelData == pixel_kinds.data_set(kind).PixelData


@pytest.mark.requirement("A-034", "R-023")
@pytest.mark.parametrize("vr", ["OB", "OW"])
def test_eight_bit_pixels_of_big_endian_files_are_in_order(dicomweb: DicomWeb, vr: str) -> None:
    kind = KINDS["palette"]
    original = pixel_kinds.data_set(kind)
    pixels = original.PixelData
    if vr == "OW":  # words of a big endian file: the first pixel is the low byte, so the second one written
        original.PixelData = np.frombuffer(pixels, "<u2").astype(">u2").tobytes()
        original["PixelData"].VR = "OW"
    for color in ("Red", "Green", "Blue"):
        data = original[f"{color}PaletteColorLookupTableData"]
        data.value = np.frombuffer(data.value, "<u2").astype(">u2").tobytes()
    path = stored(dicomweb, original, ExplicitVRBigEndian)
    assert b"".join(part.content for part in dicomweb.parts(f"{path}/frames/1,2", OCTETS)) == pixels
    found = file_in(dicomweb, path, JPEG_LS)
    assert np.array_equal(pixel_kinds.decoded(found), kind.values)
    assert found.RedPaletteColorLookupTableData == np.arange(0, 65536, 256, dtype="<u2").tobytes()


@pytest.mark.requirement("A-035", "R-051")
def test_lossy_pixels_are_decoded_and_say_so(dicomweb: DicomWeb) -> None:
    path = stored(dicomweb, instances.encapsulated("jpeg"), BASELINE)
    original = file_in(dicomweb, path, BASELINE)
    found = file_in(dicomweb, path, LE)
    assert found.SOPInstanceUID == original.SOPInstanceUID
    assert found.LossyImageCompression == "01"
    expected = pixel_kinds.decoded(original).astype(int)
    assert np.abs(pixel_kinds.decoded(found).astype(int) - expected).max() <= 1
    (part,) = dicomweb.parts(path, DICOM)
    assert part.transfer_syntax == LE


@pytest.mark.distributed
@pytest.mark.requirement("R-051")
@pytest.mark.parametrize("target", [BASELINE, J2K_LOSSY])
def test_lossy_compression_is_done_for_who_names_it_and_makes_a_new_instance(
    dicomweb: DicomWeb, originals: dict[str, Dataset], target: str
) -> None:
    original = originals["8 bits, inverse"]
    path = instances.resource(original)
    found, again = (file_in(dicomweb, path, target) for _ in range(2))
    assert found.PixelData == again.PixelData
    assert found.SOPInstanceUID == again.SOPInstanceUID == found.file_meta.MediaStorageSOPInstanceUID != original.SOPInstanceUID
    assert found.LossyImageCompression == "01"
    assert found.LossyImageCompressionMethod == {BASELINE: "ISO_10918_1", J2K_LOSSY: "ISO_15444_1"}[target]
    assert float(found.LossyImageCompressionRatio) > 0
    assert found.SourceImageSequence[0].ReferencedSOPInstanceUID == original.SOPInstanceUID
    assert found.ImageType[0] == "DERIVED"
    assert len(list(generate_frames(found.PixelData, number_of_frames=1))) == 1
    assert dcmread(io.BytesIO(dicomweb.parts(path, DICOM)[0].content)).SOPInstanceUID == original.SOPInstanceUID


@pytest.mark.requirement("A-036", "A-037")
def test_where_a_syntax_cannot_hold_the_pixels_the_next_one_is_sent(dicomweb: DicomWeb, originals: dict[str, Dataset]) -> None:
    path = instances.resource(originals["16 bits"])
    for impossible in (BASELINE, EXTENDED):
        accept = f"{DICOM}; transfer-syntax={impossible}, {DICOM}; transfer-syntax={J2K}; q=0.5"
        (part,) = dicomweb.parts(path, accept)
        assert part.transfer_syntax == J2K
        response = dicomweb.get(path, f"{DICOM}; transfer-syntax={impossible}")
        assert response.status_code == 406
        assert J2K in response.text
