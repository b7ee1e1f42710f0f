"""The events that announce a pack: one per collection, or several if one would exceed 256 KiB.

The events of a pack are always the same, whether they are built after the commit or later from the trailer.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from gantry.blob.v1 import blob_pb2
from gantry.events.v1 import events_pb2
from gantry_runtime.events.streams import SUBJECTS, partition_of
from gantry_runtime.rpc import protobuf_fields
from gantry_runtime.stored_instances import collection_of

EVENT_BYTES = 256 << 10
_INSTANCES = events_pb2.InstancesStored.DESCRIPTOR.fields_by_name["instances"].number


@dataclass(frozen=True)
class Event:
    """A serialised InstancesStored, with its subject and message id."""

    subject: str
    message_id: str
    data: bytes


@dataclass
class _Group:
    """The serialised instances of one collection. If their facts do not fit into one event, the events have only their locations."""

    facts: list[bytes] = field(default_factory=list)
    facts_bytes: int = 0
    locations: list[bytes] = field(default_factory=list)

    def add(self, instance: blob_pb2.StoredInstance, serialised: bytes) -> None:
        self.locations.append(blob_pb2.StoredInstance(part_number=instance.part_number, location=instance.location).SerializeToString())
        self.facts_bytes += len(serialised) + 8
        if self.facts_bytes <= EVENT_BYTES:
            self.facts.append(serialised)
        else:
            self.facts.clear()

    def batches(self) -> Iterable[list[bytes]]:
        if self.facts:
            return [self.facts]
        each = max(1, EVENT_BYTES // max(len(location) + 8 for location in self.locations))
        return [self.locations[begin : begin + each] for begin in range(0, len(self.locations), each)]


class PackEvents:
    """Collects the instances of a pack, in their order."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._groups: dict[str, _Group] = {}

    def add(self, instance: blob_pb2.StoredInstance, serialised: bytes) -> None:
        """Add the next instance. `serialised` is the same instance, serialised."""
        self._groups.setdefault(collection_of(instance), _Group()).add(instance, serialised)

    def events(self, request_id: str, reply_subject: str = "") -> list[Event]:
        """Return the events. The last one has `last_of_pack`; publish it only after all others are confirmed.

        Args:
            request_id: of the store request.
            reply_subject: subject on which index reports the outcomes; "" if they are not needed.
        """
        batches = [(collection, group, batch) for collection, group in self._groups.items() for batch in enumerate(group.batches())]
        return [
            Event(
                SUBJECTS["InstancesStored"].format(partition=partition_of(collection)),
                f"{self.key} {collection} {number}",
                events_pb2.InstancesStored(
                    object=self.key,
                    collection=collection,
                    request_id=request_id,
                    reply_subject=reply_subject,
                    piece=number,
                    facts_in_pack=not group.facts,
                    last_of_pack=position == len(batches),
                ).SerializeToString()
                + b"".join(part for stored in instances for part in (protobuf_fields.header(_INSTANCES, len(stored)), stored)),
            )
            for position, (collection, group, (number, instances)) in enumerate(batches, 1)
        ]
