"""Threads for blocking calls, as an event loop uses them.

`run_in_executor` makes two futures with locks and callbacks between them for each call: half of the 70 µs of CPU that a visit to an idle
thread costs. Here the thread itself tells the loop.
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
    """At most `most` threads of one name, started as they are needed. Calls that find none free wait in line.

    It belongs to one event loop: that of its first call. Closing waits for what runs and for what waits. A call has the context variables
    of who made it.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._unsettled = 0

    def run(self, call: Callable[..., T], *args: object) -> "asyncio.Future[T]":
        """Make a call; the future has its result. One that is cancelled before a thread was free is not made."""
        self._loop = loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._put((future, copy_context(), call, args))
        return future

    def submit(self, call: Callable[..., object], *args: object) -> None:
        """Make a call that nobody waits for; what it raises is logged."""
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
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._settle, future, result, error)
            # Nothing of the call is held on to while the thread waits for the next one.
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
        """Wait for every call that was asked for, and end the threads."""
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
