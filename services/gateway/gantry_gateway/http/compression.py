"""Content codings of JSON and XML responses, for clients that accept them and bodies that are large enough.

Pixel data is never coded, as viewers would misread its size. To add a coding, add a row to CODINGS.

Source: RFC 9110 §8.4, §12.5.3; RFC 8878 for zstd.
"""

import asyncio
import re
import zlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import zstandard
from starlette.responses import Response

from gantry_gateway.http.request import Request
from gantry_standard import errors
from gantry_standard.http.media_types import DICOM_JSON

LEAST_BYTES = 1024
"""Bodies with fewer bytes are not coded."""

THREAD_BYTES = 128 << 10
"""Bodies with more bytes are compressed in a thread, as compression takes a millisecond or more."""

GZIP_LEVEL = 1

ZSTD_LEVEL = 3

VARY = "Accept, Accept-Encoding"


class Packer(Protocol):
    """Compresses one body."""

    def compress(self, data: bytes, /) -> bytes:
        """Take bytes of the body; return compressed bytes as far as they are available."""

    def flush(self) -> bytes:
        """Return the remaining compressed bytes."""


def _zstd() -> Packer:
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()


def _gzip() -> Packer:
    return zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)


# Coding → creates the compressor of a body. If the client gives several codings the same weight, the first of them is used.
CODINGS: dict[str, Callable[[], Packer]] = {"zstd": _zstd, "gzip": _gzip}

_ALIASES = {"x-gzip": "gzip"}
_ENTRY = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:;\s*q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*)?")


@dataclass(frozen=True, slots=True)
class Coding:
    """The content coding of one response.

    Attributes:
        name: key of CODINGS; "" for none.
        least_bytes: bodies with fewer bytes are not coded.
    """

    name: str
    least_bytes: int

    def applies_to(self, length: int) -> bool:
        """Return whether a body of this many bytes is coded."""
        return bool(self.name) and length >= self.least_bytes

    def pack(self, body: bytes) -> bytes:
        """Compress a body."""
        packer = CODINGS[self.name]()
        return packer.compress(body) + packer.flush()


@lru_cache(256)
def negotiate(accept_encoding: str) -> Coding:
    """Return the coding with the highest weight of the client. Invalid entries are ignored.

    Args:
        accept_encoding: the Accept-Encoding header; "" if it is missing.

    Raises:
        errors.NotAcceptable: the header excludes `identity` and all codings in CODINGS.

    Source: RFC 9110 §12.5.3.
    """
    weights: dict[str, float] = {}
    for entry in accept_encoding.split(","):
        if match := _ENTRY.fullmatch(entry):
            name = match[1].lower()
            weights.setdefault(_ALIASES.get(name, name), float(match[2] or 1))
    others = weights.get("*", 0.0)
    best = max(CODINGS, key=lambda name: weights.get(name, others))
    # `identity` is acceptable unless it is excluded; without an entry it has the lowest weight
    plain = weights.get("identity", 0.0 if others or "*" not in weights else -1.0)
    is_refused = weights.get("identity") == 0 or plain < 0
    weight = weights.get(best, others)
    if weight > 0 and (weight >= plain or is_refused):
        return Coding(best, 0 if is_refused else LEAST_BYTES)
    if is_refused:
        raise errors.NotAcceptable(f"no coding of Accept-Encoding can be produced; available are {', '.join(CODINGS)} and identity")
    return Coding("", 0)


def of(request: Request) -> Coding:
    """Return the coding of the response to a request. Errors as `negotiate`."""
    return negotiate(request.headers.get("accept-encoding", ""))


async def packed(coding: Coding, body: bytes) -> bytes:
    """Compress a body; `coding` must have a name."""
    return await asyncio.to_thread(coding.pack, body) if len(body) > THREAD_BYTES else coding.pack(body)


async def packed_chunks(coding: Coding, chunks: AsyncGenerator[bytes | memoryview, None]) -> AsyncGenerator[bytes | memoryview, None]:
    """Yield the compressed body of chunks. Blocks of `THREAD_BYTES` are compressed in threads."""
    packer = CODINGS[coding.name]()
    waiting: list[bytes | memoryview] = []
    size = 0
    async with aclosing(chunks):
        async for chunk in chunks:
            waiting.append(chunk)
            size += len(chunk)
            if size >= THREAD_BYTES:
                yield await asyncio.to_thread(packer.compress, b"".join(waiting))
                waiting, size = [], 0
    yield packer.compress(b"".join(waiting)) + packer.flush()


async def json_response(request: Request, body: bytes, headers: list[tuple[str, str]]) -> Response:
    """Return a response with application/dicom+json. Arguments as `response`."""
    return await response(request, body, DICOM_JSON, headers)


async def response(request: Request, body: bytes, content_type: str, headers: list[tuple[str, str]]) -> Response:
    """Return a response with a body of JSON or XML, in the coding that the client prefers.

    Args:
        headers: further header fields; names may repeat.

    Raises:
        errors.NotAcceptable: as `negotiate`.
    """
    coding = of(request)
    is_coded = coding.applies_to(len(body))
    answer = Response(await packed(coding, body) if is_coded else body)
    answer.headers["Content-Type"] = content_type
    answer.headers["Vary"] = VARY
    if is_coded:
        answer.headers["Content-Encoding"] = coding.name
    for name, value in headers:
        answer.headers.append(name, value)
    return answer
