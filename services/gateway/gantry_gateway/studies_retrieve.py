"""Studies service, Retrieve: instances, metadata, frames, bulkdata.

What is stored leaves as stored wherever the client accepts that; anything else is made by the renderer while it is sent.

Source: PS3.18 §10.4.
"""

import asyncio
import re
import zlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from itertools import pairwise

from gantry.blob.v1.blob_pb2 import BulkElement, Location, StoredInstance
from gantry.index.v1.index_pb2 import GetMetadataRequest, InstanceRecord, MetadataFragment, Scope
from gantry_gateway import payload, retrieval, urls
from gantry_gateway.compression import accepts_gzip
from gantry_gateway.conditional import entity_tag, not_modified
from gantry_gateway.payload import Headers, Immediate, Part, Response
from gantry_gateway.records import INDEX_S
from gantry_gateway.renditions import IMPOSSIBLE
from gantry_gateway.request import Request
from gantry_gateway.retrieval import Retrieval, Target
from gantry_gateway.stored_content import AskAgain, Content, Piece, frame_content, read, wire_content
from gantry_runtime import rpc_errors
from gantry_standard import errors, multipart_writer
from gantry_standard.media_types import DICOM, DICOM_JSON, EXPLICIT_VR_LE, Resource
from gantry_standard.negotiation import Choice, Plan, available, plans, select_json

METADATA_AT_ONCE_BYTES = 8 << 20
"""Bytes of metadata that are gathered for an ETag and a Content-Length; more is streamed without."""

GZIP_FROM_BYTES = 1024
GZIP_OFF_LOOP_BYTES = 128 << 10
GZIP_LEVEL = 1
GZIPPED = payload.headers(content_encoding="gzip")

METADATA_S = 20 * INDEX_S
"""Seconds that the metadata of a study may take, the client's pace included."""

FRAME_GATHER_BYTES = 16 << 20
"""Bytes of a transcoded frame that are gathered for the Content-Length of its part."""

_FRAME_LIST = re.compile(r"[1-9][0-9]{0,9}(?:,[1-9][0-9]{0,9})*")
_BULK_PATH = re.compile(r"[0-9A-Fa-f]{8}(?:/[1-9][0-9]{0,9}/[0-9A-Fa-f]{8})*")


# Instances


@dataclass(frozen=True, slots=True)
class _Delivery:
    """How one instance is sent.

    Attributes:
        plans: what may be tried, best first; all single part or all multipart.
        record: kept only where the renderer needs it.
    """

    sop_instance_uid: str
    series_instance_uid: str
    url: str
    plans: tuple[Plan, ...]
    content: Content
    record: InstanceRecord | None

    @property
    def part(self) -> Part:
        return Part(_content_type(self.plans[0]), self.url, self.content)


async def retrieve_instances(request: Request) -> Response:
    """Answer GET of a study, a series or an instance (§10.4.1.1.1)."""
    target = retrieval.target(request)
    resource = Resource.INSTANCE if target.instance else Resource.INSTANCES
    choices = retrieval.choices(request, resource)
    tools = retrieval.of(request)
    deliveries: list[_Delivery] = []
    facts = blake2b(digest_size=16)
    refused, stored_as = 0, ""
    async for record in _records(tools, target):
        stored_as = record.stored.layout.wire_transfer_syntax_uid
        possible = await _possible(tools, choices, stored_as)
        facts.update(f"{record.version} {record.stored.sop_instance_uid} {possible[:1]};".encode())
        if possible:
            deliveries.append(_delivery(request.base_url, record, possible))
        else:
            refused += 1
    if not deliveries:
        raise errors.NotAcceptable(f"no transfer syntax that the client accepts can be produced; {available(resource, stored_as)}")
    etag = entity_tag(facts.hexdigest(), weak=deliveries[0].plans[0].multipart)
    if not refused and not_modified(request.headers.get("if-none-match", ""), etag):
        return payload.not_modified(etag)
    return await _send_instances(request, deliveries, 206 if refused else 200, etag)


async def _records(tools: Retrieval, target: Target) -> AsyncGenerator[InstanceRecord, None]:
    if target.instance:
        yield await tools.records.get(target.study, target.series, target.instance)
        return
    async for record in tools.records.scope(target.study, target.series):
        yield record


