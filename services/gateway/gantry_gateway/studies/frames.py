"""Studies service, Retrieve: frames, as stored or in another transfer syntax.

Source: PS3.18 §10.4.1.1.6.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from gantry.blob.v1.blob_pb2 import StoredInstance
from gantry.index.v1.index_pb2 import InstanceRecord
from gantry_gateway.answers import bodies, mixed
from gantry_gateway.answers.bodies import Part
from gantry_gateway.answers.mixed import Assembly, Begin, Draft, Events
from gantry_gateway.content import retrieval
from gantry_gateway.content.renditions import IMPOSSIBLE
from gantry_gateway.content.retrieval import Limit
from gantry_gateway.content.sources import Retrieval
from gantry_gateway.content.stored_content import Content, frame_content
from gantry_gateway.http import responses
from gantry_gateway.http.conditional import entity_tag, not_modified
from gantry_gateway.http.request import Request
from gantry_gateway.http.responses import Chunk, Response
from gantry_runtime.frame_locations import frames_are_separate
from gantry_standard import errors
from gantry_standard.dicom.transfer_syntaxes import transfer_syntax
from gantry_standard.http.media_types import Resource
from gantry_standard.http.negotiation import Choice, Plan, available

FRAME_GATHER_BYTES = 16 << 20
"""Most bytes of a transcoded frame that are gathered for the Content-Length of its part."""

_FRAME_LIST = re.compile(r"[1-9][0-9]{0,9}(?:,[1-9][0-9]{0,9})*")


@lru_cache(4096)
def parse_frame_list(text: str) -> tuple[int, ...]:
    """Return the frame numbers of a path: from 1, ascending, separated by commas (§10.1.1).

    Raises:
        errors.BadRequest: the text is not such a list.
    """
    if not _FRAME_LIST.fullmatch(text):
        raise errors.BadRequest("the frame list is not valid: expected frame numbers from 1, separated by commas")
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
        raise errors.NotFound(f"instance {stored.sop_instance_uid} has no pixel data, so it has no frames")
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
    if transfer_syntax(record.stored.layout.wire_transfer_syntax_uid).is_video:
        raise errors.NotAcceptable("a video is one bit stream, so its frames cannot be retrieved; its bulkdata is the whole bit stream")
    base = retrieval.target(request).url(request.base_url)
    return await _send_frames(request, FrameSet(record, numbers, text, lambda number: f"{base}/frames/{number}"), resource, choices)


@dataclass(frozen=True, slots=True)
class FrameSet:
    """Frames of one instance.

    Attributes:
        numbers: frame numbers, from 1.
        name: of the set, for entity tags.
        url: returns the URL of the part of a frame number.
    """

    record: InstanceRecord
    numbers: Sequence[int]
    name: str
    url: Callable[[int], str]


async def _send_frames(request: Request, frames: FrameSet, resource: Resource, choices: tuple[Choice, ...]) -> Response:
    """Send frames in the first form that can be produced."""
    tools, stored = retrieval.of(request), frames.record.stored
    reason, limit = "nothing that the client accepts can be produced", Limit(request)
    if limit.is_set and frames_are_separate(stored):
        for number in frames.numbers:
            limit.add(frame_content(stored, number).length)
    for plan in retrieval.plans_of(stored, choices):
        if not plan.multipart and len(frames.numbers) > 1:
            continue
        etag = entity_tag(
            frames.record.version, frames.name, plan.media_type.partition("/")[2], plan.transfer_syntax_uid, weak=plan.multipart
        )
        try:
            if plan.as_stored or await tools.renditions.can_send(frames.record, plan.transfer_syntax_uid):
                if not_modified(request.headers.get("if-none-match", ""), etag):
                    return bodies.not_modified(etag)
                send = send_stored_frames if plan.as_stored else send_transcoded_frames
                return await send(request, tools, frames, plan, etag)
        except IMPOSSIBLE as error:
            reason = error.message
    raise errors.NotAcceptable(f"{reason}; {available(resource, stored.layout.wire_transfer_syntax_uid)}")


def content_type_of(plan: Plan) -> str:
    return f"{plan.media_type}; transfer-syntax={plan.transfer_syntax_uid}"


async def send_stored_frames(request: Request, tools: Retrieval, frames: FrameSet, plan: Plan, etag: str) -> Response:
    stored, content_type = frames.record.stored, content_type_of(plan)

    async def relocate(index: int) -> Content:
        record = await tools.records.ask(stored.study_instance_uid, stored.series_instance_uid, stored.sop_instance_uid)
        if record.version != frames.record.version and record.stored.dataset_digest != stored.dataset_digest:
            raise errors.Unavailable("the instance was replaced while it was read")
        return frame_content(record.stored, frames.numbers[index])

    def parts() -> Iterator[Part]:
        for number in frames.numbers:
            yield Part(content_type, frames.url(number), frame_content(stored, number))

    if not plan.multipart:
        return await bodies.single_part(request, tools.reader, next(parts()), etag, relocate)
    return await bodies.multipart(request, tools.reader, plan.media_type, list(parts()), len(frames.numbers), etag, relocate)


async def send_transcoded_frames(request: Request, tools: Retrieval, frames: FrameSet, plan: Plan, etag: str) -> Response:
    if not plan.multipart:
        content_type, url = content_type_of(plan), frames.url(frames.numbers[0])
        if request.method == "HEAD":
            return responses.Immediate(200, bodies.single_part_headers(content_type, url, etag), [])
        return await bodies.generated(request, content_type, url, etag, whole_frames(tools, frames, plan))

    async def drafts() -> AsyncIterator[Draft]:
        stored = frames.record.stored
        yield Draft(stored.sop_instance_uid, frames.record.version, (plan,), lambda plan: frame_events(tools, frames, plan))

    return await mixed.send(request, Assembly(tools.renditions, drafts()), plan.media_type, 200, etag)


async def whole_frames(tools: Retrieval, frames: FrameSet, plan: Plan) -> AsyncGenerator[Chunk, None]:
    """Yield the bytes of all frames one after another."""
    async with aclosing(tools.renditions.frames(frames.record, frames.numbers, plan.transfer_syntax_uid)) as messages:
        async for message in messages:
            yield message.data


async def frame_events(tools: Retrieval, frames: FrameSet, plan: Plan) -> Events:
    """Yield one part per frame, with its length if the frame has less than `FRAME_GATHER_BYTES`."""
    index, size, begun = 0, 0, False
    waiting: list[bytes] = []
    async with aclosing(tools.renditions.frames(frames.record, frames.numbers, plan.transfer_syntax_uid)) as messages:
        async for message in messages:
            waiting.append(message.data)
            size += len(message.data)
            if not message.last and size < FRAME_GATHER_BYTES:
                continue
            if not begun:
                yield Begin(content_type_of(plan), frames.url(frames.numbers[index]), size if message.last else None)
            for data in waiting:
                yield data
            waiting, size, begun = [], 0, not message.last
            index += message.last
    if index != len(frames.numbers):
        raise errors.GantryError(f"renderer sent {index} frames, expected {len(frames.numbers)}")
