"""A stored instance: its frames and rendering attributes, read through the port BlobReader."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from gantry.blob.v1 import blob_pb2
from gantry.renderer.v1 import renderer_pb2
from gantry_renderer.codecs import coding
from gantry_renderer.picture import attributes
from gantry_renderer.picture.attributes import RenderAttributes
from gantry_renderer.stored import frames
from gantry_renderer.stored.mapped import StoredFrame
from gantry_renderer.transactions.flights import Flights
from gantry_renderer.workers.pool import Pool
from gantry_runtime.blob_reader import BlobReader
from gantry_runtime.byte_bounded_cache import ByteBoundedCache
from gantry_standard import errors
from gantry_standard.dicom.scanned import PixelDescription

Key = tuple[str, int, int]

ATTRIBUTES_ROOM_BYTES = 32 << 20
SMALL_JSON_BYTES = 64 << 10
"""DICOM JSON up to this size is parsed in this process (0.3 ms); larger objects are parsed in a worker."""


class Instance:
    """The instance that a `Source` describes.

    Raises:
        BadRequest: the source has no location.
    """

    def __init__(self, source: renderer_pb2.Source) -> None:
        if not source.stored.HasField("location"):
            raise errors.BadRequest("the source has no location")
        self.stored: blob_pb2.StoredInstance = source.stored
        self.object_key: str = source.stored.location.object
        self.description: PixelDescription = frames.describe(source.stored)
        self.sop_class_uid: str = source.stored.sop_class_uid
        self.transfer_syntax_uid: str = source.stored.layout.wire_transfer_syntax_uid
        self.key: Key = (self.object_key, source.stored.location.offset, source.version)

    @property
    def name(self) -> str:
        """SOP Instance UID, for error messages."""
        uid: str = self.stored.sop_instance_uid
        return uid

    @property
    def number_of_frames(self) -> int:
        """Number of frames; 0 without pixel data."""
        return frames.number_of_frames(self.stored)


async def read(reader: BlobReader, object_key: str, ranges: Sequence[tuple[int, int]]) -> bytes:
    """Read ranges of an object and return them joined.

    Raises:
        Unavailable: the object was moved or deleted since index gave its place. A new request gets the new place.
    """
    try:
        ready = reader.ready(object_key, ranges)
        if ready is not None:
            return b"".join(ready)
        return b"".join([piece async for piece in reader.read(object_key, ranges)])
    except errors.NotFound as error:
        raise errors.Unavailable("the bytes of the instance were moved a moment ago") from error


async def read_frame(reader: BlobReader, instance: Instance, frame_number: int) -> bytes:
    """Read a frame: its bit stream without item headers, or its native values from bit 0 on."""
    place = frames.locate(instance.stored, frame_number)
    data = await read(reader, instance.object_key, place.ranges)
    return data if place.is_aligned else await asyncio.to_thread(frames.aligned, place, data)


async def run_with_frame(reader: BlobReader, pool: Pool, job: str, instance: Instance, frame_number: int, *arguments: Any) -> Any:
    """Run a job of the pool with the arguments: transfer syntax, frame, pixel description and `arguments`.

    Where the objects are files on this machine, the worker reads the frame itself. Raises what `Pool.run` and `read` raise.
    """
    place = frames.locate(instance.stored, frame_number)
    path = reader.path(instance.object_key)
    uid, description = instance.transfer_syntax_uid, instance.description
    if path is not None:
        frame = StoredFrame(path, place, coding.is_native(uid))
        with suppress(errors.NotFound):  # the object was moved; the reader can still find it
            return await pool.run(job, uid, frame, description, *arguments)
    return await pool.run(job, uid, await read_frame(reader, instance, frame_number), description, *arguments)


class AttributesReader:
    """Reads rendering attributes from the DICOM JSON of instances, and caches them by version."""

    def __init__(self, reader: BlobReader, pool: Pool) -> None:
        self._reader = reader
        self._pool = pool
        self._cache = ByteBoundedCache[RenderAttributes](ATTRIBUTES_ROOM_BYTES, lambda value: value.size_bytes)
        self._flights = Flights()

    async def read(self, instance: Instance) -> RenderAttributes:
        """Return the attributes of all frames.

        Raises:
            BadRequest: the source has no DICOM JSON.
            CorruptInstance: the DICOM JSON cannot be parsed.
            Unavailable: as `read`.
        """
        cached = self._cache.get(instance.key)
        if cached is not None:
            return cached
        return await self._flights.share(instance.key, lambda: self._read(instance))

    async def _read(self, instance: Instance) -> RenderAttributes:
        dicom_json = await self._json(instance)
        if len(dicom_json) <= SMALL_JSON_BYTES:
            render_attributes = attributes.read_attributes(dicom_json)
        else:
            render_attributes = await self._pool.run("attributes", dicom_json)
        if paths := render_attributes.bulk_paths():
            render_attributes = render_attributes.with_bulk(await self._bulk(instance, paths))
        self._cache.put(instance.key, render_attributes)
        return render_attributes

    async def _json(self, instance: Instance) -> bytes:
        stored = instance.stored
        if stored.dicom_json:
            return bytes(stored.dicom_json)
        if not stored.HasField("dicom_json_location"):
            raise errors.BadRequest(f"the source of {instance.name} has neither dicom_json nor dicom_json_location")
        place = stored.dicom_json_location
        return await read(self._reader, place.object, [(place.offset, place.length)])

    async def _bulk(self, instance: Instance, paths: Sequence[str]) -> dict[str, bytes]:
        wanted = set(paths)
        ranges = {bulk.path: (bulk.value.offset, bulk.value.length) for bulk in instance.stored.layout.bulk if bulk.path in wanted}
        return {path: await read(self._reader, instance.object_key, [place]) for path, place in ranges.items()}
