"""Every kind of pixel data into every transfer syntax and back, read by decoders that are not ours; attributes follow the pixels."""

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from gantry.renderer.v1 import renderer_pb2
from gantry_renderer.codecs import coding
from gantry_renderer.file.derivation import derived_uid
from gantry_runtime.rpc import rpc_errors
from gantry_standard import errors
from gantry_standard.dicom.scanned import PixelDescription
from tests.support import instances, pixel_kinds
from tests.support.pixel_kinds import (
    BASELINE,
    EXTENDED,
    HTJ2K,
    HTJ2K_LOSSY,
    J2K,
    J2K_LOSSY,
    JPEG_LS,
    JPEG_XL_LOSSY,
    KINDS,
    LE,
    LOSSLESS,
    LOSSY,
    NEAR,
    RECOMPRESSED,
    RLE,
    RPCL,
    SV1,
    Kind,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:pydicom")

TIMEOUT_S = 30
TRANSFORMED = {J2K: "YBR_RCT", HTJ2K: "YBR_RCT", RPCL: "YBR_RCT"}


async def transcoded(served: Any, data: bytes, target: str) -> bytes:
    request = renderer_pb2.TranscodeInstanceRequest(source=served.store(data), transfer_syntax_uid=target)
    with rpc_errors.translated("renderer"):
        return b"".join([message.data async for message in served.stub.TranscodeInstance(request, timeout=TIMEOUT_S)])


def read(data: bytes) -> Dataset:
    return dcmread(io.BytesIO(data))


def others(made: Dataset) -> dict[int, Any]:
    """Everything but what transcoding may change."""
    return {int(e.tag): e.value for e in made if e.tag.group != 0x7FE0 and e.tag not in (0x00280004, 0x00280006)}


@pytest.mark.parametrize("target", sorted(LOSSLESS))
@pytest.mark.parametrize("name", KINDS)
async def test_each_kind_goes_into_each_lossless_syntax_that_holds_it_and_back(served: Any, name: str, target: str) -> None:
    kind = KINDS[name]
    original = pixel_kinds.data_set(kind)
    file = instances.encoded(original)
    if target not in kind.lossless:
        with pytest.raises(errors.NotAcceptable, match=r"1\.2\.840\.10008\.1\.2\.1"):
            await transcoded(served, file, target)
        return
    compressed = await transcoded(served, file, target)
    made = read(compressed)
    assert made.file_meta.TransferSyntaxUID == target
    assert made.PhotometricInterpretation == (TRANSFORMED.get(target, "RGB") if kind.after == "RGB" else kind.after)
    assert made.get("PlanarConfiguration", 0) == 0
    assert made["PixelData"].VR == "OB"
    assert others(made) == others(original)
    assert np.array_equal(kind.stored_bits(pixel_kinds.decoded(made)), kind.stored_bits(kind.values))
    back = read(await transcoded(served, compressed, LE))
    assert back.file_meta.TransferSyntaxUID == LE
    assert back.PhotometricInterpretation == kind.after
    expected = "OB" if back.BitsAllocated <= 8 else "OW"
    assert str(back["PixelData"].VR) == expected
    assert others(back) == others(original)
    if kind.interpretation == kind.after and "PlanarConfiguration" not in kind.attributes:
        assert back.PixelData == original.PixelData
    assert np.array_equal(kind.stored_bits(pixel_kinds.decoded(back)), kind.stored_bits(kind.values))


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if JPEG_LS in kind.lossless])
async def test_from_one_lossless_syntax_to_another_nothing_changes(served: Any, name: str) -> None:
    kind = KINDS[name]
    through = await transcoded(served, instances.encoded(pixel_kinds.data_set(kind)), JPEG_LS)
    for target in (J2K, RLE, SV1, HTJ2K):
        through = await transcoded(served, through, target)
    assert read(await transcoded(served, through, LE)).PixelData == pixel_kinds.by_pixel(kind)


def smooth(dtype: str, high: int, colour: bool = False) -> np.ndarray:
    """A picture as lossy codecs like them."""
    y, x = np.mgrid[:40, :56]
    grey = (np.sin(x / 9) * np.cos(y / 11) + 1) / 2 * high
    return (np.stack([grey, grey[::-1], grey[:, ::-1]], axis=-1) if colour else grey)[None].round().astype(dtype)


