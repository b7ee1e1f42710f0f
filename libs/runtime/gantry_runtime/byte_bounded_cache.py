"""Values kept for the next request, within a number of bytes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

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

    def pop(self, key: Hashable) -> T | None:
        """Return a value that was put and keep it no longer; None where it is not kept."""
        value = self._values.pop(key, None)
        if value is not None:
            self.used_bytes -= self._size(value)
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
