"""Runs processes: starts them together, restarts those that end, stops them in order.

Each child has its own session, so Ctrl-C reaches only the supervisor. On Linux the kernel sends SIGTERM to a child when the supervisor
dies, so even `kill -9` leaves no process running.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from gantry_suite.data_directory import CannotStart, DataDirectory

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0
STEADY_S = 30.0
"""Seconds after which a process that ends is restarted without delay."""
PATIENCE_S = 15.0
"""Seconds that a process may take to stop; then it is killed."""
START_S = 60.0
"""Seconds that all processes together may take to become ready."""
WRONG_SETTINGS = 2
"""Exit status of a service with invalid settings; it is not restarted."""
LOG_TAIL_LINES = 12

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Program:
    """One process to run.

    Attributes:
        ready: returns "" if the process is ready, else what is missing.
        where: its address, or another text for the user.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    ready: Callable[[], Awaitable[str]]
    where: str


class Supervisor:
    """Runs programs; `say` prints one line for the user."""

    def __init__(self, data: DataDirectory, say: Callable[[str], None]) -> None:
        self.data = data
        self.say = say
        self.stopping = False
        self.failure: CannotStart | None = None
        self._children: dict[str, Child] = {}
        self._failed = asyncio.Event()

    async def start(self, programs: list[Program]) -> None:
        """Start programs together and wait until all are ready.

        Raises:
            CannotStart: a program has invalid settings, or is not ready in time.
        """
        waits = {}
        for program in programs:
            child = self._children[program.name] = Child(self, program)
            waits[asyncio.create_task(child.become_ready())] = child
        pending, failed, deadline = set(waits), asyncio.create_task(self.failed()), time.monotonic() + START_S
        try:
            while pending and not self.failure:
                done, _ = await asyncio.wait({*pending, failed}, timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    late = waits[pending.pop()]
                    raise CannotStart(f"{late.program.name} is not ready after {START_S:.0f} s: {late.missing}\n{late.log_tail()}")
                for task in done & pending:
                    task.result()
                pending -= done
            if self.failure:
                raise self.failure
        finally:
            for task in (*waits, failed):
                task.cancel()
            await asyncio.gather(*waits, failed, return_exceptions=True)

    async def failed(self) -> None:
        """Wait until a process cannot be restarted any more; `failure` has the reason."""
        await self._failed.wait()

    def fail(self, failure: CannotStart) -> None:
        """Record that a process cannot be restarted any more."""
        self.failure = self.failure or failure
        self._failed.set()

    async def stop(self, order: tuple[str, ...]) -> None:
        """Stop everything, one process after another."""
        self.stopping = True
        for name in order:
            if name in self._children:
                await self._children[name].stop()

    def kill(self) -> None:
        """Kill all processes that still run."""
        self.stopping = True
        for child in self._children.values():
            child.signal_group(signal.SIGKILL)


class Child:
    """One program while the supervisor runs it."""

    def __init__(self, supervisor: Supervisor, program: Program) -> None:
        self.program = program
        self.missing = "it did not start"
        self._supervisor = supervisor
        self._process: asyncio.subprocess.Process | None = None
        self._ending = False
        self._keeper = asyncio.create_task(self._keep_running(), name=f"keep {program.name} running")
        self._keeper.add_done_callback(self._kept)

    def _kept(self, keeper: asyncio.Task[None]) -> None:
        """End the suite if the task that restarts the process has failed."""
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            self._supervisor.fail(CannotStart(f"{self.program.name} cannot be kept running: {error}"))

    async def become_ready(self) -> None:
        """Wait until the process is ready, and print that."""
        begin = time.monotonic()
        while self.missing:
            await asyncio.sleep(0.05)
            self.missing = await self.program.ready()
        self._supervisor.say(f"{self.program.name:<9} ready   {self.program.where:<24} {time.monotonic() - begin:.1f} s")

    async def _keep_running(self) -> None:
        delay, times = FIRST_DELAY_S, 0
        while True:
            begin = time.monotonic()
            try:
                how = describe_status(status := await self._run_once())
            except OSError as error:
                status, how = 0, f"before it ran ({error.strerror})"
            if self._supervisor.stopping or self._ending:
                return
            if status == WRONG_SETTINGS:
                self._supervisor.fail(CannotStart(f"{self.program.name} cannot start\n{self.log_tail()}"))
                return
            if time.monotonic() - begin > STEADY_S:
                delay = FIRST_DELAY_S
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY_S)
            if self._supervisor.stopping:
                return
            times += 1
            self._supervisor.say(f"{self.program.name} ended {how}, started again ({ordinal(times)} time)")

    async def _run_once(self) -> int:
        name, data = self.program.name, self._supervisor.data
        with data.log(name).open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.program.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.program.environment),
                start_new_session=True,
                preexec_fn=_end_with(os.getpid()),
            )
        try:
            data.write_pid(name, self._process.pid)
            return await self._process.wait()
        finally:
            # Processes that this process started must not outlive it, nor the process itself if its pid file could not be written.
            self.signal_group(signal.SIGKILL)
            await self._process.wait()
            data.forget_pid(name)

    async def stop(self) -> None:
        """Ask the process to end; kill it if it takes too long."""
        self._ending = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        _, late = await asyncio.wait({self._keeper}, timeout=PATIENCE_S)
        if late:
            self._supervisor.say(f"{self.program.name} did not stop within {PATIENCE_S:.0f} s and was killed")
            self.signal_group(signal.SIGKILL)
        await asyncio.wait({self._keeper})

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the process and to all processes that it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def log_tail(self) -> str:
        """Return the last lines of the process's log."""
        path = self._supervisor.data.logs / f"{self.program.name}.log"
        with contextlib.suppress(OSError):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
            return "\n".join([f"the end of {path}:", *(f"    {line[:300]}" for line in lines)])
        return f"there is no log {path}"


def _end_with(parent: int) -> Callable[[], None] | None:
    """Return a function that a child calls first: it asks the kernel to send SIGTERM when the parent dies."""
    if _LIBC is None:
        return None

    def ask() -> None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def describe_status(status: int) -> str:
    """Describe how a process ended: "with signal 9" or "with status 1"."""
    return f"with signal {-status}" if status < 0 else f"with status {status}"


def ordinal(number: int) -> str:
    """Return 1st, 2nd, 3rd, 4th, 11th, 21st …"""
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
