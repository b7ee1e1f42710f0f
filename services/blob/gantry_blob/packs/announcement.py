"""The events that announce a pack: one per collection, split where one would pass 256 KiB.

The same pack gives the same events, whoever makes them: blob after a commit, or later again from the trailer.
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
    """An InstancesStored as it is published."""

    subject: str
    message_id: str
    data: bytes


@dataclass
class _Group:
    """The instances of one collection, serialised. Facts are kept while all of them fit into one event."""

    facts: list[bytes] = field(default_factory=list)
    facts_bytes: int = 0
    places: list[bytes] = field(default_factory=list)

    def add(self, instance: blob_pb2.StoredInstance, serialised: bytes) -> None:
        self.places.append(blob_pb2.StoredInstance(part_number=instance.part_number, location=instance.location).SerializeToString())
        self.facts_bytes += len(serialised) + 8
        if self.facts_bytes <= EVENT_BYTES:
            self.facts.append(serialised)
        else:
            self.facts.clear()

    def pieces(self) -> Iterable[list[bytes]]:
        if self.facts:
            return [self.facts]
        each = max(1, EVENT_BYTES // max(len(place) + 8 for place in self.places))
        return [self.places[begin : begin + each] for begin in range(0, len(self.places), each)]


class PackEvents:
    """Collects the instances of a pack, in their order."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._groups: dict[str, _Group] = {}

    def add(self, instance: blob_pb2.StoredInstance, serialised: bytes) -> None:
        """Take the next instance, as it is and serialised."""
        self._groups.setdefault(collection_of(instance), _Group()).add(instance, serialised)

    def events(self, request_id: str, reply_subject: str = "") -> list[Event]:
        """Return the events. The last one may be published only when the others are acknowledged (`last_of_pack`)."""
        pieces = [(collection, group, piece) for collection, group in self._groups.items() for piece in enumerate(group.pieces())]
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
                    last_of_pack=position == len(pieces),
                ).SerializeToString()
                + b"".join(part for one in instances for part in (protobuf_fields.header(_INSTANCES, len(one)), one)),
            )
            for position, (collection, group, (number, instances)) in enumerate(pieces, 1)
        ]
