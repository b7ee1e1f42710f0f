"""The contract of the object store (`gantry_blob/object_store.py`), sentence by sentence, on every adapter."""

import datetime
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from gantry_blob.stores import directory as directory_store
from gantry_blob.stores.directory import DirectoryStore, DirectorySync
from gantry_blob.stores.port import ObjectStore
from gantry_blob.stores.s3 import S3Store
from gantry_standard import errors
from tests.support.blob_service import a_store

MIB = 1 << 20
PATTERN = os.urandom(MIB)


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    with a_store(request.param, tmp_path / "objects", request) as opened:
        yield opened


def written(store: ObjectStore, key: str, data: bytes) -> None:
    writer = store.create(key)
    writer.write(data)
    writer.commit()


def content(store: ObjectStore, key: str, *ranges: tuple[int, int]) -> bytes:
    return b"".join(store.read(key, ranges or [(0, store.size(key))]))


def keys(store: ObjectStore, prefix: str = "", after: str = "") -> list[str]:
    return [entry.key for entry in store.list(prefix, after)]


def test_an_object_is_not_seen_before_its_commit_and_is_whole_after_it(store: ObjectStore) -> None:
    writer = store.create("packs/2026/a.pack")
    writer.write(b"one")
    writer.write(memoryview(b"two"))
    assert (writer.size, writer.key) == (6, "packs/2026/a.pack")
    assert keys(store) == []
    with pytest.raises(errors.NotFound):
        store.size("packs/2026/a.pack")
    writer.commit()
    assert keys(store) == ["packs/2026/a.pack"]
    assert content(store, "packs/2026/a.pack") == b"onetwo"


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    written(store, "empty", b"")
    assert store.size("empty") == 0
    assert content(store, "empty") == b""


def test_an_object_of_many_parts_is_what_was_written(store: ObjectStore) -> None:
    writer = store.create("packs/large.pack")
    for index in range(17):
        writer.write(PATTERN[index * 7 :] + PATTERN[: index * 7])
    writer.write(b"tail")
    assert keys(store) == []
    writer.commit()
    assert store.size("packs/large.pack") == 17 * MIB + 4
    assert content(store, "packs/large.pack") == b"".join(PATTERN[i * 7 :] + PATTERN[: i * 7] for i in range(17)) + b"tail"


@pytest.mark.parametrize("size", [100, 11 * MIB])
def test_abort_leaves_nothing(store: ObjectStore, size: int) -> None:
    writer = store.create("packs/gone.pack")
    writer.write(bytes(size))
    writer.abort()
    writer.abort()
    assert keys(store) == []
    assert remains(store) == 0


@pytest.mark.parametrize("size", [100, 6 * MIB])
def test_abort_after_commit_does_nothing(store: ObjectStore, size: int) -> None:
    writer = store.create("packs/kept.pack")
    writer.write(bytes(size))
    writer.commit()
    writer.abort()
    assert store.size("packs/kept.pack") == size


def remains(store: ObjectStore) -> int:
    """Return how many unfinished objects there are, of living and dead writers."""
    if isinstance(store, DirectoryStore):
        return len(list((store.directory / directory_store.INCOMING).iterdir()))
    assert isinstance(store, S3Store)
    # MinIO lists the uploads of one key only.
    keys = ("packs/killed.pack", "packs/gone.pack", "decisions/1")
    return sum(len(list(store._made().open_uploads(key))) for key in keys)


