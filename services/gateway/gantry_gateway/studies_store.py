"""Store instances: multipart/related is split as it comes and its parts go to blob; then index says what each upload is.

Nothing is stored of a request that is not whole. Memory does not depend on the payload: the body is read as fast as blob takes it.
200 means durable, announced and searchable; where index does not answer in time, 202 with a Warning that search may lag.

Source: PS3.18 §10.5, Annex I.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import orjson
from grpc._cython import cygrpc  # type: ignore[attr-defined]
from starlette.responses import Response

from gantry.blob.v1 import blob_pb2
from gantry.events.v1 import events_pb2
from gantry_gateway import urls
from gantry_gateway.problems import warning
from gantry_gateway.request import Request
from gantry_runtime import rpc_errors
from gantry_runtime.events import Inbox
from gantry_standard import errors, negotiation, store_response
from gantry_standard.media_types import Resource
from gantry_standard.multipart import End, Event, Limits, PartBegin, PartData, PartEnd, Reader, parse_content_type
from gantry_standard.reasons import CANNOT_UNDERSTAND, DUPLICATE_SOP_INSTANCE
from gantry_standard.store_response import StoreResult

if TYPE_CHECKING:
    Call = grpc.aio.StreamStreamCall[blob_pb2.StoreInstancesRequest, blob_pb2.StoreInstancesResponse]

log = logging.getLogger(__name__)

DICOM = "application/dicom"
SUPPORTED = 'supported are multipart/related; type="application/dicom" and application/dicom'

OUT_OF_RESOURCES = range(0xA700, 0xA800)
"""Failure reasons that say so (PS3.18 Table I.2-2)."""

MESSAGE_BYTES = 512 << 10
"""Piece of an instance in one message to blob."""

MOST_EXPLANATIONS = 20
"""Refused parts of one request that are logged one by one."""

SEARCH_MAY_LAG = "stored, but not confirmed by the index in time: searches may lag, and a duplicate SOP Instance is not known yet"


async def store(request: Request) -> Response:
    """Answer POST /studies and /studies/{study}."""
    boundary = accepted_boundary(request)
    settings = request.gateway.settings
    negotiation.select_json(Resource.STORE, request.accept, request.parameter("accept"), settings.strict_accept)
    study = urls.uid(request.params, "study")
    inbox: Inbox = request.gateway.part("inbox")
    if not request.gateway.nats.is_connected:
        raise errors.Unavailable("NATS does not answer")
    request_id = uuid.uuid4().hex
    outcomes = Outcomes(settings.store_max_parts)
    with inbox.expecting(request_id, outcomes.add) as reply_subject:
        start = blob_pb2.StoreStart(request_id=request_id, reply_subject=reply_subject, study_instance_uid=study)
        upload = Upload(request, start)
        try:
            async for event in part_events(request, boundary):
                await upload.take(event)
            results = await upload.finish()
        finally:
            await upload.close()
        announced = {result.part_number for result in results if not result.failure_reason}
        await outcomes.wait_for(announced, settings.store_outcome_s)
    return respond(request, results, outcomes.by_part)


def accepted_boundary(request: Request) -> str | None:
    """Check Content-Type and Content-Encoding.

    Returns:
        The boundary of multipart/related; None for one instance as application/dicom.

    Raises:
        errors.UnsupportedMediaType: it is something else.
        errors.BadRequest: Content-Type cannot be read, or has no boundary.

    Source: PS3.18 Table 10.5.4-1.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise errors.UnsupportedMediaType("Content-Encoding is not supported for a store; send the payload as it is")
    text = request.headers.get("content-type", "")
    if not text:
        raise errors.UnsupportedMediaType(f"Content-Type is missing; {SUPPORTED}")
    media_type, parameters = parse_content_type(text)
    if media_type == DICOM:
        return None
    root = parameters.get("type", DICOM).strip().lower()
    if media_type != "multipart/related" or root != DICOM:
        found = f'{media_type}; type="{root}"' if media_type == "multipart/related" else media_type
        raise errors.UnsupportedMediaType(f"Content-Type {found} is not supported by this server; {SUPPORTED}")
    if "boundary" not in parameters:
        raise errors.BadRequest("Content-Type multipart/related has no boundary parameter")
    return parameters["boundary"]


