"""The DICOMDIR that archives hold: read back with pydicom, offsets followed by hand."""

import io

import pydicom
import pytest
from pydicom import uid as uids

from gantry_standard.dicom import dicomdir
from gantry_standard.dicom.dicomdir import Directory, record_type

LE = "1.2.840.10008.1.2.1"
CT = "1.2.840.10008.5.1.4.1.1.2"


def element(vr: str, *values: object) -> dict[str, object]:
    return {"vr": vr, "Value": list(values)}


STUDY = {
    "00100010": element("PN", {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}),
    "00100020": element("LO", "P1"),
    "00080020": element("DA", "20240131"),
    "0020000D": element("UI", "1.2.3"),
    "0020000E": element("UI", "1.2.3.4"),
    "00080060": element("CS", "CT"),
}


def made() -> bytes:
    directory = Directory("2.25.1")
    directory.add_study(STUDY)
    for series in (1, 2):
        directory.add_series({**STUDY, "00200011": element("IS", 7)} if series == 1 else STUDY)
        for place in (1, 2, 3):
            directory.add_instance(STUDY, "IMAGE", f"S000{series}/I000000{place}", CT, f"1.2.3.4.{series}.{place}", LE)
    written = b"".join(directory.pieces())
    assert len(written) == directory.length
    return written


def test_the_records_are_there_with_their_keys() -> None:
    read = pydicom.dcmread(io.BytesIO(made()))
    assert read.file_meta.MediaStorageSOPClassUID == uids.MediaStorageDirectoryStorage
    patient, study, series, image = read.DirectoryRecordSequence[:4]
    assert patient.SpecificCharacterSet == "ISO_IR 192"
    assert patient.PatientName == "Yamada^Tarou=山田^太郎"
    assert "SpecificCharacterSet" not in study
    assert (study.StudyInstanceUID, study.StudyDate, study.StudyTime, study.StudyID) == ("1.2.3", "20240131", "", "")
    assert (series.SeriesNumber, read.DirectoryRecordSequence[6].SeriesNumber) == (7, 2)
    assert (image.InstanceNumber, list(image.ReferencedFileID)) == (1, ["S0001", "I0000001"])
    assert (image.ReferencedSOPInstanceUIDInFile, image.ReferencedTransferSyntaxUIDInFile) == ("1.2.3.4.1.1", LE)


def test_offsets_lead_from_record_to_record() -> None:
    read = pydicom.dcmread(io.BytesIO(made()))
    by_place = {record.seq_item_tell: record for record in read.DirectoryRecordSequence}

    def chain(at: int) -> list[pydicom.Dataset]:
        found = []
        while at:
            found.append(by_place[at])
            at = found[-1].OffsetOfTheNextDirectoryRecord
        return found

    (patient,) = chain(read.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity)
    assert read.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity == patient.seq_item_tell
    (study,) = chain(patient.OffsetOfReferencedLowerLevelDirectoryEntity)
    series = chain(study.OffsetOfReferencedLowerLevelDirectoryEntity)
    assert [one.SeriesNumber for one in series] == [7, 2]
    for number, one in enumerate(series, 1):
        images = chain(one.OffsetOfReferencedLowerLevelDirectoryEntity)
        assert [image.ReferencedSOPInstanceUIDInFile for image in images] == [f"1.2.3.4.{number}.{place}" for place in (1, 2, 3)]
        assert {image.OffsetOfReferencedLowerLevelDirectoryEntity for image in images} == {0}


@pytest.mark.parametrize(
    ("sop_class", "kind"),
    [
        (uids.CTImageStorage, "IMAGE"),
        (uids.SegmentationStorage, "IMAGE"),
        (uids.RTImageStorage, "IMAGE"),
        (uids.MRSpectroscopyStorage, "SPECTROSCOPY"),
        (uids.TwelveLeadECGWaveformStorage, "WAVEFORM"),
        (uids.GrayscaleSoftcopyPresentationStateStorage, "PRESENTATION"),
        (uids.RawDataStorage, "RAW DATA"),
        (uids.SpatialRegistrationStorage, "REGISTRATION"),
        (uids.SpatialFiducialsStorage, "FIDUCIAL"),
        (uids.BasicTextSRStorage, "SR DOCUMENT"),
        (uids.SpectaclePrescriptionReportStorage, "SR DOCUMENT"),
        (uids.KeyObjectSelectionDocumentStorage, "KEY OBJECT DOC"),
        (uids.EncapsulatedPDFStorage, "ENCAP DOC"),
        (uids.RTDoseStorage, "RT DOSE"),
        (uids.RTPlanStorage, "RT PLAN"),
        (uids.RTStructureSetStorage, "RT STRUCTURE SET"),
        ("1.2.3.4", "PRIVATE"),
    ],
)
def test_record_type_of_a_sop_class(sop_class: str, kind: str) -> None:
    assert record_type(sop_class, has_pixel_data=kind == "IMAGE") == kind
    assert kind in dicomdir.RECORD_KEYS


@pytest.mark.parametrize("kind", sorted(dicomdir.RECORD_KEYS))
def test_every_record_can_be_written_of_an_instance_without_attributes(kind: str) -> None:
    directory = Directory("2.25.1")
    directory.add_study({})
    directory.add_series({})
    directory.add_instance({}, kind, "S0001/I0000001", CT, "1.2.3", LE)
    read = pydicom.dcmread(io.BytesIO(b"".join(directory.pieces())))
    assert read.DirectoryRecordSequence[3].DirectoryRecordType == kind
