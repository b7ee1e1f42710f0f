"""The application: routing, errors, HEAD, and responses that fail after the status line."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from starlette.responses import Response, StreamingResponse

from gantry_gateway.http import app as application
from gantry_gateway.http.app import Router, allowed, decode_path
from gantry_gateway.http.request import Request, parse_query
from gantry_gateway.http.routes import EVERY_RESOURCE, ROUTES, WEBSOCKET, Mount, Route, compile_path, mounts
from gantry_gateway.settings import GatewaySettings
from gantry_standard import errors
from tests.support.nats_server import NatsServer
from tests.unit.gateway.harness import OWN_MODULES, Running, own_routes, running

PIECES_READ: list[int] = []


async def large(request: Request) -> Response:
    """Answer with many chunks; record which were sent."""

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(1000):
            PIECES_READ.append(number)
            yield bytes(1 << 16)

    return StreamingResponse(pieces(), headers={"Content-Length": str(1000 << 16)})


async def breaks(request: Request) -> Response:
    """Answer with one chunk, then fail."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        raise errors.Unavailable("the store does not answer")

    return StreamingResponse(pieces())


async def fails(request: Request) -> Response:
    """Raise an unexpected error."""
    raise ValueError("secret detail")


async def echo(request: Request) -> Response:
    """Answer with the parameters of the path."""
    return Response(repr(request.params), media_type="text/plain")


