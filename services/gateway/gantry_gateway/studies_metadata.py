"""Studies service, Retrieve: metadata, joined from fragments that were made when the instances were stored.

Source: PS3.18 §10.4.1.1.2.
"""

import asyncio
import zlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from hashlib import blake2b

from gantry.blob.v1.blob_pb2 import Location
from gantry.index.v1.index_pb2 import GetMetadataRequest, MetadataFragment, Scope
from gantry_gateway import payload, retrieval
from gantry_gateway.compression import accepts_gzip
from gantry_gateway.conditional import entity_tag, not_modified
from gantry_gateway.payload import Headers, Immediate, Response
from gantry_gateway.records import INDEX_S
from gantry_gateway.request import Request
from gantry_gateway.retrieval import Target
from gantry_gateway.stored_content import Content, Piece, read
from gantry_runtime import rpc_errors
from gantry_standard import errors
from gantry_standard.media_types import DICOM_JSON, Resource
from gantry_standard.negotiation import select_json

METADATA_AT_ONCE_BYTES = 8 << 20
"""Bytes of metadata that are gathered for an ETag and a Content-Length; more is streamed without."""

GZIP_FROM_BYTES = 1024

GZIP_OFF_LOOP_BYTES = 128 << 10

GZIP_LEVEL = 1

GZIPPED = payload.headers(content_encoding="gzip")

METADATA_S = 20 * INDEX_S
"""Seconds that the metadata of a study may take, the client's pace included."""


async def retrieve_metadata(request: Request) -> Response:
    """Answer GET of the metadata of a study, a series or an instance as DICOM JSON (§10.4.1.1.2): one array."""
    target = retrieval.target(request)
    query_accept = request.parameter("accept") if request.scope["query_string"] else None
    select_json(Resource.METADATA, request.accept, query_accept, request.gateway.settings.strict_accept)
    base = request.base_url.encode("latin-1")
    url = f"{target.url(request.base_url)}/metadata"
    zipped = accepts_gzip(request.headers.get("accept-encoding", ""))
    fragments = _fragments(request, target)
    try:
        gathered, ended = await _gather(fragments)
    except BaseException:
        await fragments.aclose()
        raise
    etag = _metadata_tag(base, gathered) if ended else ""
    if etag and not_modified(request.headers.get("if-none-match", ""), etag):
        return payload.not_modified(etag, url)
    fields = payload.headers(
        content_type=DICOM_JSON,
        content_location=url,
        etag=etag,
        vary="Accept, Accept-Encoding",
        cache_control="private, no-cache",
    )
    if ended and not any(fragment.HasField("location") for fragment in gathered):
        return await _metadata_at_once(base, gathered, fields, zipped)
    pieces = _metadata_pieces(request, target.study, base, gathered, fragments)
    if not zipped:
        return await payload.gathered(200, fields, pieces)
    return await payload.gathered(200, [*fields, *GZIPPED], _zipped(pieces))


async def _metadata_at_once(base: bytes, fragments: list[MetadataFragment], fields: Headers, zipped: bool) -> Response:
    body = b"[" + b",".join([fragment.dicom_json for fragment in fragments]).replace(b"\0", base) + b"]"
    if zipped and len(body) >= GZIP_FROM_BYTES:
        body = await asyncio.to_thread(_gzip, body) if len(body) > GZIP_OFF_LOOP_BYTES else _gzip(body)
        fields = [*fields, *GZIPPED]
    return Immediate(200, [*fields, *payload.headers(content_length=str(len(body)))], [body])


async def _fragments(request: Request, target: Target) -> AsyncGenerator[list[MetadataFragment], None]:
    scope = Scope(study_instance_uid=target.study, series_instance_uid=target.series, sop_instance_uid=target.instance)
    call = request.gateway.index.GetMetadata(GetMetadataRequest(scope=scope), timeout=METADATA_S)
    try:
        with rpc_errors.translated("index"):
            async for message in call:
                yield list(message.fragments)
    finally:
        call.cancel()


async def _gather(fragments: AsyncGenerator[list[MetadataFragment], None]) -> tuple[list[MetadataFragment], bool]:
    """Return the fragments up to `METADATA_AT_ONCE_BYTES`, and whether they are all."""
    found: list[MetadataFragment] = []
    size = 0
    async for some in fragments:
        found += some
        size += sum(len(fragment.dicom_json) for fragment in some)
        if size > METADATA_AT_ONCE_BYTES:
            return found, False
    return found, True


def _metadata_tag(base: bytes, fragments: Sequence[MetadataFragment]) -> str:
    facts = blake2b(base, digest_size=16)
    facts.update("".join([f";{f.version} {f.sop_instance_uid}" for f in fragments]).encode())
    return entity_tag(facts.hexdigest(), weak=True)


async def _metadata_pieces(
    request: Request, study: str, base: bytes, gathered: list[MetadataFragment], rest: AsyncGenerator[list[MetadataFragment], None]
) -> AsyncGenerator[Piece, None]:
    """Yield the array in pieces; objects that lie in a pack are read from there."""
    reader = retrieval.of(request).reader
    separator = b"["
    async with aclosing(rest):
        while gathered:
            for fragment in gathered:
                yield separator
                separator = b","
                if not fragment.HasField("location"):
                    yield fragment.dicom_json.replace(b"\0", base)
                    continue
                again = partial(_ask_fragment_again, request, study, fragment.sop_instance_uid)
                async with aclosing(read(reader, [_place(fragment.location)], again)) as pieces:
                    async for _, piece in pieces:
                        yield bytes(piece).replace(b"\0", base)
            gathered = await anext(rest, [])
    yield b"[]" if separator == b"[" else b"]"


def _place(location: Location) -> Content:
    return Content(location.object, ((location.offset, location.length),), location.length)


async def _ask_fragment_again(request: Request, study: str, sop_instance_uid: str, _: int) -> Content:
    async with aclosing(_fragments(request, Target(study, "", sop_instance_uid))) as found:
        async for fragments in found:
            for fragment in fragments:
                return _place(fragment.location)
    raise errors.NotFound(f"there is no instance {sop_instance_uid}")


async def _zipped(pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
    """Compress pieces as they come, in blocks that are compressed off the loop."""
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    waiting: list[Piece] = []
    size = 0
    async with aclosing(pieces):
        async for piece in pieces:
            waiting.append(piece)
            size += len(piece)
            if size >= GZIP_OFF_LOOP_BYTES:
                yield await asyncio.to_thread(packer.compress, b"".join(waiting))
                waiting, size = [], 0
    yield packer.compress(b"".join(waiting)) + packer.flush()


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    return packer.compress(body) + packer.flush()
