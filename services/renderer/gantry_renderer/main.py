"""gantry-renderer: open the reader, the pool and the server."""

import sys

from gantry.blob.v1.blob_pb2_grpc import BlobServiceStub
from gantry.renderer.v1 import renderer_pb2_grpc
from gantry_renderer.edge import RendererService, missing_workers
from gantry_renderer.settings import RendererSettings
from gantry_renderer.transactions.decode_image import ImageDecoding
from gantry_renderer.transactions.render import Rendering
from gantry_renderer.transactions.transcode import Transcoding
from gantry_renderer.workers import pool as pools
from gantry_renderer.workers.pool import Admission
from gantry_runtime import process, telemetry
from gantry_runtime.blob_reader import BlobReader, MappedReader, StreamedReader
from gantry_runtime.byte_bounded_cache import ByteBoundedCache
from gantry_runtime.process import Process
from gantry_runtime.rpc import channels


async def open_all(running: Process, settings: RendererSettings) -> None:
    """Open everything. Returns when the workers are warm and the port answers."""
    stack = running.stack
    blob = BlobServiceStub(await stack.enter_async_context(channels.channel(settings.blob_address)))
    reader: BlobReader = StreamedReader(blob) if settings.blob_directory is None else MappedReader(settings.blob_directory, blob)
    pool = await stack.enter_async_context(pools.opened(settings.renderer_workers, settings.render_timeout_s))
    running.watch(pool.keep(), "keep workers")
    service = make_service(reader, pool, settings)

    async def missing() -> str:
        return missing_workers(pool)

    await stack.enter_async_context(telemetry.admin(settings.renderer_admin_listen, missing))
    await stack.enter_async_context(
        channels.serving(lambda server: renderer_pb2_grpc.add_RendererServiceServicer_to_server(service, server), settings.renderer_listen)
    )


def make_service(reader: BlobReader, pool: pools.Pool, settings: RendererSettings) -> RendererService:
    """Build the service."""
    limit = pool.size + settings.renderer_queue
    cache = ByteBoundedCache[bytes](settings.renderer_cache_bytes, len)
    rendering = Rendering(reader, pool, Admission(limit, "frames to render"), cache)
    transcoding = Transcoding(reader, pool, Admission(limit, "transcodings"), cache)
    images = ImageDecoding(pool, Admission(limit, "images to decode"), settings.image_max_bytes, settings.image_max_decoded_bytes)
    return RendererService(rendering, transcoding, images, pool)


def main() -> int:
    """Run until the process is told to stop."""
    return process.run("renderer", RendererSettings, open_all)


if __name__ == "__main__":
    sys.exit(main())
