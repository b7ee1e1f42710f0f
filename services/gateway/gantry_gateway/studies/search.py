"""Search for studies, series and instances.

Index returns one DICOM JSON object per result, with a byte 0x00 in place of the base URL. For XML each object becomes a document.

Source: PS3.18 §10.6, §8.3.4.
"""

from starlette.responses import Response

from gantry_gateway.answers import xml_parts
from gantry_gateway.content import retrieval
from gantry_gateway.http import urls
from gantry_gateway.http.compression import json_response, response
from gantry_gateway.http.problems import warning
from gantry_gateway.http.request import Request
from gantry_runtime import query_messages
from gantry_runtime.rpc.rpc_errors import translated
from gantry_standard.http import multipart_writer
from gantry_standard.http.media_types import DICOM_XML, Resource
from gantry_standard.query import matching
from gantry_standard.query.matching import Level

NEGOTIATION = ("accept", "charset")
"""Query parameters that are no search keys."""


async def search_studies(request: Request) -> Response:
    """Answer GET /studies."""
    return await _search(request, Level.STUDY)


async def search_series(request: Request) -> Response:
    """Answer GET /studies/{study}/series."""
    return await _search(request, Level.SERIES)


async def search_instances(request: Request) -> Response:
    """Answer GET /studies/{study}/series/{series}/instances."""
    return await _search(request, Level.INSTANCE)


async def search_study_instances(request: Request) -> Response:
    """Answer GET /studies/{study}/instances."""
    return await _search(request, Level.INSTANCE)


async def search_all_series(request: Request) -> Response:
    """Answer GET /series."""
    return await _search(request, Level.SERIES)


async def search_all_instances(request: Request) -> Response:
    """Answer GET /instances."""
    return await _search(request, Level.INSTANCE)


async def _search(request: Request, level: Level) -> Response:
    settings = request.gateway.settings
    media_type = retrieval.selected(request, Resource.SEARCH).media_type
    study, series = urls.uid(request.params, "study"), urls.uid(request.params, "series")
    parameters = [(name, value) for name, value in request.query if name not in NEGOTIATION]
    query, texts = matching.parse_query(level, study, series, parameters, settings.search_max_results)
    if query.limit == 0:
        # PS3.18 §8.3.4.4: a limit of 0 means no results. In a message to index 0 would mean the maximum of the server
        return _no_content(request, texts)
    with translated("index"):
        answer = await request.gateway.index.Search(query_messages.search_request(query), timeout=settings.request_timeout_s)
    if not answer.rows:
        return _no_content(request, texts)
    if answer.remaining:
        texts = [*texts, f"There are {answer.remaining} additional results that can be requested"]
    base = request.base_url.encode()
    if media_type == DICOM_XML:
        boundary = multipart_writer.new_boundary()
        body = await xml_parts.payload(boundary, [row.replace(b"\0", base) for row in answer.rows])
        return await response(request, body, multipart_writer.content_type(DICOM_XML, boundary), _warnings(request, texts))
    body = b"[" + b",".join(answer.rows).replace(b"\0", base) + b"]"
    return await json_response(request, body, _warnings(request, texts))


def _warnings(request: Request, texts: list[str]) -> list[tuple[str, str]]:
    return [("Warning", warning(request.base_url, text)) for text in texts]


def _no_content(request: Request, texts: list[str]) -> Response:
    answer = Response(status_code=204)
    for name, value in _warnings(request, texts):
        answer.headers.append(name, value)
    return answer
