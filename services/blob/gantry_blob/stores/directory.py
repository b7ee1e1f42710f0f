"""Stores objects as files of a directory; the key is the path. This is the default on one machine.

A writer buffers up to GATHERED_BYTES and then writes to a temporary file below `.incoming`, in the same file system. It holds a lock on
that file while it exists. A small object is written with one system call. `commit` makes an fsync of the file, a rename, and an fsync of
the directory; writers that wait for an fsync of the same directory share one. Keys never begin with a dot, so temporary files are never
listed.

Each system call releases the interpreter lock and waits for it again, which costs more under load than the call itself. The module
therefore makes few system calls.
"""

import errno
import fcntl
import itertools
import os
import secrets
import stat
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from gantry_blob.stores.port import ObjectEntry, StoreStatus, joined
from gantry_runtime.blob_reader import Ranges, check_ranges, coalesced, cut, object_path
from gantry_runtime.byte_bounded_cache import CountBoundedCache
from gantry_standard import errors

INCOMING = ".incoming"
GATHERED_BYTES = 1 << 20
"""Number of buffered bytes above which a writer writes to its file."""

CHECK_EVERY_BYTES = 16 << 20
"""A writer checks the free disk space once per this number of bytes."""

YOUNG_S = 60
"""Age in seconds below which `clean` does not remove a temporary file, because its writer may not have locked it yet."""

MOST_DURABLE_DIRECTORIES = 10_000
MOST_GATHERED = 512
"""Largest number of buffered chunks. It is below the limit of one writev call (1,024)."""

_PROCESS = secrets.token_hex(12)
_NUMBERS = itertools.count()


