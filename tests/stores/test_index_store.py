"""The contract of IndexStore and WorkitemStore, sentence by sentence, against SQLite and a real Elasticsearch."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from elasticsearch import AsyncElasticsearch

from gantry.blob.v1.blob_pb2 import Location, StoredInstance
from gantry.events.v1.events_pb2 import Change, Decision, StudyChanged
from gantry.index.v1.index_pb2 import InstanceRecord
from gantry_index.levels.summary import workitem_terms
from gantry_index.stores.elasticsearch.mappings import WORKITEM_MAPPING
from gantry_index.stores.elasticsearch.store import ElasticsearchStore
from gantry_index.stores.elasticsearch.workitem_store import ElasticsearchWorkitemStore
from gantry_index.stores.elasticsearch.writing import Writing
from gantry_index.stores.port import (
    Batch,
    Counts,
    Dead,
    IndexStore,
    Move,
    OutboxRow,
    Place,
    PoisonEvent,
    Present,
    Put,
    Remove,
    Scope,
    WorkitemDocument,
    WorkitemStore,
)
from gantry_index.stores.sqlite.store import SqliteStore
from gantry_index.stores.sqlite.workitem_store import SqliteWorkitemStore
from gantry_standard import errors
from gantry_standard.dicom.pydicom_tables import tag_of
from gantry_standard.query.levels import Level
from gantry_standard.query.matching import Query, by_path, matches, parse_filter, parse_query, parse_workitem_query
from gantry_standard.query.query_attributes import vr_of
from gantry_standard.query.terms import MAXIMUM_TERMS
from tests.support.former_formats import DATA_DIRECTORY_1, unpack

STUDY, SERIES = "1.2.3", "1.2.3.4"


@pytest.fixture(params=["sqlite", "elasticsearch"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[IndexStore]:
    async with an_empty_store(request, tmp_path) as opened:
        yield opened


@asynccontextmanager
async def an_empty_store(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[IndexStore]:
    """Open an empty store on the adapter that `request.param` names, and remove it at the end. In Elasticsearch it costs 0.5 s of CPU."""
    if request.param == "sqlite":
        opened: IndexStore = SqliteStore(directory)
    else:
        opened = await ElasticsearchStore.opened(request.getfixturevalue("elasticsearch_url"), f"test-{uuid.uuid4().hex}")
    yield opened
    if isinstance(opened, ElasticsearchStore):
        await drop(opened._cluster.client, opened._cluster.prefix)
    await opened.close()


@pytest.fixture(params=["sqlite", "elasticsearch"])
async def workitems(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[WorkitemStore]:
    if request.param == "sqlite":
        opened: WorkitemStore = SqliteWorkitemStore(tmp_path)
    else:
        opened = await ElasticsearchWorkitemStore.opened(request.getfixturevalue("elasticsearch_url"), f"test-{uuid.uuid4().hex}")
    yield opened
    if isinstance(opened, ElasticsearchWorkitemStore):
        await drop(opened._cluster.client, opened._cluster.prefix)
    await opened.close()


async def drop(client: AsyncElasticsearch, prefix: str) -> None:
    for index in await client.indices.get(index=f"{prefix}-*"):
        await client.indices.delete(index=index)


def element(keyword: str, *values: Any) -> dict[str, Any]:
    vr = vr_of(tag_of(keyword))
    coded = [{"Alphabetic": value} if vr == "PN" else value for value in values]
    return {tag_of(keyword): {"vr": vr, "Value": coded} if coded else {"vr": vr}}


def dataset(sop: str, study: str = STUDY, series: str = SERIES, **attributes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
        "StudyDate": "20240102",
        "StudyTime": "101500",
        "PatientName": "Möller^Anna",
        "PatientID": "P1",
        "Modality": "CT",
        "SeriesNumber": 1,
        "InstanceNumber": 1,
        **attributes,
    }
    made: dict[str, Any] = {}
    made |= element("StudyInstanceUID", study) | element("SeriesInstanceUID", series) | element("SOPInstanceUID", sop)
    for keyword, value in given.items():
        if vr_of(tag_of(keyword)) == "SQ":
            made[tag_of(keyword)] = {"vr": "SQ", "Value": value}
        elif value is not None:
            made |= element(keyword, *(value if isinstance(value, list) else [value]))
    return made


def put(sop: str, version: int, *, study: str = STUDY, series: str = SERIES, place: int = 0, **attributes: Any) -> Put:
    stored = StoredInstance(
        study_instance_uid=study,
        series_instance_uid=series,
        sop_instance_uid=sop,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        location=Location(object="packs/a", offset=place or version, length=10),
        dataset_digest=sop.encode(),
    )
    return Put(stored, orjson.dumps(dataset(sop, study, series, **attributes)), version)


def batch(sequence: int, *changes: Put | Remove | Move, **more: Any) -> Batch:
    return Batch("all", sequence, {change.stored.sop_instance_uid: change for change in changes}, **more)


async def found(
    store: IndexStore, level: Level = Level.STUDY, study: str = "", series: str = "", **parameters: str
) -> list[dict[str, Any]]:
    query, _ = parse_query(level, study, series, [(name.replace("__", "."), value) for name, value in parameters.items()], 100)
    return [orjson.loads(row.replace(b"\0", b"BASE")) for row in (await store.search(query)).rows]


def value(row: Mapping[str, Any], keyword: str) -> Any:
    return row[tag_of(keyword)].get("Value", [None])[0]


async def uids(store: IndexStore, keyword: str = "StudyInstanceUID", level: Level = Level.STUDY, **more: str) -> list[str]:
    return [value(row, keyword) for row in await found(store, level, **more)]


async def records(store: IndexStore, scope: Scope) -> list[InstanceRecord]:
    return [InstanceRecord.FromString(one) async for page in store.records(scope) for one in page]


async def test_a_store_that_never_followed_a_stream_has_no_generation(store: IndexStore) -> None:
    assert await store.generation() == ""
    assert await store.cursor("all") == 0


async def test_following_sets_every_cursor(store: IndexStore) -> None:
    await store.apply(Batch("3", 7))
    await store.follow("g1", 40)
    assert (await store.generation(), await store.cursor("3"), await store.cursor("all")) == ("g1", 40, 40)


async def test_the_high_water_mark_is_the_greatest_cursor(store: IndexStore) -> None:
    await store.follow("g1", 4)
    await store.apply(Batch("3", 7))
    await store.apply(Batch("5", 9))
    assert (await store.high_water(), await store.cursor("3"), await store.cursor("0")) == (9, 7, 4)
    assert await store.cursors(["3", "0", "5"]) == {"3": 7, "0": 4, "5": 9}


async def test_what_was_applied_is_seen_by_the_next_read(store: IndexStore) -> None:
    await store.apply(batch(1, put("1.1", 1)))
    present, _ = await store.present(["1.1", "1.9"], [])
    assert list(present) == ["1.1"]
    assert (present["1.1"].version, present["1.1"].place, present["1.1"].deleted) == (1, ("packs/a", 1), False)
    assert [record.version for record in await records(store, Scope(STUDY))] == [1]
    assert await uids(store) == [STUDY]


async def test_a_batch_is_decided_on_what_is_known_and_applied(store: IndexStore) -> None:
    refused = Dead(Decision.KIND_REFUSED, 1000, "packs/a")
    await store.apply(batch(1, put("1.1", 1), dead={("packs/a", 9): refused}))
    given: list[object] = []

    def decide(present: Mapping[str, Present], dead: Mapping[Place, Dead]) -> Batch:
        given.extend([{uid: one.version for uid, one in present.items()}, dict(dead)])
        return batch(2, put("1.1", 2, PatientID="P2"), put("1.2", 2, PatientID="P2"), seen={"1.1": 1, "1.2": 0})

    assert await store.decided(["1.1", "1.2"], [("packs/a", 9), ("packs/a", 8)], decide)
    assert given == [{"1.1": 1}, {("packs/a", 9): refused}]
    assert sorted(record.version for record in await records(store, Scope(STUDY))) == [2, 2]
    assert [value(row, "NumberOfStudyRelatedInstances") for row in await found(store, PatientID="P2")] == [2]
    assert await store.cursor("all") == 2


async def test_nothing_is_applied_where_nothing_is_decided_yet_or_deciding_fails(store: IndexStore) -> None:
    def fail(present: object, dead: object) -> Batch:
        raise ValueError("not decided")

    assert not await store.decided(["1.1"], [], lambda present, dead: None)
    with pytest.raises(ValueError, match="not decided"):
        await store.decided(["1.1"], [], fail)
    assert ((await store.present(["1.1"], []))[0], await store.cursor("all")) == ({}, 0)
    assert await store.decided([], [], lambda present, dead: batch(1, put("1.1", 1)))
    assert await uids(store) == [STUDY]


async def test_studies_and_series_are_right_when_instances_of_several_take_turns(store: IndexStore) -> None:
    for number in range(1, 13):
        study, series = f"1.2.{number % 2}", f"1.2.{number % 2}.{number % 3}"
        one = put(f"1.{20 - number}", number, study=study, series=series, PatientID=f"P{20 - number}", SeriesNumber=number % 3)
        await store.apply(batch(number, one))
    for name in ("0", "1"):
        (row,) = await found(store, StudyInstanceUID=f"1.2.{name}")
        least = min(f"1.{20 - number}" for number in range(1, 13) if number % 2 == int(name))
        assert (value(row, "PatientID"), value(row, "NumberOfStudyRelatedInstances")) == (f"P{least[2:]}", 6)
        assert value(row, "NumberOfStudyRelatedSeries") == 3
        assert await uids(store, PatientID=f"P{least[2:]}") == [f"1.2.{name}"]
        assert await uids(store, NumberOfStudyRelatedInstances="5") == []
    await store.apply(batch(13, Remove(put("1.18", 2, study="1.2.0", series="1.2.0.2").stored, 13)))
    assert await uids(store, NumberOfStudyRelatedInstances="5") == ["1.2.0"]


async def test_dead_places_are_known_with_their_kind(store: IndexStore) -> None:
    refused, deleted = Dead(Decision.KIND_REFUSED, 1000, "packs/a"), Dead(Decision.KIND_DELETED, 2000, "packs/b")
    await store.apply(batch(1, dead={("packs/a", 5): refused, ("packs/a", 6): deleted}))
    _, dead = await store.present([], [("packs/a", 5), ("packs/a", 6), ("packs/a", 7)])
    assert dead == {("packs/a", 5): refused, ("packs/a", 6): deleted}


async def test_what_is_dead_no_more_is_forgotten(store: IndexStore) -> None:
    place = ("packs/a", 5)
    await store.apply(batch(1, dead={place: Dead(Decision.KIND_DELETED, 1000, "packs/a")}))
    await store.apply(batch(2, dead={place: None, ("packs/never", 1): None}))
    assert (await store.present([], [place]))[1] == {}
    assert await store.due(2000, "", 10) == []


async def test_what_is_due_comes_by_object_and_what_was_refused_or_swept_never_is(store: IndexStore) -> None:
    dead = {
        ("packs/b", 900): Dead(Decision.KIND_DELETED, 10, "packs/b"),
        ("packs/b", 1000): Dead(Decision.KIND_REPLACED, 19, "packs/b"),
        ("packs/a", 3): Dead(Decision.KIND_REDUNDANT, 5, "packs/c"),
        ("packs/a", 4): Dead(Decision.KIND_DELETED, 5, "packs/a"),
        ("packs/a", 5): Dead(Decision.KIND_REFUSED, 5, "packs/a"),
        ("packs/a", 6): Dead(Decision.KIND_SWEPT, 5, "packs/a"),
        ("packs/a", 7): Dead(Decision.KIND_DELETED, 20, "packs/a"),
    }
    await store.apply(batch(1, dead=dead))
    in_order = [("packs/a", 4), ("packs/b", 900), ("packs/b", 1000), ("packs/a", 3)]
    assert await store.due(20, "", 10) == [(place, dead[place]) for place in in_order]
    assert [place for place, _ in await store.due(20, "packs/a", 2)] == in_order[1:3]
    assert [place for place, _ in await store.due(21, "", 2)] == [("packs/a", 4), ("packs/a", 7)]


async def test_many_due_uploads_are_all_returned(store: IndexStore) -> None:
    dead = {("packs/a", number): Dead(Decision.KIND_DELETED, 1, "packs/a") for number in range(1203)}
    await store.apply(batch(1, dead=dead))
    assert [place for place, _ in await store.due(2, "", 5000)] == list(dead)


async def test_a_moved_instance_has_its_new_place_and_all_else_as_before(store: IndexStore) -> None:
    one, other = put("1.1", 1), put("1.2", 2)
    await store.apply(batch(2, one, other))
    before = await found(store)
    moved = StoredInstance.FromString(one.stored.SerializeToString())
    moved.origin.CopyFrom(one.stored.location)
    moved.location.CopyFrom(Location(object="packs/b", offset=77, length=10))
    await store.apply(batch(3, Move(moved, 3)))
    (record,) = await records(store, Scope(STUDY, SERIES, "1.1"))
    assert (record.stored.location.object, record.stored.location.offset, record.version) == ("packs/b", 77, 3)
    ((fragment,),) = [page async for page in store.fragments(Scope(STUDY, SERIES, "1.1"))]
    assert (fragment.dicom_json, fragment.version) == (one.dicom_json, 3)
    assert (await store.present(["1.1"], []))[0]["1.1"].place == ("packs/a", 1)
    assert await found(store) == before
    assert await uids(store, "SOPInstanceUID", Level.INSTANCE, PatientID="P1") == ["1.1", "1.2"]
    await store.apply(batch(4, put("1.3", 4)))
    assert value((await found(store))[0], "NumberOfStudyRelatedInstances") == 3


async def test_a_moved_tombstone_stays_one_and_a_move_of_nothing_is_nothing(store: IndexStore) -> None:
    one = put("1.1", 1)
    await store.apply(batch(2, one))
    await store.apply(batch(3, Remove(one.stored, 3)))
    moved = StoredInstance.FromString(one.stored.SerializeToString())
    moved.location.object = "packs/b"
    await store.apply(batch(4, Move(moved, 4), Move(put("1.9", 4).stored, 4)))
    present, _ = await store.present(["1.1", "1.9"], [])
    assert list(present) == ["1.1"]
    assert (present["1.1"].deleted, present["1.1"].version, present["1.1"].stored.location.object) == (True, 4, "packs/b")
    assert (await store.counts()).instances == 0


async def test_tombstones_are_found_by_study_series_or_instance(store: IndexStore) -> None:
    puts = [put("1.1", 1), put("1.2", 2, series="1.2.3.5"), put("2.1", 3, study="2", series="2.1"), put("1.3", 4)]
    await store.apply(batch(4, *puts))
    await store.apply(batch(5, *(Remove(one.stored, 5) for one in puts[:3])))

    async def tombstones(uid: str) -> list[tuple[str, int]]:
        found = [one async for page in store.tombstones(uid) for one in page]
        assert all(one.deleted for one in found)
        return [(one.stored.sop_instance_uid, one.version) for one in found]

    assert await tombstones(STUDY) == [("1.1", 5), ("1.2", 5)]
    assert await tombstones("1.2.3.5") == [("1.2", 5)]
    assert await tombstones("2.1") == [("2.1", 5)]
    assert await tombstones("1.3") == []


async def test_a_change_decided_on_a_state_that_is_no_more_is_unavailable_and_changes_nothing(store: IndexStore) -> None:
    await store.apply(batch(7, put("1.1", 7, study="9", series="9.1"), seen={"1.1": 0}))
    for seen, version in ((0, 6), (0, 8), (3, 8)):
        with pytest.raises(errors.Unavailable):
            await store.apply(batch(version, put("1.1", version, place=99), seen={"1.1": seen}))
    (record,) = await records(store, Scope("9"))
    assert (record.version, record.stored.location.offset) == (7, 7)
    assert await uids(store) == ["9"]
    await store.apply(batch(8, put("1.1", 8, study="9", series="9.1", place=99), seen={"1.1": 7}))
    await store.apply(batch(8, put("1.1", 8, study="9", series="9.1", place=99), seen={"1.1": 7}))
    assert [one.version for one in await records(store, Scope("9"))] == [8]


async def test_of_two_readers_that_saw_nothing_of_a_uid_one_is_told_so(store: IndexStore) -> None:
    one, other = put("1.1", 5), put("1.1", 6, study="9", series="9.1")
    told = await asyncio.gather(
        store.apply(Batch("1", 5, {"1.1": one}, seen={"1.1": 0})),
        store.apply(Batch("2", 6, {"1.1": other}, seen={"1.1": 0})),
        return_exceptions=True,
    )
    (refused,) = [error for error in told if error is not None]
    assert isinstance(refused, errors.Unavailable)
    winner = one if told[0] is None else other
    assert await uids(store) == [winner.stored.study_instance_uid]
    assert [record.version for record in await records(store, Scope("", "", "1.1"))] == [winner.version]


async def test_a_batch_applied_twice_counts_once(store: IndexStore) -> None:
    for _ in range(2):
        await store.apply(batch(2, put("1.1", 1), put("1.2", 2)))
    (row,) = await found(store)
    assert (value(row, "NumberOfStudyRelatedInstances"), value(row, "NumberOfStudyRelatedSeries")) == (2, 1)
    assert (await store.counts()).instances == 2


async def test_an_older_change_does_not_undo_a_newer(store: IndexStore) -> None:
    await store.apply(batch(5, put("1.1", 5, PatientID="new")))
    await store.apply(batch(5, put("1.1", 3, PatientID="old")))
    assert value((await found(store))[0], "PatientID") == "new"


async def test_a_replaced_instance_is_counted_once_and_shows_its_new_values(store: IndexStore) -> None:
    await store.apply(batch(1, put("1.1", 1, PatientID="old", Modality="CT")))
    await store.apply(batch(2, put("1.1", 2, PatientID="new", Modality="MR")))
    (row,) = await found(store)
    assert (value(row, "PatientID"), value(row, "ModalitiesInStudy"), value(row, "NumberOfStudyRelatedInstances")) == ("new", "MR", 1)
    assert await found(store, PatientID="old") == []


async def test_counts_and_modalities_gather_over_batches(store: IndexStore) -> None:
    await store.apply(batch(1, put("1.1", 1)))
    await store.apply(batch(2, put("1.2", 2, series="1.2.3.5", Modality="SR")))
    (row,) = await found(store)
    assert row[tag_of("ModalitiesInStudy")]["Value"] == ["CT", "SR"]
    assert value(row, "NumberOfStudyRelatedSeries") == 2
    assert await uids(store, ModalitiesInStudy="SR") == [STUDY]


async def test_the_smallest_uid_speaks_for_the_study_where_instances_disagree(store: IndexStore) -> None:
    await store.apply(batch(1, put("1.5", 1, PatientID="five", AccessionNumber="A5")))
    await store.apply(batch(2, put("1.1", 2, PatientID="one")))
    (row,) = await found(store)
    assert (value(row, "PatientID"), value(row, "AccessionNumber")) == ("one", "A5")
    assert (await uids(store, PatientID="five"), await uids(store, PatientID="one")) == ([], [STUDY])


async def test_a_deleted_instance_leaves_the_counts_and_a_tombstone(store: IndexStore) -> None:
    first, second = put("1.1", 1, PatientID="one"), put("1.2", 2, PatientID="two")
    await store.apply(batch(2, first, second))
    await store.apply(batch(3, Remove(first.stored, 3)))
    (row,) = await found(store)
    assert (value(row, "PatientID"), value(row, "NumberOfStudyRelatedInstances")) == ("two", 1)
    present, _ = await store.present(["1.1"], [])
    assert (present["1.1"].deleted, present["1.1"].version) == (True, 3)
    with pytest.raises(errors.Gone):
        await records(store, Scope(STUDY, SERIES, "1.1"))
    assert await uids(store, "SOPInstanceUID", Level.INSTANCE) == ["1.2"]


async def test_what_was_deleted_whole_is_gone_and_what_never_was_is_not_found(store: IndexStore) -> None:
    one = put("1.1", 1)
    await store.apply(batch(1, one))
    await store.apply(batch(2, Remove(one.stored, 2)))
    assert await found(store) == []
    assert await found(store, Level.SERIES) == []
    for scope in (Scope(STUDY), Scope(STUDY, SERIES), Scope(STUDY, SERIES, "1.1")):
        with pytest.raises(errors.Gone):
            await records(store, scope)
    for scope in (Scope("9"), Scope(STUDY, "9"), Scope(STUDY, SERIES, "9"), Scope("9", SERIES, "1.1")):
        with pytest.raises(errors.NotFound):
            [page async for page in store.fragments(scope)]


async def test_stored_again_after_deletion_it_is_there_again(store: IndexStore) -> None:
    one = put("1.1", 1)
    await store.apply(batch(1, one))
    await store.apply(batch(2, Remove(one.stored, 2)))
    await store.apply(batch(3, put("1.1", 3)))
    assert [record.version for record in await records(store, Scope(STUDY, SERIES))] == [3]
    assert (await store.counts()).instances == 1


async def test_a_removal_of_what_is_not_here_leaves_a_tombstone(store: IndexStore) -> None:
    await store.apply(batch(4, Remove(put("1.1", 4).stored, 4)))
    with pytest.raises(errors.Gone):
        await records(store, Scope(STUDY))
    assert (await store.counts()).instances == 0


async def test_records_come_by_series_number_then_instance_number(store: IndexStore) -> None:
    await store.apply(
        batch(
            9,
            put("1.1", 1, series="s.2", SeriesNumber=2, InstanceNumber=1),
            put("1.2", 2, series="s.1", SeriesNumber=10, InstanceNumber=2),
            put("1.3", 3, series="s.1", SeriesNumber=10, InstanceNumber=1),
            put("1.4", 4, series="s.3", SeriesNumber=None, InstanceNumber=None),
            put("1.5", 5, series="s.1", SeriesNumber=10, InstanceNumber=10),
        )
    )
    assert [record.stored.sop_instance_uid for record in await records(store, Scope(STUDY))] == ["1.1", "1.3", "1.2", "1.5", "1.4"]
    assert [one.sop_instance_uid async for page in store.fragments(Scope(STUDY, "s.1")) for one in page] == ["1.3", "1.2", "1.5"]


async def test_many_records_come_in_pages_and_in_order(store: IndexStore) -> None:
    await store.apply(batch(1100, *(put(f"1.{number}", number, InstanceNumber=number) for number in range(1, 1101))))
    pages = [page async for page in store.records(Scope(STUDY, SERIES))]
    assert [len(page) for page in pages] == [500, 500, 100]
    assert [InstanceRecord.FromString(one).version for page in pages for one in page] == list(range(1, 1101))


async def test_fragments_are_the_stored_bytes_with_the_byte_for_the_base_url(store: IndexStore) -> None:
    json = b'{"00080018":{"vr":"UI","Value":["1.1"]},"7FE00010":{"vr":"OW","BulkDataURI":"\0/studies/1"}}'
    await store.apply(batch(1, replace(put("1.1", 1), dicom_json=json)))
    ((fragment,),) = [page async for page in store.fragments(Scope(STUDY, SERIES, "1.1"))]
    assert (fragment.dicom_json, fragment.version, fragment.location) == (json, 1, b"")


async def test_the_state_of_a_scope_differs_after_every_change_in_it_and_after_no_other(store: IndexStore) -> None:
    one, other = put("1.1", 1), put("1.2", 2, series="s.2")
    changes = [
        batch(2, one, other),
        batch(3, put("1.3", 3)),
        batch(4, put("1.1", 4, PatientName="Other")),
        batch(5, Remove(put("1.3", 3).stored, 5)),
        batch(6, Remove(one.stored, 6)),
        batch(7, put("1.3", 7)),
        batch(8, Move(put("1.3", 7).stored, 8)),
    ]
    seen, others = [], set()
    for change in changes:
        await store.apply(change)
        for scope in (Scope(STUDY), Scope(STUDY, SERIES)):
            seen.append((scope, await store.state(scope)))
            assert await store.state(scope) == seen[-1][1]
        others.add(await store.state(Scope(STUDY, "s.2")))
    assert len(others) == 1
    # Nothing is live any more in the series after the sixth change, which is not worth a state.
    states = [(scope, state) for scope, state in seen if state]
    assert len(set(states)) == len(states)
    assert len(states) == (13 if isinstance(store, SqliteStore) else 0)


@pytest.mark.parametrize("number", [99, 100, 101, 250])
async def test_the_state_of_a_study_tells_its_last_change_however_many_instances_it_has(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few versions are read on the event loop, more of them in a thread."""
    store, threads = SqliteStore(tmp_path / "index", readers=1), []
    read = store._database.read
    monkeypatch.setattr(store._database, "read", lambda work: (threads.append(work), read(work))[1])
    await store.apply(batch(1, *(put(f"1.{one}", 1) for one in range(number))))
    before = await store.state(Scope(STUDY))
    assert before
    assert before == await store.state(Scope(STUDY))
    await store.apply(batch(2, put(f"1.{number - 1}", 2)))
    assert await store.state(Scope(STUDY)) not in (b"", before)
    assert len(threads) == (0 if number <= 100 else 3)
    await store.close()


