"""The Worklist service over HTTP: reads requests, calls workflow, which decides, and writes responses.

Source: PS3.18 chapter 11.
"""

import asyncio
from collections.abc import Iterable
from urllib.parse import quote

import orjson
from starlette.responses import Response

from gantry.workflow.v1 import workflow_pb2 as pb
from gantry_gateway.answers import xml_parts
from gantry_gateway.content import retrieval
from gantry_gateway.http import urls
from gantry_gateway.http.compression import json_response, response
from gantry_gateway.http.problems import warning
from gantry_gateway.http.request import Request, answered
from gantry_runtime import call_context, query_messages
from gantry_runtime.rpc.rpc_errors import translated
from gantry_standard import errors
from gantry_standard.dicom import native_xml
from gantry_standard.dicom.limits import Limits
from gantry_standard.dicom.uids import is_valid_uid
from gantry_standard.http import multipart, multipart_writer
from gantry_standard.http.media_types import DICOM_JSON, DICOM_XML, Resource
from gantry_standard.query import matching
from gantry_standard.workitems import FILTERED_SUBSCRIPTION, is_valid_ae_title

NEGOTIATION = ("accept", "charset")
"""Parameters that every resource has (§8.3.3)."""
UID_NAMES = ("workitem", "AffectedSOPInstanceUID")
"""Names of query parameters that may have the UID of Create; by the standard the query is the UID itself (§11.4.1)."""
TRANSACTION_NAMES = ("transaction-uid", "transaction")
JSON_TYPES = (DICOM_JSON, "application/json")
XML_LIMITS = Limits(elements=100_000)


async def create(request: Request) -> Response:
    """Answer POST /workitems (§11.4)."""
    uid = _uid_in_query(request, UID_NAMES)
    call = pb.CreateWorkitemRequest(workitem_uid=uid, dicom_json=await _payload(request))
    with translated("workflow"):
        created = await request.gateway.workflow.CreateWorkitem(call, timeout=request.gateway.settings.request_timeout_s)
    location = urls.workitem(request.base_url, created.workitem_uid)
    return _answer(request, 201, created.warnings, [("Location", location), ("Content-Location", location)])


async def retrieve(request: Request) -> Response:
    """Answer GET /workitems/{workitem} (§11.5)."""
    choice = retrieval.selected(request, Resource.WORKITEM)
    uid = urls.uid(request.params, "workitem")
    with translated("workflow"):
        answer = await request.gateway.workflow.RetrieveWorkitem(
            pb.RetrieveWorkitemRequest(workitem_uid=uid), timeout=request.gateway.settings.request_timeout_s
        )
    fields = [("Cache-Control", "private, no-cache")]
    if choice.media_type != DICOM_XML:
        return await json_response(request, b"[" + answer.dicom_json + b"]", fields)
    url = urls.workitem(request.base_url, uid)
    body, content_type = await asyncio.to_thread(xml_parts.one_object, choice, orjson.loads(answer.dicom_json), url)
    return await response(request, body, content_type, fields)


async def update(request: Request) -> Response:
    """Answer POST /workitems/{workitem} (§11.6)."""
    call = pb.UpdateWorkitemRequest(
        workitem_uid=urls.uid(request.params, "workitem"),
        transaction_uid=_uid_in_query(request, TRANSACTION_NAMES),
        dicom_json=await _payload(request),
    )
    with translated("workflow"):
        done = await request.gateway.workflow.UpdateWorkitem(call, timeout=request.gateway.settings.request_timeout_s)
    return _answer(request, 200, done.warnings)


async def change_state(request: Request) -> Response:
    """Answer PUT /workitems/{workitem}/state (§11.7)."""
    call = pb.ChangeWorkitemStateRequest(workitem_uid=urls.uid(request.params, "workitem"), dicom_json=await _payload(request))
    with translated("workflow"):
        done = await request.gateway.workflow.ChangeWorkitemState(call, timeout=request.gateway.settings.request_timeout_s)
    return _answer(request, 200, done.warnings)


async def request_cancellation(request: Request) -> Response:
    """Answer POST /workitems/{workitem}/cancelrequest (§11.8); the payload may be missing."""
    call = pb.RequestWorkitemCancellationRequest(
        workitem_uid=urls.uid(request.params, "workitem"),
        dicom_json=await _payload(request, is_optional=True),
        requesting_ae=call_context.caller().ae_title or request.gateway.settings.requesting_ae,
    )
    with translated("workflow"):
        done = await request.gateway.workflow.RequestWorkitemCancellation(call, timeout=request.gateway.settings.request_timeout_s)
    return _answer(request, 202, done.warnings)


