"""Search for studies, series and instances.

Index answers with rows that are ready to join; a byte 0x00 in them stands where the base URL goes. As XML each row is a document.

Source: PS3.18 §10.6, §8.3.4.
"""

from starlette.responses import Response

from gantry.index.v1 import index_pb2
from gantry_gateway.answers import xml_parts
from gantry_gateway.content import retrieval
from gantry_gateway.http import urls
from gantry_gateway.http.compression import json_response, response
from gantry_gateway.http.problems import warning
from gantry_gateway.http.request import Request
from gantry_runtime.rpc.rpc_errors import translated
from gantry_standard.http import multipart_writer
from gantry_standard.http.media_types import DICOM_XML, Resource
from gantry_standard.query import matching
from gantry_standard.query.matching import Level, MatchKey, Operation, Query

NEGOTIATION = ("accept", "charset")
"""Parameters that are not about what to find."""

LEVELS = {
    Level.STUDY: index_pb2.LEVEL_STUDY,
    Level.SERIES: index_pb2.LEVEL_SERIES,
    Level.INSTANCE: index_pb2.LEVEL_INSTANCE,
}
OPERATIONS = {
    Operation.EQUAL: index_pb2.MatchKey.OPERATION_EQUAL,
    Operation.PATTERN: index_pb2.MatchKey.OPERATION_PATTERN,
    Operation.RANGE: index_pb2.MatchKey.OPERATION_RANGE,
    Operation.ABSENT: index_pb2.MatchKey.OPERATION_ABSENT,
    Operation.ALL: index_pb2.MatchKey.OPERATION_ALL,
}


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
        # PS3.18 §8.3.4.4: no results are wanted, so there are none. On the wire 0 would be the server's maximum.
        return _no_content(request, texts)
    with translated("index"):
        found = await request.gateway.index.Search(search_request(query), timeout=settings.request_timeout_s)
    if not found.rows:
        return _no_content(request, texts)
    if found.remaining:
        texts = [*texts, f"There are {found.remaining} additional results that can be requested"]
    base = request.base_url.encode()
    if media_type == DICOM_XML:
        boundary = multipart_writer.new_boundary()
        body = await xml_parts.payload(boundary, [row.replace(b"\0", base) for row in found.rows])
        return await response(request, body, multipart_writer.content_type(DICOM_XML, boundary), _warnings(request, texts))
    body = b"[" + b",".join(found.rows).replace(b"\0", base) + b"]"
    return await json_response(request, body, _warnings(request, texts))


def search_request(query: Query) -> index_pb2.SearchRequest:
    """Return a query as it goes over the wire."""
    return index_pb2.SearchRequest(
        level=LEVELS[query.level],
        scope=index_pb2.Scope(study_instance_uid=query.study_instance_uid, series_instance_uid=query.series_instance_uid),
        keys=[match_key(key) for key in query.keys],
        include_fields=query.include_fields,
        include_all=query.include_all,
        include_levels=[LEVELS[level] for level in query.include_levels],
        offset=query.offset,
        limit=query.limit,
        fuzzy_matching=query.fuzzy_matching,
    )


def match_key(key: MatchKey) -> index_pb2.MatchKey:
    """Return one matching key as it goes over the wire."""
    return index_pb2.MatchKey(
        path=key.path,
        operation=OPERATIONS[key.operation],
        values=key.values,
        low=key.low,
        high=key.high,
        private_creator=key.private_creator,
        level=LEVELS[key.level] if key.level is not None else index_pb2.LEVEL_UNSPECIFIED,
    )


def _warnings(request: Request, texts: list[str]) -> list[tuple[str, str]]:
    return [("Warning", warning(request.base_url, text)) for text in texts]


def _no_content(request: Request, texts: list[str]) -> Response:
    answer = Response(status_code=204)
    for name, value in _warnings(request, texts):
        answer.headers.append(name, value)
    return answer
