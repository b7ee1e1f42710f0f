"""The pipeline from stored values to greys and colours, on images whose every pixel is known."""

import io
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.pixels import apply_color_lut
from pydicom.uid import ImplicitVRLittleEndian

from gantry_renderer.codecs import coding
from gantry_renderer.picture.attributes import FrameAttributes, LookupTable, Modality, Palette, Window, read_attributes
from gantry_renderer.picture.draw import Presentation, Viewport, draw, fitted, render
from gantry_renderer.picture.lookup import expand_segments
from gantry_renderer.stored import frames
from gantry_renderer.transactions.instances import Instance
from gantry_standard import errors
from gantry_standard.dicom.scanned import PixelDescription
from gantry_standard.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN as NATIVE
from tests.support.stored_instances import store

pytestmark = pytest.mark.filterwarnings("ignore:One or more download failures:UserWarning")  # pydicom looks for more samples

PLAIN = FrameAttributes()


def grey(values: NDArray[Any], **other: Any) -> PixelDescription:
    bits = values.dtype.itemsize * 8
    known = {"bits_stored": bits, "high_bit": other.get("bits_stored", bits) - 1, "photometric_interpretation": "MONOCHROME2", **other}
    return PixelDescription(
        rows=values.shape[0],
        columns=values.shape[1],
        samples_per_pixel=1,
        bits_allocated=bits,
        pixel_representation=1 if values.dtype.kind == "i" else 0,
        tag="7FE00010",
        **known,
    )


def drawn(values: NDArray[Any], attributes: FrameAttributes = PLAIN, window: Window | None = None, **other: Any) -> NDArray[Any]:
    viewport = other.pop("viewport", None)
    return draw(NATIVE, values.tobytes(), grey(values, **other), attributes, window, viewport)


RAMP = np.arange(-1100, 1100, dtype="<i2").reshape(1, -1)


def expected_linear(x: float, c: float, w: float) -> float:
    if x <= c - 0.5 - (w - 1) / 2:
        return 0
    if x > c - 0.5 + (w - 1) / 2:
        return 255
    return ((x - (c - 0.5)) / (w - 1) + 0.5) * 255


def expected_exact(x: float, c: float, w: float) -> float:
    if x <= c - w / 2:
        return 0
    if x > c + w / 2:
        return 255
    return ((x - c) / w + 0.5) * 255


def expected_sigmoid(x: float, c: float, w: float) -> float:
    exponent = -4 * (x - c) / w
    return 0.0 if exponent > 700 else 255 / (1 + math.exp(exponent))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        pytest.param("linear", expected_linear, id="C.11.2.1.2.1 linear"),
        pytest.param("linear-exact", expected_exact, id="C.11.2.1.3.2 linear-exact"),
        pytest.param("sigmoid", expected_sigmoid, id="C.11.2.1.3.1 sigmoid"),
    ],
)
@pytest.mark.parametrize(("center", "width"), [(40.0, 400.0), (-600.5, 1500.0), (0.0, 1.0), (10.0, 3.0)])
def test_windows_follow_their_formula_for_every_value(function: str, expected: Any, center: float, width: float) -> None:
    attributes = FrameAttributes(modality=Modality(2.0, -100.0))
    found = drawn(RAMP, attributes, Window(center, width, function))
    wanted = [int(np.floor(expected(2.0 * x - 100.0, center, width) + 0.5)) for x in RAMP[0].tolist()]
    assert found[0].tolist() == wanted


def test_a_window_of_width_one_is_a_threshold() -> None:
    assert drawn(np.array([[9, 10, 11]], "<i2"), window=Window(10.5, 1, "linear"))[0].tolist() == [0, 0, 255]


def test_monochrome1_inverts_at_the_end_and_only_once() -> None:
    values = np.array([[0, 50, 100]], "<u2")
    plain = drawn(values, window=Window(50, 100, "linear-exact"))
    inverted = drawn(values, FrameAttributes(is_inverse=True), Window(50, 100, "linear-exact"), photometric_interpretation="MONOCHROME1")
    assert plain[0].tolist() == [0, 128, 255]
    assert inverted[0].tolist() == [255, 128, 0]


