"""The ports of the index store: facts about instances, and about workitems.

The adapters are in `sqlite/` (one machine) and `elasticsearch/`. One contract suite tests both: `tests/stores/test_index_store.py`.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gantry.blob.v1.blob_pb2 import StoredInstance
from gantry.events.v1.events_pb2 import Decision
from gantry_standard.dicom.collections import is_study
from gantry_standard.query.matching import Query

PAGE = 500
"""Largest number of records or fragments that are yielded at once."""

NUMBER_ABSENT = 1 << 53
"""Sort value of a missing Series or Instance Number: the series or instance comes last."""

Place = tuple[str, int]
"""Upload name: object and offset at which an upload was first written. It does not change when the bytes are copied."""

DUE_KINDS = (Decision.KIND_DELETED, Decision.KIND_REPLACED, Decision.KIND_REDUNDANT)
"""Kinds of dead uploads whose bytes are removed after the undo window. Refused duplicates are set aside and not removed."""


def place_of(stored: StoredInstance) -> Place:
    """Return the upload name of an instance."""
    location = stored.origin if stored.HasField("origin") else stored.location
    return location.object, location.offset


@dataclass(frozen=True, slots=True)
class Scope:
    """A collection, a series of a study, or an instance. An empty field does not restrict; collection or instance must be given.

    Attributes:
        collection: key of a study or a non-patient resource (`gantry_standard.dicom.collections`).
        visible_studies: the studies that the caller may see; everything else is treated as absent. None if there is no restriction.
    """

    collection: str = ""
    series_instance_uid: str = ""
    sop_instance_uid: str = ""
    visible_studies: frozenset[str] | None = None

    def hides(self, collection: str) -> bool:
        """Return whether the caller may not see a collection."""
        return self.visible_studies is not None and collection not in self.visible_studies


def name_of(scope: Scope) -> str:
    """Return the name of a collection or series for messages to users."""
    if scope.series_instance_uid:
        return f"series {scope.series_instance_uid}"
    return f"study {scope.collection}" if is_study(scope.collection) else scope.collection


@dataclass(frozen=True, slots=True)
class Present:
    """The current state of a SOP Instance UID: the last version of the instance, or its tombstone."""

    stored: StoredInstance
    version: int
    deleted: bool = False

    @property
    def place(self) -> Place:
        """The upload name of this version."""
        return place_of(self.stored)


@dataclass(frozen=True, slots=True)
class Put:
    """A new version of an instance.

    Attributes:
        stored: all facts without `dicom_json`; with `dicom_json_location` if the DICOM JSON is stored only in the pack.
        dicom_json: the whole data set, for search.
        version: stream sequence of the event.
    """

    stored: StoredInstance
    dicom_json: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Remove:
    """A deletion. A tombstone with these facts replaces the instance; it is also written if there is no instance."""

    stored: StoredInstance
    version: int


@dataclass(frozen=True, slots=True)
class Move:
    """A new location of the bytes of an instance or tombstone. Nothing else changes. Without instance and tombstone it has no effect."""

    stored: StoredInstance
    version: int


Change = Put | Remove | Move


@dataclass(frozen=True, slots=True)
class Dead:
    """An upload that is not part of the archive: refused, redundant, replaced, deleted or swept.

    Attributes:
        kind: why.
        decided_s: time of the decision, in seconds since 1970 UTC.
        object: key of the object that has its bytes.
    """

    kind: "Decision.Kind.ValueType"
    decided_s: int
    object: str


@dataclass(frozen=True, slots=True)
class PoisonEvent:
    """An event that cannot be parsed, and the reason.

    Attributes:
        sequence: of the event on the stream.
        reason: for an operator.
        name: message id, the same each time that the event is published; "" if it has none.
        pack: key of the pack that it announces. The pack counts as unknown while the event is poison. "" if it announces none.
    """

    sequence: int
    reason: str
    name: str = ""
    pack: str = ""


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One row of the outbox: what one event changed, until it is published on the stream CHANGES.

    Attributes:
        reader: name of the reader whose batch contained the event.
        sequence: of the event on STORE; it is unique among the rows.
        collection: that the event changed.
        data: serialized StudyChanged.
    """

    reader: str
    sequence: int
    collection: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """The changes of one group commit.

    Attributes:
        reader: name of the reader whose cursor moves: "all", or the number of a partition; "" if no cursor moves.
        sequence: the cursor after the batch.
        changes: the last change of each SOP Instance UID.
        seen: expected version of each SOP Instance UID, 0 for none. `apply` fails if the store has another version. UIDs that are not
            in `seen` are not compared.
        dead: uploads that are no longer part of the archive; None for uploads that are part of it again.
        packs: keys of packs of which every instance has been announced.
        versions: by collection, the greatest version that `present` returned for an instance of the batch. If the summary of a study in
            the store has an older version, a crash interrupted an earlier batch.
        poison: events that were passed because they cannot be parsed.
        healed: names of poison events that were published again and applied.
        outbox: rows to publish for these changes.
        settling: by Study Instance UID, the sequence of the last upload of a study that has not settled.
        published: sequences of outbox rows, of any reader, that were published and are removed.
        settled: by Study Instance UID, the sequence of the last upload of a study, of any reader, whose settling was published. The study
            is removed from `settling` unless it has a later upload.
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
"""Returns a batch for the present instances and the dead uploads; None if something else must be done first."""


@dataclass(frozen=True, slots=True)
class Page:
    """Rows of a search: DICOM JSON objects with a byte 0x00 in place of the base URL, and the number of further matches."""

    rows: list[bytes]
    remaining: int


@dataclass(frozen=True, slots=True)
class Fragment:
    """DICOM JSON of one instance, or its serialized Location if it is too large for the index store."""

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
    """The searchable copy of a workitem. A deleted one does not match any search."""

    workitem_uid: str
    version: int
    dicom_json: bytes
    deleted: bool = False


class IndexStore(Protocol):
    """Facts about instances, with the sequences of the stream STORE as versions.

    Every method raises `errors.Unavailable` if the store does not answer. A batch may then be applied in part; applying it again completes
    it. When `apply` has returned, its changes are durable, and every read that begins afterwards sees them.
    """

    name: str
    """sqlite or elasticsearch."""

    async def outdated(self) -> str:
        """Return a sentence that says why the store must be reindexed before it can be used; "" if it need not be.

        A store of an older program that cannot be migrated in place is outdated until `swap`. Until then `search`, `records`, `fragments`
        and `tombstones` raise `errors.Unavailable` with that sentence, and nothing may be applied. The methods that a reindex needs work.
        """
        ...

    async def generation(self) -> str:
        """Return the generation of the stream that this store follows; "" if it never followed one."""
        ...

    async def follow(self, generation: str, sequence: int) -> None:
        """Record the generation of the stream and set every cursor to `sequence`, durably."""
        ...

    async def cursor(self, reader: str) -> int:
        """Return the sequence up to which a reader has applied the stream; before its first batch, the sequence that `follow` set."""
        ...

    async def cursors(self, readers: Sequence[str]) -> dict[str, int]:
        """Return the cursors of several readers."""
        ...

    async def high_water(self) -> int:
        """Return the greatest sequence of any cursor."""
        ...

    async def present(self, sop_instance_uids: Sequence[str], places: Sequence[Place]) -> tuple[dict[str, Present], dict[Place, Dead]]:
        """Return the state of these UIDs, including tombstones, and which of these uploads are dead. Unknown ones are omitted."""
        ...

    async def decided(self, sop_instance_uids: Sequence[str], places: Sequence[Place], decide: Decide) -> bool:
        """Call `decide` with the result of `present`, and apply the batch that it returns, as `apply` does.

        Args:
            sop_instance_uids, places: as for `present`.
            decide: must have no side effects on the store; it may be called in another thread.

        Returns:
            Whether `decide` returned a batch.

        Raises:
            errors.Unavailable: as for `apply`. Exceptions of `decide` are raised, too.
        """
        ...

    async def apply(self, batch: Batch) -> None:
        """Apply a batch and move its reader's cursor.

        Applying a batch again, or a batch with changes older than the stored versions, changes nothing. Counts stay exact.
        An attribute of a study or series is the non-empty value of the instance with the smallest SOP Instance UID. Instances of
        non-patient resources create no study and no series.

        Raises:
            errors.Unavailable: also if a version differs from `seen`; then read again and decide again.
            errors.CorruptInstance: the DICOM JSON of a change can never be parsed.
        """
        ...

    async def search(self, query: Query) -> Page:
        """Return the matches: studies by date and time descending, then UID; series and instances by number, then UID.

        A query without a collection searches studies only; instances of a non-patient resource match only if the query names the resource.
        Entities outside `query.visible_studies` neither match nor count.

        Raises:
            errors.PayloadTooLarge: matching keys of another level have more matches than the store can join.
        """
        ...

    def records(self, scope: Scope) -> AsyncIterator[list[bytes]]:
        """Yield serialized InstanceRecords, at most PAGE at a time: series by number then UID, instances by number then UID.

        A non-patient resource has no series: its instances are in order of number, then UID.

        Raises (before the first page):
            errors.NotFound: the scope has no instances, or no visible ones; the message is the same.
            errors.Gone: all instances of the scope were deleted.
        """
        ...

    def fragments(self, scope: Scope) -> AsyncIterator[list[Fragment]]:
        """Yield the metadata of the scope, in the order and with the errors of `records`."""
        ...

    async def state(self, scope: Scope) -> bytes:
        """Return the state tag of a scope, which changes with every change in the scope.

        It is b"" if it would cost about as much as `fragments`, or if nothing is visible. Data that is read afterwards is at least as new
        as the state tag.

        Raises:
            errors.Unavailable: the store does not answer.
        """
        ...

    def tombstones(self, uid: str, visible_studies: frozenset[str] | None = None) -> AsyncIterator[list[Present]]:
        """Yield the tombstones of a study, a series or an instance, at most PAGE at a time.

        Args:
            uid: of the study, series or instance.
            visible_studies: yield only tombstones in these studies; None for all.
        """
        ...

    async def due(self, before_s: int, after_object: str, limit: int) -> list[tuple[Place, Dead]]:
        """Return dead uploads of DUE_KINDS, in order of object and upload name.

        Args:
            before_s: only uploads that were decided before this time, in seconds since 1970 UTC.
            after_object: only uploads whose object has a greater key.
            limit: largest number of uploads.
        """
        ...

    async def unknown_packs(self, objects: Sequence[str]) -> list[str]:
        """Return those of these packs that were in the `packs` of no batch, or of which an event is poison, in the given order."""
        ...

    async def poisoned(self) -> set[str]:
        """Return the names of the poison events that have one."""
        ...

    async def outbox_rows(self, windows: Mapping[str, tuple[int, int]], limit: int) -> list[OutboxRow]:
        """Return rows of the outbox in order of sequence. Rows are written together with their changes, or before them.

        If a crash interrupted a batch and something else was decided afterwards, a row whose changes were not applied has no changes.

        Args:
            windows: by reader, the range of sequences: above the first, up to and including the second.
            limit: largest number of rows.
        """
        ...

    async def settling(self, reader: str) -> dict[str, int]:
        """Return the studies of a reader that have not settled, each with the sequence of its last upload."""
        ...

    async def counts(self) -> Counts:
        """Return the totals."""
        ...

    async def build(self) -> "IndexStore":
        """Create a new, empty index generation. It is not visible before `swap`."""
        ...

    async def swap(self, built: "IndexStore") -> None:
        """Replace the current index generation by `built`. Every read that begins afterwards sees the new one; the old one is deleted.

        The outbox and the studies that have not settled are retained.
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
        """Store documents and move the cursor. A document that is older than the stored one is ignored."""
        ...

    async def clear(self) -> None:
        """Delete all workitems and set the cursor to 0."""
        ...

    async def search(self, query: Query) -> Page:
        """Return what matches, by Scheduled Procedure Step Start DateTime, then UID.

        With `query.visible_studies`, a workitem matches and counts only where it refers to at least one study and to visible ones only.
        """
        ...

    async def close(self) -> None:
        """Give back connections and threads."""
        ...
