"""Objects as files of a directory, key = path. The default on one machine.

A writer gathers up to GATHERED_BYTES, then writes to a temporary name below `.incoming` in the same file system and holds a lock on it as
long as it lives: of a small object all is one call of the system. `commit` is: fsync of the file, rename, fsync of the directory; those
who wait for an fsync of the same directory share one. Keys never begin with a dot, so temporary names are never listed.

Each call of the system gives the interpreter lock away and waits for it again, which under load costs more than the call itself: hence
few of them.
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
"""A writer writes once so much has come, or at its end."""

CHECK_EVERY_BYTES = 16 << 20
"""A writer looks at the free room once per so many bytes."""

YOUNG_S = 60
"""A temporary file younger than this is left alone: its writer may not have locked it yet."""

MOST_DURABLE_DIRECTORIES = 10_000
MOST_GATHERED = 512
"""Pieces that are gathered: well below what one writev takes (1,024)."""

_PROCESS = secrets.token_hex(12)
_NUMBERS = itertools.count()


@contextmanager
def _wrapped(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise errors.OutOfResources(f"{what}: no room left on the disk") from error
        raise errors.Unavailable(f"{what}: {error.strerror}") from error


@contextmanager
def _reading(key: str) -> Iterator[None]:
    with _wrapped(key):
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise errors.NotFound(f"{key}: no such object") from error


class _Round:
    """One fsync of a directory, for all that wait for it."""

    def __init__(self) -> None:
        self.running = threading.Lock()
        """Held by the thread that leads until its fsync has ended. An Event costs ten times as much."""
        self.running.acquire()
        self.error: OSError | None = None


class DirectorySync:
    """Group commit of directory fsyncs: whoever comes while one runs shares the next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: dict[Path, _Round] = {}
        self._turn: dict[Path, threading.Lock] = {}

    def sync(self, directory: Path) -> None:
        """Return when an fsync that began after this call has ended.

        Args:
            directory: stays the same directory, under this name, as long as the process lives.

        Raises:
            OSError: it failed.
        """
        with self._lock:
            mine = self._next.get(directory)
            leads = mine is None
            if mine is None:
                mine = self._next[directory] = _Round()
            turn = self._turn.setdefault(directory, threading.Lock())
        if leads:
            with turn:  # the fsync before has ended; all who came meanwhile have joined this round
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
    """An open directory. It closes when nobody holds it any more."""

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
    """A new file under a temporary name, made when the first bytes are written."""

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
        """Write what has come into the file, whose lock tells `clean` that the writer lives."""
        is_new = self._descriptor < 0
        self._flush()
        if is_new:
            with _wrapped(self.key):
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def _flush(self) -> None:
        # Without a lock, which a commit that follows at once does not need: `clean` leaves young files alone, and what it took cannot be
        # renamed any more.
        with _wrapped(self.key):
            if self._descriptor < 0:
                self._descriptor = os.open(self._temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o640)
            if self._gathered:
                write_all(self._descriptor, self._gathered, self._gathered_bytes)
        self._gathered, self._gathered_bytes = [], 0

    def commit(self) -> None:
        """Fsync the file, rename it, fsync its directory together with others."""
        self._flush()
        with _wrapped(self.key):
            os.fsync(self._descriptor)
            os.rename(self._temporary, self._final)
            self._close()
            self._store.sync.sync(self._final.parent)

    def commit_new(self) -> bool:
        """Commit, but keep an object that exists; return whether it is new. What exists is durable too when it returns."""
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


def write_all(descriptor: int, pieces: list[bytes | memoryview], size_bytes: int) -> None:
    """Write the pieces one after another, mostly by one call of the system."""
    written = os.writev(descriptor, pieces)
    if written == size_bytes:
        return
    for piece in pieces:
        rest = memoryview(piece)[written:]
        written = max(0, written - len(piece))
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def _wanted(entries: Iterable[os.DirEntry[str]], base: str, prefix: str, after: str) -> Iterator[str]:
    """Yield what may hold keys with a prefix and above `after`: keys, and directories with a "/", as which they sort.

    Args:
        base: of the keys in the directory: "" or what ends in "/".
    """
    for entry in entries:
        key = base + entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            key += "/"
            # Every key below begins with `key`: all are at or below `after` unless `key` is above it or begins it.
            if (key.startswith(prefix) or prefix.startswith(key)) and (key > after or after.startswith(key)):
                yield key
        elif key > after and key.startswith(prefix):
            yield key


class DirectoryStore:
    """Objects in a directory.

    Args:
        directory: made when it is not there.
        reserve_percent: of the file system that writers leave free, 0 to 100.
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
        """Raise OutOfResources when less than the reserve is free."""
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
        """Make a directory and those above it, and be sure that their names are on disk."""
        if directory == self.directory or directory in self._durable:
            return
        self._make_durable(directory.parent)
        directory.mkdir(exist_ok=True)
        # Also when it was there: another thread may have made it a moment ago and not synced yet.
        self.sync.sync(directory.parent)
        self._durable.put(directory, True)

    def read(self, key: str, ranges: Ranges) -> Iterator[bytes]:
        """Yield pieces read with pread."""
        path = object_path(self.directory, key)
        with _reading(key):
            descriptor = _open_file(path)
        try:
            check_ranges(key, os.fstat(descriptor).st_size, ranges)
            yield from joined(self._pieces(key, descriptor, ranges))
        finally:
            os.close(descriptor)

    def _pieces(self, key: str, descriptor: int, ranges: Ranges) -> Iterator[bytes]:
        for offset, length in cut(coalesced(ranges)):
            while length:
                with _wrapped(key):
                    piece = os.pread(descriptor, length, offset)
                if not piece:
                    raise errors.Unavailable(f"{key} ends at {offset}, shorter than it was")
                offset, length = offset + len(piece), length - len(piece)
                yield piece

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
        """Walk the directories, only those where a key can match."""
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
        """Rename the file, fsync both directories: the new name is on disk before the old one goes."""
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
        """Unlink temporary files that nobody holds a lock on."""
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
        """Look whether the directory can be written, and how much room is left."""
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
        """Nothing is held."""
