"""The Worklist service over HTTP: PS3.18 chapter 11. Workflow decides; here requests are read and answers written."""

from collections.abc import Iterable
from urllib.parse import quote

import orjson
from starlette.responses import Response

from gantry.index.v1 import index_pb2
from gantry.workflow.v1 import workflow_pb2 as pb
from gantry_gateway import notifications, urls
from gantry_gateway.compression import json_response
from gantry_gateway.problems import warning
from gantry_gateway.request import Request
from gantry_gateway.studies_search import match_key
from gantry_runtime.rpc_errors import translated
from gantry_standard import errors, matching, negotiation
from gantry_standard.media_types import Resource
from gantry_standard.uids import is_valid_uid
from gantry_standard.workitems import is_valid_ae_title

NEGOTIATION = ("accept", "charset")
"""Parameters that every resource has (§8.3.3)."""
UID_NAMES = ("workitem", "AffectedSOPInstanceUID")
"""Names that a client may give the UID in the query of Create; the standard has the bare UID (§11.4.1)."""
TRANSACTION_NAMES = ("transaction-uid", "transaction")
JSON_TYPES = ("application/dicom+json", "application/json")

CANCEL_REQUESTER = "GANTRY"
"""Requesting AE (0074,1236) of a cancel request: a web request carries none."""


async def create(request: Request) -> Response:
    """Answer POST /workitems (§11.4)."""
    uid = _uid_in_query(request, UID_NAMES)
    call = pb.CreateWorkitemRequest(workitem_uid=uid, dicom_json=await _payload(request))
    with translated("workflow"):
        made = await request.gateway.workflow.CreateWorkitem(call, timeout=request.gateway.settings.request_timeout_s)
    location = urls.workitem(request.base_url, made.workitem_uid)
    return _answer(request, 201, made.warnings, [("Location", location), ("Content-Location", location)])


async def retrieve(request: Request) -> Response:
    """Answer GET /workitems/{workitem} (§11.5)."""
    negotiation.select(Resource.WORKITEMS, request.accept, request.parameter("accept"), request.gateway.settings.strict_accept)
    call = pb.RetrieveWorkitemRequest(workitem_uid=urls.uid(request.params, "workitem"))
    with translated("workflow"):
        found = await request.gateway.workflow.RetrieveWorkitem(call, timeout=request.gateway.settings.request_timeout_s)
    return await json_response(request, b"[" + found.dicom_json + b"]", [("Cache-Control", "private, no-cache")])


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
        requesting_ae=CANCEL_REQUESTER,
    )
    with translated("workflow"):
        done = await request.gateway.workflow.RequestWorkitemCancellation(call, timeout=request.gateway.settings.request_timeout_s)
    return _answer(request, 202, done.warnings)


async def search(request: Request) -> Response:
    """Answer GET /workitems (§11.9)."""
    settings = request.gateway.settings
    negotiation.select(Resource.WORKITEMS, request.accept, request.parameter("accept"), settings.strict_accept)
    parameters = [(name, value) for name, value in request.query if name not in NEGOTIATION]
    query, texts = matching.parse_workitem_query(parameters, settings.search_max_results)
    if query.limit == 0:
        return _answer(request, 204, texts)
    call = index_pb2.SearchWorkitemsRequest(
        keys=[match_key(key) for key in query.keys],
        include_fields=query.include_fields,
        include_all=query.include_all,
        offset=query.offset,
        limit=query.limit,
        current="no-cache" in request.headers.get("cache-control", ""),
    )
    with translated("index"):
        found = await request.gateway.index.SearchWorkitems(call, timeout=settings.request_timeout_s)
    if not found.rows:
        return _answer(request, 204, texts)
    if found.remaining:
        texts = [*texts, f"There are {found.remaining} additional results that can be requested"]
    body = b"[" + b",".join(found.rows).replace(b"\0", request.base_url.encode()) + b"]"
    return await json_response(request, body, _warnings(request, texts))


