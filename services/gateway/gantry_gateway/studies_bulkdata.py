"""Studies service, Retrieve: bulkdata, by the BulkDataURIs that metadata gives.

Source: PS3.18 §10.4.1.1.5.
"""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from gantry.blob.v1.blob_pb2 import BulkElement, StoredInstance
from gantry.index.v1.index_pb2 import InstanceRecord
from gantry_gateway import payload, retrieval
from gantry_gateway.conditional import entity_tag, not_modified
from gantry_gateway.payload import Part, Response
from gantry_gateway.renditions import IMPOSSIBLE
from gantry_gateway.request import Request
from gantry_gateway.retrieval import Retrieval
from gantry_gateway.stored_content import Content, Piece
from gantry_gateway.studies_frames import FrameSet, content_type_of, send_stored_frames, send_transcoded_frames, whole_frames
from gantry_standard import errors, multipart_writer
from gantry_standard.media_types import EXPLICIT_VR_LE, Resource
from gantry_standard.negotiation import Plan, available, plans

_BULK_PATH = re.compile(r"[0-9A-Fa-f]{8}(?:/[1-9][0-9]{0,9}/[0-9A-Fa-f]{8})*")


async def retrieve_bulkdata(request: Request) -> Response:
    """Answer GET of a BulkDataURI (§10.4.1.1.5): the value field, or the frames of encapsulated pixel data."""
    path = request.params["bulkdata"]
    if not _BULK_PATH.fullmatch(path):
        raise errors.NotFound("there is no such bulkdata; expected tags and item numbers separated by slashes")
    path = path.upper()
    tools, record = retrieval.of(request), await retrieval.record_of(request)
    element = _bulk_element(record.stored, path)
    url = f"{retrieval.target(request).url(request.base_url)}/bulkdata/{path}"
    layout = record.stored.layout
    if path == layout.pixel.tag and layout.frames.WhichOneof("encoding") == "encapsulated":
        return await _send_compressed_pixel_data(request, record, path, url)
    plan = plans(retrieval.choices(request, Resource.BULKDATA), EXPLICIT_VR_LE)[:1]
    if not plan or not plan[0].as_stored:
        raise errors.NotAcceptable(f"bulkdata has no such transfer syntax; {available(Resource.BULKDATA, EXPLICIT_VR_LE)}")
    etag = entity_tag(record.version, path, weak=plan[0].multipart)
    if not_modified(request.headers.get("if-none-match", ""), etag):
        return payload.not_modified(etag, url)

    async def ask_again(_: int) -> Content:
        stored = record.stored
        again = await tools.records.ask(stored.study_instance_uid, stored.series_instance_uid, stored.sop_instance_uid)
        return _value_content(again.stored, _bulk_element(again.stored, path))

    part = Part(content_type_of(plan[0]), url, _value_content(record.stored, element))
    if not plan[0].multipart:
        return await payload.single_part(request, tools.reader, part, etag, ask_again)
    return await payload.multipart(tools.reader, plan[0].media_type, [part], 1, etag, ask_again)


def _bulk_element(stored: StoredInstance, path: str) -> BulkElement:
    for element in stored.layout.bulk:
        if element.path == path:
            return element
    raise errors.NotFound(f"instance {stored.sop_instance_uid} has no bulkdata {path}")


def _value_content(stored: StoredInstance, element: BulkElement) -> Content:
    value = element.value
    return Content(stored.location.object, ((value.offset, value.length),), value.length)


async def _send_compressed_pixel_data(request: Request, record: InstanceRecord, path: str, url: str) -> Response:
    """Send encapsulated pixel data: one part per frame as stored, or decompressed with all frames in one part (§10.4.3.3.6)."""
    tools, stored = retrieval.of(request), record.stored
    stored_as, many = stored.layout.wire_transfer_syntax_uid, stored.layout.frames.number_of_frames
    numbers = range(1, many + 1)
    reason = "nothing that the client accepts can be produced"
    for plan in plans(retrieval.choices(request, Resource.COMPRESSED_BULKDATA), stored_as):
        to_native = plan.transfer_syntax_uid == EXPLICIT_VR_LE
        if not plan.multipart and many > 1 and not to_native:
            continue
        if not plan.as_stored and not await tools.renditions.can_transcode(stored_as, plan.transfer_syntax_uid):
            continue
        etag = entity_tag(record.version, path, plan.media_type.partition("/")[2], plan.transfer_syntax_uid, weak=plan.multipart)
        if not_modified(request.headers.get("if-none-match", ""), etag):
            return payload.not_modified(etag, url)
        frames = FrameSet(record, numbers, path, lambda _: url)
        try:
            if to_native:
                return await _send_native_pixel_data(tools, frames, plan, etag)
            send = send_stored_frames if plan.as_stored else send_transcoded_frames
            return await send(request, tools, frames, plan, etag)
        except IMPOSSIBLE as error:
            reason = error.message
    raise errors.NotAcceptable(f"{reason}; {available(Resource.COMPRESSED_BULKDATA, stored_as)}")


async def _send_native_pixel_data(tools: Retrieval, frames: FrameSet, plan: Plan, etag: str) -> Response:
    url = frames.url(1)
    pieces = whole_frames(tools, frames, plan)
    if not plan.multipart:
        fields = payload.headers(content_type=content_type_of(plan), content_location=url, etag=etag, vary="Accept")
        return await payload.gathered(200, fields, pieces)
    boundary = multipart_writer.new_boundary()
    head = multipart_writer.part_head(boundary, content_type_of(plan), url, None, first=True)
    framed = _framed(head, pieces, multipart_writer.closing(boundary))
    return await payload.gathered(200, payload.multipart_headers(plan.media_type, boundary, etag), framed)


async def _framed(head: bytes, pieces: AsyncGenerator[Piece, None], closing: bytes) -> AsyncGenerator[Piece, None]:
    async with aclosing(pieces):
        async for piece in pieces:
            if head:
                yield head
                head = b""
            yield piece
    yield closing
