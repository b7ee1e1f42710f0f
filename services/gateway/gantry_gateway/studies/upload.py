"""The transfer of one store request to blob, and the outcomes that index decides.

Source: PS3.18 §10.5.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, cast

from gantry.blob.v1 import blob_pb2
from gantry.events.v1 import events_pb2
from gantry_gateway.http.request import Request
from gantry_runtime.rpc import channels, rpc_errors
from gantry_runtime.store_messages import Chunk, Message, serialised, whole
from gantry_standard.http.multipart import End, Event, PartBegin, PartData, PartEnd

if TYPE_CHECKING:
    import grpc.aio

    StoreWhole = Callable[..., grpc.aio.UnaryUnaryCall[list[bytes | memoryview], blob_pb2.StoreWholeResponse]]
    Call = grpc.aio.StreamStreamCall[blob_pb2.StoreInstancesRequest, blob_pb2.StoreInstancesResponse]

log = logging.getLogger(__name__)

MESSAGE_BYTES = 512 << 10
"""Most bytes of an instance in one message to blob."""

WHOLE_BYTES = 1 << 20
"""Most bytes of the parts of a request that is sent to blob in one message."""

WHOLE_MESSAGES = 256
"""Most messages of such a request."""


class Upload:
    """Sends one request to blob: with a call of StoreWhole if it is small, else with a call of StoreInstances.

    Messages are held, at most WHOLE_BYTES of them, until it is known which call is used. With StoreInstances one message is sent while the
    next is gathered, so that reading the request and writing to blob overlap. At most two messages of MESSAGE_BYTES are held then.

    Args:
        start: the first message.
        part_type: Content-Type of a part without this header.
    """

    def __init__(self, request: Request, start: blob_pb2.StoreStart, part_type: str) -> None:
        self._gateway = request.gateway
        self._part_type = part_type
        self._call: Call | None = None
        self._writing: asyncio.Task[None] | None = None
        self._held: list[Message] = [blob_pb2.StoreInstancesRequest(start=start)]
        self._held_bytes = 0
        self._views: list[memoryview] = []
        self._size = 0
        self._parts = 0

    async def take(self, events: Iterable[Event | blob_pb2.PartStart]) -> None:
        """Send events to blob. A PartStart begins a part that was transformed.

        Raises:
            errors.GantryError: blob refuses the request or does not answer.
        """
        for event in events:
            match event:
                case PartData(data):
                    await self._add(data)
                case PartBegin(headers):
                    await self._begin(
                        blob_pb2.PartStart(
                            content_type=headers.get("content-type", "") or self._part_type,
                            content_location=headers.get("content-location", ""),
                        )
                    )
                case blob_pb2.PartStart():
                    await self._begin(event)
                case PartEnd():
                    await self._flush()
                case End():
                    pass

    async def finish(self) -> list[blob_pb2.PartResult]:
        """Send the end of the request; return the results of its instances, in the order of their part numbers."""
        end = blob_pb2.StoreInstancesRequest(end=blob_pb2.StoreEnd())
        return list(await (self._finish_whole(end) if self._call is None else self._finish_call(self._call, end)))

    async def _finish_whole(self, end: blob_pb2.StoreInstancesRequest) -> Sequence[blob_pb2.PartResult]:
        request = whole([*self._held, end])
        self._held.clear()
        with rpc_errors.translated("blob"):
            call = cast("StoreWhole", self._gateway.blob.StoreWhole)
            return (await call(request, timeout=self._gateway.settings.store_max_s)).parts

    async def _finish_call(self, call: "Call", end: blob_pb2.StoreInstancesRequest) -> Sequence[blob_pb2.PartResult]:
        await self._write(end)
        await self._written()
        with rpc_errors.translated("blob"):
            await call.done_writing()
            return [result async for response in call for result in response.parts]

    async def close(self) -> None:
        """End the call. Without a preceding `finish` nothing is stored."""
        if self._call is not None:
            self._call.cancel()
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

    async def _begin(self, part: blob_pb2.PartStart) -> None:
        part.part_number, self._parts = self._parts, self._parts + 1
        await self._write(blob_pb2.StoreInstancesRequest(part=part))

    async def _add(self, data: memoryview) -> None:
        while self._size + len(data) >= MESSAGE_BYTES:
            room = MESSAGE_BYTES - self._size
            self._views.append(data[:room])
            data = data[room:]
            await self._flush()
        if data:
            self._views.append(data)
            self._size += len(data)

    async def _flush(self) -> None:
        if self._views:
            chunk = Chunk(self._views, sum(map(len, self._views)))
            self._views, self._size = [], 0
            await self._write(chunk)

    async def _write(self, message: Message) -> None:
        if self._call is None:
            self._held.append(message)
            self._held_bytes += message.size if isinstance(message, Chunk) else 0
            if self._held_bytes <= WHOLE_BYTES and len(self._held) < WHOLE_MESSAGES:
                return
            self._call = self._gateway.blob.StoreInstances(timeout=self._gateway.settings.store_max_s)
            held, self._held = self._held, []
            for held_message in held:
                await self._write(held_message)
            return
        await self._written()
        self._writing = asyncio.create_task(self._send(message))

    async def _written(self) -> None:
        """Wait until the preceding message is written."""
        if self._writing is not None:
            await self._writing

    async def _send(self, message: Message) -> None:
        await channels.send_serialised(self._call, serialised(message), "blob")


class Outcomes:
    """The outcomes of the parts of one request that were received from index.

    Args:
        most: maximum number of parts of a request.
    """

    def __init__(self, most: int) -> None:
        self.by_part: dict[int, int] = {}
        self._most = most
        self._changed = asyncio.Event()

    def add(self, data: bytes) -> None:
        """Handle a StoreOutcomes message."""
        for part_outcome in events_pb2.StoreOutcomes.FromString(data).outcomes:
            if part_outcome.part_number < self._most:
                self.by_part[part_outcome.part_number] = part_outcome.outcome
        self._changed.set()

    async def wait_for(self, parts: set[int], timeout_s: float) -> None:
        """Wait until the outcomes of all these parts were received, at most `timeout_s` seconds."""
        if parts <= self.by_part.keys():
            return
        try:
            async with asyncio.timeout(timeout_s):
                while parts := parts - self.by_part.keys():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            log.warning("store outcomes are late", extra={"parts": len(parts)})
