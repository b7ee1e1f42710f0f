"""Responses in XML: multipart/related with one Native DICOM Model document per part.

Documents are written from the stored DICOM JSON, in threads and in blocks, so that a large document neither blocks the event loop nor
is held in memory as a whole.

Source: PS3.18 §8.7.3.3, §8.6.1.2; PS3.19 §A.1.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

import orjson

from gantry_standard.dicom import native_xml
from gantry_standard.http import multipart_writer
from gantry_standard.http.media_types import DICOM_XML
from gantry_standard.http.negotiation import Choice

AT_ONCE_BYTES = 256 << 10
"""Most bytes of DICOM JSON that are written at once, with the Content-Length of the part; longer objects are streamed without it."""

BLOCK_BYTES = 128 << 10
"""Least bytes that one thread call writes, unless fewer remain."""

Locate = Callable[[bytes], str]
"""Returns the URL of the resource of an encoded DICOM JSON object; "" for none."""


def no_location(_: bytes) -> str:
    """Return "": the parts represent no resource."""
    return ""


async def chunks(boundary: str, batches: AsyncGenerator[list[bytes], None], locate: Locate) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of a multipart/related payload.

    Args:
        batches: encoded DICOM JSON objects, one per part, with the base URL inserted.
    """
    is_first = True
    async with aclosing(batches):
        async for batch in batches:
            part_chunks = _parts(boundary, batch, locate, is_first)
            while block := await asyncio.to_thread(_block, part_chunks):
                is_first = False
                yield block
    yield multipart_writer.closing(boundary, empty=is_first)


async def payload(boundary: str, objects: list[bytes]) -> bytes:
    """Return a multipart/related payload of DICOM JSON objects that represent no resource."""
    part_chunks = _parts(boundary, objects, no_location, is_first=True)
    blocks = []
    while block := await asyncio.to_thread(_block, part_chunks):
        blocks.append(block)
    return b"".join(blocks) + multipart_writer.closing(boundary, empty=not objects)


def one_object(choice: Choice, model: native_xml.Object, location: str = "") -> tuple[bytes, str]:
    """Encode a small DICOM JSON object in the chosen representation; return payload and Content-Type.

    Args:
        location: URL of the resource that it represents, "" if none.
    """
    if choice.media_type != DICOM_XML:
        return orjson.dumps(model), choice.media_type
    document = native_xml.write(model)
    if not choice.multipart:
        return document, DICOM_XML
    boundary = multipart_writer.new_boundary()
    head = multipart_writer.part_head(boundary, DICOM_XML, location, len(document), first=True)
    return head + document + multipart_writer.closing(boundary), multipart_writer.content_type(DICOM_XML, boundary)


def _block(part_chunks: Iterator[bytes]) -> bytes:
    """Return the next chunks joined: at least `BLOCK_BYTES`, fewer at the end, then b""."""
    waiting, size = [], 0
    for chunk in part_chunks:
        waiting.append(chunk)
        size += len(chunk)
        if size >= BLOCK_BYTES:
            break
    return b"".join(waiting)


def _parts(boundary: str, objects: list[bytes], locate: Locate, is_first: bool) -> Iterator[bytes]:
    for dicom_json in objects:
        document = native_xml.write_encoded(dicom_json)
        url = locate(dicom_json)
        if len(dicom_json) <= AT_ONCE_BYTES:
            whole = b"".join(document)
            yield multipart_writer.part_head(boundary, DICOM_XML, url, len(whole), is_first)
            yield whole
        else:
            yield multipart_writer.part_head(boundary, DICOM_XML, url, None, is_first)
            yield from document
        is_first = False
