"""multipart/related for clients: sends files while it reads them, and yields parts while it receives them.

Source: PS3.18 §8.6.1.2; RFC 2046 §5.1.
"""

import re
import secrets
from collections.abc import Iterable, Iterator
from email.message import Message
from pathlib import Path

CHUNK_BYTES = 1 << 20


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
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_param("boundary")
    if message.get_content_type() != "multipart/related" or not isinstance(boundary, str):
        raise BrokenMultipart(f"the answer is {content_type!r}, expected multipart/related with a boundary")
    return boundary


def decode(chunks: Iterable[bytes], boundary: str) -> Iterator[PartHeaders | bytes]:
    """Yield the headers of each part and then its bytes in chunks, without buffering a part.

    Raises:
        BrokenMultipart: the body ends before its closing boundary.
    """
    source = iter(chunks)
    delimiter = b"\r\n--" + boundary.encode()
    buffer = b"\r\n"
    inside = False
    while True:
        place = buffer.find(delimiter)
        end = place + len(delimiter)
        if place >= 0 and b"\r\n\r\n" in buffer[end:]:
            if inside and place:
                yield buffer[:place]
            head, buffer = buffer[end:].split(b"\r\n\r\n", 1)
            yield PartHeaders(_fields(head))
            inside = True
            continue
        if place >= 0 and buffer[end : end + 2] == b"--":
            if inside and place:
                yield buffer[:place]
            return
        if place < 0 and inside and len(buffer) > len(delimiter):
            yield buffer[: -len(delimiter)]
            buffer = buffer[-len(delimiter) :]
        try:
            buffer += next(source)
        except StopIteration:
            raise BrokenMultipart("the answer broke off before its end") from None


def _fields(head: bytes) -> dict[str, str]:
    lines = re.split(r"\r\n", head.decode("latin-1").strip())
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
