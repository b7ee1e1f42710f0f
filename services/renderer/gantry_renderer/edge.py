"""RendererService over gRPC: parse the request, call the transaction, build the response."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from gantry.renderer.v1 import renderer_pb2, renderer_pb2_grpc
from gantry_renderer.codecs import coding
from gantry_renderer.picture.attributes import Window
from gantry_renderer.picture.draw import Presentation, Viewport
from gantry_renderer.transactions.decode_image import ImageDecoding
from gantry_renderer.transactions.instances import Instance
from gantry_renderer.transactions.render import Rendering
from gantry_renderer.transactions.sources import parse_sources
from gantry_renderer.transactions.transcode import Transcoding
from gantry_renderer.workers.pool import Pool
from gantry_runtime.rpc.channels import CHUNK_BYTES

Context = Any


class RendererService(renderer_pb2_grpc.RendererServiceServicer):
    """The service that `renderer.proto` defines."""

    def __init__(self, rendering: Rendering, transcoding: Transcoding, images: ImageDecoding, pool: Pool) -> None:
        self._rendering = rendering
        self._transcoding = transcoding
        self._images = images
        self._pool = pool

    async def Render(self, request: renderer_pb2.RenderRequest, context: Context) -> renderer_pb2.RenderResponse:
        """Render one frame."""
        presentation = parse_presentation(request)
        image = await self._rendering.render(parse_sources(request.sources), request.frame_number, presentation)
        return renderer_pb2.RenderResponse(image=image, media_type=request.media_type)

    async def TranscodeFrames(
        self, request: renderer_pb2.TranscodeFramesRequest, context: Context
    ) -> AsyncIterator[renderer_pb2.TranscodeFramesResponse]:
        """Stream frames in another transfer syntax."""
        instance = Instance(request.source)
        async with aclosing(self._transcoding.frames(instance, request.frame_numbers, request.transfer_syntax_uid)) as frames:
            async for number, data in frames:
                for begin in range(0, max(len(data), 1), CHUNK_BYTES):
                    end = begin + CHUNK_BYTES
                    yield renderer_pb2.TranscodeFramesResponse(frame_number=number, data=data[begin:end], last=end >= len(data))

    async def TranscodeInstance(
        self, request: renderer_pb2.TranscodeInstanceRequest, context: Context
    ) -> AsyncIterator[renderer_pb2.TranscodeInstanceResponse]:
        """Stream a PS3.10 file in another transfer syntax."""
        async with aclosing(self._transcoding.instance(Instance(request.source), request.transfer_syntax_uid)) as chunks:
            async for chunk in chunks:
                yield renderer_pb2.TranscodeInstanceResponse(data=chunk)

    async def DecodeImage(
        self, request_iterator: AsyncIterator[renderer_pb2.DecodeImageRequest], context: Context
    ) -> AsyncIterator[renderer_pb2.DecodeImageResponse]:
        """Stream the native frames of an image file."""
        async with aclosing(self._images.decode(request_iterator)) as answers:
            async for answer in answers:
                yield answer

    async def GetStatus(self, request: renderer_pb2.GetStatusRequest, context: Context) -> renderer_pb2.GetStatusResponse:
        """Return whether frames can be decoded, and the transfer syntaxes that can be decoded and encoded."""
        workers, missing = self._pool.ready_workers, missing_workers(self._pool)
        return renderer_pb2.GetStatusResponse(
            ready=not missing, explanation=missing, decodes=coding.decodes(), encodes=coding.encodes(), workers=workers
        )


def missing_workers(pool: Pool) -> str:
    """Return why no frame can be decoded; "" when frames can be decoded."""
    return "" if pool.ready_workers else f"none of {pool.size} worker processes is running"


def parse_presentation(request: renderer_pb2.RenderRequest) -> Presentation:
    """Return the presentation that a request asks for.

    Raises:
        BadRequest, NotAcceptable: a value is out of its range, or the media type cannot be rendered.
    """
    window = viewport = None
    if request.HasField("window"):
        window = Window(request.window.center, request.window.width, request.window.function)
    if request.HasField("viewport"):
        asked = request.viewport
        viewport = Viewport(
            asked.width,
            asked.height,
            asked.source_x,
            asked.source_y,
            asked.source_width if asked.HasField("source_width") else None,
            asked.source_height if asked.HasField("source_height") else None,
        )
    return Presentation(request.media_type, request.quality, window, viewport)
