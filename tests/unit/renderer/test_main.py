"""The renderer's process: what ends it."""

import asyncio
from contextlib import AsyncExitStack
from typing import NoReturn

import pytest

from gantry_renderer.main import open_all
from gantry_renderer.settings import RendererSettings
from gantry_renderer.workers.pool import Pool
from gantry_runtime.process import Process


async def test_the_process_ends_when_the_task_that_keeps_workers_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    dies = asyncio.Event()

    async def keep(pool: Pool) -> NoReturn:
        await dies.wait()
        raise RuntimeError("keeper died")

    monkeypatch.setattr(Pool, "keep", keep)
    async with AsyncExitStack() as stack:
        running = Process(stack)
        await open_all(running, RendererSettings(renderer_workers=1, renderer_listen="127.0.0.1:0"))
        assert not running.stopping.is_set()
        dies.set()
        await asyncio.wait_for(running.stopping.wait(), 10)
        assert str(running.failure) == "keeper died"
        await running.cancel_tasks()
