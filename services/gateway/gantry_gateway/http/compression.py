"""Content codings of JSON and XML answers, where the client takes them and they save something.

Pixels are never coded: viewers mistake their size. To add a coding: a row in CODINGS.

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
"""Shorter bodies are sent as they are."""

THREAD_BYTES = 128 << 10
"""From here on compression takes a millisecond or more, so it leaves the event loop."""

GZIP_LEVEL = 1

ZSTD_LEVEL = 3

VARY = "Accept, Accept-Encoding"


class Packer(Protocol):
    """Compresses one body."""

    def compress(self, data: bytes, /) -> bytes:
        """Take bytes, and return what is ready of the compressed body."""

    def flush(self) -> bytes:
        """Return the rest."""


def _zstd() -> Packer:
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()


def _gzip() -> Packer:
    return zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)


# Coding -> what compresses a body; what stands first is taken where the client likes several equally well.
CODINGS: dict[str, Callable[[], Packer]] = {"zstd": _zstd, "gzip": _gzip}

_ALIASES = {"x-gzip": "gzip"}
_ENTRY = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:;\s*q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*)?")


@dataclass(frozen=True, slots=True)
class Coding:
    """How the body of one answer is coded.

    Attributes:
        name: a row of CODINGS; "" for none.
        least_bytes: shorter bodies stay as they are.
    """

    name: str
    least_bytes: int

    def applies_to(self, length: int) -> bool:
        """Say whether a body of this many bytes is coded."""
        return bool(self.name) and length >= self.least_bytes

    def pack(self, body: bytes) -> bytes:
        """Return a body in this coding."""
        packer = CODINGS[self.name]()
        return packer.compress(body) + packer.flush()


@lru_cache(256)
def negotiate(accept_encoding: str) -> Coding:
    """Return the coding that a client likes best. Entries that are none are ignored.

    Args:
        accept_encoding: the Accept-Encoding header; "" where it is missing.

    Raises:
        errors.NotAcceptable: it refuses the body as it is, and takes no coding that there is.

    Source: RFC 9110 §12.5.3.
    """
    weights: dict[str, float] = {}
    for entry in accept_encoding.split(","):
        if found := _ENTRY.fullmatch(entry):
            name = found[1].lower()
            weights.setdefault(_ALIASES.get(name, name), float(found[2] or 1))
    others = weights.get("*", 0.0)
    best = max(CODINGS, key=lambda name: weights.get(name, others))
    # As it is: always acceptable unless refused, and liked least where nothing is said.
    plain = weights.get("identity", 0.0 if others or "*" not in weights else -1.0)
    is_refused = weights.get("identity") == 0 or plain < 0
    weight = weights.get(best, others)
    if weight > 0 and (weight >= plain or is_refused):
        return Coding(best, 0 if is_refused else LEAST_BYTES)
    if is_refused:
        raise errors.NotAcceptable(f"nothing of Accept-Encoding can be produced; there are {', '.join(CODINGS)} and identity")
    return Coding("", 0)


def of(request: Request) -> Coding:
    """Return the coding of the answer to a request. Errors as `negotiate`."""
    return negotiate(request.headers.get("accept-encoding", ""))


async def packed(coding: Coding, body: bytes) -> bytes:
    """Return a body in a coding that applies to it."""
    return await asyncio.to_thread(coding.pack, body) if len(body) > THREAD_BYTES else coding.pack(body)


async def packed_pieces(coding: Coding, pieces: AsyncGenerator[bytes | memoryview, None]) -> AsyncGenerator[bytes | memoryview, None]:
    """Code pieces as they come, in blocks that are compressed off the loop."""
    packer = CODINGS[coding.name]()
    waiting: list[bytes | memoryview] = []
    size = 0
    async with aclosing(pieces):
        async for piece in pieces:
            waiting.append(piece)
            size += len(piece)
            if size >= THREAD_BYTES:
                yield await asyncio.to_thread(packer.compress, b"".join(waiting))
                waiting, size = [], 0
    yield packer.compress(b"".join(waiting)) + packer.flush()


async def json_response(request: Request, body: bytes, headers: list[tuple[str, str]]) -> Response:
    """Answer with application/dicom+json. Arguments as `response`."""
    return await response(request, body, DICOM_JSON, headers)


async def response(request: Request, body: bytes, content_type: str, headers: list[tuple[str, str]]) -> Response:
    """Answer with a body of JSON or XML, coded where the client takes it.

    Args:
        headers: further fields; one name may repeat.
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
