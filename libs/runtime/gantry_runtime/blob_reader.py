"""The port through which gateway and renderer read stored bytes."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

Ranges = Sequence[tuple[int, int]]
"""(offset, length) pairs in bytes."""


class BlobReader(Protocol):
    """Reads ranges of immutable objects.

    Ranges are read in the order given; the concatenation of what is yielded is the concatenation of the ranges. A piece has at
    most 1 MiB. Pieces are read-only and stay valid as long as they are held. An object that is not there raises
    `errors.NotFound` before the first piece; a store that does not answer `errors.Unavailable`.
    """

    def read(self, object_key: str, ranges: Ranges) -> AsyncIterator[bytes | memoryview]:
        """Yield the bytes of the ranges, in pieces."""
        ...

    def ready(self, object_key: str, ranges: Ranges) -> list[memoryview] | None:
        """Return the ranges at once, one or more views each at most 1 MiB, when nothing has to be waited for; else None."""
        ...
