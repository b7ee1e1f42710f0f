"""JSON answers, gzipped where the client takes it and it saves something. Pixels never are (viewers mistake their size)."""

import asyncio
import gzip
import re

from starlette.responses import Response

from gantry_gateway.request import Request

LEAST_BYTES = 1024
THREAD_BYTES = 256 << 10
"""From here on compression takes milliseconds, so it leaves the event loop."""
LEVEL = 1

_GZIP = re.compile(r"(?:^|,)\s*(?:x-)?(gzip|\*)\s*(?:;\s*q\s*=\s*([0-9.]+)\s*)?(?=,|$)", re.IGNORECASE)


def accepts_gzip(accept_encoding: str) -> bool:
    """Say whether a client takes gzip; the more specific range decides. Source: RFC 9110 §12.5.3."""
    found = {name.lower(): weight for name, weight in _GZIP.findall(accept_encoding)}
    weight = found.get("gzip", found.get("*"))
    return weight is not None and (weight == "" or weight.strip("0.") != "")


async def json_response(request: Request, body: bytes, headers: list[tuple[str, str]]) -> Response:
    """Answer with application/dicom+json.

    Args:
        headers: further fields; one name may repeat.
    """
    zips = len(body) > LEAST_BYTES and accepts_gzip(request.headers.get("accept-encoding", ""))
    if zips and len(body) > THREAD_BYTES:
        body = await asyncio.to_thread(gzip.compress, body, LEVEL, mtime=0)
    elif zips:
        body = gzip.compress(body, LEVEL, mtime=0)
    response = Response(body, media_type="application/dicom+json")
    response.headers["Vary"] = "Accept-Encoding"
    if zips:
        response.headers["Content-Encoding"] = "gzip"
    for name, value in headers:
        response.headers.append(name, value)
    return response
