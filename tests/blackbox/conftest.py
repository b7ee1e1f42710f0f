"""Fixtures of the black-box tests: one suite per set of stores, for all tests that leave it running."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.support.dicomweb import DicomWeb
from tests.support.suite import STORE_SETS, Suite, distributed, one_machine

STORES = [pytest.param(name, marks=pytest.mark.distributed) if name == "distributed" else name for name in STORE_SETS]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one worker of pytest-xdist have all tests of a suite: changing the set of stores means to start it anew."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        for fixture, store_set in callspec.params.items() if callspec is not None else ():
            if isinstance(store_set, str) and store_set in STORE_SETS and fixture not in ("own_suite", "shared_breakable_suite"):
                # A module with a suite of its own starts it once for each set of stores.
                module = "" if fixture == "suite" else f"{item.path.stem} "
                item.add_marker(pytest.mark.xdist_group(f"{module}{store_set}"))


def settings_of(store_set: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the settings of a set of stores, with names of their own in real servers."""
    if store_set == "one-machine":
        return one_machine()
    missing = [name for name in ("GANTRY_TEST_S3_ENDPOINT", "GANTRY_TEST_ELASTICSEARCH_URL") if not os.environ.get(name)]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"CI=true and no real server: {', '.join(missing)} not set")
    return distributed(request.getfixturevalue("s3_settings"), request.getfixturevalue("elasticsearch_url"))


@pytest.fixture(scope="session", params=STORES)
def suite(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A suite on each set of stores. A test that stops or kills a part of it has it running again at its end."""
    settings = settings_of(request.param, request)
    running = Suite(tmp_path_factory.mktemp(request.param), settings | {"GANTRY_GATEWAYS": "2"})
    running.start()
    yield running
    assert running.stop() == 0, running.output()
    forget(settings)


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
