"""Runs blocking calls of the object store in bounded pools of threads."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

from gantry_runtime.threads import Threads

T = TypeVar("T")

BATCH_BYTES = 2 << 20
"""Bytes after which a thread call that reads chunks returns. It returns at most this plus one chunk."""


async def in_thread(pool: Threads, call: Callable[..., T], *args: object) -> T:
    """Run a blocking call in a thread. If the waiting task is cancelled, a call that already runs continues to its end."""
    return await pool.run(call, *args)


class _Batches:
    """Takes chunks from an iterator in batches. Any thread may call it; calls exclude each other."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._lock = threading.Lock()

    def take(self) -> tuple[list[bytes], bool]:
        """Return the next chunks, and whether there may be more."""
        with self._lock:
            batch: list[bytes] = []
            size = 0
            for chunk in self._chunks:
                batch.append(chunk)
                size += len(chunk)
                if size >= BATCH_BYTES:
                    return batch, True
            return batch, False

    def close(self) -> None:
        """Close the iterator, after a running `take` has ended."""
        with self._lock:
            close = getattr(self._chunks, "close", None)
            if close is not None:
                close()


async def chunks_in_threads(pool: Threads, chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the chunks of a blocking iterator. The next batch is read while the last one is sent."""
    batches = _Batches(chunks)
    following: asyncio.Future[tuple[list[bytes], bool]] | None = None
    try:
        batch, more = await in_thread(pool, batches.take)
        while batch:
            following = pool.run(batches.take) if more else None
            for chunk in batch:
                yield chunk
            if following is None:
                return
            batch, more = await following
            following = None
    finally:
        if following is not None:
            following.add_done_callback(lambda done: done.cancelled() or done.exception())
        pool.submit(batches.close)
