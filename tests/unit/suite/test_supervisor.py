"""The supervisor keeps programs running, tells what happens, and leaves nobody behind."""

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from gantry_suite import supervisor as supervisor_module
from gantry_suite.data_directory import CannotStart, DataDirectory
from gantry_suite.supervisor import Program, Supervisor, describe_status, ordinal
from tests.support.nats_server import until

RUN = "print('running', flush=True)\nwhile True: time.sleep(60)"
FOR_EVER = f"import time\n{RUN}"
STUBBORN = f"import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{RUN}"
WITH_CHILD = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {FOR_EVER!r}])\n{RUN}"


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    """A data directory with its folders."""
    made = DataDirectory(tmp_path)
    for folder in (made.run, made.logs):
        folder.mkdir()
    return made


@pytest.fixture
async def supervisor(data: DataDirectory) -> AsyncIterator[Supervisor]:
    """A supervisor that collects its lines in `lines`."""
    lines: list[str] = []
    made = Supervisor(data, lines.append)
    made.lines = lines  # type: ignore[attr-defined]
    yield made
    made.kill()
    await made.stop(("one", "two", "three"))


def program(data: DataDirectory, name: str, code: str) -> Program:
    """Return a program that is ready when its log says that it runs."""

    async def ready() -> str:
        log = data.logs / f"{name}.log"
        return "" if log.exists() and "running" in log.read_text() else "it has not said that it runs"

    return Program(name, (sys.executable, "-c", code), dict(os.environ), ready, "here")


def pid_of(data: DataDirectory, name: str) -> int:
    """Return the process of a pid file; 0 while there is none."""
    path = data.run / f"{name}.pid"
    return int(path.read_text()) if path.exists() else 0


async def test_programs_are_started_together_and_told_when_they_are_ready(supervisor: Supervisor, data: DataDirectory) -> None:
    await supervisor.start([program(data, "one", FOR_EVER), program(data, "two", FOR_EVER)])
    assert sorted(line.split()[0] for line in supervisor.lines) == ["one", "two"]  # type: ignore[attr-defined]
    assert all(psutil.pid_exists(pid_of(data, name)) for name in ("one", "two"))


async def test_a_program_that_dies_is_started_again_and_that_is_told(supervisor: Supervisor, data: DataDirectory) -> None:
    await supervisor.start([program(data, "one", FOR_EVER)])
    for times in ("1st", "2nd"):
        killed = pid_of(data, "one")
        os.kill(killed, signal.SIGKILL)
        await until(lambda killed=killed: pid_of(data, "one") not in (0, killed))
        assert supervisor.lines[-1] == f"one ended with signal 9, started again ({times} time)"  # type: ignore[attr-defined]


async def test_a_program_whose_number_cannot_be_written_is_tried_again_until_it_can(supervisor: Supervisor, data: DataDirectory) -> None:
    await supervisor.start([program(data, "one", FOR_EVER)])
    killed = pid_of(data, "one")
    (data.run / "one.pid").unlink()
    (data.run / "one.pid").mkdir()
    os.kill(killed, signal.SIGKILL)
    await until(lambda: any("before it ran (Is a directory)" in line for line in supervisor.lines))  # type: ignore[attr-defined]
    (data.run / "one.pid").rmdir()
    await until(lambda: pid_of(data, "one") not in (0, killed))
    assert psutil.pid_exists(pid_of(data, "one"))
    assert not supervisor.failure


async def test_where_nobody_can_keep_a_program_running_the_suite_ends(supervisor: Supervisor, data: DataDirectory) -> None:
    with pytest.raises(CannotStart, match="one cannot be kept running: embedded null byte"):
        await supervisor.start([dataclasses.replace(program(data, "one", FOR_EVER), command=("\0",))])


async def test_what_a_program_started_ends_with_it(supervisor: Supervisor, data: DataDirectory) -> None:
    await supervisor.start([program(data, "one", WITH_CHILD)])
    killed = pid_of(data, "one")
    (child,) = psutil.Process(killed).children()
    os.kill(killed, signal.SIGKILL)
    assert await until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


async def test_programs_stop_in_order_and_a_stubborn_one_is_killed(
    supervisor: Supervisor, data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "PATIENCE_S", 0.3)
    await supervisor.start([program(data, "one", FOR_EVER), program(data, "two", STUBBORN)])
    pids = [pid_of(data, name) for name in ("one", "two")]
    await supervisor.stop(("two", "one"))
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert "two did not stop within 0 s and was killed" in supervisor.lines  # type: ignore[attr-defined]
    assert not list(data.run.glob("*.pid"))


async def test_wrong_settings_end_the_start_with_the_end_of_the_log(supervisor: Supervisor, data: DataDirectory) -> None:
    code = "import sys; print('GANTRY_X: expected a number'); sys.exit(2)"
    with pytest.raises(CannotStart, match="GANTRY_X: expected a number"):
        await supervisor.start([program(data, "one", code), program(data, "two", FOR_EVER)])


async def test_a_program_that_is_never_ready_ends_the_start(
    supervisor: Supervisor, data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "START_S", 0.4)
    with pytest.raises(CannotStart, match="one is not ready after 0 s: it has not said that it runs"):
        await supervisor.start([program(data, "one", "import time; time.sleep(60)")])


SUPERVISOR = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from gantry_suite.data_directory import DataDirectory
from gantry_suite.supervisor import Supervisor
from tests.unit.suite.test_supervisor import FOR_EVER, program

async def main():
    data = DataDirectory(Path({data!r}))
    await Supervisor(data, print).start([program(data, "one", FOR_EVER)])
    print("started", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has died")
def test_programs_end_when_their_supervisor_is_killed(data: DataDirectory) -> None:
    code = SUPERVISOR.format(root=str(Path(__file__).parents[3]), data=str(data.path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        while "started" not in running.stdout.readline():
            assert running.poll() is None
        child = psutil.Process(pid_of(data, "one"))
        running.kill()
        running.wait()
    assert asyncio.run(until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE))


@pytest.mark.parametrize("text", ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "112th"])
def test_ordinals(text: str) -> None:
    assert ordinal(int(text[:-2])) == text


def test_how_a_process_ended() -> None:
    assert describe_status(-9) == "with signal 9"
    assert describe_status(1) == "with status 1"
