"""Whatever the scan does not understand is cut off, or nothing that pydicom could read (decision 0060)."""

import io
from pathlib import Path

import pydicom
import pytest

from gantry_standard import reasons
from gantry_standard.dicom.limits import ScanFailure
from gantry_standard.dicom.scan import Scanner


def refusal(data: bytes) -> ScanFailure | None:
    scanner = Scanner(lambda _: None)
    try:
        scanner.feed(data)
        scanner.finish()
    except ScanFailure as failure:
        return failure
    return None


def is_read_by_pydicom(data: bytes) -> bool:
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        return all(dataset.get(name) for name in ("SOPClassUID", "SOPInstanceUID")) and len(list(dataset.iterall())) > 0
    except Exception:
        return False


@pytest.mark.filterwarnings("ignore")
def test_what_the_scan_does_not_understand_is_cut_off_or_pydicom_does_not_read_it(sample_files: list[Path]) -> None:
    refused = 0
    for path in sample_files:
        data = path.read_bytes()
        failure = refusal(data)
        if failure is None or failure.reason not in (reasons.CANNOT_UNDERSTAND, reasons.TRANSFER_SYNTAX_NOT_SUPPORTED):
            continue
        refused += 1
        assert "ends" in failure.message or not is_read_by_pydicom(data), f"{path.name}: {failure.message}"
    assert refused >= 3
