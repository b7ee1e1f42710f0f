"""One store request: its parts are scanned while their bytes pass into packs.

`Upload` blocks and belongs into a thread; `edge.py` feeds it. One bad part never fails the others; what fails all of them (no room, the
store does not answer) is raised.

Source: PS3.18 §10.5, Annex I.
"""

import logging
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from gantry.blob.v1 import blob_pb2
from gantry_blob.packs.announcement import PackEvents
from gantry_blob.packs.pack import PackLimits, PackWriter, new_key
from gantry_blob.stores.port import ObjectStore
from gantry_blob.storing import second_reader
from gantry_blob.storing.admission import Terms, admit
from gantry_blob.storing.file_from_metadata import Assembly
from gantry_blob.storing.layout import stored_instance
from gantry_blob.storing.payload_parts import BulkPart, PayloadParts, part_type
from gantry_blob.storing.spool import Spool
from gantry_runtime import telemetry
from gantry_runtime.callers import ANONYMOUS, Caller
from gantry_runtime.rpc.channels import CHUNK_BYTES
from gantry_runtime.stored_instances import INLINE_JSON_BYTES
from gantry_standard import errors, reasons
from gantry_standard.dicom.collections import NON_PATIENT_COLLECTIONS, is_study
from gantry_standard.dicom.elements import Elements
from gantry_standard.dicom.limits import BrokenStructure, Limits, ScanFailure
from gantry_standard.dicom.scan import Scanner
from gantry_standard.dicom.scanned import ScannedInstance
from gantry_standard.http.media_types import DICOM

log = logging.getLogger(__name__)

SPOOL_BYTES = 1 << 20
"""A rendition above this waits in a temporary file until its instance has ended."""


UploadMessage = blob_pb2.StoreInstancesRequest | memoryview
"""A message of a store request; a memoryview is a chunk."""


@dataclass(frozen=True)
class StoreRules:
    """What a store request may do.

    Attributes:
        accept_private_sop_classes: take private SOP classes and ones that PS3.6 did not know yet.
        most_parts: of one request, and data sets of its metadata parts.
        spool_directory: of temporary files; None: that of the system.
        spool_reserve: part of its file system that bulkdata which waits leaves free, 0 to 1.
        coerce: changes attributes of a data set (`coercion.py`); None: nothing does.
        fallback_bytes: largest part that a second reader is tried on; 0: none.
        fallback_parts: of one request that it is tried on; further ones fail.
        fallback_budget_s: seconds that the second reader has for all parts of one request, waiting included; further ones fail.
    """

    pack: PackLimits = field(default_factory=PackLimits)
    scan: Limits = field(default_factory=Limits)
    accept_private_sop_classes: bool = True
    most_parts: int = 100_000
    spool_directory: Path | None = None
    spool_reserve: float = 0.0
    coerce: Callable[[Elements], Elements | None] | None = None
    fallback_bytes: int = 64 << 20
    fallback_parts: int = 1000
    fallback_budget_s: float = 60.0


@dataclass(frozen=True)
class SecondReading:
    """What an upload waits for: a second reader reads `source`, writes `target`, within so many seconds."""

    source: Path
    target: Path
    within_s: float


