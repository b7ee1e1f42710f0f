"""What holds for every resource: HTTP itself, URLs behind proxies, CORS, health, and errors that can be read."""

import json
import re
import socket

import pytest

from tests.support import instances
from tests.support.dicomweb import DICOM, JSON, OCTETS, DicomWeb, items, value, walk
from tests.support.suite import Suite


def raw(suite: Suite, request: bytes) -> bytes:
    """Send bytes and return all that comes back."""
    with socket.create_connection(("127.0.0.1", suite.port), 10) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


@pytest.mark.requirement("A-001", "A-003")
@pytest.mark.parametrize(
    "target", [b"/dicom-web/studies", b"/nonsense", b"/dicom-web/studies?%%%&&&=", b"/dicom-web/%00%ff", b"/dicom-web//studies//", b"*"]
)
def test_every_request_gets_an_answer_with_a_status(suite: Suite, target: bytes) -> None:
    answer = raw(suite, b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nConnection: close\r\n\r\n")
    version, status = answer.split(b" ", 2)[:2]
    assert version == b"HTTP/1.1"
    assert 200 <= int(status) < 500


def test_what_is_no_http_gets_400(suite: Suite) -> None:
    answer = raw(suite, b"this is no request\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"\r\ncross-origin-resource-policy: cross-origin\r\n" in answer


@pytest.mark.requirement("A-052")
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/studies/1.2.3", {"GET", "HEAD", "POST", "DELETE", "OPTIONS"}),
        ("PATCH", "/studies", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("DELETE", "/workitems/1.2.3", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("POST", "/studies/1.2.3/metadata", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_a_method_that_a_resource_does_not_have_is_405_with_those_that_it_has(
    dicomweb: DicomWeb, method: str, path: str, allowed: set[str]
) -> None:
    response = dicomweb.request(method, path)
    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == allowed
    assert method in response.text


@pytest.mark.parametrize("path", ["/nothing", "/studies/1.2.3/nothing", "/studies/1.2.3/series/4/instances/5/frames", "/workitems/1/2/3"])
def test_a_path_that_is_no_resource_is_404_and_says_where_the_root_is(dicomweb: DicomWeb, path: str) -> None:
    response = dicomweb.get(path)
    assert response.status_code == 404
    assert "/dicom-web" in response.text


def test_a_transaction_that_is_not_offered_is_501_and_says_so(dicomweb: DicomWeb) -> None:
    response = dicomweb.get("/color-palettes", JSON)
    assert response.status_code == 501
    assert "not offered" in response.json()["message"]


@pytest.mark.requirement("A-057")
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/studies?limit=x", 400),
        ("/studies/1.2.3.4.5", 404),
        ("/nothing", 404),
        ("/inventories", 501),
        ("/studies/1..2/metadata", 0),
        ("/studies/../../etc", 0),
    ],
)
def test_errors_are_explained_and_show_no_stack_trace(dicomweb: DicomWeb, path: str, status: int) -> None:
    response = dicomweb.get(path)
    assert response.status_code == status or (status == 0 and 400 <= response.status_code < 500)
    assert len(response.text) > 30
    assert "Traceback" not in response.text
    assert ".py" not in response.text


@pytest.mark.requirement("A-059")
@pytest.mark.parametrize(
    ("target", "accept"),
    [
        ("{instance}/metadata", JSON),
        ("{study}", DICOM),
        ("{study}", f"{DICOM}; transfer-syntax=*"),
        ("{study}", "application/zip"),
        ("{study}", OCTETS),
        ("{study}/bulkdata", "*/*"),
        ("{series}/pixeldata", OCTETS),
        ("{series}", DICOM),
        ("{instance}", "application/dicom"),
        ("{instance}", "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.90"),
        ("{instance}/frames/1", OCTETS),
        ("{instance}/frames/1", "application/octet-stream"),
        ("{instance}/frames/1", "image/jp2"),
        ("{instance}/bulkdata/7FE00010", "*/*"),
        ("{instance}/rendered", "image/png"),
        ("/studies?limit=1", JSON),
    ],
)
def test_head_is_get_without_the_body(dicomweb: DicomWeb, target: str, accept: str) -> None:
    data_set = instances.ct()
    dicomweb.store(instances.encoded(data_set))
    names = {"study": instances.study_resource(data_set), "series": instances.series_resource(data_set)}
    path = target.format(instance=instances.resource(data_set), **names)
    head = dicomweb.request("HEAD", path, accept, {"Accept-Encoding": "identity"})
    got = dicomweb.get(path, accept, headers={"Accept-Encoding": "identity"})
    assert (head.status_code, head.content) == (200, b"")
    changing = {"date", "x-request-id", "content-type", "transfer-encoding"}
    fields = {name: value for name, value in got.headers.items() if name not in changing}
    # What has to be made first has no length yet.
    optional = {"content-length", "accept-ranges"}
    assert {**fields, **{k: v for k, v in head.headers.items() if k not in changing}} == fields
    assert set(fields) - set(head.headers) <= optional
    assert ("content-length" in head.headers) or "image/jp2" in accept or "4.90" in accept
    assert head.headers["content-type"].split("boundary")[0] == got.headers["content-type"].split("boundary")[0]


def test_head_of_what_is_not_there_has_the_status_of_get_and_no_body(dicomweb: DicomWeb) -> None:
    for path, status in (("/nothing", 404), (f"/studies/{instances.new_uid()}/bulkdata", 404), ("/studies?limit=x", 400)):
        response = dicomweb.request("HEAD", path)
        assert (response.status_code, response.content) == (status, b"")


@pytest.mark.parametrize(
    ("headers", "origin"),
    [
        ({"Forwarded": "for=1.2.3.4;proto=https;host=pacs.example.org"}, "https://pacs.example.org"),
        ({"Forwarded": 'host="pacs.example.org:8443";proto=https, for=10.0.0.1'}, "https://pacs.example.org:8443"),
        ({"X-Forwarded-Proto": "https", "X-Forwarded-Host": "pacs.example.org"}, "https://pacs.example.org"),
        ({"X-Forwarded-Host": "pacs.example.org", "X-Forwarded-Prefix": "/hospital"}, "http://pacs.example.org/hospital"),
        (
            {"X-Forwarded-Host": "pacs.example.org", "X-Forwarded-Port": "8443", "X-Forwarded-Proto": "https"},
            "https://pacs.example.org:8443",
        ),
        (
            {"X-Forwarded-Host": "pacs.example.org:99", "X-Forwarded-Port": "443", "X-Forwarded-Proto": "https"},
            "https://pacs.example.org:99",
        ),
        ({"Host": "viewer.localhost:99"}, "http://viewer.localhost:99"),
    ],
    ids=["Forwarded", "Forwarded, quoted", "X-Forwarded", "X-Forwarded-Prefix", "X-Forwarded-Port", "X-Forwarded-Host with port", "Host"],
)
def test_urls_are_those_that_the_client_behind_the_proxy_sees(dicomweb: DicomWeb, headers: dict[str, str], origin: str) -> None:
    data_set = instances.with_bulk()
    boundary_answer = dicomweb.stow(instances.encoded(data_set))
    assert boundary_answer.status_code == 200
    path, base = instances.resource(data_set), f"{origin}/dicom-web"
    row = dicomweb.get(f"/studies?StudyInstanceUID={data_set.StudyInstanceUID}", JSON, headers).json()[0]
    assert value(row, "00081190") == base + instances.study_resource(data_set)
    (found,) = dicomweb.get(f"{path}/metadata", JSON, headers).json()
    uris = [element["BulkDataURI"] for _, element in walk(found) if "BulkDataURI" in element]
    assert len(uris) == 3
    assert all(uri.startswith(f"{base}{path}/bulkdata/") for uri in uris)
    assert f"Content-Location: {base}{path}\r\n".encode() in dicomweb.get(path, DICOM, headers).content
    for target, accept in ((f"{path}/frames/1", OCTETS), (f"{path}/bulkdata", OCTETS), (f"{path}/bulkdata/7FE00010", "*/*")):
        response = dicomweb.get(target, accept, headers)
        places = re.findall(rb"Content-Location: (\S+)", response.content) or [response.headers["content-location"].encode()]
        assert all(place.startswith(f"{base}{path}/".encode()) for place in places), places
    warned = dicomweb.get("/studies?fuzzymatching=true&limit=1", JSON, headers).headers.get("warning", f"299 {base}: ")
    assert warned.startswith(f"299 {base}: ")
    uid = instances.new_uid()
    channel = dicomweb.request("POST", "/workitems/1.2.840.10008.5.1.4.34.5/subscribers/PROXY" + uid[-6:], JSON, headers)
    assert channel.headers["content-location"].startswith(base.replace("http", "ws", 1))


def test_a_page_whose_name_leads_to_this_machine_reads_nothing(dicomweb: DicomWeb) -> None:
    for host in ("evil.example.org", "evil.example.org:8080", "localhost.evil.example.org", "10.0.0.1"):
        for method, path in (("GET", "/studies"), ("POST", "/studies"), ("GET", "/nothing"), ("OPTIONS", "/studies")):
            headers = {"Host": host, "X-Forwarded-Host": "localhost"}
            assert dicomweb.request(method, path, JSON, headers).status_code == 403


def test_a_prefix_cannot_name_another_server(dicomweb: DicomWeb) -> None:
    assert dicomweb.stow(instances.encoded(instances.ct())).status_code == 200
    for prefix in ("//evil.example.org", "../..", "/x/../../y"):
        (row,) = dicomweb.get("/studies?limit=1", JSON, {"X-Forwarded-Host": "pacs", "X-Forwarded-Prefix": prefix}).json()
        assert value(row, "00081190").startswith("http://pacs/dicom-web/studies/")


def test_a_post_of_a_page_of_another_origin_changes_nothing(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    headers = {"Content-Type": "application/dicom", "Origin": "https://evil.example.org"}
    assert dicomweb.request("POST", "/studies", JSON, headers, content=instances.encoded(data_set)).status_code == 403
    assert dicomweb.get(instances.resource(data_set) + "/metadata").status_code == 404
    headers["Origin"] = "http://localhost:3000"
    assert dicomweb.request("POST", "/studies", JSON, headers, content=instances.encoded(data_set)).status_code == 200


def test_the_answer_of_a_store_has_the_urls_of_the_proxy(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    response = dicomweb.request(
        "POST",
        "/studies",
        JSON,
        {"Content-Type": "application/dicom", "Forwarded": "proto=https;host=pacs.example.org"},
        content=instances.encoded(data_set),
    )
    (item,) = items(response.json(), "00081199")
    assert value(item, "00081190") == f"https://pacs.example.org/dicom-web{instances.resource(data_set)}"
    assert response.headers["location"] == f"https://pacs.example.org/dicom-web{instances.study_resource(data_set)}"


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:8042", "https://localhost"])
def test_pages_of_local_origins_may_read_answers_and_errors(dicomweb: DicomWeb, origin: str) -> None:
    for path in ("/studies?limit=1", "/studies?limit=x", "/nothing"):
        response = dicomweb.get(path, JSON, {"Origin": origin})
        assert response.headers["access-control-allow-origin"] == origin
        for name in ("Content-Range", "Content-Length", "ETag", "Content-Location", "Warning"):
            assert name in response.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origin", ["https://evil.example.org", "null", "http://localhost.evil.org"])
def test_pages_of_other_origins_may_not(dicomweb: DicomWeb, origin: str) -> None:
    response = dicomweb.get("/studies?limit=1", JSON, {"Origin": origin})
    assert "access-control-allow-origin" not in response.headers
    preflight = dicomweb.request("OPTIONS", "/studies", "*/*", {"Origin": origin, "Access-Control-Request-Method": "GET"})
    assert "access-control-allow-origin" not in preflight.headers


@pytest.mark.requirement("K-012")
def test_a_preflight_is_answered_and_allows_what_viewers_send(dicomweb: DicomWeb) -> None:
    headers = {
        "Origin": "http://localhost:3000",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, authorization",
    }
    response = dicomweb.request("OPTIONS", "/studies", "*/*", headers)
    assert response.status_code in (200, 204)
    assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
    allowed = response.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in ("accept", "authorization", "content-type", "range", "if-none-match"))
    assert "POST" in response.headers["access-control-allow-methods"]


def test_every_answer_may_be_embedded_and_is_not_sniffed(dicomweb: DicomWeb) -> None:
    for path in ("/studies?limit=1", "/nothing", "/studies?limit=x"):
        response = dicomweb.get(path)
        assert response.headers["cross-origin-resource-policy"] == "cross-origin"
        assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.distributed
def test_health_is_told_for_the_process_the_gateway_and_the_suite(dicomweb: DicomWeb) -> None:
    for path in ("live", "ready"):
        assert dicomweb.get(f"{dicomweb.origin}/healthz/{path}").status_code == 200
    response = dicomweb.get(f"{dicomweb.origin}/healthz/suite", "application/json")
    assert response.status_code == 200
    text = json.dumps(response.json())
    assert all(name in text for name in ("gateway", "blob", "index", "renderer", "workflow"))


@pytest.mark.distributed
def test_every_service_has_metrics_on_its_own_admin_port(suite: Suite, dicomweb: DicomWeb) -> None:
    ports = json.loads((suite.data / "run" / "ports.json").read_text())
    for name in ("gateway", "blob", "index", "renderer", "workflow"):
        response = dicomweb.get(f"http://127.0.0.1:{ports[f'{name}_admin']}/metrics")
        assert response.status_code == 200
        assert "gantry_" in response.text


def test_metadata_is_compressed_by_negotiation_and_frames_are_never(dicomweb: DicomWeb) -> None:
    data_set = instances.enhanced_ct()
    dicomweb.store(instances.encoded(data_set))
    path = instances.resource(data_set)
    gzip = {"Accept-Encoding": "gzip"}
    assert dicomweb.get(f"{path}/metadata", JSON, gzip).headers.get("content-encoding") == "gzip"
    assert "content-encoding" not in dicomweb.get(f"{path}/metadata", JSON, {"Accept-Encoding": "identity"}).headers
    assert "content-encoding" not in dicomweb.get(f"{path}/frames/1", OCTETS, gzip).headers


def test_metadata_has_an_etag_that_differs_with_the_content(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    dicomweb.store(instances.encoded(data_set))
    path = f"{instances.study_resource(data_set)}/metadata"
    etag = dicomweb.get(path, JSON).headers["etag"]
    assert dicomweb.get(path, JSON, {"If-None-Match": etag}).status_code == 304
    dicomweb.store(instances.encoded(instances.ct(StudyInstanceUID=data_set.StudyInstanceUID)))
    assert dicomweb.get(path, JSON, {"If-None-Match": etag}).status_code == 200


def test_no_answer_to_an_error_holds_a_patient_attribute(dicomweb: DicomWeb) -> None:
    name = "Secretname^Patient"
    data_set = instances.ct(PatientName=name)
    dicomweb.store(instances.encoded(data_set))
    data_set.StudyDescription = "other content"
    for response in (dicomweb.stow(instances.encoded(data_set)), dicomweb.get(f"/studies?PatientName={name}&limit=x", JSON)):
        assert response.status_code in (400, 409)
        assert "Secretname" not in response.text
