"""Which browser pages may read responses."""

from collections.abc import AsyncIterator

import pytest

from gantry_gateway.http import cors
from gantry_gateway.settings import GatewaySettings
from tests.support.nats_server import NatsServer
from tests.unit.gateway.harness import Running, running


@pytest.fixture(scope="module")
async def gateway(nats_server: NatsServer) -> AsyncIterator[Running]:
    async with running(nats_server) as opened:
        yield opened


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "https://[::1]:8443"])
def test_local_origins_are_allowed_by_default(origin: str) -> None:
    assert cors.allows(origin, GatewaySettings())


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "http://localhost.evil.example", "http://[", "file://"])
def test_other_origins_are_not_allowed_by_default(origin: str) -> None:
    assert not cors.allows(origin, GatewaySettings())


def test_named_origins_replace_the_local_ones() -> None:
    settings = GatewaySettings(cors_origins=("https://viewer.example",))
    assert cors.allows("https://viewer.example", settings)
    assert not cors.allows("http://localhost", settings)
    assert cors.allows("https://anywhere.example", GatewaySettings(cors_origins=("*",)))


async def test_preflight_is_answered_with_what_viewers_need(gateway: Running) -> None:
    asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "range"}
    answer = await gateway.http.options("/studies", headers=asked)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    for name in ("Accept", "Authorization", "Content-Type", "Range", "If-None-Match"):
        assert name in answer.headers["access-control-allow-headers"].split(", ")
    assert "access-control-allow-credentials" not in answer.headers


async def test_preflight_of_another_origin_gets_no_permission(gateway: Running) -> None:
    answer = await gateway.http.options("/studies", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"})
    assert answer.status_code == 204
    assert "access-control-allow-origin" not in answer.headers
    assert "access-control-allow-methods" not in answer.headers


@pytest.mark.parametrize("path", ["/studies/1.2", "/nothing", "/studies/x/series"])
async def test_errors_carry_the_headers_too(gateway: Running, path: str) -> None:
    answer = await gateway.http.get(path, headers={"Origin": "http://localhost:3000"})
    assert answer.status_code >= 400
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "Content-Location" in answer.headers["access-control-expose-headers"]
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert answer.headers["vary"] == "Origin"
