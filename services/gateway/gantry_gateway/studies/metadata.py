"""Studies service, Retrieve: metadata, joined from the metadata fragments that were written when the instances were stored.

As DICOM JSON the fragments are sent as stored; as XML each of them becomes a document. A JSON response is cached in its content coding.
It is sent again while index reports that the metadata is unchanged.

Source: PS3.18 §10.4.1.1.2.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from hashlib import blake2b

from gantry.index.v1.index_pb2 import GetMetadataResponse, MetadataFragment
from gantry_gateway.answers import bodies, xml_parts
from gantry_gateway.content import retrieval
from gantry_gateway.content.retrieval import Target
from gantry_gateway.content.sources import CachedMetadata
from gantry_gateway.content.stored_content import Content, content_at, read
from gantry_gateway.http import compression, responses, urls
from gantry_gateway.http.compression import Coding
from gantry_gateway.http.conditional import entity_tag, not_modified
from gantry_gateway.http.request import Request
from gantry_gateway.http.responses import Chunk, Headers, Immediate, Response
from gantry_standard import errors
from gantry_standard.dicom import native_xml
from gantry_standard.http import multipart_writer
from gantry_standard.http.media_types import DICOM_JSON, DICOM_XML, Resource

METADATA_AT_ONCE_BYTES = 8 << 20
"""Most bytes of metadata that are gathered for an ETag and a Content-Length; more metadata is streamed without them."""

XML_BATCH_BYTES = 256 << 10
"""Bytes of DICOM JSON in one thread call; a longer object is a batch of its own."""

_SOP_INSTANCE_UID, _SERIES_INSTANCE_UID = "00080018", "0020000E"
_IDENTIFIERS = frozenset({_SOP_INSTANCE_UID, _SERIES_INSTANCE_UID})


async def retrieve_metadata(request: Request) -> Response:
    """Answer GET of the metadata of a study, a series or an instance (§10.4.1.1.2): one array, or one document per part."""
    target = retrieval.target(request)
    media_type = retrieval.selected(request, Resource.METADATA).media_type
    coding = compression.of(request)
    base = request.base_url.encode("latin-1")
    url = f"{target.url(request.base_url)}/metadata"
    cache, key = retrieval.of(request).metadata, (target, base, coding)
    cached = cache.get(key) if media_type == DICOM_JSON else None
    answers = retrieval.metadata_of(request, target, cached.state if cached is not None else b"")
    first = await anext(answers, GetMetadataResponse())
    if cached is not None and first.unchanged:
        await answers.aclose()
        return _whole(request, url, cached)
    fragments = _fragments(first, answers)
    try:
        gathered, ended = await _gather(fragments)
    except BaseException:
        await fragments.aclose()
        raise
    etag = _metadata_tag(base, media_type, gathered) if ended else ""
    if etag and not_modified(request.headers.get("if-none-match", ""), etag):
        return bodies.not_modified(etag, url)
    if ended and media_type == DICOM_JSON and not any(fragment.HasField("location") for fragment in gathered):
        response = CachedMetadata(first.state, etag, *await _joined(base, gathered, coding))
        if response.state:
            cache.put(key, response)
        return _whole(request, url, response)
    fields = _headers(url, etag)
    if media_type == DICOM_XML:
        boundary = multipart_writer.new_boundary()
        fields += responses.headers(content_type=multipart_writer.content_type(DICOM_XML, boundary))
        batches = _batches(request, target.study, base, gathered, fragments)
        return await _in_chunks(fields, xml_parts.chunks(boundary, batches, partial(_instance_url, request.base_url, target)), coding)
    fields += responses.headers(content_type=DICOM_JSON)
    return await _in_chunks(fields, _metadata_chunks(request, target.study, base, gathered, fragments), coding)


def _headers(url: str, etag: str) -> Headers:
    return responses.headers(content_location=url, etag=etag, vary=compression.VARY, cache_control="private, no-cache")


def _whole(request: Request, url: str, cached: CachedMetadata) -> Response:
    if not_modified(request.headers.get("if-none-match", ""), cached.etag):
        return bodies.not_modified(cached.etag, url)
    own = responses.headers(content_type=DICOM_JSON, content_encoding=cached.content_encoding, content_length=str(len(cached.body)))
    return Immediate(200, [*_headers(url, cached.etag), *own], [cached.body])


async def _joined(base: bytes, fragments: list[MetadataFragment], coding: Coding) -> tuple[bytes, str]:
    """Return the body of a response, and its Content-Encoding."""
    body = b"[" + b",".join([fragment.dicom_json for fragment in fragments]).replace(b"\0", base) + b"]"
    if coding.applies_to(len(body)):
        return await compression.packed(coding, body), coding.name
    return body, ""


async def _in_chunks(fields: Headers, chunks: AsyncGenerator[Chunk, None], coding: Coding) -> Response:
    if not coding.name:
        return await bodies.gathered(200, fields, chunks)
    fields = [*fields, *responses.headers(content_encoding=coding.name)]
    return await bodies.gathered(200, fields, compression.packed_chunks(coding, chunks))


def _instance_url(base_url: str, target: Target, dicom_json: bytes) -> str:
    """Return the URL of an instance's metadata. UIDs that the path does not have are read from the DICOM JSON object."""
    series, instance = target.series, target.instance
    if not instance:
        identifiers = native_xml.first_values(dicom_json, _IDENTIFIERS)
        series, instance = identifiers.get(_SERIES_INSTANCE_UID, series), identifiers.get(_SOP_INSTANCE_UID, "")
    return f"{urls.instance(base_url, target.study, series, instance)}/metadata"


