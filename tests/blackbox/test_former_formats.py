"""Data directories of older programs: a suite on one machine takes them over at its start, and everything in them is what it was."""

from pathlib import Path

from gantry_suite.data_directory import FORMAT
from tests.support import instances
from tests.support.former_formats import DATA_DIRECTORY_1, unpack
from tests.support.suite import Suite, one_machine

STUDY, DELETED = "2.25.1001", "2.25.1002"


def test_a_data_directory_of_the_former_format_is_migrated_when_the_suite_starts(tmp_path: Path) -> None:
    # The deletion is as old as the fixture: the sweeper must not give up its bytes before they are restored.
    suite = Suite(tmp_path, {**one_machine(), "GANTRY_DELETE_AFTER_S": str(100 * 365 * 86_400)})
    suite.data.mkdir(parents=True)
    unpack(DATA_DIRECTORY_1, suite.data)
    suite.start()
    try:
        client = suite.client()
        assert (suite.data / "format").read_text() == f"{FORMAT}\n"
        (study,) = client.search("/studies?PatientID=former")
        assert study["0020000D"]["Value"] == [STUDY]
        assert len(client.search("/instances")) == 3
        assert len(client.metadata(f"/studies/{STUDY}")) == 3
        assert len(client.parts(f"/studies/{STUDY}", 'multipart/related; type="application/dicom"')) == 3
        assert client.get(f"/studies/{DELETED}/metadata").status_code == 410
        suite.run("restore", "--data", str(suite.data), DELETED)
        assert len(client.metadata(f"/studies/{DELETED}")) == 1
        suite.run("verify", "--data", str(suite.data))
        client.store(instances.encoded(instances.ct(PatientID="new")))
        before = client.search("/studies"), client.search("/instances")
        suite.run("reindex", "--data", str(suite.data))
        assert (client.search("/studies"), client.search("/instances")) == before
        assert len(before[0]) == 3
    finally:
        suite.close()
