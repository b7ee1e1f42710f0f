"""Workflow and gateways in the process of the test, on their own real nats-server, with fakes of blob and index."""

import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx

from gantry.blob.v1 import blob_pb2, blob_pb2_grpc
from gantry.index.v1 import index_pb2, index_pb2_grpc
from gantry.renderer.v1 import renderer_pb2_grpc
from gantry.workflow.v1 import workflow_pb2_grpc
from gantry_blob.edge import PAGE_OBJECTS, REMOVABLE
from gantry_blob.packs import pack
from gantry_gateway.content.sources import make_retrieval
from gantry_gateway.http import server
from gantry_gateway.http.app import Application, Router
from gantry_gateway.http.request import Gateway
from gantry_gateway.http.routes import mounts
from gantry_gateway.settings import GatewaySettings
from gantry_gateway.worklist import notifications
from gantry_gateway.worklist.websocket_protocol import GantryWebSocketProtocol
from gantry_runtime.blob_reader import StreamedReader, check_object_key
from gantry_runtime.events import streams
from gantry_runtime.process import Process
from gantry_runtime.rpc import channels
from gantry_runtime.rpc.channels import CHUNK_BYTES
from gantry_runtime.store_messages import PUT_BYTES
from gantry_standard import errors
from gantry_workflow import main
from gantry_workflow.settings import WorkflowSettings
from tests.support.nats_server import NatsServer, free_port

JSON = {"Content-Type": "application/dicom+json", "Accept": "application/dicom+json"}
GLOBAL = "1.2.840.10008.5.1.4.34.5"
FILTERED = "1.2.840.10008.5.1.4.34.5.1"


def uid() -> str:
    """Return a new UID."""
    return f"2.25.{uuid.uuid4().int}"


def v(vr: str, *values: Any) -> dict[str, Any]:
    """Return a DICOM JSON element."""
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}


def code(value: str, meaning: str) -> dict[str, Any]:
    """Return an item of a code sequence."""
    return {"00080100": v("SH", value), "00080102": v("SH", "99TEST"), "00080104": v("LO", meaning)}


STATION, PROCEDURE = code("ST1", "Station"), code("P1", "Procedure")


def workitem(**changes: Any) -> dict[str, Any]:
    """Return a data set that N-CREATE takes as it is (PS3.4 Table CC.2.5-3). Change elements by `t00741200=...`; None leaves one out."""
    made = {
        "00081080": v("LO"),
        "00081084": v("SQ"),
        "00081195": v("UI"),
        "00100010": v("PN", {"Alphabetic": "Test^Workitem"}),
        "00100020": v("LO", "P1"),
        "00100021": v("LO"),
        "00100024": v("SQ"),
        "00100030": v("DA", "19700101"),
        "00100040": v("CS", "O"),
        "00101002": v("SQ"),
        "0020000D": v("UI", "1.2.3"),
        "00380010": v("LO"),
        "00380014": v("SQ"),
        "00400400": v("LT"),
        "00404005": v("DT", "20260101120000"),
        "00404018": v("SQ", PROCEDURE),
        "00404021": v("SQ"),
        "00404025": v("SQ", STATION),
        "00404026": v("SQ"),
        "00404027": v("SQ"),
        "00404041": v("CS", "READY"),
        "0040A370": v("SQ"),
        "00741000": v("CS", "SCHEDULED"),
        "00741002": v("SQ"),
        "00741200": v("CS", "MEDIUM"),
        "00741202": v("LO", "AI"),
        "00741204": v("LO", "Segment liver"),
        "00741210": v("SQ"),
        "00741216": v("SQ"),
    }
    for name, element in changes.items():
        made[name[1:]] = element
    return {tag: element for tag, element in made.items() if element is not None}


def state(name: str, transaction_uid: str = "") -> dict[str, Any]:
    """Return the payload of Change Workitem State."""
    return {"00741000": v("CS", name), **({"00081195": v("UI", transaction_uid)} if transaction_uid else {})}


