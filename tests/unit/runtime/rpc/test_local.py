"""Calls between processes of one machine: every message arrives whole, streams wait for who takes them, calls end when either side does."""

import asyncio
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from gantry.blob.v1 import blob_pb2
from gantry.blob.v1.blob_pb2_grpc import BlobServiceServicer, BlobServiceStub, add_BlobServiceServicer_to_server
from gantry_runtime.rpc import channels, rpc_errors
from gantry_runtime.rpc.local import frames
from gantry_runtime.rpc.local.calling import Channel
from gantry_standard import errors

EDGES = (0, 1, frames.JOINED_BYTES - 16, frames.JOINED_BYTES, frames.SCRATCH_BYTES - 40, frames.SCRATCH_BYTES, 5_000_003)
"""Lengths around every limit of a frame."""

MEBIBYTE = 1 << 20


class Echo(BlobServiceServicer):
    """Answers with what it was given; counts what it sends and takes."""

    def __init__(self) -> None:
        self.sent = self.taken = 0
        self.may_take = asyncio.Event()
        self.refusal: errors.GantryError | None = None
        self.running = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def GetStatus(self, request: Any, context: Any) -> blob_pb2.GetStatusResponse:
        """Run until it is cancelled."""
        self.running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError

    async def StoreWhole(self, request: Any, context: Any) -> blob_pb2.StoreWholeResponse:
        """Return the request, which is bytes, as an explanation."""
        return blob_pb2.StoreWholeResponse(parts=[blob_pb2.PartResult(explanation=bytes(request).decode())])

    async def Read(self, request: blob_pb2.ReadRequest, context: Any) -> AsyncIterator[blob_pb2.ReadResponse]:
        """Send a message of the length of each range, filled with its offset."""
        self.running.set()
        try:
            for wanted in request.ranges:
                self.sent += 1
                yield blob_pb2.ReadResponse(data=bytes([wanted.offset]) * wanted.length)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def StoreInstances(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[blob_pb2.StoreInstancesResponse]:
        """Take messages when it may; answer with the number of their bytes, or refuse."""
        self.running.set()
        await self.may_take.wait()
        if self.refusal is not None:
            raise self.refusal
        async for message in request_iterator:
            self.taken += 1
            yield blob_pb2.StoreInstancesResponse(parts=[blob_pb2.PartResult(part_number=len(message.chunk))])


class Served:
    """A server of `Echo` on a socket, and stubs."""

    def __init__(self, directory: Path) -> None:
        self.echo = Echo()
        self.path = directory / "blob.sock"
        self.serving = AsyncExitStack()

    async def begin(self) -> None:
        """Serve."""
        register = lambda server: add_BlobServiceServicer_to_server(self.echo, server)  # noqa: E731
        listen = f"127.0.0.1:0,local:{self.path}"
        await self.serving.enter_async_context(channels.serving(register, listen, drain_s=0, as_bytes=frozenset(("StoreWhole",))))


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A server that runs."""
    made = Served(tmp_path)
    async with made.serving:
        await made.begin()
        yield made


@pytest.fixture
async def stub(served: Served) -> AsyncIterator[Any]:
    """A stub of it."""
    async with channels.channel(f"local:{served.path}", frozenset(("StoreWhole",))) as channel:
        yield BlobServiceStub(channel)


def read_request(lengths: Any) -> blob_pb2.ReadRequest:
    return blob_pb2.ReadRequest(object="x", ranges=[blob_pb2.Range(offset=n % 251, length=length) for n, length in enumerate(lengths)])


async def until(condition: Any) -> None:
    """Let the loop run until something is so."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


@pytest.mark.parametrize("length", EDGES)
async def test_a_request_of_any_length_arrives_in_pieces_as_in_one(stub: Any, length: int) -> None:
    text = bytes(65 + at % 26 for at in range(length))
    for pieces in ([text], [text[: length // 3], memoryview(text)[length // 3 :]]):
        answer = await stub.StoreWhole(pieces, timeout=20)
        assert answer.parts[0].explanation.encode() == text


async def test_messages_of_any_length_come_one_after_another(stub: Any) -> None:
    lengths = [*EDGES, *range(0, 70_000, 1_777)]
    found = [answer.data async for answer in stub.Read(read_request(lengths), timeout=20)]
    assert found == [bytes([n % 251]) * length for n, length in enumerate(lengths)]


async def test_calls_at_once_get_each_its_own_answer(stub: Any) -> None:
    texts = [f"{n}." * n for n in range(300)]
    answers = await asyncio.gather(*(stub.StoreWhole([text.encode()], timeout=20) for text in texts))
    assert [answer.parts[0].explanation for answer in answers] == texts


async def test_answers_that_nobody_takes_are_not_made(served: Served, stub: Any) -> None:
    call = stub.Read(read_request([MEBIBYTE] * 50), timeout=20)
    assert len((await call.read()).data) == MEBIBYTE
    window = frames.WINDOW_BYTES // MEBIBYTE
    await until(lambda: served.echo.sent >= window)
    for _ in range(200):
        await asyncio.sleep(0)
    assert served.echo.sent <= window + 3
    assert [len(answer.data) async for answer in call] == [MEBIBYTE] * 49


async def test_requests_that_nobody_takes_are_not_sent(served: Served, stub: Any) -> None:
    call = stub.StoreInstances(timeout=20)
    written = 0

    async def write() -> None:
        nonlocal written
        for _ in range(20):
            await call.write(blob_pb2.StoreInstancesRequest(chunk=bytes(MEBIBYTE)))
            written += 1
        await call.done_writing()

    writing = asyncio.create_task(write())
    await served.echo.running.wait()
    for _ in range(300):
        await asyncio.sleep(0)
    assert written <= frames.WINDOW_BYTES // MEBIBYTE + 1
    served.echo.may_take.set()
    assert [answer.parts[0].part_number async for answer in call] == [MEBIBYTE] * 20
    await writing
    assert served.echo.taken == 20


async def test_who_writes_is_told_why_the_call_was_refused(served: Served, stub: Any) -> None:
    served.echo.refusal = errors.OutOfResources("the disk is full", warning="A700")
    call = stub.StoreInstances(timeout=20)

    async def write() -> None:
        while True:
            await channels.send_serialised(call, [blob_pb2.StoreInstancesRequest(chunk=bytes(MEBIBYTE)).SerializeToString()], "blob")

    writing = asyncio.create_task(write())
    await served.echo.running.wait()
    served.echo.may_take.set()
    with pytest.raises(errors.OutOfResources, match="the disk is full") as raised:
        await writing
    assert raised.value.warning == "A700"


@pytest.mark.parametrize("how", ["cancelled", "too late", "channel closed"])
async def test_what_nobody_waits_for_is_cancelled_at_the_server(served: Served, how: str) -> None:
    async with AsyncExitStack() as stack:
        stub: Any = BlobServiceStub(await stack.enter_async_context(channels.channel(f"local:{served.path}")))
        call = stub.GetStatus(blob_pb2.GetStatusRequest(), timeout=0.2 if how == "too late" else 20)
        await served.echo.running.wait()
        if how == "cancelled":
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        elif how == "channel closed":
            await stack.aclose()
        else:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(5):
            await served.echo.cancelled.wait()


async def test_a_stream_that_is_cancelled_ends_at_the_server(served: Served, stub: Any) -> None:
    call = stub.Read(read_request([MEBIBYTE] * 50), timeout=20)
    await call.read()
    call.cancel()
    async with asyncio.timeout(5):
        await served.echo.cancelled.wait()
    assert served.echo.sent < 50


async def test_a_server_that_ends_ends_its_calls(served: Served, stub: Any) -> None:
    call = asyncio.ensure_future(stub.GetStatus(blob_pb2.GetStatusRequest(), timeout=20))
    stream = stub.StoreInstances(timeout=20)
    await served.echo.running.wait()
    await served.serving.aclose()
    for ended in (call, stream.read()):
        with pytest.raises(errors.Unavailable, match="blob does not answer"), rpc_errors.translated("blob"):
            await ended


async def test_without_a_server_a_call_fails_at_once_and_goes_on_when_there_is_one(served: Served, stub: Any) -> None:
    await served.serving.aclose()
    with pytest.raises(errors.Unavailable), rpc_errors.translated("blob"):
        await stub.StoreWhole([b"lost"], timeout=20)
    with pytest.raises(errors.Unavailable), rpc_errors.translated("blob"):
        await anext(aiter(stub.Read(read_request([1]), timeout=20)))
    waiting = asyncio.ensure_future(stub.StoreWhole([b"patient"], timeout=20, wait_for_ready=True))
    await asyncio.sleep(0)
    assert not waiting.done()
    async with served.serving:
        await served.begin()
        assert (await waiting).parts[0].explanation == "patient"
        assert (await stub.StoreWhole([b"again"], timeout=20)).parts[0].explanation == "again"


async def test_the_socket_is_for_its_user_only(served: Served) -> None:
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o600


async def test_a_frame_that_is_too_long_ends_the_connection(served: Served) -> None:
    reader, writer = await asyncio.open_unix_connection(str(served.path))
    writer.write(frames.HEADER.pack(frames.MOST_FRAME_BYTES + 1, frames.CALL, 1))
    assert await reader.read() == b""
    writer.close()


async def test_a_method_that_is_not_there_is_told(served: Served) -> None:
    channel = Channel(str(served.path))
    call = channel.unary_unary("/gantry.blob.v1.BlobService/Nothing", lambda _: b"", lambda _: None)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(None, timeout=5)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    channel.close()
