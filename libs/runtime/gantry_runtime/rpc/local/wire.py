"""The wire between neighbours: frames, streams that wait for who takes them, how a call ends."""

import asyncio
import json
import logging
import socket
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

log = logging.getLogger(__name__)

MOST_FRAME_BYTES = 64 << 20
WINDOW_BYTES = 2 << 20
SCRATCH_BYTES = 64 << 10
JOINED_BYTES = 16 << 10
"""Frames up to this length are joined with their header before they are written."""

SOCKET_BYTES = 1 << 20

HEADER = struct.Struct("<IBI")
HAS_CONTEXT = 0x80
"""Bit of the length of a method's name in the beginning of a call: the call's context follows the name, behind its length."""

CONTEXT_LENGTH = struct.Struct("<I")
CALL, CALL_WITH_REQUEST, MESSAGE, END, CANCEL, TAKEN, RESULT, STATUS = range(1, 9)

CODES = {code.value[0]: code for code in grpc.StatusCode}
Bytes = bytes | bytearray | memoryview
Ending = tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]
OK: Ending = (grpc.StatusCode.OK, "", ())
GONE: Ending = (grpc.StatusCode.UNAVAILABLE, "the connection ended", ())
LATE: Ending = (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", ())
ABANDONED: Ending = (grpc.StatusCode.CANCELLED, "the call was cancelled", ())


class Wire(asyncio.BufferedProtocol, ABC):
    """One side of a connection: cuts what comes into frames, writes frames."""

    def __init__(self) -> None:
        self.transport: Any = None
        self._scratch = bytearray(SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._filled = 0
        self._payload: memoryview | None = None
        self._received = 0
        self._head = (0, 0, 0)
        self._is_writable = asyncio.Event()
        self._is_writable.set()

    def connection_made(self, transport: Any) -> None:
        """Take the transport."""
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of who waits for the transport."""
        self.transport = None
        self._is_writable.set()

    def pause_writing(self) -> None:
        """Make senders of streams wait."""
        self._is_writable.clear()

    def resume_writing(self) -> None:
        """Let them go on."""
        self._is_writable.set()

    async def writable(self) -> None:
        """Wait until the transport takes more."""
        await self._is_writable.wait()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go: straight into a long payload, else into the scratch buffer."""
        if self._payload is not None:
            return self._payload[self._received :]
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Cut off the frames that are whole."""
        if self._payload is not None:
            self._received += nbytes
            if self._received < len(self._payload):
                return
            payload, self._payload = self._payload, None
            self.frame(self._head[1], self._head[2], payload.toreadonly())
            return
        self._filled += nbytes
        at = 0
        while self._filled - at >= HEADER.size:
            length, kind, call = HEADER.unpack_from(self._scratch, at)
            end = at + HEADER.size + length
            if end > self._filled:
                if end - at > SCRATCH_BYTES:
                    self._begin_long(length, kind, call, at + HEADER.size)
                    return
                break
            self.frame(kind, call, self._view[at + HEADER.size : end].tobytes())
            at = end
        if at:
            rest = self._filled - at
            self._scratch[:rest] = self._scratch[at : self._filled]
            self._filled = rest

    def _begin_long(self, length: int, kind: int, call: int, at: int) -> None:
        if length > MOST_FRAME_BYTES:
            log.error("a neighbour sent a frame that is too long", extra={"bytes": length})
            self.transport.abort()
            return
        self._payload, self._head = memoryview(bytearray(length)), (length, kind, call)
        self._received = self._filled - at
        self._payload[: self._received] = self._view[at : self._filled]
        self._filled = 0

    def send(self, kind: int, call: int, pieces: Sequence[Bytes] = ()) -> None:
        """Write a frame; without a connection it is lost, as the call is."""
        if self.transport is None or self.transport.is_closing():
            return
        length = sum(map(len, pieces))
        header = HEADER.pack(length, kind, call)
        if length <= JOINED_BYTES:
            self.transport.write(b"".join((header, *pieces)))
        else:
            self.transport.writelines((header, *pieces))

    @abstractmethod
    def frame(self, kind: int, call: int, payload: Bytes) -> None:
        """Take one frame."""


class _Flow:
    """Messages of one call in one direction, and who waits for something to change."""

    def __init__(self, wire: Wire, number: int) -> None:
        self.is_ended = False
        self._wire = wire
        self._number = number
        self._changed: asyncio.Future[None] | None = None

    def end(self) -> None:
        """No more will come or go."""
        self.is_ended = True
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def _change(self) -> None:
        self._changed = asyncio.get_running_loop().create_future()
        await self._changed


class Inflow(_Flow):
    """Messages of a stream that have come and were not taken yet."""

    def __init__(self, wire: Wire, number: int) -> None:
        super().__init__(wire, number)
        self._waiting: deque[Bytes] = deque()
        self._taken = 0

    def arrive(self, message: Bytes) -> None:
        """Take a message from the wire."""
        self._waiting.append(message)
        self._wake()

    async def take(self) -> Bytes | None:
        """Return the next message, None behind the last one."""
        while not self._waiting:
            if self.is_ended:
                return None
            await self._change()
        message = self._waiting.popleft()
        self._taken += len(message)
        if self._taken >= WINDOW_BYTES // 4 and not self.is_ended:
            self._wire.send(TAKEN, self._number, (self._taken.to_bytes(8, "little"),))
            self._taken = 0
        return message


class Outflow(_Flow):
    """Sends the messages of a stream as fast as they are taken."""

    def __init__(self, wire: Wire, number: int) -> None:
        super().__init__(wire, number)
        self._untaken = 0

    def taken(self, size: int) -> None:
        """Hear that the other side took messages."""
        self._untaken -= size
        self._wake()

    async def send(self, pieces: Sequence[Bytes]) -> None:
        """Send a message when there is room for it. Nothing is sent after the end."""
        while self._untaken >= WINDOW_BYTES and not self.is_ended:
            await self._change()
        await self._wire.writable()
        if not self.is_ended:
            self._untaken += sum(map(len, pieces))
            self._wire.send(MESSAGE, self._number, pieces)


def status_of(ending: Ending) -> bytes:
    """Return the payload of a STATUS."""
    code, details, metadata = ending
    told = [[name, value.decode("latin-1") if isinstance(value, bytes) else value] for name, value in metadata]
    return json.dumps([code.value[0], details, told]).encode()


def ending_of(payload: Bytes) -> Ending:
    """Return what a STATUS says."""
    code, details, metadata = json.loads(bytes(payload))
    told = tuple((name, value.encode("latin-1") if name.endswith("-bin") else value) for name, value in metadata)
    return CODES.get(code, grpc.StatusCode.UNKNOWN), details, told


def error_of(ending: Ending) -> grpc.aio.AioRpcError:
    """Return the error that a call raises which ended so."""
    code, details, metadata = ending
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details)


def tune(transport: Any) -> None:
    """Ask for buffers in which a message of an instance has room; the system gives what it allows."""
    found = transport.get_extra_info("socket")
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        found.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)
    transport.set_write_buffer_limits(high=WINDOW_BYTES)