async def subscribe(request: Request) -> Response:
    """Answer POST /workitems/{workitem}/subscribers/{aetitle} (§11.10)."""
    ae_title = _ae_title(request)
    call = pb.SubscribeRequest(
        workitem_uid=urls.uid(request.params, "workitem"), ae_title=ae_title, deletion_lock=_flag(request, "deletionlock")
    )
    # Reports count from here: what comes between the subscription and the first connection is delivered then.
    await notifications.begin(request.gateway, ae_title)
    with translated("workflow"):
        done = await request.gateway.workflow.Subscribe(call, timeout=request.gateway.settings.request_timeout_s)
    return _answer(request, 201, done.warnings, [("Content-Location", subscriber_url(request.base_url, ae_title))])


async def unsubscribe(request: Request) -> Response:
    """Answer DELETE /workitems/{workitem}/subscribers/{aetitle} (§11.11)."""
    call = pb.UnsubscribeRequest(workitem_uid=urls.uid(request.params, "workitem"), ae_title=_ae_title(request))
    with translated("workflow"):
        await request.gateway.workflow.Unsubscribe(call, timeout=request.gateway.settings.request_timeout_s)
    return _answer(request, 200)


async def suspend(request: Request) -> Response:
    """Answer POST /workitems/1.2.840.10008.5.1.4.34.5/subscribers/{aetitle}/suspend (§11.12)."""
    call = pb.SuspendGlobalSubscriptionRequest(workitem_uid=urls.uid(request.params, "workitem"), ae_title=_ae_title(request))
    with translated("workflow"):
        await request.gateway.workflow.SuspendGlobalSubscription(call, timeout=request.gateway.settings.request_timeout_s)
    return _answer(request, 200)


def subscriber_url(base_url: str, ae_title: str) -> str:
    """Return the URL of the notification connection of an AE title."""
    return f"ws{base_url.removeprefix('http')}/subscribers/{quote(ae_title, safe='')}"


def _uid_in_query(request: Request, names: tuple[str, ...]) -> str:
    """Return the UID that is the query itself, or the value of one of its names; "" where there is none."""
    given = [value if name in names else name for name, value in request.query if name in names or not value]
    given = [uid for uid in given if uid not in NEGOTIATION]
    if len(given) > 1:
        raise errors.BadRequest(f"the query names {len(given)} UIDs, expected one")
    if given and not is_valid_uid(given[0]):
        raise errors.BadRequest(f"{given[0][:70]!r} in the query is no UID: expected 1 to 64 digits and dots")
    return given[0] if given else ""


def _ae_title(request: Request) -> str:
    ae_title = request.params["aetitle"]
    if not is_valid_ae_title(ae_title):
        raise errors.BadRequest("the AE title of the path is none: expected 1 to 16 printable ASCII characters, no backslash")
    return ae_title.strip()


def _flag(request: Request, name: str) -> bool:
    value = request.parameter(name)
    if value not in (None, "true", "false"):
        raise errors.BadRequest(f"parameter {name} is {value[:20]!r}, expected true or false")
    return value == "true"


async def _payload(request: Request, is_optional: bool = False) -> bytes:
    """Return the one data set of the payload as a DICOM JSON object.

    Raises:
        errors.UnsupportedMediaType: it is no DICOM JSON.
        errors.BadRequest: it is no JSON, or not one object or an array of one.
        errors.PayloadTooLarge: it has more bytes than the setting.
    """
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    body = await request.body(request.gateway.settings.workitem_max_bytes)
    if is_optional and not body.strip():
        return b""
    if media_type not in JSON_TYPES:
        raise errors.UnsupportedMediaType(f"Content-Type is {media_type[:60] or 'missing'}, expected {JSON_TYPES[0]}")
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise errors.BadRequest(f"the payload is not JSON: {error}") from None
    if isinstance(found, list):
        if len(found) != 1:
            raise errors.BadRequest(f"the payload is an array of {len(found)} data sets, expected one")
        found = found[0]
    if not isinstance(found, dict):
        raise errors.BadRequest("the payload is no DICOM JSON object, nor an array of one")
    return orjson.dumps(found)


def _warnings(request: Request, texts: Iterable[str]) -> list[tuple[str, str]]:
    return [("Warning", warning(request.base_url, text)) for text in texts]


def _answer(request: Request, status: int, texts: Iterable[str] = (), headers: Iterable[tuple[str, str]] = ()) -> Response:
    """Answer without a payload."""
    response = Response(status_code=status)
    for name, value in [*_warnings(request, texts), *headers]:
        response.headers.append(name, value)
    return response