KILLED = """
import os, signal, sys
from pathlib import Path
kind, where, bucket = sys.argv[1:4]
if kind == "directory":
    from gantry_blob.stores.directory import DirectoryStore
    store = DirectoryStore(Path(where), 0)
else:
    from gantry_blob.stores.s3 import S3Store
    store = S3Store(where, os.environ["ACCESS"], os.environ["SECRET"], bucket, part_bytes=5 << 20)
writer = store.create("packs/killed.pack")
writer.write(bytes(11 << 20))
if kind == "s3":
    writer._parts[-1].result()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_is_seen_of_a_writer_whose_process_was_killed_and_clean_takes_its_remains(
    store: ObjectStore, request: pytest.FixtureRequest
) -> None:
    environment = dict(os.environ)
    if isinstance(store, DirectoryStore):
        arguments = ["directory", str(store.directory), ""]
    else:
        settings = request.getfixturevalue("s3_settings")
        environment |= {"ACCESS": settings["GANTRY_S3_ACCESS_KEY"], "SECRET": settings["GANTRY_S3_SECRET_KEY"]}
        assert isinstance(store, S3Store)
        arguments = ["s3", settings["GANTRY_S3_ENDPOINT"], store._bucket]
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert keys(store) == []
    assert remains(store) == 1
    assert clean_all(store) == 1
    assert remains(store) == 0


def clean_all(store: ObjectStore) -> int:
    """Clean as if what is there were old."""
    if isinstance(store, S3Store):
        return store.clean_before(datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=1), "packs/killed.pack")
    assert isinstance(store, DirectoryStore)
    for path in (store.directory / directory_store.INCOMING).iterdir():
        os.utime(path, (1, 1))
    return store.clean()


def test_clean_leaves_a_living_writer_alone(store: ObjectStore) -> None:
    writer = store.create("packs/alive.pack")
    writer.write(bytes(6 * MIB))
    assert (clean_all(store) if isinstance(store, DirectoryStore) else store.clean()) == 0
    writer.commit()
    assert store.size("packs/alive.pack") == 6 * MIB


def test_ranges_are_read_in_their_order(store: ObjectStore) -> None:
    written(store, "object", PATTERN)
    ranges = [(500_000, 10), (0, 5), (5, 7), (1_000_000, 100), (3, 0), (2, 4)]
    assert content(store, "object", *ranges) == b"".join(PATTERN[o : o + n] for o, n in ranges)


def test_many_near_ranges_are_read_exactly(store: ObjectStore) -> None:
    written(store, "object", PATTERN)
    ranges = [(at, 900) for at in range(8, MIB - 1000, 1000)]
    assert content(store, "object", *ranges) == b"".join(PATTERN[o : o + n] for o, n in ranges)


def test_a_piece_has_at_most_one_mebibyte_and_small_ones_are_joined(store: ObjectStore) -> None:
    written(store, "object", PATTERN * 5)
    pieces = list(store.read("object", [(0, 3 * MIB + 5), (0, 10), (100, 10)]))
    assert max(map(len, pieces)) <= MIB
    assert len(pieces) <= 5
    assert b"".join(pieces) == (PATTERN * 5)[: 3 * MIB + 5] + PATTERN[:10] + PATTERN[100:110]


def test_reading_may_stop_early(store: ObjectStore) -> None:
    written(store, "object", PATTERN * 5)
    for _ in range(20):
        reading = store.read("object", [(0, 5 * MIB)])
        assert PATTERN.startswith(next(reading)[:1000])
        reading.close()  # type: ignore[attr-defined]
    assert content(store, "object", (0, 4)) == PATTERN[:4]


@pytest.mark.parametrize("ranges", [[(MIB, 1)], [(0, MIB + 1)], [(MIB - 1, 2)], [(0, 10), (2 * MIB, 10)]])
def test_a_range_beyond_the_end_is_a_bad_request_before_the_first_piece(store: ObjectStore, ranges: list[tuple[int, int]]) -> None:
    written(store, "object", PATTERN)
    with pytest.raises(errors.BadRequest):
        next(store.read("object", ranges))


@pytest.mark.parametrize("ranges", [[(0, 1)], [(0, 0)], []])
def test_what_is_not_there_is_not_found(store: ObjectStore, ranges: list[tuple[int, int]]) -> None:
    written(store, "some/where/else", b"x")
    for key in ("some/thing", "some/where", "other"):
        with pytest.raises(errors.NotFound):
            next(store.read(key, ranges))
        with pytest.raises(errors.NotFound):
            store.size(key)


LISTED = ["a-b", "a.b", "a/b", "a/c/d", "a0", "b/1/x", "b/1/y", "b/10/x", "b/2/x", "c"]


def test_objects_are_listed_by_key(store: ObjectStore) -> None:
    for number, key in enumerate(reversed(LISTED)):
        store.put(key, bytes(number))
    assert [(entry.key, entry.size_bytes) for entry in store.list("")] == [(key, len(LISTED) - 1 - i) for i, key in enumerate(LISTED)]


@pytest.mark.parametrize(
    ("prefix", "after"),
    [
        *[
            ("a", ""),
            ("b/", ""),
            ("b/1", ""),
            ("b/1/", ""),
            ("b/1/x", ""),
            ("", "a/b"),
            ("", "a/bb"),
            ("", "b/1/x"),
            ("b/", "b/1"),
            ("", "a/"),
        ],
        *[("b/1", "b/10"), ("x", ""), ("", "z"), ("a", "b"), ("b", "a")],
    ],
)
def test_only_keys_with_the_prefix_and_above_after_are_listed(store: ObjectStore, prefix: str, after: str) -> None:
    for key in LISTED:
        store.put(key, b"")
    assert keys(store, prefix, after) == [key for key in LISTED if key.startswith(prefix) and key > after]


def test_of_a_large_folder_only_what_is_asked_for_is_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path, 0)
    store.put("packs/2026/0000", b"")
    for number in range(1, 3000):
        (tmp_path / "packs" / "2026" / f"{number:04}").touch()
    compared: list[str] = []

    def recording(names: Iterator[str]) -> list[str]:
        compared.extend(found := sorted(names))
        return found

    monkeypatch.setattr(directory_store, "sorted", recording, raising=False)
    assert keys(store, "packs/", "packs/2026/2996") == ["packs/2026/2997", "packs/2026/2998", "packs/2026/2999"]
    assert compared == ["packs/", "packs/2026/", "packs/2026/2997", "packs/2026/2998", "packs/2026/2999"]


NO_KEYS = [
    "",
    "/a",
    "a/",
    "a//b",
    "../a",
    "a/../b",
    "a/.b",
    ".a",
    ".incoming/x",
    "a\\b",
    "a b",
    "a\n",
    "ä",
    "a/" + "x" * 300,
    "x/" * 500 + "x",
]


@pytest.mark.parametrize("key", NO_KEYS)
def test_what_is_no_key_is_a_bad_request(store: ObjectStore, key: str) -> None:
    moves = (store.remove, lambda k: store.move(k, "a"), lambda k: store.move("a", k))
    for call in (store.create, store.size, lambda k: store.put(k, b""), lambda k: next(store.read(k, [(0, 1)])), *moves):
        with pytest.raises(errors.BadRequest):
            call(key)


def test_put_writes_an_object(store: ObjectStore) -> None:
    store.put("decisions/1", b"first")
    assert content(store, "decisions/1") == b"first"
    assert remains(store) == 0


def test_put_of_the_same_bytes_again_is_fine(store: ObjectStore) -> None:
    store.put("decisions/1", b"first")
    store.put("decisions/1", b"first")
    assert content(store, "decisions/1") == b"first"


@pytest.mark.parametrize("other", [b"secon", b"first+", b""])
def test_put_of_other_bytes_is_a_conflict(store: ObjectStore, other: bytes) -> None:
    store.put("decisions/1", b"first")
    with pytest.raises(errors.Conflict):
        store.put("decisions/1", other)
    assert content(store, "decisions/1") == b"first"
    assert remains(store) == 0


def test_put_replaces_when_it_may(store: ObjectStore) -> None:
    store.put("workitems/1", b"first")
    store.put("workitems/1", b"the second", replace=True)
    assert content(store, "workitems/1") == b"the second"


def test_a_reader_sees_the_old_or_the_new_bytes_of_a_replaced_object(store: ObjectStore) -> None:
    store.put("workitems/1", b"a" * 5000)
    end = threading.Event()

    def replacing() -> None:
        for number in range(30):
            store.put("workitems/1", b"ab"[number % 2 : number % 2 + 1] * 5000, replace=True)
        end.set()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(replacing)
        while not end.is_set() and not done.done():
            assert content(store, "workitems/1", (0, 5000)) in (b"a" * 5000, b"b" * 5000)
        done.result()


@pytest.mark.parametrize("size", [0, 100, 6 * MIB])
def test_a_moved_object_has_its_new_key_alone(store: ObjectStore, size: int) -> None:
    written(store, "packs/2026/a.pack", (PATTERN * 6)[:size])
    store.move("packs/2026/a.pack", "trash/1/packs/2026/a.pack")
    assert keys(store) == ["trash/1/packs/2026/a.pack"]
    assert content(store, "trash/1/packs/2026/a.pack") == (PATTERN * 6)[:size]
    with pytest.raises(errors.NotFound):
        store.size("packs/2026/a.pack")


@pytest.mark.parametrize("key", ["packs/a", "packs"])
def test_moving_what_is_not_there_is_not_found(store: ObjectStore, key: str) -> None:
    store.put("packs/b", b"x")
    with pytest.raises(errors.NotFound):
        store.move(key, "trash/a")
    assert keys(store) == ["packs/b"]


def test_a_removed_object_is_gone_and_removing_what_is_not_there_is_fine(store: ObjectStore) -> None:
    store.put("decisions/1", b"first")
    store.put("decisions/2", b"second")
    for _ in range(2):
        store.remove("decisions/1")
        store.remove("decisions/2/below")
        assert keys(store) == ["decisions/2"]
    store.put("decisions/1", b"other")
    assert content(store, "decisions/1") == b"other"


def test_an_object_that_is_moved_or_removed_while_it_is_read_never_gives_wrong_bytes(store: ObjectStore) -> None:
    for end in (lambda: store.move("packs/a", "trash/a"), lambda: store.remove("packs/a")):
        written(store, "packs/a", PATTERN * 3)
        reading = store.read("packs/a", [(0, 3 * MIB)])
        got = next(reading)
        end()
        with suppress(errors.NotFound, errors.Unavailable):
            for piece in reading:
                got += piece
        assert (PATTERN * 3).startswith(got)


def test_writers_and_readers_work_in_parallel(store: ObjectStore) -> None:
    def one(number: int) -> bytes:
        key = f"packs/2026/11/{number % 3}/{number}.pack"
        written(store, key, PATTERN[number : number + 10_000])
        return content(store, key)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(40))) == [PATTERN[n : n + 10_000] for n in range(40)]
    assert len(keys(store, "packs/")) == 40


def test_status_of_a_healthy_store_is_ready(store: ObjectStore) -> None:
    status = store.status()
    assert status.ready
    assert status.explanation == ""
    assert (status.free_bytes > 0) == (store.kind == "directory")


def broken_stores(tmp_path: Path) -> list[ObjectStore]:
    gone = DirectoryStore(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    (tmp_path / "gone").write_bytes(b"a file")
    return [gone, S3Store("http://127.0.0.1:1", "key", "secret", "bucket", timeout_s=1)]


def test_a_store_that_does_not_answer_is_unavailable(tmp_path: Path) -> None:
    for store in broken_stores(tmp_path):
        for call in (
            lambda store: written(store, "packs/a", b"x"),
            lambda store: store.put("a", b"x"),
            lambda store: store.clean(),
            lambda store: list(store.list("packs/")),
        ):
            with pytest.raises(errors.Unavailable):
                call(store)
        status = store.status()
        assert not status.ready
        assert status.explanation
        store.close()


def test_reading_from_an_s3_server_that_does_not_answer_is_unavailable() -> None:
    store = S3Store("http://127.0.0.1:1", "key", "secret", "bucket", timeout_s=1)
    with pytest.raises(errors.Unavailable):
        store.size("a")
    with pytest.raises(errors.Unavailable):
        next(store.read("a", [(0, 1)]))
    with pytest.raises(errors.Unavailable):
        store.move("a", "b")
    with pytest.raises(errors.Unavailable):
        store.remove("a")
    store.close()


def test_wrong_credentials_are_unavailable(s3_settings: dict[str, str]) -> None:
    store = S3Store(s3_settings["GANTRY_S3_ENDPOINT"], "nobody", "wrong-secret", "bucket")
    with pytest.raises(errors.Unavailable):
        store.put("a", b"x")
    assert not store.status().ready
    store.close()


class FullDisk:
    """What statvfs tells of a disk with one block of a hundred left."""

    f_bavail, f_blocks, f_frsize = 1, 100, 4096


def test_a_nearly_full_disk_takes_no_new_objects_but_decisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path, reserve_percent=2)
    writer = store.create("packs/1")
    monkeypatch.setattr(os, "statvfs", lambda path: FullDisk)
    with pytest.raises(errors.OutOfResources):
        store.create("packs/2")
    for _ in range(17):  # it looks once per 16 MiB
        writer.write(PATTERN)
    with pytest.raises(errors.OutOfResources):
        writer.write(PATTERN)
    writer.abort()
    store.put("decisions/1", b"deleted")
    assert keys(store) == ["decisions/1"]
    status = store.status()
    assert status.ready
    assert "2%" in status.explanation


@pytest.mark.parametrize("call", ["writev", "fsync"])
def test_a_full_disk_is_out_of_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = DirectoryStore(tmp_path, reserve_percent=0)
    writer = store.create("packs/1")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(errors.OutOfResources):
        (writer.write(b"x"), writer.commit())
    writer.abort()
    assert keys(store) == []
    assert remains(store) == 0


def test_a_small_object_is_written_by_one_call_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path, reserve_percent=0)
    calls: list[int] = []
    writev = os.writev

    def counting(descriptor: int, pieces: list[bytes]) -> int:
        calls.append(len(pieces))
        return writev(descriptor, [b"".join(pieces)[:5]])  # the kernel may take less than it was given

    monkeypatch.setattr(os, "writev", counting)
    writer = store.create("packs/1")
    for piece in (b"abc", memoryview(b"defg"), b"", b"hi"):
        writer.write(piece)
    assert calls == []
    writer.commit()
    assert calls == [4]
    assert b"".join(store.read("packs/1", [(0, writer.size)])) == b"abcdefghi"


def test_a_file_that_was_cleaned_away_before_its_commit_is_not_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path, reserve_percent=0)
    writer = store.create("packs/1")
    writer.write(b"x")
    monkeypatch.setattr(os, "fsync", lambda descriptor: clean_all(store))
    with pytest.raises(errors.Unavailable):
        writer.commit()
    writer.abort()
    assert (keys(store), remains(store)) == ([], 0)


def test_a_file_is_on_disk_before_its_name_and_its_name_before_commit_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path, reserve_percent=0)
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def fsyncing(descriptor: int) -> None:
        steps.append("fsync " + os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(str(tmp_path)).split("/.incoming/")[0])
        fsync(descriptor)

    def renaming(source: Path, target: Path) -> None:
        steps.append("rename " + str(target).removeprefix(str(tmp_path)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsyncing)
    monkeypatch.setattr(os, "rename", renaming)
    written(store, "packs/2026/a.pack", b"x")
    # The new directories first: /packs in its parent, /packs/2026 in its.
    assert steps == ["fsync ", "fsync /packs", "fsync ", "rename /packs/2026/a.pack", "fsync /packs/2026"]


def test_those_who_wait_for_the_same_directory_share_one_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[float] = []

    def slow(directory: Path) -> None:
        begun.append(time.monotonic())
        time.sleep(0.05)

    monkeypatch.setattr(directory_store, "fsync_directory", slow)
    sync = DirectorySync()

    def one(_: int) -> bool:
        called = time.monotonic()
        sync.sync(tmp_path)
        return any(called <= at <= time.monotonic() - 0.045 for at in begun)

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(one, range(60))), "each had an fsync that began after its call and ended before its return"
    assert len(begun) < 15


def test_a_failed_fsync_of_a_directory_fails_all_that_waited_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(directory: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(directory_store, "fsync_directory", failing)
    store = DirectoryStore(tmp_path, reserve_percent=0)
    with pytest.raises(errors.Unavailable):
        store.put("decisions", b"x")