async def test_there_is_no_state_of_one_instance_of_many_or_of_nothing(store: IndexStore, tmp_path: Path) -> None:
    await store.apply(batch(501, *(put(f"1.{number}", number) for number in range(1, 502))))
    for scope in (Scope(STUDY, SERIES), Scope(STUDY), Scope(STUDY, SERIES, "1.1"), Scope("9"), Scope(STUDY, "9")):
        assert await store.state(scope) == b""
    if isinstance(store, SqliteStore):
        await store.apply(batch(502, Remove(put("1.1", 1).stored, 502)))
        state = await store.state(Scope(STUDY))
        assert state
        again = SqliteStore(tmp_path)
        assert await again.state(Scope(STUDY)) not in (b"", state), "what was opened again may have been put back from a copy"
        await again.close()


async def test_a_large_fragment_is_kept_by_its_location(store: IndexStore) -> None:
    large = put("1.1", 1, ImageComments="x" * 70_000)
    large.stored.dicom_json_location.CopyFrom(Location(object="packs/a", offset=77, length=70_500))
    await store.apply(batch(1, large))
    ((fragment,),) = [page async for page in store.fragments(Scope(STUDY, SERIES, "1.1"))]
    assert fragment.dicom_json == b""
    assert Location.FromString(fragment.location).offset == 77


