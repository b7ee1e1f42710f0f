"""Runs the process of a service: settings, logs, signals, one AsyncExitStack, orderly shutdown.

A service's `main.py` gives `run` a function that opens everything on the stack and returns. The process then runs until SIGTERM or
SIGINT, or until a task that was started with `Process.watch` ends. Stopping closes the stack in reverse order.
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
    """Settings that every service has."""

    log_level: str = setting("info", "Lowest level that is logged: debug, info, warning, error.")
    nats_url: str = setting("nats://127.0.0.1:4222", "NATS server, or several separated by commas.")


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended. Their errors are not raised.

    Python 3.11's `asyncio.wait_for`, which nats-py uses, loses a cancellation that arrives together with the awaited result
    (python/cpython#86296). A task that continues is therefore cancelled again every 0.5 s.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.5)


async def run_together(works: Mapping[str, Coroutine[Any, Any, None]]) -> None:
    """Run tasks that must not end. When one of them ends, the others are cancelled and its error is raised.

    Args:
        works: from task name to coroutine.

    Raises:
        RuntimeError: a task returned, or was cancelled by other code than the caller.
        Exception: the error that a task raised.
    """
    tasks = [asyncio.create_task(work, name=name) for name, work in works.items()]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        raise why_ended(next(iter(ended)))
    finally:
        await end_tasks(task for task in tasks if not task.done())


def why_ended(task: asyncio.Task[Any]) -> BaseException:
    """Return the error of a task that has ended although it must not: the exception that it raised, else a RuntimeError."""
    if task.cancelled():
        return RuntimeError(f"task {task.get_name()} was cancelled")
    return task.exception() or RuntimeError(f"task {task.get_name()} ended")


class Process:
    """The running process: the stack of open resources, and the tasks that must not end."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.stack = stack
        self.stopping = asyncio.Event()
        self.failure: BaseException | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def watch(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run a task for the lifetime of the process. If it ends in any way before the process stops, the process ends with status 1."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    @contextmanager
    def guarded(self, task: asyncio.Task[Any]) -> Iterator[None]:
        """End the process with status 1 if a task ends while the context is open.

        For tasks whose owner ends them during shutdown, after the tasks of `watch`, because running requests may still need them.
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
        """Cancel the tasks of `watch` and wait until they have ended. From now on the process counts as stopping."""
        self.stopping.set()
        await end_tasks(self._tasks)


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
ALLOCATOR = {M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20, M_TOP_PAD: 4 << 20, M_ARENA_MAX: 2}
"""Options of glibc's allocator. By default it maps and unmaps each buffer above 128 KiB, which is most of the cost of the messages of a
store request: 2.2 ms of CPU per 512 KiB over gRPC instead of 0.4 (docs/decisions/0005-allocator.md)."""


def tune_allocator() -> bool:
    """Set ALLOCATOR, so that glibc reuses buffers of the size of our messages. Return whether it accepted all options."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(option, value) == 1 for option, value in ALLOCATOR.items())


NEW_OBJECTS = 20_000
"""Number of new container objects after which the garbage collector runs. Python's default is 700, which means several runs per request."""


def tune_collector() -> None:
    """Exclude all existing objects from Python's cyclic garbage collector, and run it less often for new ones."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, 10, 10)


def raise_file_limit() -> int:
    """Raise the limit of open files and connections to the hard limit, and return it. Shells set a soft limit of 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # If the system has a lower limit of its own (macOS), the limit stays unchanged.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def run(
    name: str, cls: type[S], opens: Callable[[Process, S], Coroutine[Any, Any, None]], environment: Mapping[str, str] = os.environ
) -> int:
    """Run a service until SIGTERM, SIGINT or a failure.

    Args:
        name: gateway, blob, index, renderer or workflow.
        cls: the service's settings dataclass.
        opens: opens everything on `process.stack`, starts tasks with `process.watch`, and returns when the service is ready. It may raise
            `SettingsError` for a problem in a file that a setting names.
        environment: mapping from which the settings are read.

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
