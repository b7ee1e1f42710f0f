"""The pack: what is written is read again, and what is damaged is said to be."""

import os
import re
from pathlib import Path

import pytest

from gantry.blob.v1 import blob_pb2
from gantry_blob.packs import pack
from gantry_blob.packs.pack import FOOTER, MAGIC, PackLimits, PackWriter, new_key, read_trailer
from gantry_blob.stores.directory import DirectoryStore
from gantry_standard import errors


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path, reserve_percent=0)


def instance(number: int, json_bytes: int = 10) -> blob_pb2.StoredInstance:
    return blob_pb2.StoredInstance(sop_instance_uid=f"1.2.{number}", part_number=number, dicom_json=os.urandom(json_bytes))


def written(store: DirectoryStore, instances: list[blob_pb2.StoredInstance], body: bytes = b"bytes") -> str:
    writer = PackWriter(store.create(new_key()), "request-7")
    writer.write(body)
    for one in instances:
        writer.add(one)
    writer.seal()
    writer.commit()
    return writer.key


@pytest.mark.parametrize("json_bytes", [10, 1000, 60_000], ids=["in the tail", "in the tail", "longer than the tail"])
def test_a_trailer_is_read_as_it_was_written(store: DirectoryStore, json_bytes: int) -> None:
    instances = [instance(number, json_bytes) for number in range(5)]
    key = written(store, instances, b"x" * 100_000)
    trailer = read_trailer(store, key)
    assert list(trailer.instances) == instances
    assert trailer.request_id == "request-7"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", trailer.created)


def test_a_pack_ends_with_the_length_of_its_trailer_its_digest_and_the_magic(store: DirectoryStore, tmp_path: Path) -> None:
    key = written(store, [instance(1)])
    data = (tmp_path / key).read_bytes()
    length, _, magic = FOOTER.unpack(data[-48:])
    assert magic == b"GNTPACK\x01" == MAGIC
    assert data[: -48 - length] == b"bytes"
    assert blob_pb2.PackTrailer.FromString(data[-48 - length : -48]).instances[0].sop_instance_uid == "1.2.1"


@pytest.mark.parametrize("place", [-1, -8, -20, -45, -48, -60])
def test_a_damaged_trailer_or_footer_is_corrupt(store: DirectoryStore, tmp_path: Path, place: int) -> None:
    key = written(store, [instance(1, 100)])
    data = bytearray((tmp_path / key).read_bytes())
    data[place] ^= 0x40
    (tmp_path / key).write_bytes(data)
    with pytest.raises(errors.CorruptInstance):
        read_trailer(store, key)


@pytest.mark.parametrize("data", [b"", b"short", b"x" * 1000], ids=["empty", "short", "no footer"])
def test_what_is_no_pack_is_corrupt(store: DirectoryStore, data: bytes) -> None:
    store.put("packs/x.pack", data)
    with pytest.raises(errors.CorruptInstance):
        read_trailer(store, "packs/x.pack")


def test_a_missing_pack_is_not_found(store: DirectoryStore) -> None:
    with pytest.raises(errors.NotFound):
        read_trailer(store, "packs/x.pack")


def test_keys_are_unique_and_sort_by_time() -> None:
    keys = [new_key() for _ in range(1000)]
    assert len(set(keys)) == 1000
    assert [key.rpartition("-")[0] for key in keys] == sorted(key.rpartition("-")[0] for key in keys)
    assert re.fullmatch(r"packs/\d{4}/\d\d/\d\d/\d\d/[0-9a-f]{14}-[0-9a-f]{16}\.pack", keys[0])
    assert pack.key_before(10) < keys[0] < pack.key_before(-10)


def test_each_hour_has_a_folder_and_keys_of_later_hours_sort_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for at in (1795564799.5, 1795564800.0, 1795568399.0, 1795568400.0):
        monkeypatch.setattr(pack.time, "time", lambda at=at: at)
        keys.append(new_key())
    assert [key.rpartition("/")[0] for key in keys] == [
        "packs/2026/11/24/23",
        "packs/2026/11/25/00",
        "packs/2026/11/25/00",
        "packs/2026/11/25/01",
    ]
    assert keys == sorted(keys)
    assert [pack.time_of(key) for key in keys] == [1795564799.5, 1795564800.0, 1795568399.0, 1795568400.0]


def test_a_pack_is_full_by_bytes_instances_or_trailer(store: DirectoryStore) -> None:
    writer = PackWriter(store.create(new_key()), "")
    assert not writer.is_full(PackLimits(size_bytes=1, instances=1, trailer_bytes=100))
    writer.write(b"x")
    assert writer.is_full(PackLimits(size_bytes=1, instances=1, trailer_bytes=100))
    assert not writer.is_full(PackLimits(size_bytes=2, instances=1, trailer_bytes=100))
    writer.add(instance(1, 100))
    assert writer.is_full(PackLimits(size_bytes=2, instances=1, trailer_bytes=1000))
    assert writer.is_full(PackLimits(size_bytes=2, instances=2, trailer_bytes=100))
    assert not writer.is_full(PackLimits(size_bytes=2, instances=2, trailer_bytes=1000))
    writer.abort()
