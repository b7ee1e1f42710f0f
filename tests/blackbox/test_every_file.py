"""Every file at hand through the whole suite: stored, exported, retrieved as stored, as metadata, as bulkdata, as frames, re-encoded.

pydicom and its decoders, which share nothing with ours, say what is right. What is refused or cannot be compared is listed by the name
of the file, here and in `tests/support`; a file that is neither stored nor listed fails.
"""

import base64
import io
import json
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.pixels import pixel_array
from pydicom.uid import UID

from gantry_suite import main as gantry
from tests.support import native_xml
from tests.support.dicomweb import AS_STORED, DICOM, EXPLICIT_LE, JSON, OCTETS, OCTETS_AS_STORED, DicomWeb, items, parts_of, value
from tests.support.pydicom_json import NO_VALUE_FOR_PYDICOM, READ_OTHERWISE, comparable, is_private, json_of_pydicom
from tests.support.sample_files import LONG_VALUES, REFUSED, UIDS, each_sample_file
from tests.support.suite import Suite

XML = 'multipart/related; type="application/dicom+xml"'
NEVER_ON_THE_WIRE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.2"}
DEFLATED = "1.2.840.10008.1.2.1.99"
LOSSLESS = {
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.70": "JPEG lossless",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "HTJ2K",
}
DISTRIBUTED_ONE_IN = 6

COMMON = {"MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR"}
VIDEO = {f"1.2.840.10008.1.2.4.{number}" for number in (100, 101, 102, 103, 104, 105, 106, 107, 108)}
LOSSY = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 93, 203, 112)}

ORPHANS = {"17106", "17136", "17166", "17196", "waveform_ecg.dcm"}
"""Private elements without a creator: PS3.19 has no form for them, they leave with their tag as it is."""

LOSSY_IN_LOSSLESS = {"sample-op.dcm": "lossy JPEG that calls itself lossless"}


@pytest.fixture(autouse=True)
def _pydicom_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read(content: bytes) -> pydicom.Dataset:
    """Read a file with pydicom."""
    return pydicom.dcmread(io.BytesIO(content), force=True)


def without_head(content: bytes) -> bytes:
    """Return the data set of a file as it is encoded."""
    file = io.BytesIO(content)
    read_preamble(file, force=True)
    _read_file_meta_info(file)
    return content[file.tell() :]


def is_encapsulated(data_set: pydicom.Dataset) -> bool:
    """Say whether pixel data is in frames of a bit stream."""
    return bool(data_set.get("PixelData")) and data_set["PixelData"].is_undefined_length


def number_of_frames(path: Path, data_set: pydicom.Dataset) -> int:
    """Return Number of Frames, 1 where it is absent."""
    return 1 if path.name == "badVR.dcm" else int(data_set.get("NumberOfFrames") or 1)  # its Number of Frames is 1A


def is_expected_to_be_refused(path: Path, content: bytes) -> bool:
    """Say whether a file is listed, or lacks a UID."""
    try:
        data_set = read(content)
        return path.name in REFUSED or not all(data_set.get(keyword) for keyword in UIDS)
    except Exception:
        return True


