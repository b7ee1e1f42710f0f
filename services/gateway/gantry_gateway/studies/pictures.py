"""Images in a store request that must be transformed: the renderer converts them to native frames, which are stored as bulkdata.

An image is sent to the renderer while it is received. If the renderer cannot read it, or it is too large, only the data sets that refer
to it fail.

Source: PS3.18 §10.5.2 (Table 10.5.2-1).
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import TYPE_CHECKING

from gantry.blob.v1 import blob_pb2
from gantry.renderer.v1 import renderer_pb2
from gantry_gateway.http.request import Request
from gantry_runtime.rpc import rpc_errors
from gantry_standard import errors, reasons
from gantry_standard.http.media_types import OCTET_STREAM
from gantry_standard.http.multipart import Event, PartBegin, PartData, PartEnd

if TYPE_CHECKING:
    import grpc.aio

    Call = grpc.aio.StreamStreamCall[renderer_pb2.DecodeImageRequest, renderer_pb2.DecodeImageResponse]

TRANSFORMED = ("image/png", "image/gif")

StoreEvent = Event | blob_pb2.PartStart


async def transformed(request: Request, events: AsyncIterator[Event], part_type: str) -> AsyncGenerator[StoreEvent]:
    """Yield the parts of a payload, with each image that must be transformed replaced by a PartStart and its native frames.

    Args:
        part_type: Content-Type of a part without this header.

    Raises:
        errors.RetryLater: the renderer does not answer or is overloaded.
    """
    async for event in events:
        if isinstance(event, PartBegin) and (media_type := _media_type(event, part_type)) in TRANSFORMED:
            async for transformed_event in _transform(request, events, media_type, event.headers.get("content-location", "")):
                yield transformed_event
        else:
            yield event


def has_picture(events: Iterable[Event], part_type: str) -> bool:
    """Return whether one of these events begins an image that must be transformed."""
    return any(type(event) is PartBegin and _media_type(event, part_type) in TRANSFORMED for event in events)


def _media_type(event: PartBegin, part_type: str) -> str:
    return (event.headers.get("content-type", "") or part_type).partition(";")[0].strip().lower()


async def _transform(request: Request, events: AsyncIterator[Event], media_type: str, content_location: str) -> AsyncIterator[StoreEvent]:
    gateway = request.gateway
    start = blob_pb2.PartStart(content_type=OCTET_STREAM, content_location=content_location)
    call = gateway.renderer.DecodeImage(timeout=gateway.settings.store_max_s)
    try:
        # The renderer answers only after it has received the whole image, so the writes cannot fail because it refuses the image
        with rpc_errors.translated("renderer"):
            await call.write(renderer_pb2.DecodeImageRequest(media_type=media_type))
            async for event in events:
                if isinstance(event, PartEnd):
                    break
                if isinstance(event, PartData):
                    await call.write(renderer_pb2.DecodeImageRequest(data=bytes(event.data)))
            await call.done_writing()
        async for transformed_event in _answers(call, start):
            yield transformed_event
    finally:
        call.cancel()
    yield PartEnd()


async def _answers(call: "Call", start: blob_pb2.PartStart) -> AsyncIterator[StoreEvent]:
    is_begun = False
    try:
        with rpc_errors.translated("renderer"):
            async for answer in call:
                if not is_begun:
                    is_begun = True
                    start.pixel.CopyFrom(answer.pixel)
                    start.number_of_frames = answer.number_of_frames
                    yield start
                if answer.data:
                    yield PartData(memoryview(answer.data))
    except errors.RequestError as error:
        if is_begun:
            raise
        yield _refused(start, error)


def _refused(start: blob_pb2.PartStart, error: errors.RequestError) -> blob_pb2.PartStart:
    is_too_large = isinstance(error, errors.PayloadTooLarge)
    reason = reasons.PROCESSING_FAILURE if is_too_large else reasons.CANNOT_UNDERSTAND
    return blob_pb2.PartStart(
        content_type=start.content_type, content_location=start.content_location, failure_reason=reason, explanation=error.message
    )
