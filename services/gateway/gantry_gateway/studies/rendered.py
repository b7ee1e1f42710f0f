"""Studies service, Retrieve: rendered instances and frames.

Source: PS3.18 §10.4.1.1.3, §8.3.5.1, §8.7.4.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from gantry.index.v1.index_pb2 import InstanceRecord
from gantry.renderer.v1.renderer_pb2 import RenderRequest, Source
from gantry.renderer.v1.renderer_pb2 import Viewport as ViewportMessage
from gantry.renderer.v1.renderer_pb2 import Window as WindowMessage
from gantry_gateway.answers import bodies
from gantry_gateway.content import retrieval
from gantry_gateway.content.renditions import IMPOSSIBLE, Renditions
from gantry_gateway.http import responses
from gantry_gateway.http.conditional import entity_tag, not_modified
from gantry_gateway.http.request import Request
from gantry_gateway.http.responses import Chunk, Immediate, Response
from gantry_gateway.studies.frames import check_frames, parse_frame_list
from gantry_standard import errors
from gantry_standard.http import multipart_writer
from gantry_standard.http.media_types import LOSSY, Resource
from gantry_standard.http.negotiation import Choice, available
from gantry_standard.http.rendering_parameters import Rendering, Viewport, Window, parse_rendering

FORM = 1
"""Part of the entity tags. It must be changed when the renderer renders the same request differently."""

AHEAD = 4
"""Most frames of one response that are rendered at the same time."""

PAUSES_S = (0.1, 0.2, 0.5, 1, 1, 2, 2, 5, 5)
"""Seconds between two attempts to render a frame, if the renderer is overloaded. There is one attempt for the first frame of a response."""


@dataclass(frozen=True, slots=True)
class _Job:
    """The frames of one response and how they are rendered.

    Attributes:
        numbers: frame numbers, from 1.
        url: returns the URL of the source resource of a frame number.
    """

    record: InstanceRecord
    numbers: Sequence[int]
    rendering: Rendering
    url: Callable[[int], str]


async def retrieve_rendered_instance(request: Request) -> Response:
    """Answer GET of a rendered instance: the image of its only frame, or one part per frame (§10.4.1.1.3)."""
    rendering = parse_rendering(request.parameter)
    record = await retrieval.record_of(request)
    if not record.stored.layout.HasField("frames"):
        raise errors.NotAcceptable(f"instance {record.stored.sop_instance_uid} has no pixel data; only images can be rendered")
    many = record.stored.layout.frames.number_of_frames
    resource = Resource.RENDERED if many == 1 else Resource.RENDERED_INSTANCE_FRAMES
    url = retrieval.target(request).url(request.base_url)
    job = _Job(record, range(1, many + 1), rendering, lambda number: url if many == 1 else f"{url}/frames/{number}")
    return await _send(request, job, resource)


async def retrieve_rendered_frames(request: Request) -> Response:
    """Answer GET of rendered frames: the image of one frame, or one part per frame (§10.4.1.1.3)."""
    numbers = parse_frame_list(request.params["frames"])
    rendering = parse_rendering(request.parameter)
    record = await retrieval.record_of(request)
    check_frames(record.stored, numbers)
    url = retrieval.target(request).url(request.base_url)
    resource = Resource.RENDERED if len(numbers) == 1 else Resource.RENDERED_FRAMES
    return await _send(request, _Job(record, numbers, rendering, lambda number: f"{url}/frames/{number}"), resource)


async def _send(request: Request, job: _Job, resource: Resource) -> Response:
    """Send the images in the first acceptable media type that the renderer can produce."""
    renditions = retrieval.of(request).renditions
    choices = retrieval.choices(request, resource)
    job.rendering.check_media_type(choices[0].media_type)
    reason = "nothing that the client accepts can be produced"
    for choice in choices:
        etag = _tag(job, choice)
        if not_modified(request.headers.get("if-none-match", ""), etag):
            return bodies.not_modified(etag)
        warning = f"299 {request.base_url}: {job.rendering.warning}" if job.rendering.warning else ""
        try:
            return await _rendered(renditions, job, choice, etag, warning)
        except IMPOSSIBLE as error:
            reason = error.message
    raise errors.NotAcceptable(f"{reason}; {available(resource)}")


def _tag(job: _Job, choice: Choice) -> str:
    numbers = f"{job.numbers[0]}-{job.numbers[-1]}" if isinstance(job.numbers, range) else ",".join(map(str, job.numbers))
    shown = job.rendering
    return entity_tag(
        FORM, job.record.version, numbers, choice.media_type, shown.quality, shown.window, shown.viewport, weak=choice.multipart
    )


async def _rendered(renditions: Renditions, job: _Job, choice: Choice, etag: str, warning: str) -> Response:
    source = await renditions.source(job.record)
    if choice.multipart:
        boundary = multipart_writer.new_boundary()
        fields = bodies.multipart_headers(choice.media_type, boundary, etag, warning=warning)
        return await bodies.gathered(200, fields, _parts(renditions, source, job, choice.media_type, boundary))
    image = (await renditions.render(_render_request(source, job.numbers[0], choice.media_type, job.rendering))).image
    fields = responses.headers(
        content_type=choice.media_type,
        content_length=str(len(image)),
        content_location=job.url(job.numbers[0]),
        etag=etag,
        vary="Accept",
        cache_control="private, no-cache",
        warning=warning,
    )
    return Immediate(200, fields, [image])


async def _parts(renditions: Renditions, source: Source, job: _Job, media_type: str, boundary: str) -> AsyncGenerator[Chunk, None]:
    """Yield one part per frame. Up to `AHEAD` frames are rendered while one is sent."""
    ahead: deque[asyncio.Task[bytes]] = deque()
    waiting = iter(job.numbers)

    async def image_of(number: int) -> bytes:
        request = _render_request(source, number, media_type, job.rendering)
        for pause_s in () if number == job.numbers[0] else PAUSES_S:
            # The status line may already be sent, so an overloaded renderer is asked again instead of answering 503
            try:
                return (await renditions.render(request)).image
            except errors.Overloaded:
                await asyncio.sleep(pause_s)
        return (await renditions.render(request)).image

    def start_next() -> None:
        if (number := next(waiting, None)) is not None:
            ahead.append(asyncio.create_task(image_of(number)))

    try:
        for _ in range(AHEAD):
            start_next()
        index = 0
        while ahead:
            image = await ahead[0]
            ahead.popleft()
            start_next()
            yield multipart_writer.part_head(boundary, media_type, job.url(job.numbers[index]), len(image), first=index == 0)
            yield image
            index += 1
        yield multipart_writer.closing(boundary)
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


def _render_request(source: Source, frame_number: int, media_type: str, rendering: Rendering) -> RenderRequest:
    return RenderRequest(
        sources=[source],
        frame_number=frame_number,
        media_type=media_type,
        quality=rendering.quality if media_type in LOSSY else 0,
        window=_window(rendering.window),
        viewport=_viewport(rendering.viewport),
    )


def _window(window: Window | None) -> WindowMessage | None:
    return None if window is None else WindowMessage(center=window.center, width=window.width, function=window.function)


def _viewport(viewport: Viewport | None) -> ViewportMessage | None:
    if viewport is None:
        return None
    return ViewportMessage(
        width=viewport.width,
        height=viewport.height,
        source_x=viewport.source_x,
        source_y=viewport.source_y,
        source_width=viewport.source_width,
        source_height=viewport.source_height,
    )
