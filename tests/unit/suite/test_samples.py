"""The samples that a suite loads are found without importing pydicom."""

import pydicom
import pydicom.data

from gantry_suite import samples


def test_files_are_the_ones_that_pydicom_ships() -> None:
    found = samples.files()
    assert len(found) > 100
    assert pydicom.data.get_testdata_file("CT_small.dcm", download=False) in map(str, found)


def test_shown_sample_has_the_uids_that_the_commands_name() -> None:
    (file,) = (path for path in samples.files() if path.name == samples.SHOWN)
    head = pydicom.dcmread(file, stop_before_pixels=True)
    assert (head.StudyInstanceUID, head.SeriesInstanceUID, head.SOPInstanceUID) == samples.SHOWN_UIDS
