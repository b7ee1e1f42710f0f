"""Events of a pack: one per study, with facts while they are small, else with places."""

from gantry.blob.v1 import blob_pb2
from gantry.events.v1 import events_pb2
from gantry_blob.packs.announcement import EVENT_BYTES, PackEvents
from gantry_runtime.events.streams import partition_of

KEY = "packs/2026/11/24/0123456789abcd-0123456789abcdef.pack"


def instance(study: str, number: int, json_bytes: int = 5000) -> blob_pb2.StoredInstance:
    location = blob_pb2.Location(object=KEY, offset=number * 1000, length=1000)
    return blob_pb2.StoredInstance(
        study_instance_uid=study, sop_instance_uid=f"1.2.{number}", part_number=number, location=location, dicom_json=bytes(json_bytes)
    )


def events_of(instances: list[blob_pb2.StoredInstance], reply_subject: str = "") -> list[events_pb2.InstancesStored]:
    collected = PackEvents(KEY)
    for one in instances:
        collected.add(one, one.SerializeToString())
    events = collected.events("request-1", reply_subject)
    messages = [events_pb2.InstancesStored.FromString(event.data) for event in events]
    for event, message in zip(events, messages, strict=True):
        assert event.subject == f"store.{partition_of(message.collection)}.stored"
        assert event.message_id == f"{KEY} {message.collection} {message.piece}"
        assert len(event.data) < EVENT_BYTES + 1000
    return messages


def test_facts_of_a_small_study_ride_along() -> None:
    instances = [instance("1.1", number) for number in range(10)]
    [event] = events_of(instances, "reply.7")
    assert list(event.instances) == instances
    assert (event.object, event.collection, event.request_id, event.reply_subject) == (KEY, "1.1", "request-1", "reply.7")
    assert (event.piece, event.facts_in_pack, event.last_of_pack) == (0, False, True)


def test_each_study_has_its_event_and_only_the_last_says_so() -> None:
    events = events_of([instance(study, number) for number, study in enumerate(["1.1", "1.2", "1.1", "1.3"])])
    assert [(event.collection, [i.part_number for i in event.instances], event.last_of_pack) for event in events] == [
        ("1.1", [0, 2], False),
        ("1.2", [1], False),
        ("1.3", [3], True),
    ]


def test_facts_of_a_large_study_stay_in_the_pack() -> None:
    [event] = events_of([instance("1.1", number) for number in range(100)])
    assert event.facts_in_pack
    assert [(i.part_number, i.location.offset, i.location.length, i.sop_instance_uid) for i in event.instances] == [
        (number, number * 1000, 1000, "") for number in range(100)
    ]


def test_places_that_do_not_fit_into_one_event_are_split() -> None:
    events = events_of([instance("1.1", number, 100) for number in range(8000)])
    assert [event.piece for event in events] == list(range(len(events)))
    assert len(events) > 2
    assert [i.part_number for event in events for i in event.instances] == list(range(8000))
    assert [event.last_of_pack for event in events] == [False] * (len(events) - 1) + [True]


def test_the_same_pack_gives_the_same_pieces_whoever_waits() -> None:
    instances = [instance("1.1", number, 100) for number in range(8000)]
    with_reply, without = events_of(instances, "a.rather.long.reply.subject" * 10), events_of(instances)
    assert [len(event.instances) for event in with_reply] == [len(event.instances) for event in without]
