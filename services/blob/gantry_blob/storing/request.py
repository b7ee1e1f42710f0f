"""One store request: its parts are scanned while their bytes are written into packs.

The methods of `StoreRequest` block, so `edge.py` calls them in threads. An invalid part does not affect the other parts. Only errors that
affect all parts are raised: no disk space, or a store that does not answer.

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
from gantry_blob.storing.admission import AdmissionPolicy, admit
from gantry_blob.storing.file_from_metadata import Assembly
from gantry_blob.storing.layout import stored_instance
from gantry_blob.storing.metadata_and_bulkdata import BulkPart, MetadataAndBulkdata, part_type
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
"""Number of rewritten bytes above which they are written to a temporary file until their instance has ended."""


StoreMessage = blob_pb2.StoreInstancesRequest | memoryview
"""A message of a store request; a memoryview is a chunk."""


@dataclass(frozen=True)
class StoreRules:
    """Limits and options of store requests.

    Attributes:
        pack: when a pack is closed.
        scan: limits of one instance.
        accept_private_sop_classes: accept private SOP classes, and SOP classes that are not in our edition of PS3.6.
        most_parts: largest number of parts of one request, including the data sets of its metadata parts.
        spool_directory: directory of temporary files; None for the system's directory.
        spool_reserve: fraction of its file system that stored bulkdata must leave free, 0 to 1.
        coerce: changes attributes of a data set (`coercion.py`); None for no coercion.
        second_reader_bytes: largest part in bytes that the second reader tries; 0 switches it off.
        second_reader_parts: largest number of parts of one request that the second reader tries; further inconsistent parts fail.
        second_reader_budget_s: seconds for the second reader per request, including waiting; further inconsistent parts fail.
    """

    pack: PackLimits = field(default_factory=PackLimits)
    scan: Limits = field(default_factory=Limits)
    accept_private_sop_classes: bool = True
    most_parts: int = 100_000
    spool_directory: Path | None = None
    spool_reserve: float = 0.0
    coerce: Callable[[Elements], Elements | None] | None = None
    second_reader_bytes: int = 64 << 20
    second_reader_parts: int = 1000
    second_reader_budget_s: float = 60.0


@dataclass(frozen=True)
class SecondReading:
    """A file that the second reader must try before a request can continue: it reads `source` and writes `target` within `within_s`."""

    source: Path
    target: Path
    within_s: float


class Part:
    """A PS3.10 part while its bytes arrive.

    Args:
        number: of the part within the request, from 0.
        offset: in the pack at which the part begins.
        rules: of the request.
        resource: the non-patient resource that the part is stored into; "" for a study.

    Attributes:
        failure: why the part will not be stored; None as long as it may be.
        scanned: the result of the scan; None before it has succeeded.
        second_file: the file of the second reader, which was scanned instead of an inconsistent part; else None.
    """

    def __init__(self, number: int, offset: int, rules: StoreRules, resource: str = "") -> None:
        self.number = number
        self.offset = offset
        self.failure: ScanFailure | None = None
        self.is_finished = False
        self.scanned: ScannedInstance | None = None
        self.second_file: IO[bytes] | None = None
        self._rules = rules
        self._resource = resource
        self._rewritten_bytes: tempfile.SpooledTemporaryFile[bytes] | None = None
        self._scanner = Scanner(self._write_rewritten, rules.scan, rules.coerce, resource)
        self._held = second_reader.Held(rules.second_reader_bytes, rules.spool_directory)

    def _write_rewritten(self, data: bytes | memoryview) -> None:
        if self._rewritten_bytes is None:
            directory = str(self._rules.spool_directory) if self._rules.spool_directory else None
            self._rewritten_bytes = tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=directory)  # noqa: SIM115 close() closes it
        self._rewritten_bytes.write(data)

    def _discard_rewritten(self) -> None:
        if self._rewritten_bytes is not None:
            self._rewritten_bytes.close()
            self._rewritten_bytes = None

    def feed(self, chunk: bytes | memoryview) -> None:
        """Scan the next bytes. A failure is recorded in `failure`."""
        self._guarded(lambda: self._scanner.feed(chunk))
        if self.failure is None or isinstance(self.failure, BrokenStructure):
            self._held.take(chunk, is_needed=self.failure is not None)
        else:
            self._held.forget()

    def assemble(self, chunks: Iterator[bytes], write: Callable[[bytes], None]) -> None:
        """Scan and write a part that blob has built itself. `chunks` may raise ScanFailure. The second reader is not tried."""
        self._held.forget()

        def assembling() -> None:
            for chunk in chunks:
                self._scanner.feed(chunk)
                write(chunk)

        self._guarded(assembling)

    def finish(self, policy: AdmissionPolicy) -> None:
        """End the scan and check whether the instance may be stored. A failure is recorded in `failure`."""
        if not self.is_finished:
            self.is_finished = True
            self._guarded(lambda: self._conclude(self._scanner.finish(), policy))

    def begin_second_reading(self) -> tuple[Path, Path] | None:
        """Return the file that the second reader shall read and the one that it shall write; None if it is not to be tried."""
        if not isinstance(self.failure, BrokenStructure) or (whole := self._held.whole()) is None:
            return None
        self.second_file = second_reader.named_temporary(self._rules.spool_directory)
        return whole, Path(self.second_file.name)

    def end_second_reading(self, policy: AdmissionPolicy) -> None:
        """Scan the file that the second reader has written, instead of the part."""
        failure = self.failure
        assert isinstance(failure, BrokenStructure)
        self.failure = None
        self._guarded(lambda: self._scan_second_file(failure, policy))

    def _conclude(self, scanned: ScannedInstance, policy: AdmissionPolicy) -> None:
        admit(scanned, policy)
        self.scanned = scanned

    def _scan_second_file(self, failure: ScanFailure, policy: AdmissionPolicy) -> None:
        """Scan the file that the second reader has written.

        Raises:
            ScanFailure: its structure is invalid as well (`failure` is raised), or it may not be stored.
        """
        uploaded = self._held.whole()
        assert uploaded is not None
        self._discard_rewritten()
        scanner = Scanner(self._write_rewritten, self._rules.scan, self._rules.coerce, self._resource)
        try:
            for chunk in self.second_file_chunks():
                scanner.feed(chunk)
            scanned = scanner.finish()
        except BrokenStructure:
            raise failure from None
        identity = second_reader.identify(uploaded, self._rules.scan)
        warned = dict.fromkeys((*scanned.warning_reasons, reasons.DATA_SET_DOES_NOT_MATCH_SOP_CLASS_WARNING))
        self._conclude(
            replace(
                scanned,
                transfer_syntax_uid=identity.transfer_syntax_uid or scanned.transfer_syntax_uid,
                length=identity.length,
                head_length=identity.head_length,
                head_digest=identity.head_digest,
                dataset_digest=identity.dataset_digest,
                warning_reasons=tuple(warned),
            ),
            policy,
        )

    def uploaded(self) -> Iterator[bytes]:
        """Yield the bytes of the part as the client sent them. Only if `second_file` is set."""
        whole = self._held.whole()
        assert whole is not None
        with whole.open("rb") as file:
            yield from _chunks(file)

    def second_file_chunks(self) -> Iterator[bytes]:
        """Yield the file of the second reader, which was scanned instead of the part."""
        assert self.second_file is not None
        self.second_file.seek(0)
        return _chunks(self.second_file)

    def _guarded(self, step: Callable[[], None]) -> None:
        if self.failure is None:
            self.failure = failure_of(step)

    def rewritten_bytes(self) -> Iterator[bytes]:
        """Yield the rewritten bytes of the scan."""
        if self._rewritten_bytes is None:
            return iter(())
        self._rewritten_bytes.seek(0)
        return _chunks(self._rewritten_bytes)

    def close(self) -> None:
        """Discard all temporary data."""
        self._discard_rewritten()
        self._held.forget()
        if self.second_file is not None:
            self.second_file.close()


def failure_of(step: Callable[[], None]) -> ScanFailure | None:
    """Run one step for one part; return why the part fails, or None.

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
        # A programming error in the scan must not affect the other parts. Its message may contain patient data and is not logged.
        where = traceback.extract_tb(error.__traceback__)[-1]
        log.error("scan failed", extra={"error": type(error).__name__, "file": where.filename, "line": where.lineno})
        return ScanFailure("the instance could not be scanned", reasons.PROCESSING_FAILURE)
    return None


