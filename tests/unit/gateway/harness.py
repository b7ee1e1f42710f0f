"""A gateway on a free port, with real NATS, and fake services that record their calls."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc
import httpx

from gantry.blob.v1 import blob_pb2, blob_pb2_grpc
from gantry.events.v1 import events_pb2
from gantry.index.v1 import index_pb2, index_pb2_grpc
from gantry.renderer.v1 import renderer_pb2, renderer_pb2_grpc
from gantry.workflow.v1 import workflow_pb2, workflow_pb2_grpc
from gantry_gateway.content.sources import make_retrieval
from gantry_gateway.http import server
from gantry_gateway.http.app import Application, Router
from gantry_gateway.http.request import Gateway
from gantry_gateway.http.routes import ROUTES, Route, mounts
from gantry_gateway.settings import GatewaySettings
from gantry_index.edge import scope_of
from gantry_runtime.blob_reader import StreamedReader
from gantry_runtime.events import streams
from gantry_runtime.rpc import channels
from gantry_runtime.store_messages import SERIALISED
from gantry_standard import errors
from tests.support.nats_server import NatsServer, free_port

CT = "1.2.840.10008.5.1.4.1.1.2"
OWN_MODULES = ("studies.store", "studies.search", "studies.delete")


@dataclass
class Uploaded:
    """One part as blob received it."""

    part_number: int
    content_type: str
    data: bytearray = field(default_factory=bytearray)
    largest_message: int = 0


class Blob(blob_pb2_grpc.BlobServiceServicer):
    """Records uploads; answers each part by `decide`, and tells outcomes as index would.

    Refuses messages in another order than `blob.proto` says, and chunks that are too large, as blob does.
    """

    def __init__(self) -> None:
        self.starts: list[blob_pb2.StoreStart] = []
        self.parts: list[Uploaded] = []
        self.ended = 0
        self.calls_over = 0
        self.keep = True
        self.ready = True
        self.reply: Callable[[str, bytes], object] | None = None
        self.outcome: dict[int, events_pb2.Outcome | None] = {}
        self.decide: Callable[[Uploaded], blob_pb2.PartResult] = stored
        self.refuse: Exception | None = None

    async def StoreInstances(self, request_iterator, context):
        try:
            start, parts, is_ended = None, [], False
            async for message in request_iterator:
                kind = message.WhichOneof("message")
                check_order(kind, is_started=start is not None, has_part=bool(parts), is_ended=is_ended)
                if kind == "start":
                    start = message.start
                    self.starts.append(start)
                elif kind == "part":
                    if parts and message.part.part_number <= parts[-1].part_number:
                        raise errors.BadRequest(f"part {message.part.part_number} comes after part {parts[-1].part_number}")
                    parts.append(Uploaded(message.part.part_number, message.part.content_type))
                    self.parts.append(parts[-1])
                elif kind == "chunk":
                    if len(message.chunk) > channels.CHUNK_BYTES:
                        raise errors.PayloadTooLarge(f"a chunk has {len(message.chunk)} bytes, expected at most {channels.CHUNK_BYTES}")
                    parts[-1].largest_message = max(parts[-1].largest_message, len(message.chunk))
                    if self.keep:
                        parts[-1].data += message.chunk
                    if self.refuse is not None:
                        raise self.refuse
                else:
                    self.ended, is_ended = self.ended + 1, True
                    results = [self.decide(part) for part in parts]
                    await self._tell(start, [r.part_number for r in results if not r.failure_reason])
                    for result in results:
                        yield blob_pb2.StoreInstancesResponse(parts=[result])
        finally:
            self.calls_over += 1

    async def StoreWhole(self, request, context):
        if sum(len(message.chunk) for message in request.messages) > channels.CHUNK_BYTES:
            raise errors.PayloadTooLarge("the chunks of a whole request have more than 1 MiB")
        if not request.messages or request.messages[-1].WhichOneof("message") != "end":
            raise errors.BadRequest("a store request ended without its end")

        async def messages():
            for message in request.messages:
                yield message

        answers = [answer async for answer in self.StoreInstances(messages(), context)]
        return blob_pb2.StoreWholeResponse(parts=[part for answer in answers for part in answer.parts])

    async def _tell(self, start, part_numbers: list[int]) -> None:
        decided = {n: self.outcome.get(n, events_pb2.OUTCOME_NEW) for n in part_numbers}
        for number, outcome in decided.items():
            if outcome is not None:
                told = events_pb2.StoreOutcome(part_number=number, outcome=outcome)
                await self.reply(start.reply_subject, events_pb2.StoreOutcomes(outcomes=[told]).SerializeToString())

    async def GetStatus(self, request, context):
        return blob_pb2.GetStatusResponse(object_store="directory", ready=self.ready, free_bytes=7 << 40, explanation="")


def check_order(kind: str | None, *, is_started: bool, has_part: bool, is_ended: bool) -> None:
    """Check the order of the messages of a store request. Raises errors.BadRequest."""
    if not is_started and kind != "start":
        raise errors.BadRequest("a store request begins with its start")
    if is_ended or kind is None or (is_started and kind == "start"):
        raise errors.BadRequest(f"a store request had {kind} where it may not be")
    if kind == "chunk" and not has_part:
        raise errors.BadRequest("a store request had a chunk before its first part")


def stored(part: Uploaded) -> blob_pb2.PartResult:
    """Return the result of a part whose bytes are "study series instance" (UIDs)."""
    study, series, instance = bytes(part.data[:200]).decode("latin-1").split()[:3]
    return blob_pb2.PartResult(
        part_number=part.part_number,
        study_instance_uid=study,
        series_instance_uid=series,
        sop_instance_uid=instance,
        sop_class_uid=CT,
    )


class Index(index_pb2_grpc.IndexServiceServicer):
    """Records searches and deletions."""

    def __init__(self) -> None:
        self.searches: list[index_pb2.SearchRequest] = []
        self.deletions: list[index_pb2.Scope] = []
        self.found = index_pb2.SearchResponse()
        self.refuse: Exception | None = None

    async def Search(self, request, context):
        self.searches.append(request)
        if self.refuse is not None:
            raise self.refuse
        return self.found

    async def DeleteInstances(self, request, context):
        scope_of(request.scope)
        self.deletions.append(request.scope)
        if self.refuse is not None:
            raise self.refuse
        return index_pb2.DeleteInstancesResponse(deleted=1)

    async def GetStatus(self, request, context):
        return index_pb2.GetStatusResponse(index_store="sqlite", ready=True, instances=1 << 40)


class Renderer(renderer_pb2_grpc.RendererServiceServicer):
    """Is ready."""

    async def GetStatus(self, request, context):
        return renderer_pb2.GetStatusResponse(ready=True, workers=2, decodes=["1.2.840.10008.1.2.1"])


class Workflow(workflow_pb2_grpc.WorkflowServiceServicer):
    """Is ready."""

    async def GetStatus(self, request, context):
        return workflow_pb2.GetStatusResponse(ready=True, workitems_sequence=3)


@dataclass
class Running:
    """A gateway and its fake services."""

    http: httpx.AsyncClient
    gateway: Gateway
    blob: Blob
    index: Index
    port: int

    @property
    def root(self) -> str:
        """URL of the DICOMweb root."""
        return f"http://127.0.0.1:{self.port}/dicom-web"


def own_routes() -> Sequence[Route]:
    """Return all rows; rows of other modules have no handler."""
    return [
        route if route.handler.partition(":")[0] in OWN_MODULES else Route(route.method, route.path, route.transaction) for route in ROUTES
    ]


@asynccontextmanager
async def running(
    nats: NatsServer, routes: Sequence[Route] | None = None, without: Sequence[str] = (), **settings: object
) -> AsyncIterator[Running]:
    """Run a gateway.

    Args:
        without: services that are not there, of blob, index, renderer, workflow.
    """
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(streams.connected(nats.url, "test"))
        blob, index = Blob(), Index()
        blob.reply = client.publish
        servicers = {
            "blob": (blob_pb2_grpc.add_BlobServiceServicer_to_server, blob, blob_pb2_grpc.BlobServiceStub),
            "index": (index_pb2_grpc.add_IndexServiceServicer_to_server, index, index_pb2_grpc.IndexServiceStub),
            "renderer": (renderer_pb2_grpc.add_RendererServiceServicer_to_server, Renderer(), renderer_pb2_grpc.RendererServiceStub),
            "workflow": (workflow_pb2_grpc.add_WorkflowServiceServicer_to_server, Workflow(), workflow_pb2_grpc.WorkflowServiceStub),
        }
        stubs = {}
        for name, (add, servicer, stub) in servicers.items():
            port = free_port()
            if name not in without:

                def register(opened: grpc.aio.Server, add=add, servicer=servicer) -> None:
                    add(servicer, opened)

                port = await stack.enter_async_context(channels.serving(register, "127.0.0.1:0", drain_s=0.1))
            stubs[name] = stub(await stack.enter_async_context(channels.channel(f"127.0.0.1:{port}", SERIALISED)))
        configured = GatewaySettings(**settings)
        retrieval = make_retrieval(configured, stubs["index"], stubs["renderer"], StreamedReader(stubs["blob"]))
        inbox = await stack.enter_async_context(streams.inbox(client, f"reply.{free_port()}"))
        gateway = Gateway(settings=configured, nats=client, retrieval=retrieval, inbox=inbox, **stubs)
        app = Application(gateway, Router(mounts(configured, routes if routes is not None else own_routes())))
        port = await stack.enter_async_context(server.serving(app, "127.0.0.1", 0, drain_s=1))
        http = await stack.enter_async_context(httpx.AsyncClient(verify=False, timeout=20, base_url=f"http://127.0.0.1:{port}/dicom-web"))
        yield Running(http, gateway, blob, index, port)
