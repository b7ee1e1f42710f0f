"""Instances of others: the files that pydicom and pydicom-data ship and, where GANTRY_TEST_SAMPLES names a folder, those in it."""

import importlib.util
import os
import zlib
from functools import cache
from pathlib import Path

from gantry_standard import reasons

_FOLDERS = (("pydicom", "data/test_files"), ("pydicom", "data/charset_files"), ("data_store", "data"))
_NOT_DICOM = {".py", ".md", ".tsv", ".txt", ".png", ".json", ".zip", ".gz", ".dump", ".icc", ".sh"}
LARGEST_BYTES = 40 << 20

UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
"""What an instance must have; files without are refused."""

REFUSED = {
    "rtplan_truncated.dcm": (reasons.CANNOT_UNDERSTAND, "truncated"),
    "MR_truncated.dcm": (reasons.CANNOT_UNDERSTAND, "truncated"),
    "emri_small_jpeg_2k_lossless_too_short.dcm": (reasons.CANNOT_UNDERSTAND, "truncated"),
    "GH364.dcm": (reasons.CANNOT_UNDERSTAND, "a length that reaches past the end; pydicom cannot iterate it either"),
    "DICOMDIR-nooffset": (reasons.CANNOT_UNDERSTAND, "no instance"),
    "README": (reasons.CANNOT_UNDERSTAND, "no DICOM"),
    "meta_missing_tsyntax.dcm": (reasons.CANNOT_UNDERSTAND, "nothing says in which transfer syntax"),
    "no_meta.dcm": (reasons.CANNOT_UNDERSTAND, "nothing says in which transfer syntax"),
    "bad_sequence.dcm": (reasons.INVALID_SOP_INSTANCE, "a sequence that does not end where it says"),
}
"""Files that pydicom reads although they are not whole, or cannot be told apart from what they are not: failure reason, and why."""

LONG_VALUES = {"MR_small_padded.dcm", "badVR.dcm"}
"""More bytes of Pixel Data than the frames need."""


@cache
def sample_files() -> list[Path]:
    """Return the paths, equal contents once; not all of them are whole, or instances at all. Nothing is downloaded."""
    folders = [folder / below for name, below in _FOLDERS for folder in _places(name)]
    folders += [Path(more)] if (more := os.environ.get("GANTRY_TEST_SAMPLES")) else []
    found: dict[tuple[int, int], Path] = {}
    for path in (path for folder in folders for path in sorted(folder.rglob("*"))):
        if path.is_file() and path.suffix not in _NOT_DICOM and (size := path.stat().st_size) < LARGEST_BYTES:
            found.setdefault((size, zlib.crc32(path.read_bytes())), path)
    return list(found.values())


def _places(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
