"""The port of the object store: immutable objects, named by keys.

The adapters are `directory.py` and `s3.py`. Every sentence of the docstrings has a test in `tests/stores/test_object_store.py`.
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
        ready: whether the store can be read and written.
        explanation: what is wrong, or what an operator should know; may be empty.
        free_bytes: free disk space in bytes; 0 if the store does not report it.
    """

    ready: bool
    explanation: str = ""
    free_bytes: int = 0


class ObjectWriter(Protocol):
    """Writes a new object. Used by one thread at a time.

    The object is not visible before `commit`. After `commit` it is completely visible and survives a crash. If the process dies before
    `commit`, the object never becomes visible, and `ObjectStore.clean` removes the data that was written.
    """

    @property
    def key(self) -> str:
        """Key of the object."""
        ...

    @property
    def size(self) -> int:
        """Number of bytes written so far."""
        ...

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes, which must not change before `commit`.

        Raises:
            errors.OutOfResources: too little disk space is left. Afterwards only `abort` may be called.
            errors.Unavailable: the store failed. Afterwards only `abort` may be called.
        """
        ...

    def flush(self) -> None:
        """Write buffered bytes to the store as far as it allows, because `commit` may be called much later.

        Raises:
            errors.OutOfResources, errors.Unavailable: as for `write`.
        """
        ...

    def commit(self) -> None:
        """Make the object durable, then visible.

        Raises:
            errors.OutOfResources, errors.Unavailable: the object may or may not exist.
        """
        ...

    def abort(self) -> None:
        """Remove all written data. After `commit`, and at a second call, it does nothing. Does not raise."""
        ...


class ObjectStore(Protocol):
    """Immutable objects, named by keys (`gantry_runtime.blob_reader.check_object_key`). They are never rewritten or truncated.

    All calls block and may be made from any thread, in parallel. Every call raises `errors.BadRequest` for an invalid key, and
    `errors.Unavailable` if the store fails or does not answer.
    """

    @property
    def kind(self) -> str:
        """Return `directory` or `s3`."""
        ...

    def create(self, key: str) -> ObjectWriter:
        """Open a writer for a new object. The caller must use unique keys.

        Raises:
            errors.OutOfResources: less disk space is left than must stay free.
        """
        ...

    def read(self, key: str, ranges: Ranges) -> Iterator[bytes]:
        """Yield the bytes of the ranges in their order, in chunks of at most 1 MiB. A chunk may span adjacent ranges.

        The iterator may be closed early.

        Raises:
            errors.NotFound: there is no such object. Raised before the first chunk.
            errors.BadRequest: a range reaches beyond the end of the object. Raised before the first chunk.
        """
        ...

    def size(self, key: str) -> int:
        """Return the length of an object in bytes.

        Raises:
            errors.NotFound: there is no such object.
        """
        ...

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectEntry]:
        """Yield all objects whose key begins with `prefix` and is greater than `after`, in ascending order of keys (by code points)."""
        ...

    def put(self, key: str, data: bytes, replace: bool = False) -> None:
        """Write a small object. When the call returns, it is durable and visible. It may use the disk space that writers must leave free.

        If the object exists with the same bytes, nothing happens. If it exists with other bytes and `replace` is true, it is replaced: a
        reader sees either the old or the new object.

        Raises:
            errors.Conflict: the object exists with other bytes, and `replace` is false.
        """
        ...

    def move(self, key: str, to: str) -> None:
        """Give an object another key that does not exist yet. When the call returns, this is durable.

        After a crash the object has the old key, the new key, or both. A running read under the old key continues, or raises NotFound.

        Raises:
            errors.NotFound: there is no such object.
        """
        ...

    def remove(self, key: str) -> None:
        """Remove an object, durably when the call returns. It is no error if there is no such object."""
        ...

    def clean(self) -> int:
        """Remove the data of writers whose process has died; return how many. Data of active writers is never removed."""
        ...

    def status(self) -> StoreStatus:
        """Return the health of the store. Does not raise."""
        ...

    def close(self) -> None:
        """Close threads and connections. All writers must have been committed or aborted."""
        ...


def joined(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes with small chunks joined to chunks of at most 1 MiB."""
    waiting: list[bytes] = []
    size = 0
    for chunk in chunks:
        if size + len(chunk) > CHUNK_BYTES and waiting:
            yield b"".join(waiting)
            waiting, size = [], 0
        waiting.append(chunk)
        size += len(chunk)
    if waiting:
        yield waiting[0] if len(waiting) == 1 else b"".join(waiting)
