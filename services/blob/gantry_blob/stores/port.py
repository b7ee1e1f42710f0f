"""The port of the object store: immutable objects under keys.

Adapters: `directory_store.py`, `s3_store.py`. Every sentence of the docstrings has a test in `tests/stores/test_object_store.py`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from gantry_runtime.blob_reader import Ranges
from gantry_runtime.rpc.channels import CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """A complete object."""

    key: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """Health of the store.

    Attributes:
        explanation: what is wrong, or what somebody should know; may be empty.
        free_bytes: room that is left; 0 where the store does not tell.
    """

    ready: bool
    explanation: str = ""
    free_bytes: int = 0


class ObjectWriter(Protocol):
    """A new object while it is written, in pieces. Used by one thread at a time.

    Nothing of it is seen by others before `commit`; after `commit` all of it is, at once, and it survives a crash. When the process
    dies before `commit`, nothing is ever seen of it, and `ObjectStore.clean` takes away what it left.
    """

    @property
    def key(self) -> str:
        """Key of the object."""
        ...

    @property
    def size(self) -> int:
        """Bytes written until now."""
        ...

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes, which must not change before `commit`.

        Raises:
            errors.OutOfResources: too little room is left; the writer is then good for `abort` only.
            errors.Unavailable: the store failed; the same.
        """
        ...

    def flush(self) -> None:
        """Keep no more in memory than the store must: the writer will wait for its commit.

        Raises:
            errors.OutOfResources, errors.Unavailable: as `write`.
        """
        ...

    def commit(self) -> None:
        """Make the object durable, then visible.

        Raises:
            errors.OutOfResources, errors.Unavailable: it may or may not be there.
        """
        ...

    def abort(self) -> None:
        """Leave nothing behind. After `commit`, or a second time, it does nothing. Does not raise."""
        ...


class ObjectStore(Protocol):
    """Immutable objects of bytes under keys (`gantry_runtime.blob_reader.check_object_key`), never rewritten or truncated.

    All calls block and may be made from any thread, in parallel. What is not a key raises `errors.BadRequest`; a store that fails or does
    not answer raises `errors.Unavailable`, always.
    """

    @property
    def kind(self) -> str:
        """Return `directory` or `s3`."""
        ...

    def create(self, key: str) -> ObjectWriter:
        """Open a writer for a new object. The caller makes keys that are unique.

        Raises:
            errors.OutOfResources: less room is left than must stay free.
        """
        ...

    def read(self, key: str, ranges: Ranges) -> Iterator[bytes]:
        """Yield the bytes of the ranges, in their order, in pieces of at most 1 MiB; adjacent ranges may share one.

        The iterator may be closed early.

        Raises:
            errors.NotFound: there is no such object; before the first piece.
            errors.BadRequest: a range reaches beyond its end; before the first piece.
        """
        ...

    def size(self, key: str) -> int:
        """Return the length of an object in bytes.

        Raises:
            errors.NotFound: there is no such object.
        """
        ...

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectEntry]:
        """Yield all objects whose key begins with `prefix` and is above `after`, by key ascending (code points)."""
        ...

    def put(self, key: str, data: bytes, replace: bool = False) -> None:
        """Write a small object, durable and visible as a whole when it returns. It may use the room that writers must leave free.

        An object that exists with the same bytes is fine. With others it is replaced if `replace` says so: a reader sees the one or the
        other, never a mixture.

        Raises:
            errors.Conflict: it exists with other bytes, and not `replace`.
        """
        ...

    def move(self, key: str, to: str) -> None:
        """Give an object another key, which nothing has; durable when it returns. After a crash it has the old one, the new one, or both.

        Whoever reads it under the old key goes on, or raises as if it had gone.

        Raises:
            errors.NotFound: there is no such object.
        """
        ...

    def remove(self, key: str) -> None:
        """Take an object away; durable when it returns. What is not there is fine."""
        ...

    def clean(self) -> int:
        """Take away what writers of processes that died have left; return how many. Never touches what a living one writes."""
        ...

    def status(self) -> StoreStatus:
        """Return the health. Does not raise."""
        ...

    def close(self) -> None:
        """Release threads and connections. Open writers must have ended."""
        ...


def joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes with small pieces joined, none above 1 MiB."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        if size + len(piece) > CHUNK_BYTES and waiting:
            yield b"".join(waiting)
            waiting, size = [], 0
        waiting.append(piece)
        size += len(piece)
    if waiting:
        yield waiting[0] if len(waiting) == 1 else b"".join(waiting)
