"""Collects the metadata and bulkdata parts of one store request until its end.

Metadata is parsed when its part ends, and stored as one JSON text per data set. Bulkdata is stored unchanged. Both are in the spool of the
request, so that memory use depends only on the largest metadata part. Parts may arrive in any order.

Source: PS3.18 §8.6.1.2 and §10.5.1.4.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urljoin

from gantry.blob.v1 import blob_pb2
from gantry_blob.storing.spool import Spool, SpooledBytes
from gantry_standard import errors, reasons
from gantry_standard.dicom import native_xml
from gantry_standard.dicom.json_to_explicit import is_too_deep, parse_data_sets, serialise
from gantry_standard.dicom.limits import Limits, ScanFailure
from gantry_standard.http.media_types import ALIASES, DICOM, DICOM_JSON, DICOM_XML, OCTET_STREAM
from gantry_standard.http.multipart import parse_content_type

UIDS = ("0020000D", "0020000E", "00080016", "00080018")
METADATA = frozenset((DICOM_JSON, DICOM_XML, "application/json"))


@dataclass(frozen=True, slots=True)
class PartType:
    """Content-Type of a part: the media type in lower case, and the transfer-syntax parameter or ""."""

    media_type: str
    transfer_syntax_uid: str = ""


@lru_cache(256)
def part_type(content_type: str) -> PartType:
    """Parse the Content-Type of a part. Without one it is application/dicom; if it is invalid, application/octet-stream."""
    if not content_type:
        return PartType(DICOM)
    try:
        media_type, parameters = parse_content_type(content_type)
    except errors.BadRequest:
        return PartType(OCTET_STREAM)
    return PartType(ALIASES.get(media_type, media_type), parameters.get("transfer-syntax", "").strip())


@dataclass(frozen=True, slots=True)
class BulkPart:
    """One part of bulkdata.

    Attributes:
        number: of the part within the request, from 0.
        type: its Content-Type.
        content: its bytes.
        pixel: describes the native frames in `content` that an image (PNG, GIF) was decoded to; None for other parts.
        number_of_frames: number of frames that `pixel` describes.
        failure: why the bytes cannot be used, without UIDs; None if they can.
    """

    number: int
    type: PartType
    content: SpooledBytes
    pixel: blob_pb2.PixelDescription | None = None
    number_of_frames: int = 0
    failure: ScanFailure | None = None


@dataclass(frozen=True, slots=True)
class PendingDataSet:
    """A data set that was sent as metadata: its DICOM JSON object, and the transfer-syntax parameter of its part.

    If it cannot be stored, `failure` says why, and the object has only the UIDs.
    """

    json: SpooledBytes
    transfer_syntax_uid: str
    failure: ScanFailure | None = None

    def load(self) -> dict[str, Any]:
        """Return the DICOM JSON object. Its keys at the root are converted to upper case."""
        (data_set,) = parse_data_sets(self.json.read(0, self.json.length))
        return {key.upper(): element for key, element in data_set.items()}


class MetadataAndBulkdata:
    """The metadata and bulkdata parts of one store request. Methods block.

    Args:
        spool: stores the parts.
        request_uri: base URI of relative URIs.
        limits: of one metadata part; `value_bytes` limits its length.
    """

    def __init__(self, spool: Spool, request_uri: str, limits: Limits) -> None:
        self.data_sets: list[PendingDataSet] = []
        self.bulk: list[BulkPart] = []
        self._spool = spool
        self._request_uri = request_uri
        self._limits = limits
        self._by_uri: dict[str, list[BulkPart]] = {}
        self._used: set[int] = set()
        self._start = blob_pb2.PartStart()
        self._begin = 0
        self._metadata = bytearray()
        self._size = 0

    def begin(self, start: blob_pb2.PartStart) -> None:
        """Begin a part that is not a PS3.10 file."""
        self._start, self._begin = start, self._spool.length
        self._metadata, self._size = bytearray(), 0

    def feed(self, chunk: bytes | memoryview) -> None:
        """Add the next bytes of the part.

        Raises:
            errors.OutOfResources: too little disk space is left.
        """
        self._size += len(chunk)
        if part_type(self._start.content_type).media_type not in METADATA:
            self._spool.write(chunk)
        elif self._size <= self._limits.value_bytes:
            self._metadata += chunk

    def end(self) -> None:
        """End the part.

        Raises:
            ScanFailure: the part is metadata that cannot be parsed.
        """
        content_type = part_type(self._start.content_type)
        if content_type.media_type in METADATA:
            self._end_metadata(content_type)
        else:
            self._end_bulk(content_type)

    def _end_metadata(self, content_type: PartType) -> None:
        if self._size > self._limits.value_bytes:
            raise ScanFailure(f"metadata has more than {self._limits.value_bytes} bytes", reasons.PROCESSING_FAILURE)
        data, self._metadata = bytes(self._metadata), bytearray()
        data_sets = [native_xml.to_json_model(data, self._limits)] if content_type.media_type == DICOM_XML else parse_data_sets(data)
        for data_set in data_sets:
            failure = None
            if is_too_deep(data_set, self._limits.depth):
                failure = ScanFailure(f"sequences are nested deeper than {self._limits.depth}", reasons.PROCESSING_FAILURE)
                data_set = _uids_of(data_set)
            begin = self._spool.length
            self._spool.write(serialise(data_set))
            self.data_sets.append(PendingDataSet(self._spool.since(begin), content_type.transfer_syntax_uid, failure))

    def _end_bulk(self, content_type: PartType) -> None:
        start = self._start
        part = BulkPart(
            start.part_number,
            content_type,
            self._spool.since(self._begin),
            start.pixel if start.HasField("pixel") else None,
            start.number_of_frames,
            ScanFailure(start.explanation, start.failure_reason) if start.failure_reason else None,
        )
        self.bulk.append(part)
        if start.content_location:
            for uri in dict.fromkeys((start.content_location, self._resolved(start.content_location))):
                self._by_uri.setdefault(uri, []).append(part)

    def find(self, uri: str) -> list[BulkPart]:
        """Return the parts whose Content-Location is this BulkDataURI, in their order; [] if there are none."""
        parts = self._by_uri.get(self._resolved(uri)) or self._by_uri.get(uri) or []
        self._used.update(part.number for part in parts)
        return parts

    def find_frames(self, uri: str) -> list[BulkPart]:
        """Return the parts of an element, or those of its frames 1, 2, 3 … at `uri`/frames/n; [] if there are none."""
        return self.find(uri) or list(self._numbered(uri.rstrip("/") + "/frames/"))

    def _numbered(self, prefix: str) -> Iterator[BulkPart]:
        number = 1
        while parts := self.find(f"{prefix}{number}"):
            yield parts[0]
            number += 1

    def unused(self) -> list[BulkPart]:
        """Return the parts that no data set refers to."""
        return [part for part in self.bulk if part.number not in self._used]

    def _resolved(self, uri: str) -> str:
        try:
            return urljoin(self._request_uri, uri)
        except ValueError:
            return uri


def _uids_of(data_set: dict[str, Any]) -> dict[str, Any]:
    """Return the elements with the UIDs of an instance, if their values are strings."""
    uids = {}
    for tag in UIDS:
        element = data_set.get(tag)
        values = element.get("Value") if isinstance(element, dict) else None
        if isinstance(values, list) and values and isinstance(values[0], str):
            uids[tag] = {"vr": "UI", "Value": [values[0]]}
    return uids
