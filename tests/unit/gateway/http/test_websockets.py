"""WebSockets are routes like any other: they have the same paths, errors, request ids, log lines, metrics and limits as requests."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gantry_runtime import telemetry
from tests.support.worklist import Http, own_nats, worklist

HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nX-Request-ID: here-1\r\n{more}\r\n"
)
REQUEST = "GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: here-1\r\nConnection: close\r\n{more}\r\n"


@pytest.fixture(scope="module")
async def http(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Http]:
    with own_nats(tmp_path_factory.mktemp("nats")) as nats:
        async with worklist(nats) as suite, suite.workflow(), suite.gateway() as opened:
            yield opened


async def answer(http: Http, text: str) -> tuple[int, dict[str, str], str]:
    """Send the bytes of a request; return status, header fields (names in lower case) and body of the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(http.base).port)
    writer.write(text.encode("latin-1"))
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode("latin-1")
    status = int(head.split(" ", 2)[1])
    fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
    body = "" if status == 101 else (await asyncio.wait_for(reader.readexactly(int(fields["content-length"])), 10)).decode()
    writer.close()
    return status, fields, body


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/dicom-web/subscribers/AE%201", 101),
        ("/dicom-web/subscribers/AE1/", 101),
        ("/dicom-web/ws/subscribers/AE1", 101),
        ("/dicom-web/%73ubscribers/AE1", 101),
        ("/dicom-web?requester=AE1", 101),
        ("/dicom-web/?requester=AE1", 101),
        ("/dicom-web/", 400),
        ("/dicom-web/?requester=AE1&requester=AE2", 400),
        ("/dicom-web/subscribers/%5C", 400),
        ("/dicom-web/subscribers/A%00", 400),
        ("/dicom-web/subscribers/A%FF", 400),
        ("/dicom-web/subscribers/A%2FB", 404),
        ("/dicom-web/subscribers%2FAE1", 404),
        ("/dicom-web/subscribers/A/B", 404),
        ("/dicom-web/subscribers/", 404),
        ("/dicom-web/studies", 404),
        ("/dicom-webs/subscribers/AE1", 404),
        ("/subscribers/AE1", 404),
        ("/healthz/live", 404),
        ("/wado", 404),
    ],
)
async def test_the_path_of_a_handshake_is_read_as_that_of_a_request(http: Http, path: str, status: int) -> None:
    assert (await answer(http, HANDSHAKE.format(path=path, more="")))[0] == status


@pytest.mark.parametrize("accept", ["application/json", "text/plain", "text/html"])
@pytest.mark.parametrize(
    "path", ["/nothing", "/dicom-web/nothing", "/dicom-web/subscribers/A%2FB", "/dicom-web/x%0Ay", "/dicom-web/%FF", "/dicom-web/x%00"]
)
async def test_a_bad_path_gets_the_answer_that_a_request_gets(http: Http, path: str, accept: str) -> None:
    more = f"Accept: {accept}\r\nOrigin: http://localhost:3000\r\n"
    status, fields, body = await answer(http, HANDSHAKE.format(path=path, more=more))
    refused, of_request, body_of_request = await answer(http, REQUEST.format(path=path, more=more))
    assert (status, body) == (refused, body_of_request)
    assert {k: v for k, v in fields.items() if k != "date"} == {k: v for k, v in of_request.items() if k != "date"}
    assert fields["x-request-id"] == "here-1"
    assert fields["access-control-allow-origin"] == "http://localhost:3000"


@pytest.mark.parametrize(
    ("path", "more"),
    [("/dicom-web/subscribers/" + "%41" * 9000, ""), ("/dicom-web/subscribers/AE1", "Content-Length: 5\r\n")],
    ids=["long path", "payload"],
)
async def test_a_handshake_that_cannot_be_read_is_answered(http: Http, path: str, more: str) -> None:
    status, fields, body = await answer(http, HANDSHAKE.format(path=path, more=more))
    assert (status, fields["connection"]) == (400, "close")
    assert body.startswith("400 Bad Request")


async def test_an_origin_that_is_no_url_is_one_that_is_not_allowed(http: Http) -> None:
    status, _, _ = await answer(http, HANDSHAKE.format(path="/dicom-web/subscribers/AE1", more="Origin: http://[\r\n"))
    assert status == 403


