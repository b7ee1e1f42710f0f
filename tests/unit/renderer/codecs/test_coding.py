"""Decoding against pydicom's decoders, and encoding against our own decoding."""

import dataclasses
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragmented_frames, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from gantry_renderer.codecs import coding
from gantry_renderer.codecs.samples import dtype_of
from gantry_renderer.codecs.table import CODECS
from gantry_standard import errors
from gantry_standard.dicom.scanned import PixelDescription
from gantry_standard.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN as NATIVE

pytestmark = pytest.mark.filterwarnings("ignore:One or more download failures:UserWarning")  # pydicom looks for more samples

GREY = PixelDescription(4, 6, 1, "MONOCHROME2", 0, 16, 12, 11, 0, "7FE00010", "OW")
COLOR = PixelDescription(4, 6, 3, "RGB", 0, 8, 8, 7, 0, "7FE00010", "OB")
DCT = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
BIG_ENDIAN = "1.2.840.10008.1.2.2"
LOSSLESS = [uid for uid, codec in CODECS.items() if codec.encode and not codec.is_native and not codec.loss]
LOSSY = [uid for uid, codec in CODECS.items() if codec.loss]
WITHOUT_PYDICOM_DECODER = {"1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.8.1"}


def described(dataset: Dataset) -> PixelDescription:
    return PixelDescription(
        rows=dataset.Rows,
        columns=dataset.Columns,
        samples_per_pixel=dataset.SamplesPerPixel,
        photometric_interpretation=dataset.PhotometricInterpretation,
        planar_configuration=dataset.get("PlanarConfiguration") or 0,
        bits_allocated=dataset.BitsAllocated,
        bits_stored=dataset.BitsStored,
        high_bit=dataset.HighBit,
        pixel_representation=dataset.PixelRepresentation,
        tag="7FE00010",
        vr="OW",
    )


