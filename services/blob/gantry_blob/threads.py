"""Blocking calls of the object store, made in bounded pools of threads."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

from gantry_runtime.threads import Threads

T = TypeVar("T")

BATCH_BYTES = 2 << 20
"""What one visit to a thread brings back at most, plus one piece."""


async def in_thread(pool: Threads, call: Callable[..., T], *args: object) -> T:
    """Run a blocking call; when the caller is cancelled, the call ends by itself."""
    return await pool.run(call, *args)


class _Batches:
    """Takes pieces from an iterator in batches, in any thread, one at a time."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._lock = threading.Lock()

    def take(self) -> tuple[list[bytes], bool]:
        """Return the next pieces, and whether there may be more."""
        with self._lock:
            batch: list[bytes] = []
            size = 0
            for piece in self._pieces:
                batch.append(piece)
                size += len(piece)
                if size >= BATCH_BYTES:
                    return batch, True
            return batch, False

    def close(self) -> None:
        """Close the iterator, after the visit that may be under way."""
        with self._lock:
            close = getattr(self._pieces, "close", None)
            if close is not None:
                close()


async def pieces_in_threads(pool: Threads, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the pieces of a blocking iterator; the next batch is read while the last one is sent."""
    batches = _Batches(pieces)
    following: asyncio.Future[tuple[list[bytes], bool]] | None = None
    try:
        batch, more = await in_thread(pool, batches.take)
        while batch:
            following = pool.run(batches.take) if more else None
            for piece in batch:
                yield piece
            if following is None:
                return
            batch, more = await following
            following = None
    finally:
        if following is not None:
            following.add_done_callback(lambda done: done.cancelled() or done.exception())
        pool.submit(batches.close)