def test_without_a_window_eight_bits_are_shown_as_they_are() -> None:
    values = np.array([[3, 128, 240]], np.uint8)
    assert drawn(values)[0].tolist() == [3, 128, 240]
    assert drawn(np.array([[0, 15]], np.uint8), bits_stored=4)[0].tolist() == [0, 255]


def test_without_a_window_deeper_values_are_shown_over_the_range_of_the_frame() -> None:
    values = np.array([[-2000, 0, 1000]], "<i2")
    assert drawn(values)[0].tolist() == [0, 170, 255]


def test_padding_is_black_and_no_part_of_the_range() -> None:
    values = np.array([[-2000, 0, 500, 1000]], "<i2")
    padded = FrameAttributes(padding=(-2000, -2000))
    assert drawn(values, padded)[0].tolist() == [0, 0, 128, 255]
    assert drawn(values, padded, photometric_interpretation="MONOCHROME1")[0].tolist() == [0, 255, 128, 0]


def test_the_instances_own_window_is_used_and_the_requests_goes_first() -> None:
    values = np.array([[0, 100, 200]], "<u2")
    own = FrameAttributes(window=Window(100, 200, "linear-exact"))
    assert drawn(values, own)[0].tolist() == [0, 128, 255]
    assert drawn(values, own, Window(200, 200, "linear-exact"))[0].tolist() == [0, 0, 128]


def test_voi_table_goes_before_the_instances_window() -> None:
    table = LookupTable(4, 10, 8, bytes([0, 85, 170, 255]))
    own = FrameAttributes(window=Window(1, 2), voi_table=table)
    assert drawn(np.array([[0, 10, 11, 12, 13, 99]], "<u2"), own)[0].tolist() == [0, 0, 85, 170, 255, 255]


def test_modality_table_maps_before_the_window() -> None:
    table = LookupTable(3, -1, 16, struct.pack("<3H", 1000, 2000, 3000))
    attributes = FrameAttributes(modality=Modality(table=table))
    assert drawn(np.array([[-5, -1, 0, 1, 7]], "<i2"), attributes, Window(2000, 2000, "linear-exact"))[0].tolist() == [0, 0, 128, 255, 255]


def test_values_of_32_bits_and_floats_are_windowed_by_the_same_formula() -> None:
    window = Window(50_000, 100_000, "linear-exact")
    assert drawn(np.array([[0, 50_000, 100_000]], "<u4"), window=window)[0].tolist() == [0, 128, 255]
    values = np.array([[0.0, 0.25, 1.0, np.nan]], "<f4")
    description = PixelDescription(1, 4, 1, "MONOCHROME2", tag="7FE00008")
    assert draw(NATIVE, values.tobytes(), description, FrameAttributes(), None, None)[0].tolist() == [0, 64, 255, 0]


def test_values_above_bits_stored_take_the_last_grey() -> None:
    stream = coding.encode("1.2.840.10008.1.2.4.80", np.array([[0, 4095], [5000, 1]], "<u2"), grey(np.zeros((2, 2), "<u2")))
    description = grey(np.zeros((2, 2), "<u2"), bits_stored=12)
    picture = draw("1.2.840.10008.1.2.4.80", stream, description, FrameAttributes(), Window(2048, 4096, "linear-exact"), None)
    assert picture.tolist() == [[0, 255], [255, 0]]


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_colours(bits: int) -> None:
    step = 1 if bits == 8 else 257

    def table(*entries: int) -> LookupTable:
        packed = bytes(entries) if bits == 8 else struct.pack(f"<{len(entries)}H", *(entry * step for entry in entries))
        return LookupTable(3, 2, bits, packed)

    attributes = FrameAttributes(palette=Palette(table(1, 2, 3), table(4, 5, 6), table(7, 8, 9), False))
    found = drawn(np.array([[0, 2, 3, 4, 200]], np.uint8), attributes, photometric_interpretation="PALETTE COLOR")
    assert found[0].tolist() == [[1, 4, 7], [1, 4, 7], [2, 5, 8], [3, 6, 9], [3, 6, 9]]


