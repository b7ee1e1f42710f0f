"""Event reports over WebSockets, with an independent client, real workflow and NATS."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gantry_gateway.worklist import notifications, websocket_protocol
from gantry_runtime.events import streams
from gantry_runtime.process import end_tasks
from tests.support.nats_server import until
from tests.support.worklist import GLOBAL, Http, Worklist, own_nats, state, uid, v, worklist

SCP_STATUS_CHANGE = 4


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Worklist, Http]]:
    with own_nats(tmp_path_factory.mktemp("nats")) as nats:
        async with worklist(nats) as suite, suite.workflow(), suite.gateway() as http:
            yield suite, http


@pytest.fixture
def http(running: tuple[Worklist, Http]) -> Http:
    return running[1]


async def next_report(socket: ClientConnection) -> dict[str, Any]:
    """Return the next event report about a workitem."""
    while True:
        text = await asyncio.wait_for(socket.recv(), 10)
        assert isinstance(text, str)
        report: dict[str, Any] = json.loads(text)
        if report["00001002"]["Value"] != [SCP_STATUS_CHANGE]:
            return report


def summary(report: dict[str, Any]) -> tuple[str, int, str]:
    """Return UID, event type and state."""
    return report["00001000"]["Value"][0], report["00001002"]["Value"][0], report.get("00741000", {}).get("Value", [""])[0]


async def summaries(socket: ClientConnection, count: int) -> list[tuple[str, int, str]]:
    return [summary(await next_report(socket)) for _ in range(count)]


async def test_a_subscriber_hears_of_a_workitem_from_its_subscription_on(http: Http) -> None:
    item = await http.create()
    url = await http.subscribe(item, "LISTENER")
    async with connect(url) as socket:
        first = await next_report(socket)
        assert first["00000002"] == v("UI", "1.2.840.10008.5.1.4.34.6.1")
        assert first["00000110"]["vr"] == "US"
        assert 0 < first["00000110"]["Value"][0] < 65_536
        assert first["00404041"] == v("CS", "READY")
        assert summary(first) == (item, 1, "SCHEDULED")
        transaction = await http.claim(item)
        assert await summaries(socket, 1) == [(item, 1, "IN PROGRESS")]
        progress = v("SQ", {"00741004": v("DS", "40"), "00741006": v("ST", "half")})
        await http.send("POST", f"/workitems/{item}?{transaction}", {"00741002": progress})
        report = await next_report(socket)
        assert summary(report) == (item, 3, "")
        assert report["00741002"]["Value"][0]["00741004"]["Value"] == ["40"]
        await http.send("POST", f"/workitems/{item}?{transaction}", {"00741204": v("LO", "No report of this")})
        await http.send("PUT", f"/workitems/{item}/state", state("CANCELED", transaction))
        report = await next_report(socket)
        assert summary(report) == (item, 1, "CANCELED")
        assert report["0074100E"]["Value"][0]["00080100"]["Value"] == ["110513"]


async def test_a_subscriber_that_was_away_gets_what_it_missed_in_order(http: Http) -> None:
    item = await http.create()
    url = await http.subscribe(item, "AWAY")
    transaction = await http.claim(item)
    for percent in range(20):
        await http.send("POST", f"/workitems/{item}?{transaction}", {"00741002": v("SQ", {"00741004": v("DS", str(percent))})})
    async with connect(url) as socket:
        assert await summaries(socket, 2) == [(item, 1, "SCHEDULED"), (item, 1, "IN PROGRESS")]
        reports = [await next_report(socket) for _ in range(20)]
    assert [report["00741002"]["Value"][0]["00741004"]["Value"] for report in reports] == [[str(p)] for p in range(20)]


async def test_a_failure_while_catching_up_does_not_silence_an_open_connection(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    item = await http.create()
    url = await http.subscribe(item, "FAILS")
    hub, failures = http.gateway.notifications, iter([RuntimeError("the transport is gone")])
    catch_up = hub._catch_up

    async def failing(connection: object) -> None:
        for failure in failures:
            raise failure
        await catch_up(connection)

    monkeypatch.setattr(hub, "_catch_up", failing)
    async with connect(url) as socket:
        assert await summaries(socket, 1) == [(item, 1, "SCHEDULED")]
    assert list(failures) == []


async def test_a_connection_whose_sender_dies_is_cut(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    async def keep_up(connection: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(http.gateway.notifications, "keep_up", keep_up)
    async with connect(http.ws + "/subscribers/DIES") as socket:
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(socket.recv(), 10)
    await until(lambda: "DIES" not in http.gateway.notifications._connections)


async def test_a_cursor_that_cannot_be_read_does_not_keep_those_of_others_from_being_noted(
    http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "STORE_S", 0.05)
    monkeypatch.setattr(notifications, "QUIET_S", 0.05)
    bucket = await streams.open_bucket(http.gateway.nats.jetstream(), "subscribers")
    hub = http.gateway.notifications
    noting = asyncio.create_task(hub.note())
    async with connect(http.ws + "/subscribers/BROKEN"), connect(http.ws + "/subscribers/WHOLE"):
        await bucket.put(b"BROKEN".hex(), b"no record")
        _, before = await bucket.get(b"WHOLE".hex())

        async def is_noted_again() -> bool:
            return (await bucket.get(b"WHOLE".hex()))[1] > before + 2

        await until(is_noted_again)
        assert not noting.done()
        await bucket.put(b"BROKEN".hex(), b'{"cursor": 0, "connections": {}}')
    await end_tasks([noting])


async def test_what_a_pong_confirmed_is_not_sent_again_and_what_it_did_not_is_with_the_same_message_id(
    http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket_protocol, "PING_SOON_S", 0.05)
    item = await http.create()
    url = await http.subscribe(item, "PONGS")
    hub = http.gateway.notifications
    async with connect(url) as socket:
        await next_report(socket)
        (connection,) = hub._connections["PONGS"]
        await until(lambda: connection.protocol.delivered >= connection.protocol.last_sent > 0)
        # From here on nothing is confirmed any more.
        monkeypatch.setattr(websocket_protocol, "PING_SOON_S", 30)
        await http.claim(item)
        unconfirmed = await next_report(socket)
    await until(lambda: "PONGS" not in hub._connections)
    async with connect(url) as socket:
        repeated = await next_report(socket)
    assert summary(repeated) == (item, 1, "IN PROGRESS")
    assert repeated["00000110"] == unconfirmed["00000110"]


async def test_every_connection_of_an_ae_title_gets_every_report_on_every_gateway(running: tuple[Worklist, Http]) -> None:
    suite, http = running
    async with suite.gateway() as other:
        url = await http.subscribe(GLOBAL, "TWICE")
        elsewhere = url.replace(http.ws, other.ws)
        async with connect(url) as one, connect(url) as two, connect(elsewhere) as three:
            item = await other.create()
            for socket in (one, two, three):
                assert await summaries(socket, 2) == [(item, 1, "SCHEDULED"), (item, 5, "")]
        await http.send("DELETE", f"/workitems/{GLOBAL}/subscribers/TWICE")


async def test_a_global_subscription_with_lock_hears_of_every_workitem_at_once_and_one_without_of_changes_only(
    tmp_path: Path,
) -> None:
    with own_nats(tmp_path) as nats:
        async with worklist(nats) as suite, suite.workflow(), suite.gateway() as http:
            items = [await http.create() for _ in range(12)]
            quiet = await http.subscribe(GLOBAL, "QUIET")
            locked = await http.subscribe(GLOBAL, "LOCKED", "?deletionlock=true")
            async with connect(locked) as socket, connect(quiet) as other:
                assert await summaries(socket, 12) == [(item, 1, "SCHEDULED") for item in items]
                await http.send("DELETE", f"/workitems/{items[3]}/subscribers/LOCKED")
                await http.claim(items[3])
                await http.claim(items[4])
                assert await summaries(socket, 1) == [(items[4], 1, "IN PROGRESS")]
                assert await summaries(other, 2) == [(items[3], 1, "IN PROGRESS"), (items[4], 1, "IN PROGRESS")]
                await http.send("POST", f"/workitems/{GLOBAL}/subscribers/QUIET/suspend")
                await http.create()
                await http.claim(items[5])
                assert await summaries(other, 1) == [(items[5], 1, "IN PROGRESS")]


async def test_a_cancel_request_is_told_to_subscribers(http: Http) -> None:
    scheduled, claimed = await http.create(), await http.create()
    url = await http.subscribe(scheduled, "CANCELS")
    await http.subscribe(claimed, "CANCELS")
    await http.claim(claimed)
    await http.send("POST", f"/workitems/{scheduled}/cancelrequest", {"00741238": v("LT", "Not needed")})
    await http.send("POST", f"/workitems/{claimed}/cancelrequest", {"00741238": v("LT", "Not needed")})
    async with connect(url) as socket:
        assert await summaries(socket, 5) == [
            (scheduled, 1, "SCHEDULED"),
            (claimed, 1, "SCHEDULED"),
            (claimed, 1, "IN PROGRESS"),
            (scheduled, 1, "IN PROGRESS"),
            (scheduled, 1, "CANCELED"),
        ]
        report = await next_report(socket)
    assert summary(report) == (claimed, 2, "")
    assert report["00741236"] == v("AE", "GANTRY")
    assert report["00741238"] == v("LT", "Not needed")


async def test_handshakes(http: Http) -> None:
    for path in ("/subscribers/AE1", "/ws/subscribers/AE1", "/?requester=AE1", "/subscribers/AE%201"):
        async with connect(http.ws + path) as socket:
            await socket.ping()
    async with connect(http.ws + "/subscribers/AE1", origin=http.base.removesuffix("/dicom-web")):
        pass
    for path, status in (("/subscribers/" + "A" * 17, 400), ("/", 400), ("/studies", 404), ("/subscribers/A%5CB", 400)):
        with pytest.raises(InvalidStatus) as refused:
            async with connect(http.ws + path):
                pass
        assert refused.value.response.status_code == status
    with pytest.raises(InvalidStatus) as refused:
        async with connect(http.ws + "/subscribers/AE1", origin="https://elsewhere.example"):
            pass
    assert refused.value.response.status_code == 403


async def test_a_plain_get_of_a_notification_connection_is_told_to_upgrade(http: Http) -> None:
    answer = await http.send("GET", "/subscribers/AE1")
    assert answer.status_code == 400
    assert answer.headers["upgrade"] == "websocket"
    assert "WebSocket" in answer.json()["message"]
    answer = await http.send("GET", "/subscribers/AE1", **{"Sec-WebSocket-Version": "13"})
    assert answer.status_code == 400


async def test_no_more_connections_than_the_setting_are_taken(running: tuple[Worklist, Http]) -> None:
    suite, _ = running
    async with suite.gateway(websocket_max_connections=1) as http:
        async with connect(http.ws + "/subscribers/AE1"):
            with pytest.raises(InvalidStatus) as refused:
                async with connect(http.ws + "/subscribers/AE2"):
                    pass
            assert refused.value.response.status_code == 503
            assert refused.value.response.headers["retry-after"]


async def test_a_peer_that_stops_reading_holds_no_memory_and_loses_nothing(http: Http) -> None:
    item = await http.create()
    url = await http.subscribe(item, "SLOW")
    transaction = await http.claim(item)
    count, text = 60, "x" * 100_000
    async with connect(url, max_queue=1) as slow:
        hub = http.gateway.notifications
        (connection,) = hub._connections["SLOW"]
        for number in range(count):
            parameters = v("SQ", {"0040A160": v("UT", text), "00741004": v("DS", str(number))})
            update = {"00741002": v("SQ", {"00741004": v("DS", str(number)), "00741007": parameters})}
            assert (await http.send("POST", f"/workitems/{item}?{transaction}", update)).status_code == 200
        await until(lambda: not connection.is_live)
        assert connection.protocol.transport.get_write_buffer_size() < 2_000_000
        assert await summaries(slow, 2) == [(item, 1, "SCHEDULED"), (item, 1, "IN PROGRESS")]
        reports = [await next_report(slow) for _ in range(count)]
    assert [report["00741002"]["Value"][0]["00741004"]["Value"] for report in reports] == [[str(n)] for n in range(count)]


async def test_a_peer_that_does_not_pong_is_cut(running: tuple[Worklist, Http], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_protocol, "PING_INTERVAL_S", 0.1)
    monkeypatch.setattr(websocket_protocol, "PING_TIMEOUT_S", 0.2)
    _, http = running
    reader, writer = await asyncio.open_connection("127.0.0.1", int(http.base.split(":")[2].split("/")[0]))
    writer.write(
        b"GET /dicom-web/subscribers/FROZEN HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert b" 101 " in await reader.readline()
    hub = http.gateway.notifications
    await until(lambda: "FROZEN" in hub._connections)
    await until(lambda: "FROZEN" not in hub._connections)
    writer.close()


async def test_reports_go_on_after_nats_and_workflow_were_away(tmp_path: Path) -> None:
    with own_nats(tmp_path) as nats:
        async with worklist(nats) as suite, suite.gateway() as http:
            async with suite.workflow():
                item = await http.create()
                url = await http.subscribe(item, "STAYS")
                socket = await connect(url).__aenter__()
                assert await summaries(socket, 1) == [(item, 1, "SCHEDULED")]
                nats.kill()
                answer = await http.send("PUT", f"/workitems/{item}/state", state("IN PROGRESS", uid()))
                assert answer.status_code == 503
                nats.start()
                transaction = uid()

                async def is_claimed() -> bool:
                    answer = await http.send("PUT", f"/workitems/{item}/state", state("IN PROGRESS", transaction))
                    # 400: the claim that was answered 503 arrived after all.
                    assert answer.status_code in (200, 400, 503)
                    return answer.status_code != 503

                await until(is_claimed, 20)
                assert await summaries(socket, 1) == [(item, 1, "IN PROGRESS")]
            async with suite.workflow():
                text = json.loads(await asyncio.wait_for(socket.recv(), 10))
                assert text["00001002"]["Value"] == [SCP_STATUS_CHANGE]
                assert text["00741242"]["Value"] == ["RESTARTED"]
                other = await http.create()
                await http.subscribe(other, "STAYS")
                assert await summaries(socket, 1) == [(other, 1, "SCHEDULED")]
            await socket.close()


async def test_the_connection_is_closed_with_1012_when_the_gateway_stops(running: tuple[Worklist, Http]) -> None:
    suite, _ = running
    async with suite.gateway() as http:
        socket = await connect(http.ws + "/subscribers/AE1").__aenter__()
    with pytest.raises(ConnectionClosed) as closed:
        await asyncio.wait_for(socket.recv(), 5)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012


async def test_a_subscriber_that_was_away_too_long_is_told_that_reports_were_dropped(tmp_path: Path) -> None:
    with own_nats(tmp_path) as nats:
        async with worklist(nats) as suite, suite.workflow(), suite.gateway() as http:
            item = await http.create()
            url = await http.subscribe(item, "LATE")
            transaction = await http.claim(item)
            js = http.gateway.nats.jetstream()

            async def is_written() -> bool:
                return (await js.stream_info("REPORTS")).state.last_seq >= 3

            await until(is_written)
            # What the age and the number of the stream do to reports that nobody fetches.
            await js.purge_stream("REPORTS")
            async with connect(url) as socket:
                told = json.loads(await asyncio.wait_for(socket.recv(), 10))
                assert told["00001002"]["Value"] == [SCP_STATUS_CHANGE]
                assert (told["00741242"]["Value"], told["00741246"]["Value"]) == (["RESTARTED"], ["COLD START"])
                await http.send("PUT", f"/workitems/{item}/state", state("CANCELED", transaction))
                assert await summaries(socket, 1) == [(item, 1, "CANCELED")]
