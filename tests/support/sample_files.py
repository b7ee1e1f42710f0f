"""Sample files: those that pydicom and pydicom-data ship and, if GANTRY_TEST_SAMPLES names a folder, those in it."""

import importlib.util
import os
import warnings
import zlib
from functools import cache
from pathlib import Path

import pydicom
import pytest

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
    """Return the paths, one for each content. Some files are truncated or are not DICOM. Nothing is downloaded."""
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


def each_sample_file() -> pytest.MarkDecorator:
    """Return the mark that runs a test with each sample file as `path`: `make test` takes the representative ones, `make test-all` all."""
    wanted = representative()
    return pytest.mark.parametrize(
        "path", [pytest.param(path, id=path.name, marks=() if path in wanted else pytest.mark.thorough) for path in sample_files()]
    )


@cache
def representative() -> frozenset[Path]:
    """Return a subset in which each transfer syntax, SOP class, character set and pixel format of the files occurs at least once.

    The files are taken in order of size. A file is in the subset if it has something that no smaller file has, or if REFUSED or
    LONG_VALUES names it.
    """
    wanted, seen = set(), set[object]()
    for path in sorted(sample_files(), key=lambda path: (path.stat().st_size, path.name)):
        features = _features(path)
        if not features <= seen or path.name in REFUSED or path.name in LONG_VALUES:
            wanted.add(path)
            seen |= features
    return frozenset(wanted)


def _features(path: Path) -> set[object]:
    """Return what distinguishes a file from others, as pydicom reads it; for a file that it cannot read, the kind of its error."""
    keywords = ["SOPClassUID", "SpecificCharacterSet", "PhotometricInterpretation", "BitsAllocated", "PixelRepresentation"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=keywords)
            pixels = tuple(str(read.get(keyword)) for keyword in keywords[2:])
            return {("syntax", str(read.file_meta.get("TransferSyntaxUID"))), pixels} | {(key, str(read.get(key))) for key in keywords[:2]}
    except Exception as error:
        return {type(error)}