LOSSY_KINDS = {
    "8 bits": (Kind(smooth("u1", 255), frozenset()), {BASELINE, EXTENDED, NEAR, J2K_LOSSY, HTJ2K_LOSSY, JPEG_XL_LOSSY}),
    "12 of 16 bits": (
        Kind(smooth("<u2", 4095), frozenset(), attributes={"BitsStored": 12}),
        {EXTENDED, NEAR, J2K_LOSSY, HTJ2K_LOSSY, JPEG_XL_LOSSY},
    ),
    "16 bits": (Kind(smooth("<u2", 65535), frozenset()), {NEAR, J2K_LOSSY, HTJ2K_LOSSY, JPEG_XL_LOSSY}),
    "16 bits, signed": (Kind((smooth("<i4", 65535) - 32768).astype("<i2"), frozenset()), {J2K_LOSSY, HTJ2K_LOSSY}),
    "colour": (Kind(smooth("u1", 255, colour=True), frozenset(), "RGB"), {BASELINE, NEAR, J2K_LOSSY, JPEG_XL_LOSSY}),
    "1 bit": (KINDS["1 bit"], set()),
    "32 bits": (KINDS["32 bits"], set()),
    "float": (KINDS["float"], set()),
    "palette": (KINDS["palette"], set()),
}
METHODS = {
    BASELINE: "ISO_10918_1",
    EXTENDED: "ISO_10918_1",
    NEAR: "ISO_14495_1",
    J2K_LOSSY: "ISO_15444_1",
    HTJ2K_LOSSY: "ISO_15444_15",
    JPEG_XL_LOSSY: "ISO_18181_1",
}
COLOUR = {BASELINE: "YBR_FULL_422", NEAR: "RGB", J2K_LOSSY: "YBR_ICT", JPEG_XL_LOSSY: "XYB"}


@pytest.mark.parametrize("target", sorted(LOSSY))
@pytest.mark.parametrize("name", LOSSY_KINDS)
async def test_lossy_compression_makes_a_derived_instance(served: Any, name: str, target: str) -> None:
    kind, possible = LOSSY_KINDS[name]
    original = pixel_kinds.data_set(kind)
    file = instances.encoded(original)
    if target not in possible:
        with pytest.raises(errors.NotAcceptable):
            await transcoded(served, file, target)
        return
    compressed = await transcoded(served, file, target)
    assert compressed == await transcoded(served, file, target), "the same request has the same answer"
    made = read(compressed)
    assert made.SOPInstanceUID == made.file_meta.MediaStorageSOPInstanceUID == derived_uid(original.SOPInstanceUID, target)
    assert len(made.SOPInstanceUID) <= 64
    assert list(made.ImageType) == ["DERIVED", "PRIMARY"]
    assert (made.LossyImageCompression, made.LossyImageCompressionMethod) == ("01", METHODS[target])
    fragments = pixel_kinds.generate_fragmented_frames(made.PixelData, number_of_frames=1)
    size = len(b"".join(next(iter(fragments))))
    assert float(made.LossyImageCompressionRatio) == pytest.approx(kind.values.nbytes / size, rel=0.05)
    (source,) = made.SourceImageSequence
    assert (source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID) == (original.SOPClassUID, original.SOPInstanceUID)
    assert source.PurposeOfReferenceCodeSequence[0].CodeValue == "121320"
    assert [code.CodeValue for code in made.DerivationCodeSequence] == ["113040"]
    assert made.DerivationDescription.startswith("Lossy compression: ")
    assert made.PhotometricInterpretation == (COLOUR[target] if name == "colour" else kind.interpretation)
    back = read(await transcoded(served, compressed, LE))
    assert back.SOPInstanceUID == made.SOPInstanceUID
    assert back.PhotometricInterpretation == kind.interpretation
    assert back.LossyImageCompression == "01"
    _assert_near(pixel_kinds.decoded(back), kind.values, 3 if name == "colour" else 1)
    if target not in (BASELINE, JPEG_XL_LOSSY, J2K_LOSSY) or name != "colour":  # raw colour of these is not RGB
        _assert_near(pixel_kinds.decoded(made), kind.values, 3 if name == "colour" else 1)


def _assert_near(found: np.ndarray, expected: np.ndarray, percent: int) -> None:
    """Nothing wraps round, and the error is small against the range."""
    difference = np.abs(found.astype(np.int64) - expected)
    span = int(expected.max()) - int(expected.min())
    assert difference.max() <= span * (0.05 if percent == 1 else 0.25)
    assert np.sqrt((difference**2).mean()) <= span * percent / 100


async def test_a_second_lossy_compression_is_added_to_the_first(served: Any) -> None:
    original = pixel_kinds.data_set(LOSSY_KINDS["8 bits"][0])
    first = await transcoded(served, instances.encoded(original), BASELINE)
    made = read(await transcoded(served, first, NEAR))
    assert list(made.LossyImageCompressionMethod) == ["ISO_10918_1", "ISO_14495_1"]
    assert len(made.LossyImageCompressionRatio) == 2
    assert [item.ReferencedSOPInstanceUID for item in made.SourceImageSequence] == [original.SOPInstanceUID, read(first).SOPInstanceUID]
    assert len(made.DerivationCodeSequence) == 2
    assert made.DerivationDescription == "Lossy compression: JPEG Baseline; Lossy compression: JPEG-LS Near-lossless"


