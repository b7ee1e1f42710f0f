"""The tables that are loaded without pydicom's package say what its functions say."""

import subprocess
import sys

import pytest
from pydicom import datadict
from pydicom._dicom_dict import DicomDictionary
from pydicom._uid_dict import UID_dictionary

from gantry_standard.dicom import pydicom_tables
from gantry_standard.dicom.pydicom_tables import attribute, tag_of

REPEATING = (0x60003000, 0x60FE3000, 0x50002500, 0x7F000010, 0x00203100)


@pytest.mark.parametrize("tag", [*list(DicomDictionary)[::7], *REPEATING], ids=lambda tag: f"{tag:08X}")
def test_row_is_what_pydicom_says(tag: int) -> None:
    row = attribute(tag)
    assert row is not None
    assert (row.vr, row.vm, row.name) == (datadict.dictionary_VR(tag), datadict.dictionary_VM(tag), datadict.dictionary_description(tag))
    assert row.keyword == datadict.keyword_for_tag(tag)


def test_private_and_unknown_attributes_have_no_row() -> None:
    assert attribute(0x00091001) is None
    assert attribute(0x00080007) is None


def test_keyword_leads_to_its_tag() -> None:
    assert tag_of("PatientName") == "00100010"
    with pytest.raises(KeyError):
        tag_of("PatientsName")


def test_uids_are_those_of_pydicom() -> None:
    assert UID_dictionary == pydicom_tables.UIDS


@pytest.mark.parametrize("service", ["gateway", "blob", "index", "workflow"])
def test_service_starts_without_importing_pydicom_or_numpy(service: str) -> None:
    code = f"import sys, gantry_{service}.main; print(*sorted({{'pydicom', 'numpy', 'aiohttp', 'requests'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
