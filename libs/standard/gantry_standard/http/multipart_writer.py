"""Write multipart/related: boundary, part headers and end. The caller sends the bytes of the parts in between.

    --b CRLF Content-Type: … CRLF … CRLF CRLF bytes CRLF --b … CRLF --b--

Part headers are spelled as viewers expect them: `Content-Type:` capitalised and first, transfer-syntax unquoted.

Source: PS3.18 §8.6.1.2; RFC 2046 §5.1.
"""

from gantry_standard.http.random_bits import random_hex


def new_boundary() -> str:
    """Return a boundary for one response: 128 random bits as 32 hex digits.

    It is chosen after the content exists. The probability that the content contains it is 1 in 2^128 per position.
    """
    return random_hex(16)


def content_type(media_type: str, boundary: str) -> str:
    """Return the Content-Type of the payload.

    Args:
        media_type: of the root part.
    """
    return f'multipart/related; type="{media_type}"; boundary={boundary}'


def part_head(boundary: str, part_content_type: str, content_location: str, length: int | None, first: bool) -> bytes:
    """Return the delimiter and headers of a part, including the end of the part before it.

    Args:
        part_content_type: exactly as sent, such as `application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1`.
        content_location: URL of the resource that the part represents; "" if there is none.
        length: of the part in bytes; None if it is not known yet.
        first: this is the first part.
    """
    begin = "" if first else "\r\n"
    size = "" if length is None else f"Content-Length: {length}\r\n"
    location = f"Content-Location: {content_location}\r\n" if content_location else ""
    head = f"{begin}--{boundary}\r\nContent-Type: {part_content_type}\r\n{size}{location}\r\n"
    return head.encode("latin-1")


def closing(boundary: str, empty: bool = False) -> bytes:
    """Return the end of the payload.

    Args:
        empty: there were no parts.
    """
    return f"{'' if empty else chr(13) + chr(10)}--{boundary}--\r\n".encode("latin-1")
