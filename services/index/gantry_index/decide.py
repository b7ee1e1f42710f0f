"""Index decides what an upload is, in stream order.

New; the same content again; a duplicate to refuse; a new version. The same events against the same state decide the same, and an event
whose location is known already decides what it decided before, so events may be repeated.

Source: PS3.18 §10.5; failure reason 0111H of PS3.4 §B.2.3 for a duplicate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gantry.blob.v1.blob_pb2 import Location, StoredInstance
from gantry.events.v1 import events_pb2
from gantry.events.v1.events_pb2 import Decision, InstancesDeleted, InstancesStored, Outcome, StoreOutcome, StoreOutcomes
from gantry_index.store import Place, Present, Put, Remove

OnDuplicate = Literal["reject", "replace"]

OUTCOME_OF_DEAD: dict[int, "Outcome.ValueType"] = {
    Decision.KIND_REFUSED: events_pb2.OUTCOME_DUPLICATE,
    Decision.KIND_REDUNDANT: events_pb2.OUTCOME_SAME,
    Decision.KIND_REPLACED: events_pb2.OUTCOME_NEW,
    Decision.KIND_DELETED: events_pb2.OUTCOME_NEW,
}
"""What was told of an upload whose place is dead by now."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """InstancesStored with all facts; `dicom_json` by SOP Instance UID and part where it is not in the facts."""

    sequence: int
    event: InstancesStored
    instances: Sequence[StoredInstance]
    dicom_json: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeletedEvent:
    """InstancesDeleted."""

    sequence: int
    event: InstancesDeleted


Event = StoredEvent | DeletedEvent


@dataclass(slots=True)
class Decisions:
    """What a batch of events comes to.

    Attributes:
        changes: by SOP Instance UID the last change.
        dead: places that are dead from now on.
        locations: of decisions that are not durable yet, by kind.
        outcomes: what to tell, by reply subject.
        changed: instances whose records are no longer what they were, by study.
        applied: reply subjects of deletions.
        packs: of which nothing is missing on the stream.
    """

    changes: dict[str, Put | Remove] = field(default_factory=dict)
    dead: dict[Place, "Decision.Kind.ValueType"] = field(default_factory=dict)
    locations: dict["Decision.Kind.ValueType", list[Location]] = field(default_factory=dict)
    outcomes: list[tuple[str, StoreOutcomes]] = field(default_factory=list)
    changed: dict[str, list[str]] = field(default_factory=dict)
    applied: list[str] = field(default_factory=list)
    packs: list[str] = field(default_factory=list)


def decide(
    events: Sequence[Event],
    present: Mapping[str, Present],
    dead: Mapping[Place, "Decision.Kind.ValueType"],
    on_duplicate: OnDuplicate = "reject",
) -> Decisions:
    """Decide a batch.

    Args:
        events: in stream order.
        present: what is known of every SOP Instance UID in them.
        dead: which of their places are dead.
    """
    batch = _Batch(dict(present), dict(dead), on_duplicate)
    for event in events:
        if isinstance(event, StoredEvent):
            batch.stored(event)
        else:
            batch.deleted(event)
    return batch.decisions


class _Batch:
    def __init__(self, state: dict[str, Present], dead: dict[Place, "Decision.Kind.ValueType"], on_duplicate: OnDuplicate) -> None:
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
        place = (instance.location.object, instance.location.offset)
        if (kind := self.dead.get(place)) is not None:
            return OUTCOME_OF_DEAD[kind]
        now = self.state.get(instance.sop_instance_uid)
        if now is not None and (now.place == place or now.version > event.sequence):
            # Applied before: this is a repetition.
            return events_pb2.OUTCOME_NEW
        if now is None or now.deleted:
            self._put(event, instance)
            return events_pb2.OUTCOME_NEW
        if is_same(now.stored, instance):
            self._kill(instance.location, Decision.KIND_REDUNDANT)
            return events_pb2.OUTCOME_SAME
        if self.on_duplicate == "replace" and _has_same_parents(now.stored, instance):
            self._kill(now.stored.location, Decision.KIND_REPLACED)
            self._put(event, instance)
            self._changed(instance)
            return events_pb2.OUTCOME_REPLACED
        self._kill(instance.location, Decision.KIND_REFUSED)
        return events_pb2.OUTCOME_DUPLICATE

    def deleted(self, event: DeletedEvent) -> None:
        for instance in event.event.instances:
            place = (instance.location.object, instance.location.offset)
            self.dead[place] = self.decisions.dead[place] = Decision.KIND_DELETED
            now = self.state.get(instance.sop_instance_uid)
            if now is None or now.deleted or now.place != place or now.version > event.sequence:
                continue
            self.state[instance.sop_instance_uid] = Present(now.stored, event.sequence, deleted=True)
            self.decisions.changes[instance.sop_instance_uid] = Remove(now.stored, event.sequence)
            self._changed(now.stored)
        if event.event.reply_subject:
            self.decisions.applied.append(event.event.reply_subject)

    def _put(self, event: StoredEvent, instance: StoredInstance) -> None:
        kept = StoredInstance()
        kept.CopyFrom(instance)
        kept.ClearField("dicom_json")
        dicom_json = event.dicom_json.get(instance.part_number, instance.dicom_json)
        self.state[instance.sop_instance_uid] = Present(kept, event.sequence)
        self.decisions.changes[instance.sop_instance_uid] = Put(kept, dicom_json, event.sequence)

    def _kill(self, location: Location, kind: "Decision.Kind.ValueType") -> None:
        place = (location.object, location.offset)
        self.dead[place] = self.decisions.dead[place] = kind
        self.decisions.locations.setdefault(kind, []).append(location)

    def _changed(self, stored: StoredInstance) -> None:
        self.decisions.changed.setdefault(stored.study_instance_uid, []).append(stored.sop_instance_uid)


def is_same(one: StoredInstance, other: StoredInstance) -> bool:
    """Whether two uploads have the same data set in the same transfer syntax, in the same place of the hierarchy."""
    return (
        one.dataset_digest == other.dataset_digest
        and one.transfer_syntax_uid == other.transfer_syntax_uid
        and _has_same_parents(one, other)
    )


def _has_same_parents(one: StoredInstance, other: StoredInstance) -> bool:
    return (one.study_instance_uid, one.series_instance_uid) == (other.study_instance_uid, other.series_instance_uid)