def _chunks(file: "IO[bytes] | tempfile.SpooledTemporaryFile[bytes]") -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


class StoreRequest:
    """The state of one store request. Its methods block, and exclude each other.

    Raises:
        errors.NotFound: the caller may not see the collection of the request.
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
        self._payload: MetadataAndBulkdata | None = None
        self._spool: Spool | None = None
        self._is_in_payload = False
        self._numbers = 0
        self._coming: Iterator[StoreMessage] = iter(())
        self._held_back: StoreMessage | None = None
        """The message that is handled after the second reader has ended; None if the request does not wait for it."""
        self._second_reads = 0
        self._second_reader_s = rules.second_reader_budget_s
        self._is_aborted = False
        self._is_cancelled = False

    def apply(self, messages: Iterable[StoreMessage]) -> SecondReading | None:
        """Handle the next messages of the stream.

        Returns:
            A file that the second reader must try before the request continues with `resume`; None if all messages were handled.

        Raises:
            errors.BadRequest: the messages are not in the order that `blob.proto` defines.
            errors.PayloadTooLarge: there are too many parts.
            errors.OutOfResources, errors.Unavailable: of the object store; no instance of the request can be stored.
        """
        with self._lock:
            self._coming = iter(messages)
            return self._go_on()

    def resume(self, is_readable: bool, took_s: float) -> SecondReading | None:
        """Continue after the second reader has ended. Returns and raises the same as `apply`.

        Args:
            is_readable: whether the second reader accounts for every byte.
            took_s: seconds since `apply` or `resume` returned, which are subtracted from the budget of the request.
        """
        with self._lock:
            self._second_reader_s -= took_s
            held_back, self._held_back = self._held_back, None
            if self._is_aborted or self._part is None or held_back is None:
                return None
            if is_readable:
                self._part.end_second_reading(self._policy)
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
        """Return the file that the second reader shall try, if the message ends an inconsistent part; else None."""
        if self._part is None or self._is_in_payload or not (message.HasField("part") or message.HasField("end")):
            return None
        self._part.finish(self._policy)
        if self._second_reads >= self._rules.second_reader_parts or self._second_reader_s <= 0:
            return None
        files = self._part.begin_second_reading()
        if files is None:
            return None
        self._second_reads += 1
        return SecondReading(*files, self._second_reader_s)

    @property
    def _policy(self) -> AdmissionPolicy:
        return AdmissionPolicy(self._start.collection, self._rules.accept_private_sop_classes, self._caller)

    def _take(self, message: StoreMessage) -> None:
        if isinstance(message, memoryview):
            if self.is_ended:
                raise errors.BadRequest("a store request had a chunk after its end")
            self._feed(message)
            return
        kind = message.WhichOneof("message")
        if self.is_ended or kind == "start" or kind is None:
            raise errors.BadRequest(f"a store request had the message {kind} at a position where it is not allowed")
        if kind == "part":
            self._end_part()
            self._count(message.part.part_number)
            if part_type(message.part.content_type).media_type == DICOM:
                self._begin_part(message.part.part_number)
            else:
                self._metadata_and_bulkdata().begin(message.part)
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

    def _metadata_and_bulkdata(self) -> MetadataAndBulkdata:
        if self._payload is None:
            self._spool = Spool(self._rules.spool_directory, self._rules.spool_reserve)
            self._payload = MetadataAndBulkdata(self._spool, self._start.request_uri, self._rules.scan)
        return self._payload

    def _end_payload_part(self, payload: MetadataAndBulkdata) -> None:
        self._is_in_payload = False
        failure = failure_of(payload.end)
        if failure is not None:
            self.results.append(_failed(self._numbers - 1, failure))

    def _assemble(self, payload: MetadataAndBulkdata) -> None:
        """Make files of the data sets that were sent as metadata, as if they had been uploaded; then tell which bulkdata nobody wanted."""
        for pending in payload.data_sets:
            self._count(self._numbers)
            self._begin_part(self._numbers - 1)
            part, pack = self._part, self._pack
            assert part is not None
            assert pack is not None
            assembly = Assembly(pending.load(), pending.transfer_syntax_uid, payload, self._rules.scan.depth, pending.failure)
            part.assemble(self._until_cancelled(assembly.chunks()), pack.write)
            self._end_part()
        for bulk in payload.unused():
            self.results.append(_failed(bulk.number, bulk.failure or _not_referenced(bulk)))
        self._close_spool()

    def _until_cancelled(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            if self._is_cancelled:
                raise errors.Unavailable("the store request was cancelled while its files were built")
            yield chunk

    def _begin_part(self, number: int) -> None:
        if self._pack is not None and self._pack.is_full(self._rules.pack):
            self._pack.seal()
            self._pack.flush()
            self._sealed.append(self._pack)
            # Its events are later built from its trailer, so that memory does not grow with the number of packs.
            self._pack = self._events = None
        if self._pack is None:
            self._pack = PackWriter(self._store.create(new_key()), self._start.request_id)
            self._events = PackEvents(self._pack.key)
        self._part = Part(number, self._pack.position, self._rules, self._resource)

    def _feed(self, chunk: bytes | memoryview) -> None:
        if self._is_in_payload:
            self._metadata_and_bulkdata().feed(chunk)
            return
        if self._part is None or self._pack is None:
            raise errors.BadRequest("a store request had a chunk before its first part")
        self._part.feed(chunk)
        if self._part.failure is None:
            self._pack.write(chunk)

    def _end_part(self) -> None:
        if self._is_in_payload:
            self._end_payload_part(self._metadata_and_bulkdata())
        part, self._part = self._part, None
        if part is None:
            return
        try:
            part.finish(self._policy)
            self.results.append(self._keep(part) if part.failure is None else _failed(part.number, part.failure))
        finally:
            part.close()

    def _keep(self, part: Part) -> blob_pb2.PartResult:
        """Write the remaining bytes of an instance into the pack, and add it to the trailer."""
        pack, events, scanned = self._pack, self._events, part.scanned
        assert pack is not None
        assert events is not None
        assert scanned is not None
        uploaded = original = part.offset
        if part.second_file is not None:
            # The pack has the part only up to the failure of the scan. Write the whole part, then the file of the second reader.
            uploaded = _append(pack, part.uploaded())
            original = _append(pack, part.second_file_chunks())
        rewritten_bytes = _append(pack, part.rewritten_bytes())
        instance = stored_instance(scanned, part.number, pack.key, original, rewritten_bytes, uploaded)
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
        """Make all packs durable. Return their keys, each with its events or None if they must be built from the trailer.

        Raises:
            errors.BadRequest: the stream has ended without the message `end`.
            errors.OutOfResources, errors.Unavailable: of the object store. Packs that are durable by then will be announced later.
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
        """Discard uncommitted packs. Block until the running call stops."""
        self._is_cancelled = True
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
    """Return the non-patient resource that a request stores into; "" if it stores into studies.

    Raises:
        errors.BadRequest: the collection is neither a study nor a resource.
    """
    if not collection or is_study(collection):
        return ""
    if collection not in NON_PATIENT_COLLECTIONS:
        raise errors.BadRequest(f"there is no resource {collection[:64]!r}")
    return collection


def _not_referenced(bulk: BulkPart) -> ScanFailure:
    return ScanFailure(f"no BulkDataURI refers to this part of type {bulk.type.media_type}", reasons.BULKDATA_NOT_REFERENCED)


def _append(pack: PackWriter, chunks: Iterable[bytes]) -> int:
    """Write chunks into a pack; return the offset of the first."""
    at = pack.position
    for chunk in chunks:
        pack.write(chunk)
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