async def _possible(tools: Retrieval, choices: tuple[Choice, ...], stored_as: str) -> tuple[Plan, ...]:
    """Return the plans that need no transcoding or one that the renderer knows; all in the form of the best, single part or multipart."""
    found: list[Plan] = []
    for plan in plans(choices, stored_as):
        if found and (found[0].as_stored or plan.multipart is not found[0].multipart):
            continue
        if plan.as_stored or await tools.renditions.can_transcode(stored_as, plan.transfer_syntax_uid):
            found.append(plan)
    return tuple(found)


def _delivery(base: str, record: InstanceRecord, possible: tuple[Plan, ...]) -> _Delivery:
    stored = record.stored
    study, series, instance = stored.study_instance_uid, stored.series_instance_uid, stored.sop_instance_uid
    url = urls.instance(base, study, series, instance)
    return _Delivery(instance, series, url, possible, wire_content(stored), None if possible[0].as_stored else record)


async def _send_instances(request: Request, deliveries: list[_Delivery], status: int, etag: str) -> Response:
    tools = retrieval.of(request)

    async def ask_again(index: int) -> Content:
        delivery = deliveries[index]
        record = await tools.records.ask(request.params["study"], delivery.series_instance_uid, delivery.sop_instance_uid)
        return wire_content(record.stored)

    if any(not delivery.plans[0].as_stored for delivery in deliveries):
        return await _send_transcoded(tools, deliveries, status, etag, ask_again)
    if not deliveries[0].plans[0].multipart:
        return await payload.single_part(request, tools.reader, deliveries[0].part, etag, ask_again)
    parts = [delivery.part for delivery in deliveries]
    return await payload.multipart(tools.reader, DICOM, parts, len(parts), etag, ask_again, status)


class _Attempt:
    """Turns instances into pieces, some of them by the renderer.

    Until the status line is sent (`committed`), an instance that turns out impossible is tried in its next transfer syntax and then left
    out; after it, it breaks the answer off.
    """

    def __init__(self, tools: Retrieval, deliveries: Sequence[_Delivery], ask_again: AskAgain) -> None:
        self._tools = tools
        self._deliveries = deliveries
        self._ask_again = ask_again
        self.committed = False
        self.sent = 0
        self.left_out = 0
        self.content_type = ""
        self.reason = ""

    async def parts(self, boundary: str) -> AsyncGenerator[Piece, None]:
        """Yield a multipart payload."""
        for index in range(len(self._deliveries)):
            async with aclosing(self.instance(index, boundary)) as pieces:
                async for piece in pieces:
                    yield piece
        yield multipart_writer.closing(boundary, empty=self.sent == 0)

    async def instance(self, index: int, boundary: str = "") -> AsyncGenerator[Piece, None]:
        """Yield one instance in the first of its plans that works; with the head of its part where there is a boundary."""
        delivery = self._deliveries[index]
        for plan in delivery.plans:
            begun = False
            try:
                async with aclosing(self._pieces(index, plan)) as pieces:
                    async for piece in pieces:
                        if not begun:
                            begun, self.content_type = True, _content_type(plan)
                            if boundary:
                                length = delivery.content.length if plan.as_stored else None
                                yield multipart_writer.part_head(boundary, self.content_type, delivery.url, length, self.sent == 0)
                            self.sent += 1
                        yield piece
                return
            except IMPOSSIBLE as error:
                if begun or self.committed:
                    raise errors.Unavailable(f"instance {delivery.sop_instance_uid} could not be finished: {error.message}") from error
                self.reason = error.message
        self.left_out += 1

    async def _pieces(self, index: int, plan: Plan) -> AsyncGenerator[Piece, None]:
        delivery = self._deliveries[index]
        if plan.as_stored or delivery.record is None:
            async with aclosing(read(self._tools.reader, [delivery.content], lambda _: self._ask_again(index))) as stored:
                async for _, piece in stored:
                    yield piece
            return
        async with aclosing(self._tools.renditions.instance(delivery.record, plan.transfer_syntax_uid)) as messages:
            async for message in messages:
                yield message.data


