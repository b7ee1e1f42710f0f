"""Search and Delete: the calls of index, and how its results are sent."""

import gzip
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from gantry.index.v1 import index_pb2
from gantry_standard import errors
from gantry_standard.dicom.native_xml import to_json_model
from tests.support.nats_server import NatsServer
from tests.unit.gateway.harness import Running, running
from tests.unit.gateway.retrieve_world import parts_of

STUDY, SERIES, INSTANCE = index_pb2.LEVEL_STUDY, index_pb2.LEVEL_SERIES, index_pb2.LEVEL_INSTANCE
ROWS = [
    b'{"00081190":{"vr":"UR","Value":["\0/studies/1.2"]},"0020000D":{"vr":"UI","Value":["1.2"]}}',
    b'{"00081190":{"vr":"UR","Value":["\0/studies/1.3"]},"0020000D":{"vr":"UI","Value":["1.3"]}}',
]


@pytest.fixture(scope="module")
async def one(nats_server: NatsServer) -> AsyncIterator[Running]:
    async with running(nats_server, search_max_results=100) as gateway:
        yield gateway


@pytest.fixture
def gateway(one: Running) -> Running:
    one.index.__init__()
    one.index.found = index_pb2.SearchResponse(rows=ROWS)
    return one


async def test_rows_are_joined_with_the_clients_base_url(gateway: Running) -> None:
    answer = await gateway.http.get("/studies")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom+json")
    assert [row["00081190"]["Value"] for row in answer.json()] == [[f"{gateway.root}/studies/1.2"], [f"{gateway.root}/studies/1.3"]]
    assert "warning" not in answer.headers


@pytest.mark.parametrize(
    ("path", "level", "study", "series"),
    [
        pytest.param("/studies", STUDY, "", "", id="10.6.1-1 studies"),
        pytest.param("/studies/1.2/series", SERIES, "1.2", "", id="series of a study"),
        pytest.param("/studies/1.2/series/1.3/instances", INSTANCE, "1.2", "1.3", id="instances of a series"),
        pytest.param("/studies/1.2/instances", INSTANCE, "1.2", "", id="instances of a study"),
        pytest.param("/series", SERIES, "", "", id="all series"),
        pytest.param("/instances", INSTANCE, "", "", id="all instances"),
        pytest.param("/instances/", INSTANCE, "", "", id="with a slash at the end"),
    ],
)
async def test_resource_says_level_and_scope(gateway: Running, path: str, level: int, study: str, series: str) -> None:
    assert (await gateway.http.get(path)).status_code == 200
    [asked] = gateway.index.searches
    assert asked.level == level
    assert asked.scope == index_pb2.Scope(collection=study, series_instance_uid=series)


async def test_parameters_reach_index_as_keys(gateway: Running) -> None:
    await gateway.http.get(
        "/studies?PatientID=A%2CB&StudyDate=20240101-&includefield=00081030&offset=3&limit=7&accept=application/dicom%2Bjson"
    )
    [asked] = gateway.index.searches
    keys = {tuple(key.path): key for key in asked.keys}
    assert keys["00100020",].operation == index_pb2.MatchKey.OPERATION_EQUAL
    assert list(keys["00100020",].values) == ["A,B"]
    assert keys["00080020",].operation == index_pb2.MatchKey.OPERATION_RANGE
    assert ("00081030" in asked.include_fields, asked.offset, asked.limit) == (True, 3, 7)


async def test_limit_is_the_servers_maximum_without_one(gateway: Running) -> None:
    await gateway.http.get("/studies")
    await gateway.http.get("/studies?limit=5000")
    assert [asked.limit for asked in gateway.index.searches] == [100, 100]


async def test_limit_zero_is_no_content(gateway: Running) -> None:
    answer = await gateway.http.get("/studies?limit=0")
    assert (answer.status_code, answer.content) == (204, b"")
    assert not gateway.index.searches


async def test_nothing_found_is_no_content_without_body_headers(gateway: Running) -> None:
    gateway.index.found = index_pb2.SearchResponse()
    answer = await gateway.http.get("/studies?PatientID=nobody")
    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-type" not in answer.headers
    assert "content-length" not in answer.headers


async def test_further_results_are_told_by_the_exact_warning(gateway: Running) -> None:
    gateway.index.found = index_pb2.SearchResponse(rows=ROWS, remaining=17)
    answer = await gateway.http.get("/studies?limit=2")
    assert answer.headers["warning"] == f"299 {gateway.root}: There are 17 additional results that can be requested"


async def test_several_warnings_are_several_headers(gateway: Running) -> None:
    gateway.index.found = index_pb2.SearchResponse(rows=ROWS, remaining=1)
    answer = await gateway.http.get("/studies?Modality=CT")
    warnings = answer.headers.get_list("warning")
    assert len(warnings) == 2
    assert all(warning.startswith(f"299 {gateway.root}: ") for warning in warnings)


@pytest.mark.parametrize(
    "query", ["limit=-1", "limit=x", "offset=", "StudyDate=foo", "fuzzymatching=1", "PatientID=%FF", "PatientID=a&00100020=b"]
)
async def test_wrong_parameter_is_bad(gateway: Running, query: str) -> None:
    answer = await gateway.http.get(f"/studies?{query}")
    assert answer.status_code == 400
    assert not gateway.index.searches


