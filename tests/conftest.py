"""Fixtures that every kind of test may use: a real NATS server, the addresses of the real stores, sample files."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nats_server import NatsServer


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
    if "GANTRY_TEST_S3_ENDPOINT" not in os.environ:
        pytest.skip("no real S3 server")
    return {
        "GANTRY_S3_ENDPOINT": os.environ["GANTRY_TEST_S3_ENDPOINT"],
        "GANTRY_S3_ACCESS_KEY": os.environ["GANTRY_TEST_S3_ACCESS_KEY"],
        "GANTRY_S3_SECRET_KEY": os.environ["GANTRY_TEST_S3_SECRET_KEY"],
    }


@pytest.fixture(scope="session")
def elasticsearch_url() -> str:
    """URL of a real Elasticsearch; skips where none is running."""
    if "GANTRY_TEST_ELASTICSEARCH_URL" not in os.environ:
        pytest.skip("no real Elasticsearch")
    return os.environ["GANTRY_TEST_ELASTICSEARCH_URL"]


@pytest.fixture(scope="session")
def sample_files() -> list[Path]:
    """The instances that pydicom ships, and those of the folder that GANTRY_TEST_SAMPLES names."""
    from pydicom.data import get_testdata_files

    files = [Path(name) for name in get_testdata_files("*.dcm")]
    if more := os.environ.get("GANTRY_TEST_SAMPLES"):
        files += [path for path in sorted(Path(more).rglob("*")) if path.is_file() and path.name != "MANIFEST.tsv"]
    return files
