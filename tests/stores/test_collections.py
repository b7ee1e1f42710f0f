"""Non-patient instances from blob to index and back: stored in packs, decided, found, deleted, restored, swept, reindexed.

They have no study; their collection is the resource. There is no route for them yet: everything here is below HTTP.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from pydicom.dataset import Dataset

from gantry.events.v1 import events_pb2
from gantry.index.v1 import index_pb2
from gantry_index.stores.elasticsearch.cluster import SETTINGS
from gantry_index.stores.elasticsearch.mappings import MAPPINGS
from gantry_index.stores.elasticsearch.store import ElasticsearchStore
from gantry_runtime.events import leases
from gantry_runtime.process import end_tasks
from gantry_standard import errors, reasons
from tests.support import instances
from tests.support.blob_and_index import STORE_SETS, BlobAndIndex, blob_and_index
from tests.support.instances import encoded
from tests.support.nats_server import until

PROTOCOLS, PALETTES = "hanging-protocols", "color-palettes"
NEW, SAME, DUPLICATE = events_pb2.OUTCOME_NEW, events_pb2.OUTCOME_SAME, events_pb2.OUTCOME_DUPLICATE


@pytest_asyncio.fixture(params=list(STORE_SETS))
async def both(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlobAndIndex]:
    async with blob_and_index(request.param, tmp_path, request) as running:
        yield running


def key(tag: str, *values: str) -> index_pb2.MatchKey:
    return index_pb2.MatchKey(path=[tag], operation=index_pb2.MatchKey.OPERATION_EQUAL, values=values)


def uid_of(data_set: Dataset) -> str:
    return str(data_set.SOPInstanceUID)


def study_and_resources() -> tuple[Dataset, Dataset, Dataset, Dataset]:
    """Return two hanging protocols, a color palette and an image."""
    return instances.hanging_protocol(), instances.hanging_protocol("Knee"), instances.color_palette(), instances.ct()


async def everything(both: BlobAndIndex) -> list[object]:
    """Return all that index answers about studies and resources."""
    levels = (index_pb2.LEVEL_STUDY, index_pb2.LEVEL_SERIES, index_pb2.LEVEL_INSTANCE)
    answers: list[object] = [await both.search("", level=level) for level in levels]
    for collection in (PROTOCOLS, PALETTES):
        answers.append(await both.search(collection))
        try:
            answers.append(sorted(one.sop_instance_uid for one in await both.records(collection=collection)))
            answers.append(await both.metadata(collection=collection))
        except (errors.NotFound, errors.Gone) as error:
            answers.append(type(error).__name__)
    return answers


async def test_a_protocol_and_a_palette_are_kept_found_and_read_beside_a_study(both: BlobAndIndex) -> None:
    chest, knee, palette, ct = study_and_resources()
    assert await both.put(PROTOCOLS, encoded(chest), encoded(knee)) == [NEW, NEW]
    assert await both.put(PALETTES, encoded(palette)) == [NEW]
    assert await both.put("", encoded(ct)) == [NEW]

    rows = await both.search(PROTOCOLS, key("00720002", "Knee"))
    assert [row["00080018"]["Value"] for row in rows] == [[uid_of(knee)]]
    assert rows[0]["00081190"]["Value"] == [f"BASE/hanging-protocols/{uid_of(knee)}"]
    assert len(await both.search(PROTOCOLS)) == 2
    (stored,) = await both.records(collection=PALETTES, sop_instance_uid=uid_of(palette))
    assert (stored.resource, stored.study_instance_uid, stored.series_instance_uid) == (PALETTES, "", "")
    assert await both.file(stored) == encoded(palette)
    (metadata,) = await both.metadata(collection=PALETTES)
    assert metadata["00700080"]["Value"] == ["HOT_IRON"]

    assert [row["0020000D"]["Value"][0] for row in await both.search("", level=index_pb2.LEVEL_STUDY)] == [ct.StudyInstanceUID]
    assert [row["00080018"]["Value"][0] for row in await both.search("")] == [uid_of(ct)]
    status = await both.status()
    assert (status.studies, status.series, status.instances, status.poison_events) == (1, 1, 4, 0)
    assert await both.problems() == []


async def test_bulkdata_of_a_palette_has_the_path_of_its_resource(both: BlobAndIndex) -> None:
    palette = instances.color_palette(RedPaletteColorLookupTableData=bytes(range(256)) * 1024)
    assert await both.put(PALETTES, encoded(palette)) == [NEW]
    (metadata,) = await both.metadata(collection=PALETTES)
    assert metadata["00281201"]["BulkDataURI"] == f"BASE/color-palettes/{uid_of(palette)}/bulkdata/00281201"


async def test_the_same_again_and_another_one_of_its_uid_are_decided_as_in_a_study(both: BlobAndIndex) -> None:
    chest = instances.hanging_protocol()
    other = instances.hanging_protocol("Another", SOPInstanceUID=uid_of(chest))
    ct = instances.ct(SOPInstanceUID=uid_of(chest))
    assert await both.put(PROTOCOLS, encoded(chest)) == [NEW]
    assert await both.put(PROTOCOLS, encoded(chest)) == [SAME]
    assert await both.put(PROTOCOLS, encoded(other)) == [DUPLICATE]
    assert await both.put("", encoded(ct)) == [DUPLICATE]
    assert [row["00080018"]["Value"][0] for row in await both.search(PROTOCOLS)] == [uid_of(chest)]
    assert await both.search("", level=index_pb2.LEVEL_STUDY) == []


async def test_studies_take_no_instance_without_a_study_and_a_resource_takes_its_own_classes(both: BlobAndIndex) -> None:
    chest, palette = encoded(instances.hanging_protocol()), encoded(instances.color_palette())
    assert await both.put("", chest) == [reasons.REQUIRED_UID_MISSING]
    assert both.refused == ["Study Instance UID is missing"]
    assert await both.put("1.2.3", palette) == [reasons.REQUIRED_UID_MISSING]
    assert await both.put(PROTOCOLS, palette, chest) == [reasons.SOP_CLASS_NOT_SUPPORTED, NEW]
    assert await both.put(PROTOCOLS, encoded(instances.ct())) == [reasons.SOP_CLASS_NOT_SUPPORTED]
    with pytest.raises(errors.BadRequest, match="there is no resource 'worklists'"):
        await both.put("worklists", chest)


async def test_what_is_deleted_is_gone_and_comes_back_on_request(both: BlobAndIndex) -> None:
    chest, knee = instances.hanging_protocol(), instances.hanging_protocol("Knee")
    await both.put(PROTOCOLS, encoded(chest), encoded(knee))
    assert await both.delete(collection=PROTOCOLS, sop_instance_uid=uid_of(chest)) == 1
    with pytest.raises(errors.Gone):
        await both.records(collection=PROTOCOLS, sop_instance_uid=uid_of(chest))
    assert [one.sop_instance_uid for one in await both.records(collection=PROTOCOLS)] == [uid_of(knee)]
    assert await both.restore(uid_of(knee)) == (0, 1, 0)
    assert await both.restore(uid_of(chest)) == (1, 0, 0)
    assert {one.sop_instance_uid for one in await both.records(collection=PROTOCOLS)} == {uid_of(chest), uid_of(knee)}
    assert len(await both.search(PROTOCOLS, key("00720002", "Chest CT"))) == 1


async def test_reindexing_makes_the_same_of_the_object_store(both: BlobAndIndex) -> None:
    chest, knee, palette, ct = study_and_resources()
    await both.put(PROTOCOLS, encoded(chest), encoded(knee))
    await both.put(PALETTES, encoded(palette))
    await both.put("", encoded(ct))
    await both.delete(collection=PROTOCOLS, sop_instance_uid=uid_of(chest))
    await both.delete(collection=PALETTES, sop_instance_uid=uid_of(palette))
    before = await everything(both)
    answer = await both.reindex()
    assert (answer.done, answer.instances) == (True, 2)
    assert await everything(both) == before
    with pytest.raises(errors.Gone):
        await both.records(collection=PALETTES)
    assert await both.restore(uid_of(palette)) == (1, 0, 0)
    assert await both.put(PROTOCOLS, encoded(knee)) == [SAME]


async def test_the_sweeper_keeps_what_lives_of_a_pack_and_reindexing_remembers_what_went(both: BlobAndIndex) -> None:
    chest, knee = instances.hanging_protocol(), instances.hanging_protocol("Knee")
    await both.put(PROTOCOLS, encoded(chest), encoded(knee))
    (first,) = both.blob.packs()
    await both.delete(collection=PROTOCOLS, sop_instance_uid=uid_of(chest))
    await both.sweep()
    await both.sweep()
    (copy,) = both.blob.packs()
    assert copy != first
    (stored,) = await both.records(collection=PROTOCOLS)
    assert (stored.resource, stored.location.object, stored.sop_instance_uid) == (PROTOCOLS, copy, uid_of(knee))
    assert await both.file(stored) == encoded(knee)
    assert await both.restore(uid_of(chest)) == (0, 0, 1)
    before = await everything(both)
    await both.reindex()
    assert await everything(both) == before
    with pytest.raises(errors.Gone):
        await both.records(collection=PROTOCOLS, sop_instance_uid=uid_of(chest))


async def as_of_an_older_program(store: ElasticsearchStore) -> None:
    """Replace the instances by what a program without collections would have written."""
    cluster, client = store._cluster, store._cluster.client
    (current,) = await cluster.behind(cluster.index("instances"))
    older = f"{current}-older"
    properties = {("study" if name == "collection" else name): field for name, field in MAPPINGS["instances"].items()}
    await client.indices.create(index=older, settings=SETTINGS, mappings={"dynamic": "strict", "properties": properties})
    hits = (await client.search(index=current, query={"match_all": {}}, size=100))["hits"]["hits"]
    for hit in hits:
        document = dict(hit["_source"])
        document["study"] = document.pop("collection")
        await client.index(index=older, id=hit["_id"], document=document, refresh=True)
    await client.indices.delete(index=current)
    await client.indices.put_alias(index=older, name=cluster.index("instances"))


@pytest.mark.distributed
async def test_indices_of_an_older_program_are_not_used_before_they_are_reindexed(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Until then index is not ready, and answers nothing rather than something wrong; what is stored meanwhile waits on the stream."""
    async with blob_and_index("distributed", tmp_path, request) as both:
        kept, deleted, later = instances.ct(), instances.ct(), instances.ct()
        await both.put("", encoded(kept), encoded(deleted))
        await both.delete(collection=str(deleted.StudyInstanceUID))
        assert isinstance(both.store, ElasticsearchStore)
        await as_of_an_older_program(both.store)
        await both.stop()
        await both.start()

        async def says_so() -> bool:
            return "have no instances.collection: an older program made them" in (await both.status()).explanation

        await until(says_so)
        assert not await both.is_ready()
        assert "run gantry reindex" in (await both.status()).explanation
        for asked in (both.search(""), both.records(collection=str(kept.StudyInstanceUID)), both.restore(uid_of(deleted))):
            with pytest.raises(errors.Unavailable, match="an older program made them"):
                await asked
        results = await both.blob.store_parts([encoded(later)])
        assert [result.failure_reason for result in results] == [0]

        answer = await both.reindex()
        assert (answer.done, answer.instances) == (True, 1)
        assert [one.sop_instance_uid for one in await both.records(collection=str(kept.StudyInstanceUID))] == [uid_of(kept)]
        assert await both.restore(uid_of(deleted)) == (1, 0, 0)
        assert await both.put("", encoded(later)) == [SAME]


@pytest.mark.distributed
async def test_nothing_is_reindexed_while_an_older_program_reads_the_stream(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    async with blob_and_index("distributed", tmp_path, request) as both:
        assert isinstance(both.store, ElasticsearchStore)
        await both.put("", encoded(instances.ct()))
        await as_of_an_older_program(both.store)
        await both.stop()
        await both.start()
        older = leases.Lease(both.blob.client.jetstream(), "index.partition.3", "older")
        assert await until(older.acquire)

        async def renewing() -> None:
            while await older.renew():
                await asyncio.sleep(leases.RENEW_S)

        task = asyncio.create_task(renewing())
        try:
            with pytest.raises(errors.Conflict, match="an index process of an older program reads the stream"):
                await both.reindex()
        finally:
            await end_tasks([task])
        # A process that was killed gives nothing back: its lease runs out.
        assert (await both.reindex()).done
