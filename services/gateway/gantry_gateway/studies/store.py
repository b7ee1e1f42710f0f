"""Store instances: multipart/related is parsed while it is received and its parts are sent to blob; then index decides about each upload.

PS3.10 files, metadata and bulkdata are sent to blob unchanged. Only images that must be transformed (PNG, GIF) are sent to the renderer
first. Nothing is stored if the payload is incomplete. Memory does not depend on the size of the payload: the body is read as fast as blob
accepts it. 200 means durable, announced and searchable. If index does not answer in time, the status is 202 with a Warning that searches
may lag.

Source: PS3.18 §10.5, Annex I.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

import orjson
from starlette.responses import Response

from gantry.blob.v1 import blob_pb2
from gantry.events.v1 import events_pb2
from gantry_gateway.answers import xml_parts
from gantry_gateway.content import retrieval
from gantry_gateway.http import urls
from gantry_gateway.http.problems import warning
from gantry_gateway.http.request import Request, answered
from gantry_gateway.studies.pictures import TRANSFORMED, has_picture, transformed
from gantry_gateway.studies.upload import Outcomes, Upload
from gantry_runtime import call_context
from gantry_standard import errors
from gantry_standard.http import negotiation, store_response
from gantry_standard.http.media_types import ALIASES, BULKDATA, DICOM, DICOM_JSON, DICOM_XML, Resource
from gantry_standard.http.multipart import Event, Limits, PartBegin, PartData, PartEnd, Reader, parse_content_type
from gantry_standard.http.store_response import StoreResult
from gantry_standard.reasons import COERCION, DUPLICATE_SOP_INSTANCE, NOT_AUTHORIZED

log = logging.getLogger(__name__)

PART_TYPES = (DICOM, DICOM_JSON, DICOM_XML, *BULKDATA, *TRANSFORMED)
"""Accepted type parameters of multipart/related. The Content-Type of each part decides about the part."""

SUPPORTED = f"supported are {DICOM} and " + ", ".join(f'multipart/related; type="{name}"' for name in PART_TYPES)

OUT_OF_RESOURCES = range(0xA700, 0xA800)
"""Failure reasons for missing resources (PS3.18 Table I.2-2)."""

ORIGINAL_ATTRIBUTES_SEQUENCE = "04000561"

CROWDED_PARTS = 64
"""Number of parts in one chunk above which the chunk is read in pieces of `CROWDED_BYTES`."""

CROWDED_BYTES = 2048

MAX_EXPLANATIONS = 20
"""Most refused parts of one request that are logged, one line each."""

SEARCH_MAY_LAG = "stored, but not confirmed by the index in time: searches may lag, and a duplicate SOP Instance is not known yet"


async def store(request: Request) -> Response:
    """Answer POST /studies and /studies/{study}."""
    boundary, part_type = accepted_payload(request)
    settings = request.gateway.settings
    negotiation.select(Resource.STORE, request.accept, request.parameter("accept"), settings.strict_accept)
    study = urls.uid(request.params, "study")
    inbox = answered(request.gateway.inbox)
    if not request.gateway.nats.is_connected:
        raise errors.Unavailable("NATS does not answer")
    request_id = uuid.uuid4().hex
    outcomes = Outcomes(settings.store_max_parts)
    with inbox.expecting(request_id, outcomes.add) as reply_subject:
        uri = urls.study(request.base_url, study) if study else f"{request.base_url}/studies"
        start = blob_pb2.StoreStart(request_id=request_id, reply_subject=reply_subject, collection=study, request_uri=uri)
        upload = Upload(request, start, part_type)
        try:
            await _take_payload(request, boundary, part_type, upload)
            results = await upload.finish()
        finally:
            await upload.close()
        announced = {result.part_number for result in results if not result.failure_reason}
        await outcomes.wait_for(announced, settings.store_outcome_s)
        outcome_of = outcomes.by_part.get
        replaced = {result.study_instance_uid for result in results if outcome_of(result.part_number) == events_pb2.OUTCOME_REPLACED}
        for study_instance_uid in replaced:
            retrieval.of(request).records.changed(study_instance_uid)
    hidden = await _hidden_duplicates(request, results, outcomes.by_part) if call_context.caller().is_restricted else frozenset()
    return respond(request, results, outcomes.by_part, hidden)


async def _hidden_duplicates(request: Request, results: list[blob_pb2.PartResult], outcomes: dict[int, int]) -> frozenset[int]:
    """Return the numbers of the duplicates whose SOP Instance UID belongs to an instance that the caller may not see."""
    hidden = set()
    for result in results:
        if outcomes.get(result.part_number) == events_pb2.OUTCOME_DUPLICATE:
            try:
                async for _ in retrieval.of(request).records.scope("", "", result.sop_instance_uid):
                    pass
            except errors.NotFound:
                hidden.add(result.part_number)
    return frozenset(hidden)


async def _take_payload(request: Request, boundary: str | None, part_type: str, upload: Upload) -> None:
    """Send the payload to blob while it is received. From the first image that must be transformed on, events are handled one by one."""
    async with aclosing(part_events(request, boundary)) as batches:
        async for events in batches:
            if not has_picture(events, part_type):
                await upload.take(events)
                continue
            async with aclosing(transformed(request, _one_by_one(events, batches), part_type)) as all_that_follows:
                async for event in all_that_follows:
                    await upload.take((event,))


async def _one_by_one(events: Sequence[Event], batches: AsyncIterator[Sequence[Event]]) -> AsyncIterator[Event]:
    for event in events:
        yield event
    async for following in batches:
        for event in following:
            yield event


def accepted_payload(request: Request) -> tuple[str | None, str]:
    """Check Content-Type and Content-Encoding.

    Returns:
        The boundary of multipart/related, None for one instance as application/dicom; and the Content-Type of parts without this header.

    Raises:
        errors.UnsupportedMediaType: the media type or content coding is not supported.
        errors.BadRequest: Content-Type cannot be read, or has no boundary.

    Source: PS3.18 Table 10.5.4-1.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise errors.UnsupportedMediaType(
            "Content-Encoding is not supported for a store request; send the payload without a content coding"
        )
    text = request.headers.get("content-type", "")
    if not text:
        raise errors.UnsupportedMediaType(f"Content-Type is missing; {SUPPORTED}")
    media_type, parameters = parse_content_type(text)
    if media_type == DICOM:
        return None, DICOM
    root = parameters.get("type", DICOM).strip().lower()
    root = ALIASES.get(root, root)
    if media_type != "multipart/related" or root not in PART_TYPES:
        content_type = f'{media_type}; type="{root}"' if media_type == "multipart/related" else media_type
        raise errors.UnsupportedMediaType(f"Content-Type {content_type} is not supported by this server; {SUPPORTED}")
    if "boundary" not in parameters:
        raise errors.BadRequest("Content-Type multipart/related has no boundary parameter")
    return parameters["boundary"], root


