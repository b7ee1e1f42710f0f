"""The Python package dicomweb-client as a real client: store, search, metadata, frames, bulkdata, rendered."""

import io
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from PIL import Image

from tests.support import instances
from tests.support.suite import Suite


@pytest.fixture
def client(suite: Suite) -> Iterator[DICOMwebClient]:
    """A client of the suite."""
    made = DICOMwebClient(url=suite.url)
    yield made
    made._session.close()


def test_what_is_stored_is_found_and_retrieved(client: DICOMwebClient) -> None:
    data_sets = [pydicom.dcmread(io.BytesIO(instances.encoded(instances.ct(PatientID="client")))) for _ in range(2)]
    answer = client.store_instances(data_sets)
    assert len(answer.ReferencedSOPSequence) == 2
    data_set = data_sets[0]
    (study,) = client.search_for_studies(search_filters={"StudyInstanceUID": data_set.StudyInstanceUID, "PatientID": "client"})
    assert study["0020000D"]["Value"] == [data_set.StudyInstanceUID]
    (series,) = client.search_for_series(data_set.StudyInstanceUID)
    assert series["0020000E"]["Value"] == [data_set.SeriesInstanceUID]
    (instance,) = client.search_for_instances(data_set.StudyInstanceUID, data_set.SeriesInstanceUID)
    assert instance["00080018"]["Value"] == [data_set.SOPInstanceUID]
    uids = (data_set.StudyInstanceUID, data_set.SeriesInstanceUID, data_set.SOPInstanceUID)
    metadata = client.retrieve_instance_metadata(*uids)
    assert metadata["00100020"]["Value"] == ["client"]
    assert len(client.retrieve_study_metadata(data_set.StudyInstanceUID)) == 1
    assert len(client.retrieve_series_metadata(*uids[:2])) == 1
    retrieved = client.retrieve_instance(*uids)
    assert (retrieved.pixel_array == instances.ct_pixels()).all()
    assert len(client.retrieve_study(data_set.StudyInstanceUID)) == 1
    assert len(list(client.iter_series(*uids[:2]))) == 1


def test_frames_and_bulkdata_are_retrieved(client: DICOMwebClient) -> None:
    data_set = pydicom.dcmread(io.BytesIO(instances.encoded(instances.multi_frame())))
    client.store_instances([data_set])
    uids = (data_set.StudyInstanceUID, data_set.SeriesInstanceUID, data_set.SOPInstanceUID)
    frames = client.retrieve_instance_frames(*uids, frame_numbers=[1, 4])
    assert frames == [instances.frame_pixels()[0].tobytes(), instances.frame_pixels()[3].tobytes()]
    uri = client.retrieve_instance_metadata(*uids)["7FE00010"]["BulkDataURI"]
    assert b"".join(client.retrieve_bulkdata(uri)) == data_set.PixelData


def test_compressed_frames_are_retrieved_as_stored(client: DICOMwebClient) -> None:
    data_set = pydicom.dcmread(io.BytesIO(instances.encoded(instances.encapsulated("jpeg"), instances.ENCAPSULATED["jpeg"])))
    client.store_instances([data_set])
    uids = (data_set.StudyInstanceUID, data_set.SeriesInstanceUID, data_set.SOPInstanceUID)
    frames = client.retrieve_instance_frames(*uids, frame_numbers=[2], media_types=("image/jpeg",))
    assert frames[0].rstrip(b"\0") == instances.frame_bitstreams("jpeg")[1].rstrip(b"\0")


def test_a_rendered_instance_is_an_image(client: DICOMwebClient) -> None:
    data_set = pydicom.dcmread(io.BytesIO(instances.encoded(instances.ct())))
    client.store_instances([data_set])
    uids = (data_set.StudyInstanceUID, data_set.SeriesInstanceUID, data_set.SOPInstanceUID)
    image = client.retrieve_instance_rendered(*uids, media_types=("image/png",), params={"window": "40,400,linear"})
    assert np.asarray(Image.open(io.BytesIO(image))).shape == (32, 48)


def test_paging_to_the_end_stops(client: DICOMwebClient) -> None:
    study = instances.new_uid()
    data_sets = [pydicom.dcmread(io.BytesIO(instances.encoded(instances.ct(8, 8, StudyInstanceUID=study)))) for _ in range(5)]
    client.store_instances(data_sets)
    found = client.search_for_instances(study, limit=2, get_remaining=True)
    assert {row["00080018"]["Value"][0] for row in found} == {data_set.SOPInstanceUID for data_set in data_sets}


def test_a_body_above_a_megabyte_is_sent_in_chunks_and_stored(client: DICOMwebClient) -> None:
    data_set = pydicom.dcmread(io.BytesIO(instances.encoded(instances.ct(1024, 1024))))
    assert len(client.store_instances([data_set]).ReferencedSOPSequence) == 1


def test_an_instance_can_be_deleted(client: DICOMwebClient) -> None:
    data_set = pydicom.dcmread(io.BytesIO(instances.encoded(instances.ct())))
    client.store_instances([data_set])
    client.delete_instance(data_set.StudyInstanceUID, data_set.SeriesInstanceUID, data_set.SOPInstanceUID)
    assert client.search_for_instances(data_set.StudyInstanceUID) == []


def test_the_command_stores_and_retrieves(suite: Suite, tmp_path: Path) -> None:
    data_set = instances.ct()
    file = tmp_path / "sent.dcm"
    file.write_bytes(instances.encoded(data_set))

    def run(*arguments: str) -> str:
        command = [str(Path(sysconfig.get_path("scripts")) / "dicomweb_client"), "--url", suite.url, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    run("store", "instances", str(file))
    place = ("--study", data_set.StudyInstanceUID, "--series", data_set.SeriesInstanceUID, "--instance", data_set.SOPInstanceUID)
    assert data_set.PatientID in run("retrieve", "instances", *place, "metadata")
    run("retrieve", "instances", *place, "full", "--save", "--output-dir", str(tmp_path), "--media-type", "application/dicom")
    got = pydicom.dcmread(tmp_path / f"{data_set.SOPInstanceUID}.dcm")
    assert got.PixelData == data_set.PixelData
    assert got == pydicom.dcmread(file)
