"""Health of the gateway and of the whole suite."""

from tests.support.nats_server import NatsServer
from tests.unit.gateway.harness import running


def at(gateway, path: str) -> str:
    """Return an absolute URL below the server's root."""
    return f"http://127.0.0.1:{gateway.port}{path}"


async def test_ready_gateway_says_so(nats_server: NatsServer) -> None:
    async with running(nats_server, without=["renderer", "workflow"]) as gateway:
        assert (await gateway.http.get(at(gateway, "/healthz/live"))).text == "live\n"
        answer = await gateway.http.get(at(gateway, "/healthz/ready"))
        assert (answer.status_code, answer.text) == (200, "ready\n")
        assert (await gateway.http.head(at(gateway, "/healthz/ready"))).status_code == 200


async def test_gateway_without_index_is_live_and_not_ready(nats_server: NatsServer) -> None:
    async with running(nats_server, without=["index"]) as gateway:
        assert (await gateway.http.get(at(gateway, "/healthz/live"))).status_code == 200
        answer = await gateway.http.get(at(gateway, "/healthz/ready"))
        assert (answer.status_code, answer.text) == (503, "index is not ready: index does not answer\n")


async def test_blob_that_says_it_is_not_ready_is_not(nats_server: NatsServer) -> None:
    async with running(nats_server) as gateway:
        gateway.blob.ready = False
        assert (await gateway.http.get(at(gateway, "/healthz/ready"))).status_code == 503


async def test_suite_tells_all_services_and_their_stores(nats_server: NatsServer) -> None:
    async with running(nats_server) as gateway:
        answer = await gateway.http.get(at(gateway, "/healthz/suite"))
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        suite = answer.json()
        assert suite["ready"] is True
        assert suite["nats"] == {"ready": True, "explanation": ""}
        assert set(suite["services"]) == {"gateway", "blob", "index", "renderer", "workflow"}
        assert suite["services"]["blob"] == {"object_store": "directory", "ready": True, "explanation": "", "free_bytes": 7 << 40}
        assert suite["services"]["index"]["index_store"] == "sqlite"
        assert suite["services"]["index"]["instances"] == 1 << 40
        assert suite["services"]["renderer"]["decodes"] == ["1.2.840.10008.1.2.1"]
        assert suite["services"]["workflow"]["workitems_sequence"] == 3


async def test_suite_without_renderer_is_503_and_still_tells_the_others(nats_server: NatsServer) -> None:
    async with running(nats_server, without=["renderer"]) as gateway:
        answer = await gateway.http.get(at(gateway, "/healthz/suite"))
        assert answer.status_code == 503
        assert answer.json()["ready"] is False
        assert answer.json()["services"]["renderer"] == {"ready": False, "explanation": "renderer does not answer"}
        assert answer.json()["services"]["workflow"]["ready"] is True


async def test_other_methods_and_paths_are_refused(nats_server: NatsServer) -> None:
    async with running(nats_server) as gateway:
        answer = await gateway.http.post(at(gateway, "/healthz/live"))
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
        assert (await gateway.http.get(at(gateway, "/healthz/x"))).status_code == 404