def _small_where_crowded(chunk: bytes, delimiter: bytes) -> Sequence[bytes]:
    """Return a chunk in small pieces if it has many parts.

    Each part costs some 20 µs, so a chunk of 64 KiB with parts of one byte would stop every other request of the gateway for 0.3 s.
    """
    if chunk.count(delimiter) <= CROWDED_PARTS:
        return (chunk,)
    return [chunk[begin : begin + CROWDED_BYTES] for begin in range(0, len(chunk), CROWDED_BYTES)]


async def part_events(request: Request, boundary: str | None) -> AsyncGenerator[Sequence[Event]]:
    """Yield the parts of the payload while it is received: the events of each received chunk together; a single instance as one part.

    Raises:
        errors.BadRequest: the payload is empty, malformed or incomplete, or has no part.
        errors.PayloadTooLarge: it has too many parts or bytes.
    """
    count = 0
    if boundary is None:
        async for chunk in request.chunks(request.gateway.settings.store_max_bytes):
            data = PartData(memoryview(chunk))
            yield (data,) if count else (PartBegin({"content-type": DICOM}), data)
            count += 1
        if count:
            yield (PartEnd(),)
    else:
        reader = Reader(boundary, Limits(parts=request.gateway.settings.store_max_parts))
        is_empty = True
        delimiter = b"--" + boundary.encode("ascii")
        async for chunk in request.chunks(request.gateway.settings.store_max_bytes):
            is_empty = False
            for piece in _small_where_crowded(chunk, delimiter):
                events = reader.feed(piece)
                count += sum(type(event) is PartBegin for event in events)
                yield events
                if piece is not chunk:
                    await asyncio.sleep(0)
        if not is_empty:
            reader.close()
    if not count:
        raise errors.BadRequest("the payload has no instance")


