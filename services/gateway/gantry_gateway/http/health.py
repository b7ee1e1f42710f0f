"""Health over HTTP: /healthz/live, /healthz/ready, /healthz/suite.

A gateway is ready if NATS, blob and index are, which most requests need. The suite is all five services and their stores.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

import orjson
from google.protobuf.message import Message
from starlette.responses import Response

from gantry.blob.v1 import blob_pb2
from gantry.index.v1 import index_pb2
from gantry.renderer.v1 import renderer_pb2
from gantry.workflow.v1 import workflow_pb2
from gantry_gateway.http.request import Gateway, Request
from gantry_runtime.rpc.rpc_errors import translated
from gantry_standard import errors

TIMEOUT_S = 2.0


async def live(request: Request) -> Response:
    """Answer GET /healthz/live: the process runs."""
    return Response("live\n", media_type="text/plain")


async def ready(request: Request) -> Response:
    """Answer GET /healthz/ready: 200, or 503 with the reason why the gateway is not ready."""
    missing = await what_is_missing(request.gateway)
    return Response(f"{missing or 'ready'}\n", 503 if missing else 200, media_type="text/plain", headers={"Cache-Control": "no-store"})


async def suite(request: Request) -> Response:
    """Answer GET /healthz/suite: the state of each service as JSON."""
    state = await state_of_suite(request.gateway)
    body = orjson.dumps(state, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return Response(body, 200 if state["ready"] else 503, media_type="application/json", headers={"Cache-Control": "no-store"})


async def what_is_missing(gateway: Gateway) -> str:
    """Return the reason why this gateway is not ready; "" if it is ready."""
    states = [_state_of_nats(gateway), *await asyncio.gather(_ask(_blob(gateway), "blob"), _ask(_index(gateway), "index"))]
    return "; ".join(
        f"{name} is not ready: {state['explanation']}"
        for name, state in zip(("NATS", "blob", "index"), states, strict=True)
        if not state["ready"]
    )


async def state_of_suite(gateway: Gateway) -> dict[str, Any]:
    """Request the state of all services concurrently; return the JSON object of /healthz/suite."""
    renderer = gateway.renderer.GetStatus(renderer_pb2.GetStatusRequest(), timeout=TIMEOUT_S)
    workflow = gateway.workflow.GetStatus(workflow_pb2.GetStatusRequest(), timeout=TIMEOUT_S)
    states = await asyncio.gather(
        _ask(_blob(gateway), "blob"), _ask(_index(gateway), "index"), _ask(renderer, "renderer"), _ask(workflow, "workflow")
    )
    services = {"gateway": {"ready": True}, **dict(zip(("blob", "index", "renderer", "workflow"), states, strict=True))}
    nats = _state_of_nats(gateway)
    return {"ready": nats["ready"] and all(state["ready"] for state in states), "nats": nats, "services": services}


def _blob(gateway: Gateway) -> Awaitable[Message]:
    return gateway.blob.GetStatus(blob_pb2.GetStatusRequest(), timeout=TIMEOUT_S)


def _index(gateway: Gateway) -> Awaitable[Message]:
    return gateway.index.GetStatus(index_pb2.GetStatusRequest(), timeout=TIMEOUT_S)


async def _ask(call: Awaitable[Message], service: str) -> dict[str, Any]:
    """Return the fields of a GetStatusResponse; "ready" is false if the call fails."""
    try:
        with translated(service):
            status = await call
    except errors.GantryError as error:
        return {"ready": False, "explanation": error.message}
    fields = {field.name: getattr(status, field.name) for field in status.DESCRIPTOR.fields}
    return {
        name: list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else value for name, value in fields.items()
    }


def _state_of_nats(gateway: Gateway) -> dict[str, Any]:
    is_ready = gateway.nats.is_connected
    return {"ready": is_ready, "explanation": "" if is_ready else "NATS does not answer"}
