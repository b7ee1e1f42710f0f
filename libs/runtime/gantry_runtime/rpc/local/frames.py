"""The frames of local calls: reading and writing them, flow control of streams, and the encoding of a status."""

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
"""Bodies up to this length are joined with their header into one buffer before they are written."""

SOCKET_BYTES = 1 << 20

HEADER = struct.Struct("<IBI")
HAS_CONTEXT = 0x80
"""Bit in the length of a method's name, in the first frame of a call: after the name follow length and bytes of the call context."""

CONTEXT_LENGTH = struct.Struct("<I")
CALL, CALL_WITH_REQUEST, MESSAGE, END, CANCEL, TAKEN, RESULT, STATUS = range(1, 9)

CODES = {code.value[0]: code for code in grpc.StatusCode}
Bytes = bytes | bytearray | memoryview
Ending = tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]
OK: Ending = (grpc.StatusCode.OK, "", ())
GONE: Ending = (grpc.StatusCode.UNAVAILABLE, "the connection ended", ())
LATE: Ending = (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", ())
ABANDONED: Ending = (grpc.StatusCode.CANCELLED, "the call was cancelled", ())


class Connection(asyncio.BufferedProtocol, ABC):
    """One end of a connection: splits the received bytes into frames, and writes frames."""

    def __init__(self) -> None:
        self.transport: Any = None
        self._scratch = bytearray(SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._filled = 0
        self._body: memoryview | None = None
        self._received = 0
        self._header = (0, 0, 0)
        self._is_writable = asyncio.Event()
        self._is_writable.set()

    def connection_made(self, transport: Any) -> None:
        """Store the transport."""
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake the tasks that wait to write."""
        self.transport = None
        self._is_writable.set()

    def pause_writing(self) -> None:
        """Make the senders of streams wait, because the transport's buffer is full."""
        self._is_writable.clear()

    def resume_writing(self) -> None:
        """Wake the senders of streams."""
        self._is_writable.set()

    async def writable(self) -> None:
        """Wait until the transport accepts more bytes."""
        await self._is_writable.wait()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer for the next received bytes: the rest of a long body, else the scratch buffer."""
        if self._body is not None:
            return self._body[self._received :]
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Handle all complete frames in the received bytes."""
        if self._body is not None:
            self._received += nbytes
            if self._received < len(self._body):
                return
            body, self._body = self._body, None
            self.frame(self._header[1], self._header[2], body.toreadonly())
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
            log.error("received a frame of a local call that is too long", extra={"bytes": length})
            self.transport.abort()
            return
        self._body, self._header = memoryview(bytearray(length)), (length, kind, call)
        self._received = self._filled - at
        self._body[: self._received] = self._view[at : self._filled]
        self._filled = 0

    def send(self, kind: int, call: int, buffers: Sequence[Bytes] = ()) -> None:
        """Write a frame. It is dropped if the connection is closed; its call has failed then."""
        if self.transport is None or self.transport.is_closing():
            return
        length = sum(map(len, buffers))
        header = HEADER.pack(length, kind, call)
        if length <= JOINED_BYTES:
            self.transport.write(b"".join((header, *buffers)))
        else:
            self.transport.writelines((header, *buffers))

    @abstractmethod
    def frame(self, kind: int, call: int, body: Bytes) -> None:
        """Handle one received frame.

        Args:
            kind: CALL to STATUS.
            call: number of the call.
            body: of the frame.
        """


class _Flow:
    """The messages of one call in one direction. One task at a time may wait for a change."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.is_ended = False
        self._connection = connection
        self._number = number
        self._changed: asyncio.Future[None] | None = None

    def end(self) -> None:
        """Mark the end: no more messages will be received or sent."""
        self.is_ended = True
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def _change(self) -> None:
        self._changed = asyncio.get_running_loop().create_future()
        await self._changed


class Inflow(_Flow):
    """The received messages of a stream that were not read yet."""

    def __init__(self, connection: Connection, number: int) -> None:
        super().__init__(connection, number)
        self._waiting: deque[Bytes] = deque()
        self._taken = 0

    def arrive(self, message: Bytes) -> None:
        """Add a received message."""
        self._waiting.append(message)
        self._wake()

    async def take(self) -> Bytes | None:
        """Return the next message; None after the last one."""
        while not self._waiting:
            if self.is_ended:
                return None
            await self._change()
        message = self._waiting.popleft()
        self._taken += len(message)
        if self._taken >= WINDOW_BYTES // 4 and not self.is_ended:
            self._connection.send(TAKEN, self._number, (self._taken.to_bytes(8, "little"),))
            self._taken = 0
        return message


class Outflow(_Flow):
    """Sends the messages of a stream, at the speed at which the receiver reads them."""

    def __init__(self, connection: Connection, number: int) -> None:
        super().__init__(connection, number)
        self._untaken = 0

    def taken(self, size: int) -> None:
        """Subtract bytes that the receiver has read."""
        self._untaken -= size
        self._wake()

    async def send(self, buffers: Sequence[Bytes]) -> None:
        """Send a message when the window allows it. Nothing is sent after the end."""
        while self._untaken >= WINDOW_BYTES and not self.is_ended:
            await self._change()
        await self._connection.writable()
        if not self.is_ended:
            self._untaken += sum(map(len, buffers))
            self._connection.send(MESSAGE, self._number, buffers)


def status_of(ending: Ending) -> bytes:
    """Return the body of a STATUS."""
    code, details, metadata = ending
    fields = [[name, value.decode("latin-1") if isinstance(value, bytes) else value] for name, value in metadata]
    return json.dumps([code.value[0], details, fields]).encode()


def ending_of(body: Bytes) -> Ending:
    """Return the status, details and metadata in the body of a STATUS."""
    code, details, fields = json.loads(bytes(body))
    metadata = tuple((name, value.encode("latin-1") if name.endswith("-bin") else value) for name, value in fields)
    return CODES.get(code, grpc.StatusCode.UNKNOWN), details, metadata


def error_of(ending: Ending) -> grpc.aio.AioRpcError:
    """Return the error that a call raises when it ended like this."""
    code, details, metadata = ending
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details)


def tune(transport: Any) -> None:
    """Request socket buffers of SOCKET_BYTES, so that one write of a large message fits. The system may grant less."""
    plain_socket = transport.get_extra_info("socket")
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        plain_socket.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)
    transport.set_write_buffer_limits(high=WINDOW_BYTES)
