"""Instances of others: every file that pydicom ships and, where GANTRY_TEST_SAMPLES names a folder, those in it."""

import os
from functools import cache
from pathlib import Path

from pydicom.data import get_testdata_files

_NOT_DICOM = {".py", ".md", ".tsv", ".txt", ".png", ".json", ".zip", ".gz", ".dump", ".icc", ".sh"}
LARGEST_BYTES = 40 << 20


@cache
def sample_files() -> list[Path]:
    """Return the paths, sorted; not all of them are whole, or instances at all."""
    found = {Path(name) for name in get_testdata_files()}
    if samples := os.environ.get("GANTRY_TEST_SAMPLES"):
        found |= set(Path(samples).rglob("*"))
    return sorted(path for path in found if path.is_file() and path.suffix not in _NOT_DICOM and path.stat().st_size < LARGEST_BYTES)
