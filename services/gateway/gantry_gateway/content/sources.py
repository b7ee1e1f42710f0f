"""Where retrieve gets its content from: instance records, metadata responses, stored bytes and renditions.

This module does not import the HTTP modules, so that the `Gateway` of `http/request.py` can use its types.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gantry_gateway.content.records import PortMark, Records
from gantry_gateway.content.renditions import Renditions
from gantry_gateway.settings import GatewaySettings
from gantry_runtime.blob_reader import BlobReader
from gantry_runtime.byte_bounded_cache import ByteBoundedCache

if TYPE_CHECKING:
    from gantry.index.v1.index_pb2_grpc import IndexServiceAsyncStub
    from gantry.renderer.v1.renderer_pb2_grpc import RendererServiceAsyncStub


@dataclass(frozen=True, slots=True)
class CachedMetadata:
    """A cached metadata response.

    Attributes:
        state: the state tag of the metadata, from index.
        body: as sent, in the content coding.
    """

    state: bytes
    etag: str
    body: bytes
    content_encoding: str

    @property
    def size_bytes(self) -> int:
        """Approximate memory of the entry in bytes."""
        return len(self.body) + 1000


@dataclass(frozen=True, slots=True)
class Retrieval:
    """The sources of content that the retrieve handlers use."""

    records: Records
    metadata: ByteBoundedCache[CachedMetadata]
    reader: BlobReader
    renditions: Renditions


def make_retrieval(
    settings: GatewaySettings,
    index: "IndexServiceAsyncStub",
    renderer: "RendererServiceAsyncStub",
    reader: BlobReader,
    mark: PortMark | None = None,
) -> Retrieval:
    """Create what the retrieve handlers use. Without `records.listening` no record is cached, and each request asks index.

    Args:
        mark: shared with the gateways of the port; None if no other gateway uses the port.
    """
    return Retrieval(
        Records(index, settings.record_cache_entries, mark=mark),
        ByteBoundedCache[CachedMetadata](settings.metadata_cache_bytes, lambda cached: cached.size_bytes),
        reader,
        Renditions(renderer, index, settings.rendition_cache_bytes),
    )
