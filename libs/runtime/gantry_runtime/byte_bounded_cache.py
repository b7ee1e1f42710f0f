"""Values kept for the next request, within a number of bytes or of entries. The one used longest ago is dropped first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class ByteBoundedCache(Generic[T]):
    """Keeps the values used last, as many as fit; a value above an eighth of the room is not kept.

    Args:
        most_entries: a second bound; None: as many as fit.
        dropped: told each value that is dropped to make room.
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
        """Return a value that was put and keep it no longer; None where it is not kept."""
        value = self._values.pop(key, None)
        if value is not None:
            self.used_bytes -= self._size(value)
        return value

    def put(self, key: Hashable, value: T) -> bool:
        """Keep a value, and drop what was used longest ago. Returns whether it is kept."""
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
    """Keeps the values used last, at most a number of them.

    Args:
        room: most entries.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._values: OrderedDict[K, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: K) -> bool:
        """Whether a key is kept; that does not count as using it."""
        return key in self._values

    def get(self, key: K) -> T | None:
        """Return a value that was put, and count it as used; None where it is not kept."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def pop(self, key: K) -> T | None:
        """Return a value that was put and keep it no longer; None where it is not kept."""
        return self._values.pop(key, None)

    def put(self, key: K, value: T) -> T:
        """Keep a value, drop the one used longest ago where there are too many, and return the value."""
        # Taken out and put in again, not moved: another thread may have dropped it in between.
        self._values.pop(key, None)
        self._values[key] = value
        if len(self._values) > self._room:
            self._values.popitem(last=False)
        return value

    def clear(self) -> None:
        """Keep nothing."""
        self._values.clear()