def encapsulated_samples(files: list[Path]) -> list[tuple[Path, Dataset]]:
    found = []
    for path in files:
        try:
            dataset = dcmread(path, force=True)
            uid = dataset.file_meta.TransferSyntaxUID
        except (AttributeError, ValueError, NotImplementedError):
            continue
        if "PixelData" in dataset and uid in CODECS and not coding.is_native(uid):
            found.append((path, dataset))
    return found


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_every_sample_decodes_as_pydicom_decodes_it(sample_files: list[Path]) -> None:
    compared, wrong = 0, []
    for path, dataset in encapsulated_samples(sample_files):
        uid = str(dataset.file_meta.TransferSyntaxUID)
        frame = next(generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames") or 1)))
        description = described(dataset)
        try:
            expected, meta = get_decoder(uid).as_array(dataset, index=0, raw=True)
            if uid in DCT and meta["photometric_interpretation"].startswith("YBR"):
                expected, meta = get_decoder(uid).as_array(dataset, index=0)
        except (RuntimeError, NotImplementedError, ValueError):
            continue  # pydicom cannot; the tests below name those that we can
        samples = coding.decode(uid, frame, description)
        compared += 1
        difference = np.abs(samples.astype(np.int64) - expected.astype(np.int64))
        interpretation = coding.decoded_description(uid, description).photometric_interpretation
        if samples.dtype != expected.dtype or interpretation != meta["photometric_interpretation"]:
            wrong.append((path.name, samples.dtype, interpretation))
        elif (
            uid not in DCT and path.name != "sample-op.dcm" and difference.max() != 0
        ):  # sample-op is lossy JPEG that calls itself lossless
            wrong.append((path.name, "lossless", int(difference.max())))
        elif samples.ndim == 2 and difference.max() > 1:
            wrong.append((path.name, "grey", int(difference.max())))
        elif (difference > 3).mean() > 0.001:
            wrong.append((path.name, "colour", float((difference > 3).mean())))
    assert not wrong
    assert compared > (60 if "GANTRY_TEST_SAMPLES" in os.environ else 50)


@pytest.mark.parametrize("uid", LOSSLESS)
@pytest.mark.parametrize(
    "description",
    [
        pytest.param(GREY, id="12 of 16 bits"),
        pytest.param(dataclasses.replace(GREY, pixel_representation=1), id="12 of 16 bits, signed"),
        pytest.param(dataclasses.replace(GREY, bits_stored=16, high_bit=15, pixel_representation=1), id="16 bits, signed"),
        pytest.param(dataclasses.replace(GREY, bits_allocated=8, bits_stored=8, high_bit=7, rows=5, columns=7), id="8 bits, odd size"),
        pytest.param(COLOR, id="RGB"),
        pytest.param(dataclasses.replace(COLOR, photometric_interpretation="YBR_FULL"), id="YBR_FULL"),
    ],
)
def test_what_is_encoded_without_loss_decodes_to_the_same(uid: str, description: PixelDescription) -> None:
    if not any(takes.fits(description) for takes in CODECS[uid].takes):
        with pytest.raises(errors.NotAcceptable, match="available"):
            coding.require_encodable(uid, description)
        return
    rng = np.random.default_rng(1)
    half = 1 << (description.bits_stored - 1)
    low, high = (-half, half) if description.pixel_representation else (0, 2 * half)
    shape = (description.rows, description.columns, *([3] if description.samples_per_pixel == 3 else []))
    samples = rng.integers(low, high, shape).astype(dtype_of(description))
    stream = coding.encode(uid, samples, description)
    encoded = coding.encoded_description(uid, description)
    assert np.array_equal(coding.decode(uid, stream, encoded), samples)
    assert coding.decoded_description(uid, encoded) == description


@pytest.mark.parametrize("uid", [uid for uid in LOSSLESS if uid not in WITHOUT_PYDICOM_DECODER])
def test_pydicom_decodes_what_we_encode(uid: str) -> None:
    samples = np.random.default_rng(2).integers(-2048, 2048, (16, 24)).astype("<i2")
    description = dataclasses.replace(GREY, rows=16, columns=24, pixel_representation=1)
    decoded, _ = get_decoder(uid).as_array(
        _encapsulated(coding.encode(uid, samples, description)),
        transfer_syntax_uid=UID(uid),
        rows=16,
        columns=24,
        samples_per_pixel=1,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=16,
        bits_stored=12,
        pixel_representation=1,
        number_of_frames=1,
        pixel_keyword="PixelData",
        raw=True,
    )
    assert np.array_equal(decoded, samples)


def _encapsulated(frame: bytes) -> bytes:
    from pydicom.encaps import encapsulate

    return encapsulate([frame])


def test_unused_high_bits_are_no_part_of_a_value() -> None:
    values = np.array([[0xF001, 0x0FFF], [0x8800, 0x07FF]], "<u2")
    description = dataclasses.replace(GREY, rows=2, columns=2)
    assert coding.decode(NATIVE, values.tobytes(), description).tolist() == [[0x001, 0xFFF], [0x800, 0x7FF]]
    signed = dataclasses.replace(description, pixel_representation=1)
    assert coding.decode(NATIVE, values.tobytes(), signed).tolist() == [[1, -1], [-2048, 2047]]


def test_high_bit_above_bits_stored_is_shifted_down() -> None:
    values = np.array([[0x0010, 0xFFFF]], "<u2")
    description = dataclasses.replace(GREY, rows=1, columns=2, high_bit=15)
    assert coding.decode(NATIVE, values.tobytes(), description).tolist() == [[0x001, 0xFFF]]


def test_planes_become_colour_by_pixel() -> None:
    planes = np.arange(3 * 24, dtype=np.uint8).reshape(3, 4, 6)
    description = dataclasses.replace(COLOR, planar_configuration=1)
    assert np.array_equal(coding.decode(NATIVE, planes.tobytes(), description), np.moveaxis(planes, 0, -1))
    assert coding.decoded_description(NATIVE, description).planar_configuration == 0


def test_native_ybr_full_422_is_upsampled() -> None:
    description = dataclasses.replace(COLOR, rows=1, columns=4, photometric_interpretation="YBR_FULL_422")
    data = bytes([10, 11, 100, 200, 12, 13, 101, 201])
    expected = [[[10, 100, 200], [11, 100, 200], [12, 101, 201], [13, 101, 201]]]
    assert coding.decode(NATIVE, data, description).tolist() == expected
    assert coding.decoded_description(NATIVE, description).photometric_interpretation == "YBR_FULL"


def test_one_bit_pixels_begin_at_the_lowest_bit() -> None:
    description = dataclasses.replace(GREY, rows=1, columns=9, bits_allocated=1, bits_stored=1, high_bit=0)
    assert coding.decode(NATIVE, bytes([0b0000_0101, 0b1]), description).tolist() == [[1, 0, 1, 0, 0, 0, 0, 0, 1]]


def test_deflated_frame_is_inflated() -> None:
    samples = np.arange(24, dtype="<u2").reshape(4, 6)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = compressor.compress(samples.tobytes()) + compressor.flush()
    assert np.array_equal(coding.decode("1.2.840.10008.1.2.8.1", stream + b"\0", GREY), samples)


@pytest.mark.parametrize("name", ["liver_rle.dcm", "liver_j2k.dcm", "liver_deflate.dcm"])
def test_segmentation_of_one_bit_decodes_alike_in_each_transfer_syntax(name: str, sample_files: list[Path]) -> None:
    paths = {path.name: path for path in sample_files}
    if name not in paths:
        pytest.skip("GANTRY_TEST_SAMPLES names no folder with the segmentations")
    dataset = dcmread(paths[name])
    uid = str(dataset.file_meta.TransferSyntaxUID)
    native = dcmread(paths["liver.dcm"]).pixel_array
    for index, fragments in enumerate(generate_fragmented_frames(dataset.PixelData, number_of_frames=dataset.NumberOfFrames)):
        samples = coding.decode(uid, b"".join(fragments), described(dataset))
        assert np.array_equal(samples, native[index])


def test_lossy_htj2k_saturates_instead_of_wrapping_round(sample_files: list[Path]) -> None:
    paths = {path.name: path for path in sample_files}
    if "HTJ2K_08_RGB.dcm" not in paths:
        pytest.skip("GANTRY_TEST_SAMPLES names no folder with HTJ2K")
    lossy, lossless = (dcmread(paths[name], force=True) for name in ("HTJ2K_08_RGB.dcm", "HTJ2KLossless_08_RGB.dcm"))
    first, second = (
        coding.decode(str(d.file_meta.TransferSyntaxUID), next(generate_frames(d.PixelData, number_of_frames=1)), described(d)).astype(int)
        for d in (lossy, lossless)
    )
    assert np.abs(first - second).max() < 100


@pytest.mark.parametrize("uid", [uid for uid, codec in CODECS.items() if not codec.is_native])
@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff\xe0", b"\xff\x4f\xff\x51" + b"\0" * 60, b"no bit stream at all" * 20])
def test_broken_bit_stream_is_not_acceptable(uid: str, data: bytes) -> None:
    with pytest.raises(errors.NotAcceptable):
        coding.decode(uid, data, GREY)


def test_stream_that_claims_another_size_is_refused_before_it_is_decoded() -> None:
    stream = bytearray(coding.encode("1.2.840.10008.1.2.4.90", np.zeros((4, 6), "<u2"), GREY))
    stream[8:12] = (0x7FFFFFFF).to_bytes(4, "big")  # Xsiz
    with pytest.raises(errors.NotAcceptable, match="2147483647"):
        coding.decode("1.2.840.10008.1.2.4.90", bytes(stream), GREY)


def test_what_cannot_be_decoded_or_encoded_names_what_is_available() -> None:
    with pytest.raises(errors.NotAcceptable, match="as stored only"):
        coding.require_decodable("1.2.840.10008.1.2.4.102", COLOR)
    with pytest.raises(errors.NotAcceptable, match=r"1\.2\.840\.10008\.1\.2\.4\.80"):
        coding.require_encodable("1.2.840.10008.1.2.4.50", GREY)
    with pytest.raises(errors.NotAcceptable):
        coding.require_encodable("1.2.840.10008.1.2.4.90", dataclasses.replace(GREY, bits_allocated=32, bits_stored=32, high_bit=31))
