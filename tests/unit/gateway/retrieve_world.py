"""A gateway on a free port for retrieve: a pack in a directory, an index with its records, a renderer that returns what was requested."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx

from gantry.blob.v1.blob_pb2 import BulkElement, EncapsulatedFrames, FrameTable, Layout, Location, NativeFrames, Range, StoredInstance
from gantry.index.v1 import index_pb2, index_pb2_grpc
from gantry.renderer.v1 import renderer_pb2, renderer_pb2_grpc
from gantry_gateway.content.records import Records
from gantry_gateway.content.sources import make_retrieval
from gantry_gateway.http import server
from gantry_gateway.http.app import Application, Router
from gantry_gateway.http.request import Gateway
from gantry_gateway.http.routes import ROUTES, Route, mounts
from gantry_gateway.settings import GatewaySettings
from gantry_index.edge import scope_of
from gantry_runtime.blob_reader import check_ranges, object_path
from gantry_runtime.rpc import channels
from gantry_standard import errors

LE = "1.2.840.10008.1.2.1"
JPEG = "1.2.840.10008.1.2.4.50"
JLS = "1.2.840.10008.1.2.4.80"
J2K = "1.2.840.10008.1.2.4.90"
RLE = "1.2.840.10008.1.2.5"
MPEG = "1.2.840.10008.1.2.4.102"

STUDY, SERIES = "1.2.3", "1.2.3.4"
OTHER_SERIES = "1.2.3.5"

CT = f"{SERIES}.1"
"""Native, 3 frames of 4 bytes: b"AAAA", b"BBBB", b"CCCC"; has bulk data 00420011."""
WSI = f"{SERIES}.2"
"""JPEG 2000, 2 frames; the second one in two fragments."""
BITS = f"{SERIES}.3"
"""Native, 3 frames of 9 bits."""
SR = f"{SERIES}.4"
"""No pixel data; its metadata is stored in the pack."""
ONE = f"{OTHER_SERIES}.1"
"""Native, one frame of 2 bytes."""


class DirectoryReader:
    """The port BlobReader over a directory; `ready` returns views only if `warm`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.warm = True
        self.reads: list[tuple[str, int]] = []
        self.open_reads = 0
        self.piece_bytes = 1 << 20

    async def read(self, object_key, ranges):
        path = object_path(self.directory, object_key)
        if not path.exists():
            raise errors.NotFound(f"there is no object {object_key}")
        check_ranges(object_key, path.stat().st_size, ranges)
        self.reads.append((object_key, len(ranges)))
        self.open_reads += 1
        try:
            kept = b""
            with path.open("rb") as file:
                for offset, length in ranges:
                    while length:
                        file.seek(offset)
                        data = file.read(min(length, self.piece_bytes))
                        offset, length = offset + len(data), length - len(data)
                        # Adjacent ranges may share a chunk
                        if len(kept) + len(data) <= self.piece_bytes:
                            kept += data
                        else:
                            yield kept
                            kept = data
                            await asyncio.sleep(0)
            yield kept
        finally:
            self.open_reads -= 1

    def ready(self, object_key, ranges):
        path = self.directory / object_key
        if not self.warm or not path.exists():
            return None
        data = memoryview(path.read_bytes())
        return [data[offset : offset + length] for offset, length in ranges]


@dataclass
class Pack:
    """Appends bytes to one object and returns their ranges."""

    path: Path
    key: str
    size: int = 0

    def write(self, data: bytes) -> Range:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(data)
        self.size += len(data)
        return Range(offset=self.size - len(data), length=len(data))