async def test_pixels_that_came_with_loss_say_so_when_they_are_decoded(served: Any) -> None:
    for target in (BASELINE, NEAR, J2K_LOSSY):
        lossy = read(await transcoded(served, instances.encoded(pixel_kinds.data_set(LOSSY_KINDS["8 bits"][0])), target))
        del lossy.LossyImageCompression, lossy.LossyImageCompressionMethod
        made = read(await transcoded(served, instances.encoded(lossy, target), LE))
        assert (made.LossyImageCompression, made.LossyImageCompressionMethod) == ("01", METHODS[target])
        assert made.SOPInstanceUID == lossy.SOPInstanceUID
    lossless = await transcoded(served, instances.encoded(pixel_kinds.data_set(KINDS["8 bits"])), J2K)
    assert "LossyImageCompression" not in read(await transcoded(served, lossless, LE))


async def test_baseline_jpeg_becomes_jpeg_xl_and_the_same_jpeg_again(served: Any) -> None:
    file = instances.encoded(pixel_kinds.data_set(LOSSY_KINDS["colour"][0]))
    jpeg = await transcoded(served, file, BASELINE)
    recompressed = await transcoded(served, jpeg, RECOMPRESSED)
    assert read(recompressed).file_meta.TransferSyntaxUID == RECOMPRESSED
    assert read(recompressed).PhotometricInterpretation == "YBR_FULL_422"
    assert read(await transcoded(served, recompressed, BASELINE)).PixelData == read(jpeg).PixelData
    with pytest.raises(errors.NotAcceptable):
        await transcoded(served, file, RECOMPRESSED)


async def test_a_full_sampled_image_that_says_422_is_read_by_its_length(served: Any) -> None:
    original = pixel_kinds.data_set(KINDS["luminance and chrominance"])
    original.PhotometricInterpretation = "YBR_FULL_422"
    made = read(await transcoded(served, instances.encoded(original), JPEG_LS))
    assert made.PhotometricInterpretation == "YBR_FULL"
    assert np.array_equal(pixel_kinds.decoded(made), KINDS["luminance and chrominance"].values)


async def test_offset_tables_of_the_fragments_that_are_replaced_are_gone(served: Any) -> None:
    compressed = read(await transcoded(served, instances.encoded(pixel_kinds.data_set(KINDS["8 bits"])), J2K))
    compressed.ExtendedOffsetTable, compressed.ExtendedOffsetTableLengths = bytes(24), bytes(24)
    made = read(await transcoded(served, instances.encoded(compressed, J2K), JPEG_LS))
    assert "ExtendedOffsetTable" not in made
    assert "ExtendedOffsetTableLengths" not in made
    assert np.array_equal(pixel_kinds.decoded(made), KINDS["8 bits"].values)


async def test_a_native_icon_stays_as_it_is(served: Any) -> None:
    original, icon = pixel_kinds.data_set(KINDS["12 of 16 bits"]), Dataset()
    icon.Rows = icon.Columns = 2
    icon.SamplesPerPixel, icon.PhotometricInterpretation = 1, "MONOCHROME2"
    icon.BitsAllocated = icon.BitsStored = 8
    icon.HighBit, icon.PixelRepresentation, icon.PixelData = 7, 0, b"\1\2\3\4"
    icon["PixelData"].VR = "OB"
    original.IconImageSequence = [icon]
    made = read(await transcoded(served, instances.encoded(original), J2K))
    assert made.IconImageSequence[0].PixelData == b"\1\2\3\4"
    assert made.IconImageSequence[0].PhotometricInterpretation == "MONOCHROME2"


async def test_rpcl_has_what_ps3_5_wants(served: Any) -> None:
    made = read(await transcoded(served, instances.encoded(pixel_kinds.data_set(KINDS["12 of 16 bits"])), RPCL))
    stream = next(pixel_kinds.generate_fragmented_frames(made.PixelData, number_of_frames=2))[0]
    cod = stream.index(b"\xff\x52")
    assert stream[cod + 5] == 2, "progression order RPCL"
    assert 70 >> stream[cod + 9] <= 64, "base resolution"
    assert stream.index(b"\xff\x55") < stream.index(b"\xff\x90"), "TLM before the first tile-part"
    large = np.zeros((1, 5000), "<u2")
    description = dataclasses.replace(_description(), rows=1, columns=5000)
    assert read_levels(coding.encode(RPCL, large, description)) == 7


def read_levels(stream: bytes) -> int:
    return stream[stream.index(b"\xff\x52") + 9]


def _description() -> PixelDescription:
    return PixelDescription(4, 6, 1, "MONOCHROME2", 0, 16, 12, 11, 0, "7FE00010", "OW")
