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
from dataclasses import dataclass, field
from pathlib import Path

from gantry.blob.v1 import blob_pb2
from gantry_blob.announcement import PackEvents
from gantry_blob.layout import stored_instance
from gantry_blob.object_store import ObjectStore
from gantry_blob.pack import INLINE_JSON_BYTES, PackLimits, PackWriter, new_key
from gantry_runtime import telemetry
from gantry_runtime.rpc import CHUNK_BYTES
from gantry_standard import errors, reasons
from gantry_standard.limits import Limits, ScanFailure
from gantry_standard.scan import Scanner
from gantry_standard.scanned import ScannedInstance
from gantry_standard.sop_classes import is_storage_sop_class

log = logging.getLogger(__name__)

SPOOL_BYTES = 1 << 20
"""A rendition above this waits in a temporary file until its instance has ended."""


@dataclass(frozen=True)
class StoreRules:
    """What a store request may do.

    Attributes:
        accept_private_sop_classes: take private SOP classes and ones that PS3.6 did not know yet.
        most_parts: of one request.
        spool_directory: of temporary files; None: that of the system.
    """

    pack: PackLimits = field(default_factory=PackLimits)
    scan: Limits = field(default_factory=Limits)
    accept_private_sop_classes: bool = True
    most_parts: int = 100_000
    spool_directory: Path | None = None


class Part:
    """A part while its bytes come. `failure` is set as soon as it is known that it will not be stored."""

    def __init__(self, number: int, offset: int, rules: StoreRules) -> None:
        self.number = number
        self.offset = offset
        self.failure: ScanFailure | None = None
        self.scanned: ScannedInstance | None = None
        self._rendition = tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(rules.spool_directory) if rules.spool_directory else None)  # noqa: SIM115 closed by `close`
        self._scanner = Scanner(self._write_rendition, rules.scan)

    def _write_rendition(self, data: bytes | memoryview) -> None:
        self._rendition.write(data)

    def feed(self, chunk: bytes) -> None:
        """Scan the next bytes."""
        self._guarded(lambda: self._scanner.feed(chunk))

    def finish(self, study_instance_uid: str, accept_private: bool) -> None:
        """Conclude the scan and look whether the instance may be stored here."""

        def finishing() -> None:
            self.scanned = scanned = self._scanner.finish()
            if study_instance_uid and scanned.study_instance_uid != study_instance_uid:
                raise _refused(
                    scanned,
                    reasons.DATA_SET_DOES_NOT_MATCH,
                    f"Study Instance UID is {scanned.study_instance_uid}, expected {study_instance_uid}",
                )
            if not is_storage_sop_class(scanned.sop_class_uid, accept_private):
                raise _refused(scanned, reasons.SOP_CLASS_NOT_SUPPORTED, f"SOP class {scanned.sop_class_uid} is not stored here")

        self._guarded(finishing)

    def _guarded(self, step: Callable[[], None]) -> None:
        if self.failure is not None:
            return
        try:
            step()
        except ScanFailure as failure:
            self.failure = failure
        except (errors.RetryLater, OSError):
            raise
        except Exception as error:
            # A fault of the scan must not fail the other parts. Its message could hold values of the data set: not logged.
            where = traceback.extract_tb(error.__traceback__)[-1]
            log.error("scan failed", extra={"error": type(error).__name__, "file": where.filename, "line": where.lineno})
            self.failure = ScanFailure("the instance could not be scanned", reasons.PROCESSING_FAILURE)

    def rendition(self) -> Iterator[bytes]:
        """Yield the bytes that the scan made."""
        self._rendition.seek(0)
        while piece := self._rendition.read(CHUNK_BYTES):
            yield piece

    def close(self) -> None:
        """Forget the rendition."""
        self._rendition.close()


def _refused(scanned: ScannedInstance, reason: int, message: str) -> ScanFailure:
    return ScanFailure(
        message,
        reason,
        study_instance_uid=scanned.study_instance_uid,
        series_instance_uid=scanned.series_instance_uid,
        sop_class_uid=scanned.sop_class_uid,
        sop_instance_uid=scanned.sop_instance_uid,
    )


