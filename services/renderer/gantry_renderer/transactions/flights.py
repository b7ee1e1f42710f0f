"""Share one result between identical requests that run at the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Flights:
    """Runs the work of identical concurrent requests once.

    When the last request that waits for a result is cancelled, the work is cancelled too.
    """

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}
        self._waiting: dict[Hashable, int] = {}

    async def share(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work`, or wait for running work of the same key, and return its result.

        Raises:
            Exception: what the work raised.
        """
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(self._run(key, work))
        self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            result: T = await asyncio.shield(task)
            return result
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
                if self._tasks.get(key) is task and not task.done():
                    del self._tasks[key]
                    task.cancel()

    async def _run(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await work()
        finally:
            if self._tasks.get(key) is asyncio.current_task():
                del self._tasks[key]