async def search(request: Request) -> Response:
    """Answer GET /workitems (§11.9)."""
    settings = request.gateway.settings
    media_type = retrieval.selected(request, Resource.SEARCH).media_type
    parameters = [(name, value) for name, value in request.query if name not in NEGOTIATION]
    query, texts = matching.parse_workitem_query(parameters, settings.search_max_results)
    if query.limit == 0:
        return _answer(request, 204, texts)
    call = query_messages.search_workitems_request(query, "no-cache" in request.headers.get("cache-control", ""))
    with translated("index"):
        answer = await request.gateway.index.SearchWorkitems(call, timeout=settings.request_timeout_s)
    if not answer.rows:
        return _answer(request, 204, texts)
    if answer.remaining:
        texts = [*texts, f"There are {answer.remaining} additional results that can be requested"]
    if media_type == DICOM_XML:
        boundary = multipart_writer.new_boundary()
        body = await xml_parts.payload(boundary, list(answer.rows))
        return await response(request, body, multipart_writer.content_type(DICOM_XML, boundary), _warnings(request, texts))
    return await json_response(request, b"[" + b",".join(answer.rows) + b"]", _warnings(request, texts))


async def subscribe(request: Request) -> Response:
    """Answer POST /workitems/{workitem}/subscribers/{aetitle} (§11.10)."""
    return await _subscribe(request, urls.uid(request.params, "workitem"))


async def subscribe_filtered(request: Request) -> Response:
    """Answer POST /workitems/1.2.840.10008.5.1.4.34.5.1/subscribers/{aetitle} (§11.10)."""
    return await _subscribe(request, FILTERED_SUBSCRIPTION, _filter(request))


async def _subscribe(request: Request, workitem_uid: str, text: str = "") -> Response:
    ae_title = _ae_title(request)
    lock = _flag(request, "deletionlock")
    call = pb.SubscribeRequest(workitem_uid=workitem_uid, ae_title=ae_title, deletion_lock=lock, filter=text)
    # The cursor begins here, so that reports between the subscription and the first connection are delivered on that connection
    await answered(request.gateway.notifications).begin(ae_title)
    with translated("workflow"):
        done = await request.gateway.workflow.Subscribe(call, timeout=request.gateway.settings.request_timeout_s)
    return _answer(request, 201, done.warnings, [("Content-Location", subscriber_url(request.base_url, ae_title))])


async def unsubscribe(request: Request) -> Response:
    """Answer DELETE /workitems/{workitem}/subscribers/{aetitle} (§11.11)."""
    return await _unsubscribe(request, urls.uid(request.params, "workitem"))


async def unsubscribe_filtered(request: Request) -> Response:
    """Answer DELETE /workitems/1.2.840.10008.5.1.4.34.5.1/subscribers/{aetitle}: for the filter in the query, else for all filters."""
    return await _unsubscribe(request, FILTERED_SUBSCRIPTION, _filter(request, is_optional=True))


async def _unsubscribe(request: Request, workitem_uid: str, text: str = "") -> Response:
    call = pb.UnsubscribeRequest(workitem_uid=workitem_uid, ae_title=_ae_title(request), filter=text)
    with translated("workflow"):
        await request.gateway.workflow.Unsubscribe(call, timeout=request.gateway.settings.request_timeout_s)
    return _answer(request, 200)


async def suspend(request: Request) -> Response:
    """Answer POST /workitems/1.2.840.10008.5.1.4.34.5/subscribers/{aetitle}/suspend (§11.12)."""
    return await _suspend(request, urls.uid(request.params, "workitem"))


async def suspend_filtered(request: Request) -> Response:
    """Answer POST /workitems/1.2.840.10008.5.1.4.34.5.1/subscribers/{aetitle}/suspend: for the filter in the query, else for all."""
    return await _suspend(request, FILTERED_SUBSCRIPTION, _filter(request, is_optional=True))


async def _suspend(request: Request, workitem_uid: str, text: str = "") -> Response:
    call = pb.SuspendGlobalSubscriptionRequest(workitem_uid=workitem_uid, ae_title=_ae_title(request), filter=text)
    with translated("workflow"):
        await request.gateway.workflow.SuspendGlobalSubscription(call, timeout=request.gateway.settings.request_timeout_s)
    return _answer(request, 200)


def _filter(request: Request, is_optional: bool = False) -> str:
    """Return the normalised filter of the query; "" if it is optional and missing.

    Raises:
        errors.BadRequest: the filter is missing or not valid.
    """
    given = [(name, value) for name, value in request.query if name not in (*NEGOTIATION, "deletionlock")]
    return "" if is_optional and not given else matching.parse_filter(given).text