class Part:
    """A part while its bytes come. `failure` is set as soon as it is known that it will not be stored.

    `resource` is the non-patient resource that it goes to, "" for a study.
    `rewritten` is the file that was scanned instead where the scan did not understand the part and the second reader did; else None.
    """

    def __init__(self, number: int, offset: int, rules: StoreRules, resource: str = "") -> None:
        self.number = number
        self.offset = offset
        self.failure: ScanFailure | None = None
        self.is_finished = False
        self.scanned: ScannedInstance | None = None
        self.rewritten: IO[bytes] | None = None
        self._rules = rules
        self._resource = resource
        self._rendition: tempfile.SpooledTemporaryFile[bytes] | None = None
        self._scanner = Scanner(self._write_rendition, rules.scan, rules.coerce, resource)
        self._held = second_reader.Held(rules.fallback_bytes, rules.spool_directory)

    def _write_rendition(self, data: bytes | memoryview) -> None:
        if self._rendition is None:
            directory = str(self._rules.spool_directory) if self._rules.spool_directory else None
            self._rendition = tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=directory)  # noqa: SIM115 close() closes it
        self._rendition.write(data)

    def _forget_rendition(self) -> None:
        if self._rendition is not None:
            self._rendition.close()
            self._rendition = None

    def feed(self, chunk: bytes | memoryview) -> None:
        """Scan the next bytes."""
        self._guarded(lambda: self._scanner.feed(chunk))
        if self.failure is None or isinstance(self.failure, BrokenStructure):
            self._held.take(chunk, is_needed=self.failure is not None)
        else:
            self._held.forget()

    def assemble(self, pieces: Iterator[bytes], write: Callable[[bytes], None]) -> None:
        """Take the part from a stream of ours that may fail instead of from a client; no second reader is tried on it."""
        self._held.forget()

        def assembling() -> None:
            for piece in pieces:
                self._scanner.feed(piece)
                write(piece)

        self._guarded(assembling)

    def finish(self, terms: Terms) -> None:
        """Conclude the scan and look whether the instance may be stored here."""
        if not self.is_finished:
            self.is_finished = True
            self._guarded(lambda: self._conclude(self._scanner.finish(), terms))

    def begin_second_reading(self) -> tuple[Path, Path] | None:
        """Return the file that a second reader may try and the one that it shall write; None where it is not to be tried."""
        if not isinstance(self.failure, BrokenStructure) or (whole := self._held.whole()) is None:
            return None
        self.rewritten = second_reader.named_temporary(self._rules.spool_directory)
        return whole, Path(self.rewritten.name)

    def end_second_reading(self, terms: Terms) -> None:
        """Take what the second reader has written instead of the part."""
        failure = self.failure
        assert isinstance(failure, BrokenStructure)
        self.failure = None
        self._guarded(lambda: self._scan_rewritten(failure, terms))

    def _conclude(self, scanned: ScannedInstance, terms: Terms) -> None:
        admit(scanned, terms)
        self.scanned = scanned

    def _scan_rewritten(self, failure: ScanFailure, terms: Terms) -> None:
        """Scan what a second reader made of the part.

        Raises:
            ScanFailure: its structure is broken too (`failure`), or it may not be stored.
        """
        uploaded = self._held.whole()
        assert uploaded is not None
        self._forget_rendition()
        scanner = Scanner(self._write_rendition, self._rules.scan, self._rules.coerce, self._resource)
        try:
            for piece in self.rewritten_file():
                scanner.feed(piece)
            scanned = scanner.finish()
        except BrokenStructure:
            raise failure from None
        told = second_reader.identify(uploaded, self._rules.scan)
        warned = dict.fromkeys((*scanned.warning_reasons, reasons.DATA_SET_DOES_NOT_MATCH_SOP_CLASS_WARNING))
        self._conclude(
            replace(
                scanned,
                transfer_syntax_uid=told.transfer_syntax_uid or scanned.transfer_syntax_uid,
                length=told.length,
                head_length=told.head_length,
                head_digest=told.head_digest,
                dataset_digest=told.dataset_digest,
                warning_reasons=tuple(warned),
            ),
            terms,
        )

    def uploaded(self) -> Iterator[bytes]:
        """Yield the bytes of the part as they were sent, where `rewritten` is set."""
        whole = self._held.whole()
        assert whole is not None
        with whole.open("rb") as file:
            yield from _pieces(file)

    def rewritten_file(self) -> Iterator[bytes]:
        """Yield the file that was scanned instead."""
        assert self.rewritten is not None
        self.rewritten.seek(0)
        return _pieces(self.rewritten)

    def _guarded(self, step: Callable[[], None]) -> None:
        if self.failure is None:
            self.failure = failure_of(step)

    def rendition(self) -> Iterator[bytes]:
        """Yield the bytes that the scan made."""
        if self._rendition is None:
            return iter(())
        self._rendition.seek(0)
        return _pieces(self._rendition)

    def close(self) -> None:
        """Forget all temporary bytes."""
        self._forget_rendition()
        self._held.forget()
        if self.rewritten is not None:
            self.rewritten.close()


