"""What settings change that can be seen from outside: strictness, base path, limits, origins."""

from collections.abc import Callable

import pytest

from tests.support import instances
from tests.support.dicomweb import AS_STORED, JSON, value, walk
from tests.support.suite import Suite


@pytest.mark.requirement("A-004", "A-014", "Q-009")
def test_base_path_strict_accept_and_the_maximum_of_a_search(own_suite: Callable[..., Suite]) -> None:
    suite = own_suite(
        GANTRY_BASE_PATH="/a/b",
        GANTRY_STRICT_ACCEPT="true",
        GANTRY_SEARCH_MAX_RESULTS="2",
        GANTRY_CORS_ORIGINS="https://viewer.example.org",
    )
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
    for target in (f"{path}/metadata", path, "/studies", f"{path}/rendered", f"{path}/frames/1"):
        assert dicomweb.get(target, None).status_code == 406, target
    assert dicomweb.stow(instances.encoded(instances.ct()), accept=None).status_code == 406
    assert dicomweb.get(path, AS_STORED).status_code == 200
    response = dicomweb.get("/studies", JSON)
    assert len(response.json()) == 2
    assert response.headers["warning"] == f"299 {base}: There are 1 additional results that can be requested"
    assert len(dicomweb.get("/studies?limit=50", JSON).json()) == 2
    response = dicomweb.get("/studies", JSON, {"Origin": "https://viewer.example.org"})
    assert response.headers["access-control-allow-origin"] == "https://viewer.example.org"
    assert "access-control-allow-origin" not in dicomweb.get("/studies", JSON, {"Origin": "http://localhost:3000"}).headers
