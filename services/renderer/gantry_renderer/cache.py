"""Results kept for the next request, and requests that share one result."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ByteBoundedCache(Generic[T]):
    """Keeps the values used last, as many as fit; a value above an eighth of the room is not kept."""

    def __init__(self, room_bytes: int, size_bytes: Callable[[T], int]) -> None:
        self._room = room_bytes
        self._size = size_bytes
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self.used_bytes = 0

    def get(self, key: Hashable) -> T | None:
        """Return a value that was put, and count it as used; None where it is not kept."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: Hashable, value: T) -> None:
        """Keep a value, and drop what was used longest ago."""
        size = self._size(value)
        if size * 8 > self._room:
            return
        old = self._values.pop(key, None)
        self.used_bytes += size - (self._size(old) if old is not None else 0)
        self._values[key] = value
        while self.used_bytes > self._room:
            _, dropped = self._values.popitem(last=False)
            self.used_bytes -= self._size(dropped)


class Flights:
    """Lets identical requests in flight be one.

    The work goes on as long as anyone waits for it; when the last one is cancelled it is cancelled too.
    """

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}
        self._waiting: dict[Hashable, int] = {}

    async def share(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Return what `work` returns, or what the same key's work in flight does."""
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