def respond(
    request: Request, results: list[blob_pb2.PartResult], outcomes: dict[int, int], hidden: frozenset[int] = frozenset()
) -> Response:
    """Build the response from the results of blob and the outcomes of index.

    Args:
        outcomes: part number → outcome. An announced part without an outcome is stored, and the response has a Warning.
        hidden: numbers of the duplicates of instances that the caller may not see.

    Source: PS3.18 §10.5.3.
    """
    base = request.base_url
    part_results = [_result(result, outcomes.get(result.part_number), result.part_number in hidden) for result in results]
    lags = any(not result.failure_reason and result.part_number not in outcomes for result in results)
    is_new = any(outcomes.get(result.part_number) != events_pb2.OUTCOME_SAME for result in results if not result.failure_reason)
    _log_failures(results)
    status = store_response.status(part_results)
    module = store_response.module(
        part_results,
        lambda study: urls.study(base, study),
        lambda it: urls.instance(base, it.study_instance_uid, it.series_instance_uid, it.sop_instance_uid),
    )
    body, content_type = xml_parts.one_object(retrieval.selected(request, Resource.STORE), module)
    response = Response(body, 202 if status == 200 and lags else status)
    response.headers["Content-Type"] = content_type
    studies = store_response.stored_studies(part_results)
    if studies:
        url = urls.study(base, studies[0]) if len(studies) == 1 else f"{base}/studies"
        response.headers["Content-Location"] = url
        if is_new:
            response.headers["Location"] = url
    if lags:
        response.headers.append("Warning", warning(base, SEARCH_MAY_LAG))
    if any(result.failure_reason in OUT_OF_RESOURCES for result in part_results):
        response.headers.append("Warning", warning(base, "Out of resources", "A700"))
    return response


def _result(result: blob_pb2.PartResult, outcome: int | None, is_hidden: bool = False) -> StoreResult:
    reason = result.failure_reason
    if outcome == events_pb2.OUTCOME_DUPLICATE and not reason:
        reason = NOT_AUTHORIZED if is_hidden else DUPLICATE_SOP_INSTANCE
    # An upload with the same content is discarded. The stored instance records in its own attributes whether it was coerced
    is_coerced = not reason and outcome != events_pb2.OUTCOME_SAME and result.original_attributes
    warnings = [code for code in result.warning_reasons if not reason and (is_coerced or code != COERCION)]
    return StoreResult(
        result.study_instance_uid,
        result.series_instance_uid,
        result.sop_class_uid,
        result.sop_instance_uid,
        reason,
        tuple(warnings),
        tuple(orjson.loads(result.original_attributes)[ORIGINAL_ATTRIBUTES_SEQUENCE]["Value"]) if is_coerced else (),
    )


def _log_failures(results: list[blob_pb2.PartResult]) -> None:
    for result in [result for result in results if result.failure_reason][:MAX_EXPLANATIONS]:
        log.info(
            "part refused",
            extra={
                "part_number": result.part_number,
                "sop_instance_uid": result.sop_instance_uid,
                "failure_reason": f"{result.failure_reason:04X}",
                "explanation": result.explanation,
            },
        )