async def _batches(
    request: Request, study: str, base: bytes, gathered: list[MetadataFragment], rest: AsyncGenerator[list[MetadataFragment], None]
) -> AsyncGenerator[list[bytes], None]:
    """Yield lists of DICOM JSON objects of about `XML_BATCH_BYTES`; objects that are stored in a pack are read from there."""
    waiting: list[bytes] = []
    size = 0
    async with aclosing(rest):
        while gathered:
            for fragment in gathered:
                dicom_json = fragment.dicom_json
                if fragment.HasField("location"):
                    async with aclosing(_read_fragment(request, study, fragment)) as chunks:
                        dicom_json = b"".join([chunk async for chunk in chunks])
                waiting.append(dicom_json.replace(b"\0", base))
                size += len(dicom_json)
                if size >= XML_BATCH_BYTES:
                    yield waiting
                    waiting, size = [], 0
            gathered = await anext(rest, [])
    if waiting:
        yield waiting


async def _fragments(
    first: GetMetadataResponse, rest: AsyncGenerator[GetMetadataResponse, None]
) -> AsyncGenerator[list[MetadataFragment], None]:
    async with aclosing(rest):
        yield list(first.fragments)
        async for answer in rest:
            yield list(answer.fragments)


async def _gather(fragments: AsyncGenerator[list[MetadataFragment], None]) -> tuple[list[MetadataFragment], bool]:
    """Return the first fragments, until they have `METADATA_AT_ONCE_BYTES`, and whether they are all."""
    gathered: list[MetadataFragment] = []
    size = 0
    async for some in fragments:
        gathered += some
        size += sum(len(fragment.dicom_json) for fragment in some)
        if size > METADATA_AT_ONCE_BYTES:
            return gathered, False
    return gathered, True


def _metadata_tag(base: bytes, media_type: str, fragments: Sequence[MetadataFragment]) -> str:
    facts = blake2b(base, digest_size=16)
    facts.update(media_type.encode())
    facts.update("".join([f";{f.version} {f.sop_instance_uid}" for f in fragments]).encode())
    return entity_tag(facts.hexdigest(), weak=True)


async def _metadata_chunks(
    request: Request, study: str, base: bytes, gathered: list[MetadataFragment], rest: AsyncGenerator[list[MetadataFragment], None]
) -> AsyncGenerator[Chunk, None]:
    """Yield the chunks of the JSON array; objects that are stored in a pack are read from there."""
    separator = b"["
    async with aclosing(rest):
        while gathered:
            for fragment in gathered:
                yield separator
                separator = b","
                if not fragment.HasField("location"):
                    yield fragment.dicom_json.replace(b"\0", base)
                    continue
                async with aclosing(_read_fragment(request, study, fragment)) as chunks:
                    async for chunk in chunks:
                        yield chunk.replace(b"\0", base)
            gathered = await anext(rest, [])
    yield b"[]" if separator == b"[" else b"]"


async def _read_fragment(request: Request, study: str, fragment: MetadataFragment) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of a DICOM JSON object that is stored in a pack."""
    relocate = partial(_relocate_fragment, request, study, fragment.sop_instance_uid)
    async with aclosing(read(retrieval.of(request).reader, [content_at(fragment.location)], relocate)) as chunks:
        async for _, chunk in chunks:
            yield bytes(chunk)


async def _relocate_fragment(request: Request, study: str, sop_instance_uid: str, _: int) -> Content:
    async with aclosing(retrieval.fragments_of(request, Target(study, "", sop_instance_uid))) as current:
        async for fragments in current:
            for fragment in fragments:
                return content_at(fragment.location)
    raise errors.NotFound(f"there is no instance {sop_instance_uid}")