async def test_packs_are_known_once_a_batch_named_them(store: IndexStore) -> None:
    await store.apply(batch(1, packs=["packs/a"]))
    assert await store.unknown_packs(["packs/c", "packs/a", "packs/b"]) == ["packs/c", "packs/b"]


async def test_a_pack_is_unknown_while_an_event_of_it_is_poison(store: IndexStore) -> None:
    await store.apply(batch(1, packs=["packs/a", "packs/b"], poison=[PoisonEvent(1, "no message", "packs/a 1.2.3 0", "packs/a")]))
    assert await store.unknown_packs(["packs/a", "packs/b"]) == ["packs/a"]
    assert await store.poisoned() == {"packs/a 1.2.3 0"}
    again = PoisonEvent(7, "no message", "packs/a 1.2.3 0", "packs/a")
    await store.apply(batch(7, packs=["packs/a"], poison=[again, PoisonEvent(5, "another")]))
    assert (await store.unknown_packs(["packs/a"]), (await store.counts()).poison) == (["packs/a"], 2)
    await store.apply(batch(9, healed=["packs/a 1.2.3 0"]))
    assert (await store.unknown_packs(["packs/a"]), (await store.counts()).poison, await store.poisoned()) == ([], 1, set())


@pytest.mark.parametrize("dicom_json", [b"{", b"[]", b'{"00080018": 1}'])
async def test_dicom_json_that_cannot_be_parsed_is_a_corrupt_instance_and_changes_nothing(store: IndexStore, dicom_json: bytes) -> None:
    with pytest.raises(errors.CorruptInstance):
        await store.apply(batch(3, replace(put("1.1", 1), dicom_json=dicom_json)))
    assert ((await store.present(["1.1"], []))[0], await store.cursor("all")) == ({}, 0)