PERFORMED = {
    "00741216": v(
        "SQ",
        {
            "00404028": v("SQ", STATION),
            "00404019": v("SQ", PROCEDURE),
            "00404050": v("DT", "20260101120000"),
            "00404051": v("DT", "20260101121000"),
            "00404033": v("SQ"),
        },
    )
}
"""What COMPLETED needs."""


class Blob(blob_pb2_grpc.BlobServiceServicer):
    """Keeps small objects in memory, and refuses what blob refuses (`gantry_blob.edge`)."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.failing: set[str] = set()
        """Objects that cannot be written now."""

    async def PutObject(self, request, context):
        check_object_key(request.object)
        if len(request.data) > PUT_BYTES:
            raise errors.PayloadTooLarge(f"{request.object}: {len(request.data)} bytes, expected at most {PUT_BYTES}")
        if request.object.startswith(pack.PREFIX):
            raise errors.Forbidden(f"{request.object}: packs are written by StoreInstances only")
        if request.object in self.failing:
            raise errors.Unavailable(f"{request.object} cannot be written")
        if not request.replace and self.objects.get(request.object, request.data) != request.data:
            raise errors.Conflict(f"{request.object} exists with other bytes")
        self.objects[request.object] = request.data
        return blob_pb2.PutObjectResponse()

    async def RemoveObject(self, request, context):
        check_object_key(request.object)
        if not request.object.startswith(REMOVABLE):
            raise errors.Forbidden(f"{request.object}: only copies of workitems are removed on request")
        self.objects.pop(request.object, None)
        return blob_pb2.RemoveObjectResponse()

    async def ListObjects(self, request, context):
        keys = sorted(key for key in self.keys() if key.startswith(request.prefix) and key > request.after)
        for begin in range(0, len(keys), PAGE_OBJECTS):
            page = keys[begin : begin + PAGE_OBJECTS]
            yield blob_pb2.ListObjectsResponse(
                objects=[blob_pb2.ObjectEntry(object=k, size_bytes=len(self.objects.get(k, b""))) for k in page]
            )

    def keys(self):
        """Return the keys that `ListObjects` lists."""
        return list(self.objects)

    async def Read(self, request, context):
        check_object_key(request.object)
        if request.object not in self.objects:
            raise errors.NotFound(f"{request.object}: no such object")
        data = self.objects[request.object]
        for begin in range(0, len(data), CHUNK_BYTES):
            yield blob_pb2.ReadResponse(data=data[begin : begin + CHUNK_BYTES])


class Index(index_pb2_grpc.IndexServiceServicer):
    """Records searches for workitems."""

    def __init__(self) -> None:
        self.searches: list[index_pb2.SearchWorkitemsRequest] = []
        self.found = index_pb2.SearchWorkitemsResponse()

    async def SearchWorkitems(self, request, context):
        self.searches.append(request)
        return self.found


@dataclass
class Worklist:
    """What runs, and how to reach it."""

    nats: NatsServer
    blob: Blob
    index: Index
    blob_address: str
    index_address: str
    workflow_port: int

    @property
    def workflow_address(self) -> str:
        """HOST:PORT of workflow, also while it is stopped."""
        return f"127.0.0.1:{self.workflow_port}"

    @asynccontextmanager
    async def workflow(self, **settings: Any) -> AsyncIterator["workflow_pb2_grpc.WorkflowServiceAsyncStub"]:
        """Run workflow as its process does; yields a client."""
        configured = WorkflowSettings(
            nats_url=self.nats.url, workflow_listen=self.workflow_address, blob_address=self.blob_address, **settings
        )
        async with AsyncExitStack() as stack:
            process = Process(stack)
            await main.opens(process, configured)
            channel = await stack.enter_async_context(channels.channel(self.workflow_address))
            yield workflow_pb2_grpc.WorkflowServiceStub(channel)  # type: ignore[misc]
            process.stopping.set()
            await process.cancel_tasks()
            assert process.failure is None

    @asynccontextmanager
    async def gateway(self, **settings: Any) -> AsyncIterator["Http"]:
        """Run a gateway on a free port."""
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(streams.connected(self.nats.url, "gateway"))
            open_channels = [
                await stack.enter_async_context(channels.channel(address))
                for address in (self.blob_address, self.index_address, self.workflow_address)
            ]
            configured = GatewaySettings(**settings)
            blob = blob_pb2_grpc.BlobServiceStub(open_channels[0])
            index = index_pb2_grpc.IndexServiceStub(open_channels[1])
            renderer = renderer_pb2_grpc.RendererServiceStub(open_channels[1])
            gateway = Gateway(
                settings=configured,
                nats=client,
                blob=blob,
                index=index,
                renderer=renderer,
                workflow=workflow_pb2_grpc.WorkflowServiceStub(open_channels[2]),
                retrieval=make_retrieval(configured, index, renderer, StreamedReader(blob)),
            )
            reports = await stack.enter_async_context(notifications.running(gateway))
            app = Application(gateway, Router(mounts(configured)))
            port = await stack.enter_async_context(server.serving(app, "127.0.0.1", 0, 0.2, GantryWebSocketProtocol))
            base = f"http://127.0.0.1:{port}/dicom-web"
            http = await stack.enter_async_context(httpx.AsyncClient(verify=False, timeout=20, base_url=base))
            yield Http(http, base, gateway)
            assert not reports.done()


@dataclass
class Http:
    """Requests to one gateway."""

    client: httpx.AsyncClient
    base: str
    gateway: Gateway

    @property
    def ws(self) -> str:
        """Base URL of notification connections."""
        return self.base.replace("http", "ws", 1)

    async def send(self, method: str, path: str, dataset: Any = None, **headers: str) -> httpx.Response:
        """Send a data set as an array of one."""
        content = None if dataset is None else json.dumps(dataset if isinstance(dataset, list) else [dataset])
        return await self.client.request(method, path, content=content, headers={**JSON, **headers})

    async def create(self, item: str = "", **changes: Any) -> str:
        """Create a workitem; return its UID."""
        item = item or uid()
        answer = await self.send("POST", f"/workitems?{item}", workitem(**changes))
        assert answer.status_code == 201, answer.text
        return item

    async def claim(self, item: str) -> str:
        """Claim a workitem; return its Transaction UID."""
        transaction = uid()
        answer = await self.send("PUT", f"/workitems/{item}/state", state("IN PROGRESS", transaction))
        assert answer.status_code == 200, answer.text
        return transaction

    async def subscribe(self, item: str, ae_title: str, query: str = "") -> str:
        """Subscribe an AE title; return the URL of its notification connection."""
        answer = await self.send("POST", f"/workitems/{item}/subscribers/{ae_title}{query}")
        assert answer.status_code == 201, answer.text
        return answer.headers["content-location"]


@asynccontextmanager
async def worklist(nats: NatsServer) -> AsyncIterator[Worklist]:
    """Run what workflow and gateways need. The test starts workflow and gateways itself."""
    async with AsyncExitStack() as stack:
        blob, index = Blob(), Index()
        ports = []
        for add, servicer in (
            (blob_pb2_grpc.add_BlobServiceServicer_to_server, blob),
            (index_pb2_grpc.add_IndexServiceServicer_to_server, index),
        ):

            def register(opened: grpc.aio.Server, add=add, servicer=servicer) -> None:
                add(servicer, opened)

            ports.append(await stack.enter_async_context(channels.serving(register, "127.0.0.1:0", drain_s=0.1)))
        yield Worklist(nats, blob, index, f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", free_port())


@contextlib.contextmanager
def own_nats(directory, max_payload: str = "8MB") -> Any:  # type: ignore[no-untyped-def]
    """Run a nats-server that the test may kill."""
    nats = NatsServer(directory, max_payload)
    nats.start()
    try:
        yield nats
    finally:
        nats.kill()
