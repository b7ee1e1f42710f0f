"""Multipart/related as we write it: boundary, part heads, the end; the bytes of the parts go between, untouched.

    --b CRLF Content-Type: … CRLF … CRLF CRLF bytes CRLF --b … CRLF --b--

Part heads are spelled as viewers look for them: `Content-Type:` capitalised and first, transfer-syntax unquoted.

Source: PS3.18 §8.6.1.2; RFC 2046 §5.1.
"""

from gantry_standard.http.random_bits import random_hex


def new_boundary() -> str:
    """Return a boundary for one response: 128 random bits as 32 hex digits.

    It is chosen after the content and never told before, so content holds it only by a chance of one in 2^128 per position.
    """
    return random_hex(16)


def content_type(media_type: str, boundary: str) -> str:
    """Return the Content-Type of the whole payload.

    Args:
        media_type: of the root part.
    """
    return f'multipart/related; type="{media_type}"; boundary={boundary}'


def part_head(boundary: str, part_content_type: str, content_location: str, length: int | None, first: bool) -> bytes:
    """Return what stands before the bytes of a part, the end of the part before it included.

    Args:
        part_content_type: spelled as it shall be sent, such as `application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1`.
        content_location: URL of the resource that the part represents; "" where it represents none.
        length: of the part in bytes; None where it is not known yet.
        first: nothing stands before it.
    """
    begin = "" if first else "\r\n"
    size = "" if length is None else f"Content-Length: {length}\r\n"
    location = f"Content-Location: {content_location}\r\n" if content_location else ""
    head = f"{begin}--{boundary}\r\nContent-Type: {part_content_type}\r\n{size}{location}\r\n"
    return head.encode("latin-1")


def closing(boundary: str, empty: bool = False) -> bytes:
    """Return the end of the payload.

    Args:
        empty: there was no part.
    """
    return f"{'' if empty else chr(13) + chr(10)}--{boundary}--\r\n".encode("latin-1")
