"""Fixtures that every kind of test may use, the real servers of a run, and the tracing of requirements."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import requirements
from tests.support import sample_files as samples
from tests.support.nats_server import NatsServer
from tests.support.real_servers import ELASTICSEARCH, S3, RealServers

# A background job of a shell is started with Ctrl-C ignored, and hands that on to every process that a test wants to interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROWS = pytest.StashKey[dict[str, requirements.Row]]()
OUTCOMES = pytest.StashKey[dict[str, dict[str, str]]]()
SERVERS = pytest.StashKey[RealServers]()


def is_worker(config: pytest.Config) -> bool:
    """Whether this is a process of pytest-xdist that only runs tests."""
    return hasattr(config, "workerinput")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that says what becomes of the results by requirement."""
    parser.addoption(
        "--requirements",
        choices=["new", "add"],
        help="Write which requirements the run showed to build/requirements.json: as a new file, or added to those of the runs before.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Start the real servers once, before the workers are."""
    config.stash[ROWS] = requirements.read_table()
    config.stash[OUTCOMES] = {}
    if is_worker(config) or config.option.collectonly:
        return
    servers = config.stash[SERVERS] = RealServers()
    if os.environ.get("GANTRY_TEST_REAL_SERVERS", "yes") != "no":
        servers.ensure()
    if servers.missing and os.environ.get("CI") == "true":
        raise pytest.UsageError(servers.missing)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Let pytest-xdist distribute the tests by our groups."""
    from tests.support.scheduling import GroupScheduling

    return GroupScheduling(config, log)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what was started."""
    if servers := config.stash.get(SERVERS, None):
        servers.stop()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse ids that do not exist, and more than three on one test."""
    for item in items:
        ids = _ids(item)
        if wrong := requirements.check_ids(ids, config.stash[ROWS]):
            raise pytest.UsageError(f"{item.nodeid}: {wrong}")
        if ids:
            item.user_properties.append(("requirements", " ".join(ids)))


def _ids(item: pytest.Item) -> tuple[str, ...]:
    return tuple(row for marker in item.iter_markers("requirement") for row in marker.args)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how each test that shows a requirement ended; the worst of its phases counts."""
    ids = dict(report.user_properties).get("requirements")
    if not ids or _CONFIG is None or is_worker(_CONFIG):
        return
    outcomes, test = _CONFIG.stash[OUTCOMES], report.nodeid
    if report.when == "call" or report.outcome != "passed":
        before = outcomes.get(test, {}).get("outcome")
        outcomes[test] = {"ids": str(ids), "outcome": report.outcome if before in (None, "passed") else str(before)}


_CONFIG: pytest.Config | None = None


def pytest_sessionstart(session: pytest.Session) -> None:
    """Keep the configuration for the reports."""
    global _CONFIG  # noqa: PLW0603
    _CONFIG = session.config


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what the run showed, where --requirements asks for it: a run of some tests must not replace the results of all."""
    how = session.config.getoption("--requirements")
    if how and not is_worker(session.config):
        requirements.write_results(session.config.stash[OUTCOMES], is_added=how == "add")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which real servers took part."""
    servers = config.stash.get(SERVERS, None)
    if servers and servers.missing:
        terminalreporter.write_line(servers.missing, yellow=True)
    elif servers and servers.source:
        terminalreporter.write_line(f"real S3 and Elasticsearch servers: from {servers.source}")


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server for the whole run; a test that kills it starts it again."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3_settings() -> dict[str, str]:
    """Settings of a real S3 server, as GANTRY_S3_*; skips where none is running."""
    if S3 not in os.environ:
        pytest.skip("no real S3 server")
    return {
        "GANTRY_S3_ENDPOINT": os.environ[S3],
        "GANTRY_S3_ACCESS_KEY": os.environ["GANTRY_TEST_S3_ACCESS_KEY"],
        "GANTRY_S3_SECRET_KEY": os.environ["GANTRY_TEST_S3_SECRET_KEY"],
    }


@pytest.fixture(scope="session")
def elasticsearch_url() -> str:
    """URL of a real Elasticsearch; skips where none is running."""
    if ELASTICSEARCH not in os.environ:
        pytest.skip("no real Elasticsearch")
    return os.environ[ELASTICSEARCH]


@pytest.fixture(scope="session")
def sample_files() -> list[Path]:
    """The instances that pydicom and pydicom-data ship, and those of the folder that GANTRY_TEST_SAMPLES names."""
    return samples.sample_files()
