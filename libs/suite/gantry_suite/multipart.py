"""multipart/related for clients: sends files while it reads them, and yields parts while it receives them.

Source: PS3.18 §8.6.1.2; RFC 2046 §5.1.
"""

import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from gantry_standard import errors
from gantry_standard.http.multipart import End, Limits, PartBegin, PartData, Reader, parse_content_type

CHUNK_BYTES = 1 << 20
LIMITS = Limits(part_header_bytes=64 << 10, parts=1 << 62)
"""Limits of a response: a study may have any number of instances."""


class BrokenMultipart(Exception):
    """The response is not multipart/related, or it is truncated."""


def new_boundary() -> str:
    """Return a random boundary, so long that no file contains it."""
    return f"gantry-{secrets.token_hex(20)}"


def encode_files(paths: Iterable[Path], boundary: str) -> Iterator[bytes]:
    """Yield a body with one application/dicom part per file, in chunks of at most 1 MiB."""
    for path in paths:
        yield f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        with path.open("rb") as file:
            while piece := file.read(CHUNK_BYTES):
                yield piece
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


class PartHeaders(dict[str, str]):
    """Header fields of a part, names in lower case."""


def boundary_of(content_type: str) -> str:
    """Return the boundary of a Content-Type.

    Raises:
        BrokenMultipart: it is not multipart/related with a boundary.
    """
    try:
        media_type, parameters = parse_content_type(content_type)
    except errors.BadRequest:
        media_type, parameters = "", {}
    if media_type != "multipart/related" or not parameters.get("boundary"):
        raise BrokenMultipart(f"the answer is {content_type!r}, expected multipart/related with a boundary")
    return parameters["boundary"]


def decode(chunks: Iterable[bytes], boundary: str) -> Iterator[PartHeaders | memoryview]:
    """Yield the headers of each part and then its bytes in chunks, without buffering a part.

    Raises:
        BrokenMultipart: the boundary or the headers of a part are invalid, or the body ends before its closing boundary.
    """
    try:
        reader = Reader(boundary, LIMITS)
        for chunk in chunks:
            for event in reader.feed(chunk):
                if isinstance(event, PartBegin):
                    yield PartHeaders(event.headers)
                elif isinstance(event, PartData):
                    yield event.data
                elif isinstance(event, End):
                    return
    except errors.RequestError as error:
        raise BrokenMultipart(f"the answer cannot be read: {error.message}") from error
    raise BrokenMultipart("the answer broke off before its end")