@pytest.mark.parametrize("block", ["read_only", "write", "read_only_allow_delete"])
async def test_an_index_that_is_read_only_for_a_moment_is_waited_for(elasticsearch_url: str, block: str) -> None:
    store = await ElasticsearchStore.opened(elasticsearch_url, f"test-{uuid.uuid4().hex}")
    client, prefix = store._cluster.client, store._cluster.prefix
    await client.indices.put_settings(index=f"{prefix}-instances", settings={f"index.blocks.{block}": True})
    with pytest.raises(errors.Unavailable):
        await store.apply(batch(1, put("1.1", 1)))
    assert (await store.counts(), await store.cursor("all")) == (Counts(0, 0, 0, 0), 0)
    await client.indices.put_settings(index=f"{prefix}-instances", settings={f"index.blocks.{block}": None})
    await store.apply(batch(1, put("1.1", 1)))
    assert await uids(store) == [STUDY]
    await drop(client, prefix)
    await store.close()


@pytest.mark.parametrize(
    ("document", "error"),
    [
        pytest.param({"terms": ["x" * 33_000]}, errors.CorruptInstance, id="a term that is too long"),
        pytest.param({"items": [{"path": "p"}] * (2 * MAXIMUM_TERMS + 1)}, errors.CorruptInstance, id="too many nested documents"),
        pytest.param({"number": "one"}, errors.CorruptInstance, id="a value of another type"),
        pytest.param({"unknown": 1, "number": 1}, errors.Unavailable, id="a field that the mapping of another version lacks"),
    ],
)
async def test_what_elasticsearch_cannot_parse_is_told_from_what_an_operator_can_repair(
    elasticsearch_url: str, document: dict[str, Any], error: type[Exception]
) -> None:
    store = await ElasticsearchStore.opened(elasticsearch_url, f"test-{uuid.uuid4().hex}")
    cluster = store._cluster
    try:
        with pytest.raises(error):
            await cluster.bulk([{"index": {"_index": cluster.index("instances"), "_id": "1"}}, document], refresh=False)
    finally:
        await drop(cluster.client, cluster.prefix)
        await store.close()


def outbox_row(sequence: int, *sops: str, reader: str = "3", study: str = STUDY) -> OutboxRow:
    """Return a row of the outbox: instances that were created with the sequence as their version."""
    change = Change(id=f"{sequence}-created", kind=Change.KIND_CREATED, sequence=sequence)
    for sop in sops:
        change.instances.add(series_instance_uid=SERIES, sop_instance_uid=sop, version=sequence)
    return OutboxRow(reader, sequence, study, StudyChanged(collection=study, changes=[change]).SerializeToString())


async def told(store: IndexStore, above: int = 0, up_to: int = 1 << 60, limit: int = 100, readers: str = "3") -> list[OutboxRow]:
    return await store.outbox_rows(dict.fromkeys(readers, (above, up_to)), limit)


async def test_what_a_batch_is_to_tell_stays_until_a_batch_says_that_it_was_told(store: IndexStore) -> None:
    first, second, other = outbox_row(5, "1.1"), outbox_row(7, "1.2"), outbox_row(6, "2.1", reader="4", study="2")
    await store.apply(replace(batch(5, put("1.1", 5)), reader="3", outbox=[first]))
    await store.apply(replace(batch(7, put("1.2", 7)), reader="3", outbox=[second]))
    await store.apply(replace(batch(6, put("2.1", 6, study="2")), reader="4", outbox=[other]))
    assert await told(store) == [first, second]
    assert await told(store, readers="43") == [first, other, second]
    assert await told(store, readers="43", limit=2) == [first, other]
    assert await told(store, above=5) == [second]
    assert await told(store, up_to=6) == [first]
    await store.apply(Batch("", 0, published=[5, 6]))
    assert await told(store, readers="43") == [second]
    assert await store.cursors(["3", "4"]) == {"3": 7, "4": 6}


async def test_what_is_to_be_told_is_the_same_when_a_batch_is_applied_again(store: IndexStore) -> None:
    row = outbox_row(5, "1.1", "1.2")
    for _ in range(2):
        await store.apply(replace(batch(5, put("1.1", 5), put("1.2", 5)), reader="3", outbox=[row], settling={STUDY: 5}))
    assert await told(store) == [row]
    assert await store.settling("3") == {STUDY: 5}


async def test_a_study_settles_once_unless_another_upload_came(store: IndexStore) -> None:
    await store.apply(Batch("3", 5, settling={STUDY: 5, "2": 5}))
    await store.apply(Batch("4", 6, settling={"3": 6}))
    assert (await store.settling("3"), await store.settling("4")) == ({STUDY: 5, "2": 5}, {"3": 6})
    await store.apply(Batch("3", 8, settling={STUDY: 8}))
    await store.apply(Batch("", 0, settled={STUDY: 5, "2": 5}))
    assert await store.settling("3") == {STUDY: 8}
    await store.apply(Batch("", 0, settled={STUDY: 8}))
    assert await store.settling("3") == {}
    await store.apply(Batch("3", 9, settling={STUDY: 9}))
    assert await store.settling("3") == {STUDY: 9}


async def test_what_is_to_be_told_stays_when_a_built_generation_takes_over(store: IndexStore) -> None:
    row = outbox_row(5, "1.1")
    await store.apply(replace(batch(5, put("1.1", 5)), reader="3", outbox=[row], settling={STUDY: 5}))
    built = await store.build()
    await built.apply(batch(5, put("1.1", 5)))
    await store.swap(built)
    assert (await told(store), await store.settling("3")) == ([row], {STUDY: 5})


async def test_a_row_of_which_something_else_was_decided_after_a_crash_tells_only_what_was_applied(elasticsearch_url: str) -> None:
    """Another reader stored one of the two instances in its study, between the row and the instances."""
    prefix = f"test-{uuid.uuid4().hex}"
    store = await ElasticsearchStore.opened(elasticsearch_url, prefix)
    ours = replace(batch(5, put("1.1", 5), put("1.2", 5), seen={"1.1": 0, "1.2": 0}), reader="3", outbox=[outbox_row(5, "1.1", "1.2")])
    await Writing(store._cluster, ours)._write_outbox()
    await store.apply(replace(batch(4, put("1.1", 4, study="2")), reader="4"))
    with pytest.raises(errors.Unavailable):
        await store.apply(ours)
    await store.apply(replace(batch(5, put("1.2", 5), seen={"1.2": 0}), reader="3", outbox=[outbox_row(5, "1.2")]))
    assert await told(store) == [outbox_row(5, "1.2")]
    await drop(store._cluster.client, prefix)
    await store.close()