class Index(index_pb2_grpc.IndexServiceServicer):
    """An index with the records that a test adds."""

    def __init__(self) -> None:
        self.records: dict[str, index_pb2.InstanceRecord] = {}
        self.json: dict[str, bytes] = {}
        self.json_places: dict[str, Location] = {}
        self.deleted: set[str] = set()
        self.asked: list[str] = []
        self.before_answer: asyncio.Event | None = None
        self.state = b""
        """State tag of all metadata, sent for a study or a series."""
        self.known_states: list[bytes] = []
        self.moved_to = self.json_moved_to = ""
        """Object in the records of single instances, while the records of a series or study still have the old object."""

    def _in_scope(self, scope):
        scope_of(scope)
        found = [
            record
            for record in self.records.values()
            if record.stored.study_instance_uid == scope.collection
            and scope.series_instance_uid in ("", record.stored.series_instance_uid)
            and scope.sop_instance_uid in ("", record.stored.sop_instance_uid)
        ]
        if not found and scope.sop_instance_uid in self.deleted:
            raise errors.Gone("the instance was deleted")
        if not found:
            raise errors.NotFound("there is nothing in this scope")
        return found

    async def GetInstances(self, request, context):
        self.asked.append(request.scope.sop_instance_uid or request.scope.series_instance_uid or request.scope.collection)
        found = self._in_scope(request.scope)
        if self.before_answer is not None:
            await self.before_answer.wait()
        for record in found:
            if self.moved_to and request.scope.sop_instance_uid:
                record.stored.location.object = self.moved_to
            yield index_pb2.GetInstancesResponse(records=[record])

    async def GetMetadata(self, request, context):
        self.known_states.append(request.known_state)
        found = self._in_scope(request.scope)
        state = b"" if request.scope.sop_instance_uid else self.state
        if state and state == request.known_state:
            yield index_pb2.GetMetadataResponse(state=state, unchanged=True)
            return
        for record in found:
            uid = record.stored.sop_instance_uid
            fragment = index_pb2.MetadataFragment(sop_instance_uid=uid, version=record.version)
            if uid in self.json_places:
                fragment.location.CopyFrom(self.json_places[uid])
                if self.json_moved_to and request.scope.sop_instance_uid:
                    fragment.location.object = self.json_moved_to
            else:
                fragment.dicom_json = self.json.get(uid, b"{}")
            answer, state = index_pb2.GetMetadataResponse(fragments=[fragment], state=state), b""
            yield answer


class Renderer(renderer_pb2_grpc.RendererServiceServicer):
    """Returns the description of the request as the transcoded bytes; refuses instances of `impossible`."""

    def __init__(self) -> None:
        self.impossible: set[str] = set()
        self.decodes = [LE, J2K, JPEG, JLS, RLE]
        self.encodes = [J2K, JLS]
        self.makes = {"image/jpeg", "image/png"}
        self.rendered: list[renderer_pb2.RenderRequest] = []
        self.sources: list[renderer_pb2.Source] = []
        self.endless = False
        self.cancelled = asyncio.Event()

    async def GetStatus(self, request, context):
        return renderer_pb2.GetStatusResponse(ready=True, decodes=self.decodes, encodes=self.encodes)

    def _check(self, source, transfer_syntax_uid=LE):
        """Refuse what the renderer refuses: a missing location, an unsupported transfer syntax, and instances of `impossible`."""
        if not source.stored.HasField("location"):
            raise errors.BadRequest("the source has no location")
        if transfer_syntax_uid not in (LE, *self.encodes):
            raise errors.NotAcceptable(f"{transfer_syntax_uid} cannot be produced")
        self.sources.append(source)
        if source.stored.sop_instance_uid in self.impossible:
            raise errors.NotAcceptable("the pixel data cannot be brought into this transfer syntax")

    async def TranscodeFrames(self, request, context):
        self._check(request.source, request.transfer_syntax_uid)
        for number in request.frame_numbers:
            if not 1 <= number <= request.source.stored.layout.frames.number_of_frames:
                raise errors.NotFound(f"frame {number}: the instance has {request.source.stored.layout.frames.number_of_frames} frames")
            yield renderer_pb2.TranscodeFramesResponse(frame_number=number, data=f"frame {number} ".encode())
            yield renderer_pb2.TranscodeFramesResponse(frame_number=number, data=request.transfer_syntax_uid.encode(), last=True)

    async def TranscodeInstance(self, request, context):
        self._check(request.source, request.transfer_syntax_uid)
        try:
            yield renderer_pb2.TranscodeInstanceResponse(data=f"{request.source.stored.sop_instance_uid} ".encode())
            while self.endless:
                yield renderer_pb2.TranscodeInstanceResponse(data=bytes(1 << 20))
            yield renderer_pb2.TranscodeInstanceResponse(data=request.transfer_syntax_uid.encode())
        finally:
            self.cancelled.set()

    async def Render(self, request, context):
        (source,) = request.sources
        self._check(source)
        self.rendered.append(request)
        if request.media_type not in self.makes:
            raise errors.NotAcceptable(f"{request.media_type} is not made")
        return renderer_pb2.RenderResponse(image=f"image {request.frame_number}".encode(), media_type=request.media_type)


