"""Messages between the pool and its workers: a length and a pickle on a socket, and shared memory for large results.

Pickle is safe here: both processes run the same version as the same user, and no bytes of a request are unpickled.
"""

import asyncio
import mmap
import os
import pickle
import socket
import struct
from typing import Any

SHARED_BYTES = 32 << 20
"""Size of the memory that a worker shares with the pool; only used pages take memory. Larger results are sent on the socket."""

SHARED_FROM_BYTES = 16 << 10
"""Results of at least this size are passed through the shared memory."""

_LENGTH = struct.Struct("<Q")
_FIRST_BYTES = 64 << 10


def shared_memory() -> int:
    """Return a file descriptor of memory that two processes can map."""
    fd = os.memfd_create("gantry-renderer")
    os.ftruncate(fd, SHARED_BYTES)
    return fd


def mapped(fd: int) -> mmap.mmap:
    """Map the memory of a file descriptor of `shared_memory`."""
    return mmap.mmap(fd, SHARED_BYTES)


def packed(message: Any) -> bytes:
    """Return the bytes of a message."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


def receive(connection: socket.socket) -> Any:
    """Wait for a message and return it.

    Raises:
        EOFError: the other end closed the connection.
    """
    data, wanted = bytearray(), _LENGTH.size
    while len(data) < wanted:
        piece = connection.recv(max(_FIRST_BYTES, wanted - len(data)))
        if not piece:
            raise EOFError
        data += piece
        wanted = _wanted(data)
    return pickle.loads(memoryview(data)[_LENGTH.size :])


async def received(connection: socket.socket) -> Any:
    """Wait for a message on a non-blocking socket and return it. Raises what `receive` raises."""
    loop = asyncio.get_running_loop()
    data, wanted = bytearray(), _LENGTH.size
    while len(data) < wanted:
        piece = await loop.sock_recv(connection, max(_FIRST_BYTES, wanted - len(data)))
        if not piece:
            raise EOFError
        data += piece
        wanted = _wanted(data)
    return pickle.loads(memoryview(data)[_LENGTH.size :])


def _wanted(data: bytearray) -> int:
    return _LENGTH.size + (_LENGTH.unpack_from(data)[0] if len(data) >= _LENGTH.size else 0)
