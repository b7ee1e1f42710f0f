"""Fixtures of the black-box tests: one suite per set of stores in each worker, for all tests that leave it running."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.support.dicomweb import DicomWeb
from tests.support.suite import STORE_SETS, Suite, distributed, one_machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that run on the distributed set with `make test-all` only."""
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        store_set = store_set_of(item)
        if store_set == "distributed" and item.get_closest_marker("distributed") is None:
            item.add_marker(pytest.mark.thorough)


def store_set_of(item: pytest.Item) -> str:
    """Return the set of stores that a test runs on; "one-machine" for a test without a suite."""
    callspec = getattr(item, "callspec", None)
    values = callspec.params.values() if callspec is not None else ()
    return next((value for value in values if isinstance(value, str) and value in STORE_SETS), STORE_SETS[0])


def settings_of(store_set: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the settings of a set of stores, with names of their own in real servers."""
    if store_set == "one-machine":
        return one_machine()
    missing = [name for name in ("GANTRY_TEST_S3_ENDPOINT", "GANTRY_TEST_ELASTICSEARCH_URL") if not os.environ.get(name)]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"CI=true and no real server: {', '.join(missing)} not set")
    return distributed(request.getfixturevalue("s3_settings"), request.getfixturevalue("elasticsearch_url"))


@pytest.fixture(scope="session")
def suites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, pytest.FixtureRequest], Suite]]:
    """Start the suite of a set of stores at the first call, and return the same one at later calls.

    Both suites of a worker run until its last test has ended, so that the order of the groups does not matter.
    """
    started: dict[str, Suite] = {}

    def start(store_set: str, request: pytest.FixtureRequest) -> Suite:
        if store_set not in started:
            suite = Suite(tmp_path_factory.mktemp(store_set), settings_of(store_set, request) | {"GANTRY_GATEWAYS": "2"})
            suite.start()
            started[store_set] = suite
        return started[store_set]

    yield start
    statuses = {store_set: suite.stop() for store_set, suite in started.items()}
    for suite in started.values():
        forget(suite.settings)
    assert set(statuses.values()) <= {0}, "\n".join(suite.output() for suite in started.values())


@pytest.fixture(scope="session", params=STORE_SETS)
def suite(request: pytest.FixtureRequest, suites: Callable[[str, pytest.FixtureRequest], Suite]) -> Suite:
    """A suite on each set of stores. A test that stops or kills a part of it has it running again at its end."""
    return suites(request.param, request)


def forget(settings: dict[str, str]) -> None:
    """Remove the indices that a suite has made in Elasticsearch."""
    if url := settings.get("GANTRY_ELASTICSEARCH_URL"):
        with suppress(httpx.HTTPError), httpx.Client(base_url=url, verify=False, trust_env=False, timeout=30) as http:
            names = http.get("/_cat/indices", params={"h": "index", "format": "json"}).json()
            for row in names:
                if row["index"].startswith(settings["GANTRY_ELASTICSEARCH_PREFIX"]):
                    http.delete(f"/{row['index']}")


@pytest.fixture(scope="session", params=["one-machine"])
def shared_breakable_suite(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """The suite behind `breakable_suite`."""
    running = Suite(tmp_path_factory.mktemp("breakable"), settings_of(request.param, request))
    yield running
    running.close()


@pytest.fixture
def breakable_suite(shared_breakable_suite: Suite) -> Suite:
    """A suite on the default stores that a test may kill, stop and start as it likes; ready when a test gets it.

    What earlier tests stored is there: a test looks at what is its own.
    """
    if not shared_breakable_suite.is_running():
        shared_breakable_suite.start()
    shared_breakable_suite.wait_ready()
    return shared_breakable_suite


@pytest.fixture(params=["one-machine"])
def own_suite(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Suite]]:
    """Start suites of the test's own, with more settings where given; they are stopped at its end."""
    started: list[Suite] = []

    def start(**settings: str) -> Suite:
        running = Suite(tmp_path / f"suite{len(started)}", {**one_machine(), **settings})
        started.append(running)
        running.start()
        return running

    yield start
    for running in started:
        running.close()


@pytest.fixture
def dicomweb(suite: Suite) -> Iterator[DicomWeb]:
    """A client of the suite."""
    client = DicomWeb(suite.url, suite.origin)
    yield client
    client.http.close()