def subscriber_url(base_url: str, ae_title: str) -> str:
    """Return the URL of the notification connection of an AE title."""
    return f"ws{base_url.removeprefix('http')}/subscribers/{quote(ae_title, safe='')}"


def _uid_in_query(request: Request, names: tuple[str, ...]) -> str:
    """Return the UID that is the query itself, or the value of a parameter in `names`; "" if there is none.

    Raises:
        errors.BadRequest: there are several UIDs, or the UID is not valid.
    """
    given = [value if name in names else name for name, value in request.query if name in names or not value]
    given = [uid for uid in given if uid not in NEGOTIATION]
    if len(given) > 1:
        raise errors.BadRequest(f"the query names {len(given)} UIDs, expected one")
    if given and not is_valid_uid(given[0]):
        raise errors.BadRequest(f"{given[0][:70]!r} in the query is not a UID: expected 1 to 64 digits and dots")
    return given[0] if given else ""


def _ae_title(request: Request) -> str:
    ae_title = request.params["aetitle"]
    if not is_valid_ae_title(ae_title):
        raise errors.BadRequest("the AE title of the path is not valid: expected 1 to 16 printable ASCII characters, no backslash")
    return ae_title.strip()


def _flag(request: Request, name: str) -> bool:
    value = request.parameter(name)
    if value not in (None, "true", "false"):
        raise errors.BadRequest(f"parameter {name} is {value[:20]!r}, expected true or false")
    return value == "true"


async def _payload(request: Request, is_optional: bool = False) -> bytes:
    """Return the one data set of the payload as a DICOM JSON object.

    Raises:
        errors.UnsupportedMediaType: the payload, or the only part of multipart/related, is neither DICOM JSON nor Native DICOM Model XML.
        errors.BadRequest: it cannot be read, or is not one data set.
        errors.PayloadTooLarge: it has more bytes than `GANTRY_WORKITEM_MAX_BYTES`.
    """
    body = await request.body(request.gateway.settings.workitem_max_bytes)
    content_type = request.headers.get("content-type", "")
    if is_optional and not body.strip():
        return b""
    media_type, parameters = multipart.parse_content_type(content_type) if content_type.strip() else ("", {})
    if media_type == "multipart/related":
        media_type, body = _only_part(body, parameters)
    if media_type == DICOM_XML:
        # In a thread, as a document of several MiB would block the event loop
        return await asyncio.to_thread(_from_xml, body)
    if media_type not in JSON_TYPES:
        raise errors.UnsupportedMediaType(f"Content-Type is {media_type[:60] or 'missing'}, expected {DICOM_JSON} or {DICOM_XML}")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise errors.BadRequest(f"the payload is not JSON: {error}") from None
    if isinstance(document, list):
        if len(document) != 1:
            raise errors.BadRequest(f"the payload is an array of {len(document)} data sets, expected one")
        document = document[0]
    if not isinstance(document, dict):
        raise errors.BadRequest("the payload is neither a DICOM JSON object nor an array of one")
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError:
        raise errors.BadRequest("the payload has objects and arrays nested deeper than 254") from None


def _only_part(body: bytes, parameters: dict[str, str]) -> tuple[str, bytes]:
    """Return media type and bytes of the only part of a multipart payload. The default of its Content-Type is the type parameter."""
    reader = multipart.Reader(parameters.get("boundary", ""))
    parts: list[tuple[str, list[bytes | memoryview]]] = []
    for event in reader.feed(body):
        if isinstance(event, multipart.PartBegin):
            parts.append((event.headers.get("content-type") or parameters.get("type", ""), []))
        elif isinstance(event, multipart.PartData):
            parts[-1][1].append(event.data)
    reader.close()
    if len(parts) != 1:
        raise errors.BadRequest(f"the payload has {len(parts)} parts, expected one")
    content_type, chunks = parts[0]
    return multipart.parse_content_type(content_type)[0] if content_type else "", b"".join(chunks)


def _from_xml(document: bytes) -> bytes:
    try:
        return orjson.dumps(native_xml.to_json_model(document, XML_LIMITS))
    except errors.CorruptInstance as error:
        raise errors.BadRequest(f"the payload is not a Native DICOM Model document: {error.message}") from None


def _warnings(request: Request, texts: Iterable[str]) -> list[tuple[str, str]]:
    return [("Warning", warning(request.base_url, text)) for text in texts]


def _answer(request: Request, status: int, texts: Iterable[str] = (), headers: Iterable[tuple[str, str]] = ()) -> Response:
    """Return a response without a payload.

    Args:
        texts: of Warning headers.
    """
    response = Response(status_code=status)
    for name, value in [*_warnings(request, texts), *headers]:
        response.headers.append(name, value)
    return response
