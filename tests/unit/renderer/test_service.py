"""The renderer through gRPC: images, frames and whole instances, read back by pydicom."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset

from gantry.renderer.v1 import renderer_pb2
from gantry_renderer.settings import RendererSettings
from gantry_runtime import telemetry
from gantry_runtime.rpc import rpc_errors
from gantry_standard import errors
from gantry_standard.dicom.scan import ScanFailure
from tests.support.images import file_of, image_dataset

pytestmark = pytest.mark.filterwarnings("ignore:One or more download failures:UserWarning")  # pydicom looks for more samples

NATIVE = "1.2.840.10008.1.2.1"
LOSSLESS = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.5")
TIMEOUT_S = 60


async def transcoded(served: Any, source: renderer_pb2.Source, target: str) -> bytes:
    request = renderer_pb2.TranscodeInstanceRequest(source=source, transfer_syntax_uid=target)
    with rpc_errors.translated("renderer"):
        return b"".join([message.data async for message in served.stub.TranscodeInstance(request, timeout=TIMEOUT_S)])


async def frames_of(served: Any, source: renderer_pb2.Source, numbers: list[int], target: str) -> list[tuple[int, bytes]]:
    request = renderer_pb2.TranscodeFramesRequest(source=source, frame_numbers=numbers, transfer_syntax_uid=target)
    found, pieces = [], []
    with rpc_errors.translated("renderer"):
        async for message in served.stub.TranscodeFrames(request, timeout=TIMEOUT_S):
            pieces.append(message.data)
            if message.last:
                found.append((message.frame_number, b"".join(pieces)))
                pieces = []
    assert not pieces
    return found


async def rendered(served: Any, source: renderer_pb2.Source, media_type: str = "image/png", **fields: Any) -> bytes:
    request = renderer_pb2.RenderRequest(sources=[source], media_type=media_type, **{"frame_number": 1, **fields})
    with rpc_errors.translated("renderer"):
        return (await served.stub.Render(request, timeout=TIMEOUT_S)).image


def cube(dtype: str = "<i2", frames: int = 3, rows: int = 16, columns: int = 24) -> np.ndarray:
    half = 2000
    low = -half if dtype == "<i2" else 0
    return np.random.default_rng(4).integers(low, 250 if dtype == "u1" else half, (frames, rows, columns)).astype(dtype)


def without_pixels(dataset: Dataset) -> dict[int, Any]:
    return {int(element.tag): element.value for element in dataset if element.tag.group != 0x7FE0}


@pytest.mark.parametrize("target", LOSSLESS)
async def test_instance_goes_to_each_lossless_syntax_and_back(served: Any, target: str) -> None:
    dataset = image_dataset(cube(), PatientID="P", SeriesNumber=7)
    compressed = await transcoded(served, served.store(file_of(dataset)), target)
    read = dcmread(io.BytesIO(compressed))
    assert read.file_meta.TransferSyntaxUID == target
    assert without_pixels(read) == without_pixels(dataset)
    assert np.array_equal(read.pixel_array, cube())
    back = await transcoded(served, served.store(compressed), NATIVE)
    assert dcmread(io.BytesIO(back)).PixelData == dataset.PixelData


@pytest.mark.parametrize("target", LOSSLESS)
async def test_colour_keeps_its_values_and_says_what_they_are(served: Any, target: str) -> None:
    colour = np.random.default_rng(5).integers(0, 256, (2, 9, 7, 3), dtype=np.uint8)
    compressed = await transcoded(served, served.store(file_of(image_dataset(colour, interpretation="RGB"))), target)
    read = dcmread(io.BytesIO(compressed))
    uses_transform = target in ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.201")
    assert read.PhotometricInterpretation == ("YBR_RCT" if uses_transform else "RGB")
    back = dcmread(io.BytesIO(await transcoded(served, served.store(compressed), NATIVE)))
    assert back.PhotometricInterpretation == "RGB"
    assert np.array_equal(back.pixel_array, colour)


@pytest.mark.filterwarnings("ignore")
async def test_every_sample_that_decodes_becomes_explicit_vr_little_endian(served: Any, sample_files: list[Path]) -> None:
    wrong, done = [], 0
    for path in sample_files:
        if path.stat().st_size > 1_000_000:
            continue
        try:
            source = served.store(path.read_bytes())
        except (ScanFailure, ValueError):
            continue
        if source.stored.layout.wire_transfer_syntax_uid == NATIVE or not source.stored.layout.HasField("frames"):
            continue
        try:
            data = await transcoded(served, source, NATIVE)
        except errors.NotAcceptable:
            continue
        read, stored = dcmread(io.BytesIO(data)), dcmread(path, force=True)
        expected_length = read.Rows * read.Columns * read.SamplesPerPixel * read.BitsAllocated * int(read.get("NumberOfFrames") or 1)
        length = (expected_length + 7) // 8
        changed = {0x00280004, 0x00280006, 0x00880200}
        same = {tag: value for tag, value in without_pixels(read).items() if tag not in changed and tag & 0xFFFF}
        kept = {tag: value for tag, value in without_pixels(stored).items() if tag not in changed and tag & 0xFFFF}
        if len(read.PixelData) != length + length % 2 or read.file_meta.TransferSyntaxUID != NATIVE or same.keys() != kept.keys():
            wrong.append(path.name)
        done += 1
    assert not wrong
    assert done > 20


async def test_transcoded_jpeg_of_ybr_is_rgb_by_its_attributes(served: Any) -> None:
    from pydicom.data import get_testdata_file

    path = Path(str(get_testdata_file("SC_rgb_dcmtk_+eb+cy+np.dcm")))
    read = dcmread(io.BytesIO(await transcoded(served, served.store(path.read_bytes()), NATIVE)))
    assert (read.PhotometricInterpretation, read.PlanarConfiguration) == ("RGB", 0)
    expected = dcmread(path).pixel_array.astype(int)
    assert (np.abs(read.pixel_array.astype(int) - expected) > 3).mean() < 0.001


async def test_frames_come_in_the_order_asked_for(served: Any) -> None:
    source = served.store(await transcoded(served, served.store(file_of(image_dataset(cube(frames=9)))), LOSSLESS[0]))
    found = await frames_of(served, source, [1, 4, 5, 9], NATIVE)
    assert [number for number, _ in found] == [1, 4, 5, 9]
    for number, data in found:
        assert data == cube(frames=9)[number - 1].tobytes()


async def test_a_large_frame_comes_in_messages_of_one_mebibyte(served: Any) -> None:
    large = cube(frames=1, rows=1024, columns=1024)
    request = renderer_pb2.TranscodeFramesRequest(
        source=served.store(file_of(image_dataset(large))), frame_numbers=[1], transfer_syntax_uid=NATIVE
    )
    messages = [message async for message in served.stub.TranscodeFrames(request, timeout=TIMEOUT_S)]
    assert [(len(message.data), message.last) for message in messages] == [(1 << 20, False), (1 << 20, True)]


async def test_frame_beyond_the_last_is_not_found(served: Any) -> None:
    source = served.store(file_of(image_dataset(cube())))
    with pytest.raises(errors.NotFound, match="3 frames"):
        await frames_of(served, source, [4], NATIVE)
    with pytest.raises(errors.NotFound, match="3 frames"):
        await rendered(served, source, frame_number=4)


async def test_target_without_an_encoder_is_not_acceptable(served: Any) -> None:
    source = served.store(file_of(image_dataset(cube())))
    with pytest.raises(errors.NotAcceptable, match=r"1\.2\.840\.10008\.1\.2\.4\.90"):
        await transcoded(served, source, "1.2.840.10008.1.2.4.50")


async def test_broken_frame_names_itself_before_anything_is_sent(served: Any) -> None:
    compressed = bytearray(await transcoded(served, served.store(file_of(image_dataset(cube(frames=1)))), "1.2.840.10008.1.2.4.90"))
    at = compressed.index(b"\xff\x4f\xff\x51")
    compressed[at : at + 40] = b"\1" * 40
    with pytest.raises(errors.NotAcceptable, match=r"frame 1 of 1\.2\.3\.4\.5\.6"):
        await transcoded(served, served.store(bytes(compressed)), NATIVE)


async def test_window_and_viewport_come_through(served: Any) -> None:
    ramp = np.tile(np.arange(0, 256, dtype="<i2"), (128, 1))[None]
    source = served.store(file_of(image_dataset(ramp, RescaleSlope="1", RescaleIntercept="-100")))
    window = renderer_pb2.Window(center=0, width=100, function="linear-exact")
    picture = np.asarray(Image.open(io.BytesIO(await rendered(served, source, window=window))))
    assert picture[0, [50, 100, 150]].tolist() == [0, 128, 255]
    viewport = renderer_pb2.Viewport(width=64, height=64)
    assert Image.open(io.BytesIO(await rendered(served, source, viewport=viewport))).size == (64, 32)


async def test_per_frame_windows_are_used(served: Any) -> None:
    groups = []
    for center in (100, 300):
        voi, group = Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth, voi.VOILUTFunction = center, 100, "LINEAR_EXACT"
        group.FrameVOILUTSequence = [voi]
        groups.append(group)
    values = np.full((2, 8, 8), 100, "<u2")
    source = served.store(file_of(image_dataset(values, PerFrameFunctionalGroupsSequence=groups)))
    greys = [np.asarray(Image.open(io.BytesIO(await rendered(served, source, frame_number=number))))[0, 0] for number in (1, 2)]
    assert greys == [128, 0]


@pytest.mark.parametrize("fields", [{"quality": 101}, {"window": renderer_pb2.Window(center=1, width=1, function="LINEAR")}])
async def test_wrong_parameter_is_a_bad_request(served: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(errors.BadRequest):
        await rendered(served, served.store(file_of(image_dataset(cube()))), **fields)


async def test_identical_requests_in_flight_are_one_job(served: Any) -> None:
    source = served.store(file_of(image_dataset(cube(rows=512, columns=512))))
    jobs = telemetry.RENDER_SECONDS.labels("render")

    def count() -> float:
        return next(s.value for m in jobs.collect() for s in m.samples if s.name.endswith("_count"))

    before = count()
    images = await asyncio.gather(*(rendered(served, source, "image/jpeg") for _ in range(8)))
    assert len(set(images)) == 1
    assert count() == before + 1
    await rendered(served, source, "image/jpeg")
    assert count() == before + 1


async def test_status_says_what_can_be_decoded_and_encoded(served: Any) -> None:
    status = await served.stub.GetStatus(renderer_pb2.GetStatusRequest(), timeout=TIMEOUT_S)
    assert status.ready
    assert status.workers == 2
    assert set(LOSSLESS) < set(status.encodes)
    assert "1.2.840.10008.1.2.4.50" in status.decodes


async def test_more_requests_than_fit_are_told_to_come_again(serve_with: Any) -> None:
    served = await serve_with(RendererSettings(renderer_workers=1, renderer_queue=1))
    source = served.store(file_of(image_dataset(cube(frames=6, rows=512, columns=512))))
    answers = await asyncio.gather(*(rendered(served, source, frame_number=number) for number in range(1, 7)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, errors.Overloaded)]
    assert refused
    assert refused[0].retry_after_s == 1
    assert sum(isinstance(answer, bytes) for answer in answers) == 6 - len(refused)
    assert await rendered(served, source, frame_number=6)


async def decoded(served: Any, media_type: str, file: bytes, chunk_bytes: int = 1000) -> tuple[renderer_pb2.DecodeImageResponse, bytes]:
    """Have an image file decoded; return the first answer and the frames."""

    async def requests() -> AsyncIterator[renderer_pb2.DecodeImageRequest]:
        yield renderer_pb2.DecodeImageRequest(media_type=media_type)
        for begin in range(0, len(file), chunk_bytes):
            yield renderer_pb2.DecodeImageRequest(data=file[begin : begin + chunk_bytes])

    with rpc_errors.translated("renderer"):
        first, *others = [message async for message in served.stub.DecodeImage(requests(), timeout=TIMEOUT_S)]
    return first, b"".join(message.data for message in others)


def saved(form: str, *frames: np.ndarray, **options: Any) -> bytes:
    """Return frames as an image file."""
    out = io.BytesIO()
    first, *others = (Image.fromarray(frame) for frame in frames)
    first.save(out, form, **({"save_all": True, "append_images": others} if others else {}), **options)
    return out.getvalue()


@pytest.mark.parametrize("form", ["PNG", "GIF"])
async def test_an_image_file_is_decoded_into_native_frames(served: Any, form: str) -> None:
    grey = cube("u1", 1, 9, 7)[0]
    first, frames = await decoded(served, f"image/{form.lower()}", saved(form, grey))
    pixel = first.pixel
    assert (pixel.rows, pixel.columns, pixel.samples_per_pixel, pixel.photometric_interpretation) == (9, 7, 1, "MONOCHROME2")
    assert (pixel.bits_allocated, pixel.bits_stored, pixel.high_bit, pixel.pixel_representation) == (8, 8, 7, 0)
    assert (pixel.tag, pixel.vr, first.number_of_frames) == ("7FE00010", "OB", 1)
    assert frames == grey.tobytes()


async def test_an_animation_with_one_coloured_frame_is_rgb_in_all(served: Any) -> None:
    grey = np.dstack([cube("u1", 1, 9, 7)[0] // 64 * 64] * 3)
    coloured = grey.copy()
    coloured[3, 4] = (255, 0, 0)
    first, frames = await decoded(served, "image/gif", saved("GIF", grey, coloured))
    assert (first.number_of_frames, first.pixel.samples_per_pixel, first.pixel.photometric_interpretation) == (2, 3, "RGB")
    assert frames == grey.tobytes() + coloured.tobytes()


@pytest.mark.parametrize(
    ("media_type", "file"),
    [
        ("image/png", b""),
        ("image/png", b"GIF89a"),
        ("image/png", saved("PNG", cube("u1", 1)[0])[:-30]),
        ("image/gif", b""),
        ("image/gif", saved("PNG", cube("u1", 1)[0])),
        ("image/gif", b"GIF89a" + bytes(4)),
    ],
    ids=["empty png", "gif as png", "truncated png", "empty gif", "png as gif", "gif without frames"],
)
async def test_a_file_that_is_no_image_is_a_bad_request(served: Any, media_type: str, file: bytes) -> None:
    with pytest.raises(errors.BadRequest):
        await decoded(served, media_type, file)


async def test_another_kind_of_image_file_is_unsupported(served: Any) -> None:
    with pytest.raises(errors.UnsupportedMediaType):
        await decoded(served, "image/webp", b"RIFF")


async def test_an_image_that_claims_more_pixels_than_the_limit_is_too_large(served: Any) -> None:
    file = bytearray(saved("PNG", cube("u1", 1)[0]))
    file[16:24] = (60000).to_bytes(4, "big") * 2
    with pytest.raises(errors.PayloadTooLarge, match="60000 x 60000"):
        await decoded(served, "image/png", bytes(file))


async def test_a_file_larger_than_the_limit_is_too_large_and_read_to_its_end(served: Any) -> None:
    with pytest.raises(errors.PayloadTooLarge, match="expected at most"):
        await decoded(served, "image/png", bytes(RendererSettings().image_max_bytes + 1), chunk_bytes=1 << 20)