async def part_events(request: Request, boundary: str | None) -> AsyncIterator[Event]:
    """Yield the parts of the payload as they come, a single instance as one part.

    Raises:
        errors.BadRequest: the payload is empty, has no part, is broken or not whole.
        errors.PayloadTooLarge: it has too many parts.
    """
    count = 0
    if boundary is None:
        async for chunk in request.chunks():
            if not count:
                yield PartBegin({"content-type": DICOM})
            count += 1
            yield PartData(memoryview(chunk))
        if count:
            yield PartEnd()
    else:
        reader = Reader(boundary, Limits(parts=request.gateway.settings.store_max_parts))
        is_empty = True
        async for chunk in request.chunks():
            is_empty = False
            for event in reader.feed(chunk):
                count += isinstance(event, PartBegin)
                yield event
        if not is_empty:
            reader.close()
    if not count:
        raise errors.BadRequest("the payload holds no instance")


class Upload:
    """One call of StoreInstances, opened with the first part that goes there.

    One message is on its way while the next is gathered, so that reading the request and writing to blob overlap; what waits here
    is at most two messages of MESSAGE_BYTES.
    """

    def __init__(self, request: Request, start: blob_pb2.StoreStart) -> None:
        self._gateway = request.gateway
        self._start = start
        self._call: Call | None = None
        self._writing: asyncio.Task[None] | None = None
        self._pieces: list[memoryview] = []
        self._size = 0
        self._parts = 0
        self._forwarded = 0
        self._is_skipped = False
        self._refused: list[blob_pb2.PartResult] = []

    async def take(self, event: Event) -> None:
        """Pass one event on."""
        match event:
            case PartData(data):
                if not self._is_skipped:
                    await self._add(data)
            case PartBegin(headers):
                await self._begin(headers.get("content-type", ""))
            case PartEnd():
                await self._flush()
            case End():
                pass

    async def finish(self) -> list[blob_pb2.PartResult]:
        """Say that the request is whole, and return one result per part, in part order."""
        if self._call is None:
            return self._refused
        await self._write(blob_pb2.StoreInstancesRequest(end=blob_pb2.StoreEnd()))
        await self._settle()
        with rpc_errors.translated("blob"):
            await self._call.done_writing()
            results = [result async for response in self._call for result in response.parts]
        if len(results) != self._forwarded:
            raise errors.GantryError(f"blob told the results of {len(results)} of {self._forwarded} parts")
        return sorted([*self._refused, *results], key=lambda result: result.part_number)

    async def close(self) -> None:
        """Let go. Without `finish` nothing is stored."""
        if self._call is not None:
            self._call.cancel()
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

    async def _begin(self, content_type: str) -> None:
        part_number, self._parts = self._parts, self._parts + 1
        # A part without Content-Type is taken for what the request says it is.
        self._is_skipped = content_type != "" and content_type.partition(";")[0].strip().lower() != DICOM
        if self._is_skipped:
            explanation = f"Content-Type of the part is not {DICOM}"
            self._refused.append(blob_pb2.PartResult(part_number=part_number, failure_reason=CANNOT_UNDERSTAND, explanation=explanation))
            return
        if self._call is None:
            self._call = self._gateway.blob.StoreInstances(timeout=self._gateway.settings.store_max_s)
            await self._write(blob_pb2.StoreInstancesRequest(start=self._start))
        self._forwarded += 1
        part = blob_pb2.PartStart(part_number=part_number, content_type=content_type)
        await self._write(blob_pb2.StoreInstancesRequest(part=part))

    async def _add(self, data: memoryview) -> None:
        while self._size + len(data) >= MESSAGE_BYTES:
            room = MESSAGE_BYTES - self._size
            self._pieces.append(data[:room])
            data = data[room:]
            await self._flush()
        if data:
            self._pieces.append(data)
            self._size += len(data)

    async def _flush(self) -> None:
        if self._pieces:
            chunk = b"".join(self._pieces)
            self._pieces, self._size = [], 0
            await self._write(blob_pb2.StoreInstancesRequest(chunk=chunk))

    async def _write(self, message: blob_pb2.StoreInstancesRequest) -> None:
        await self._settle()
        self._writing = asyncio.create_task(self._send(message))

    async def _settle(self) -> None:
        """Wait until the message before was taken."""
        if self._writing is not None:
            await self._writing

    async def _send(self, message: blob_pb2.StoreInstancesRequest) -> None:
        assert self._call is not None
        with rpc_errors.translated("blob"):
            await self._call.wait_for_connection()
        try:
            # What write() does, but for one thing: where a message meets blob's refusal on the way, write() puts INTERNAL of its own
            # in the place of the status that says why, for good (grpc.aio, _StreamRequestMixin._write).
            await self._call._cython_call.send_serialized_message(message.SerializeToString())  # type: ignore[attr-defined]
        except (cygrpc.InternalError, cygrpc.UsageError, asyncio.InvalidStateError):
            raise await _failure(self._call) from None


