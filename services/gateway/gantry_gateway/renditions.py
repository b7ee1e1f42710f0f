"""What the renderer makes for retrieve: frames and instances in other transfer syntaxes, rendered images.

The renderer gets the record of an instance together with its metadata, so that it asks nobody but blob.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc.aio

from gantry.index.v1.index_pb2 import GetMetadataRequest, InstanceRecord, MetadataFragment, Scope
from gantry.renderer.v1.renderer_pb2 import (
    GetStatusRequest,
    RenderRequest,
    RenderResponse,
    Source,
    TranscodeFramesRequest,
    TranscodeFramesResponse,
    TranscodeInstanceRequest,
    TranscodeInstanceResponse,
)
from gantry_gateway.records import INDEX_S
from gantry_runtime import rpc_errors
from gantry_standard import errors
from gantry_standard.media_types import EXPLICIT_VR_LE

if TYPE_CHECKING:
    from gantry.index.v1.index_pb2_grpc import IndexServiceAsyncStub
    from gantry.renderer.v1.renderer_pb2_grpc import RendererServiceAsyncStub

RENDER_S = 60.0
"""Seconds that one rendering, or one message of a stream, may take."""

STREAM_S = 3600.0
"""Seconds that a whole stream may take, the client's pace included."""

STATUS_S = 5.0
CAPABILITIES_AGE_S = 30.0
MOST_METADATA_BYTES = 32 << 20
MOST_REFUSALS = 10_000
REFUSAL_S = 600.0
"""Seconds that the renderer is not asked again for what it could not make."""


IMPOSSIBLE = (errors.NotAcceptable, errors.Unsupported, errors.CorruptInstance)
"""Errors of the renderer that mean: this instance cannot be had so. Anything else is a failure."""


async def messages(call: Any, service: str) -> AsyncGenerator[Any, None]:
    """Yield the messages of a server stream; the call ends with the iteration.

    Raises:
        errors.Unavailable: no message within `RENDER_S`. Other errors as the service raised them.
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


class Renditions:
    """Calls the renderer; keeps for a short while what it can do and what it was told about instances."""

    def __init__(self, renderer: "RendererServiceAsyncStub", index: "IndexServiceAsyncStub") -> None:
        self._renderer = renderer
        self._index = index
        self._decodes: frozenset[str] = frozenset()
        self._encodes: frozenset[str] = frozenset()
        self._asked = float("-inf")
        self._metadata: OrderedDict[tuple[str, int], MetadataFragment] = OrderedDict()
        self._metadata_bytes = 0
        self._refusals: OrderedDict[tuple[str, int, str], float] = OrderedDict()

    async def can_send(self, record: InstanceRecord, transfer_syntax_uid: str) -> bool:
        """Say whether an instance may be had in another transfer syntax, as far as is known without trying. Errors as `can_transcode`."""
        asked = self._refusals.get((record.stored.sop_instance_uid, record.version, transfer_syntax_uid))
        if asked is not None and time.monotonic() - asked < REFUSAL_S:
            return False
        return await self.can_transcode(record.stored.layout.wire_transfer_syntax_uid, transfer_syntax_uid)

    def remember_refusal(self, sop_instance_uid: str, version: int, transfer_syntax_uid: str) -> None:
        """Keep for a while that an instance cannot be had in a transfer syntax."""
        self._refusals[sop_instance_uid, version, transfer_syntax_uid] = time.monotonic()
        if len(self._refusals) > MOST_REFUSALS:
            self._refusals.popitem(last=False)

    async def can_transcode(self, stored: str, wanted: str) -> bool:
        """Say whether the renderer decodes one transfer syntax and encodes the other.

        Raises:
            errors.Unavailable: it does not answer.
        """
        if time.monotonic() - self._asked > CAPABILITIES_AGE_S:
            with rpc_errors.translated("renderer"):
                status = await self._renderer.GetStatus(GetStatusRequest(), timeout=STATUS_S)
            self._decodes, self._encodes = frozenset(status.decodes), frozenset(status.encodes)
            self._asked = time.monotonic()
        return stored in self._decodes | {EXPLICIT_VR_LE} and wanted in self._encodes | {EXPLICIT_VR_LE}

    async def source(self, record: InstanceRecord) -> Source:
        """Return what the renderer needs to know about an instance.

        Raises:
            errors.NotFound: it is no more.
            errors.Unavailable: index does not answer, or the instance was replaced meanwhile.
        """
        stored = record.stored
        fragment = await self._fragment(record)
        source = Source(stored=stored, version=record.version)
        if fragment.HasField("location"):
            source.stored.dicom_json_location.CopyFrom(fragment.location)
        else:
            source.stored.dicom_json = fragment.dicom_json
        return source

    async def _fragment(self, record: InstanceRecord) -> MetadataFragment:
        stored = record.stored
        key = (stored.sop_instance_uid, record.version)
        if (kept := self._metadata.get(key)) is not None:
            self._metadata.move_to_end(key)
            return kept
        scope = Scope(
            study_instance_uid=stored.study_instance_uid,
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
        self._keep(key, fragments[0])
        return fragments[0]

    def _keep(self, key: tuple[str, int], fragment: MetadataFragment) -> None:
        if key not in self._metadata:
            self._metadata[key] = fragment
            self._metadata_bytes += fragment.ByteSize()
        while self._metadata_bytes > MOST_METADATA_BYTES:
            _, dropped = self._metadata.popitem(last=False)
            self._metadata_bytes -= dropped.ByteSize()

    async def frames(
        self, record: InstanceRecord, frame_numbers: Sequence[int], transfer_syntax_uid: str
    ) -> AsyncGenerator[TranscodeFramesResponse, None]:
        """Yield frames in another transfer syntax: one or more messages each, `last` set on the last.

        Raises:
            errors of `IMPOSSIBLE`: they cannot be had so.
        """
        request = TranscodeFramesRequest(
            source=await self.source(record), frame_numbers=frame_numbers, transfer_syntax_uid=transfer_syntax_uid
        )
        async with aclosing(messages(self._renderer.TranscodeFrames(request, timeout=STREAM_S), "renderer")) as found:
            async for message in found:
                yield message

    async def instance(self, record: InstanceRecord, transfer_syntax_uid: str) -> AsyncGenerator[TranscodeInstanceResponse, None]:
        """Yield a PS3.10 file in another transfer syntax, in pieces. Errors as `frames`."""
        request = TranscodeInstanceRequest(source=await self.source(record), transfer_syntax_uid=transfer_syntax_uid)
        async with aclosing(messages(self._renderer.TranscodeInstance(request, timeout=STREAM_S), "renderer")) as found:
            async for message in found:
                yield message

    async def render(self, request: RenderRequest) -> RenderResponse:
        """Return one rendered image. Errors as `frames`."""
        with rpc_errors.translated("renderer"):
            return await self._renderer.Render(request, timeout=RENDER_S)