def failure_of(step: Callable[[], None]) -> ScanFailure | None:
    """Do one step for one part; return why the part fails, None where it does not.

    Raises:
        errors.RetryLater, OSError: the whole request fails.
    """
    try:
        step()
    except ScanFailure as failure:
        return failure
    except (errors.RetryLater, OSError):
        raise
    except Exception as error:
        # A fault of the scan must not fail the other parts. Its message could hold values of the data set: not logged.
        where = traceback.extract_tb(error.__traceback__)[-1]
        log.error("scan failed", extra={"error": type(error).__name__, "file": where.filename, "line": where.lineno})
        return ScanFailure("the instance could not be scanned", reasons.PROCESSING_FAILURE)
    return None


def _pieces(file: "IO[bytes] | tempfile.SpooledTemporaryFile[bytes]") -> Iterator[bytes]:
    while piece := file.read(CHUNK_BYTES):
        yield piece


class Upload:
    """The state of one request. Its methods block; they exclude each other.

    Raises:
        errors.NotFound: it is for a collection that the caller may not see.
        errors.BadRequest: there is no such collection.
    """

    def __init__(self, store: ObjectStore, start: blob_pb2.StoreStart, rules: StoreRules, caller: Caller = ANONYMOUS) -> None:
        self._resource = _resource_of(start.collection)
        if start.collection and not caller.may_see(start.collection):
            raise errors.NotFound(f"{self._resource or 'study ' + start.collection} is not here")
        self.results: list[blob_pb2.PartResult] = []
        self.is_ended = False
        self._store = store
        self._start = start
        self._caller = caller
        self._rules = rules
        self._lock = threading.Lock()
        self._part: Part | None = None
        self._pack: PackWriter | None = None
        self._events: PackEvents | None = None
        self._sealed: list[PackWriter] = []
        self._payload: PayloadParts | None = None
        self._spool: Spool | None = None
        self._is_in_payload = False
        self._numbers = 0
        self._coming: Iterator[UploadMessage] = iter(())
        self._held_back: UploadMessage | None = None
        """Message at which the upload waits for a second reader."""
        self._fallbacks = 0
        self._fallback_s = rules.fallback_budget_s
        self._is_aborted = False
        self._is_unwanted = False

    def apply(self, messages: Iterable[UploadMessage]) -> SecondReading | None:
        """Take the next messages of the stream.

        Returns:
            What a second reader shall read before the upload can go on with `resume`; None when all messages are taken.

        Raises:
            errors.BadRequest: they come in another order than `blob.proto` says.
            errors.PayloadTooLarge: too many parts.
            errors.OutOfResources, errors.Unavailable: of the object store; nothing of the request can be stored.
        """
        with self._lock:
            self._coming = iter(messages)
            return self._go_on()

    def resume(self, is_readable: bool, took_s: float) -> SecondReading | None:
        """Go on after a second reader was tried; returns and raises as `apply`.

        Args:
            is_readable: whether it accounts for every byte of what it was given.
            took_s: seconds since `apply` or `resume` returned, which count towards the budget of the request.
        """
        with self._lock:
            self._fallback_s -= took_s
            held_back, self._held_back = self._held_back, None
            if self._is_aborted or self._part is None or held_back is None:
                return None
            if is_readable:
                self._part.end_second_reading(self._terms)
            self._take(held_back)
            return self._go_on()

    def _go_on(self) -> SecondReading | None:
        for message in self._coming:
            if self._is_aborted:
                return None
            if not isinstance(message, memoryview) and (reading := self._second_reading(message)):
                self._held_back = message
                return reading
            self._take(message)
        return None

    def _second_reading(self, message: blob_pb2.StoreInstancesRequest) -> SecondReading | None:
        """Return what a second reader shall read, where a message ends a part that the scan did not understand."""
        if self._part is None or self._is_in_payload or not (message.HasField("part") or message.HasField("end")):
            return None
        self._part.finish(self._terms)
        if self._fallbacks >= self._rules.fallback_parts or self._fallback_s <= 0:
            return None
        files = self._part.begin_second_reading()
        if files is None:
            return None
        self._fallbacks += 1
        return SecondReading(*files, self._fallback_s)

    @property
    def _terms(self) -> Terms:
        return Terms(self._start.collection, self._rules.accept_private_sop_classes, self._caller)

    def _take(self, message: UploadMessage) -> None:
        if isinstance(message, memoryview):
            if self.is_ended:
                raise errors.BadRequest("a store request had a chunk after its end")
            self._feed(message)
            return
        kind = message.WhichOneof("message")
        if self.is_ended or kind == "start" or kind is None:
            raise errors.BadRequest(f"a store request had {kind} where it may not be")
        if kind == "part":
            self._end_part()
            self._count(message.part.part_number)
            if part_type(message.part.content_type).media_type == DICOM:
                self._begin_part(message.part.part_number)
            else:
                self._payload_parts().begin(message.part)
                self._is_in_payload = True
        elif kind == "chunk":
            self._feed(message.chunk)
        else:
            self._end_part()
            if self._payload is not None:
                self._assemble(self._payload)
            self.results.sort(key=lambda result: result.part_number)
            self.is_ended = True

    def _count(self, number: int) -> None:
        if number >= self._rules.most_parts:
            raise errors.PayloadTooLarge(f"a store request has at most {self._rules.most_parts} parts and data sets")
        self._numbers = number + 1

    def _payload_parts(self) -> PayloadParts:
        if self._payload is None:
            self._spool = Spool(self._rules.spool_directory, self._rules.spool_reserve)
            self._payload = PayloadParts(self._spool, self._start.request_uri, self._rules.scan)
        return self._payload

    def _end_payload_part(self, payload: PayloadParts) -> None:
        self._is_in_payload = False
        failure = failure_of(payload.end)
        if failure is not None:
            self.results.append(_failed(self._numbers - 1, failure))

    def _assemble(self, payload: PayloadParts) -> None:
        """Make files of the data sets that were sent as metadata, as if they had been uploaded; then tell which bulkdata nobody wanted."""
        for pending in payload.data_sets:
            self._count(self._numbers)
            self._begin_part(self._numbers - 1)
            part, pack = self._part, self._pack
            assert part is not None
            assert pack is not None
            assembly = Assembly(pending.load(), pending.transfer_syntax_uid, payload, self._rules.scan.depth, pending.failure)
            part.assemble(self._while_wanted(assembly.pieces()), pack.write)
            self._end_part()
        for bulk in payload.unused():
            self.results.append(_failed(bulk.number, bulk.failure or _not_referenced(bulk)))
        self._close_spool()

    def _while_wanted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if self._is_unwanted:
                raise errors.Unavailable("the store was given up while its files were made")
            yield piece

    def _begin_part(self, number: int) -> None:
        if self._pack is not None and self._pack.is_full(self._rules.pack):
            self._pack.seal()
            self._pack.flush()
            self._sealed.append(self._pack)
            # The trailer is in the pack: its events are made from there, so that memory does not grow with the number of packs.
            self._pack = self._events = None
        if self._pack is None:
            self._pack = PackWriter(self._store.create(new_key()), self._start.request_id)
            self._events = PackEvents(self._pack.key)
        self._part = Part(number, self._pack.position, self._rules, self._resource)

    def _feed(self, chunk: bytes | memoryview) -> None:
        if self._is_in_payload:
            self._payload_parts().feed(chunk)
            return
        if self._part is None or self._pack is None:
            raise errors.BadRequest("a store request had a chunk before its first part")
        self._part.feed(chunk)
        if self._part.failure is None:
            self._pack.write(chunk)

    def _end_part(self) -> None:
        if self._is_in_payload:
            self._end_payload_part(self._payload_parts())
        part, self._part = self._part, None
        if part is None:
            return
        try:
            part.finish(self._terms)
            self.results.append(self._keep(part) if part.failure is None else _failed(part.number, part.failure))
        finally:
            part.close()

    def _keep(self, part: Part) -> blob_pb2.PartResult:
        """Append what belongs to the instance, and name it in the trailer."""
        pack, events, scanned = self._pack, self._events, part.scanned
        assert pack is not None
        assert events is not None
        assert scanned is not None
        uploaded = original = part.offset
        if part.rewritten is not None:
            # The pack holds the part up to where the scan gave up; it goes in again as a whole, then what was scanned instead.
            uploaded = _append(pack, part.uploaded())
            original = _append(pack, part.rewritten_file())
        rendition = _append(pack, part.rendition())
        instance = stored_instance(scanned, part.number, pack.key, original, rendition, uploaded)
        if len(scanned.dicom_json) <= INLINE_JSON_BYTES:
            instance.dicom_json = scanned.dicom_json
        else:
            location = blob_pb2.Location(object=pack.key, offset=pack.position, length=len(scanned.dicom_json))
            instance.dicom_json_location.CopyFrom(location)
            pack.write(scanned.dicom_json)
        events.add(instance, pack.add(instance))
        return blob_pb2.PartResult(
            part_number=part.number,
            study_instance_uid=instance.study_instance_uid,
            series_instance_uid=instance.series_instance_uid,
            sop_class_uid=instance.sop_class_uid,
            sop_instance_uid=instance.sop_instance_uid,
            warning_reasons=instance.warning_reasons,
            original_attributes=scanned.original_attributes,
        )

    def commit(self) -> list[tuple[str, PackEvents | None]]:
        """Make all packs durable; return their keys, with their events where they are still known.

        Raises:
            errors.OutOfResources, errors.Unavailable: of the object store; what is durable by then will be announced later.
        """
        with self._lock:
            if not self.is_ended or self._is_aborted:
                raise errors.BadRequest("a store request ended without its end")
            if self._pack is not None and self._pack.instances:
                self._pack.seal()
            committed: list[tuple[str, PackEvents | None]] = []
            for pack in [*self._sealed, self._pack]:
                if pack is not None and pack.instances:
                    pack.commit()
                    telemetry.PACK_BYTES.inc(pack.position)
                    committed.append((pack.key, self._events if pack is self._pack else None))
                elif pack is not None:
                    pack.abort()
            return committed

    def _close_spool(self) -> None:
        if self._spool is not None:
            self._spool.close()

    def abort(self) -> None:
        """Leave nothing of what is not committed. Waits for the method that is running, which hurries."""
        self._is_unwanted = True
        with self._lock:
            self._is_aborted = True
            self._close_spool()
            if self._part is not None:
                self._part.close()
                self._part = None
            for pack in [*self._sealed, self._pack]:
                if pack is not None:
                    pack.abort()


