"""The process gantry-gateway: opens connections to the other services and serves HTTP.

It starts also if other services are down. Requests that need a service that does not answer get 503 until it does.
"""

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from gantry.blob.v1.blob_pb2_grpc import BlobServiceStub
from gantry.index.v1.index_pb2_grpc import IndexServiceStub
from gantry.renderer.v1.renderer_pb2_grpc import RendererServiceStub
from gantry.workflow.v1.workflow_pb2_grpc import WorkflowServiceStub
from gantry_gateway.content import records
from gantry_gateway.content.sources import make_retrieval
from gantry_gateway.http import health, server
from gantry_gateway.http.access import EVERYBODY, Access
from gantry_gateway.http.app import Application, Router
from gantry_gateway.http.request import Gateway
from gantry_gateway.http.routes import mounts
from gantry_gateway.settings import GatewaySettings
from gantry_gateway.worklist import notifications
from gantry_gateway.worklist.websocket_protocol import GantryWebSocketProtocol
from gantry_runtime import telemetry
from gantry_runtime.blob_reader import BlobReader, MappedReader, StreamedReader
from gantry_runtime.events import streams
from gantry_runtime.process import Process, end_tasks, run
from gantry_runtime.rpc import channels
from gantry_runtime.store_messages import SERIALISED

LOOK_S = 0.05
READY_S = 5.0
"""Most seconds that a gateway of a shared port waits for the other services before it listens."""


async def open_gateway(process: Process, settings: GatewaySettings, access: Access = EVERYBODY) -> None:
    """Open connections and the HTTP server on the stack of the process.

    They are closed in reverse order, so requests end before the connections that they use.

    Args:
        access: determines the caller of each request.
    """
    stack = process.stack
    router = Router(mounts(settings))
    client, connected = await stack.enter_async_context(streams.connecting(settings.nats_url, "gantry-gateway"))
    index = IndexServiceStub(await stack.enter_async_context(channels.channel(settings.index_address)))
    blob = BlobServiceStub(await stack.enter_async_context(channels.channel(settings.blob_address, SERIALISED)))
    renderer = RendererServiceStub(await stack.enter_async_context(channels.channel(settings.renderer_address)))
    reader: BlobReader = StreamedReader(blob)
    if settings.blob_directory is not None:
        reader = MappedReader(settings.blob_directory, blob)
    gateway = Gateway(
        settings=settings,
        blob=blob,
        index=index,
        renderer=renderer,
        workflow=WorkflowServiceStub(await stack.enter_async_context(channels.channel(settings.workflow_address))),
        nats=client,
        retrieval=make_retrieval(settings, index, renderer, reader, stack.enter_context(records.sharing(settings.port_shared_by))),
        access=access,
    )
    await stack.enter_async_context(_following_nats(process, gateway, connected))
    app = Application(gateway, router)
    await stack.enter_async_context(telemetry.admin(settings.gateway_admin_listen, lambda: health.what_is_missing(gateway)))
    is_shared = settings.port_shared_by is not None
    if is_shared:
        await _ready(gateway)
    await stack.enter_async_context(
        server.serving(app, settings.host, settings.port, settings.drain_s, GantryWebSocketProtocol, is_shared, process)
    )


async def _ready(gateway: Gateway) -> None:
    """Wait at most `READY_S` for the other services. Meanwhile the other gateways of the port serve the requests."""
    for _ in range(int(READY_S / LOOK_S)):
        if not await health.what_is_missing(gateway):
            return
        await asyncio.sleep(LOOK_S)


@asynccontextmanager
async def _following_nats(process: Process, gateway: Gateway, connected: "asyncio.Task[None]") -> AsyncIterator[None]:
    """Open inbox, record cache and notifications as soon as NATS answers; close them with the context."""

    async def follow() -> None:
        await connected
        async with AsyncExitStack() as stack:
            gateway.inbox = await stack.enter_async_context(streams.inbox(gateway.nats, f"reply.{uuid.uuid4().hex}"))
            await stack.enter_async_context(records.listening(gateway.retrieval.records, gateway.nats))
            await (await stack.enter_async_context(notifications.running(gateway)))

    task = asyncio.create_task(follow(), name="follow NATS")
    try:
        # The task is ended here, not by the process, which ends its tasks first: running requests still need it
        with process.guarded(task):
            yield
    finally:
        await end_tasks([task])


def main() -> None:
    """Run until a signal stops the process."""
    sys.exit(run("gateway", GatewaySettings, open_gateway))


if __name__ == "__main__":
    main()