@contextmanager
def _wrapped(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise errors.OutOfResources(f"{what}: no disk space left") from error
        raise errors.Unavailable(f"{what}: {error.strerror}") from error


@contextmanager
def _reading(key: str) -> Iterator[None]:
    with _wrapped(key):
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise errors.NotFound(f"{key}: no such object") from error


class _Round:
    """One fsync of a directory, for all threads that wait for it."""

    def __init__(self) -> None:
        self.running = threading.Lock()
        """Held by the leading thread until its fsync has ended. An Event would cost ten times as much CPU."""
        self.running.acquire()
        self.error: OSError | None = None


class DirectorySync:
    """Group commit of directory fsyncs: all calls that arrive while an fsync runs share the next one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: dict[Path, _Round] = {}
        self._turn: dict[Path, threading.Lock] = {}

    def sync(self, directory: Path) -> None:
        """Wait until an fsync that began after this call has ended.

        Args:
            directory: must not be renamed or replaced while the process runs.

        Raises:
            OSError: the fsync failed.
        """
        with self._lock:
            mine = self._next.get(directory)
            leads = mine is None
            if mine is None:
                mine = self._next[directory] = _Round()
            turn = self._turn.setdefault(directory, threading.Lock())
        if leads:
            with turn:  # the previous fsync has ended; all calls since then have joined this round
                with self._lock:
                    del self._next[directory]
                try:
                    fsync_directory(directory)
                except OSError as error:
                    mine.error = error
                finally:
                    mine.running.release()
            with self._lock:
                if directory not in self._next and not turn.locked():
                    self._turn.pop(directory, None)
        else:
            with mine.running:
                pass
        if mine.error is not None:
            raise OSError(mine.error.errno, mine.error.strerror)


class _Directory:
    """An open directory. It is closed when it is no longer referenced."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)


@lru_cache(8)
def _opened(path: Path) -> _Directory:
    return _Directory(path)


def fsync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    opened = _opened(directory)
    os.fsync(opened.descriptor)


def _open_file(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, "is a directory")
    return descriptor


class DirectoryWriter:
    """Writes a new file under a temporary name. The file is created when the first bytes are written."""

    def __init__(self, store: "DirectoryStore", key: str, final: Path) -> None:
        self.key = key
        self.size = 0
        self._store = store
        self._final = final
        self._checked = 0
        self._temporary = f"{store.directory}/{INCOMING}/{_PROCESS}-{next(_NUMBERS)}"
        self._descriptor = -1
        self._gathered: list[bytes | memoryview] = []
        self._gathered_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        if self.size - self._checked > CHECK_EVERY_BYTES:
            self._store.check_room(self.key)
            self._checked = self.size
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        self.size += len(data)
        if self._gathered_bytes >= GATHERED_BYTES or len(self._gathered) == MOST_GATHERED:
            self.flush()

    def flush(self) -> None:
        """Write the buffered bytes to the file. Lock the file, so that `clean` knows that the writer still exists."""
        is_new = self._descriptor < 0
        self._flush()
        if is_new:
            with _wrapped(self.key):
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def _flush(self) -> None:
        # Without a lock, because a commit that follows at once does not need one: `clean` does not remove young files. If it removed the
        # file nevertheless, the rename would fail.
        with _wrapped(self.key):
            if self._descriptor < 0:
                self._descriptor = os.open(self._temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o640)
            if self._gathered:
                write_all(self._descriptor, self._gathered, self._gathered_bytes)
        self._gathered, self._gathered_bytes = [], 0

    def commit(self) -> None:
        """Fsync the file, rename it, and fsync its directory together with other writers."""
        self._flush()
        with _wrapped(self.key):
            os.fsync(self._descriptor)
            os.rename(self._temporary, self._final)
            self._close()
            self._store.sync.sync(self._final.parent)

    def commit_new(self) -> bool:
        """Commit unless the object exists already; return whether it is new. An existing object is durable when the call returns, too."""
        self._flush()
        with _wrapped(self.key):
            os.fsync(self._descriptor)
            try:
                os.link(self._temporary, self._final)
                is_new = True
            except FileExistsError:
                is_new = False
            os.unlink(self._temporary)
            self._close()
            self._store.sync.sync(self._final.parent)
        return is_new

    def abort(self) -> None:
        """Unlink the temporary file."""
        self._gathered, self._gathered_bytes = [], 0
        if self._descriptor >= 0:
            with suppress(OSError):
                os.unlink(self._temporary)
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


def write_all(descriptor: int, chunks: list[bytes | memoryview], size_bytes: int) -> None:
    """Write chunks in their order, usually with one system call.

    Args:
        size_bytes: length of all chunks together.
    """
    written = os.writev(descriptor, chunks)
    if written == size_bytes:
        return
    for chunk in chunks:
        rest = memoryview(chunk)[written:]
        written = max(0, written - len(chunk))
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def _wanted(entries: Iterable[os.DirEntry[str]], base: str, prefix: str, after: str) -> Iterator[str]:
    """Yield the keys that begin with `prefix` and are greater than `after`, and the directories that may contain such keys.

    A directory is yielded with a "/" at its end, because its keys sort by that.

    Args:
        entries: of one directory.
        base: key prefix of that directory: "", or a string that ends with "/".
    """
    for entry in entries:
        key = base + entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            key += "/"
            # All keys in the directory begin with `key`. They are not greater than `after` unless `key` is, or `after` begins with `key`.
            if (key.startswith(prefix) or prefix.startswith(key)) and (key > after or after.startswith(key)):
                yield key
        elif key > after and key.startswith(prefix):
            yield key


class DirectoryStore:
    """Objects in a directory.

    Args:
        directory: created if it does not exist.
        reserve_percent: percentage of the file system that writers leave free, 0 to 100.
    """

    kind = "directory"

    def __init__(self, directory: Path, reserve_percent: float = 2) -> None:
        self.directory = directory
        self.sync = DirectorySync()
        self._reserve = reserve_percent / 100
        self._durable = CountBoundedCache[Path, bool](MOST_DURABLE_DIRECTORIES)
        with _wrapped(str(directory)):
            (directory / INCOMING).mkdir(parents=True, exist_ok=True)

    def check_room(self, key: str) -> None:
        """Check the free disk space.

        Raises:
            errors.OutOfResources: less than the reserve is free.
        """
        with _wrapped(key):
            disk = os.statvfs(self.directory)
        if disk.f_bavail < disk.f_blocks * self._reserve:
            raise errors.OutOfResources(f"less than {self._reserve:.0%} of the disk is free", retry_after_s=60)

    def create(self, key: str) -> DirectoryWriter:
        """Open a writer under a temporary name."""
        final = object_path(self.directory, key)
        self.check_room(key)
        with _wrapped(key):
            self._make_durable(final.parent)
            return DirectoryWriter(self, key, final)

    def _make_durable(self, directory: Path) -> None:
        """Create a directory and its parents, and make their names durable."""
        if directory == self.directory or directory in self._durable:
            return
        self._make_durable(directory.parent)
        directory.mkdir(exist_ok=True)
        # Also if it existed: another thread may have created it and not synced it yet.
        self.sync.sync(directory.parent)
        self._durable.put(directory, True)

    def read(self, key: str, ranges: Ranges) -> Iterator[bytes]:
        """Yield chunks that are read with pread."""
        path = object_path(self.directory, key)
        with _reading(key):
            descriptor = _open_file(path)
        try:
            check_ranges(key, os.fstat(descriptor).st_size, ranges)
            yield from joined(self._chunks(key, descriptor, ranges))
        finally:
            os.close(descriptor)

    def _chunks(self, key: str, descriptor: int, ranges: Ranges) -> Iterator[bytes]:
        for offset, length in cut(coalesced(ranges)):
            while length:
                with _wrapped(key):
                    chunk = os.pread(descriptor, length, offset)
                if not chunk:
                    raise errors.Unavailable(f"{key} ends at {offset}, shorter than it was")
                offset, length = offset + len(chunk), length - len(chunk)
                yield chunk

    def size(self, key: str) -> int:
        """Return the length of the file."""
        path = object_path(self.directory, key)
        with _reading(key):
            descriptor = _open_file(path)
        try:
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectEntry]:
        """Walk through the directories in which a key can match."""
        yield from self._walk(self.directory, "", prefix, after)

    def _walk(self, directory: Path, base: str, prefix: str, after: str) -> Iterator[ObjectEntry]:
        try:
            with os.scandir(directory) as entries:
                names = sorted(_wanted(entries, base, prefix, after))
        except FileNotFoundError:
            return
        except OSError as error:
            raise errors.Unavailable(f"objects cannot be listed: {error.strerror}") from error
        for name in names:
            if name.endswith("/"):
                yield from self._walk(self.directory / name, name, prefix, after)
            else:
                with suppress(FileNotFoundError):
                    yield ObjectEntry(name, os.stat(self.directory / name).st_size)

    def put(self, key: str, data: bytes, replace: bool = False) -> None:
        """Write a temporary file, fsync it, link or rename it, fsync the directory."""
        final = object_path(self.directory, key)
        with _wrapped(key):
            self._make_durable(final.parent)
            writer = DirectoryWriter(self, key, final)
        try:
            writer.write(data)
            if replace:
                writer.commit()
            elif not writer.commit_new():
                with _wrapped(key):
                    if final.stat().st_size != len(data) or final.read_bytes() != data:
                        raise errors.Conflict(f"{key} exists with other bytes")
        finally:
            writer.abort()

    def move(self, key: str, to: str) -> None:
        """Rename the file, then fsync both directories. The new name is durable before the removal of the old one."""
        path, final = object_path(self.directory, key), object_path(self.directory, to)
        with _reading(key):
            os.close(_open_file(path))
            self._make_durable(final.parent)
            os.rename(path, final)
            self.sync.sync(final.parent)
            self.sync.sync(path.parent)

    def remove(self, key: str) -> None:
        """Unlink the file, fsync its directory."""
        path = object_path(self.directory, key)
        with _wrapped(key), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
            self.sync.sync(path.parent)

    def clean(self) -> int:
        """Unlink temporary files that no process has locked."""
        count = 0
        with _wrapped(INCOMING):
            for entry in list(os.scandir(self.directory / INCOMING)):
                count += self._clean(entry)
        return count

    def _clean(self, entry: os.DirEntry[str]) -> bool:
        with suppress(OSError):
            if time.time() - entry.stat().st_mtime < YOUNG_S:
                return False
            descriptor = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(entry.path)
            finally:
                os.close(descriptor)
            return True
        return False

    def status(self) -> StoreStatus:
        """Check whether the directory can be written, and how much disk space is free."""
        try:
            disk = os.statvfs(self.directory)
            writable = os.access(self.directory / INCOMING, os.W_OK | os.X_OK)
        except OSError as error:
            return StoreStatus(False, f"directory of the objects: {error.strerror}")
        free = disk.f_bavail * disk.f_frsize
        if not writable:
            return StoreStatus(False, "directory of the objects cannot be written", free)
        if disk.f_bavail < disk.f_blocks * self._reserve:
            return StoreStatus(True, f"less than {self._reserve:.0%} of the disk is free: nothing is stored", free)
        return StoreStatus(True, "", free)

    def close(self) -> None:
        """Do nothing: the store holds no threads or connections."""
