"""What settings change that can be seen from outside: strictness, base path, limits, origins."""

from collections.abc import Iterator

import pytest

from tests.support import instances
from tests.support.dicomweb import AS_STORED, DICOM, JSON, OCTETS, value, walk
from tests.support.suite import Suite, one_machine

SETTINGS = {
    "GANTRY_BASE_PATH": "/a/b",
    "GANTRY_STRICT_ACCEPT": "true",
    "GANTRY_SEARCH_MAX_RESULTS": "2",
    "GANTRY_CORS_ORIGINS": "https://viewer.example.org",
    "GANTRY_RETRIEVE_MAX_BYTES": "20000",
}


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A suite with SETTINGS."""
    running = Suite(tmp_path_factory.mktemp("settings"), {**one_machine(), **SETTINGS})
    running.start()
    yield running
    running.close()


@pytest.mark.requirement("R-034")
def test_an_answer_of_more_bytes_than_the_limit_is_refused(strict: Suite) -> None:
    dicomweb = strict.client()
    small, large = instances.ct(), instances.ct(100, 101)
    large.StudyInstanceUID = small.StudyInstanceUID
    dicomweb.store(instances.encoded(small), instances.encoded(large))
    study = instances.study_resource(small)
    for target, accept in (
        (study, DICOM),
        (study, "application/zip"),
        (study, OCTETS),
        (f"{study}/pixeldata", OCTETS),
        (instances.resource(large), "application/dicom"),
        (f"{instances.resource(large)}/bulkdata/7FE00010", OCTETS),
    ):
        response = dicomweb.get(target, accept)
        assert response.status_code == 413, target
        assert "20000" in response.text
    assert dicomweb.parts(instances.resource(small), DICOM)[0].content == instances.encoded(small)


def test_the_accept_parameter_alone_is_enough(strict: Suite) -> None:
    dicomweb = strict.client()
    data_set = instances.ct()
    dicomweb.store(instances.encoded(data_set))
    path = instances.resource(data_set)
    response = dicomweb.get(f"{path}?accept=application/dicom", None)
    assert (response.status_code, response.content) == (200, instances.encoded(data_set))
    assert dicomweb.get(f"{path}/metadata?accept=application/dicom%2Bjson", None).headers["content-type"] == JSON
    assert dicomweb.get(f"{path}?accept=application/x-unknown", None).status_code == 406


@pytest.mark.requirement("A-004", "A-014", "Q-009")
def test_base_path_strict_accept_and_the_maximum_of_a_search(strict: Suite) -> None:
    suite = strict
    dicomweb = suite.client()
    data_sets = [instances.with_bulk() for _ in range(3)]
    answer = dicomweb.stow(*(instances.encoded(data_set) for data_set in data_sets))
    assert answer.status_code == 200
    path = instances.resource(data_sets[0])
    base = f"{suite.origin}/a/b"
    assert all(value(item, "00081190").startswith(base) for item in answer.json()["00081199"]["Value"])
    assert answer.headers["location"].startswith(base)
    (found,) = dicomweb.metadata(path)
    assert all(element["BulkDataURI"].startswith(base) for _, element in walk(found) if "BulkDataURI" in element)
    assert dicomweb.get(f"{suite.origin}/dicom-web/studies", JSON).status_code == 404
    targets = ("/metadata", "", "/rendered", "/frames/1", "/bulkdata", "/pixeldata", "/bulkdata/7FE00010")
    for target in ("/studies", instances.study_resource(data_sets[0]), *(f"{path}{target}" for target in targets)):
        assert dicomweb.get(target, None).status_code == 406, target
    assert dicomweb.stow(instances.encoded(instances.ct()), accept=None).status_code == 406
    assert dicomweb.get(path, AS_STORED).status_code == 200
    mine = f"/studies?StudyInstanceUID={','.join(data_set.StudyInstanceUID for data_set in data_sets)}"
    response = dicomweb.get(mine, JSON)
    assert len(response.json()) == 2
    assert response.headers["warning"] == f"299 {base}: There are 1 additional results that can be requested"
    assert len(dicomweb.get(f"{mine}&limit=50", JSON).json()) == 2
    response = dicomweb.get("/studies", JSON, {"Origin": "https://viewer.example.org"})
    assert response.headers["access-control-allow-origin"] == "https://viewer.example.org"
    assert "access-control-allow-origin" not in dicomweb.get("/studies", JSON, {"Origin": "http://localhost:3000"}).headers