@dataclass
class World:
    """The gateway and its fake services."""

    http: httpx.AsyncClient
    gateway: Gateway
    index: Index
    renderer: Renderer
    reader: DirectoryReader
    pack: Pack
    records: Records
    port: int
    wire: dict[str, bytes] = field(default_factory=dict)

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def instance(self, uid: str) -> str:
        """Path of an instance below the base."""
        series = self.index.records[uid].stored.series_instance_uid
        return f"/studies/{STUDY}/series/{series}/instances/{uid}"

    async def get(self, path: str, accept: str | None = "*/*", **headers: str) -> httpx.Response:
        """Send a GET below the base; without an Accept header if `accept` is None."""
        request = self.http.build_request("GET", f"{self.root}{path}", headers={name.replace("_", "-"): v for name, v in headers.items()})
        request.headers.pop("accept", None)
        request.headers.pop("accept-encoding", None)
        if "accept_encoding" in headers:
            request.headers["accept-encoding"] = headers["accept_encoding"]
        if accept is not None:
            request.headers["accept"] = accept
        return await self.http.send(request)

    def add(
        self, uid: str, transfer_syntax: str, pixels: Sequence[bytes] = (), *, series: str = SERIES, frame_bits: int = 0, frames: int = 0,
        first_fragments: Sequence[int] = (), tag: str = "7FE00010",
    ) -> StoredInstance:  # fmt: skip
        """Add an instance to the pack: a header, pixel data of these pieces, a trailing element. It is native if frame_bits is given."""
        head, tail = f"DICM {uid} ".encode(), b" tail"
        layout = Layout(wire_transfer_syntax_uid=transfer_syntax)
        start = self.pack.write(head)
        spans = [(self.pack.write(piece), self.pack.write(b"" if frame_bits else b"item"))[0] for piece in pixels]
        end = self.pack.write(tail)
        # The served form has two ranges, as it need not be contiguous
        length = end.offset + end.length - start.offset
        layout.wire.extend([Range(offset=start.offset, length=3), Range(offset=start.offset + 3, length=length - 3)])
        if frame_bits:
            layout.frames.CopyFrom(FrameTable(number_of_frames=frames, native=NativeFrames(offset=spans[0].offset, frame_bits=frame_bits)))
        elif pixels:
            encapsulated = EncapsulatedFrames(
                fragment_offsets=[s.offset for s in spans], fragment_lengths=[s.length for s in spans], first_fragments=first_fragments
            )
            layout.frames.CopyFrom(FrameTable(number_of_frames=frames, encapsulated=encapsulated))
        if pixels:
            whole = Range(offset=spans[0].offset, length=end.offset - spans[0].offset)
            layout.bulk.append(BulkElement(path=tag, vr="OW", value=whole))
            layout.pixel.tag = tag
        stored = StoredInstance(
            study_instance_uid=STUDY, series_instance_uid=series, sop_instance_uid=uid, transfer_syntax_uid=transfer_syntax, layout=layout,
            location=Location(object=self.pack.key, offset=start.offset, length=length), dataset_digest=uid.encode(),
        )  # fmt: skip
        self.index.records[uid] = index_pb2.InstanceRecord(stored=stored, version=len(self.index.records) + 1)
        uids = f'"00080018":{{"vr":"UI","Value":["{uid}"]}},"0020000E":{{"vr":"UI","Value":["{series}"]}}'
        self.index.json[uid] = b'{%s,"7FE00010":{"vr":"OW","BulkDataURI":"\0/b"}}' % uids.encode()
        self.wire[uid] = self.pack.path.read_bytes()[start.offset : start.offset + length]
        return self.index.records[uid].stored

    def move(self, uid: str, key: str = "packs/moved.pack") -> None:
        """Copy everything to a new object, as the sweeper does; index returns the new object for this instance."""
        (self.reader.directory / key).write_bytes(self.pack.path.read_bytes())
        self.pack.path.unlink()
        self.index.records[uid].stored.location.object = key