async def test_a_row_that_an_earlier_process_left_is_told_by_the_next(elasticsearch_url: str) -> None:
    prefix = f"test-{uuid.uuid4().hex}"
    before = await ElasticsearchStore.opened(elasticsearch_url, prefix)
    await before.apply(replace(batch(5, put("1.1", 5)), reader="3", outbox=[outbox_row(5, "1.1")]))
    await before.close()
    after = await ElasticsearchStore.opened(elasticsearch_url, prefix)
    assert await told(after) == [outbox_row(5, "1.1")]
    await drop(after._cluster.client, prefix)
    await after.close()


@pytest.mark.parametrize(
    "long",
    [
        element("Modality", "M" * 40_000),
        {"00110010": {"vr": "LO", "Value": ["P" * 40_000]}, "00111001": {"vr": "LO", "Value": ["x"]}},
    ],
    ids=["modality", "private creator"],
)
async def test_a_long_value_of_an_instance_keeps_neither_it_nor_others_out_of_the_index(store: IndexStore, long: dict[str, Any]) -> None:
    change = put("1.1", 5)
    await store.apply(batch(5, replace(change, dicom_json=orjson.dumps(orjson.loads(change.dicom_json) | long))))
    await store.apply(batch(6, put("1.2", 6, series="1.2.3.5")))
    (row,) = await found(store)
    assert value(row, "NumberOfStudyRelatedInstances") == 2
    assert await uids(store, "SOPInstanceUID", Level.INSTANCE) == ["1.1", "1.2"]


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_an_instance_with_as_many_items_as_it_may_have_terms_is_indexed(store: IndexStore) -> None:
    item = {"0040A730": {"vr": "SQ", "Value": [element("Modality", "SR")]}}
    change = put("1.1", 5)
    sent = orjson.loads(change.dicom_json) | {"0040A730": {"vr": "SQ", "Value": [item] * MAXIMUM_TERMS}}
    await store.apply(batch(5, replace(change, dicom_json=orjson.dumps(sent))))
    assert await uids(store, "SOPInstanceUID", Level.INSTANCE) == ["1.1"]


async def test_an_older_database_gets_its_outbox_when_it_is_opened(tmp_path: Path) -> None:
    unpack(DATA_DIRECTORY_1, tmp_path)
    store = SqliteStore(tmp_path / "index")
    await store.apply(replace(batch(6, put("1.2", 6)), reader="3", outbox=[outbox_row(6, "1.2")]))
    assert (await told(store), await uids(store)) == ([outbox_row(6, "1.2")], ["2.25.1001", STUDY])
    await store.close()


async def test_poison_is_counted_once(store: IndexStore) -> None:
    for _ in range(2):
        await store.apply(batch(8, put("1.1", 7), poison=[PoisonEvent(8, "not a message")]))
    counts = await store.counts()
    assert (counts.studies, counts.series, counts.instances, counts.poison) == (1, 1, 1, 1)


async def test_a_built_generation_is_seen_only_after_the_swap(store: IndexStore) -> None:
    await store.apply(batch(1, put("1.1", 1, PatientID="old")))
    built = await store.build()
    await built.apply(Batch("", 0, {"1.1": put("1.1", 1, PatientID="new")}))
    await built.follow("g2", 5)
    assert value((await found(store))[0], "PatientID") == "old"
    await store.swap(built)
    assert value((await found(store))[0], "PatientID") == "new"
    assert (await store.generation(), await store.cursor("all")) == ("g2", 5)


async def test_studies_come_newest_first_and_page_without_gaps(store: IndexStore) -> None:
    dates = {"2.1": "20200101", "2.2": "20240101", "2.3": None, "2.4": "20240101", "2.5": "20230101"}
    await store.apply(batch(5, *(put(f"1.{study}", 1, study=study, series=f"{study}.1", StudyDate=date) for study, date in dates.items())))
    whole = await uids(store)
    assert whole == ["2.2", "2.4", "2.5", "2.1", "2.3"]
    paged = []
    for offset in range(0, 6, 2):
        query, _ = parse_query(Level.STUDY, "", "", [("limit", "2"), ("offset", str(offset))], 100)
        page = await store.search(query)
        paged += [value(orjson.loads(row.replace(b"\0", b"")), "StudyInstanceUID") for row in page.rows]
        assert page.remaining == max(0, 3 - offset)
    assert paged == whole


MATCHES = [
    ({"PatientID": "P1"}, True),
    ({"PatientID": "p1"}, False),
    ({"PatientID": "P*"}, True),
    ({"PatientID": "P?"}, True),
    ({"PatientID": "P??"}, False),
    ({"PatientName": "MOLLER^ANNA"}, True),
    ({"PatientName": "möl*"}, True),
    ({"PatientName": "*anna"}, True),
    ({"PatientName": "Anna*"}, False),
    ({"StudyDate": "20240101-20240102"}, True),
    ({"StudyDate": "20240103-"}, False),
    ({"StudyDate": "-20240102"}, True),
    ({"StudyDate": "20240102"}, True),
    ({"StudyTime": "1015"}, True),
    ({"StudyTime": "1000-1015"}, True),
    ({"StudyDate": "20240101-20240103", "StudyTime": "1100-1000"}, None),
    ({"StudyDate": "20240101-20240102", "StudyTime": "1100-1200"}, True),
    ({"StudyDate": "20240102-20240102", "StudyTime": "1100-1200"}, False),
    ({"StudyInstanceUID": "9.9,1.2.3"}, True),
    ({"StudyInstanceUID": "9.9"}, False),
    ({"ModalitiesInStudy": "CT"}, True),
    ({"ModalitiesInStudy": "MR"}, False),
    ({"AccessionNumber": '""', "emptyvaluematching": "true"}, True),
    ({"PatientID": '""', "emptyvaluematching": "true"}, False),
    ({"OtherPatientNames": r"A^B\C^D", "multiplevaluematching": "true"}, True),
    ({"OtherPatientNames": r"A^B\X^D", "multiplevaluematching": "true"}, False),
    ({"OtherPatientNames": "C^D"}, True),
    ({"OtherPatientIDsSequence__PatientID": "O1", "OtherPatientIDsSequence__TypeOfPatientID": "TEXT"}, True),
    ({"OtherPatientIDsSequence__PatientID": "O1", "OtherPatientIDsSequence__TypeOfPatientID": "RFID"}, False),
    ({"ContrastBolusAgent": "Gd"}, True),
    ({"ContrastBolusAgent": "Io"}, False),
    ({"SliceThickness": "1.50"}, True),
    ({"PatientID": r"P[1]"}, False),
]


@pytest.fixture(scope="module", params=["sqlite", "elasticsearch"])
async def one_study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[IndexStore]:
    """A store with one study, for tests that only read."""
    others = [
        element("PatientID", "O1") | element("TypeOfPatientID", "TEXT"),
        element("PatientID", "O2") | element("TypeOfPatientID", "RFID"),
    ]
    one = put("1.1", 1, OtherPatientNames=["A^B", "C^D"], OtherPatientIDsSequence=others, ContrastBolusAgent="Gd", SliceThickness=1.5)
    async with an_empty_store(request, tmp_path_factory.mktemp("one-study")) as opened:
        await opened.apply(batch(1, one))
        yield opened


@pytest.mark.parametrize(("parameters", "expected"), [case for case in MATCHES if case[1] is not None], ids=str)
async def test_studies_match(one_study: IndexStore, parameters: dict[str, str], expected: bool) -> None:
    assert await uids(one_study, **parameters) == ([STUDY] if expected else [])


async def test_series_and_instances_match_by_their_study_and_by_themselves(store: IndexStore) -> None:
    await store.apply(
        batch(
            4,
            put("1.1", 1, InstanceNumber=2),
            put("1.2", 2, InstanceNumber=1),
            put("1.3", 3, series="1.2.3.5", Modality="SR", SeriesNumber=2),
            put("2.1", 4, study="2", series="2.1", PatientID="P2", StudyDate="20200101"),
        )
    )
    assert await uids(store, "SeriesInstanceUID", Level.SERIES, PatientID="P1") == [SERIES, "1.2.3.5"]
    assert await uids(store, "SeriesInstanceUID", Level.SERIES, study=STUDY, Modality="SR") == ["1.2.3.5"]
    assert await uids(store, "SOPInstanceUID", Level.INSTANCE, StudyDate="2020" + "0101") == ["2.1"]
    assert await uids(store, "SOPInstanceUID", Level.INSTANCE, study=STUDY, Modality="CT") == ["1.2", "1.1"]
    assert await uids(store, "SOPInstanceUID", Level.INSTANCE, study=STUDY, series=SERIES, InstanceNumber="2") == ["1.1"]
    assert await uids(store, "SOPInstanceUID", Level.INSTANCE, SOPInstanceUID="1.3,2.1") == ["1.3", "2.1"]
    assert await uids(store, "SOPInstanceUID", Level.INSTANCE, study="unknown") == []