@pytest.mark.parametrize("query", ["?", "?&includefield=00080060", "?unknown=1", "?&&"])
async def test_odd_queries_of_real_clients_are_taken(gateway: Running, query: str) -> None:
    assert (await gateway.http.get(f"/studies{query}")).status_code == 200


@pytest.mark.parametrize("accept", ["text/html", "image/png", "application/dicom+xml"])
async def test_what_cannot_be_produced_is_not_acceptable(gateway: Running, accept: str) -> None:
    answer = await gateway.http.get("/studies", headers={"Accept": accept})
    assert answer.status_code == 406
    assert "application/dicom+json" in answer.text
    assert not gateway.index.searches


async def test_head_has_the_headers_of_get_and_no_body(gateway: Running) -> None:
    got, asked = await gateway.http.get("/studies"), await gateway.http.head("/studies")
    assert asked.status_code == 200
    assert asked.content == b""
    assert asked.headers["content-length"] == got.headers["content-length"]


@pytest.mark.parametrize("size", [2_000, 400_000])
async def test_large_result_is_gzipped_where_the_client_takes_it(gateway: Running, size: int) -> None:
    row = b'{"00081030":{"vr":"LO","Value":["' + b"x" * size + b'"]}}'
    gateway.index.found = index_pb2.SearchResponse(rows=[row])
    async with gateway.http.stream("GET", "/studies", headers={"Accept-Encoding": "br, gzip;q=0.5"}) as answer:
        raw = b"".join([piece async for piece in answer.aiter_raw()])
    assert answer.headers["content-encoding"] == "gzip"
    assert "Accept-Encoding" in answer.headers.get_list("vary", split_commas=True)
    assert int(answer.headers["content-length"]) == len(raw) < size
    assert gzip.decompress(raw) == b"[" + row + b"]"


@pytest.mark.parametrize("accept_encoding", ["identity", "gzip;q=0", "br", "gzip;q=0.5, identity", "*;q=0.1, identity;q=0.2"])
async def test_result_is_plain_where_the_client_does_not_take_gzip(gateway: Running, accept_encoding: str) -> None:
    gateway.index.found = index_pb2.SearchResponse(rows=[b'{"00081030":{"vr":"LO","Value":["' + b"x" * 2000 + b'"]}}'])
    answer = await gateway.http.get("/studies", headers={"Accept-Encoding": accept_encoding})
    assert "content-encoding" not in answer.headers
    assert "Accept-Encoding" in answer.headers.get_list("vary", split_commas=True)


async def test_a_coding_that_there_is_not_and_no_other_is_not_acceptable(gateway: Running) -> None:
    answer = await gateway.http.get("/studies", headers={"Accept-Encoding": "br, identity;q=0"})
    assert answer.status_code == 406
    assert "zstd, gzip and identity" in answer.text


async def test_rows_are_documents_where_the_client_wants_xml(gateway: Running) -> None:
    headers = {"Accept": 'multipart/related; type="application/dicom+xml"', "Accept-Encoding": "identity"}
    answer = await gateway.http.get("/studies", headers=headers)
    parts = parts_of(answer)
    assert [part.headers for part in parts] == [
        {"Content-Type": "application/dicom+xml", "Content-Length": str(len(part.body))} for part in parts
    ]
    assert [to_json_model(part.body)["00081190"]["Value"] for part in parts] == [
        [f"{gateway.root}/studies/1.2"],
        [f"{gateway.root}/studies/1.3"],
    ]
    assert answer.headers["vary"].startswith("Accept, Accept-Encoding")
    assert answer.headers["content-length"] == str(len(answer.content))


async def test_index_that_is_down_is_503(nats_server: NatsServer) -> None:
    async with running(nats_server, without=["index"]) as gateway:
        answer = await gateway.http.get("/studies")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "index does not answer" in answer.text


async def test_error_of_index_reaches_the_client(gateway: Running) -> None:
    gateway.index.refuse = errors.PayloadTooLarge("too many results")
    assert (await gateway.http.get("/studies")).status_code == 413


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/studies/1.2", ("1.2", "", "")),
        ("/studies/1.2/series/1.3", ("1.2", "1.3", "")),
        ("/studies/1.2/series/1.3/instances/1.4", ("1.2", "1.3", "1.4")),
    ],
)
async def test_delete_names_the_scope(gateway: Running, path: str, scope: tuple[str, str, str]) -> None:
    answer = await gateway.http.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    [asked] = gateway.index.deletions
    assert (asked.collection, asked.series_instance_uid, asked.sop_instance_uid) == scope


@pytest.mark.parametrize(("error", "status"), [(errors.NotFound("no study 1.2"), 404), (errors.Gone("1.2 was deleted"), 410)])
async def test_delete_of_what_is_not_there(gateway: Running, error: errors.GantryError, status: int) -> None:
    gateway.index.refuse = error
    answer = await gateway.http.delete("/studies/1.2")
    assert answer.status_code == status
    assert error.message in answer.text


async def test_delete_of_what_is_no_uid_is_bad(gateway: Running) -> None:
    assert (await gateway.http.delete("/studies/all")).status_code == 400
    assert not gateway.index.deletions


async def test_answer_is_one_json_array(gateway: Running) -> None:
    answer: httpx.Response = await gateway.http.get("/studies")
    assert isinstance(json.loads(answer.content), list)
