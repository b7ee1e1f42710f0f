"""Retrieve Rendered (PS3.18 §10.4.1.1.3, §8.3.5.1): pixels against the formulas of the standard."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.support import instances
from tests.support.dicomweb import DicomWeb, parts_of

Pixels = NDArray[np.uint8]


def stored(dicomweb: DicomWeb, data_set, syntax: str = instances.NATIVE["explicit"]) -> str:  # type: ignore[no-untyped-def]
    """Store one instance and return its path."""
    dicomweb.store(instances.encoded(data_set, syntax))
    return instances.resource(data_set)


def png(dicomweb: DicomWeb, path: str, query: str = "") -> Pixels:
    """Return the pixels of a rendering as PNG."""
    response = dicomweb.get(f"{path}/rendered{'?' if query else ''}{query}", "image/png")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("image/png")
    return np.asarray(Image.open(io.BytesIO(response.content)))


def linear(values: NDArray[np.float64], center: float, width: float) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.2.1."""
    return np.clip(((values - (center - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)


def linear_exact(values: NDArray[np.float64], center: float, width: float) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.3.2."""
    return np.clip(((values - center) / width + 0.5) * 255, 0, 255)


def sigmoid(values: NDArray[np.float64], center: float, width: float) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.3.1."""
    return 255 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))


def hounsfield() -> NDArray[np.float64]:
    """Return the pixels of `instances.ct` after its modality LUT."""
    return instances.ct_pixels().astype(float) - 1024


@pytest.mark.requirement("B-025", "B-014")
def test_the_default_is_a_baseline_jpeg_of_the_size_of_the_matrix(dicomweb: DicomWeb) -> None:
    response = dicomweb.get(f"{stored(dicomweb, instances.ct())}/rendered")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("image/jpeg")
    assert response.content[:2] == b"\xff\xd8"
    assert b"\xff\xc0" in response.content
    assert not any(bytes([0xFF, marker]) in response.content[:600] for marker in (0xC1, 0xC2))
    assert Image.open(io.BytesIO(response.content)).size == (48, 32)


@pytest.mark.requirement("B-006")
@pytest.mark.parametrize("quality", ["0", "101", "a", "", "1.5", "-1"])
def test_a_quality_outside_1_to_100_is_refused(dicomweb: DicomWeb, quality: str) -> None:
    response = dicomweb.get(f"{stored(dicomweb, instances.ct())}/rendered?quality={quality}", "image/jpeg")
    assert response.status_code == 400
    assert "quality" in response.text


@pytest.mark.requirement("B-007")
def test_a_lower_quality_makes_a_smaller_file(dicomweb: DicomWeb) -> None:
    path = stored(dicomweb, instances.ct(256, 256))
    sizes = [len(dicomweb.get(f"{path}/rendered?quality={quality}", "image/jpeg").content) for quality in (10, 50, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] * 2 < sizes[2]


@pytest.mark.requirement("B-008", "B-009")
@pytest.mark.parametrize(
    ("rows", "columns", "viewport", "size"),
    [
        (256, 512, "100,100", (100, 50)),
        (512, 256, "100,100", (50, 100)),
        (64, 64, "256,256", (256, 256)),
        (64, 64, "256,128", (128, 128)),
        (30, 60, "90,10", (20, 10)),
    ],
)
def test_a_viewport_scales_into_its_size_and_keeps_the_aspect(
    dicomweb: DicomWeb, rows: int, columns: int, viewport: str, size: tuple[int, int]
) -> None:
    image = png(dicomweb, stored(dicomweb, instances.ct(rows, columns)), f"viewport={viewport}")
    assert image.shape[1::-1] == size


@pytest.mark.requirement("B-010", "B-011", "B-012")
def test_a_viewport_crops_elides_and_flips(dicomweb: DicomWeb) -> None:
    path = stored(dicomweb, instances.ct())
    window = "window=1000,4096,linear"
    whole = png(dicomweb, path, window)
    assert (png(dicomweb, path, f"{window}&viewport=16,8,4,2,16,8") == whole[2:10, 4:20]).all()
    assert (png(dicomweb, path, f"{window}&viewport=48,32,,,48,32") == whole).all()
    assert (png(dicomweb, path, f"{window}&viewport=40,32,8") == whole[:, 8:]).all()
    assert (png(dicomweb, path, f"{window}&viewport=48,24,,8") == whole[8:]).all()
    assert (png(dicomweb, path, f"{window}&viewport=48,32,0,0,-48,32") == whole[:, ::-1]).all()
    assert (png(dicomweb, path, f"{window}&viewport=48,32,0,0,48,-32") == whole[::-1]).all()


@pytest.mark.requirement("B-013")
@pytest.mark.parametrize("viewport", ["10", "10,", ",10", "0,10", "10,0", "-5,10", "a,b", "10,10,x", "1.5,10", ""])
def test_a_viewport_that_is_none_is_refused(dicomweb: DicomWeb, viewport: str) -> None:
    response = dicomweb.get(f"{stored(dicomweb, instances.ct())}/rendered?viewport={viewport}", "image/png")
    assert response.status_code == 400
    assert "viewport" in response.text


@pytest.mark.requirement("B-016", "B-017")
@pytest.mark.parametrize(("function", "formula"), [("linear", linear), ("linear-exact", linear_exact), ("sigmoid", sigmoid)])
@pytest.mark.parametrize(("center", "width"), [(40, 400), (-600, 1500), (0.5, 1.5)])
def test_a_window_is_applied_as_the_formula_says(dicomweb: DicomWeb, function, formula, center: float, width: float) -> None:  # type: ignore[no-untyped-def]
    image = png(dicomweb, stored(dicomweb, instances.ct()), f"window={center},{width},{function}")
    assert np.abs(image.astype(float) - formula(hounsfield(), center, width)).max() <= 1


@pytest.mark.requirement("B-018")
@pytest.mark.parametrize(
    "window", ["40", "40,400", "40,a,linear", "a,400,linear", "40,400,square", "40,0,linear", "40,-1,sigmoid", "40,0.5,linear", ""]
)
def test_a_window_that_is_none_is_refused(dicomweb: DicomWeb, window: str) -> None:
    response = dicomweb.get(f"{stored(dicomweb, instances.ct())}/rendered?window={window}", "image/png")
    assert response.status_code == 400
    assert "window" in response.text


@pytest.mark.requirement("B-035")
def test_the_window_of_the_image_is_applied_without_a_parameter(dicomweb: DicomWeb) -> None:
    image = png(dicomweb, stored(dicomweb, instances.ct(WindowCenter="40", WindowWidth="400")))
    assert np.abs(image.astype(float) - linear(hounsfield(), 40, 400)).max() <= 1


def test_monochrome1_is_inverted_at_the_end(dicomweb: DicomWeb) -> None:
    data_set = instances.ct(PhotometricInterpretation="MONOCHROME1")
    image = png(dicomweb, stored(dicomweb, data_set), "window=40,400,linear")
    assert np.abs(255 - image.astype(float) - linear(hounsfield(), 40, 400)).max() <= 1


def test_colours_stay_what_they_are(dicomweb: DicomWeb) -> None:
    image = png(dicomweb, stored(dicomweb, instances.rgb()))
    assert (image[..., :3] == instances.rgb_pixels()).all()


@pytest.mark.requirement("R-048")
def test_an_instance_of_a_multi_frame_class_with_one_frame_is_a_single_frame(dicomweb: DicomWeb) -> None:
    path = stored(dicomweb, instances.multi_frame(1))
    response = dicomweb.get(f"{path}/rendered", "image/png")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("image/png")


@pytest.mark.requirement("R-053")
def test_a_frame_is_rendered_and_takes_the_parameters(dicomweb: DicomWeb) -> None:
    path = stored(dicomweb, instances.multi_frame())
    image = png(dicomweb, f"{path}/frames/3", "window=128,256,linear-exact")
    assert np.abs(image.astype(float) - linear_exact(instances.frame_pixels()[2].astype(float), 128, 256)).max() <= 1
    assert png(dicomweb, f"{path}/frames/3", "viewport=22,32").shape[:2] == (32, 22)
    assert dicomweb.get(f"{path}/frames/6/rendered", "image/png").status_code == 404
    assert dicomweb.get(f"{path}/frames/0/rendered", "image/png").status_code == 400


@pytest.mark.requirement("B-026")
def test_gif_and_png_of_a_single_frame_can_be_had(dicomweb: DicomWeb) -> None:
    path = stored(dicomweb, instances.ct())
    for kind, name in {"image/gif": "GIF", "image/png": "PNG", "image/jpeg": "JPEG"}.items():
        response = dicomweb.get(f"{path}/rendered", kind)
        assert response.headers["content-type"].startswith(kind)
        image = Image.open(io.BytesIO(response.content))
        assert (image.format, image.size) == (name, (48, 32))


@pytest.mark.requirement("B-029")
def test_a_transfer_syntax_on_a_rendered_type_is_not_acceptable(dicomweb: DicomWeb) -> None:
    path = stored(dicomweb, instances.ct())
    assert dicomweb.get(f"{path}/rendered", "image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50").status_code == 406
    response = dicomweb.get(f"{path}/rendered", "image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50, image/png")
    assert response.headers["content-type"].startswith("image/png")


@pytest.mark.distributed
@pytest.mark.parametrize("name", instances.ENCAPSULATED)
def test_every_compression_is_rendered(dicomweb: DicomWeb, name: str) -> None:
    path = stored(dicomweb, instances.encapsulated(name), instances.ENCAPSULATED[name])
    image = png(dicomweb, f"{path}/frames/2", "window=128,256,linear-exact")
    expected = linear_exact(instances.frame_pixels(3, 16, 24)[1].astype(float), 128, 256)
    assert np.abs(image.astype(float) - expected).mean() <= (3 if name == "jpeg" else 1)


def test_an_instance_of_several_frames_is_rendered_as_one_part_each_or_not_at_all(dicomweb: DicomWeb) -> None:
    response = dicomweb.get(f"{stored(dicomweb, instances.multi_frame(3))}/rendered", 'multipart/related; type="image/jpeg"')
    if response.status_code == 200:
        assert len(parts_of(response)) == 3
    else:
        assert response.status_code in (406, 501)
        assert response.text


def test_what_has_no_pixels_is_not_rendered_but_says_why(dicomweb: DicomWeb) -> None:
    response = dicomweb.get(f"{stored(dicomweb, instances.general(instances.BASIC_TEXT_SR, 'SR'))}/rendered", "image/jpeg")
    assert response.status_code in (404, 406, 501)
    assert len(response.text) > 20


@pytest.mark.distributed
def test_a_rendering_has_an_etag_and_is_not_sent_twice(dicomweb: DicomWeb) -> None:
    path = f"{stored(dicomweb, instances.ct())}/rendered"
    first = dicomweb.get(path, "image/png")
    assert dicomweb.get(path, "image/png", headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    assert dicomweb.get(path, "image/jpeg").headers["etag"] != first.headers["etag"]
