"""What retrieve answers from: instance records, metadata answers, stored bytes and renditions.

Nothing here knows of HTTP, so the `Gateway` of `http/request.py` can name the type.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gantry_gateway.content.records import Mark, Records
from gantry_gateway.content.renditions import Renditions
from gantry_gateway.settings import GatewaySettings
from gantry_runtime.blob_reader import BlobReader
from gantry_runtime.byte_bounded_cache import ByteBoundedCache

if TYPE_CHECKING:
    from gantry.index.v1.index_pb2_grpc import IndexServiceAsyncStub
    from gantry.renderer.v1.renderer_pb2_grpc import RendererServiceAsyncStub


@dataclass(frozen=True, slots=True)
class KeptMetadata:
    """An answer with metadata that was sent before.

    Attributes:
        state: of what it was made from, as index names it.
    """

    state: bytes
    etag: str
    body: bytes
    content_encoding: str

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        return len(self.body) + 1000


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What the retrieve handlers use."""

    records: Records
    metadata: ByteBoundedCache[KeptMetadata]
    reader: BlobReader
    renditions: Renditions


def make_retrieval(
    settings: GatewaySettings,
    index: "IndexServiceAsyncStub",
    renderer: "RendererServiceAsyncStub",
    reader: BlobReader,
    mark: Mark | None = None,
) -> Retrieval:
    """Make what retrieve needs. Nothing is connected: without `records.listening` every request asks index.

    Args:
        mark: what the gateways of one port share; None: this gateway is alone.
    """
    return Retrieval(
        Records(index, settings.record_cache_entries, mark=mark),
        ByteBoundedCache[KeptMetadata](settings.metadata_cache_bytes, lambda kept: kept.size_bytes),
        reader,
        Renditions(renderer, index, settings.rendition_cache_bytes),
    )
