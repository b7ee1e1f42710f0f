"""Heads of bit streams of known make."""

import imagecodecs
import numpy as np
import pytest

from gantry_standard.bitstreams.heads import BytesSource, read_jpeg_2000_head, read_jpeg_head
from gantry_standard.dicom.limits import ScanFailure

GREY = np.arange(4 * 6, dtype=np.uint16).reshape(4, 6)
COLOUR = np.zeros((4, 6, 3), np.uint8)


def test_lossless_jpeg_is_reversible_and_names_its_predictor() -> None:
    head = read_jpeg_head(BytesSource(imagecodecs.jpeg8_encode(GREY, lossless=True, predictor=1, bitspersample=12)))
    assert (head.rows, head.columns, head.samples, head.precision) == (4, 6, 1, 12)
    assert (head.is_reversible, head.is_signed, head.scan_parameter) == (True, False, 1)


@pytest.mark.parametrize(("near", "is_reversible"), [(0, True), (2, False)])
def test_jpeg_ls_is_reversible_without_near(near: int, is_reversible: bool) -> None:
    head = read_jpeg_head(BytesSource(imagecodecs.jpegls_encode(GREY, level=near)))
    assert (head.rows, head.columns, head.scan_parameter, head.is_reversible) == (4, 6, near, is_reversible)


def test_color_space_of_jpeg_is_named_by_jfif_adobe_or_component_ids() -> None:
    jfif = imagecodecs.jpeg8_encode(COLOUR)
    assert (read_jpeg_head(BytesSource(jfif)).has_jfif, read_jpeg_head(BytesSource(jfif)).names_color_space) == (True, True)
    without = jfif[:2] + jfif[2 + 2 + int.from_bytes(jfif[4:6], "big") :]
    head = read_jpeg_head(BytesSource(without))
    assert (head.component_ids, head.names_color_space) == (b"\1\2\3", False)
    adobe = read_jpeg_head(BytesSource(imagecodecs.jpeg8_encode(COLOUR, colorspace="RGB", outcolorspace="RGB")))
    assert (adobe.adobe_transform, adobe.names_color_space) == (0, True)


def test_what_follows_the_frame_header_of_jpeg_need_not_be_readable() -> None:
    data = imagecodecs.jpeg8_encode(COLOUR)
    frame = data.index(b"\xff\xc0")
    cut = data[: frame + 2 + int.from_bytes(data[frame + 2 : frame + 4], "big")]
    head = read_jpeg_head(BytesSource(cut + b"no marker"))
    assert (head.rows, head.columns, head.scan, head.scan_parameter) == (4, 6, b"", 0)


@pytest.mark.parametrize("codec_format", ["j2k", "jp2"])
def test_jpeg_2000_is_read_with_and_without_boxes(codec_format: str) -> None:
    data = imagecodecs.jpeg2k_encode(COLOUR, reversible=True, codecformat=codec_format)
    head = read_jpeg_2000_head(BytesSource(data))
    assert (head.rows, head.columns, head.samples, head.precision, head.is_signed, head.is_reversible) == (4, 6, 3, 8, False, True)
    assert data[head.offset : head.offset + 4] == b"\xff\x4f\xff\x51"
    assert (head.has_component_transform, head.is_part_2, head.is_part_15) == (True, False, False)


def test_signed_and_irreversible_jpeg_2000_says_so() -> None:
    signed = imagecodecs.jpeg2k_encode(GREY.astype(np.int16), level=40, reversible=False, codecformat="j2k")
    head = read_jpeg_2000_head(BytesSource(signed))
    assert (head.is_signed, head.is_reversible, head.precision) == (True, False, 16)
    assert read_jpeg_2000_head(BytesSource(imagecodecs.htj2k_encode(GREY, reversible=False))).is_part_15


@pytest.mark.parametrize("read", [read_jpeg_head, read_jpeg_2000_head])
@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xc0\x00\x08\x08\x00\x04\x00\x06\x03", b"\xff\x4f\xff\x51" + bytes(60), b"no bit stream" * 9]
)
def test_what_has_no_head_is_a_failure(read: object, data: bytes) -> None:
    with pytest.raises(ScanFailure):
        read(BytesSource(data))  # type: ignore[operator]
