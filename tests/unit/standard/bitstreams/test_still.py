"""What bit streams say about themselves: over the frames of every compressed sample, over ones of known make, and over broken ones."""

import io
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import generate_frames

from gantry_standard import reasons
from gantry_standard.bitstreams.still import STILL_MEDIA_TYPES, Picture, choose_transfer_syntax, read_still
from gantry_standard.bitstreams.video import VIDEO_MEDIA_TYPES, read_video
from gantry_standard.dicom.limits import ScanFailure
from gantry_standard.dicom.transfer_syntaxes import TRANSFER_SYNTAXES, Codestream, TransferSyntax
from tests.support import videos
from tests.support.sample_files import sample_files


class Held:
    """A bit stream in memory."""

    def __init__(self, data: bytes) -> None:
        self.length = len(data)
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes."""
        return self._data[offset : offset + length]


def read(data: bytes, media_type: str) -> Picture:
    """Read a bit stream of any kind."""
    return (read_video if media_type in VIDEO_MEDIA_TYPES else read_still)(Held(data), media_type)


def _can_be_read(path: Path, row: TransferSyntax) -> bool:
    return row.is_encapsulated and (row.is_video or row.codestream is not Codestream.NONE) and path.name not in _BROKEN


# Samples that are cut off or have no pixel data, and ones whose transfer syntax is not that of their bits.
_BROKEN = {"UN_sequence.dcm", "emri_small_jpeg_2k_lossless_too_short.dcm", "JPEG2000-embedded-sequence-delimiter.dcm"}
_WRONG_SYNTAX = {"sample-op.dcm"}


def _compressed() -> list[Path]:
    found = []
    for path in sample_files():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                head = pydicom.dcmread(path, stop_before_pixels=True)
            except (pydicom.errors.InvalidDicomError, EOFError, ValueError):
                continue
        if (row := TRANSFER_SYNTAXES.get(head.file_meta.get("TransferSyntaxUID", ""))) and _can_be_read(path, row):
            found.append(path)
    return found


_MEDIA_TYPES = {
    Codestream.JPEG: "image/jpeg",
    Codestream.JPEG_2000: "image/jp2",
    Codestream.JPEG_XL: "image/jxl",
    Codestream.RLE: "image/dicom-rle",
}


@pytest.fixture(autouse=True)
def _pydicom_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("path", _compressed(), ids=lambda path: path.name)
def test_the_bits_of_a_sample_say_what_its_attributes_do(path: Path) -> None:
    data_set = pydicom.dcmread(path)
    uid, count = data_set.file_meta.TransferSyntaxUID, int(data_set.get("NumberOfFrames") or 1)
    row = TRANSFER_SYNTAXES[uid]
    frame = next(generate_frames(data_set.PixelData, number_of_frames=1 if row.is_video else count))
    media_type = row.media_type.lower() if row.media_type.lower() in STILL_MEDIA_TYPES | VIDEO_MEDIA_TYPES else _MEDIA_TYPES[row.codestream]
    found = read(frame, media_type)
    if found.rows:
        assert (found.rows, found.columns) == (data_set.Rows, data_set.Columns)
    assert found.samples_per_pixel == data_set.SamplesPerPixel
    assert found.precision <= data_set.BitsAllocated or data_set.BitsAllocated == 1
    if path.name not in _WRONG_SYNTAX:
        assert uid in found.transfer_syntax_uids
        assert choose_transfer_syntax(found, media_type, uid) == uid


GREY = np.arange(13 * 17, dtype=np.uint8).reshape(13, 17)
WIDE = (np.arange(13 * 17, dtype=np.uint16) * 200).reshape(13, 17)
COLOUR = np.dstack([GREY, GREY // 2, 255 - GREY])


@pytest.mark.parametrize(
    ("media_type", "data", "expected"),
    [
        ("image/jpeg", imagecodecs.jpeg8_encode(COLOUR, colorspace="RGB", outcolorspace="RGB"), ("4.50", 3, 8, "RGB")),
        ("image/jpeg", imagecodecs.jpeg8_encode(COLOUR, subsampling="444"), ("4.50", 3, 8, "YBR_FULL")),
        ("image/jpeg", imagecodecs.jpeg8_encode(COLOUR, subsampling="420"), ("4.50", 3, 8, "YBR_FULL_422")),
        ("image/jls", imagecodecs.jpegls_encode(COLOUR), ("4.80", 3, 8, "RGB")),
        ("image/jls", imagecodecs.jpegls_encode(WIDE, level=2), ("4.81", 1, 16, "MONOCHROME2")),
        ("image/jp2", imagecodecs.jpeg2k_encode(COLOUR, reversible=True, codecformat="j2k"), ("4.90", 3, 8, "YBR_RCT")),
        ("image/jp2", imagecodecs.jpeg2k_encode(COLOUR, reversible=True, mct=False, codecformat="j2k"), ("4.90", 3, 8, "RGB")),
        ("image/jp2", imagecodecs.jpeg2k_encode(WIDE, level=50, codecformat="jp2"), ("4.91", 1, 16, "MONOCHROME2")),
        ("image/jphc", imagecodecs.htj2k_encode(COLOUR, reversible=True), ("4.201", 3, 8, "YBR_RCT")),
        ("image/jphc", imagecodecs.htj2k_encode(GREY, reversible=False), ("4.203", 1, 8, "MONOCHROME2")),
        ("image/jxl", imagecodecs.jpegxl_encode(WIDE, lossless=True), ("4.112", 1, 16, "MONOCHROME2")),
        ("image/jxl", imagecodecs.jpegxl_encode(COLOUR, lossless=True), ("4.112", 3, 8, "RGB")),
        ("image/jxl", imagecodecs.jpegxl_encode(COLOUR, distance=2.0), ("4.112", 3, 8, "XYB")),
    ],
)
def test_bits_of_known_make_are_told(media_type: str, data: bytes, expected: tuple[str, int, int, str]) -> None:
    found = read(data, media_type)
    uid = choose_transfer_syntax(found, media_type, "")
    assert (uid.removeprefix("1.2.840.10008.1.2."), found.samples_per_pixel, found.precision, found.photometric_interpretation) == expected
    assert (found.rows, found.columns) == (13, 17)


def test_signed_samples_are_told() -> None:
    found = read(imagecodecs.jpeg2k_encode(WIDE.astype(np.int16), reversible=True, codecformat="j2k"), "image/jp2")
    assert found.pixel_representation == 1


def test_a_jpeg_2000_file_is_its_codestream() -> None:
    file = imagecodecs.jpeg2k_encode(GREY, reversible=True, codecformat="jp2")
    found = read(file, "image/jp2")
    assert file[found.offset : found.offset + found.length] == file[file.index(b"\xff\x4f\xff\x51") :]


@pytest.mark.parametrize("rows", [2, 480, 576, 1080, 2160])
@pytest.mark.parametrize("columns", [2, 352, 720, 1918, 3840])
def test_sizes_of_videos_are_told(rows: int, columns: int) -> None:
    parameter_sets: list[tuple[str, bytes, Any]] = [
        ("video/mp4", videos.avc_parameter_set(rows, columns), videos.avc_configuration),
        ("video/mp4", videos.avc_parameter_set(rows, columns, profile=77), videos.avc_configuration),
        ("video/h265", videos.hevc_parameter_set(rows, columns), videos.hevc_configuration),
    ]
    for media_type, unit, configuration in parameter_sets:
        entry = b"avc1" if media_type == "video/mp4" else b"hvc1"
        for moov_last in (True, False):
            found = read(videos.mp4(entry, configuration(unit), 9, moov_last=moov_last), media_type)
            assert (found.rows, found.columns, found.number_of_frames) == (rows, columns, 9)
        for stream in (videos.byte_stream(unit), videos.transport_stream(videos.byte_stream(b"\x09\x10" * 150, unit, b"\x68"))):
            found = read(stream, media_type)
            assert (found.rows, found.columns, found.number_of_frames) == (rows, columns, 0)
    found = read(videos.mpeg_2(rows, columns), "video/mpeg")
    assert (found.rows, found.columns) == (rows, columns)


@pytest.mark.parametrize(
    ("media_type", "data"),
    [
        ("video/mp4", videos.byte_stream(videos.avc_parameter_set(480, 640, level=51))),
        ("video/mp4", videos.byte_stream(videos.avc_parameter_set(480, 640, profile=110))),
        ("video/h265", videos.byte_stream(videos.hevc_parameter_set(480, 640, level=186))),
        ("video/h265", videos.byte_stream(videos.hevc_parameter_set(480, 640, profile=4, precision=12))),
        ("video/mp4", videos.mp4(b"hvc1", videos.hevc_configuration(videos.hevc_parameter_set(480, 640)), 1)),
        ("image/jxl", imagecodecs.jpegxl_encode(np.dstack([COLOUR, GREY]))),
    ],
    ids=["avc level 5.1", "avc high 10", "hevc level 6.2", "hevc range extensions", "hevc as video/mp4", "jpeg xl with alpha"],
)
def test_what_no_transfer_syntax_takes_is_refused_with_c122(media_type: str, data: bytes) -> None:
    with pytest.raises(ScanFailure) as caught:
        read(data, media_type)
    assert caught.value.reason == reasons.TRANSFER_SYNTAX_NOT_SUPPORTED


def test_level_4_2_and_stereo_have_syntaxes_of_their_own() -> None:
    stereo = read(videos.byte_stream(videos.avc_parameter_set(1080, 1920, profile=128)), "video/mp4")
    fast = read(videos.byte_stream(videos.avc_parameter_set(1080, 1920, level=42)), "video/mp4")
    assert choose_transfer_syntax(stereo, "video/mp4", "1.2.840.10008.1.2.4.102") == "1.2.840.10008.1.2.4.106"
    assert choose_transfer_syntax(fast, "video/mp4", "1.2.840.10008.1.2.4.102") == "1.2.840.10008.1.2.4.104"


_GOOD = {
    "image/jpeg": imagecodecs.jpeg8_encode(COLOUR),
    "image/jls": imagecodecs.jpegls_encode(GREY),
    "image/jp2": imagecodecs.jpeg2k_encode(COLOUR, codecformat="jp2"),
    "image/jphc": imagecodecs.htj2k_encode(GREY),
    "image/jxl": imagecodecs.jpegxl_encode(GREY),
    "video/mpeg": videos.mpeg_2(480, 720),
    "video/mp4": videos.mp4(b"avc1", videos.avc_configuration(videos.avc_parameter_set(480, 640)), 3),
    "video/h265": videos.transport_stream(videos.byte_stream(videos.hevc_parameter_set(480, 640))),
}


@pytest.mark.parametrize("media_type", _GOOD)
def test_broken_bits_fail_or_are_read_and_never_crash(media_type: str) -> None:
    chance, good = random.Random(4711), _GOOD[media_type]
    for number in range(1500):
        data = bytearray(good[: chance.randrange(len(good))] if number % 3 == 0 else good)
        for _ in range(chance.randrange(1, 6)):
            if data:
                data[chance.randrange(min(len(data), 400))] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
        try:
            found = read(bytes(data), media_type)
        except ScanFailure:
            continue
        assert 0 < found.precision <= 64
        assert 0 <= found.offset <= found.offset + found.length <= len(data)


@pytest.mark.parametrize("media_type", sorted(STILL_MEDIA_TYPES | VIDEO_MEDIA_TYPES))
@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"not an image at all, but text that goes on for a while" * 3], ids=["empty", "one byte", "text"]
)
def test_what_is_no_such_bit_stream_is_not_understood(media_type: str, data: bytes) -> None:
    with pytest.raises(ScanFailure) as caught:
        read(data, media_type)
    assert caught.value.reason == reasons.CANNOT_UNDERSTAND


def test_progressive_jpeg_goes_into_the_only_syntax_there_is() -> None:
    out = io.BytesIO()
    Image.fromarray(GREY).save(out, "JPEG", progressive=True)
    assert read(out.getvalue(), "image/jpeg").transfer_syntax_uids[0] == "1.2.840.10008.1.2.4.55"
