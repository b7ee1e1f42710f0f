"""Errors of ours travel over gRPC and arrive as what they were."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from gantry.blob.v1 import blob_pb2
from gantry.blob.v1.blob_pb2_grpc import BlobServiceServicer, BlobServiceStub, add_BlobServiceServicer_to_server
from gantry_runtime.rpc import channels, rpc_errors
from gantry_standard import errors
from tests.support.nats_server import free_port

EVERY_ERROR = sorted(rpc_errors.STATUS, key=lambda cls: cls.__name__)


class Failing(BlobServiceServicer):
    """Raises what it is told to, at once or after a message."""

    def __init__(self) -> None:
        self.error: Exception = errors.NotFound("nothing")

    async def GetStatus(self, request: Any, context: Any) -> blob_pb2.GetStatusResponse:
        """Raise from a unary call."""
        raise self.error

    async def Read(self, request: Any, context: Any) -> AsyncIterator[blob_pb2.ReadResponse]:
        """Raise from a stream, behind one message where an object is named."""
        if request.object:
            yield blob_pb2.ReadResponse(data=b"first")
        raise self.error


@pytest.fixture(params=["grpc", "local"])
async def failing(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Failing, BlobServiceStub]]:
    """A server of `Failing`, and a stub; over each transport."""
    servicer, nearby = Failing(), f"local:{tmp_path}/s"
    async with channels.serving(lambda server: add_BlobServiceServicer_to_server(servicer, server), f"127.0.0.1:0,{nearby}") as port:
        async with channels.channel(nearby if request.param == "local" else f"127.0.0.1:{port}") as channel:
            yield servicer, BlobServiceStub(channel)


def subclasses(cls: type[errors.GantryError]) -> Iterator[type[errors.GantryError]]:
    """Yield the leaves of the tree of errors; what other modules derive from a leaf travels as that leaf."""
    below = [inner for inner in cls.__subclasses__() if inner.__module__ == errors.__name__]
    if not below:
        yield cls
    for inner in below:
        yield from subclasses(inner)


def test_every_error_has_a_row() -> None:
    assert set(subclasses(errors.GantryError)) == set(rpc_errors.STATUS)


@pytest.mark.parametrize("cls", EVERY_ERROR)
async def test_an_error_arrives_as_what_it_was(failing: tuple[Failing, BlobServiceStub], cls: type[errors.GantryError]) -> None:
    servicer, stub = failing
    servicer.error = cls("instance 1.2.3: found 5, expected 6", warning="The UPS is – already – there.")
    if isinstance(servicer.error, errors.RetryLater):
        servicer.error.retry_after_s = 17
    with pytest.raises(cls) as raised, rpc_errors.translated("blob"):
        await stub.GetStatus(blob_pb2.GetStatusRequest(), timeout=5)
    assert type(raised.value) is cls
    assert raised.value.message == "instance 1.2.3: found 5, expected 6"
    assert raised.value.warning == "The UPS is – already – there."
    if isinstance(raised.value, errors.RetryLater):
        assert raised.value.retry_after_s == 17


@pytest.mark.parametrize("name", ["", "an object"], ids=["at once", "after a message"])
async def test_an_error_of_a_stream_arrives_as_what_it_was(failing: tuple[Failing, BlobServiceStub], name: str) -> None:
    servicer, stub = failing
    servicer.error = errors.Gone("it was deleted")
    received: list[bytes] = []

    async def read() -> None:
        with rpc_errors.translated("blob"):
            async for answer in stub.Read(blob_pb2.ReadRequest(object=name), timeout=5):
                received.append(answer.data)

    with pytest.raises(errors.Gone, match="it was deleted"):
        await read()
    assert received == ([b"first"] if name else [])


async def test_an_error_that_is_not_ours_does_not_tell_what_it_was(failing: tuple[Failing, BlobServiceStub]) -> None:
    servicer, stub = failing
    servicer.error = RuntimeError("a secret of the inside")
    with pytest.raises(errors.GantryError) as raised, rpc_errors.translated("blob"):
        await stub.GetStatus(blob_pb2.GetStatusRequest(), timeout=5)
    assert type(raised.value) is errors.GantryError
    assert "secret" not in raised.value.message


async def test_a_service_that_is_not_there_is_unavailable() -> None:
    async with channels.channel(f"127.0.0.1:{free_port()}") as channel:
        with pytest.raises(errors.Unavailable, match="blob does not answer"), rpc_errors.translated("blob"):
            await BlobServiceStub(channel).GetStatus(blob_pb2.GetStatusRequest(), timeout=2)


async def test_a_service_that_takes_too_long_is_unavailable() -> None:
    class Slow(BlobServiceServicer):
        async def GetStatus(self, request: Any, context: Any) -> blob_pb2.GetStatusResponse:
            """Take longer than the caller waits."""
            await asyncio.sleep(30)
            return blob_pb2.GetStatusResponse()

    async with channels.serving(lambda server: add_BlobServiceServicer_to_server(Slow(), server), "127.0.0.1:0", drain_s=0) as port:
        async with channels.channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(errors.Unavailable), rpc_errors.translated("blob"):
                await BlobServiceStub(channel).GetStatus(blob_pb2.GetStatusRequest(), timeout=0.2)


async def test_a_channel_finds_a_server_that_came_back() -> None:
    servicer, port = Failing(), free_port()

    async def answer(stub: BlobServiceStub) -> str:
        try:
            with rpc_errors.translated("blob"):
                await stub.GetStatus(blob_pb2.GetStatusRequest(), timeout=5, wait_for_ready=True)
        except errors.GantryError as error:
            return error.message
        return ""

    async with channels.channel(f"127.0.0.1:{port}") as channel:
        stub = BlobServiceStub(channel)
        for _ in range(2):
            async with channels.serving(lambda server: add_BlobServiceServicer_to_server(servicer, server), f"127.0.0.1:{port}"):
                assert await answer(stub) == "nothing"