async def _send_transcoded(tools: Retrieval, deliveries: list[_Delivery], status: int, etag: str, ask_again: AskAgain) -> Response:
    """Send instances of which the renderer makes some. Those that turn out impossible before the status line are left out: 206."""
    attempt = _Attempt(tools, deliveries, ask_again)
    if deliveries[0].plans[0].multipart:
        boundary = multipart_writer.new_boundary()
        response = await payload.gathered(status, payload.multipart_headers(DICOM, boundary, etag), attempt.parts(boundary))
    else:
        response = await payload.gathered(status, [], attempt.instance(0))
        fields = payload.headers(content_type=attempt.content_type, content_location=deliveries[0].url, etag=etag, vary="Accept")
        response.headers = [*fields, *response.headers]
    attempt.committed = True
    if attempt.sent == 0:
        raise errors.NotAcceptable(f"{attempt.reason}; expected another transfer syntax, such as *")
    if attempt.left_out:
        response.status = 206
    return response


# Frames


@lru_cache(4096)
def parse_frame_list(text: str) -> tuple[int, ...]:
    """Return the frame numbers of a path: from 1, ascending, separated by commas (§10.1.1).

    Raises:
        errors.BadRequest: it is something else.
    """
    if not _FRAME_LIST.fullmatch(text):
        raise errors.BadRequest("the frame list is not one: expected frame numbers from 1, separated by commas")
    numbers = tuple(map(int, text.split(",")))
    if any(later <= earlier for earlier, later in pairwise(numbers)):
        raise errors.BadRequest("the frame numbers are not ascending: expected each to be greater than the one before")
    return numbers


def check_frames(stored: StoredInstance, numbers: Sequence[int]) -> None:
    """Check that an instance has these frames.

    Raises:
        errors.NotFound: it has no pixel data, or fewer frames.
    """
    if not stored.layout.HasField("frames"):
        raise errors.NotFound(f"instance {stored.sop_instance_uid} has no pixel data, so no frames")
    most = stored.layout.frames.number_of_frames
    if numbers[-1] > most:
        raise errors.NotFound(f"frame {numbers[-1]} of {stored.sop_instance_uid}: the instance has {most} frames")


async def retrieve_frames(request: Request) -> Response:
    """Answer GET of frames (§10.4.1.1.6): one part per frame."""
    text = request.params["frames"]
    numbers = parse_frame_list(text)
    resource = Resource.FRAME if len(numbers) == 1 else Resource.FRAMES
    choices = retrieval.choices(request, resource)
    record = await retrieval.record_of(request)
    check_frames(record.stored, numbers)
    base = retrieval.target(request).url(request.base_url)
    return await _send_frames(request, _FrameSet(record, numbers, text, lambda number: f"{base}/frames/{number}"), resource, choices)


@dataclass(frozen=True, slots=True)
class _FrameSet:
    """Frames of one instance.

    Attributes:
        name: of the set, for entity tags.
        url: returns the URL that the part of a frame number carries.
    """

    record: InstanceRecord
    numbers: Sequence[int]
    name: str
    url: Callable[[int], str]


async def _send_frames(request: Request, frames: _FrameSet, resource: Resource, choices: tuple[Choice, ...]) -> Response:
    """Send frames in the first form that can be produced."""
    tools = retrieval.of(request)
    stored_as = frames.record.stored.layout.wire_transfer_syntax_uid
    reason = "nothing that the client accepts can be produced"
    for plan in plans(choices, stored_as):
        if not plan.multipart and len(frames.numbers) > 1:
            continue
        etag = entity_tag(
            frames.record.version, frames.name, plan.media_type.partition("/")[2], plan.transfer_syntax_uid, weak=plan.multipart
        )
        try:
            if plan.as_stored or await tools.renditions.can_transcode(stored_as, plan.transfer_syntax_uid):
                if not_modified(request.headers.get("if-none-match", ""), etag):
                    return payload.not_modified(etag)
                send = _send_stored_frames if plan.as_stored else _send_transcoded_frames
                return await send(request, tools, frames, plan, etag)
        except IMPOSSIBLE as error:
            reason = error.message
    raise errors.NotAcceptable(f"{reason}; {available(resource, stored_as)}")


def _content_type(plan: Plan) -> str:
    return f"{plan.media_type}; transfer-syntax={plan.transfer_syntax_uid}"


async def _send_stored_frames(request: Request, tools: Retrieval, frames: _FrameSet, plan: Plan, etag: str) -> Response:
    stored, content_type = frames.record.stored, _content_type(plan)

    async def ask_again(index: int) -> Content:
        record = await tools.records.ask(stored.study_instance_uid, stored.series_instance_uid, stored.sop_instance_uid)
        if record.version != frames.record.version and record.stored.dataset_digest != stored.dataset_digest:
            raise errors.Unavailable("the instance was replaced while it was read")
        return frame_content(record.stored, frames.numbers[index])

    def parts() -> Iterator[Part]:
        for number in frames.numbers:
            yield Part(content_type, frames.url(number), frame_content(stored, number))

    if not plan.multipart:
        return await payload.single_part(request, tools.reader, next(parts()), etag, ask_again)
    return await payload.multipart(tools.reader, plan.media_type, parts(), len(frames.numbers), etag, ask_again)