async def test_a_series_row_without_its_study_in_the_path_shows_the_study_too(store: IndexStore) -> None:
    await store.apply(batch(1, put("1.1", 1, SeriesDescription="Head", Rows=512)))
    (row,) = await found(store, Level.SERIES)
    assert value(row, "PatientName") == {"Alphabetic": "Möller^Anna"}
    assert value(row, "SeriesDescription") == "Head"
    assert row[tag_of("RetrieveURL")] == {"vr": "UR", "Value": [f"BASE/studies/{STUDY}/series/{SERIES}"]}
    assert row[tag_of("InstanceAvailability")]["Value"] == ["ONLINE"]
    assert row[tag_of("SpecificCharacterSet")]["Value"] == ["ISO_IR 192"]
    assert list(row) == sorted(row)
    (below,) = await found(store, Level.SERIES, study=STUDY)
    assert tag_of("PatientName") not in below
    assert value(below, "StudyInstanceUID") == STUDY
    (instance,) = await found(store, Level.INSTANCE, study=STUDY)
    assert (value(instance, "Rows"), value(instance, "Modality"), tag_of("PatientID") in instance) == (512, "CT", False)


async def test_required_attributes_without_value_are_there_with_only_vr(store: IndexStore) -> None:
    await store.apply(batch(1, put("1.1", 1)))
    (row,) = await found(store)
    assert row[tag_of("AccessionNumber")] == {"vr": "SH"}
    assert row[tag_of("ReferringPhysicianName")] == {"vr": "PN"}
    assert tag_of("StudyDescription") not in row


async def test_a_private_attribute_is_returned_with_its_creator_in_the_block_of_the_instance(store: IndexStore) -> None:
    private = {
        "00230010": {"vr": "LO", "Value": ["Other"]},
        "00230011": {"vr": "LO", "Value": ["AcmeCompany"]},
        "00231102": {"vr": "LO", "Value": ["second"]},
    }
    first, other = put("1.1", 1), put("1.2", 2)
    first = replace(first, dicom_json=orjson.dumps(orjson.loads(first.dicom_json) | private))
    await store.apply(batch(2, first, other))
    asked = [("00230010", "AcmeCompany"), ("includefield", "00231002")]
    for level, study, series in ((Level.STUDY, "", ""), (Level.SERIES, STUDY, ""), (Level.INSTANCE, STUDY, SERIES)):
        query, _ = parse_query(level, study, series, asked, 100)
        row = orjson.loads((await store.search(query)).rows[0].replace(b"\0", b"BASE"))
        assert (row["00230011"], row["00231102"]) == (private["00230011"], private["00231102"])
        assert "00230010" not in row


async def test_includefield_adds_what_the_level_has(store: IndexStore) -> None:
    others = [element("PatientID", "O1") | element("TypeOfPatientID", "TEXT")]
    await store.apply(batch(1, put("1.1", 1, StudyDescription="Head", OtherPatientIDsSequence=others, ContrastBolusAgent="Gd")))
    (row,) = await found(store, includefield="StudyDescription,OtherPatientIDsSequence.PatientID,SeriesDescription")
    assert value(row, "StudyDescription") == "Head"
    assert value(row, "OtherPatientIDsSequence") == element("PatientID", "O1")
    assert tag_of("SeriesDescription") not in row
    (everything,) = await found(store, includefield="all")
    assert value(everything, "OtherPatientIDsSequence") == others[0]
    (instance,) = await found(store, Level.INSTANCE, study=STUDY, includefield="ContrastBolusAgent")
    assert value(instance, "ContrastBolusAgent") == "Gd"


async def test_a_limit_of_zero_rows_is_never_a_match(store: IndexStore) -> None:
    await store.apply(batch(1, put("1.1", 1)))
    assert (await store.search(Query(Level.STUDY, offset=5))).rows == []


def workitem(uid: str, version: int, *, deleted: bool = False, **attributes: Any) -> WorkitemDocument:
    made: dict[str, Any] = element("ProcedureStepState", "SCHEDULED")
    for keyword, given in attributes.items():
        made |= {tag_of(keyword): {"vr": "SQ", "Value": given}} if vr_of(tag_of(keyword)) == "SQ" else element(keyword, given)
    return WorkitemDocument(uid, version, orjson.dumps(made), deleted)


async def found_workitems(store: WorkitemStore, **parameters: str) -> list[dict[str, Any]]:
    query, _ = parse_workitem_query([(name.replace("__", "."), given) for name, given in parameters.items()], 100)
    return [orjson.loads(row) for row in (await store.search(query)).rows]


async def test_workitems_come_by_start_and_match_as_studies_do(workitems: WorkitemStore) -> None:
    first = workitem("2.1", 5, ScheduledProcedureStepStartDateTime="20240102", PatientName="Zoe", WorklistLabel="AI")
    second = workitem("2.2", 6, ScheduledProcedureStepStartDateTime="20240101120000", PatientName="Möller", WorklistLabel="AI")
    await workitems.apply([first, second], 6)
    assert [value(row, "PatientName")["Alphabetic"] for row in await found_workitems(workitems)] == ["Möller", "Zoe"]
    assert len(await found_workitems(workitems, PatientName="mol*")) == 1
    assert len(await found_workitems(workitems, ScheduledProcedureStepStartDateTime="20240101110000-20240101130000")) == 1
    assert len(await found_workitems(workitems, SOPInstanceUID="2.1,2.7")) == 1
    assert await workitems.cursor() == 6


async def test_workitem_keys_of_one_sequence_meet_in_one_item(workitems: WorkitemStore) -> None:
    codes = [
        element("CodeValue", "A") | element("CodingSchemeDesignator", "X"),
        element("CodeValue", "B") | element("CodingSchemeDesignator", "Y"),
    ]
    await workitems.apply([workitem("2.1", 1, ScheduledStationNameCodeSequence=codes)], 1)
    name = "ScheduledStationNameCodeSequence"
    assert len(await found_workitems(workitems, **{f"{name}__CodeValue": "A", f"{name}__CodingSchemeDesignator": "X"})) == 1
    assert await found_workitems(workitems, **{f"{name}__CodeValue": "A", f"{name}__CodingSchemeDesignator": "Y"}) == []


FILTERS = (
    "WorklistLabel=AI",
    "WorklistLabel=A*",
    "WorklistLabel=?I",
    "WorklistLabel=ai",
    "WorklistLabel=[A]*",
    "PatientName=m*LLER",
    "PatientName=zoe",
    "ScheduledProcedureStepStartDateTime=20240101-20240101",
    "ScheduledProcedureStepStartDateTime=20240101120000",
    "ScheduledProcedureStepStartDateTime=-20240101",
    "ScheduledProcedureStepStartDateTime=20240102-",
    "SOPInstanceUID=2.1,2.3",
    "ScheduledStationNameCodeSequence.CodeValue=A",
    "ScheduledStationNameCodeSequence.CodeValue=A&ScheduledStationNameCodeSequence.CodingSchemeDesignator=X",
    "ScheduledStationNameCodeSequence.CodeValue=A&ScheduledStationNameCodeSequence.CodingSchemeDesignator=Y",
    "ScheduledStationNameCodeSequence.CodeValue=A&WorklistLabel=AI",
    'WorklistLabel=""&emptyvaluematching=true',
    'ScheduledStationNameCodeSequence.CodeValue=""&emptyvaluematching=true',
    'ScheduledStationNameCodeSequence.CodeValue=""&ScheduledStationNameCodeSequence.CodingSchemeDesignator=X&emptyvaluematching=true',
    "ImageType=B,A&multiplevaluematching=true",
    "ImageType=A,C&multiplevaluematching=true",
    "PatientWeight=70.0",
    "CommentsOnTheScheduledProcedureStep=two lines*",
    "CommentsOnTheScheduledProcedureStep=*second?line",
    'CommentsOnTheScheduledProcedureStep=""&emptyvaluematching=true',
)
NOT_FOUND = [
    "WorklistLabel=ai",
    "WorklistLabel=[A]*",
    "ScheduledStationNameCodeSequence.CodeValue=A&ScheduledStationNameCodeSequence.CodingSchemeDesignator=Y",
    "ImageType=A,C&multiplevaluematching=true",
]