async def _failure(call: "Call") -> errors.GantryError:
    """Return the error with which blob ended a call."""
    code, details = await call.code(), await call.details()
    if code is grpc.StatusCode.OK:
        return errors.GantryError("blob ended a store before its end")
    metadata = await call.trailing_metadata()
    return rpc_errors.error_from(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details), "blob")


class Outcomes:
    """What index decided of each part of one request, as far as it was told.

    Args:
        most: parts that a request may have.
    """

    def __init__(self, most: int) -> None:
        self.by_part: dict[int, int] = {}
        self._most = most
        self._changed = asyncio.Event()

    def add(self, data: bytes) -> None:
        """Take a StoreOutcomes message."""
        for told in events_pb2.StoreOutcomes.FromString(data).outcomes:
            if told.part_number < self._most:
                self.by_part[told.part_number] = told.outcome
        self._changed.set()

    async def wait_for(self, parts: set[int], timeout_s: float) -> None:
        """Wait until the outcome of all parts is there, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                while parts := parts - self.by_part.keys():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            log.warning("store outcomes are late", extra={"parts": len(parts)})


def respond(request: Request, results: list[blob_pb2.PartResult], outcomes: dict[int, int]) -> Response:
    """Build the answer from what blob and index said.

    Args:
        outcomes: by part number; a part that blob announced and that is missing here is stored, and told with a Warning.

    Source: PS3.18 §10.5.3.
    """
    base = request.base_url
    told = [_result(result, outcomes.get(result.part_number)) for result in results]
    lags = any(not result.failure_reason and result.part_number not in outcomes for result in results)
    is_new = any(outcomes.get(result.part_number) != events_pb2.OUTCOME_SAME for result in results if not result.failure_reason)
    _log_failures(results)
    status = store_response.status(told)
    module = store_response.module(
        told,
        lambda study: urls.study(base, study),
        lambda it: urls.instance(base, it.study_instance_uid, it.series_instance_uid, it.sop_instance_uid),
    )
    response = Response(orjson.dumps(module), 202 if status == 200 and lags else status, media_type="application/dicom+json")
    studies = store_response.stored_studies(told)
    if studies:
        url = urls.study(base, studies[0]) if len(studies) == 1 else f"{base}/studies"
        response.headers["Content-Location"] = url
        if is_new:
            response.headers["Location"] = url
    if lags:
        response.headers.append("Warning", warning(base, SEARCH_MAY_LAG))
    if any(result.failure_reason in OUT_OF_RESOURCES for result in told):
        response.headers.append("Warning", warning(base, "Out of resources", "A700"))
    return response


def _result(result: blob_pb2.PartResult, outcome: int | None) -> StoreResult:
    reason = result.failure_reason
    if outcome == events_pb2.OUTCOME_DUPLICATE and not reason:
        reason = DUPLICATE_SOP_INSTANCE
    return StoreResult(
        result.study_instance_uid,
        result.series_instance_uid,
        result.sop_class_uid,
        result.sop_instance_uid,
        reason,
        tuple(result.warning_reasons) if not reason else (),
    )


def _log_failures(results: list[blob_pb2.PartResult]) -> None:
    for result in [result for result in results if result.failure_reason][:MOST_EXPLANATIONS]:
        log.info(
            "part refused",
            extra={
                "part_number": result.part_number,
                "sop_instance_uid": result.sop_instance_uid,
                "failure_reason": f"{result.failure_reason:04X}",
                "explanation": result.explanation,
            },
        )
