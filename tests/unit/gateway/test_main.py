"""If a long-lived task of the gateway ends, the process ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from gantry_gateway import main
from gantry_gateway.settings import GatewaySettings
from gantry_gateway.worklist.notifications import Hub
from gantry_runtime.process import Process
from tests.support.nats_server import NatsServer, until

TASKS = ["follow NATS", "notifications", "follow reports", "note cursors", "begin fallback AE titles", "uvicorn"]


def running(name: str) -> "asyncio.Task[None]":
    """Return the task with a name."""
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == name]
    return task


@pytest.fixture
async def process() -> AsyncIterator[Process]:
    async with AsyncExitStack() as stack:
        process = Process(stack)
        yield process
        await process.cancel_tasks()


async def opened(process: Process, nats: NatsServer) -> None:
    settings = GatewaySettings(nats_url=nats.url, port=0, fallback_ae_titles=("FALLBACK",))
    await main.open_gateway(process, settings)
    await until(lambda: {"follow reports", "note cursors"} <= {task.get_name() for task in asyncio.all_tasks()})
    assert not process.stopping.is_set()


@pytest.mark.parametrize("name", TASKS)
async def test_a_task_that_is_cancelled_ends_the_process(process: Process, nats_server: NatsServer, name: str) -> None:
    await opened(process, nats_server)
    running(name).cancel()
    await asyncio.wait_for(process.stopping.wait(), 10)
    assert process.failure is not None


async def test_a_task_that_fails_ends_the_process(process: Process, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = asyncio.Event()

    async def note(hub: Hub) -> None:
        await failing.wait()
        raise ValueError("broken")

    monkeypatch.setattr(Hub, "note", note)
    await opened(process, nats_server)
    failing.set()
    await asyncio.wait_for(process.stopping.wait(), 10)
    assert str(process.failure) == "broken"


async def test_a_gateway_that_stops_in_order_has_not_failed(nats_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncExitStack() as stack:
        process = Process(stack)
        await opened(process, nats_server)
        await process.cancel_tasks()
        assert running("follow NATS")
    assert process.failure is None
    assert "task failed" not in caplog.text
    assert not {task.get_name() for task in asyncio.all_tasks()} & set(TASKS)
