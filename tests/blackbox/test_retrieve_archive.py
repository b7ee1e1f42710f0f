"""A study or a series as a ZIP archive: files, a DICOMDIR that leads to them, an index for people."""

import io
import zipfile
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet

from tests.support import instances
from tests.support.dicomweb import AS_STORED, DicomWeb
from tests.support.instances import ENCAPSULATED

ZIP = "application/zip"


def a_study(dicomweb: DicomWeb) -> list[Dataset]:
    """Store a study: series 1 with two images, one in Implicit VR; series 2 in JPEG 2000; series 3 a report."""
    study, series = instances.new_uid(), instances.new_uid()
    name = "Müller^Jürgen"
    one, two = (
        instances.ct(StudyInstanceUID=study, SeriesInstanceUID=series, InstanceNumber=number, PatientName=name) for number in (1, 2)
    )
    compressed = instances.encapsulated("jpeg 2000", StudyInstanceUID=study, SeriesNumber=2, PatientName=name)
    report = instances.general(instances.BASIC_TEXT_SR, "SR", StudyInstanceUID=study, SeriesNumber=3, PatientName=name)
    report.CompletionFlag, report.VerificationFlag, report.ContentDate, report.ContentTime = "COMPLETE", "UNVERIFIED", "20240131", "1015"
    title = Dataset()
    title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning = "18748-4", "LN", "Röntgen"
    report.ConceptNameCodeSequence = [title]
    dicomweb.store(
        instances.encoded(one),
        instances.encoded(two, instances.NATIVE["implicit"]),
        instances.encoded(compressed, ENCAPSULATED["jpeg 2000"]),
        instances.encoded(report),
    )
    return [one, two, compressed, report]


def opened(response: httpx.Response) -> zipfile.ZipFile:
    """Open an archive whose length was told and whose check sums are right."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == ZIP
    assert int(response.headers["content-length"]) == len(response.content)
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    assert archive.testzip() is None
    return archive


@pytest.mark.distributed
def test_a_study_is_an_archive_of_its_files_as_they_leave_as_stored(dicomweb: DicomWeb) -> None:
    data_sets = a_study(dicomweb)
    archive = opened(dicomweb.get(instances.study_resource(data_sets[0]), ZIP))
    names = ["INDEX.txt", "DICOMDIR", "S0001/I0000001", "S0001/I0000002", "S0002/I0000001", "S0003/I0000001"]
    assert archive.namelist() == names
    for name, data_set in zip(names[2:], data_sets, strict=True):
        assert archive.read(name) == dicomweb.parts(instances.resource(data_set), AS_STORED)[0].content
        assert archive.getinfo(name).compress_type == zipfile.ZIP_STORED
    text = archive.read("INDEX.txt").decode()
    assert "Müller^Jürgen" in text
    for name, data_set in zip(names[2:], data_sets, strict=True):
        (line,) = [line for line in text.splitlines() if line.startswith(name)]
        assert data_set.SOPInstanceUID in line
    assert "S0003/I0000001  instance 1  Basic Text SR Storage" in text


def test_a_series_is_an_archive_of_its_own(dicomweb: DicomWeb) -> None:
    data_sets = a_study(dicomweb)
    response = dicomweb.get(f"{instances.series_resource(data_sets[0])}?accept=application/zip", "text/html,*/*;q=0.8")
    assert opened(response).namelist() == ["INDEX.txt", "DICOMDIR", "S0001/I0000001", "S0001/I0000002"]
    assert response.headers["content-disposition"] == f'attachment; filename="{data_sets[0].SeriesInstanceUID}.zip"'
    head = dicomweb.request("HEAD", instances.series_resource(data_sets[0]), ZIP)
    assert head.headers["content-length"] == str(len(response.content))
    again = dicomweb.get(instances.series_resource(data_sets[0]), ZIP, {"If-None-Match": response.headers["etag"]})
    assert again.status_code == 304


def test_the_directory_leads_to_every_file(dicomweb: DicomWeb, tmp_path: Path) -> None:
    data_sets = a_study(dicomweb)
    opened(dicomweb.get(instances.study_resource(data_sets[0]), ZIP)).extractall(tmp_path)
    directory = pydicom.dcmread(tmp_path / "DICOMDIR")
    kinds = [record.DirectoryRecordType for record in directory.DirectoryRecordSequence]
    assert kinds == ["PATIENT", "STUDY", "SERIES", "IMAGE", "IMAGE", "SERIES", "IMAGE", "SERIES", "SR DOCUMENT"]
    patient, report = directory.DirectoryRecordSequence[0], directory.DirectoryRecordSequence[-1]
    assert (patient.PatientName, patient.PatientID) == ("Müller^Jürgen", "P-1")
    assert report.ConceptNameCodeSequence[0].CodeMeaning == "Röntgen"
    assert (report.CompletionFlag, report.ContentTime) == ("COMPLETE", "1015")
    file_set = FileSet(directory)
    file_set._stage["t"].cleanup()  # pydicom makes one for every file-set and leaves it to the garbage collector
    found = {instance.SOPInstanceUID: instance for instance in file_set}
    assert set(found) == {data_set.SOPInstanceUID for data_set in data_sets}
    for data_set in data_sets:
        instance = found[data_set.SOPInstanceUID]
        read = instance.load()
        assert read.SOPInstanceUID == data_set.SOPInstanceUID
        assert read.file_meta.TransferSyntaxUID == instance.ReferencedTransferSyntaxUIDInFile
        assert instance.SeriesInstanceUID == data_set.SeriesInstanceUID
        assert instance.StudyID == "S-1"


@pytest.mark.parametrize("accept", ["application/zip; transfer-syntax=1.2.840.10008.1.2.1", "application/zip;q=0"])
def test_an_archive_is_as_stored_or_not_at_all(dicomweb: DicomWeb, accept: str) -> None:
    data_sets = a_study(dicomweb)
    assert dicomweb.get(instances.study_resource(data_sets[0]), accept).status_code == 406
    assert dicomweb.get(instances.resource(data_sets[0]), ZIP).status_code == 406
