"""One request can be followed by its id through the logs of every service that it passed, whichever way they speak with each other."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gantry_standard.http.random_bits import random_hex
from tests.support import instances
from tests.support.dicomweb import OCTETS_AS_STORED, DicomWeb
from tests.support.suite import Suite, another_gateway
from tests.support.workitems import Worklist

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
WAIT_S = 20.0
JPEG_LS = 'multipart/related; type="image/jls"; transfer-syntax=1.2.840.10008.1.2.4.80'

Line = dict[str, Any]


class Followed:
    """A suite, a client of one of its gateways, and the logs of all its processes."""

    def __init__(self, suite: Suite, client: DicomWeb, is_apart: bool) -> None:
        self.suite = suite
        self.client = client
        self.is_apart = is_apart
        """Whether the gateway speaks gRPC with the other services and does not share their directory."""
        self.request_id = f"followed-{random_hex(8)}"
        client.http.headers.update({"X-Request-Id": self.request_id, "traceparent": TRACEPARENT})

    def lines(self) -> list[Line]:
        """Return what every process has logged of the request."""
        paths = [*(self.suite.data / "logs").glob("*.log"), *self.suite.directory.glob("gateway-*.log")]
        return [line for path in paths for line in _read(path) if line.get("request_id") == self.request_id]

    def wait_for(self, *expected: Line) -> list[Line]:
        """Return the lines as soon as each expected one is among them."""
        end = time.monotonic() + WAIT_S
        while True:
            lines = self.lines()
            missing = [one for one in expected if not any(one.items() <= line.items() for line in lines)]
            if not missing:
                return lines
            assert time.monotonic() < end, f"missing: {missing}\nthere are: {lines}"
            time.sleep(0.05)


def _read(path: Path) -> Iterator[Line]:
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if text.startswith("{") and text.endswith("}"):
            yield json.loads(text)


@pytest.fixture(params=["local sockets", "gRPC"])
def followed(request: pytest.FixtureRequest, suite: Suite) -> Iterator[Followed]:
    """A client whose requests have an id: of the suite's gateways, and of one that speaks gRPC with the other services."""
    if request.param == "gRPC":
        with another_gateway(suite) as gateway:
            yield Followed(suite, gateway.client, is_apart=True)
    else:
        client = DicomWeb(suite.url, suite.origin)
        yield Followed(suite, client, is_apart=False)
        client.http.close()


def call(service: str, method: str, status: str = "OK") -> Line:
    return {"event": "call", "service": service, "method": method, "status": status}


def stream(service: str, method: str) -> Line:
    """Return what is logged of a stream of answers: CANCELLED too where the gateway ends it as soon as it has all it wants."""
    return {"event": "call", "service": service, "method": method}


def request(transaction: str, status: int) -> Line:
    return {"event": "request", "service": "gateway", "transaction": transaction, "status": status}


def test_a_store_is_in_the_logs_of_gateway_blob_and_index(followed: Followed) -> None:
    followed.client.store(instances.encoded(instances.ct()))
    lines = followed.wait_for(
        request("StoreInstances", 200), call("blob", "StoreWhole"), {"event": "applied", "service": "index", "level": "info"}
    )
    (applied,) = [line for line in lines if line["event"] == "applied"]
    assert applied["subject"].startswith("store.")
    assert applied["subject"].endswith(".stored")
    assert {line["traceparent"] for line in lines} == {TRACEPARENT}


def test_a_large_store_is_in_the_log_of_blob(followed: Followed) -> None:
    followed.client.store(instances.encoded(instances.ct(rows=1024, columns=1024)))
    followed.wait_for(request("StoreInstances", 200), call("blob", "StoreInstances"), {"event": "applied", "service": "index"})


def test_a_frame_is_in_the_logs_of_gateway_index_renderer_and_blob(followed: Followed) -> None:
    stored = instances.ct()
    del followed.client.http.headers["X-Request-Id"]
    followed.client.store(instances.encoded(stored))
    followed.client.http.headers["X-Request-Id"] = followed.request_id
    followed.client.parts(f"{instances.resource(stored)}/frames/1", JPEG_LS)
    is_mapped = followed.suite.settings["GANTRY_OBJECT_STORE"] == "directory"
    read_by_renderer = [] if is_mapped else [stream("blob", "Read")]
    lines = followed.wait_for(
        request("RetrieveFrames", 200), stream("index", "GetInstances"), stream("renderer", "TranscodeFrames"), *read_by_renderer
    )
    assert {line["traceparent"] for line in lines} == {TRACEPARENT}
    followed.client.parts(f"{instances.resource(stored)}/frames/1", OCTETS_AS_STORED)
    if followed.is_apart:
        followed.wait_for(stream("blob", "Read"))


def test_a_workitem_change_is_in_the_logs_of_gateway_workflow_index_and_blob(followed: Followed) -> None:
    uid, _ = Worklist(followed.client).create()
    lines = followed.wait_for(
        request("CreateWorkitem", 201),
        call("workflow", "CreateWorkitem"),
        {"event": "applied", "service": "index", "subject": f"workitem.{uid}"},
        call("blob", "PutObject"),
    )
    assert {line["service"] for line in lines} == {"gateway", "workflow", "index", "blob"}
    assert {line["traceparent"] for line in lines} == {TRACEPARENT}


def test_a_request_that_was_refused_is_logged_with_its_status(followed: Followed) -> None:
    assert followed.client.get(instances.resource(instances.ct())).status_code == 404
    followed.wait_for(request("RetrieveInstance", 404), call("index", "GetInstances", "NOT_FOUND"))
