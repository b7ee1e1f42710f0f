"""Workers read frames by themselves, and are helped where they cannot."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gantry.renderer.v1 import renderer_pb2
from gantry_renderer.stored.mapped import MOST_FILES, FrameFiles, StoredFrame
from gantry_renderer.transactions.instances import Instance, read_frame, run_with_frame
from gantry_renderer.workers import pool as pools
from gantry_runtime.frame_locations import FrameLocation
from gantry_standard import errors
from tests.support import stored_instances
from tests.support.images import file_of, image_dataset
from tests.support.nats_server import until

NATIVE, JPEG_2000 = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.90"


def test_ranges_of_a_frame_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "object"
    path.write_bytes(bytes(range(20)))
    files = FrameFiles()
    assert files.load(StoredFrame(str(path), FrameLocation(((2, 3), (10, 2))), False)) == bytes([2, 3, 4, 10, 11])
    assert bytes(files.load(StoredFrame(str(path), FrameLocation(((4, 2),), bits=16), True))) == bytes([4, 5])


def test_a_frame_of_bits_begins_with_bit_0(tmp_path: Path) -> None:
    path = tmp_path / "object"
    path.write_bytes(bytes([0b1010_0000, 0b0000_0101]))
    place = FrameLocation(((0, 2),), bit_offset=5, bits=6)
    assert FrameFiles().load(StoredFrame(str(path), place, True)) == bytes([0b10_1101])


def test_an_object_that_is_gone_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound):
        FrameFiles().load(StoredFrame(str(tmp_path / "none"), FrameLocation(((0, 1),)), False))


@pytest.mark.parametrize("size", [0, 9])
def test_a_range_beyond_the_end_is_a_bad_request(tmp_path: Path, size: int) -> None:
    path = tmp_path / "object"
    path.write_bytes(bytes(size))
    with pytest.raises(errors.BadRequest, match=f"{size} bytes"):
        FrameFiles().load(StoredFrame(str(path), FrameLocation(((0, 10),)), False))


def test_only_so_many_files_are_mapped(tmp_path: Path) -> None:
    files = FrameFiles()
    for number in range(MOST_FILES + 3):
        path = tmp_path / f"{number}"
        path.write_bytes(bytes([number]))
        assert files.load(StoredFrame(str(path), FrameLocation(((0, 1),)), False)) == bytes([number])
    assert len(files._views) == MOST_FILES


class MovedObject:
    """A reader whose object was moved after its path was asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def path(self, object_key: str) -> str:
        return "/nowhere/at/all"

    def ready(self, object_key: str, ranges: Any) -> None:
        return None

    async def read(self, object_key: str, ranges: Any) -> AsyncIterator[bytes]:
        for offset, length in ranges:
            yield self.data[offset : offset + length]


async def test_what_a_worker_does_not_find_is_read_for_it() -> None:
    pixels = np.arange(48, dtype="<u2").reshape(1, 6, 8)
    stored = stored_instances.store(file_of(image_dataset(pixels)))
    async with pools.opened(1, 30) as pool:
        found = await run_with_frame(MovedObject(stored.data), pool, "transcode", Instance(stored.source), 1, NATIVE)
    assert found == pixels.tobytes()


class GoneObject(MovedObject):
    """A reader whose object was swept."""

    async def read(self, object_key: str, ranges: Any) -> AsyncIterator[bytes]:
        raise errors.NotFound(f"there is no object {object_key}")
        yield b""


async def test_an_object_that_was_swept_meanwhile_is_worth_another_try() -> None:
    stored = stored_instances.store(file_of(image_dataset(np.arange(48, dtype="<u2").reshape(1, 6, 8))))
    with pytest.raises(errors.Unavailable, match="moved"):
        await read_frame(GoneObject(stored.data), Instance(stored.source), 1)


async def test_a_client_that_goes_away_leaves_no_work_behind(served: Any) -> None:
    pixels = np.random.default_rng(3).integers(0, 4096, (40, 600, 600)).astype("<u2")
    request = renderer_pb2.TranscodeInstanceRequest(source=served.store(file_of(image_dataset(pixels))), transfer_syntax_uid=JPEG_2000)
    call = served.stub.TranscodeInstance(request, timeout=60)
    reading = asyncio.create_task(call.read())
    await until(lambda: served.pool.running_jobs == 2)
    call.cancel()
    await until(lambda: served.pool.waiting_jobs == 0 and served.pool.running_jobs == 0)
    await asyncio.gather(reading, return_exceptions=True)
    assert (served.pool.waiting_jobs, served.pool.running_jobs) == (0, 0)
