"""A nats-server that a test may kill."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.nats_server import NatsServer


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A nats-server of the test's own."""
    own = NatsServer(tmp_path / "nats")
    own.start()
    yield own
    own.stop()
