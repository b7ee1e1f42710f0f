"""Decides, in stream order, what an upload is: new, redundant (the same content again), a refused duplicate, or a new version.

It also decides what is deleted, restored or swept, and records new locations. An upload is identified by its upload name (`place_of`). The
same events with the same state give the same decisions. An event whose upload is already known gives the same decision as before, so events
may be repeated.

Source: PS3.18 §10.5; failure reason 0111H of PS3.4 §B.2.3 for a duplicate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gantry.blob.v1.blob_pb2 import Location, StoredInstance
from gantry.events.v1 import events_pb2
from gantry.events.v1.events_pb2 import (
    Change,
    Decision,
    InstancesDeleted,
    InstancesRestored,
    InstancesStored,
    InstancesSwept,
    InstanceUids,
    NamedUpload,
    Outcome,
    StoreOutcome,
    StoreOutcomes,
    StudyChanged,
)
from gantry_index.stores.port import DUE_KINDS, Dead, Move, OutboxRow, Place, Present, Put, Remove, place_of
from gantry_index.stores.port import Change as StoreChange
from gantry_runtime.stored_instances import collection_of

OnDuplicate = Literal["reject", "replace"]

KIND_NAMES = {
    Change.KIND_CREATED: "created",
    Change.KIND_REPLACED: "replaced",
    Change.KIND_DELETED: "deleted",
    Change.KIND_RESTORED: "restored",
    Change.KIND_SETTLED: "settled",
}


def change_id(sequence: int, kind: "Change.Kind.ValueType") -> str:
    """Return the id of a change on CHANGES. `sequence` is that of the event on STORE, where no sequence is ever used twice."""
    return f"{sequence}-{KIND_NAMES[kind]}"


OUTCOME_OF_DEAD: dict[int, "Outcome.ValueType"] = {
    Decision.KIND_REFUSED: events_pb2.OUTCOME_DUPLICATE,
    Decision.KIND_REDUNDANT: events_pb2.OUTCOME_SAME,
    Decision.KIND_REPLACED: events_pb2.OUTCOME_NEW,
    Decision.KIND_DELETED: events_pb2.OUTCOME_NEW,
    Decision.KIND_SWEPT: events_pb2.OUTCOME_NEW,
}
"""The outcome that was reported for an upload that is dead now."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """InstancesStored with all facts. `dicom_json` has, by part number, the DICOM JSON that is not in the facts."""

    sequence: int
    event: InstancesStored
    instances: Sequence[StoredInstance]
    dicom_json: Mapping[int, bytes] = field(default_factory=dict)
    time_s: int = 0


@dataclass(frozen=True, slots=True)
class DeletedEvent:
    """InstancesDeleted."""

    sequence: int
    event: InstancesDeleted
    time_s: int = 0


@dataclass(frozen=True, slots=True)
class RestoredEvent:
    """InstancesRestored, with facts and DICOM JSON, by upload name, of the uploads whose bytes still exist."""

    sequence: int
    event: InstancesRestored
    facts: Mapping[Place, tuple[StoredInstance, bytes]]
    time_s: int = 0


@dataclass(frozen=True, slots=True)
class SweptEvent:
    """InstancesSwept."""

    sequence: int
    event: InstancesSwept
    time_s: int = 0


Event = StoredEvent | DeletedEvent | RestoredEvent | SweptEvent
"""`time_s` is the time of publication, in seconds since 1970 UTC."""


def uploads_of(event: Event) -> list[tuple[str, Place]]:
    """Return the uploads of an event, as pairs of SOP Instance UID and upload name."""
    if isinstance(event, StoredEvent):
        return [(instance.sop_instance_uid, place_of(instance)) for instance in event.instances]
    return [(upload.sop_instance_uid, _named(upload)) for upload in event.event.instances]


def _named(upload: NamedUpload) -> Place:
    return upload.location.object, upload.location.offset


@dataclass(slots=True)
class Decisions:
    """The decisions about a batch of events.

    Attributes:
        changes: the last change of each SOP Instance UID.
        dead: uploads that are dead from now on; None for uploads that are restored.
        uids: UIDs of the deleted uploads.
        moved: those uploads of `dead` for which only the location of the bytes is new.
        outcomes: reply subjects, and the outcomes to report there.
        changed: by collection, the SOP Instance UIDs whose instance records have changed.
        applied: reply subjects of deletions and restorations.
        packs: keys of packs all of whose events are on the stream.
        study_changes: by sequence of the event, what is to be published on CHANGES.
    """

    changes: dict[str, StoreChange] = field(default_factory=dict)
    dead: dict[Place, Dead | None] = field(default_factory=dict)
    uids: dict[Place, InstanceUids] = field(default_factory=dict)
    moved: set[Place] = field(default_factory=set)
    outcomes: list[tuple[str, StoreOutcomes]] = field(default_factory=list)
    changed: dict[str, list[str]] = field(default_factory=dict)
    applied: list[str] = field(default_factory=list)
    packs: list[str] = field(default_factory=list)
    study_changes: dict[int, StudyChanged] = field(default_factory=dict)

    def outbox(self, reader: str) -> list[OutboxRow]:
        """Return the study changes as outbox rows of a reader."""
        return [
            OutboxRow(reader, sequence, message.collection, message.SerializeToString()) for sequence, message in self.study_changes.items()
        ]

    def to_keep(self) -> list[tuple["Decision.Kind.ValueType", list[Location], list[InstanceUids]]]:
        """Return what reindex must know: by kind, the upload names, and for deleted uploads the UIDs."""
        kinds: dict[Decision.Kind.ValueType, tuple[list[Location], list[InstanceUids]]] = {}
        for place, dead in self.dead.items():
            if place in self.moved:
                continue
            locations, uids = kinds.setdefault(dead.kind if dead else Decision.KIND_RESTORED, ([], []))
            locations.append(Location(object=place[0], offset=place[1]))
            if dead and dead.kind == Decision.KIND_DELETED:
                uids.append(self.uids[place])
        return [(kind, *named) for kind, named in kinds.items()]


def decide(
    events: Sequence[Event],
    present: Mapping[str, Present],
    dead: Mapping[Place, Dead],
    on_duplicate: OnDuplicate = "reject",
) -> Decisions:
    """Decide a batch of events.

    Args:
        events: in stream order.
        present: the state of every known SOP Instance UID in them.
        dead: those of their uploads that are dead.
        on_duplicate: whether to reject or replace when other content is stored under an existing SOP Instance UID.
    """
    batch = _Batch(dict(present), dict(dead), on_duplicate)
    for event in events:
        match event:
            case StoredEvent():
                batch.stored(event)
            case DeletedEvent():
                batch.deleted(event)
            case RestoredEvent():
                batch.restored(event)
            case SweptEvent():
                batch.swept(event)
    return batch.decisions


class _Batch:
    def __init__(self, state: dict[str, Present], dead: dict[Place, Dead], on_duplicate: OnDuplicate) -> None:
        self.state = state
        self.dead = dead
        self.on_duplicate = on_duplicate
        self.decisions = Decisions()

    def stored(self, event: StoredEvent) -> None:
        outcomes = [
            StoreOutcome(part_number=instance.part_number, outcome=self._outcome(event, instance))
            for instance in sorted(event.instances, key=lambda instance: instance.part_number)
        ]
        message = event.event
        if message.last_of_pack:
            self.decisions.packs.append(message.object)
        if message.reply_subject:
            self.decisions.outcomes.append((message.reply_subject, StoreOutcomes(request_id=message.request_id, outcomes=outcomes)))

    def _outcome(self, event: StoredEvent, instance: StoredInstance) -> "Outcome.ValueType":
        place = place_of(instance)
        now = self.state.get(instance.sop_instance_uid)
        if instance.HasField("origin"):
            self._moved(event, instance, place, now)
        if (dead := self.dead.get(place)) is not None:
            return OUTCOME_OF_DEAD[dead.kind]
        if now is None or (now.deleted and now.place != place):
            self._note_change(event, Change.KIND_CREATED, instance, self._put(event, instance))
            return events_pb2.OUTCOME_NEW
        if now.place == place:
            # The event was applied before.
            return events_pb2.OUTCOME_NEW
        if is_same(now.stored, instance):
            self._kill(place, Dead(Decision.KIND_REDUNDANT, event.time_s, instance.location.object))
            return events_pb2.OUTCOME_SAME
        if self.on_duplicate == "replace" and _has_same_parents(now.stored, instance):
            self._kill(now.place, Dead(Decision.KIND_REPLACED, event.time_s, now.stored.location.object))
            self._note_change(event, Change.KIND_REPLACED, instance, self._put(event, instance))
            self._changed(instance)
            return events_pb2.OUTCOME_REPLACED
        self._kill(place, Dead(Decision.KIND_REFUSED, event.time_s, instance.location.object))
        return events_pb2.OUTCOME_DUPLICATE

    def _moved(self, event: StoredEvent, instance: StoredInstance, place: Place, now: Present | None) -> None:
        """Record the new location of a known upload, which may be an instance, a tombstone, or a dead upload."""
        if (dead := self.dead.get(place)) is not None:
            if place not in self.decisions.dead:
                self.decisions.moved.add(place)
            self.dead[place] = self.decisions.dead[place] = Dead(dead.kind, dead.decided_s, instance.location.object)
        if now is None or now.place != place or now.stored.location == instance.location:
            return
        version = max(event.sequence, now.version + 1)
        kept = without_json(instance)
        self.state[instance.sop_instance_uid] = Present(kept, version, now.deleted)
        before = self.decisions.changes.get(instance.sop_instance_uid)
        change: StoreChange = Move(kept, version)
        if isinstance(before, Put):
            change = Put(kept, before.dicom_json, version)
        elif isinstance(before, Remove):
            change = Remove(kept, version)
        self.decisions.changes[instance.sop_instance_uid] = change
        self._changed(instance)

    def deleted(self, event: DeletedEvent) -> None:
        for upload in event.event.instances:
            place = _named(upload)
            if (dead := self.dead.get(place)) is not None and dead.kind == Decision.KIND_SWEPT:
                continue
            now = self.state.get(upload.sop_instance_uid)
            is_known = now is not None and now.place == place
            lies_in = now.stored.location.object if now is not None and is_known else (dead.object if dead else place[0])
            self.decisions.uids[place] = InstanceUids(
                collection=event.event.collection,
                series_instance_uid=upload.series_instance_uid,
                sop_instance_uid=upload.sop_instance_uid,
            )
            self._kill(place, Dead(Decision.KIND_DELETED, event.time_s, lies_in))
            if now is None or not is_known or now.deleted:
                continue
            version = max(event.sequence, now.version + 1)
            self.state[upload.sop_instance_uid] = Present(now.stored, version, deleted=True)
            self.decisions.changes[upload.sop_instance_uid] = Remove(now.stored, version)
            self._note_change(event, Change.KIND_DELETED, now.stored, version)
            self._changed(now.stored)
        if event.event.reply_subject:
            self.decisions.applied.append(event.event.reply_subject)

    def restored(self, event: RestoredEvent) -> None:
        for upload in event.event.instances:
            place, now = _named(upload), self.state.get(upload.sop_instance_uid)
            dead, facts = self.dead.get(place), event.facts.get(place)
            if dead is None or dead.kind != Decision.KIND_DELETED or facts is None:
                continue
            if now is not None and not now.deleted and now.place != place:
                # The instance was stored again after the deletion; that upload stays.
                continue
            del self.dead[place]
            self.decisions.dead[place] = None
            self.decisions.moved.discard(place)
            if now is not None and not now.deleted:
                continue
            version = max(event.sequence, now.version + 1 if now else 0)
            kept = without_json(facts[0])
            self.state[upload.sop_instance_uid] = Present(kept, version)
            self.decisions.changes[upload.sop_instance_uid] = Put(kept, facts[1], version)
            self._note_change(event, Change.KIND_RESTORED, kept, version)
            self._changed(kept)
        if event.event.reply_subject:
            self.decisions.applied.append(event.event.reply_subject)

    def swept(self, event: SweptEvent) -> None:
        for upload in event.event.instances:
            place = _named(upload)
            if (dead := self.dead.get(place)) is not None and dead.kind in DUE_KINDS:
                self._kill(place, Dead(Decision.KIND_SWEPT, event.time_s, dead.object))

    def _note_change(self, event: Event, kind: "Change.Kind.ValueType", stored: StoredInstance, version: int) -> None:
        """Record the change of an instance for the stream CHANGES."""
        message = self.decisions.study_changes.get(event.sequence)
        if message is None:
            message = self.decisions.study_changes[event.sequence] = StudyChanged(collection=event.event.collection)
        change = next((existing for existing in message.changes if existing.kind == kind), None)
        if change is None:
            name = change_id(event.sequence, kind)
            change = message.changes.add(id=name, kind=kind, sequence=event.sequence, time_s=event.time_s)
        change.instances.add(series_instance_uid=stored.series_instance_uid, sop_instance_uid=stored.sop_instance_uid, version=version)

    def _put(self, event: StoredEvent, instance: StoredInstance) -> int:
        """Put a new version of an instance; return the version."""
        kept = without_json(instance)
        dicom_json = event.dicom_json.get(instance.part_number, instance.dicom_json)
        now = self.state.get(instance.sop_instance_uid)
        # Greater than a version that another partition has written for the same UID.
        version = max(event.sequence, now.version + 1) if now else event.sequence
        self.state[instance.sop_instance_uid] = Present(kept, version)
        self.decisions.changes[instance.sop_instance_uid] = Put(kept, dicom_json, version)
        return version

    def _kill(self, place: Place, dead: Dead) -> None:
        self.dead[place] = self.decisions.dead[place] = dead
        self.decisions.moved.discard(place)

    def _changed(self, stored: StoredInstance) -> None:
        self.decisions.changed.setdefault(collection_of(stored), []).append(stored.sop_instance_uid)


def without_json(instance: StoredInstance) -> StoredInstance:
    """Return a copy of the facts without DICOM JSON, as index stores have them."""
    facts = StoredInstance()
    facts.CopyFrom(instance)
    facts.ClearField("dicom_json")
    return facts


def is_same(one: StoredInstance, other: StoredInstance) -> bool:
    """Whether two uploads have the same data set in the same transfer syntax, in the same collection and series."""
    return (
        one.dataset_digest == other.dataset_digest
        and one.transfer_syntax_uid == other.transfer_syntax_uid
        and _has_same_parents(one, other)
    )


def _has_same_parents(one: StoredInstance, other: StoredInstance) -> bool:
    return (collection_of(one), one.series_instance_uid) == (collection_of(other), other.series_instance_uid)
