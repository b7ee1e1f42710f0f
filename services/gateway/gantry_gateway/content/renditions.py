"""Renditions: frames and instances in other transfer syntaxes, and rendered images, which the renderer makes for retrieve.

The renderer gets the record of an instance and, for rendering, its metadata, so it needs no other service than blob. Transcoded frames
and instances are cached, up to `GANTRY_RENDITION_CACHE_BYTES`. The key has the version of the instance, so an entry is never outdated.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc.aio

from gantry.index.v1.index_pb2 import GetMetadataRequest, InstanceRecord, MetadataFragment, Scope
from gantry.renderer.v1.renderer_pb2 import (
    SOURCE_ROLE_SUBJECT,
    GetStatusRequest,
    RenderRequest,
    RenderResponse,
    Source,
    TranscodeFramesRequest,
    TranscodeFramesResponse,
    TranscodeInstanceRequest,
)
from gantry_gateway.content.records import INDEX_S
from gantry_runtime.byte_bounded_cache import ByteBoundedCache, CountBoundedCache
from gantry_runtime.rpc import rpc_errors
from gantry_standard import errors
from gantry_standard.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN

if TYPE_CHECKING:
    from gantry.index.v1.index_pb2_grpc import IndexServiceAsyncStub
    from gantry.renderer.v1.renderer_pb2_grpc import RendererServiceAsyncStub

RENDER_S = 60.0
"""Timeout in seconds of one rendering, or of one message of a stream."""

STREAM_S = 3600.0
"""Timeout in seconds of a whole stream; a slow client prolongs it."""

STATUS_S = 5.0
CAPABILITIES_AGE_S = 30.0
MAX_METADATA_BYTES = 32 << 20
MAX_REFUSALS = 10_000
REFUSAL_S = 600.0
"""Seconds during which the renderer is not asked again for a rendition that it could not make."""


IMPOSSIBLE = (errors.NotAcceptable, errors.Unsupported, errors.CorruptInstance)
"""Errors of the renderer that mean that the rendition cannot be made. Other errors are failures."""


CachedChunks = tuple[bytes, ...]


async def messages(call: Any, service: str) -> AsyncGenerator[Any, None]:
    """Yield the messages of a server stream; the call is cancelled when the iteration ends.

    Raises:
        errors.Unavailable: no message arrived within `RENDER_S`.
        errors.GantryError: the error of the service.
    """
    try:
        with rpc_errors.translated(service):
            while True:
                try:
                    async with asyncio.timeout(RENDER_S):
                        message = await call.read()
                except TimeoutError as error:
                    raise errors.Unavailable(f"{service} does not answer") from error
                if message is grpc.aio.EOF:
                    return
                yield message
    finally:
        call.cancel()


@dataclass(frozen=True, slots=True)
class FrameChunk:
    """Bytes of a transcoded frame; `last` is set in the last chunk of the frame."""

    frame_number: int
    data: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class FileChunk:
    """Bytes of a transcoded PS3.10 file."""

    data: bytes


class Renditions:
    """Calls the renderer. Caches transcoded frames and files, the capabilities of the renderer, and metadata of instances.

    Args:
        cache_bytes: most bytes of cached frames and files; an entry may have an eighth of it.
    """

    def __init__(self, renderer: "RendererServiceAsyncStub", index: "IndexServiceAsyncStub", cache_bytes: int) -> None:
        self._renderer = renderer
        self._index = index
        self._transcoded = ByteBoundedCache[CachedChunks](cache_bytes, lambda chunks: sum(map(len, chunks)))
        self._most_entry_bytes = cache_bytes // 8
        self._decodes: frozenset[str] = frozenset()
        self._encodes: frozenset[str] = frozenset()
        self._asked_s = float("-inf")
        self._metadata = ByteBoundedCache[MetadataFragment](MAX_METADATA_BYTES, MetadataFragment.ByteSize)
        self._refusals = CountBoundedCache[tuple[str, int, str], float](MAX_REFUSALS)

    async def can_send(self, record: InstanceRecord, transfer_syntax_uid: str) -> bool:
        """Return whether an instance can probably be sent in another transfer syntax. Errors as `can_transcode`.

        It cannot if the renderer lacks the decoder or encoder, or has recently refused this instance.
        """
        refused_s = self._refusals.get((record.stored.sop_instance_uid, record.version, transfer_syntax_uid))
        if refused_s is not None and time.monotonic() - refused_s < REFUSAL_S:
            return False
        return await self.can_transcode(record.stored.layout.wire_transfer_syntax_uid, transfer_syntax_uid)

    def remember_refusal(self, sop_instance_uid: str, version: int, transfer_syntax_uid: str) -> None:
        """Remember, for `REFUSAL_S` seconds, that an instance cannot be sent in a transfer syntax."""
        self._refusals.put((sop_instance_uid, version, transfer_syntax_uid), time.monotonic())

    async def can_transcode(self, stored: str, wanted: str) -> bool:
        """Return whether the renderer decodes the transfer syntax `stored` and encodes the transfer syntax `wanted`.

        Raises:
            errors.Unavailable: the renderer does not answer.
        """
        if time.monotonic() - self._asked_s > CAPABILITIES_AGE_S:
            with rpc_errors.translated("renderer"):
                status = await self._renderer.GetStatus(GetStatusRequest(), timeout=STATUS_S)
            self._decodes, self._encodes = frozenset(status.decodes), frozenset(status.encodes)
            self._asked_s = time.monotonic()
        return stored in self._decodes | {EXPLICIT_VR_LITTLE_ENDIAN} and wanted in self._encodes | {EXPLICIT_VR_LITTLE_ENDIAN}

    async def source(self, record: InstanceRecord) -> Source:
        """Return the source of a rendering: the record of an instance and its metadata.

        Raises:
            errors.NotFound: the instance was deleted.
            errors.Unavailable: index does not answer, or the instance was replaced meanwhile.
        """
        stored = record.stored
        fragment = await self._fragment(record)
        source = Source(stored=stored, version=record.version, role=SOURCE_ROLE_SUBJECT)
        if fragment.HasField("location"):
            source.stored.dicom_json_location.CopyFrom(fragment.location)
        else:
            source.stored.dicom_json = fragment.dicom_json
        return source

    async def _fragment(self, record: InstanceRecord) -> MetadataFragment:
        stored = record.stored
        key = (stored.sop_instance_uid, record.version)
        if (cached := self._metadata.get(key)) is not None:
            return cached
        scope = Scope(
            collection=stored.study_instance_uid,
            series_instance_uid=stored.series_instance_uid,
            sop_instance_uid=stored.sop_instance_uid,
        )
        with rpc_errors.translated("index"):
            call = self._index.GetMetadata(GetMetadataRequest(scope=scope), timeout=INDEX_S)
            fragments = [fragment async for message in call for fragment in message.fragments]
        if not fragments:
            raise errors.NotFound(f"there is no instance {stored.sop_instance_uid}")
        if fragments[0].version != record.version:
            raise errors.Unavailable(f"instance {stored.sop_instance_uid} was replaced meanwhile")
        self._metadata.put(key, fragments[0])
        return fragments[0]

    async def frames(
        self, record: InstanceRecord, frame_numbers: Sequence[int], transfer_syntax_uid: str
    ) -> AsyncGenerator[FrameChunk, None]:
        """Yield frames in another transfer syntax, each as one or more chunks; `last` is set in the last chunk of a frame.

        Raises:
            errors of `IMPOSSIBLE`: the frames cannot be transcoded.
        """
        keys = {number: _key(record, transfer_syntax_uid, number) for number in frame_numbers}
        cached_frames = {number: cached for number, key in keys.items() if (cached := self._transcoded.get(key)) is not None}
        missing = [number for number in frame_numbers if number not in cached_frames]
        async with aclosing(self._transcoded_frames(record, missing, transfer_syntax_uid)) as messages:
            for number in frame_numbers:
                if number in cached_frames:
                    cached_chunks = cached_frames.pop(number)
                    for index, data in enumerate(cached_chunks, 1):
                        yield FrameChunk(number, data, index == len(cached_chunks))
                    continue
                collector = _Collector(self._most_entry_bytes)
                async for message in messages:
                    collector.add(message.data)
                    if message.last and (chunks := collector.chunks) is not None:
                        self._transcoded.put(keys[number], chunks)
                    yield FrameChunk(number, message.data, message.last)
                    if message.last:
                        break

    async def _transcoded_frames(
        self, record: InstanceRecord, frame_numbers: Sequence[int], transfer_syntax_uid: str
    ) -> AsyncGenerator[TranscodeFramesResponse, None]:
        if not frame_numbers:
            return
        source = Source(stored=record.stored, version=record.version)
        request = TranscodeFramesRequest(source=source, frame_numbers=frame_numbers, transfer_syntax_uid=transfer_syntax_uid)
        async with aclosing(messages(self._renderer.TranscodeFrames(request, timeout=STREAM_S), "renderer")) as messages_of_frames:
            async for message in messages_of_frames:
                yield message

    async def instance(self, record: InstanceRecord, transfer_syntax_uid: str) -> AsyncGenerator[FileChunk, None]:
        """Yield the chunks of a PS3.10 file in another transfer syntax. Errors as `frames`."""
        key = _key(record, transfer_syntax_uid, 0)
        if (cached := self._transcoded.get(key)) is not None:
            for data in cached:
                yield FileChunk(data)
            return
        source = Source(stored=record.stored, version=record.version)
        request = TranscodeInstanceRequest(source=source, transfer_syntax_uid=transfer_syntax_uid)
        collector = _Collector(self._most_entry_bytes)
        async with aclosing(messages(self._renderer.TranscodeInstance(request, timeout=STREAM_S), "renderer")) as messages_of_instance:
            async for message in messages_of_instance:
                collector.add(message.data)
                yield FileChunk(message.data)
        if (chunks := collector.chunks) is not None:
            self._transcoded.put(key, chunks)

    async def render(self, request: RenderRequest) -> RenderResponse:
        """Return one rendered image. Errors as `frames`."""
        with rpc_errors.translated("renderer"):
            return await self._renderer.Render(request, timeout=RENDER_S)


def _key(record: InstanceRecord, transfer_syntax_uid: str, frame_number: int) -> tuple[str, int, str, int]:
    """Return the cache key of a frame, or, with frame number 0, of the whole file."""
    return record.stored.sop_instance_uid, record.version, transfer_syntax_uid, frame_number


class _Collector:
    """Collects the chunks of a rendition for the cache, unless they exceed the maximum of bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes
        self._chunks: list[bytes] = []

    def add(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left >= 0:
            self._chunks.append(data)
        else:
            self._chunks.clear()

    @property
    def chunks(self) -> CachedChunks | None:
        """The collected chunks; None if there were too many bytes, or none."""
        return tuple(self._chunks) if self._left >= 0 and self._chunks else None
