"""Store: what blob receives of a multipart payload, and the response."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from gantry.blob.v1 import blob_pb2
from gantry.events.v1 import events_pb2
from gantry_gateway.http.request import Request
from gantry_gateway.settings import GatewaySettings
from gantry_gateway.studies.store import part_events
from gantry_runtime.events.streams import connecting
from gantry_standard import errors
from gantry_standard.http.multipart import PartData
from tests.support.nats_server import NatsServer, until
from tests.unit.gateway.harness import CT, Running, Uploaded, running, stored

RELATED = 'multipart/related; type="application/dicom"; boundary=B'
ONE, TWO = b"1.2 1.2.3 1.2.3.4", b"1.2 1.2.3 1.2.3.5"


def payload(*parts: bytes | tuple[bytes, bytes]) -> bytes:
    """Return a multipart payload of instances, or of (headers, data)."""
    made = b""
    for part in parts:
        headers, data = part if isinstance(part, tuple) else (b"Content-Type: application/dicom\r\n", part)
        made += b"--B\r\n" + headers + b"\r\n" + data + b"\r\n"
    return made + b"--B--\r\n"


@pytest.fixture(scope="module")
async def one(nats_server: NatsServer) -> AsyncIterator[Running]:
    async with running(nats_server, store_outcome_s=0.3, store_max_parts=50, upload_idle_s=0.5) as gateway:
        yield gateway


@pytest.fixture
def gateway(one: Running) -> Running:
    one.blob.__init__()
    one.blob.reply = one.gateway.nats.publish
    return one


async def store(gateway: Running, content: object, path: str = "/studies", **headers: str):
    """Send a POST with the headers of an ordinary client."""
    given = {"Content-Type": RELATED, "Accept": "application/dicom+json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return await gateway.http.post(path, content=content, headers=given)


async def test_two_instances_are_stored_and_told_in_the_response_module(gateway: Running) -> None:
    answer = await store(gateway, payload(ONE, TWO))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/dicom+json"
    study = f"{gateway.root}/studies/1.2"
    assert answer.headers["location"] == answer.headers["content-location"] == study
    assert answer.json() == {
        "00081190": {"vr": "UR", "Value": [study]},
        "00081199": {
            "vr": "SQ",
            "Value": [
                {
                    "00081150": {"vr": "UI", "Value": [CT]},
                    "00081155": {"vr": "UI", "Value": [uid]},
                    "00081190": {"vr": "UR", "Value": [f"{study}/series/1.2.3/instances/{uid}"]},
                }
                for uid in ("1.2.3.4", "1.2.3.5")
            ],
        },
    }
    assert [bytes(part.data) for part in gateway.blob.parts] == [ONE, TWO]
    assert [part.part_number for part in gateway.blob.parts] == [0, 1]
    assert gateway.blob.starts[0].reply_subject.endswith(gateway.blob.starts[0].request_id)
    assert not gateway.blob.starts[0].reply_subject.startswith("store.")


async def test_study_of_the_path_is_passed_to_blob(gateway: Running) -> None:
    assert (await store(gateway, payload(ONE), "/studies/1.2")).status_code == 200
    assert gateway.blob.starts[0].collection == "1.2"


async def test_study_of_the_path_that_is_no_uid_is_bad(gateway: Running) -> None:
    assert (await store(gateway, payload(ONE), "/studies/abc")).status_code == 400
    assert not gateway.blob.starts


async def test_several_studies_have_no_common_url(gateway: Running) -> None:
    answer = await store(gateway, payload(ONE, b"1.9 1.9.3 1.9.3.4"))
    assert answer.json()["00081190"] == {"vr": "UR"}
    assert answer.headers["location"] == f"{gateway.root}/studies"


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/related; type=application/dicom; boundary=B",
        'Multipart/Related;boundary="B";TYPE="Application/DICOM"',
        "multipart/related; boundary=B",
        'multipart/related; type="application/dicom"; boundary=B; start="<a>"; transfer-syntax=1.2.840.10008.1.2.1',
    ],
)
async def test_spellings_of_content_type_are_taken(gateway: Running, content_type: str) -> None:
    assert (await store(gateway, payload(ONE), Content_Type=content_type)).status_code == 200


async def test_single_instance_without_multipart_is_taken(gateway: Running) -> None:
    answer = await store(gateway, ONE, Content_Type="application/dicom")
    assert answer.status_code == 200
    assert bytes(gateway.blob.parts[0].data) == ONE


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/json",
        'multipart/related; type="application/json"; boundary=B',
        "multipart/related; type=text/plain; boundary=B",
        "multipart/related; type=image/webp; boundary=B",
        "application/dicom+json",
        "multipart/form-data; boundary=B",
        "",
    ],
)
async def test_other_content_types_are_unsupported_and_the_answer_says_what_is(gateway: Running, content_type: str) -> None:
    answer = await store(gateway, payload(ONE), Content_Type=content_type)
    assert answer.status_code == 415
    assert 'multipart/related; type=\\"application/dicom\\"' in answer.text
    assert not gateway.blob.starts


async def test_content_encoding_is_unsupported(gateway: Running) -> None:
    assert (await store(gateway, payload(ONE), Content_Encoding="gzip")).status_code == 415


@pytest.mark.parametrize(
    ("content_type", "content"),
    [
        pytest.param("multipart/related; type=application/dicom", payload(ONE), id="no boundary parameter"),
        pytest.param(f"multipart/related; boundary={'x' * 71}", payload(ONE), id="illegal boundary"),
        pytest.param(RELATED, b"", id="empty"),
        pytest.param(RELATED, b"--B--", id="no part"),
        pytest.param(RELATED, ONE, id="no boundary in the payload"),
        pytest.param(RELATED, payload(ONE, TWO)[:-8], id="truncated"),
        pytest.param(RELATED, payload((b"no colon\r\n", ONE)), id="bad part header"),
        pytest.param("application/dicom", b"", id="empty single instance"),
        pytest.param("multipart/related; boundary", payload(ONE), id="unreadable Content-Type"),
    ],
)
async def test_bad_payload_is_refused_and_nothing_is_stored(gateway: Running, content_type: str, content: bytes) -> None:
    answer = await store(gateway, content, Content_Type=content_type)
    assert answer.status_code == 400
    assert answer.json()["message"]
    assert gateway.blob.ended == 0
    await until(lambda: gateway.blob.calls_over == len(gateway.blob.starts))


async def test_accept_that_cannot_be_met_is_refused_before_anything_is_read(gateway: Running) -> None:
    answer = await store(gateway, payload(ONE), Accept="application/pdf")
    assert answer.status_code == 406
    assert not gateway.blob.starts


async def test_missing_accept_means_json_unless_strict(gateway: Running, nats_server: NatsServer) -> None:
    del gateway.http.headers["accept"]
    answer = await gateway.http.post("/studies", content=payload(ONE), headers={"Content-Type": RELATED})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom+json")
    async with running(nats_server, strict_accept=True) as strict:
        del strict.http.headers["accept"]
        assert (await strict.http.post("/studies", content=payload(ONE), headers={"Content-Type": RELATED})).status_code == 406


async def test_chunked_body_of_single_bytes_is_taken(gateway: Running) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for byte in payload(ONE):
            yield bytes([byte])

    answer = await store(gateway, chunks())
    assert answer.status_code == 200
    assert answer.request.headers["transfer-encoding"] == "chunked"
    assert bytes(gateway.blob.parts[0].data) == ONE


async def test_large_instance_goes_as_full_messages_whatever_the_chunks_were(gateway: Running) -> None:
    instance = ONE + b" " + bytes(range(256)) * 20_000

    async def chunks() -> AsyncIterator[bytes]:
        whole = payload(instance)
        for begin in range(0, len(whole), 7001):
            yield whole[begin : begin + 7001]

    assert (await store(gateway, chunks())).status_code == 200
    assert bytes(gateway.blob.parts[0].data) == instance
    assert gateway.blob.parts[0].largest_message == 512 << 10


async def test_100_continue_is_said_only_where_the_body_is_wanted(gateway: Running) -> None:
    async def first_line(content_type: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        body = payload(ONE)
        writer.write(
            f"POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
        )
        line = await asyncio.wait_for(reader.readline(), 5)
        if b" 100 " in line:
            writer.write(body)
            await reader.readline()
            line += await asyncio.wait_for(reader.readline(), 5)
        writer.close()
        return line

    assert await first_line(RELATED) == b"HTTP/1.1 100 Continue\r\nHTTP/1.1 200 OK\r\n"
    assert await first_line("text/plain") == b"HTTP/1.1 415 Unsupported Media Type\r\n"


def _not_referenced(part: Uploaded) -> blob_pb2.PartResult:
    """Return what blob decides about a part that is no instance, if no metadata refers to it."""
    if part.content_type == "application/dicom":
        return stored(part)
    return blob_pb2.PartResult(part_number=part.part_number, failure_reason=0xC002)


async def test_part_of_another_type_fails_alone(gateway: Running) -> None:
    gateway.blob.decide = _not_referenced
    answer = await store(gateway, payload(ONE, (b"Content-Type: text/plain\r\n", b"hello"), TWO))
    assert answer.status_code == 202
    module = answer.json()
    assert module["0008119A"] == {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xC002]}}]}
    assert len(module["00081199"]["Value"]) == 2
    assert [part.content_type for part in gateway.blob.parts] == ["application/dicom", "text/plain", "application/dicom"]


async def test_part_without_content_type_is_taken_as_what_the_request_says(gateway: Running) -> None:
    assert (await store(gateway, payload((b"", ONE)))).status_code == 200
    assert gateway.blob.parts[0].content_type == "application/dicom"
    json = RELATED.replace("application/dicom", "application/dicom+json")
    assert (await store(gateway, payload((b"", ONE)), Content_Type=json)).status_code == 200
    assert gateway.blob.parts[1].content_type == "application/dicom+json"


@pytest.mark.parametrize("name", ["application/dicom+json", "application/dicom+xml", "application/octet-stream", "image/jp2", "image/png"])
async def test_every_kind_of_part_may_be_named_as_the_type_of_the_request(gateway: Running, name: str) -> None:
    answer = await store(gateway, payload(ONE), Content_Type=f'multipart/related; type="{name}"; boundary=B')
    assert answer.status_code == 200
    assert gateway.blob.starts[0].request_uri == f"{gateway.root}/studies"


async def test_only_parts_of_another_type_are_a_conflict(gateway: Running) -> None:
    gateway.blob.decide = _not_referenced
    answer = await store(gateway, payload((b"Content-Type: text/plain\r\n", b"hello")))
    assert answer.status_code == 409
    assert answer.json() == {"00081190": {"vr": "UR"}, "0008119A": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xC002]}}]}}
    assert "location" not in answer.headers


def _refused(reason: int):
    def decide(part: Uploaded) -> blob_pb2.PartResult:
        result = stored(part)
        if part.part_number == 0:
            result.failure_reason = reason
        return result

    return decide


async def test_refused_instance_is_told_and_the_others_are_stored(gateway: Running) -> None:
    gateway.blob.decide = _refused(0x0122)
    answer = await store(gateway, payload(ONE, TWO))
    assert answer.status_code == 202
    assert answer.json()["00081198"]["Value"] == [
        {
            "00081150": {"vr": "UI", "Value": [CT]},
            "00081155": {"vr": "UI", "Value": ["1.2.3.4"]},
            "00081197": {"vr": "US", "Value": [0x0122]},
        }
    ]
    assert len(answer.json()["00081199"]["Value"]) == 1


async def test_all_refused_is_a_conflict(gateway: Running) -> None:
    gateway.blob.decide = _refused(0xA900)
    answer = await store(gateway, payload(ONE))
    assert answer.status_code == 409
    assert "00081199" not in answer.json()


async def test_out_of_resources_of_an_instance_is_a_warning(gateway: Running) -> None:
    gateway.blob.decide = _refused(0xA700)
    answer = await store(gateway, payload(ONE, TWO))
    assert answer.status_code == 202
    assert answer.headers["warning"] == f"A700 {gateway.root}: Out of resources"


async def test_warning_reason_makes_it_accepted(gateway: Running) -> None:
    def decide(part: Uploaded) -> blob_pb2.PartResult:
        result = stored(part)
        result.warning_reasons.append(0xB007)
        return result

    gateway.blob.decide = decide
    answer = await store(gateway, payload(ONE))
    assert answer.status_code == 202
    assert answer.json()["00081199"]["Value"][0]["00081196"] == {"vr": "US", "Value": [0xB007]}


async def test_duplicate_is_refused_with_0111(gateway: Running) -> None:
    gateway.blob.outcome = {0: events_pb2.OUTCOME_DUPLICATE}
    answer = await store(gateway, payload(ONE))
    assert answer.status_code == 409
    assert answer.json()["00081198"]["Value"][0]["00081197"] == {"vr": "US", "Value": [273]}


async def test_same_content_again_is_stored_without_a_new_location(gateway: Running) -> None:
    gateway.blob.outcome = {0: events_pb2.OUTCOME_SAME}
    answer = await store(gateway, payload(ONE))
    assert answer.status_code == 200
    assert "location" not in answer.headers
    assert answer.headers["content-location"] == f"{gateway.root}/studies/1.2"


async def test_silent_index_is_202_with_a_warning(gateway: Running) -> None:
    gateway.blob.outcome = {1: None}
    answer = await store(gateway, payload(ONE, TWO))
    assert answer.status_code == 202
    assert answer.headers["warning"].startswith(f"299 {gateway.root}: stored, but not confirmed by the index")
    assert len(answer.json()["00081199"]["Value"]) == 2


async def test_disk_full_is_503_with_a700(gateway: Running) -> None:
    gateway.blob.refuse = errors.OutOfResources("2 % of the disk are left", retry_after_s=60)
    for _ in range(20):
        answer = await store(gateway, payload(ONE + b" " + bytes(3 << 20), TWO))
        assert answer.status_code == 503
        assert answer.headers["warning"] == f"A700 {gateway.root}: 2 % of the disk are left"
        assert answer.headers["retry-after"] == "60"


async def test_more_parts_than_the_limit_are_too_large(gateway: Running) -> None:
    assert (await store(gateway, payload(*[ONE] * 50))).status_code == 200
    before = gateway.blob.ended
    assert (await store(gateway, payload(*[ONE] * 51))).status_code == 413
    assert gateway.blob.ended == before


async def test_cached_records_of_each_study_in_which_something_was_replaced_are_dropped_once(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[str] = []
    monkeypatch.setattr(gateway.gateway.retrieval.records, "changed", dropped.append)
    gateway.blob.outcome = dict.fromkeys((0, 1, 3), events_pb2.OUTCOME_REPLACED) | {2: events_pb2.OUTCOME_SAME}
    studies = (b"1.2", b"1.2", b"1.3", b"1.4")
    answer = await store(gateway, payload(*[study + b" 1.2.3 1.2.3." + str(n).encode() for n, study in enumerate(studies)]))
    assert answer.status_code == 200
    assert sorted(dropped) == ["1.2", "1.4"]


async def test_blob_that_is_down_is_503(nats_server: NatsServer) -> None:
    async with running(nats_server, without=["blob"]) as gateway:
        answer = await store(gateway, payload(ONE))
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert "blob does not answer" in answer.text


async def test_nats_that_never_answered_is_503(gateway: Running) -> None:
    nats, inbox = gateway.gateway.nats, gateway.gateway.inbox
    gateway.gateway.inbox = None
    try:
        assert (await store(gateway, payload(ONE))).status_code == 503
        gateway.gateway.inbox = inbox
        async with connecting("nats://127.0.0.1:1", "test") as (client, _):
            gateway.gateway.nats = client
            answer = await store(gateway, payload(ONE))
        assert answer.status_code == 503
        assert "NATS does not answer" in answer.text
    finally:
        gateway.gateway.nats, gateway.gateway.inbox = nats, inbox
    assert not gateway.blob.starts


async def test_client_that_goes_away_stores_nothing(gateway: Running) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(
        f"POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: {RELATED}\r\nContent-Length: 9999999\r\n\r\n".encode()
    )
    writer.write(payload(ONE)[:-10] + bytes(2 << 20))
    await until(lambda: gateway.blob.parts and gateway.blob.parts[0].data)
    writer.close()
    await until(lambda: gateway.blob.calls_over == 1)
    assert gateway.blob.ended == 0


async def test_client_that_stops_sending_is_given_up(gateway: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(
        f"POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: {RELATED}\r\n".encode()
        + b"Content-Length: 9999\r\n\r\n--B\r\n\r\n"
    )
    assert await asyncio.wait_for(reader.readline(), 5) == b"HTTP/1.1 400 Bad Request\r\n"
    writer.close()


async def test_memory_does_not_grow_with_the_instance(gateway: Running) -> None:
    gateway.blob.keep = False
    gateway.blob.decide = lambda part: stored(Uploaded(part.part_number, "", bytearray(ONE)))
    piece = bytes(1 << 18)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"--B\r\n\r\n"
        for _ in range(600):
            yield piece
        yield b"\r\n--B--"

    tracemalloc.start()
    try:
        assert (await store(gateway, chunks())).status_code == 200
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30 << 20


async def test_answers_use_the_url_that_the_client_sees(gateway: Running) -> None:
    answer = await store(gateway, payload(ONE), Forwarded='proto=https;host="pacs.example:8443"')
    assert json.loads(answer.content)["00081190"]["Value"] == ["https://pacs.example:8443/dicom-web/studies/1.2"]


async def test_a_chunk_of_many_small_parts_is_read_in_steps(gateway: Running) -> None:
    body = b"--B\r\n\r\nx\r\n" * 5000 + b"--B--\r\n"
    sent = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, object]:
        return sent.pop()

    request = Request(
        {"type": "http", "path": "/", "headers": []}, receive, replace(gateway.gateway, settings=GatewaySettings()), {}, "http://h"
    )
    steps = [list(events) async for events in part_events(request, "B")]
    parts = [event for events in steps for event in events if isinstance(event, PartData)]
    assert [bytes(part.data) for part in parts] == [b"x"] * 5000
    assert max(map(len, steps)) < 1000
