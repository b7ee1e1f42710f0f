"""The port of index: what a store of facts about instances and workitems must do.

Adapters: `sqlite_store` (one machine) and `elasticsearch_store`. One contract suite runs against both: `tests/stores/test_index_store.py`.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gantry.blob.v1.blob_pb2 import StoredInstance
from gantry.events.v1.events_pb2 import Decision
from gantry_standard.dicom.collections import is_study
from gantry_standard.query.matching import Query

PAGE = 500
"""Records or fragments in one piece of an answer."""

NUMBER_ABSENT = 1 << 53
"""Where a Series or Instance Number is missing, the series or instance comes last."""

Place = tuple[str, int]
"""Object and offset at which an upload was first written: its name, wherever its bytes lie now."""

DUE_KINDS = (Decision.KIND_DELETED, Decision.KIND_REPLACED, Decision.KIND_REDUNDANT)
"""Of dead uploads, those whose bytes go after a time. What was refused is kept aside."""


def place_of(stored: StoredInstance) -> Place:
    """Return the name of an upload."""
    named = stored.origin if stored.HasField("origin") else stored.location
    return named.object, named.offset


@dataclass(frozen=True, slots=True)
class Scope:
    """A collection, a series of a study, or an instance; what is empty is not restricted. Collection or instance is given.

    Attributes:
        collection: key of a study or a non-patient resource (`gantry_standard.dicom.collections`).
        visible_studies: everything else does not exist for who asks; None: everything is visible.
    """

    collection: str = ""
    series_instance_uid: str = ""
    sop_instance_uid: str = ""
    visible_studies: frozenset[str] | None = None

    def hides(self, collection: str) -> bool:
        """Say whether a collection does not exist for who asks."""
        return self.visible_studies is not None and collection not in self.visible_studies


def name_of(scope: Scope) -> str:
    """Return how messages name a collection or series."""
    if scope.series_instance_uid:
        return f"series {scope.series_instance_uid}"
    return f"study {scope.collection}" if is_study(scope.collection) else scope.collection


@dataclass(frozen=True, slots=True)
class Present:
    """What is known of a SOP Instance UID: the last version, or the tombstone that took its place."""

    stored: StoredInstance
    version: int
    deleted: bool = False

    @property
    def place(self) -> Place:
        """The name of the upload that this version is."""
        return place_of(self.stored)


@dataclass(frozen=True, slots=True)
class Put:
    """A new version of an instance.

    Attributes:
        stored: all facts without `dicom_json`; with `dicom_json_location` where it is kept in the pack only.
        dicom_json: the whole data set, for search, wherever it is kept.
        version: stream sequence of the fact.
    """

    stored: StoredInstance
    dicom_json: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Remove:
    """A deletion; a tombstone with the facts takes the place of whatever was there, or was not."""

    stored: StoredInstance
    version: int


@dataclass(frozen=True, slots=True)
class Move:
    """The bytes of what is there, an instance or a tombstone, lie elsewhere now; nothing else changes. A move of nothing is nothing."""

    stored: StoredInstance
    version: int


Change = Put | Remove | Move


@dataclass(frozen=True, slots=True)
class Dead:
    """An upload that is not to be found.

    Attributes:
        decided_s: when, seconds since 1970.
        object: in which its bytes lie.
    """

    kind: "Decision.Kind.ValueType"
    decided_s: int
    object: str


@dataclass(frozen=True, slots=True)
class PoisonEvent:
    """An event that cannot be parsed, and why.

    Attributes:
        name: the same each time that the event is announced; "" where it has none.
        pack: the object that it announces, which stays unknown while the event is poison; "" where it announces none.
    """

    sequence: int
    reason: str
    name: str = ""
    pack: str = ""


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One row of the outbox: what one event changed, until it is published on the stream CHANGES.

    Attributes:
        reader: whose batch it was in.
        sequence: of the event on STORE; no other row has it.
        data: serialized StudyChanged.
    """

    reader: str
    sequence: int
    collection: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """What one group commit changes.

    Attributes:
        reader: whose cursor moves: "all", or a partition's number; "" where none does.
        sequence: the cursor after it.
        changes: by SOP Instance UID, the last change of each.
        seen: by SOP Instance UID, the version on which the change was decided, 0 for none: where the store has another one, somebody
            else was faster. UIDs that are not named are not compared.
        dead: uploads that are not to be found any more; None for those that are again.
        packs: objects of which every instance has been announced.
        versions: by collection, the greatest version that `present` gave for an instance of the batch: where a store's
            study has not applied that, a crash came between.
        poison: events that were passed because they cannot be parsed.
        healed: names of poison events that were announced again and applied.
        outbox: what is to be published about these changes.
        settling: by Study Instance UID, the sequence of the last upload of a study: to be published when the study has settled.
        published: sequences of outbox rows, of any reader, that were published and are to be removed.
        settled: by Study Instance UID, the sequence of the last upload when it was published that the study has settled. The study is
            removed from `settling`, unless another upload came. Of any reader.
    """

    reader: str
    sequence: int
    changes: Mapping[str, Change] = field(default_factory=dict)
    dead: Mapping[Place, Dead | None] = field(default_factory=dict)
    packs: Sequence[str] = ()
    versions: Mapping[str, int] = field(default_factory=dict)
    poison: Sequence[PoisonEvent] = ()
    seen: Mapping[str, int] = field(default_factory=dict)
    healed: Sequence[str] = ()
    outbox: Sequence[OutboxRow] = ()
    settling: Mapping[str, int] = field(default_factory=dict)
    published: Sequence[int] = ()
    settled: Mapping[str, int] = field(default_factory=dict)


