"""Conditional and Range requests: entity tags, If-None-Match, Range, If-Range.

One range of a single-part payload is served. A request for several ranges gets the whole payload (allowed by RFC 7233 §3.1).

Source: RFC 7232, RFC 7233; PS3.18 §8.6.1.1.
"""

import re
from dataclasses import dataclass
from hashlib import blake2b

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})", re.IGNORECASE)
_PLAIN = re.compile(r"[A-Za-z0-9.,*+-]{1,80}")
_TAG = re.compile(r'(?:W/)?"[^"]*"')


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes `first` to `last` of a payload, both included; the first byte is byte 0."""

    first: int
    last: int

    @property
    def length(self) -> int:
        """Number of bytes."""
        return self.last - self.first + 1


class RangeNotSatisfiable(Exception):
    """The range begins after the end of the payload: 416."""


def entity_tag(*facts: object, weak: bool = False) -> str:
    """Return an entity tag that is computed from the facts on which the representation depends.

    Args:
        weak: the bytes of equal representations may differ, as the boundaries of multipart payloads do.
    """
    text = "-".join(map(str, facts))
    if not _PLAIN.fullmatch(text):
        text = blake2b(text.encode(), digest_size=16).hexdigest()
    return f'W/"{text}"' if weak else f'"{text}"'


def not_modified(if_none_match: str, etag: str) -> bool:
    """Return whether the client already has the representation (weak comparison)."""
    if not if_none_match:
        return False
    if if_none_match.strip() == "*":
        return True
    return etag.removeprefix("W/") in [tag.removeprefix("W/") for tag in _TAG.findall(if_none_match)]


def requested_range(range_header: str, if_range: str, etag: str, size: int) -> ByteRange | None:
    """Return the range of a Range header, or None for the whole payload.

    Args:
        if_range: the If-Range header. The range is ignored unless it equals `etag` (strong comparison); a date never does.
        size: of the payload in bytes.

    Raises:
        RangeNotSatisfiable: no byte of the range is in the payload.
    """
    if if_range and (if_range.strip() != etag or etag.startswith("W/")):
        return None
    match = _RANGE.fullmatch(range_header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    begin, end = match.groups()
    if not begin:
        suffix = min(int(end), size)
        if suffix == 0:
            raise RangeNotSatisfiable
        return ByteRange(size - suffix, size - 1)
    first, last = int(begin), int(end) if end else size - 1
    if end and last < first:
        return None
    if first >= size:
        raise RangeNotSatisfiable
    return ByteRange(first, min(last, size - 1))
