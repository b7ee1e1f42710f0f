"""Caches that are bounded by bytes or by number of entries. The least recently used entry is dropped first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class ByteBoundedCache(Generic[T]):
    """A cache of the most recently used values, bounded by their bytes. A value larger than an eighth of the capacity is not cached.

    Args:
        room_bytes: capacity in bytes.
        size_bytes: returns the size of a value in bytes. It must be the same whenever it is called with one value.
        most_entries: largest number of entries; None for no limit.
        dropped: called with each value that is dropped because of the limits.
    """

    def __init__(
        self,
        room_bytes: int,
        size_bytes: Callable[[T], int],
        most_entries: int | None = None,
        dropped: Callable[[T], None] | None = None,
    ) -> None:
        self._room = room_bytes
        self._size = size_bytes
        self._most_entries = most_entries
        self._dropped = dropped
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self.used_bytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> T | None:
        """Return a value that was put, and count it as used; None where it is not kept."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def pop(self, key: Hashable) -> T | None:
        """Remove a value from the cache and return it; None if it is not cached."""
        value = self._values.pop(key, None)
        if value is not None:
            self.used_bytes -= self._size(value)
        return value

    def put(self, key: Hashable, value: T) -> bool:
        """Cache a value, and drop the least recently used entries above the limits. Return whether the value was cached."""
        size = self._size(value)
        if size * 8 > self._room:
            return False
        old = self._values.pop(key, None)
        self.used_bytes += size - (self._size(old) if old is not None else 0)
        self._values[key] = value
        while self.used_bytes > self._room or (self._most_entries is not None and len(self._values) > self._most_entries):
            _, dropped = self._values.popitem(last=False)
            self.used_bytes -= self._size(dropped)
            if self._dropped is not None:
                self._dropped(dropped)
        return True

    def clear(self) -> None:
        """Keep nothing."""
        self._values.clear()
        self.used_bytes = 0


class CountBoundedCache(Generic[K, T]):
    """A cache of the most recently used values, bounded by their number.

    Args:
        room: largest number of entries.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._values: OrderedDict[K, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: K) -> bool:
        """Return whether a key is cached. This does not count as use of the value."""
        return key in self._values

    def get(self, key: K) -> T | None:
        """Return a value that was put, and count it as used; None where it is not kept."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def pop(self, key: K) -> T | None:
        """Remove a value from the cache and return it; None if it is not cached."""
        return self._values.pop(key, None)

    def put(self, key: K, value: T) -> T:
        """Cache a value, drop the least recently used one if there are too many, and return the value."""
        # Removed and inserted again instead of moved: another thread may have dropped the key in the meantime.
        self._values.pop(key, None)
        self._values[key] = value
        if len(self._values) > self._room:
            self._values.popitem(last=False)
        return value

    def clear(self) -> None:
        """Keep nothing."""
        self._values.clear()