@each_sample_file()
def test_file_comes_back_as_it_was_sent(suite: Suite, dicomweb: DicomWeb, path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    if suite.settings["GANTRY_OBJECT_STORE"] == "s3" and zlib.crc32(content) % DISTRIBUTED_ONE_IN:
        pytest.skip(f"one file in {DISTRIBUTED_ONE_IN} on S3 and Elasticsearch: above the ports nothing differs")
    answer = dicomweb.stow(content)
    if answer.status_code == 409:
        assert is_expected_to_be_refused(path, content), answer.text
        pytest.skip(f"refused: {REFUSED.get(path.name, (0, 'a UID is missing'))[1]}")
    assert answer.status_code in (200, 202), answer.text
    (reference,) = items(answer.json(), "00081199")
    url = value(reference, "00081190")
    try:
        _check_stored(dicomweb, url, path, content)
        _check_export(suite, value(reference, "00081155"), content, tmp_path)
        _check_metadata(dicomweb, url, path, content)
        _check_pixels(dicomweb, url, path, content)
    finally:
        # Some files share a UID.
        assert dicomweb.request("DELETE", url).status_code == 204


def _check_stored(dicomweb: DicomWeb, url: str, path: Path, content: bytes) -> None:
    (part,) = dicomweb.parts(url, AS_STORED)
    sent = read(content)
    syntax = str(sent.file_meta.get("TransferSyntaxUID", "1.2.840.10008.1.2"))
    assert part.content[:132] == bytes(128) + b"DICM"
    assert read(part.content).file_meta.TransferSyntaxUID == part.transfer_syntax
    if syntax == DEFLATED:
        assert part.transfer_syntax == EXPLICIT_LE
        assert without_head(part.content) == zlib.decompress(without_head(content), -zlib.MAX_WBITS)
    elif syntax in NEVER_ON_THE_WIRE or not without_head(content)[4:6].isalpha():
        # Implicit VR also where group 2 says otherwise.
        assert part.transfer_syntax == (EXPLICIT_LE if syntax in NEVER_ON_THE_WIRE else syntax)
        assert _json(part.content, path) == _json(content, path)
    else:
        assert part.transfer_syntax == syntax
        assert without_head(part.content) == without_head(content)


def _json(content: bytes, path: Path) -> dict[str, Any]:
    found = json_of_pydicom(content)
    return {tag: element for tag, element in found.items() if not is_private(tag)} if path.name in READ_OTHERWISE else found


def _check_export(suite: Suite, uid: str, content: bytes, tmp_path: Path) -> None:
    assert gantry.main(["export", uid, str(tmp_path / "exported"), "--data", str(suite.data)]) == 0
    assert (tmp_path / "exported").read_bytes() == content


def _check_metadata(dicomweb: DicomWeb, url: str, path: Path, content: bytes) -> None:
    response = dicomweb.get(f"{url}/metadata", JSON)
    (data_set,) = response.json()
    # Frames of compressed pixel data are looked at by themselves.
    apart = {"7FE00010"} if is_encapsulated(read(content)) else set()
    ours = comparable(_with_bulkdata(dicomweb, {tag: element for tag, element in data_set.items() if tag not in apart}))
    theirs = json_of_pydicom(content)
    for tag in apart | NO_VALUE_FOR_PYDICOM.get(path.name, set()):
        ours.pop(tag, None)
        theirs.pop(tag, None)
    if path.name in READ_OTHERWISE:
        ours, theirs = ({tag: element for tag, element in one.items() if not is_private(tag)} for one in (ours, theirs))
    assert ours == theirs
    (document,) = dicomweb.parts(f"{url}/metadata", XML)
    in_strings = json.loads(response.content, parse_int=str, parse_float=str)[0]
    root = native_xml.ElementTree.fromstring(document.content)
    if path.name not in ORPHANS:
        native_xml.checked(document.content)
    expected = native_xml.expected(native_xml.without_orphans(in_strings))
    assert {key: element for key, element in native_xml.read(root).items() if key in expected or path.name not in ORPHANS} == expected


def _with_bulkdata(dicomweb: DicomWeb, data_set: dict[str, Any]) -> dict[str, Any]:
    """Put the bytes of every BulkDataURI in its place."""
    found = {}
    for tag, element in data_set.items():
        if uri := element.get("BulkDataURI"):
            found[tag] = {"vr": element["vr"], "InlineBinary": base64.b64encode(_bulkdata(dicomweb, uri)).decode()}
        elif element["vr"] == "SQ" and "Value" in element:
            found[tag] = element | {"Value": [_with_bulkdata(dicomweb, item) for item in element["Value"]]}
        else:
            found[tag] = element
    return found


def _bulkdata(dicomweb: DicomWeb, uri: str) -> bytes:
    response = dicomweb.get(uri, "application/octet-stream")
    assert response.status_code == 200, f"{uri} {response.text[:300]}"
    return response.content


def _check_pixels(dicomweb: DicomWeb, url: str, path: Path, content: bytes) -> None:
    sent = read(content)
    if not any(keyword in sent for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")) or "Rows" not in sent:
        assert dicomweb.get(f"{url}/frames/1", OCTETS).status_code == 404
        return
    syntax = UID(sent.file_meta.get("TransferSyntaxUID", "1.2.840.10008.1.2"))
    many = number_of_frames(path, sent)
    numbers = ",".join(str(number) for number in range(1, many + 1))
    if is_encapsulated(sent) and syntax not in VIDEO:
        stored = dicomweb.parts(f"{url}/frames/{numbers}", OCTETS_AS_STORED)
        assert [part.transfer_syntax for part in stored] == [syntax] * many
        assert [part.content for part in stored] == list(generate_frames(sent.PixelData, number_of_frames=many))
    theirs = _decoded(sent)
    response = dicomweb.get(url, f"{DICOM}; transfer-syntax={EXPLICIT_LE}")
    if theirs is None:
        # What pydicom cannot decode may still be decoded by us; then nobody here can judge.
        assert response.status_code in (200, 406)
        return
    assert response.status_code == 200, response.text
    transcoded = read(parts_of(response)[0].content)
    _compare(path, syntax, transcoded, theirs)
    pixels = transcoded.get("PixelData") or transcoded.get("FloatPixelData") or transcoded.get("DoubleFloatPixelData")
    frames = [part.content for part in dicomweb.parts(f"{url}/frames/{numbers}", OCTETS)]
    if transcoded.BitsAllocated != 1:
        assert b"".join(frames) == pixels[: sum(map(len, frames))]
        assert len(pixels) - sum(map(len, frames)) <= (1 if path.name not in LONG_VALUES else len(pixels))
    _check_encoded_again(dicomweb, url, path, transcoded)


def _decoded(data_set: pydicom.Dataset) -> NDArray[Any] | None:
    """Return all samples, colour as RGB; None where pydicom cannot decode them."""
    try:
        return pixel_array(data_set)
    except Exception:
        return None


def _compare(path: Path, syntax: UID, transcoded: pydicom.Dataset, theirs: NDArray[Any]) -> None:
    ours = _decoded(transcoded)
    assert ours is not None
    assert ours.shape == theirs.shape
    if ours.dtype.kind == "f":
        assert np.array_equal(ours, theirs, equal_nan=True)
        return
    difference = np.abs(ours.astype(np.int64) - theirs.astype(np.int64))
    if syntax in LOSSY or path.name in LOSSY_IN_LOSSLESS:
        is_colour = transcoded.SamplesPerPixel > 1
        assert (difference > 3).mean() <= 0.001 if is_colour else difference.max() <= 1
    else:
        assert difference.max() == 0


def _check_encoded_again(dicomweb: DicomWeb, url: str, path: Path, transcoded: pydicom.Dataset) -> None:
    """Ask for one lossless transfer syntax, another one for each file, and compare what pydicom decodes of it."""
    target = sorted(LOSSLESS)[zlib.crc32(path.name.encode()) % len(LOSSLESS)]
    response = dicomweb.get(url, f"{DICOM}; transfer-syntax={target}")
    if response.status_code == 406:
        assert (
            "PixelData" not in transcoded or transcoded.BitsAllocated not in (8, 16) or transcoded.PhotometricInterpretation not in COMMON
        )
        return
    encoded = read(parts_of(response)[0].content)
    assert encoded.file_meta.TransferSyntaxUID == target
    assert np.array_equal(_without_unused_bits(transcoded), _without_unused_bits(encoded))


def _without_unused_bits(data_set: pydicom.Dataset) -> NDArray[Any]:
    """Return samples as decoded, signed ones extended from Bits Stored, which pydicom does in native pixel data only."""
    samples = pixel_array(data_set, raw=True)
    unused = data_set.BitsAllocated - data_set.BitsStored
    if not data_set.PixelRepresentation or data_set.HighBit != data_set.BitsStored - 1:
        return samples
    return np.right_shift(np.left_shift(samples, unused), unused)
