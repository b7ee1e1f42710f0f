"""A pool of threads that runs blocking calls for an event loop.

`run_in_executor` of asyncio creates two futures with locks and callbacks for each call. That is half of the 70 µs of CPU that a call in an
idle thread costs. Here the thread reports its result to the loop itself.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
Call = tuple["asyncio.Future[Any] | None", Context, Callable[..., Any], tuple[object, ...]]


class Threads:
    """A pool of at most `most` threads, which are started when they are needed. Calls wait in a queue while all threads are busy.

    A pool belongs to the event loop of its first call. Each call runs with the context variables of the code that made it. Closing waits
    for running and for waiting calls.

    Args:
        most: largest number of threads.
        name: prefix of the threads' names.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._unsettled = 0

    def run(self, call: Callable[..., T], *args: object) -> "asyncio.Future[T]":
        """Run a call in a thread; the future has its result. A call whose future is cancelled before a thread is free does not run."""
        self._loop = loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._put((future, copy_context(), call, args))
        return future

    def submit(self, call: Callable[..., object], *args: object) -> None:
        """Run a call in a thread without waiting for it. An exception is logged."""
        self._loop = asyncio.get_running_loop()
        self._put((None, copy_context(), call, args))

    def _put(self, call: Call) -> None:
        self._unsettled += 1
        self._calls.put(call)
        if len(self._threads) < min(self._unsettled, self._most):
            thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}")
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while (taken := self._calls.get()) is not None:
            future, context, call, args = taken
            result, error = None, None
            try:
                if future is None or not future.cancelled():
                    result = context.run(call, *args)
            except BaseException as raised:
                error = raised
            with suppress(RuntimeError):  # the loop is closed: nothing waits for the result
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._settle, future, result, error)
            # Release the call's objects before waiting for the next call.
            del taken, future, context, call, args, result, error

    def _settle(self, future: "asyncio.Future[Any] | None", result: object, error: BaseException | None) -> None:
        self._unsettled -= 1
        if future is None:
            if error is not None:
                log.error("call in a thread failed", exc_info=error)
        elif not future.done():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    def close(self) -> None:
        """Wait for all running and waiting calls, then end the threads."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> "Threads":
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()