@pytest.fixture(scope="module")
async def gateway(nats_server: NatsServer, module_patch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    for function in (large, breaks, fails, echo):
        module_patch.setattr(application, f"test_{function.__name__}", function, raising=False)
    extra = [Route("GET", f"/test/{name}", f"Test{name}", f"http.app:test_{name}") for name in ("large", "breaks", "fails")]
    extra.append(Route("GET", "/test/echo/{one}/{rest:path}", "TestEcho", "http.app:test_echo"))
    async with running(nats_server, routes=[*own_routes(), *extra]) as opened:
        yield opened


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


async def test_unknown_resource_is_not_found(gateway: Running) -> None:
    answer = await gateway.http.get("/nothing")
    assert answer.status_code == 404
    assert "the DICOMweb root is /dicom-web" in answer.text
    assert (await gateway.http.get(f"http://127.0.0.1:{gateway.port}/")).status_code == 404


@pytest.mark.parametrize("method", ["PUT", "PATCH", "PROPFIND", "TRACE"])
async def test_method_that_a_resource_has_not_is_told_with_those_it_has(gateway: Running, method: str) -> None:
    answer = await gateway.http.request(method, "/studies")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS, POST"


async def test_head_of_a_resource_without_get_is_not_allowed(gateway: Running) -> None:
    answer = await gateway.http.head("/workitems/1.2/cancelrequest")
    assert answer.status_code == 405
    assert answer.content == b""


async def test_transaction_that_is_not_offered_is_501(gateway: Running) -> None:
    answer = await gateway.http.get("/color-palettes")
    assert answer.status_code == 501
    assert "SearchColorPalettes is not offered" in answer.text


@pytest.mark.parametrize("path", ["", "/", "/studies", "/studies/1.2"])
async def test_options_without_preflight_is_501_with_allow(gateway: Running, path: str) -> None:
    answer = await gateway.http.options(gateway.root + path)
    assert answer.status_code == 501
    assert "OPTIONS" in answer.headers["allow"]


async def test_uri_service_is_501_and_readable(gateway: Running) -> None:
    answer = await gateway.http.get(f"http://127.0.0.1:{gateway.port}/wado?requestType=WADO")
    assert answer.status_code == 501
    assert "WADO-URI" in answer.text


async def test_bug_is_500_without_its_details(gateway: Running) -> None:
    answer = await gateway.http.get("/test/fails")
    assert answer.status_code == 500
    assert "secret" not in answer.text


async def test_head_stops_reading_at_once(gateway: Running) -> None:
    PIECES_READ.clear()
    answer = await gateway.http.head("/test/large")
    assert answer.status_code == 200
    assert answer.headers["content-length"] == str(1000 << 16)
    assert answer.content == b""
    assert len(PIECES_READ) <= 2
    assert (await gateway.http.get("/nothing")).status_code == 404


async def test_error_after_the_status_line_breaks_the_connection(gateway: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /dicom-web/test/breaks HTTP/1.1\r\nHost: localhost\r\n\r\n")
    got = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    assert got.endswith(b"5\r\nfirst\r\n")


async def test_client_that_leaves_in_mid_answer_is_no_error(gateway: Running, caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /dicom-web/test/large HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readexactly(1000)
    with caplog.at_level(logging.WARNING):
        writer.transport.abort()
        await gateway.http.get("/nothing")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("version", ["0.9", "3.0", "x"])
async def test_garbage_is_400(gateway: Running, version: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(f"BLURB /dicom-web/studies HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
    assert b" 400 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()


async def test_endless_head_is_431(gateway: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nX-Long: ")

    async def send() -> None:
        for _ in range(100):
            writer.write(b"x" * (64 << 10))
            await writer.drain()

    sending = asyncio.create_task(send())
    line = await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    await asyncio.gather(sending, return_exceptions=True)
    assert line == b"HTTP/1.1 431 Request Header Fields Too Large\r\n"


async def test_long_list_of_uids_passes_and_a_longer_target_is_414(gateway: Running) -> None:
    async def first_line(query: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(f"GET /dicom-web/nothing?{query} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        got = await asyncio.wait_for(reader.readline(), 5)
        writer.close()
        return got

    uids = ",".join(["1.2.840.113619.2.5.1762583153.215519.978957063.78"] * 1000)
    assert await first_line(f"StudyInstanceUID={uids}") == b"HTTP/1.1 404 Not Found\r\n"
    assert b" 414 " in await first_line(f"StudyInstanceUID={uids},{uids}")


async def test_request_id_is_kept_or_made(gateway: Running) -> None:
    assert (await gateway.http.get("/nothing", headers={"X-Request-ID": "abc-1"})).headers["x-request-id"] == "abc-1"
    made = (await gateway.http.get("/nothing", headers={"X-Request-ID": "a b\tc"})).headers["x-request-id"]
    assert len(made) == 16


async def test_request_is_one_line_without_its_query(gateway: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="gantry_gateway.http.app"):
        await gateway.http.get("/studies/x/series?PatientName=DOE%5EJANE")
        await gateway.http.get("/nothing")
    lines = [record.__dict__ for record in caplog.records if record.message == "request"]
    assert [(line["method"], line["transaction"], line["status"]) for line in lines] == [
        ("GET", "SearchSeries", 400),
        ("GET", "other", 404),
    ]
    assert "DOE" not in str(lines)


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/test/echo/a%2Cb/c", 200, "{'one': 'a,b', 'rest': 'c'}"),
        ("/test/%65cho/a/b/c/", 200, "{'one': 'a', 'rest': 'b/c'}"),
        ("/test/echo/a%2Fb/c", 404, ""),
        ("/test/echo/a%00b/c", 400, ""),
        ("/test/echo/a%0d%0ab/c", 400, ""),
        ("/test/echo/%FF/c", 400, ""),
        ("/test/echo/%E4%BD%A0/c", 200, "{'one': '你', 'rest': 'c'}"),
    ],
)
async def test_path_is_decoded_by_segment(gateway: Running, path: str, status: int, body: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(f"GET /dicom-web{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    got = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert got.startswith(f"HTTP/1.1 {status} ".encode())
    assert got.decode().endswith(body)


def test_slashes_of_bulkdata_names_may_be_encoded() -> None:
    assert decode_path(b"/studies/1/series/2/instances/3/bulkdata/54%2F1") == "/studies/1/series/2/instances/3/bulkdata/54/1"


def router(*routes: Route) -> Router:
    """Return a router of these rows at the root of the server."""
    return Router([Mount("test", "", routes)])


def test_first_matching_row_wins() -> None:
    found = router(Route("GET", "/workitems/1.2", "Fixed"), Route("GET", "/workitems/{workitem}", "Variable"))
    assert found.find("/workitems/1.2").methods["GET"][0].transaction == "Fixed"
    assert found.find("/workitems/1.3").params == {"workitem": "1.3"}
    assert found.find("/workitems/1.3/state") is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/dicom-web", "DICOMweb"),
        ("/dicom-web/studies/", "DICOMweb"),
        ("/dicom-web/uri", "URI service (WADO-URI)"),
        ("/dicom-web/uri/", "URI service (WADO-URI)"),
        ("/healthz/live", "health"),
        ("/healthz", None),
        ("/healthz/other", None),
        ("/dicom-webs/studies", None),
        ("/dicom-web/uri/studies", None),
        ("/studies", None),
        ("/", None),
    ],
)
def test_the_mount_with_the_longest_path_answers(path: str, name: str | None) -> None:
    found = Router(mounts(GatewaySettings(base_path="/dicom-web/", wado_path="/dicom-web/uri"), own_routes())).find(path)
    assert (found.mount.name if found is not None else None) == name


@pytest.mark.parametrize(("path", "name"), [("/studies", "DICOMweb"), ("/wado", "URI service (WADO-URI)"), ("/healthz/live", "health")])
def test_the_dicomweb_root_may_be_the_root_of_the_server(path: str, name: str) -> None:
    found = Router(mounts(GatewaySettings(base_path="/"), own_routes())).find(path)
    assert found is not None
    assert found.mount.name == name


def test_a_row_of_every_resource_belongs_to_each_path_that_has_a_row_and_to_no_other() -> None:
    found = router(Route("GET", "/x/{one}", "X"), Route("OPTIONS", EVERY_RESOURCE, "Every"), Route("OPTIONS", "/y", "Own"))
    assert found.find("/x/1").methods["OPTIONS"][0].transaction == "Every"
    assert found.find("/y").methods["OPTIONS"][0].transaction == "Own"
    assert found.find("/z") is None


def test_allow_lists_what_is_offered() -> None:
    options = {"OPTIONS": (Route("OPTIONS", EVERY_RESOURCE, "O"), None)}
    assert allowed({"GET": (Route("GET", "/x", "X"), None), **options}) == "OPTIONS"
    one = {"GET": (Route("GET", "/x", "X"), echo), "POST": (Route("POST", "/x", "X"), None)}
    assert allowed({**one, **options}) == "GET, HEAD, OPTIONS"
    assert allowed({**one, WEBSOCKET: (Route(WEBSOCKET, "/x", "W"), echo)}) == "GET, HEAD"


def test_row_whose_handler_is_missing_is_an_error_at_start() -> None:
    with pytest.raises(ModuleNotFoundError):
        router(Route("GET", "/x", "X", "no_such_module:f"))


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route.handler.partition(":")[0] in OWN_MODULES], ids=lambda r: r.transaction
)
def test_handler_of_the_row_is_there(route: Route) -> None:
    assert application.load(route.handler) is not None


def test_no_two_rows_are_the_same() -> None:
    keys = [(route.method, route.path) for route in ROUTES]
    assert len(keys) == len(set(keys))
    assert len({route.transaction for route in ROUTES}) == len(ROUTES)


def test_variable_segments_do_not_cross_slashes() -> None:
    assert compile_path("/studies/{study}").fullmatch("/studies/1/2") is None
    assert compile_path("/b/{x:path}").fullmatch("/b/1/2").groupdict() == {"x": "1/2"}


def test_query_keeps_plus_and_order() -> None:
    assert parse_query(b"a=1+0100&B=%2C%C3%A9&&c&d=x=y") == [("a", "1+0100"), ("B", ",é"), ("c", ""), ("d", "x=y")]
