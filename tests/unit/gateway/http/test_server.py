"""Responses in one write: the client gets the same bytes as by ASGI messages, and a client that does not read takes little memory."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gantry_gateway.http import server
from gantry_gateway.http.server import write_whole

Fields = list[tuple[bytes, bytes]]
BIG = bytes(8 << 20)


class Answers:
    """Answers by path; counts the responses that were written at once, and those that could not be."""

    def __init__(self) -> None:
        self.written: list[bool] = []
        self.errors: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, fields, bodies = ANSWERS[scope["path"]]
        try:
            self.written.append(write_whole(send, status, fields, bodies))
        except RuntimeError as error:
            self.errors.append(str(error))
            raise
        if not self.written[-1]:
            await send({"type": "http.response.start", "status": status, "headers": fields})
            await send({"type": "http.response.body", "body": b"".join(bodies)})


ANSWERS: dict[str, tuple[int, Fields, list[bytes]]] = {
    "/two": (200, [(b"content-length", b"6"), (b"etag", b'"1"')], [b"abc", b"def"]),
    "/none": (204, [], []),
    "/known": (304, [(b"etag", b'"1"')], []),
    "/empty": (200, [(b"content-length", b"0")], [b""]),
    "/unmeasured": (200, [], [b"abc"]),
    "/closing": (200, [(b"content-length", b"3"), (b"connection", b"close")], [b"abc"]),
    "/short": (200, [(b"content-length", b"4")], [b"abc"]),
    "/split": (200, [(b"content-length", b"3"), (b"etag", b'"1"\r\nset-cookie: a=b')], [b"abc"]),
    "/bell": (200, [(b"content-length", b"3"), (b"etag", b"\x07")], [b"abc"]),
    "/big": (200, [(b"content-length", str(len(BIG)).encode())], [BIG]),
}


@pytest.fixture
async def answers() -> AsyncIterator[tuple[Answers, int]]:
    app = Answers()
    async with server.serving(app, "127.0.0.1", 0, drain_s=1) as port:
        yield app, port


async def exchange(port: int, *requests: str) -> bytes:
    """Send all requests on one connection, close the sending side, and return all received bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("".join(f"{request}\r\nHost: localhost\r\n\r\n" for request in requests).encode())
    writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


def without_date(answer: bytes) -> list[bytes]:
    """Return the lines of a response without its Date, which must be present."""
    lines = answer.split(b"\r\n")
    assert sum(line.startswith(b"date: ") for line in lines) == 1
    return [line for line in lines if not line.startswith(b"date: ")]


@pytest.mark.parametrize(
    ("request_line", "expected"),
    [
        ("GET /two HTTP/1.1", [b"HTTP/1.1 200 OK", b"content-length: 6", b'etag: "1"', b"", b"abcdef"]),
        ("HEAD /two HTTP/1.1", [b"HTTP/1.1 200 OK", b"content-length: 6", b'etag: "1"', b"", b""]),
        ("GET /none HTTP/1.1", [b"HTTP/1.1 204 No Content", b"", b""]),
        ("GET /known HTTP/1.1", [b"HTTP/1.1 304 Not Modified", b'etag: "1"', b"", b""]),
        ("GET /empty HTTP/1.1", [b"HTTP/1.1 200 OK", b"content-length: 0", b"", b""]),
        ("GET /two HTTP/1.0", [b"HTTP/1.1 200 OK", b"content-length: 6", b'etag: "1"', b"connection: close", b"", b"abcdef"]),
    ],
)
async def test_an_answer_that_is_there_is_one_write(answers: tuple[Answers, int], request_line: str, expected: list[bytes]) -> None:
    app, port = answers
    assert without_date(await exchange(port, request_line)) == expected
    assert app.written == [True]


async def test_what_does_not_say_its_length_or_is_about_the_connection_goes_by_messages(answers: tuple[Answers, int]) -> None:
    app, port = answers
    assert without_date(await exchange(port, "GET /unmeasured HTTP/1.1"))[-4:] == [b"abc", b"0", b"", b""]
    assert (await exchange(port, "GET /closing HTTP/1.1")).endswith(b"connection: close\r\n\r\nabc")
    assert app.written == [False, False]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/short", "Content-Length differs from the length of the body"),
        ("/split", "a header field holds a control character"),
        ("/bell", "a header field holds a control character"),
    ],
)
async def test_a_wrong_answer_is_500_and_nothing_of_it_is_sent(answers: tuple[Answers, int], path: str, error: str) -> None:
    app, port = answers
    got = await exchange(port, f"GET {path} HTTP/1.1")
    assert got.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert got.endswith(b"Internal Server Error")
    assert b"abc" not in got
    assert b"set-cookie" not in got
    assert (app.errors, app.written) == ([error], [])


async def test_answers_to_pipelined_requests_come_in_order(answers: tuple[Answers, int]) -> None:
    app, port = answers
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    requests = [b"GET /two", b"HEAD /two", b"GET /none", b"GET /unmeasured"] * 3
    writer.write(b"".join(request + b" HTTP/1.1\r\nHost: localhost\r\n\r\n" for request in requests))
    writer.write(b"GET /two HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    got = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200", b"200", b"204", b"200"] * 3 + [b"200"]
    assert got.endswith(b"connection: close\r\n\r\nabcdef")
    assert app.written == [True, True, True, False] * 3 + [True]


async def test_who_asks_on_without_reading_gets_no_more_answers_until_it_reads(answers: tuple[Answers, int], until_idle: "Idle") -> None:
    app, port = answers
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
    writer.write(b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
    await until_idle(lambda: len(app.written))
    assert len(app.written) <= 2
    for _ in range(20):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert await reader.readexactly(len(BIG)) == BIG
    writer.close()
    assert len(app.written) == 20


Idle = Callable[[Callable[[], int]], Awaitable[None]]


@pytest.fixture
def until_idle() -> Idle:
    """Wait until a number is stable over many iterations of the event loop."""

    async def wait(number: Callable[[], int]) -> None:
        seen, same = -1, 0
        while same < 200:
            await asyncio.sleep(0.001)
            same = same + 1 if number() == seen else 0
            seen = number()

    return wait


async def test_a_send_of_something_else_is_left_alone() -> None:
    sent = []

    async def send(message: object) -> None:
        sent.append(message)

    assert write_whole(send, *ANSWERS["/two"]) is False
    assert sent == []
    assert Response(b"x").raw_headers[0] == (b"content-length", b"1"), "names are in lower case, as write_whole wants them"
