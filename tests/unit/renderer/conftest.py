"""A renderer with two workers that reads a directory, behind gRPC."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gantry.blob.v1.blob_pb2_grpc import BlobServiceStub
from gantry.renderer.v1 import renderer_pb2, renderer_pb2_grpc
from gantry_renderer.main import make_service
from gantry_renderer.settings import RendererSettings
from gantry_renderer.workers import pool as pools
from gantry_renderer.workers.pool import Pool
from gantry_runtime.blob_reader import MappedReader
from gantry_runtime.rpc import channels
from tests.support import stored_instances


@dataclass
class Served:
    """A stub, the pool behind it, and where its objects lie."""

    stub: renderer_pb2_grpc.RendererServiceStub
    pool: Pool
    directory: Path
    objects: int = 0

    def store(self, data: bytes) -> renderer_pb2.Source:
        """Store a file as an object of its own."""
        self.objects += 1
        stored = stored_instances.store(data, f"packs/{self.objects}.pack")
        stored.write(self.directory)
        return stored.source


@pytest.fixture(scope="session")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async for one in serve(tmp_path_factory.mktemp("objects"), RendererSettings(renderer_workers=2)):
        yield one


async def serve(directory: Path, settings: RendererSettings) -> AsyncIterator[Served]:
    """Serve a renderer on a free port."""
    async with channels.channel("127.0.0.1:1") as nowhere, pools.opened(settings.renderer_workers, settings.render_timeout_s) as pool:
        service = make_service(MappedReader(directory, BlobServiceStub(nowhere)), pool, settings)

        def register(server: object) -> None:
            renderer_pb2_grpc.add_RendererServiceServicer_to_server(service, server)

        async with channels.serving(register, "127.0.0.1:0", 0.1) as port, channels.channel(f"127.0.0.1:{port}") as channel:
            yield Served(renderer_pb2_grpc.RendererServiceStub(channel), pool, directory)


@pytest.fixture
async def serve_with(tmp_path: Path) -> AsyncIterator[Callable[[RendererSettings], object]]:
    """Serve one more renderer, with other settings, for one test."""
    opened = []

    async def start(settings: RendererSettings) -> Served:
        generator = serve(tmp_path, settings)
        opened.append(generator)
        return await anext(generator)

    yield start
    for generator in opened:
        with pytest.raises(StopAsyncIteration):
            await anext(generator)