Decide = Callable[[dict[str, Present], dict[Place, Dead]], Batch | None]
"""Makes a batch of what is known; None where something else is to be done first."""


@dataclass(frozen=True, slots=True)
class Page:
    """Rows of a search: DICOM JSON objects with 0x00 where the base URL goes, and how many matches follow."""

    rows: list[bytes]
    remaining: int


@dataclass(frozen=True, slots=True)
class Fragment:
    """DICOM JSON of one instance, or its serialized Location when it is too large to be kept here."""

    sop_instance_uid: str
    version: int
    dicom_json: bytes
    location: bytes


@dataclass(frozen=True, slots=True)
class Counts:
    """Totals, for the status."""

    studies: int
    series: int
    instances: int
    poison: int


@dataclass(frozen=True, slots=True)
class WorkitemDocument:
    """The searchable copy of a workitem; a deleted one is not found."""

    workitem_uid: str
    version: int
    dicom_json: bytes
    deleted: bool = False


class IndexStore(Protocol):
    """Facts about instances, by the sequences of the stream STORE.

    Every method raises `errors.Unavailable` when the store does not answer; nothing is half-applied then that applying the same batch
    again would not repair. What `apply` wrote is durable, and seen by every read that begins after it returned.
    """

    name: str
    """sqlite or elasticsearch."""

    async def outdated(self) -> str:
        """Return why the store must be reindexed before it is used, as a sentence; "" where it need not.

        A store of an older program that cannot be migrated in place is outdated until `swap`. Until then `search`, `records`, `fragments`
        and `tombstones` raise `errors.Unavailable` with that sentence, and nothing may be applied; what a reindex needs works.
        """
        ...

    async def generation(self) -> str:
        """Return the generation of the stream that this store follows; "" of a store that never followed one."""
        ...

    async def follow(self, generation: str, sequence: int) -> None:
        """Note the stream's generation and set every cursor to `sequence`; durable."""
        ...

    async def cursor(self, reader: str) -> int:
        """Return the sequence up to which a reader has applied the stream; what `follow` set when it has not applied anything."""
        ...

    async def cursors(self, readers: Sequence[str]) -> dict[str, int]:
        """Return the cursors of several readers."""
        ...

    async def high_water(self) -> int:
        """Return the greatest sequence of any cursor."""
        ...

    async def present(self, sop_instance_uids: Sequence[str], places: Sequence[Place]) -> tuple[dict[str, Present], dict[Place, Dead]]:
        """Return what is known of these UIDs, tombstones included, and which of these places are dead. The unknown are left out."""
        ...

    async def decided(self, sop_instance_uids: Sequence[str], places: Sequence[Place], decide: Decide) -> bool:
        """Give `decide` what `present` returns and apply the batch that it returns, as `apply` does.

        Returns:
            Whether it returned one.

        Args:
            decide: pure; it may be called in another thread.

        Raises:
            errors.Unavailable: as `apply`; also what `decide` raises.
        """
        ...

    async def apply(self, batch: Batch) -> None:
        """Apply a batch and move its reader's cursor.

        Applying a batch again, or one whose changes are older than what is there, changes nothing. Counts stay exact.
        Study and series attributes are the non-empty values of the smallest SOP Instance UID. Instances of non-patient resources
        make no study and no series.

        Raises:
            errors.Unavailable: also where a version is not the one in `seen`: look again and decide again.
            errors.CorruptInstance: the store cannot parse the DICOM JSON of a change, now or ever.
        """
        ...

    async def search(self, query: Query) -> Page:
        """Return what matches: studies by date and time descending, then UID; series and instances by number, then UID.

        A query without a collection is about studies: instances of non-patient resources are found only where theirs is named.
        What lies in none of `query.visible_studies` neither matches nor counts.

        Raises:
            errors.PayloadTooLarge: keys of another level match more than the store can join.
        """
        ...

    def records(self, scope: Scope) -> AsyncIterator[list[bytes]]:
        """Yield serialized InstanceRecords, at most PAGE at a time: series by number then UID, instances by number then UID.

        A non-patient resource has no series: instances by number then UID.

        Raises (before the first piece):
            errors.NotFound: there is nothing in the scope, or nothing visible; the same message for both.
            errors.Gone: there is nothing any more: it was deleted.
        """
        ...

    def fragments(self, scope: Scope) -> AsyncIterator[list[Fragment]]:
        """Yield the metadata of the scope, in the order and with the errors of `records`."""
        ...

    async def state(self, scope: Scope) -> bytes:
        """Return what differs as soon as anything in the scope does; b"" where that is not known at much less cost than `fragments`, or
        nothing is visible.

        What is read after it is at least as new.

        Raises:
            errors.Unavailable: as `apply`.
        """
        ...

    def tombstones(self, uid: str, visible_studies: frozenset[str] | None = None) -> AsyncIterator[list[Present]]:
        """Yield the tombstones of a study, a series or an instance, at most PAGE at a time; nothing where there is none.

        Args:
            visible_studies: only tombstones in these; None: all.
        """
        ...

    async def due(self, before_s: int, after_object: str, limit: int) -> list[tuple[Place, Dead]]:
        """Return uploads of DUE_KINDS decided before a time, in objects above `after_object`, by object, name."""
        ...

    async def unknown_packs(self, objects: Sequence[str]) -> list[str]:
        """Return, in order, those packs that no batch has named in `packs`, and those of which an event is poison."""
        ...

    async def poisoned(self) -> set[str]:
        """Return the names of the poison events that have one."""
        ...

    async def outbox_rows(self, windows: Mapping[str, tuple[int, int]], limit: int) -> list[OutboxRow]:
        """Return rows of the outbox, by sequence, at most `limit`. They are written with the changes that they are about, or before.

        A row of which nothing was applied, because something else was decided after a crash, has no changes.

        Args:
            windows: by reader, above which and up to which sequence.
        """
        ...

    async def settling(self, reader: str) -> dict[str, int]:
        """Return the studies of a reader that have not settled, each with the sequence of its last upload."""
        ...

    async def counts(self) -> Counts:
        """Return the totals."""
        ...

    async def build(self) -> "IndexStore":
        """Begin a new, empty generation of this store; nobody sees it before `swap`."""
        ...

    async def swap(self, built: "IndexStore") -> None:
        """Take over what was built, at once for every read that begins after it; what was there before is dropped.

        What is in the outbox, and the studies that have not settled, stay.
        """
        ...

    async def close(self) -> None:
        """Give back connections and threads."""
        ...


class WorkitemStore(Protocol):
    """The searchable copy of workitems; errors and durability as in IndexStore."""

    async def cursor(self) -> int:
        """Return the sequence of WORKITEMS up to which documents are applied."""
        ...

    async def apply(self, documents: Sequence[WorkitemDocument], sequence: int) -> None:
        """Take over documents and move the cursor; a document older than what is there is left out."""
        ...

    async def clear(self) -> None:
        """Forget every workitem and begin at 0."""
        ...

    async def search(self, query: Query) -> Page:
        """Return what matches, by Scheduled Procedure Step Start DateTime, then UID.

        With `query.visible_studies`, a workitem matches and counts only where it refers to at least one study and to visible ones only.
        """
        ...

    async def close(self) -> None:
        """Give back connections and threads."""
        ...