def _resource_of(collection: str) -> str:
    """Return the non-patient resource that a request stores into, "" where it stores into studies.

    Raises:
        errors.BadRequest: the collection is neither a study nor a resource.
    """
    if not collection or is_study(collection):
        return ""
    if collection not in NON_PATIENT_COLLECTIONS:
        raise errors.BadRequest(f"there is no resource {collection[:64]!r}")
    return collection


def _not_referenced(bulk: BulkPart) -> ScanFailure:
    return ScanFailure(f"a part of {bulk.type.media_type} that no BulkDataURI refers to", reasons.BULKDATA_NOT_REFERENCED)


def _append(pack: PackWriter, pieces: Iterable[bytes]) -> int:
    """Write pieces into a pack; return the offset of the first."""
    at = pack.position
    for piece in pieces:
        pack.write(piece)
    return at


def _failed(number: int, failure: ScanFailure) -> blob_pb2.PartResult:
    telemetry.INSTANCES_FAILED.labels(f"{failure.reason:04X}").inc()
    return blob_pb2.PartResult(
        part_number=number,
        study_instance_uid=failure.study_instance_uid,
        series_instance_uid=failure.series_instance_uid,
        sop_class_uid=failure.sop_class_uid,
        sop_instance_uid=failure.sop_instance_uid,
        failure_reason=failure.reason,
        explanation=failure.message,
    )
