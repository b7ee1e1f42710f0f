"""The administrative commands of `gantry`, over gRPC to the services of the suite that runs on this machine."""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc.aio

from gantry.blob.v1 import blob_pb2
from gantry.blob.v1.blob_pb2_grpc import BlobServiceStub
from gantry.events.v1 import events_pb2
from gantry.index.v1 import index_pb2
from gantry.index.v1.index_pb2_grpc import IndexServiceStub
from gantry_runtime.rpc import channels, rpc_errors
from gantry_standard import errors
from gantry_suite.client import Failed

CALL_S = 30.0
"""Time-out of a short call, in seconds."""
LONG_S = 24 * 3600.0
"""Time-out of a call that reads the whole archive, in seconds."""


@asynccontextmanager
async def _channel(data: Path, service: str) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel to a service of the suite that runs in a data directory.

    Raises:
        Failed: no suite runs there.
    """
    try:
        if not (data / "run" / f"{service}.pid").exists():
            raise Failed(f"no suite is running in {data} (gantry up --data {data})")
        port = json.loads((data / "run" / "ports.json").read_text(encoding="utf-8"))[service]
    except (OSError, ValueError, KeyError) as error:
        raise Failed(f"{data} is no data directory of a suite: {error}") from error
    async with channels.channel(f"127.0.0.1:{port}") as channel:
        yield channel


def _command(body: Callable[[argparse.Namespace], Coroutine[Any, Any, int]]) -> Callable[[argparse.Namespace], int]:
    def command(arguments: argparse.Namespace) -> int:
        try:
            return asyncio.run(body(arguments))
        except errors.GantryError as error:
            raise Failed(error.message) from error

    command.__doc__ = body.__doc__
    return command


@_command
async def reindex(arguments: argparse.Namespace) -> int:
    """Rebuild the index from the object store alone, on the running suite, and swap it in."""
    last = index_pb2.ReindexResponse()
    async with _channel(arguments.data, "index") as channel:
        with rpc_errors.translated("index"):
            async for last in IndexServiceStub(channel).Reindex(index_pb2.ReindexRequest(), timeout=LONG_S):
                print(f"{last.packs_read} of {last.packs_total} packs, {last.instances} instances", flush=True)
    if not last.done:
        raise Failed("index ended the reindexing before it was done; the index in use is unchanged")
    print(f"done: {last.instances} instances from {last.packs_total} packs")
    return 0


@_command
async def verify(arguments: argparse.Namespace) -> int:
    """Read every stored byte and compare digests; print what differs. Returns 1 if anything differs."""
    packs = instances = size = wrong = 0
    async with _channel(arguments.data, "blob") as channel:
        with rpc_errors.translated("blob"):
            async for answer in BlobServiceStub(channel).Verify(blob_pb2.VerifyRequest(), timeout=LONG_S):
                packs, instances, size = packs + 1, instances + answer.instances, size + answer.bytes
                for problem in answer.problems:
                    wrong += 1
                    print(f"{answer.object}: {problem}", flush=True)
    print(f"{packs} packs, {instances} instances, {size} bytes read: {f'{wrong} problems' if wrong else 'all digests agree'}")
    return 1 if wrong else 0


@_command
async def restore(arguments: argparse.Namespace) -> int:
    """Restore a deleted study, series or instance. Returns 1 if anything could not be restored."""
    async with _channel(arguments.data, "index") as channel:
        with rpc_errors.translated("index"):
            request = index_pb2.RestoreInstancesRequest(uid=arguments.uid)
            answer = await IndexServiceStub(channel).RestoreInstances(request, timeout=LONG_S)
    print(f"{answer.restored} instances restored")
    if answer.here:
        print(f"{answer.here} were not deleted, or have been stored anew: they stay as they are")
    if answer.gone:
        print(f"{answer.gone} cannot be restored: their bytes are given up")
    return 1 if answer.gone else 0


@_command
async def duplicates(arguments: argparse.Namespace) -> int:
    """List the uploads that were refused because their SOP Instance UID had other content. `gantry export --at` writes their files."""
    async with _channel(arguments.data, "blob") as channel:
        blob = BlobServiceStub(channel)
        with rpc_errors.translated("blob"):
            refused = await _refused(blob)
            objects = {key for key, _ in refused} | set(await _keys(blob, "packs/", ".copy.pack"))
            for key in sorted(objects):
                with suppress(grpc.aio.AioRpcError):  # The pack was removed meanwhile.
                    async for answer in blob.ReadTrailer(blob_pb2.ReadTrailerRequest(object=key), timeout=CALL_S):
                        for instance in answer.instances:
                            _print_refused(instance, refused, arguments.uid)
    return 0


def _print_refused(instance: blob_pb2.StoredInstance, refused: Mapping[tuple[str, int], str], uid: str) -> None:
    name = instance.origin if instance.HasField("origin") else instance.location
    uids = (instance.study_instance_uid, instance.series_instance_uid, instance.sop_instance_uid)
    if (name.object, name.offset) in refused and (not uid or uid in uids):
        place = instance.location
        print(f"{refused[name.object, name.offset]}  {'/'.join(uids)}  {place.object}:{place.offset}:{place.length}", flush=True)


async def _keys(blob: Any, prefix: str, suffix: str = "") -> list[str]:
    listing = blob.ListObjects(blob_pb2.ListObjectsRequest(prefix=prefix), timeout=LONG_S)
    return [entry.object async for answer in listing for entry in answer.objects if entry.object.endswith(suffix)]


async def _refused(blob: Any) -> dict[tuple[str, int], str]:
    """Return the uploads that are set aside, by upload name, with the time of the decision."""
    last: dict[tuple[str, int], tuple[int, int, str]] = {}
    for key in await _keys(blob, "decisions/"):
        data = b"".join([answer.data async for answer in blob.Read(blob_pb2.ReadRequest(object=key), timeout=CALL_S)])
        decision = events_pb2.Decision.FromString(data)
        for name in decision.locations:
            place = name.object, name.offset
            if last.get(place, (-1, 0, ""))[0] <= decision.sequence:
                last[place] = decision.sequence, decision.kind, decision.decided
    return {place: decided for place, (_, kind, decided) in last.items() if kind == events_pb2.Decision.KIND_REFUSED}


@_command
async def export(arguments: argparse.Namespace) -> int:
    """Write the file of one instance exactly as it was sent."""
    place = await _location_of(arguments.data, arguments.uid) if not arguments.at else _parse_location(arguments.at)
    temporary = arguments.file.with_name(arguments.file.name + ".part")
    try:
        with temporary.open("wb") as file:
            async with _channel(arguments.data, "blob") as channel:
                request = blob_pb2.ReadRequest(object=place.object, ranges=[blob_pb2.Range(offset=place.offset, length=place.length)])
                with rpc_errors.translated("blob"):
                    async for answer in BlobServiceStub(channel).Read(request, timeout=LONG_S):
                        file.write(answer.data)
        if temporary.stat().st_size != place.length:
            raise Failed(f"blob sent {temporary.stat().st_size} bytes, expected {place.length}")
        temporary.replace(arguments.file)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    print(f"{arguments.file}: {place.length} bytes, as sent")
    return 0


async def _location_of(data: Path, uid: str) -> blob_pb2.Location:
    scope = index_pb2.Scope(sop_instance_uid=uid)
    async with _channel(data, "index") as channel:
        with rpc_errors.translated("index"):
            answers = IndexServiceStub(channel).GetInstances(index_pb2.GetInstancesRequest(scope=scope), timeout=CALL_S)
            records = [record async for answer in answers for record in answer.records]
    if not records:
        raise Failed(f"there is no instance {uid}")
    return records[0].stored.location


def _parse_location(text: str) -> blob_pb2.Location:
    """Read OBJECT:OFFSET:LENGTH as `gantry duplicates` prints it."""
    object_key, _, rest = text.partition(":")
    offset, _, length = rest.partition(":")
    if not (object_key and offset.isdecimal() and length.isdecimal()):
        raise Failed(f"--at {text}: expected OBJECT:OFFSET:LENGTH as `gantry duplicates` prints it")
    return blob_pb2.Location(object=object_key, offset=int(offset), length=int(length))