async def _send_transcoded_frames(request: Request, tools: Retrieval, frames: _FrameSet, plan: Plan, etag: str) -> Response:
    if not plan.multipart:
        fields = payload.headers(content_type=_content_type(plan), content_location=frames.url(frames.numbers[0]), etag=etag, vary="Accept")
        return await payload.gathered(200, fields, _whole_frames(tools, frames, plan))
    boundary = multipart_writer.new_boundary()
    fields = payload.multipart_headers(plan.media_type, boundary, etag)
    return await payload.gathered(200, fields, _frame_parts(tools, frames, plan, boundary))


async def _whole_frames(tools: Retrieval, frames: _FrameSet, plan: Plan) -> AsyncGenerator[Piece, None]:
    """Yield the bytes of all frames one after another."""
    async with aclosing(tools.renditions.frames(frames.record, frames.numbers, plan.transfer_syntax_uid)) as messages:
        async for message in messages:
            yield message.data


async def _frame_parts(tools: Retrieval, frames: _FrameSet, plan: Plan, boundary: str) -> AsyncGenerator[Piece, None]:
    """Yield one part per frame, with its Content-Length where the frame has at most `FRAME_GATHER_BYTES`."""
    index, size, begun = 0, 0, False
    waiting: list[bytes] = []

    def head(length: int | None) -> bytes:
        return multipart_writer.part_head(boundary, _content_type(plan), frames.url(frames.numbers[index]), length, first=index == 0)

    async with aclosing(tools.renditions.frames(frames.record, frames.numbers, plan.transfer_syntax_uid)) as messages:
        async for message in messages:
            waiting.append(message.data)
            size += len(message.data)
            if not message.last and size < FRAME_GATHER_BYTES:
                continue
            if not begun:
                yield head(size if message.last else None)
            for data in waiting:
                yield data
            waiting, size, begun = [], 0, not message.last
            index += message.last
    if index != len(frames.numbers):
        raise errors.GantryError(f"renderer sent {index} frames, expected {len(frames.numbers)}")
    yield multipart_writer.closing(boundary)


# Bulkdata


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

    part = Part(_content_type(plan[0]), url, _value_content(record.stored, element))
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
        frames = _FrameSet(record, numbers, path, lambda _: url)
        try:
            if to_native:
                return await _send_native_pixel_data(tools, frames, plan, etag)
            send = _send_stored_frames if plan.as_stored else _send_transcoded_frames
            return await send(request, tools, frames, plan, etag)
        except IMPOSSIBLE as error:
            reason = error.message
    raise errors.NotAcceptable(f"{reason}; {available(Resource.COMPRESSED_BULKDATA, stored_as)}")


async def _send_native_pixel_data(tools: Retrieval, frames: _FrameSet, plan: Plan, etag: str) -> Response:
    url = frames.url(1)
    pieces = _whole_frames(tools, frames, plan)
    if not plan.multipart:
        fields = payload.headers(content_type=_content_type(plan), content_location=url, etag=etag, vary="Accept")
        return await payload.gathered(200, fields, pieces)
    boundary = multipart_writer.new_boundary()
    head = multipart_writer.part_head(boundary, _content_type(plan), url, None, first=True)
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


# Metadata


async def retrieve_metadata(request: Request) -> Response:
    """Answer GET of the metadata of a study, a series or an instance as DICOM JSON (§10.4.1.1.2): one array."""
    target = retrieval.target(request)
    query_accept = request.parameter("accept") if request.scope["query_string"] else None
    select_json(Resource.METADATA, request.accept, query_accept, request.gateway.settings.strict_accept)
    base = request.base_url.encode("latin-1")
    url = f"{target.url(request.base_url)}/metadata"
    zipped = accepts_gzip(request.headers.get("accept-encoding", ""))
    fragments = _fragments(request, target)
    try:
        gathered, ended = await _gather(fragments)
    except BaseException:
        await fragments.aclose()
        raise
    etag = _metadata_tag(base, gathered) if ended else ""
    if etag and not_modified(request.headers.get("if-none-match", ""), etag):
        return payload.not_modified(etag, url)
    fields = payload.headers(
        content_type=DICOM_JSON,
        content_location=url,
        etag=etag,
        vary="Accept, Accept-Encoding",
        cache_control="private, no-cache",
    )
    if ended and not any(fragment.HasField("location") for fragment in gathered):
        return await _metadata_at_once(base, gathered, fields, zipped)
    pieces = _metadata_pieces(request, target.study, base, gathered, fragments)
    if not zipped:
        return await payload.gathered(200, fields, pieces)
    return await payload.gathered(200, [*fields, *GZIPPED], _zipped(pieces))


