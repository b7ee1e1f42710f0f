"""Documents of every file that the scan reads: their structure, and their values by a reader that shares nothing with ours.

The DICOM JSON that they are compared with is compared with pydicom in `test_scan_against_pydicom`.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from gantry_standard.dicom.native_xml import to_json_model, write, write_encoded
from gantry_standard.dicom.scan import ScanFailure
from tests.support import native_xml
from tests.support.sample_files import each_sample_file
from tests.support.scanning import scan


def _dicom_json(path: Path) -> bytes:
    try:
        found = scan(path.read_bytes()).scanned.dicom_json
    except ScanFailure as failure:
        pytest.skip(f"not read: {failure}")
    return found.replace(b"\0", b"http://archive/dicom-web")


def _in_strings(dicom_json: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(dicom_json, parse_int=str, parse_float=str)
    return found


@each_sample_file()
def test_a_file_is_the_same_data_set_in_xml(path: Path) -> None:
    dicom_json = _dicom_json(path)
    model = _in_strings(dicom_json)
    assert b"".join(write_encoded(dicom_json)) == write(model)
    kept = native_xml.without_orphans(model)
    document = write(kept)
    found = native_xml.read(native_xml.checked(document))
    assert found == native_xml.expected(kept)
    # And our own reader finds the same, whatever blocks it chooses.
    assert _with_floats(native_xml.expected(_as_strings(to_json_model(document)))) == _with_floats(found)


def _as_strings(value: Any) -> Any:
    return _in_strings(json.dumps(value).encode())


def _with_floats(data_set: dict[str, Any]) -> dict[str, Any]:
    """Return a data set whose FL and FD are numbers: 0.00001 and 1e-05 are one."""
    made = {}
    for key, element in data_set.items():
        if element["vr"] in ("FL", "FD") and "Value" in element:
            element = element | {"Value": [value and float(value) for value in element["Value"]]}
        elif element["vr"] == "SQ" and "Value" in element:
            element = element | {"Value": [_with_floats(item) for item in element["Value"]]}
        made[key] = element
    return made