def _fill(world: World) -> None:
    stored = world.add(CT, LE, [b"AAAABBBBCCCC"], frame_bits=32, frames=3)
    stored.layout.bulk.append(BulkElement(path="00420011", vr="OB", value=world.pack.write(b"%PDF-1.7")))
    stored.layout.bulk.append(BulkElement(path="00540016/1/00181078", vr="OB", value=world.pack.write(b"nested")))
    world.add(WSI, J2K, [b"first tile", b"second ", b"tile"], frames=2, first_fragments=(0, 1))
    # Frames of nine 1-bit pixels, least significant bit first: 0x1FF, 0x001, 0x155.
    packed = 0x1FF | 0x001 << 9 | 0x155 << 18
    world.add(BITS, LE, [packed.to_bytes(4, "little")], frame_bits=9, frames=3)
    world.add(SR, LE)
    text = b'{"00080018":{"vr":"UI","Value":["%s"]},"0020000E":{"vr":"UI","Value":["%s"]},"00880140":{"vr":"OB","BulkDataURI":"\0/x"}}'
    text %= SR.encode(), SERIES.encode()
    place = world.pack.write(text)
    world.index.json_places[SR] = Location(object=world.pack.key, offset=place.offset, length=place.length)
    world.add(ONE, LE, [b"ab"], series=OTHER_SERIES, frame_bits=16, frames=1)


def own_routes() -> list[Route]:
    """Return all rows; rows of other modules have no handler."""
    own = ("studies.retrieve", "studies.metadata", "studies.frames", "studies.bulkdata", "studies.rendered")
    return [r if r.handler.partition(":")[0] in own else Route(r.method, r.path, r.transaction) for r in ROUTES]


@asynccontextmanager
async def running(directory: Path, **settings: object) -> AsyncIterator[World]:
    """Run a gateway over a filled pack."""
    async with AsyncExitStack() as stack:
        index, renderer, reader = Index(), Renderer(), DirectoryReader(directory)

        def register(opened: grpc.aio.Server) -> None:
            index_pb2_grpc.add_IndexServiceServicer_to_server(index, opened)
            renderer_pb2_grpc.add_RendererServiceServicer_to_server(renderer, opened)

        services = await stack.enter_async_context(channels.serving(register, "127.0.0.1:0", drain_s=0.1))
        channel = await stack.enter_async_context(channels.channel(f"127.0.0.1:{services}"))
        await channel.channel_ready()
        configured = GatewaySettings(**settings)
        stubs = index_pb2_grpc.IndexServiceStub(channel), renderer_pb2_grpc.RendererServiceStub(channel)
        retrieval = make_retrieval(configured, *stubs, reader)
        gateway = Gateway(settings=configured, blob=None, index=stubs[0], renderer=stubs[1], workflow=None, nats=None, retrieval=retrieval)
        records = retrieval.records
        app = Application(gateway, Router(mounts(configured, own_routes())))
        port = await stack.enter_async_context(server.serving(app, "127.0.0.1", 0, drain_s=1))
        http = await stack.enter_async_context(httpx.AsyncClient(verify=False, timeout=20))
        world = World(http, gateway, index, renderer, reader, Pack(directory / "packs/a.pack", "packs/a.pack"), records, port)
        _fill(world)
        yield world


@dataclass
class PartRead:
    """One part of a multipart response."""

    headers: dict[str, str]
    raw_head: bytes
    body: bytes


def parts_of(response: httpx.Response) -> list[PartRead]:
    """Split a multipart/related response strictly at its boundary."""
    content_type = response.headers["content-type"]
    boundary = content_type.partition("boundary=")[2].encode()
    assert response.content.startswith(b"--" + boundary + b"\r\n")
    assert response.content.endswith(b"\r\n--" + boundary + b"--\r\n")
    pieces = (b"\r\n" + response.content).split(b"\r\n--" + boundary)
    found = []
    for piece in pieces[1:-1]:
        head, _, body = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        found.append(PartRead(headers, head, body))
    return found
