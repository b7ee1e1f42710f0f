"""Answers in XML: multipart/related with one Native DICOM Model document per part.

Documents are written from the DICOM JSON that is kept, in threads and in blocks, so that neither the event loop nor memory notices
how large they are.

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
"""DICOM JSON that is written as one piece, with the Content-Length of its part; longer objects are written in pieces, without."""

BLOCK_BYTES = 128 << 10
"""Bytes that one call in a thread makes."""

Locate = Callable[[bytes], str]
"""From an encoded DICOM JSON object to the URL of the resource that its part represents; "" for none."""


def no_location(_: bytes) -> str:
    """Say that the parts represent no resource."""
    return ""


async def pieces(boundary: str, batches: AsyncGenerator[list[bytes], None], locate: Locate) -> AsyncGenerator[bytes, None]:
    """Yield a whole multipart/related payload.

    Args:
        batches: encoded DICOM JSON objects, one per part; the base URL stands in them.
    """
    is_first = True
    async with aclosing(batches):
        async for batch in batches:
            made = _parts(boundary, batch, locate, is_first)
            while block := await asyncio.to_thread(_block, made):
                is_first = False
                yield block
    yield multipart_writer.closing(boundary, empty=is_first)


async def payload(boundary: str, objects: list[bytes]) -> bytes:
    """Return a whole multipart/related payload of objects that represent no resource."""
    made = _parts(boundary, objects, no_location, is_first=True)
    blocks = []
    while block := await asyncio.to_thread(_block, made):
        blocks.append(block)
    return b"".join(blocks) + multipart_writer.closing(boundary, empty=not objects)


def one_object(choice: Choice, model: native_xml.Object, location: str = "") -> tuple[bytes, str]:
    """Return a small DICOM JSON object in a representation of it, and the Content-Type of the payload.

    Args:
        location: URL of the resource that it represents, if any.
    """
    if choice.media_type != DICOM_XML:
        return orjson.dumps(model), choice.media_type
    document = native_xml.write(model)
    if not choice.multipart:
        return document, DICOM_XML
    boundary = multipart_writer.new_boundary()
    head = multipart_writer.part_head(boundary, DICOM_XML, location, len(document), first=True)
    return head + document + multipart_writer.closing(boundary), multipart_writer.content_type(DICOM_XML, boundary)


def _block(made: Iterator[bytes]) -> bytes:
    """Return at least `BLOCK_BYTES` of what is made, less at its end, then b""."""
    waiting, size = [], 0
    for piece in made:
        waiting.append(piece)
        size += len(piece)
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