class Upload:
    """The state of one request. Its methods block; they exclude each other."""

    def __init__(self, store: ObjectStore, start: blob_pb2.StoreStart, rules: StoreRules) -> None:
        self.results: list[blob_pb2.PartResult] = []
        self.is_ended = False
        self._store = store
        self._start = start
        self._rules = rules
        self._lock = threading.Lock()
        self._part: Part | None = None
        self._pack: PackWriter | None = None
        self._events: PackEvents | None = None
        self._sealed: list[PackWriter] = []
        self._is_aborted = False

    def apply(self, messages: Iterable[blob_pb2.StoreInstancesRequest]) -> None:
        """Take the next messages of the stream.

        Raises:
            errors.BadRequest: they come in another order than `blob.proto` says.
            errors.PayloadTooLarge: too many parts.
            errors.OutOfResources, errors.Unavailable: of the object store; nothing of the request can be stored.
        """
        with self._lock:
            for message in messages:
                if self._is_aborted:
                    return
                self._take(message)

    def _take(self, message: blob_pb2.StoreInstancesRequest) -> None:
        kind = message.WhichOneof("message")
        if self.is_ended or kind == "start" or kind is None:
            raise errors.BadRequest(f"a store request had {kind} where it may not be")
        if kind == "part":
            self._end_part()
            self._begin_part(message.part)
        elif kind == "chunk":
            self._feed(message.chunk)
        else:
            self._end_part()
            self.is_ended = True

    def _begin_part(self, start: blob_pb2.PartStart) -> None:
        if len(self.results) == self._rules.most_parts:
            raise errors.PayloadTooLarge(f"a store request has at most {self._rules.most_parts} parts")
        if self._pack is not None and self._pack.is_full(self._rules.pack):
            self._pack.seal()
            self._pack.flush()
            self._sealed.append(self._pack)
            # The trailer is in the pack: its events are made from there, so that memory does not grow with the number of packs.
            self._pack = self._events = None
        if self._pack is None:
            self._pack = PackWriter(self._store.create(new_key()), self._start.request_id)
            self._events = PackEvents(self._pack.key)
        self._part = Part(start.part_number, self._pack.position, self._rules)

    def _feed(self, chunk: bytes) -> None:
        if self._part is None or self._pack is None:
            raise errors.BadRequest("a store request had a chunk before its first part")
        self._part.feed(chunk)
        if self._part.failure is None:
            self._pack.write(chunk)

    def _end_part(self) -> None:
        part, self._part = self._part, None
        if part is None:
            return
        try:
            part.finish(self._start.study_instance_uid, self._rules.accept_private_sop_classes)
            self.results.append(self._keep(part) if part.failure is None else _failed(part.number, part.failure))
        finally:
            part.close()

    def _keep(self, part: Part) -> blob_pb2.PartResult:
        """Append what belongs to the instance, and name it in the trailer."""
        pack, events, scanned = self._pack, self._events, part.scanned
        assert pack is not None
        assert events is not None
        assert scanned is not None
        rendition = pack.position
        for piece in part.rendition():
            pack.write(piece)
        instance = stored_instance(scanned, part.number, pack.key, part.offset, rendition)
        if len(scanned.dicom_json) <= INLINE_JSON_BYTES:
            instance.dicom_json = scanned.dicom_json
        else:
            location = blob_pb2.Location(object=pack.key, offset=pack.position, length=len(scanned.dicom_json))
            instance.dicom_json_location.CopyFrom(location)
            pack.write(scanned.dicom_json)
        pack.add(instance)
        events.add(instance)
        return blob_pb2.PartResult(
            part_number=part.number,
            study_instance_uid=instance.study_instance_uid,
            series_instance_uid=instance.series_instance_uid,
            sop_class_uid=instance.sop_class_uid,
            sop_instance_uid=instance.sop_instance_uid,
            warning_reasons=instance.warning_reasons,
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

    def abort(self) -> None:
        """Leave nothing of what is not committed. Waits for the method that is running."""
        with self._lock:
            self._is_aborted = True
            if self._part is not None:
                self._part.close()
                self._part = None
            for pack in [*self._sealed, self._pack]:
                if pack is not None:
                    pack.abort()


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