async def _metadata_at_once(base: bytes, fragments: list[MetadataFragment], fields: Headers, zipped: bool) -> Response:
    body = b"[" + b",".join([fragment.dicom_json for fragment in fragments]).replace(b"\0", base) + b"]"
    if zipped and len(body) >= GZIP_FROM_BYTES:
        body = await asyncio.to_thread(_gzip, body) if len(body) > GZIP_OFF_LOOP_BYTES else _gzip(body)
        fields = [*fields, *GZIPPED]
    return Immediate(200, [*fields, *payload.headers(content_length=str(len(body)))], [body])


async def _fragments(request: Request, target: Target) -> AsyncGenerator[list[MetadataFragment], None]:
    scope = Scope(study_instance_uid=target.study, series_instance_uid=target.series, sop_instance_uid=target.instance)
    call = request.gateway.index.GetMetadata(GetMetadataRequest(scope=scope), timeout=METADATA_S)
    try:
        with rpc_errors.translated("index"):
            async for message in call:
                yield list(message.fragments)
    finally:
        call.cancel()


async def _gather(fragments: AsyncGenerator[list[MetadataFragment], None]) -> tuple[list[MetadataFragment], bool]:
    """Return the fragments up to `METADATA_AT_ONCE_BYTES`, and whether they are all."""
    found: list[MetadataFragment] = []
    size = 0
    async for some in fragments:
        found += some
        size += sum(len(fragment.dicom_json) for fragment in some)
        if size > METADATA_AT_ONCE_BYTES:
            return found, False
    return found, True


def _metadata_tag(base: bytes, fragments: Sequence[MetadataFragment]) -> str:
    facts = blake2b(base, digest_size=16)
    facts.update("".join([f";{f.version} {f.sop_instance_uid}" for f in fragments]).encode())
    return entity_tag(facts.hexdigest(), weak=True)


async def _metadata_pieces(
    request: Request, study: str, base: bytes, gathered: list[MetadataFragment], rest: AsyncGenerator[list[MetadataFragment], None]
) -> AsyncGenerator[Piece, None]:
    """Yield the array in pieces; objects that lie in a pack are read from there."""
    reader = retrieval.of(request).reader
    separator = b"["
    async with aclosing(rest):
        while gathered:
            for fragment in gathered:
                yield separator
                separator = b","
                if not fragment.HasField("location"):
                    yield fragment.dicom_json.replace(b"\0", base)
                    continue
                again = partial(_ask_fragment_again, request, study, fragment.sop_instance_uid)
                async with aclosing(read(reader, [_place(fragment.location)], again)) as pieces:
                    async for _, piece in pieces:
                        yield bytes(piece).replace(b"\0", base)
            gathered = await anext(rest, [])
    yield b"[]" if separator == b"[" else b"]"


def _place(location: Location) -> Content:
    return Content(location.object, ((location.offset, location.length),), location.length)


async def _ask_fragment_again(request: Request, study: str, sop_instance_uid: str, _: int) -> Content:
    async with aclosing(_fragments(request, Target(study, "", sop_instance_uid))) as found:
        async for fragments in found:
            for fragment in fragments:
                return _place(fragment.location)
    raise errors.NotFound(f"there is no instance {sop_instance_uid}")


async def _zipped(pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
    """Compress pieces as they come, in blocks that are compressed off the loop."""
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    waiting: list[Piece] = []
    size = 0
    async with aclosing(pieces):
        async for piece in pieces:
            waiting.append(piece)
            size += len(piece)
            if size >= GZIP_OFF_LOOP_BYTES:
                yield await asyncio.to_thread(packer.compress, b"".join(waiting))
                waiting, size = [], 0
    yield packer.compress(b"".join(waiting)) + packer.flush()


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    return packer.compress(body) + packer.flush()
