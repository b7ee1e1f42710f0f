"""Packs that index does not know are announced again."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from gantry_blob.packs.announcer import AnnouncerTimes
from gantry_blob.packs.pack import PackWriter, new_key
from gantry_blob.stores.directory import DirectoryStore
from gantry_blob.storing.request import StoreRequest, StoreRules
from tests.support import instances
from tests.support.blob_service import RunningBlob, announced, running_blob, upload_messages
from tests.support.nats_server import NatsServer


@pytest_asyncio.fixture
async def blob(tmp_path: Path, nats_server: NatsServer) -> AsyncIterator[RunningBlob]:
    async with running_blob(DirectoryStore(tmp_path, 0), nats_server.url, times=AnnouncerTimes(pause_s=0)) as running:
        yield running


async def committed_only(blob: RunningBlob) -> str:
    """Store two studies as a process does that dies before it announces; return the pack."""
    messages = [message async for message in upload_messages([instances.encoded(instances.ct()) for _ in range(2)])]
    upload = StoreRequest(blob.store, messages[0].start, StoreRules())
    upload.apply(messages[1:])
    [(key, _)] = upload.commit()
    return key


async def test_a_pack_whose_blob_died_before_its_events_is_announced_from_its_trailer(blob: RunningBlob) -> None:
    key = await committed_only(blob)
    assert await announced(blob.client, key) == []
    assert await blob.announcer.catch_up(None) == 1
    events = await announced(blob.client, key)
    assert [list(event.instances) for event in events] == [[stored] for stored in await blob.trailer(key)]
    assert [(event.request_id, event.reply_subject, event.last_of_pack) for event in events] == [
        ("request-1", "", False),
        ("request-1", "", True),
    ]


async def test_what_index_knows_is_not_announced(blob: RunningBlob) -> None:
    key = await committed_only(blob)
    blob.index.known.add(key)
    assert await blob.announcer.catch_up(900) == 0
    assert await announced(blob.client, key) == []
    assert blob.index.asked == [[key]]


async def test_a_pack_that_is_announced_twice_is_on_the_stream_once(blob: RunningBlob) -> None:
    await blob.store_parts([instances.encoded(instances.ct())])
    [key] = blob.packs()
    assert await blob.announcer.catch_up(None) == 1
    assert len(await announced(blob.client, key)) == 1


async def test_a_pack_that_stays_unknown_is_not_announced_at_every_look(blob: RunningBlob) -> None:
    await committed_only(blob)
    assert [await blob.announcer.catch_up(None) for _ in range(3)] == [1, 0, 0]


async def test_a_damaged_pack_does_not_hinder_the_others(blob: RunningBlob) -> None:
    blob.store.put("packs/0000.pack", b"no pack at all")
    key = await committed_only(blob)
    assert await blob.announcer.catch_up(None) == 1
    assert len(await announced(blob.client, key)) == 2


async def test_a_pack_that_is_not_committed_is_not_announced(blob: RunningBlob) -> None:
    writer = PackWriter(blob.store.create(new_key()), "")
    writer.write(b"bytes")
    assert await blob.announcer.catch_up(None) == 0
    writer.abort()