async def test_a_filter_in_memory_matches_what_the_store_finds(workitems: WorkitemStore) -> None:
    def station(**values: str) -> dict[str, Any]:
        return {tag_of(name): {"vr": "SH", "Value": [given]} for name, given in values.items()}

    codes = [station(CodeValue="A", CodingSchemeDesignator="X"), station(CodeValue="B", CodingSchemeDesignator="Y")]
    attributes: list[dict[str, Any]] = [
        {"ScheduledProcedureStepStartDateTime": "20240102", "PatientName": "Zoe", "WorklistLabel": "AI", "PatientWeight": "70"},
        {
            "ScheduledProcedureStepStartDateTime": "20240101120000",
            "PatientName": "Möller",
            "CommentsOnTheScheduledProcedureStep": "two lines\nsecond line",
        },
        {"ScheduledStationNameCodeSequence": codes, "WorklistLabel": "AI"},
        {"ScheduledStationNameCodeSequence": [station(CodingSchemeDesignator="X")], "WorklistLabel": "XAI"},
    ]
    documents = [workitem(f"2.{n}", n, SOPInstanceUID=f"2.{n}", **given) for n, given in enumerate(attributes, 1)]
    documents[1] = replace(documents[1], dicom_json=orjson.dumps(orjson.loads(documents[1].dicom_json) | element("ImageType", "A", "B")))
    await workitems.apply(documents, 4)
    by_store, in_memory = {}, {}
    for text in FILTERS:
        pairs = [(name, given) for name, _, given in (piece.partition("=") for piece in text.split("&"))]
        query, _ = parse_workitem_query(pairs, 100)
        by_store[text] = sorted(value(orjson.loads(row), "SOPInstanceUID") for row in (await workitems.search(query)).rows)
        keys = parse_filter(pairs).keys
        in_memory[text] = [d.workitem_uid for d in documents if matches(keys, by_path(workitem_terms(d, orjson.loads(d.dicom_json))))]
    assert in_memory == by_store
    assert [text for text, found in by_store.items() if not found] == NOT_FOUND


async def test_an_older_workitem_does_not_undo_a_newer_and_a_deleted_one_is_not_found(workitems: WorkitemStore) -> None:
    await workitems.apply([workitem("2.1", 5, ProcedureStepState="IN PROGRESS")], 5)
    await workitems.apply([workitem("2.1", 4)], 5)
    assert [value(row, "ProcedureStepState") for row in await found_workitems(workitems)] == ["IN PROGRESS"]
    assert await found_workitems(workitems, ProcedureStepState="SCHEDULED") == []
    await workitems.apply([workitem("2.1", 6, deleted=True)], 6)
    assert await found_workitems(workitems) == []


async def test_cleared_workitems_begin_at_zero(workitems: WorkitemStore) -> None:
    await workitems.apply([workitem("2.1", 5)], 5)
    await workitems.clear()
    assert (await workitems.cursor(), await found_workitems(workitems)) == (0, [])
    await workitems.apply([workitem("2.1", 1)], 1)
    assert len(await found_workitems(workitems)) == 1


# What a caller may not see.

OTHER = "1.2.9"


async def two_studies(store: IndexStore) -> None:
    """Store three instances of STUDY and two of OTHER, one of each deleted."""
    of_other = {"study": OTHER, "series": "1.2.9.4", "PatientID": "P2"}
    await store.apply(batch(5, *(put(f"1.{n}", n) for n in range(1, 4)), put("9.1", 4, **of_other), put("9.2", 5, **of_other)))
    removed = [await store.present(["1.3", "9.2"], [])]
    await store.apply(batch(6, *(Remove(one.stored, 6) for one in removed[0][0].values())))


def seen_by(scope: Scope, *studies: str) -> Scope:
    return replace(scope, visible_studies=frozenset(studies))


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("parameters", [{}, {"PatientID": "P*"}, {"Modality": "CT"}, {"StudyInstanceUID": OTHER}], ids=str)
async def test_what_a_caller_may_not_see_is_not_found_and_not_counted(store: IndexStore, level: Level, parameters: dict[str, str]) -> None:
    await two_studies(store)
    query, _ = parse_query(level, "", "", list(parameters.items()), 1)

    async def seen(*studies: str, offset: int = 0) -> tuple[list[str], int]:
        page = await store.search(replace(query, visible_studies=frozenset(studies), offset=offset))
        return [value(orjson.loads(row.replace(b"\0", b"")), "StudyInstanceUID") for row in page.rows], page.remaining

    everything = await store.search(replace(query, limit=100))
    of_study = [STUDY] if level is not Level.INSTANCE else [STUDY, STUDY]
    expected = [] if "StudyInstanceUID" in parameters else of_study
    assert len(everything.rows) == (len(expected) or 0) + 1
    first, remaining = await seen(STUDY)
    assert (first, remaining) == (expected[:1], max(0, len(expected) - 1))
    assert await seen(OTHER) == ([OTHER], 0)
    assert await seen() == ([], 0)
    assert await seen(STUDY, offset=2) == ([], 0)


