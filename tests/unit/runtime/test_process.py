"""A process of ours stops in order when it is told to, and with the right status."""

import asyncio
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from gantry_runtime import telemetry
from gantry_runtime.process import run_together

PROGRAM = """
import asyncio, sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from gantry_runtime.process import Process, ProcessSettings, run

@asynccontextmanager
async def thing(name):
    print("open", name, flush=True)
    yield
    print("close", name, flush=True)

async def work(process):
    try:
        await asyncio.sleep({seconds})
        raise {error}
    finally:
        print("work ended", flush=True)

async def opens(process, settings):
    await process.stack.enter_async_context(thing("first"))
    {hang}
    await process.stack.enter_async_context(thing("second"))
    process.watch(work(process), "work")
    print("ready", flush=True)

sys.exit(run("example", ProcessSettings, opens))
"""


def start(seconds: float = 60, error: str = "RuntimeError('broken')", hang: str = "pass", **settings: str) -> subprocess.Popen[str]:
    """Start the program."""
    program = PROGRAM.format(seconds=seconds, error=error, hang=hang)
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **settings}
    )


def read_until(process: subprocess.Popen[str], line: str) -> list[str]:
    """Return the lines up to one."""
    assert process.stdout is not None
    lines: list[str] = []
    while line not in lines:
        lines.append(process.stdout.readline().strip())
        assert lines[-1], lines
    return lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_tasks_and_closes_in_reverse(number: signal.Signals) -> None:
    with start() as process:
        read_until(process, "ready")
        process.send_signal(number)
        out, _ = process.communicate(timeout=10)
    assert out.split("\n")[:-1] == ["work ended", "close second", "close first"]
    assert process.returncode == 0


def test_a_task_that_fails_ends_the_process_in_order_with_status_1() -> None:
    with start(seconds=0.05) as process:
        out, err = process.communicate(timeout=10)
    assert out.split("\n")[-3:-1] == ["close second", "close first"]
    assert process.returncode == 1
    assert '"task": "work"' in err
    assert "broken" in err


def test_a_task_that_is_cancelled_while_nothing_stops_ends_the_process_too() -> None:
    with start(seconds=0.05, error="asyncio.CancelledError()") as process:
        out, err = process.communicate(timeout=10)
    assert out.split("\n")[-3:-1] == ["close second", "close first"]
    assert process.returncode == 1
    assert "task work was cancelled" in err


@pytest.mark.parametrize(
    ("how", "raised"),
    [(ValueError("broken"), "broken"), (asyncio.CancelledError(), "task ending was cancelled"), (None, "task ending ended")],
    ids=["raises", "is cancelled", "returns"],
)
async def test_of_tasks_that_run_together_the_first_that_ends_ends_all(how: BaseException | None, raised: str) -> None:
    others: list[str] = []

    async def going_on() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            others.append("cancelled")

    async def ending() -> None:
        await asyncio.sleep(0)
        if how is not None:
            raise how

    with pytest.raises((RuntimeError, ValueError), match=raised):
        await run_together({"going on": going_on(), "ending": ending()})
    assert others == ["cancelled"]


def test_a_signal_while_it_opens_ends_it_too() -> None:
    with start(hang="print('hanging', flush=True); await asyncio.sleep(60)") as process:
        read_until(process, "hanging")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=10)
    assert "close first" in out
    assert "ready" not in out
    assert process.returncode == 0


def test_wrong_settings_are_told_and_the_status_is_2() -> None:
    program = PROGRAM.format(seconds=1, error="RuntimeError", hang="pass").replace(
        "sys.exit(run(", "@dataclass(frozen=True, kw_only=True)\nclass More(ProcessSettings):\n    number: int = 1\n\nsys.exit(run("
    )
    program = program.replace("ProcessSettings, opens))", "More, opens))")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "GANTRY_NUMBER": "x"}, check=False, timeout=30
    )
    assert done.returncode == 2
    assert "GANTRY_NUMBER='x': expected a whole number" in done.stderr


async def test_the_admin_port_tells_metrics_and_readiness() -> None:
    missing = "NATS does not answer"

    async def ready() -> str:
        return missing

    async with telemetry.admin("127.0.0.1:0", ready) as port:
        assert "gantry_rpc_seconds" in await get(port, "/metrics")
        assert await get(port, "/healthz/live") == "live\n"
        assert await get(port, "/healthz/ready") == "503 NATS does not answer\n"
        missing = ""
        assert await get(port, "/healthz/ready") == "ready\n"
        assert (await get(port, "/else")).startswith("404")


async def get(port: int, path: str) -> str:
    """GET in a thread, so that the loop can answer."""

    def call() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return f"{error.code} {error.read().decode()}"

    return await asyncio.to_thread(call)
