"""The request id, the trace context and the caller of a request arrive with every call that is made for it."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from gantry.blob.v1 import blob_pb2
from gantry.blob.v1.blob_pb2_grpc import BlobServiceServicer, BlobServiceStub, add_BlobServiceServicer_to_server
from gantry_runtime import call_context, callers, logs
from gantry_runtime.call_context import CURRENT, CallContext
from gantry_runtime.callers import ANONYMOUS, MOST_VISIBLE_STUDIES, Caller
from gantry_runtime.rpc import channels
from gantry_runtime.threads import Threads
from tests.support.nats_server import until

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
READER = Caller("käthe", "WORKSTATION", ("reader", "teacher"), frozenset({"1.2.3", "1.2.4"}))
CONTEXTS = [
    pytest.param(call_context.NONE, id="no request"),
    pytest.param(CallContext("r-1"), id="request id"),
    pytest.param(CallContext("r-2", TRACEPARENT), id="trace context"),
    pytest.param(CallContext("r-3", TRACEPARENT, READER), id="caller"),
    pytest.param(CallContext("", "", Caller(visible_studies=frozenset())), id="a caller who may see nothing"),
    pytest.param(
        CallContext("r-4", "", Caller(visible_studies=frozenset(f"2.25.{10**37 + n}" for n in range(MOST_VISIBLE_STUDIES)))),
        id="a caller who may see very many studies",
    ),
]


class Noting(BlobServiceServicer):
    """Notes the context of each call, as the handler and as a thread of it see it."""

    def __init__(self) -> None:
        self.seen: list[CallContext] = []
        self.threads = Threads(1, "noting")

    async def GetStatus(self, request: Any, context: Any) -> blob_pb2.GetStatusResponse:
        """One request, one answer."""
        self.seen += [CURRENT.get(), await self.threads.run(CURRENT.get)]
        return blob_pb2.GetStatusResponse()

    async def StoreWhole(self, request: Any, context: Any) -> blob_pb2.StoreWholeResponse:
        """The request comes as bytes."""
        assert bytes(request) == b"twopieces"
        self.seen.append(CURRENT.get())
        return blob_pb2.StoreWholeResponse()

    async def Read(self, request: Any, context: Any) -> AsyncIterator[blob_pb2.ReadResponse]:
        """A stream of answers."""
        self.seen.append(CURRENT.get())
        yield blob_pb2.ReadResponse(data=b"x")
        self.seen.append(CURRENT.get())

    async def StoreInstances(self, request_iterator: Any, context: Any) -> AsyncIterator[blob_pb2.StoreInstancesResponse]:
        """Streams both ways."""
        async for _ in request_iterator:
            self.seen.append(CURRENT.get())
            yield blob_pb2.StoreInstancesResponse()


@pytest.fixture(params=["grpc", "local"])
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Noting, BlobServiceStub]]:
    """A server, and a stub over each transport."""
    noting = Noting()

    def register(server: grpc.aio.Server) -> None:
        add_BlobServiceServicer_to_server(noting, server)

    pieces = frozenset(("StoreWhole",))
    async with AsyncExitStack() as stack:
        stack.enter_context(noting.threads)
        local = f"local:{tmp_path / 'blob.sock'}"
        port = await stack.enter_async_context(channels.serving(register, f"127.0.0.1:0,{local}", 0, pieces))
        address = f"127.0.0.1:{port}" if request.param == "grpc" else local
        yield noting, BlobServiceStub(await stack.enter_async_context(channels.channel(address, pieces)))


@pytest.mark.parametrize("context", CONTEXTS)
async def test_a_handler_of_each_kind_has_the_context_of_its_call(served: tuple[Noting, Any], context: CallContext) -> None:
    noting, stub = served
    with call_context.entered(context):
        await stub.GetStatus(blob_pb2.GetStatusRequest(), timeout=5)
        await stub.StoreWhole([b"two", b"pieces"], timeout=5)
        assert [bytes(answer.data) async for answer in stub.Read(blob_pb2.ReadRequest(), timeout=5)] == [b"x"]
        call = stub.StoreInstances(timeout=5)
        await channels.send_serialised(call, [blob_pb2.StoreInstancesRequest(end=blob_pb2.StoreEnd()).SerializeToString()], "blob")
        await call.done_writing()
        assert len([answer async for answer in call]) == 1
    assert noting.seen == [context] * 6
    assert CURRENT.get() is call_context.NONE


async def test_calls_at_once_have_each_its_own_context(served: tuple[Noting, Any]) -> None:
    noting, stub = served

    async def calling(number: int) -> None:
        CURRENT.set(CallContext(f"r-{number}"))
        await stub.GetStatus(blob_pb2.GetStatusRequest(), timeout=5)

    await asyncio.gather(*(asyncio.create_task(calling(number)) for number in range(20)))
    assert sorted(context.request_id for context in noting.seen) == sorted(f"r-{number}" for number in range(20) for _ in range(2))


async def test_a_call_of_a_request_is_a_line_in_the_log(
    served: tuple[Noting, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    noting, stub = served
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(logs._requests, "handler", None)
    logs.configure("blob", "info")
    await stub.GetStatus(blob_pb2.GetStatusRequest(), timeout=5)
    with call_context.entered(CallContext("r-7", TRACEPARENT)):
        await stub.GetStatus(blob_pb2.GetStatusRequest(), timeout=5)
    async with asyncio.timeout(5):
        while len(noting.seen) < 4:
            await asyncio.sleep(0)
    written: list[str] = []

    def is_written() -> bool:
        written.append(capfd.readouterr().err)
        return "GetStatus" in "".join(written)

    await until(is_written, 5)
    lines = [json.loads(line) for line in "".join(written).splitlines()]
    told = {name: lines[0].pop(name) for name in ("time", "ms")}
    assert told["ms"] >= 0
    assert lines == [
        {
            "level": "info",
            "service": "blob",
            "event": "call",
            "request_id": "r-7",
            "traceparent": TRACEPARENT,
            "method": "GetStatus",
            "status": "OK",
        }
    ]


@pytest.mark.parametrize("caller", [ANONYMOUS, READER, Caller("x", visible_studies=frozenset())], ids=["anonymous", "some", "none"])
def test_a_caller_is_read_as_it_was_written(caller: Caller) -> None:
    assert callers.decoded(callers.encoded(caller)) == caller


@pytest.mark.parametrize("data", [b"{}", b"[1]", b"x", b'["a","b",[],7]'])
def test_what_is_no_caller_is_not_taken_for_anybody(data: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        callers.decoded(data)


async def test_a_call_whose_caller_cannot_be_read_is_refused(served: tuple[Noting, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    noting, stub = served
    monkeypatch.setattr(callers, "encoded", lambda caller: b"nobody")
    with call_context.entered(CallContext("r-8")), pytest.raises(grpc.aio.AioRpcError):
        await stub.GetStatus(blob_pb2.GetStatusRequest(), timeout=5)
    assert noting.seen == []


def test_a_restricted_caller_sees_what_refers_to_visible_studies_only() -> None:
    assert READER.may_see("1.2.3")
    assert not READER.may_see("1.2.5")
    assert READER.may_see_referrer(["1.2.3", "1.2.4"])
    assert not READER.may_see_referrer(["1.2.3", "1.2.5"])
    assert not READER.may_see_referrer([])
    assert ANONYMOUS.may_see("1.2.5")
    assert ANONYMOUS.may_see_referrer([])


def test_a_caller_may_not_name_too_many_studies() -> None:
    with pytest.raises(ValueError, match="1001 studies"):
        Caller(visible_studies=frozenset(map(str, range(MOST_VISIBLE_STUDIES + 1))))