async def test_the_request_id_is_on_the_answer_to_the_handshake(http: Http) -> None:
    async with connect(http.ws + "/subscribers/AE1", additional_headers={"X-Request-ID": "mine-7"}) as kept:
        assert kept.response is not None
        assert kept.response.headers["x-request-id"] == "mine-7"
    async with connect(http.ws + "/subscribers/AE1") as made:
        assert made.response is not None
        assert len(made.response.headers["x-request-id"]) == 16


async def test_a_connection_is_one_line_in_the_log_and_counted_once(http: Http, caplog: pytest.LogCaptureFixture) -> None:
    taken = telemetry.HTTP_SECONDS.labels("OpenNotificationConnectionBelowWs", "101")
    before = sum(bucket.get() for bucket in taken._buckets)
    with caplog.at_level(logging.INFO, logger="gantry_gateway.http.app"):
        async with connect(http.ws + "/ws/subscribers/AE1"):
            at_opening = [record.__dict__ for record in caplog.records if record.message == "request"]
        for path in ("/subscribers/" + "A" * 17, "/nothing"):
            with pytest.raises(InvalidStatus):
                await connect(http.ws + path)
        await http.send("GET", "/nothing")
    lines = [record.__dict__ for record in caplog.records if record.message == "request"]
    assert at_opening == lines[:1]
    assert [(line["method"], line["transaction"], line["status"]) for line in lines] == [
        ("GET", "OpenNotificationConnectionBelowWs", 101),
        ("GET", "OpenNotificationConnection", 400),
        ("GET", "other", 404),
        ("GET", "other", 404),
    ]
    assert sum(bucket.get() for bucket in taken._buckets) == before + 1


async def test_a_handshake_while_nats_is_away_is_refused_as_unavailable(http: Http) -> None:
    notifications, http.gateway.notifications = http.gateway.notifications, None
    try:
        status, fields, body = await answer(http, HANDSHAKE.format(path="/dicom-web/subscribers/AE1", more="Accept: text/plain\r\n"))
    finally:
        http.gateway.notifications = notifications
    assert (status, fields["retry-after"]) == (503, "1")
    assert body == "503 Service Unavailable: this gateway has no connection to NATS yet\n"


async def test_a_handshake_without_a_stream_of_reports_is_refused_as_unavailable(tmp_path_factory: pytest.TempPathFactory) -> None:
    with own_nats(tmp_path_factory.mktemp("nats")) as nats:
        async with worklist(nats) as suite, suite.gateway() as http:
            path = HANDSHAKE.format(path="/dicom-web/subscribers/AE1", more="Accept: text/plain\r\n")
            status, fields, body = await answer(http, path)
            assert (status, fields["x-request-id"]) == (503, "here-1")
            assert "there is no stream of reports yet" in body


async def test_of_many_handshakes_at_once_no_more_are_taken_than_the_limit(tmp_path_factory: pytest.TempPathFactory) -> None:
    with own_nats(tmp_path_factory.mktemp("nats")) as nats:
        async with worklist(nats) as suite, suite.workflow(), suite.gateway(websocket_max_connections=2) as http:

            async def status() -> int:
                try:
                    sockets.append(await connect(http.ws + "/subscribers/AE1"))
                except InvalidStatus as refused:
                    return refused.response.status_code
                return 101

            sockets: list = []
            statuses = await asyncio.gather(*[status() for _ in range(8)])
            assert sorted(statuses) == [101] * 2 + [503] * 6
            for one in sockets:
                await one.close()


async def test_a_handshake_with_an_endless_head_is_431(http: Http) -> None:
    with socket.create_connection(("127.0.0.1", httpx.URL(http.base).port or 0), 10) as connection:
        await asyncio.to_thread(connection.sendall, HANDSHAKE.format(path="/dicom-web/subscribers/AE1", more="")[:-2].encode())
        await asyncio.to_thread(connection.sendall, b"X-Long: " + b"x" * (400 << 10))
        line = await asyncio.to_thread(connection.recv, 100)
    assert line.startswith(b"HTTP/1.1 431 ")
