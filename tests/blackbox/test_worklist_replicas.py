"""Several gateways with one workflow: whatever is asked of one is seen on the other; a crowd of sockets and a crowd of claims."""

import asyncio
import json
import resource
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.support import instances
from tests.support.dicomweb import JSON, DicomWeb, value
from tests.support.suite import AnotherGateway, Suite, anonymous_memory, another_gateway
from tests.support.workitems import FILTERED, GLOBAL, STATE, TRANSACTION_UID, Worklist, listening, new_ae_title, performed

CROWD = 1000
CROWD_BYTES = 100_000_000
CLAIMS, CONNECTIONS = 2000, 64


@pytest.fixture(scope="module")
def other(suite: Suite) -> Iterator[AnotherGateway]:
    """A second gateway with the suite's workflow."""
    with another_gateway(suite) as gateway:
        yield gateway


@pytest.mark.distributed
def test_what_is_done_at_one_gateway_is_seen_at_the_other(dicomweb: DicomWeb, other: AnotherGateway) -> None:
    here, there = Worklist(dicomweb), Worklist(other.client)
    label = f"L{instances.new_uid()[-12:]}"
    uid = here.created(x00741202={"vr": "LO", "Value": [label]})
    assert there.get(uid) == here.get(uid)
    assert there.found(f"WorklistLabel={label}") == here.found(f"WorklistLabel={label}") == [uid]
    assert there.create(uid=uid)[1].status_code == 409
    transaction = instances.new_uid()
    assert there.change_state(uid, "IN PROGRESS", transaction).status_code == 200
    assert value(here.get(uid), STATE) == "IN PROGRESS"
    assert here.change_state(uid, "IN PROGRESS", instances.new_uid()).status_code == 400
    assert here.found(f"WorklistLabel={label}&ProcedureStepState=IN%20PROGRESS") == [uid]
    assert here.update(uid, {"00741204": {"vr": "LO", "Value": ["changed here"]}}, transaction).status_code == 200
    assert value(there.get(uid), "00741204") == "changed here"
    assert there.found(f"WorklistLabel={label}&ProcedureStepLabel=changed%20here") == [uid]
    assert there.update(uid, performed(), transaction).status_code == 200
    assert here.change_state(uid, "COMPLETED", transaction).status_code == 200
    assert there.request_cancellation(uid).status_code == 409
    assert there.get(uid) == here.get(uid)
    assert there.found(f"WorklistLabel={label}&ProcedureStepState=COMPLETED") == [uid]


@pytest.mark.distributed
@pytest.mark.requirement("W-083")
@pytest.mark.parametrize("target", [GLOBAL, FILTERED, ""], ids=["global", "filtered", "one workitem"])
def test_a_subscription_made_at_one_gateway_is_heard_at_both_and_ended_at_the_other(
    dicomweb: DicomWeb, other: AnotherGateway, target: str
) -> None:
    here, there, ae_title = Worklist(dicomweb), Worklist(other.client), new_ae_title()
    label = f"L{instances.new_uid()[-12:]}"
    uid = here.created(x00741202={"vr": "LO", "Value": [label]})
    query = f"?filter=WorklistLabel%3D{label}" if target == FILTERED else ""
    response = here.subscribe(target or uid, ae_title, query)
    assert response.status_code == 201
    with (
        listening(here.dicomweb, ae_title) as one,
        listening(there.dicomweb, ae_title) as two,
        listening(there.dicomweb, ae_title) as three,
    ):
        transaction = instances.new_uid()
        assert there.change_state(uid, "IN PROGRESS", transaction).status_code == 200
        assert here.request_cancellation(uid).status_code == 202
        assert there.change_state(uid, "CANCELED", transaction).status_code == 200
        wanted = [(1, "IN PROGRESS"), (2, None), (1, "CANCELED")]
        for reports in (one, two, three):
            heard: list[tuple[int, str | None]] = [] if target else [(1, value(reports.next_of(uid), STATE))]
            assert heard in ([], [(1, "SCHEDULED")])
            found = [reports.next_of(uid) for _ in wanted]
            assert [(value(report, "00001002"), value(report, STATE) if STATE in report else None) for report in found] == wanted
        assert there.unsubscribe(target or uid, ae_title).status_code == 200
        assert here.unsubscribe(target or uid, ae_title).status_code == 404
        last = there.created(x00741202={"vr": "LO", "Value": [label]})
        assert one.none_of(last, 0.5)
        assert two.none_of(last, 0.1)


