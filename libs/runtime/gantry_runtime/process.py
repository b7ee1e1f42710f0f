"""How a process of ours runs: settings, logs, signals, one AsyncExitStack, orderly end.

A service's `main.py` gives `run` a function that opens everything on the stack and returns. The process then lives
until SIGTERM or SIGINT, or until a task that `Process.watch` owns fails. Stopping closes the stack in reverse.
"""

import asyncio
import ctypes
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import uvloop

from gantry_runtime import logs, settings
from gantry_runtime.settings import setting

log = logging.getLogger(__name__)
S = TypeVar("S", bound="ProcessSettings")


@dataclass(frozen=True, kw_only=True)
class ProcessSettings:
    """What every process of ours can be told."""

    log_level: str = setting("info", "Lowest level that is logged: debug, info, warning, error.")
    nats_url: str = setting("nats://127.0.0.1:4222", "NATS server, or several separated by commas.")


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended; errors of theirs are not raised.

    Python 3.11's `asyncio.wait_for` loses a cancellation that meets the answer waited for (python/cpython#86296), and nats-py waits
    so: one that goes on is cancelled again.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.5)


async def run_together(works: Mapping[str, Coroutine[Any, Any, None]]) -> None:
    """Run tasks that must not end, by name, until one of them does. Then the others are cancelled and its error is raised.

    Raises:
        RuntimeError: a task returned, or was cancelled by somebody else than the caller.
        Exception: what a task raised.
    """
    tasks = [asyncio.create_task(work, name=name) for name, work in works.items()]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        raise why_ended(next(iter(ended)))
    finally:
        await end_tasks(task for task in tasks if not task.done())


def why_ended(task: asyncio.Task[Any]) -> BaseException:
    """Return the error of a task that should have gone on."""
    if task.cancelled():
        return RuntimeError(f"task {task.get_name()} was cancelled")
    return task.exception() or RuntimeError(f"task {task.get_name()} ended")


class Process:
    """The running process: a stack of what is open, and the tasks that must not end."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.stack = stack
        self.stopping = asyncio.Event()
        self.failure: BaseException | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def watch(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run a task for the life of the process. However it ends before the process stops, the process ends with status 1."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    @contextmanager
    def guarded(self, task: asyncio.Task[Any]) -> Iterator[None]:
        """End the process with status 1 when a task ends while the context is open.

        For a task whose owner ends it in order, after the tasks of `watch` have ended: requests that still run may need it.
        """
        task.add_done_callback(self._ended)
        try:
            yield
        finally:
            task.remove_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if self.stopping.is_set():
            return
        self.failure = why_ended(task)
        log.error("task failed", extra={"task": task.get_name()}, exc_info=self.failure)
        self.stopping.set()

    async def cancel_tasks(self) -> None:
        """Cancel what `watch` started and wait for it. The process is stopping from now on."""
        self.stopping.set()
        await end_tasks(self._tasks)


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
ALLOCATOR = {M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20, M_TOP_PAD: 4 << 20, M_ARENA_MAX: 2}
"""What glibc's allocator is told. By default it maps and unmaps each buffer above 128 KiB, which for the messages of a store is most
of their cost (2.2 ms of CPU per 512 KiB over gRPC, against 0.4): docs/decisions/0005-allocator.md."""


def tune_allocator() -> bool:
    """Tell glibc to keep buffers of the size of our messages; say whether there is a glibc that took it."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(option, value) == 1 for option, value in ALLOCATOR.items())


NEW_OBJECTS = 20_000
"""So many more objects than before make the collector look; by default 700, which is several times a request."""


def tune_collector() -> None:
    """Let Python's collector of cycles leave alone what a process is made of, and look at the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, 10, 10)


def raise_file_limit() -> int:
    """Let this process open as many files and connections as it may, and return how many; a shell starts programs with 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Where the system has a lower limit of its own (macOS), it stays as it is.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def run(
    name: str, cls: type[S], opens: Callable[[Process, S], Coroutine[Any, Any, None]], environment: Mapping[str, str] = os.environ
) -> int:
    """Run a service until it is told to stop.

    Args:
        name: gateway, blob, index, renderer or workflow.
        cls: its settings dataclass.
        opens: enters everything on `process.stack`, starts tasks with `process.watch`, and returns when ready to work. It may raise
            `SettingsError` for what only shows when a file that a setting names is read.

    Returns:
        The exit status: 0 after a signal, 1 after a failure, 2 for wrong settings.
    """
    try:
        configured = settings.load(cls, environment)
        logs.configure(name, configured.log_level)
        tune_allocator()
        raise_file_limit()
        return uvloop.run(_main(name, configured, opens))
    except settings.SettingsError as error:
        print(f"gantry-{name}: settings are wrong\n{error}", file=sys.stderr)
        return 2


async def _main(name: str, configured: S, opens: Callable[[Process, S], Coroutine[Any, Any, None]]) -> int:
    async with AsyncExitStack() as stack:
        process = Process(stack)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, process.stopping.set)
        opening = asyncio.create_task(opens(process, configured))
        stopping = asyncio.create_task(process.stopping.wait())
        await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        elif opening.exception() is not None:
            stopping.cancel()
            opening.result()
        else:
            tune_collector()
            log.info("ready")
        await stopping
        log.info("stopping")
        await process.cancel_tasks()
    log.info("stopped")
    return 1 if process.failure else 0
