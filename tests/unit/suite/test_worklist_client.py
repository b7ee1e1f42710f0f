"""The worklist client against a server that answers late, wrong, or not at all: real sockets, no server of ours."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import orjson
import pytest
from websockets.asyncio.server import ServerConnection, serve

from gantry_standard import errors
from gantry_suite.worklist_client import WorklistClient, _Seen, element, value

ANSWERS = {
    "200": "200 OK",
    "201": "201 Created",
    "409": "409 Conflict",
    "418": "418 Teapot\nhello",
    "503": "503 Service Unavailable",
    "in progress": '200 OK\n[{"00741000":{"vr":"CS","Value":["IN PROGRESS"]}}]',
}
"""Status line and body; what is not here breaks the connection."""


def answer(name: str) -> bytes:
    """Return the bytes of an answer."""
    if name not in ANSWERS:
        return b""
    status, _, body = ANSWERS[name].partition("\n")
    return f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@asynccontextmanager
async def server(*answers: str) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Give each request, on a connection of its own, the next answer; yield the URL and the requests that came."""
    waiting, came = list(answers), list[bytes]()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        came.append(head + await reader.readexactly(length))
        writer.write(answer(waiting.pop(0)))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve_one, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/dicom-web", came
    assert not waiting, "requests are missing"


def test_a_creation_that_was_done_without_an_answer_is_recognised() -> None:
    async def story() -> None:
        async with server("nothing", "503", "409") as (url, came), WorklistClient(url) as worklist:
            uid = await worklist.create(element("ProcedureStepLabel", "x"))
        assert [request.split()[1] for request in came] == [f"/dicom-web/workitems?{uid}".encode()] * 3
        async with server("409") as (url, _), WorklistClient(url) as worklist:
            with pytest.raises(errors.Conflict):
                await worklist.create(element("ProcedureStepLabel", "x"))

    asyncio.run(story())


def test_a_claim_that_was_done_without_an_answer_is_ours() -> None:
    async def story() -> None:
        async with server("nothing", "409", "in progress") as (url, came), WorklistClient(url) as worklist:
            transaction_uid = await worklist.claim("1.2.3")
        for request in came[:2]:
            (sent,) = orjson.loads(request.split(b"\r\n\r\n", 1)[1])
            assert value(sent, "TransactionUID") == transaction_uid

    asyncio.run(story())


def test_a_filter_is_encoded_as_the_standard_has_it() -> None:
    async def story() -> None:
        async with server("201", "200") as (url, came), WorklistClient(url) as worklist:
            await worklist.subscribe("A B/C", filter={"WorklistLabel": "A,B=*", "PatientID": "1"}, deletion_lock=True)
            await worklist.unsubscribe("A B/C", filter={"PatientID": "1"})
        subscribed, ended = (request.split()[1].decode() for request in came)
        path, _, query = subscribed.partition("?")
        assert path == "/dicom-web/workitems/1.2.840.10008.5.1.4.34.5.1/subscribers/A%20B%2FC"
        assert query == "deletionlock=true&filter=WorklistLabel%3DA%252CB%253D%2A%2CPatientID%3D1"
        assert ended == f"{path}?filter=PatientID%3D1"

    asyncio.run(story())


def test_a_status_that_nobody_expects_is_told_with_the_sentence_of_the_server() -> None:
    async def story() -> None:
        async with server("418") as (url, _), WorklistClient(url) as worklist:
            with pytest.raises(errors.GantryError, match="418 Teapot: hello"):
                await worklist.get("1.2.3")

    asyncio.run(story())


def report(message_id: int, uid: str = "1.2.3") -> str:
    """Return a state report."""
    return orjson.dumps(
        {
            "00000110": {"vr": "US", "Value": [message_id]},
            "00001000": {"vr": "UI", "Value": [uid]},
            "00001002": {"vr": "US", "Value": [1]},
            "00741000": {"vr": "CS", "Value": ["SCHEDULED"]},
        }
    ).decode()


def test_repeated_reports_are_dropped_and_what_is_none_is_passed() -> None:
    connections = iter(
        (
            [report(1), report(2), "no JSON", "{}", report(1)],
            [report(2), report(3), report(2, "1.2.4")],
        )
    )

    async def tell(connection: ServerConnection) -> None:
        for message in next(connections):
            await connection.send(message)

    async def story() -> None:
        async with serve(tell, "127.0.0.1", 0) as listening:
            port = next(iter(listening.sockets)).getsockname()[1]
            heard = []
            async with WorklistClient(f"http://127.0.0.1:{port}") as worklist, aclosing(worklist.events("AE")) as events:
                async for event in events:
                    heard.append((event.message_id, event.workitem_uid))
                    if len(heard) == 4:
                        break
        assert heard == [(1, "1.2.3"), (2, "1.2.3"), (3, "1.2.3"), (2, "1.2.4")]

    asyncio.run(asyncio.wait_for(story(), 20))


def test_the_end_of_the_client_ends_the_iteration() -> None:
    async def keep(connection: ServerConnection) -> None:
        await connection.send(report(1))
        await connection.wait_closed()

    async def story() -> None:
        async with serve(keep, "127.0.0.1", 0) as listening:
            port = next(iter(listening.sockets)).getsockname()[1]
            heard = []
            async with WorklistClient(f"http://127.0.0.1:{port}") as worklist:
                events = worklist.events("AE")
                heard.append((await anext(events)).message_id)
                rest = asyncio.ensure_future(anext(events, None))
                await asyncio.sleep(0)
            assert await rest is None
        assert heard == [1]

    asyncio.run(asyncio.wait_for(story(), 20))


def test_only_so_many_reports_are_remembered() -> None:
    seen = _Seen(2)
    assert [seen.is_new(one) for one in (b"1", b"2", b"1", b"3", b"2", b"1")] == [True, True, False, True, True, True]