def test_segmented_palette_expands_each_kind_of_segment() -> None:
    # discrete 2 entries, linear over 3 to 40, indirect: 1 segment at byte 0
    words = struct.pack("<11H", 0, 2, 10, 10, 1, 3, 40, 2, 1, 0, 0)
    assert expand_segments(LookupTable(7, 0, 16, words)).tolist() == [10, 10, 20, 30, 40, 10, 10]
    with pytest.raises(errors.NotAcceptable, match="type 7"):
        expand_segments(LookupTable(7, 0, 16, struct.pack("<2H", 7, 1)))
    with pytest.raises(errors.NotAcceptable, match="middle of a segment"):
        expand_segments(LookupTable(7, 0, 16, struct.pack("<3H", 0, 5, 1)))


@pytest.mark.filterwarnings("ignore")
def test_palettes_of_sample_files_look_as_pydicom_makes_them(sample_files: list[Path]) -> None:
    compared = 0
    for path in sample_files:
        if path.name not in (
            "OT-PAL-8-face.dcm",
            "OBXXXX1A.dcm",
            "gdcm-US-ALOKA-16.dcm",
            "OBXXXX1A_rle.dcm",
            "examples_palette.dcm",
            "TestPattern_Palette_16.dcm",
        ):
            continue
        instance = Instance(store(path.read_bytes()).source)
        place = frames.locate(instance.stored, 1)
        stored = store(path.read_bytes())
        data = b"".join(stored.data[offset : offset + length] for offset, length in place.ranges)
        attributes = read_attributes(instance.stored.dicom_json)
        bulk = {b.path: stored.data[b.value.offset : b.value.offset + b.value.length] for b in instance.stored.layout.bulk}
        found = draw(instance.transfer_syntax_uid, data, instance.description, attributes.with_bulk(bulk).frame(1), None, None)
        dataset = dcmread(path, force=True)
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        expected = apply_color_lut(dataset.pixel_array if instance.number_of_frames == 1 else dataset.pixel_array[0], dataset)
        if expected.dtype != np.uint8:
            expected = expected >> 8
        assert np.array_equal(found, expected), path.name
        compared += 1
    assert compared >= 3


def test_colour_of_more_than_eight_bits_keeps_its_highest_ones() -> None:
    values = np.array([[[0, 4095, 2048]]], "<u2")
    description = PixelDescription(1, 1, 3, "RGB", 0, 16, 12, 11, 0, "7FE00010")
    assert draw(NATIVE, values.tobytes(), description, FrameAttributes(), None, None).tolist() == [[[0, 255, 128]]]


def test_ybr_full_becomes_rgb() -> None:
    values = np.array([[[128, 128, 128], [76, 85, 255]]], np.uint8)
    description = PixelDescription(1, 2, 3, "YBR_FULL", 0, 8, 8, 7, 0, "7FE00010")
    found = draw(NATIVE, values.tobytes(), description, FrameAttributes(), None, None).astype(int)
    assert np.abs(found - [[[128, 128, 128], [254, 0, 0]]]).max() <= 1


def test_unknown_photometric_interpretation_is_not_acceptable() -> None:
    with pytest.raises(errors.NotAcceptable, match="HSV"):
        draw(NATIVE, bytes(3), PixelDescription(1, 1, 3, "HSV", 0, 8, 8, 7, 0, "7FE00010"), FrameAttributes(), None, None)


@pytest.mark.parametrize(
    ("columns", "rows", "viewport", "size"),
    [
        (512, 256, (100, 100), (100, 50)),
        (256, 512, (100, 100), (50, 100)),
        (64, 64, (256, 256), (256, 256)),
        (512, 512, (512, 512), (512, 512)),
        (1000, 1, (10, 10), (10, 1)),
        (100, 100, (300, 20), (20, 20)),
    ],
)
def test_viewport_keeps_the_aspect_ratio_with_one_side_exact(
    columns: int, rows: int, viewport: tuple[int, int], size: tuple[int, int]
) -> None:
    picture = drawn(np.zeros((rows, columns), np.uint8), viewport=Viewport(*viewport))
    assert picture.shape == (size[1], size[0])
    assert fitted(columns, rows, Viewport(*viewport)) == size


