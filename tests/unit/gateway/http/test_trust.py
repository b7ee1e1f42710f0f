"""Hosts, proxies and pages: whom the gateway believes, and whom it answers."""

from collections.abc import AsyncIterator

import pytest

from gantry_gateway.http.routes import WEBSOCKET
from gantry_gateway.http.trust import Trust
from gantry_gateway.settings import GatewaySettings
from gantry_runtime.settings import SettingsError, load
from gantry_standard import errors
from tests.support.nats_server import NatsServer
from tests.unit.gateway.harness import Running, running

BASE = "https://pacs.example/dicom-web"


@pytest.fixture(scope="module")
async def gateway(nats_server: NatsServer) -> AsyncIterator[Running]:
    async with running(nats_server) as opened:
        yield opened


def answers(settings: GatewaySettings, method: str = "GET", **headers: str) -> bool:
    """Return whether a request with these headers is answered."""
    raw = [(name.lower().replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    try:
        Trust(settings).check({"headers": raw}, method, BASE)
    except errors.Forbidden:
        return False
    return True


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8080", "localhost.", "a.localhost:1", "127.0.0.1", "127.9.9.9:8080", "[::1]:8080", "[::1]", ""],
)
@pytest.mark.parametrize("listener", ["127.0.0.1", "::1", "localhost"])
def test_a_loopback_listener_answers_for_its_own_names(listener: str, host: str) -> None:
    assert answers(GatewaySettings(host=listener), host=host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example@localhost",
        "localhost@evil.example",
        "localhost/evil.example",
        "evil.example#localhost",
        "localhost:80:evil",
        "[::1].evil.example",
        "10.0.0.1",
        "0.0.0.0",
        "[2001:db8::1]",
        "a" * 300,
        "localhost:" + "1" * 60_000,
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", WEBSOCKET])
def test_a_loopback_listener_answers_for_no_other_host(host: str, method: str) -> None:
    assert not answers(GatewaySettings(), method, host=host)
    assert not answers(GatewaySettings(), method, host="localhost", HOST=host)


def test_further_hosts_are_named() -> None:
    named = GatewaySettings(allowed_hosts=("pacs.example", "b.example:8443"))
    assert answers(named, host="PACS.example:99")
    assert answers(named, host="b.example")
    assert answers(named, host="localhost:8080")
    assert not answers(named, host="c.example")
    assert answers(GatewaySettings(allowed_hosts=("*",)), host="c.example")
    assert answers(GatewaySettings(public_url="https://pacs.example:8443"), host="pacs.example")


def test_a_listener_of_the_network_answers_for_any_host_unless_hosts_are_named() -> None:
    assert answers(GatewaySettings(host="0.0.0.0"), host="pacs.example")
    named = GatewaySettings(host="0.0.0.0", allowed_hosts=("pacs.example",))
    assert answers(named, host="pacs.example")
    assert not answers(named, host="0.0.0.0")
    assert not answers(named, host="evil.example")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", WEBSOCKET])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, True),
        ({"Origin": "http://localhost:3000"}, True),
        ({"Origin": "https://pacs.example"}, True),
        ({"Origin": "http://pacs.example"}, False),
        ({"Origin": "https://pacs.example:99"}, False),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"}, False),
        ({"Origin": "http://localhost:3000", "Sec_Fetch_Site": "same-site"}, True),
        ({"Origin": "https://viewer.example", "Sec_Fetch_Site": "same-origin"}, True),
        ({"Sec_Fetch_Site": "cross-site"}, False),
        ({"Sec_Fetch_Site": "same-site"}, False),
        ({"Sec_Fetch_Site": "none"}, True),
    ],
)
def test_only_pages_of_allowed_origins_may_send_changes(method: str, headers: dict[str, str], expected: bool) -> None:
    assert answers(GatewaySettings(), method, **headers) == expected
    assert answers(GatewaySettings(), "GET", **headers)


def test_named_origins_may_send_changes() -> None:
    named = GatewaySettings(cors_origins=("https://viewer.example",))
    assert answers(named, "POST", Origin="https://viewer.example")
    assert not answers(named, "POST", Origin="http://localhost:3000")
    assert answers(GatewaySettings(cors_origins=("*",)), "POST", Origin="https://anywhere.example")


@pytest.mark.parametrize(
    ("proxies", "client", "expected"),
    [
        ((), "127.0.0.1", True),
        ((), "127.8.0.1", True),
        ((), "::1", True),
        ((), "::ffff:127.0.0.1", True),
        ((), "10.0.0.1", False),
        ((), "", False),
        (("10.0.0.0/8", "2001:db8::/32"), "10.9.9.9", True),
        (("10.0.0.0/8", "2001:db8::/32"), "::ffff:10.9.9.9", True),
        (("10.0.0.0/8", "2001:db8::/32"), "2001:db8::7", True),
        (("10.0.0.0/8", "2001:db8::/32"), "127.0.0.1", False),
        (("10.0.0.1",), "10.0.0.2", False),
    ],
)
def test_forwarding_headers_count_from_trusted_proxies(proxies: tuple[str, ...], client: str, expected: bool) -> None:
    assert Trust(GatewaySettings(trusted_proxies=proxies)).believes({"client": (client, 4711)}) == expected
    assert not Trust(GatewaySettings(trusted_proxies=proxies)).believes({"client": None})


def test_a_proxy_that_is_no_network_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="GANTRY_TRUSTED_PROXIES: 'proxy\\.example' does not appear"):
        load(GatewaySettings, {"GANTRY_TRUSTED_PROXIES": "127.0.0.1,proxy.example"})


async def test_a_refused_request_reaches_no_service(gateway: Running) -> None:
    answer = await gateway.http.get("/studies", headers={"Host": "evil.example"})
    assert (answer.status_code, gateway.index.searches) == (403, [])
    answer = await gateway.http.delete("/studies/1.2", headers={"Origin": "https://evil.example"})
    assert (answer.status_code, gateway.index.deletions) == (403, [])
    assert "access-control-allow-origin" not in answer.headers
    assert (await gateway.http.delete("/studies/1.2", headers={"Origin": gateway.root.removesuffix("/dicom-web")})).status_code < 300


async def test_addresses_that_are_not_a_proxy_do_not_shape_urls(nats_server: NatsServer) -> None:
    async with running(nats_server, trusted_proxies=("10.0.0.1",)) as opened:
        answer = await opened.http.get("/studies?fuzzymatching=true", headers={"X-Forwarded-Host": "evil.example", "Forwarded": "host=b"})
        assert answer.headers["warning"].startswith(f"299 {opened.root}: ")