def test_a_thousand_idle_connections_add_less_than_a_hundred_megabytes(breakable_suite: Suite) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = CROWD + 200
    if hard < needed:
        pytest.skip(f"at most {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    try:
        with another_gateway(breakable_suite, "sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh") as gateway:
            assert asyncio.run(idle_crowd(gateway)) < CROWD_BYTES
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def idle_crowd(gateway: AnotherGateway) -> int:
    """Hold a thousand connections of as many AE titles open, and check that each is alive; return the bytes that they add."""
    url, prefix = f"ws{gateway.url.removeprefix('http')}/subscribers", new_ae_title()[:11]
    assert gateway.process is not None
    waiting = asyncio.Semaphore(16)

    async def opened(number: int) -> ClientConnection:
        async with waiting:
            return await connect(f"{url}/{prefix}{number}", proxy=None, ping_interval=None, open_timeout=30)

    await (await opened(9999)).close()
    before, begin = anonymous_memory(gateway.process.pid), time.monotonic()
    crowd = await asyncio.gather(*(opened(number) for number in range(CROWD)))
    took_s = time.monotonic() - begin
    assert all(connection.response and "Sec-WebSocket-Extensions" not in connection.response.headers for connection in crowd)
    for connection in crowd:
        await asyncio.wait_for(await connection.ping(), 10)
    added = anonymous_memory(gateway.process.pid) - before
    print(f"{CROWD} idle WebSockets, opened in {took_s:.1f} s: RssAnon {before / 1e6:.0f} MB + {added / 1e6:.1f} MB")
    await asyncio.gather(*(connection.close() for connection in crowd))
    return added


@pytest.mark.thorough
@pytest.mark.requirement("W-028", "W-034")
def test_of_two_thousand_claims_at_two_gateways_at_once_exactly_one_wins(breakable_suite: Suite) -> None:
    here = Worklist(breakable_suite.client())
    uid = here.created()

    async def claim(http: httpx.AsyncClient, url: str, slots: asyncio.Semaphore) -> tuple[int, str, str]:
        transaction = instances.new_uid()
        wanted = {STATE: {"vr": "CS", "Value": ["IN PROGRESS"]}, TRANSACTION_UID: {"vr": "UI", "Value": [transaction]}}
        headers = {"Content-Type": JSON, "Accept": JSON}
        async with slots:
            answer = await http.put(f"{url}/workitems/{uid}/state", content=json.dumps([wanted]), headers=headers)
        return answer.status_code, answer.headers.get("warning", ""), transaction

    async def story(urls: list[str]) -> list[tuple[int, str, str]]:
        slots = asyncio.Semaphore(CONNECTIONS)
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            return await asyncio.gather(*(claim(http, urls[number % 2], slots) for number in range(CLAIMS)))

    with another_gateway(breakable_suite) as other:
        answers = asyncio.run(story([breakable_suite.url, other.url]))
    assert Counter(status for status, _, _ in answers) == {200: 1, 400: CLAIMS - 1}
    assert all("The Transaction UID is incorrect." in warning for status, warning, _ in answers if status == 400)
    (winner,) = [transaction for status, _, transaction in answers if status == 200]
    assert here.change_state(uid, "CANCELED", instances.new_uid()).status_code == 400
    assert here.change_state(uid, "CANCELED", winner).status_code == 200
