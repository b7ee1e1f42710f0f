"""The scan against pydicom, over every file that pydicom ships and, where GANTRY_TEST_SAMPLES names a folder, over those."""

import base64
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pydicom
import pytest
from pydicom.encaps import generate_frames

from gantry_standard import reasons
from gantry_standard.dicom.scan import ScanFailure
from gantry_standard.dicom.scanned import EncapsulatedFrames, NativeFrames
from gantry_standard.dicom.transfer_syntaxes import TRANSFER_SYNTAXES
from tests.support.pydicom_json import NO_VALUE_FOR_PYDICOM, READ_OTHERWISE, comparable, is_private, json_of_pydicom, read
from tests.support.sample_files import LONG_VALUES, REFUSED, UIDS, each_sample_file
from tests.support.scanning import Scan, scan

_BULK_URI = b"http://archive"


@pytest.fixture(autouse=True)
def _pydicom_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _scan_storable(path: Path) -> Scan:
    data = path.read_bytes()
    if path.name not in REFUSED and all(read(data).get(keyword) for keyword in UIDS):
        return scan(data)
    with pytest.raises(ScanFailure) as caught:
        scan(data)
    assert caught.value.reason == REFUSED.get(path.name, (reasons.REQUIRED_UID_MISSING, ""))[0]
    pytest.skip(f"refused: {caught.value}")


_EACH_FILE = each_sample_file()


@_EACH_FILE
def test_metadata_is_that_of_pydicom(path: Path) -> None:
    found = _scan_storable(path)
    json = found.scanned.dicom_json.replace(b"\x00", _BULK_URI)
    ours = comparable(_with_bulk_inlined(found, orjson.loads(json)))
    theirs = json_of_pydicom(found.original)
    skipped = set(ours) - set(theirs)
    assert skipped <= NO_VALUE_FOR_PYDICOM.get(path.name, set())
    read_otherwise = set(theirs) if path.name in READ_OTHERWISE else set()
    for tag in skipped | read_otherwise:
        if tag in skipped or is_private(tag):
            ours.pop(tag)
            theirs.pop(tag, None)
    assert ours == theirs


@_EACH_FILE
def test_keys_ascend_and_bulk_lies_where_the_table_says(path: Path) -> None:
    found = _scan_storable(path)
    json = found.scanned.dicom_json.replace(b"\x00", _BULK_URI)
    _check_order(
        orjson.loads(
            json,
        )
    )
    prefix = (
        f"/studies/{found.scanned.study_instance_uid}/series/{found.scanned.series_instance_uid}"
        f"/instances/{found.scanned.sop_instance_uid}/bulkdata/"
    ).encode()
    for element in found.scanned.bulk:
        assert b'"\x00' + prefix + element.path.encode() + b'"' in found.scanned.dicom_json
    assert found.scanned.dicom_json.count(b"\x00") == len(found.scanned.bulk)


@_EACH_FILE
def test_wire_holds_the_same_data_set(path: Path) -> None:
    found = _scan_storable(path)
    wire = read(found.wire)
    assert found.wire[:132] == bytes(128) + b"DICM"
    assert wire.file_meta.TransferSyntaxUID == found.scanned.wire_transfer_syntax_uid
    assert wire.file_meta.MediaStorageSOPInstanceUID == found.scanned.sop_instance_uid
    assert not TRANSFER_SYNTAXES[found.scanned.wire_transfer_syntax_uid].is_deflated
    assert TRANSFER_SYNTAXES[found.scanned.wire_transfer_syntax_uid].is_explicit
    wire_json, original_json = json_of_pydicom(found.wire), json_of_pydicom(found.original)
    if path.name in READ_OTHERWISE:
        wire_json, original_json = (
            {tag: element for tag, element in json.items() if not is_private(tag)} for json in (wire_json, original_json)
        )
    assert wire_json == original_json


@_EACH_FILE
def test_frames_are_those_of_pydicom(path: Path) -> None:
    found = _scan_storable(path)
    data_set = read(found.wire)
    pixel_data = data_set.get("PixelData")
    frames = found.scanned.frames
    if frames is None:
        assert pixel_data is None or not data_set.get("Rows") or found.scanned.warning_reasons
        return
    if isinstance(frames.encoding, NativeFrames):
        value = pixel_data or data_set.get("FloatPixelData") or data_set.get("DoubleFloatPixelData")
        assert found.read(frames.encoding.span) == value
        assert frames.number_of_frames == _number_of_frames(path, data_set)
        assert math.ceil(frames.encoding.frame_bits * frames.number_of_frames / 8) <= len(value)
        assert len(value) - math.ceil(frames.encoding.frame_bits * frames.number_of_frames / 8) <= 1 or path.name in LONG_VALUES
        return
    assert isinstance(frames.encoding, EncapsulatedFrames)
    if TRANSFER_SYNTAXES[found.scanned.wire_transfer_syntax_uid].is_video:
        assert frames.number_of_frames == 1
        expected = [b"".join(generate_frames(pixel_data, number_of_frames=1))]
    else:
        expected = list(generate_frames(pixel_data, number_of_frames=_number_of_frames(path, data_set)))
    assert [found.frame(index) for index in range(frames.number_of_frames)] == expected


def _number_of_frames(path: Path, data_set: pydicom.Dataset) -> int:
    return 1 if path.name == "badVR.dcm" else int(data_set.get("NumberOfFrames") or 1)  # its Number of Frames is 1A


@_EACH_FILE
def test_pixel_element_is_whole(path: Path) -> None:
    found = _scan_storable(path)
    element = found.scanned.pixel_element
    if element is None:
        return
    header = found.scanned.pixel_element_header
    whole = (found.read(header) if header else b"") + found.read(element)
    tag = bytes.fromhex(found.scanned.pixel.tag)
    assert whole[:4] == tag[1::-1] + tag[:1:-1]
    assert whole[4:6].decode() == found.scanned.pixel.vr
    assert found.wire.count(whole) == 1


@_EACH_FILE
@pytest.mark.parametrize("chunk_bytes", [1, 7, 4096])
def test_chunks_make_no_difference(path: Path, chunk_bytes: int) -> None:
    if path.stat().st_size > (1 << 20 if chunk_bytes == 4096 else 100_000):
        pytest.skip("too large for chunks so small")
    whole = _scan_storable(path)
    in_chunks = scan(whole.original, chunk_bytes=chunk_bytes)
    assert in_chunks.scanned == whole.scanned
    assert in_chunks.rendition == whole.rendition


def _with_bulk_inlined(found: Scan, data_set: dict[str, Any]) -> dict[str, Any]:
    places = {element.path: element.value for element in found.scanned.bulk}

    def inline(element: dict[str, Any]) -> dict[str, Any]:
        if "BulkDataURI" in element:
            path = element["BulkDataURI"].split("/bulkdata/", 1)[1]
            return {"vr": element["vr"], "InlineBinary": base64.b64encode(found.read(places[path])).decode()}
        if element["vr"] == "SQ" and "Value" in element:
            return {"vr": "SQ", "Value": [{key: inline(value) for key, value in item.items()} for item in element["Value"]]}
        return element

    return {key: inline(value) for key, value in data_set.items()}


def _check_order(data_set: dict[str, Any]) -> None:
    assert list(data_set) == sorted(data_set)
    for element in data_set.values():
        if element["vr"] == "SQ":
            for item in element.get("Value", []):
                _check_order(item)