def test_source_region_is_cut_out_before_scaling() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert drawn(values, viewport=Viewport(2, 2, 1, 1, 2, 2)).tolist() == [[5, 6], [9, 10]]
    assert drawn(values, viewport=Viewport(2, 2, -1, -1, 2, 2)).tolist() == [[5, 6], [9, 10]]
    assert drawn(values, viewport=Viewport(3, 2, 1, 1)).tolist() == [[5, 6, 7], [9, 10, 11]]


def test_negative_source_sizes_flip() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert drawn(values, viewport=Viewport(4, 3, 0, 0, -4, 3)).tolist() == values[:, ::-1].tolist()
    assert drawn(values, viewport=Viewport(4, 3, 0, 0, 4, -3)).tolist() == values[::-1].tolist()
    assert drawn(values, viewport=Viewport(2, 2, 0, 0, -2, -2)).tolist() == [[5, 4], [1, 0]]


def test_the_range_of_the_frame_does_not_depend_on_the_source_region() -> None:
    values = np.array([[0, 500], [1000, 1000]], "<u2")
    assert drawn(values, viewport=Viewport(2, 1, 0, 0, 2, 1)).tolist() == [[0, 128]]


@pytest.mark.parametrize("viewport", [(0, 10), (10, 0), (70_000, 10)])
def test_viewport_of_impossible_size_is_a_bad_request(viewport: tuple[int, int]) -> None:
    with pytest.raises(errors.BadRequest):
        Viewport(*viewport)


def test_source_region_outside_of_the_frame_is_a_bad_request() -> None:
    with pytest.raises(errors.BadRequest, match="outside of 4 x 3"):
        drawn(np.zeros((3, 4), np.uint8), viewport=Viewport(10, 10, 4, 0))


@pytest.mark.parametrize(
    "window",
    [
        Window(0, 0, "linear"),
        Window(0, 0.5, "linear"),
        Window(0, 0, "sigmoid"),
        Window(0, -1, "linear-exact"),
        Window(0, 1, "LINEAR"),
        Window(float("nan"), 1),
    ],
)
def test_wrong_window_is_a_bad_request(window: Window) -> None:
    with pytest.raises(errors.BadRequest):
        Presentation("image/jpeg", window=window)


def test_wrong_quality_or_media_type_is_refused() -> None:
    with pytest.raises(errors.BadRequest):
        Presentation("image/jpeg", quality=101)
    with pytest.raises(errors.NotAcceptable, match="image/png"):
        Presentation("image/tiff")


@pytest.mark.parametrize(("media_type", "form"), [("image/jpeg", "JPEG"), ("image/png", "PNG"), ("image/gif", "GIF")])
@pytest.mark.parametrize("samples", [1, 3])
def test_each_media_type_holds_the_picture(media_type: str, form: str, samples: int) -> None:
    values = np.linspace(0, 255, 32 * 32).astype(np.uint8).reshape(32, 32)
    description, data = grey(values), values.tobytes()
    if samples == 3:
        description = PixelDescription(32, 32, 3, "RGB", 0, 8, 8, 7, 0, "7FE00010")
        data = np.stack([values] * 3, axis=-1).tobytes()
    image = Image.open(io.BytesIO(render(NATIVE, data, description, FrameAttributes(), Presentation(media_type))))
    assert image.format == form
    assert image.size == (32, 32)
    if samples == 1:
        assert image.mode == "L"
    shown = np.asarray(image.convert("L")).astype(int)
    tolerance = {"image/png": 0, "image/gif": 0 if samples == 1 else 3, "image/jpeg": 4}[media_type]
    assert np.abs(shown - values).max() <= tolerance


def test_rendered_jpeg_is_baseline_and_quality_counts() -> None:
    values = np.random.default_rng(3).integers(0, 255, (64, 64), dtype=np.uint8)
    good, bad = (
        render(NATIVE, values.tobytes(), grey(values), FrameAttributes(), Presentation("image/jpeg", quality)) for quality in (95, 10)
    )
    assert len(bad) < len(good) / 2
    assert b"\xff\xc0" in good
    assert b"\xff\xc2" not in good
