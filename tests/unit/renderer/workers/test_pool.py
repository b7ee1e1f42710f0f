"""The pool: workers that die, jobs that take too long, requests that go away."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import numpy as np
import pytest

from gantry_renderer.transactions.flights import Flights
from gantry_renderer.workers import pool as pools
from gantry_renderer.workers.pool import Admission, Pool
from gantry_runtime import call_context
from gantry_runtime.byte_bounded_cache import ByteBoundedCache
from gantry_runtime.call_context import CallContext
from gantry_runtime.callers import Caller
from gantry_runtime.process import end_tasks
from gantry_standard import errors
from gantry_standard.dicom.scanned import PixelDescription
from gantry_standard.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN as NATIVE
from tests.support.nats_server import until

SIDE = 1500
SLOW = PixelDescription(SIDE, SIDE, 1, "MONOCHROME2", 0, 16, 16, 15, 0, "7FE00010", "OW")
QUICK = PixelDescription(2, 2, 1, "MONOCHROME2", 0, 16, 16, 15, 0, "7FE00010", "OW")
NOISE = np.random.default_rng(6).integers(0, 65536, (SIDE, SIDE)).astype("<u2").tobytes()
JPEG_2000 = "1.2.840.10008.1.2.4.90"


def slow(pool: Pool) -> "asyncio.Task[bytes]":
    return asyncio.create_task(pool.run("transcode", NATIVE, NOISE, SLOW, JPEG_2000))


def quick(pool: Pool) -> "asyncio.Task[bytes]":
    return asyncio.create_task(pool.run("transcode", NATIVE, bytes(8), QUICK, NATIVE))


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    async with pools.opened(1, 30) as opened:
        yield opened


async def test_job_of_a_worker_that_dies_is_done_by_its_successor(pool: Pool) -> None:
    (first,) = pool.pids
    job = slow(pool)
    await until(lambda: pool.running_jobs == 1)
    os.kill(first, signal.SIGKILL)
    assert len(await job) > SIDE * SIDE
    assert pool.pids != [first]
    assert pool.ready_workers == 1


async def test_job_that_kills_two_workers_is_refused_and_the_pool_goes_on(pool: Pool) -> None:
    (first,) = pool.pids
    job = slow(pool)
    await until(lambda: pool.running_jobs == 1)
    os.kill(first, signal.SIGKILL)
    await until(lambda: pool.pids not in ([first], [0]) and pool.running_jobs == 1)
    os.kill(pool.pids[0], signal.SIGKILL)
    with pytest.raises(errors.NotAcceptable, match="twice"):
        await job
    assert await quick(pool) == bytes(8)


async def test_a_cancellation_that_meets_the_result_is_not_lost(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    own = pool._own

    def owned(work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        done = own(work)
        done.add_done_callback(lambda _: job.cancel())
        return done

    monkeypatch.setattr(pool, "_own", owned)
    job = quick(pool)
    with pytest.raises(asyncio.CancelledError):
        await job


async def test_worker_that_dies_while_idle_is_replaced(pool: Pool) -> None:
    (first,) = pool.pids
    os.kill(first, signal.SIGKILL)
    await until(lambda: pool.ready_workers == 0)
    assert await quick(pool) == bytes(8)


async def test_worker_that_cannot_be_started_at_once_is_started_later(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "RESTART_PAUSE_S", 0.01)
    (worker,), (first,) = pool._workers, pool.pids
    spawn, failures = worker._spawn, iter([RuntimeError("can't start new thread"), OSError("too many open files")])

    def failing() -> None:
        if (error := next(failures, None)) is not None:
            raise error
        spawn()

    monkeypatch.setattr(worker, "_spawn", failing)
    os.kill(first, signal.SIGKILL)
    assert await asyncio.wait_for(quick(pool), 30) == bytes(8)
    assert pool.pids != [first]


async def test_worker_that_dies_while_idle_is_replaced_without_a_job(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "CHECK_IDLE_S", 0.01)
    keeping = asyncio.create_task(pool.keep())
    (first,) = pool.pids
    os.kill(first, signal.SIGKILL)
    await until(lambda: pool.ready_workers == 1 and pool.pids != [first])
    assert await quick(pool) == bytes(8)
    await end_tasks([keeping])


async def test_job_that_takes_too_long_loses_its_worker() -> None:
    async with pools.opened(1, 0.1) as pool:
        with pytest.raises(errors.Unavailable, match=r"0\.1 s"):
            await slow(pool)
        assert await quick(pool) == bytes(8)


async def test_cancelling_takes_a_waiting_job_out_of_the_queue(pool: Pool) -> None:
    running, waiting = slow(pool), slow(pool)
    await until(lambda: pool.waiting_jobs == 1)
    waiting.cancel()
    await until(waiting.done)
    assert pool.waiting_jobs == 0
    running.cancel()
    assert await quick(pool) == bytes(8)


async def test_errors_of_a_job_come_back_as_they_are(pool: Pool) -> None:
    with pytest.raises(errors.NotAcceptable, match="4"):
        await pool.run("transcode", NATIVE, bytes(4), QUICK, NATIVE)


def test_admission_is_refused_above_its_limit_and_given_back() -> None:
    admission = Admission(1, "frames")
    with admission():
        with pytest.raises(errors.Overloaded, match="1 frames"):
            with admission():
                pass
    with admission():
        assert admission.inside == 1


async def test_shared_work_is_cancelled_with_its_last_waiter() -> None:
    flights, begun, ended = Flights(), asyncio.Event(), asyncio.Event()

    async def work() -> int:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return 1

    first, second = (asyncio.create_task(flights.share("key", work)) for _ in range(2))
    await begun.wait()
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert not ended.is_set()
    second.cancel()
    await asyncio.wait_for(ended.wait(), 5)


def test_cache_keeps_what_was_used_last_within_its_bytes() -> None:
    cache = ByteBoundedCache[bytes](80, len)
    for number in range(8):
        cache.put(number, bytes(10))
    assert cache.get(0) == bytes(10)
    cache.put(8, bytes(10))
    assert cache.get(1) is None
    assert cache.get(0) is not None
    assert cache.used_bytes == 80
    cache.put("large", bytes(11))
    assert cache.get("large") is None


async def test_a_job_that_fails_is_logged_by_its_worker_with_the_request_it_belongs_to(capfd: pytest.CaptureFixture[str]) -> None:
    # Not the fixture: the worker writes to the standard error that the process had when it was started.
    async with pools.opened(1, 30) as pool:
        with call_context.entered(CallContext("r-9", caller=Caller("nobody"))), pytest.raises(RuntimeError):
            await pool.run("transcode", NATIVE, bytes(8), "no description", NATIVE)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"job failed"' in line]
    assert [(line["request_id"], line["service"], line["job"]) for line in lines] == [("r-9", "renderer", "transcode")]
    assert "nobody" not in json.dumps(lines)