async def test_a_join_with_what_is_hidden_counts_for_nothing(store: IndexStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await two_studies(store)
    monkeypatch.setattr("gantry_index.stores.elasticsearch.search.JOIN_MAXIMUM", 1)
    query, _ = parse_query(Level.SERIES, "", "", [("PatientID", "P*")], 100)
    rows = (await store.search(replace(query, visible_studies=frozenset({STUDY})))).rows
    assert [value(orjson.loads(row.replace(b"\0", b"")), "StudyInstanceUID") for row in rows] == [STUDY]


@pytest.mark.parametrize(
    "scope",
    [
        Scope(OTHER),
        Scope(OTHER, "1.2.9.4"),
        Scope(OTHER, "1.2.9.4", "9.1"),
        Scope("", "", "9.1"),
        Scope(OTHER, "1.2.9.4", "9.2"),
        Scope("", "", "9.2"),
    ],
    ids=str,
)
async def test_what_a_caller_may_not_see_is_as_what_never_was(store: IndexStore, scope: Scope) -> None:
    async def refusal() -> str:
        with pytest.raises(errors.NotFound) as raised:
            await records(store, seen_by(scope, STUDY))
        assert type(raised.value) is errors.NotFound
        with pytest.raises(errors.NotFound):
            _ = [one async for page in store.fragments(seen_by(scope, STUDY)) for one in page]
        assert await store.state(seen_by(scope, STUDY)) == b""
        return raised.value.message

    before = await refusal()
    await two_studies(store)
    assert await refusal() == before


async def test_a_deleted_study_is_gone_only_for_who_may_see_it(store: IndexStore) -> None:
    await store.apply(batch(1, put("1.1", 1)))
    present, _ = await store.present(["1.1"], [])
    await store.apply(batch(2, Remove(present["1.1"].stored, 2)))
    with pytest.raises(errors.Gone):
        await records(store, seen_by(Scope(STUDY), STUDY))
    for scope in (Scope(STUDY), Scope(STUDY, SERIES), Scope(STUDY, SERIES, "1.1")):
        with pytest.raises(errors.NotFound) as raised:
            await records(store, seen_by(scope, OTHER))
        assert type(raised.value) is errors.NotFound


async def test_a_caller_sees_records_fragments_and_the_state_of_visible_studies(store: IndexStore) -> None:
    await two_studies(store)
    visible = seen_by(Scope(STUDY), STUDY, "1.2.77")
    assert [record.stored.sop_instance_uid for record in await records(store, visible)] == ["1.1", "1.2"]
    assert len([one async for page in store.fragments(visible) for one in page]) == 2
    assert await store.state(visible) == await store.state(Scope(STUDY))
    assert len(await records(store, seen_by(Scope("", "", "1.1"), STUDY))) == 1


@pytest.mark.parametrize("uid", [OTHER, "1.2.9.4", "9.2"])
async def test_tombstones_of_what_a_caller_may_not_see_are_not_found(store: IndexStore, uid: str) -> None:
    await two_studies(store)

    async def tombstones(*studies: str) -> list[str]:
        return [one.stored.sop_instance_uid async for page in store.tombstones(uid, frozenset(studies)) for one in page]

    assert await tombstones(STUDY) == []
    assert await tombstones() == []
    assert await tombstones(STUDY, OTHER) == ["9.2"]


def referring(uid: str, version: int, own: str = "", inputs: tuple[str, ...] = (), requests: tuple[str, ...] = ()) -> WorkitemDocument:
    items: dict[str, Any] = {"InputInformationSequence": inputs, "ReferencedRequestSequence": requests}
    sequences = {name: [element("StudyInstanceUID", study) for study in studies] for name, studies in items.items() if studies}
    return workitem(uid, version, SOPInstanceUID=uid, **({"StudyInstanceUID": own} if own else {}), **sequences)


async def test_a_caller_sees_workitems_that_refer_to_visible_studies_only(workitems: WorkitemStore) -> None:
    await workitems.apply(
        [
            referring("2.1", 1, STUDY),
            referring("2.2", 2, "", (STUDY, OTHER)),
            referring("2.3", 3, "", (STUDY,), (STUDY,)),
            referring("2.4", 4),
            referring("2.5", 5, STUDY, (), (OTHER,)),
            referring("2.6", 6, STUDY),
        ],
        6,
    )
    await workitems.apply([referring("2.6", 7, OTHER)], 7)

    async def seen(*studies: str, limit: int = 100) -> tuple[list[str], int]:
        query, _ = parse_workitem_query([], limit)
        page = await workitems.search(replace(query, visible_studies=frozenset(studies)))
        return [value(orjson.loads(row), "SOPInstanceUID") for row in page.rows], page.remaining

    assert await seen(STUDY) == (["2.1", "2.3"], 0)
    assert await seen(STUDY, limit=1) == (["2.1"], 1)
    assert await seen(STUDY, OTHER) == (["2.1", "2.2", "2.3", "2.5", "2.6"], 0)
    assert await seen(OTHER) == (["2.6"], 0)
    assert await seen() == ([], 0)
    assert len(await found_workitems(workitems)) == 6


async def test_a_workitem_store_that_an_older_program_made_begins_anew(
    workitems: WorkitemStore, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    await workitems.apply([referring("2.1", 5, STUDY)], 5)
    if isinstance(workitems, SqliteWorkitemStore):
        workitems._database.writer.execute("DROP TABLE studies")
        workitems._database.writer.execute("UPDATE meta SET value = '3' WHERE name = 'format'")
        again: WorkitemStore = SqliteWorkitemStore(tmp_path)
    else:
        assert isinstance(workitems, ElasticsearchWorkitemStore)
        cluster = workitems._cluster
        await cluster.client.indices.delete(index=cluster.index("workitems"))
        without = {name: field for name, field in WORKITEM_MAPPING.items() if not name.startswith("studies")}
        await cluster.create({"workitems": without})
        again = await ElasticsearchWorkitemStore.opened(request.getfixturevalue("elasticsearch_url"), cluster.prefix)
    assert await again.cursor() == 0
    assert await found_workitems(again) == []
    await again.apply([referring("2.1", 5, STUDY)], 5)
    query = replace(parse_workitem_query([], 10)[0], visible_studies=frozenset({STUDY}))
    assert len((await again.search(query)).rows) == 1
    await again.close()


PROTOCOLS, PALETTES = "hanging-protocols", "color-palettes"


def put_protocol(sop: str, version: int, name: str = "Chest", *, resource: str = PROTOCOLS, **attributes: Any) -> Put:
    """Return a new version of an instance of a non-patient resource. Its Modality and Manufacturer would be a series's in a study."""
    stored = StoredInstance(
        resource=resource,
        sop_instance_uid=sop,
        sop_class_uid="1.2.840.10008.5.1.4.38.1",
        location=Location(object="packs/p", offset=version, length=10),
        dataset_digest=sop.encode(),
    )
    given = {"SOPClassUID": stored.sop_class_uid, "HangingProtocolName": name, "Manufacturer": "Acme", **attributes}
    made = element("SOPInstanceUID", sop)
    for keyword, given_value in given.items():
        made |= element(keyword, given_value)
    return Put(stored, orjson.dumps(made), version)


async def of_resource(store: IndexStore, resource: str, **parameters: str) -> list[dict[str, Any]]:
    """Return what a search in a resource finds; keys are of the instance, whatever their entity in a study."""
    query, _ = parse_query(Level.INSTANCE, "", "", list(parameters.items()), 100)
    keys = tuple(replace(key, level=None) for key in query.keys)
    page = await store.search(replace(query, collection=resource, keys=keys, include_levels=()))
    return [orjson.loads(row.replace(b"\0", b"BASE")) for row in page.rows]


async def test_instances_of_a_resource_make_no_study_and_no_series(store: IndexStore) -> None:
    await store.apply(batch(3, put_protocol("1.1", 1), put("1.2", 2), put_protocol("1.3", 3, resource=PALETTES)))
    assert await uids(store) == [STUDY]
    assert await uids(store, "SeriesInstanceUID", Level.SERIES) == [SERIES]
    assert await uids(store, "SOPInstanceUID", Level.INSTANCE) == ["1.2"]
    assert await uids(store, "SOPInstanceUID", Level.INSTANCE, SOPInstanceUID="1.1") == []
    counts = await store.counts()
    assert (counts.studies, counts.series, counts.instances) == (1, 1, 3)


async def test_a_resource_is_searched_by_any_attribute_of_its_instances(store: IndexStore) -> None:
    await store.apply(
        batch(4, put_protocol("1.1", 1), put_protocol("1.2", 2, "Knee"), put_protocol("1.3", 3, resource=PALETTES), put("1.4", 4))
    )

    async def found_in(resource: str, **parameters: str) -> list[str]:
        return [value(row, "SOPInstanceUID") for row in await of_resource(store, resource, **parameters)]

    assert await found_in(PROTOCOLS) == ["1.1", "1.2"]
    assert await found_in(PALETTES) == ["1.3"]
    assert await found_in("inventories") == []
    assert await found_in(PROTOCOLS, HangingProtocolName="Kn*") == ["1.2"]
    assert await found_in(PROTOCOLS, Manufacturer="Acme", HangingProtocolName="Chest") == ["1.1"]
    assert await found_in(PROTOCOLS, SOPInstanceUID="1.2") == ["1.2"]
    assert await found_in(PROTOCOLS, SOPInstanceUID="1.4") == []


async def test_a_row_of_a_resource_names_its_url_and_what_was_asked_for(store: IndexStore) -> None:
    await store.apply(batch(1, put_protocol("1.1", 1)))
    (row,) = await of_resource(store, PROTOCOLS, includefield="HangingProtocolName")
    assert row == {
        "00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.38.1"]},
        "00080018": {"vr": "UI", "Value": ["1.1"]},
        "00081190": {"vr": "UR", "Value": ["BASE/hanging-protocols/1.1"]},
        "00720002": {"vr": "SH", "Value": ["Chest"]},
    }
    (everything,) = await of_resource(store, PROTOCOLS, includefield="all")
    assert everything == {**row, "00080070": {"vr": "LO", "Value": ["Acme"]}}


async def test_records_and_metadata_of_a_resource(store: IndexStore) -> None:
    await store.apply(batch(2, put_protocol("1.2", 1), put_protocol("1.1", 2, "Knee")))
    assert [one.stored.sop_instance_uid for one in await records(store, Scope(PROTOCOLS))] == ["1.1", "1.2"]
    assert [one.stored.resource for one in await records(store, Scope(PROTOCOLS, "", "1.2"))] == [PROTOCOLS]
    assert [one.sop_instance_uid async for page in store.fragments(Scope(PROTOCOLS)) for one in page] == ["1.1", "1.2"]
    ((fragment,),) = [page async for page in store.fragments(Scope(PROTOCOLS, "", "1.1"))]
    assert orjson.loads(fragment.dicom_json)["00720002"]["Value"] == ["Knee"]
    for scope in (
        Scope(PALETTES),
        Scope(PALETTES, "", "1.1"),
        Scope(PROTOCOLS, "", "9"),
        Scope(PROTOCOLS, SERIES),
        Scope(STUDY, "", "1.1"),
    ):
        with pytest.raises(errors.NotFound):
            await records(store, scope)


async def test_what_was_deleted_of_a_resource_is_gone_and_can_come_back(store: IndexStore) -> None:
    first = put_protocol("1.1", 1)
    await store.apply(batch(1, first))
    await store.apply(batch(2, Remove(first.stored, 2)))
    for scope in (Scope(PROTOCOLS), Scope(PROTOCOLS, "", "1.1")):
        with pytest.raises(errors.Gone):
            await records(store, scope)
    assert await of_resource(store, PROTOCOLS) == []
    ((tombstone,),) = [page async for page in store.tombstones("1.1")]
    assert (tombstone.stored.resource, tombstone.version, tombstone.deleted) == (PROTOCOLS, 2, True)
    await store.apply(batch(3, replace(first, version=3)))
    assert [one.version for one in await records(store, Scope(PROTOCOLS))] == [3]
    assert (await store.counts()).studies == 0


async def test_an_instance_may_go_from_a_study_to_a_resource_and_back(store: IndexStore) -> None:
    """One SOP Instance UID is one instance, wherever it is: a deletion and a store may move it."""
    await store.apply(batch(1, put("1.1", 1)))
    await store.apply(batch(2, put_protocol("1.1", 2)))
    assert await uids(store) == []
    assert [one.version for one in await records(store, Scope(PROTOCOLS))] == [2]
    await store.apply(batch(3, put("1.1", 3)))
    assert await uids(store) == [STUDY]
    with pytest.raises(errors.NotFound):
        await records(store, Scope(PROTOCOLS))


async def test_a_caller_who_may_see_some_studies_sees_no_resource(store: IndexStore) -> None:
    await store.apply(batch(1, put_protocol("1.1", 1)))
    for scope in (Scope(PROTOCOLS, visible_studies=frozenset({STUDY})), Scope("", "", "1.1", frozenset({STUDY}))):
        with pytest.raises(errors.NotFound):
            await records(store, scope)
    query = Query(Level.INSTANCE, PROTOCOLS, visible_studies=frozenset({STUDY}))
    assert (await store.search(query)).rows == []
    assert [page async for page in store.tombstones("1.1", frozenset({STUDY}))] == []
