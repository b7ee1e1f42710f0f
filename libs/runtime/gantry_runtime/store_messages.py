"""The messages of a store request as bytes that are joined once and never copied again.

A message of protobuf that holds half a megabyte copies it when it is filled, put into another one, serialised, parsed and read. So a
chunk is a message on the wire only: `whole` puts the pieces of all chunks into the bytes of one StoreWholeRequest, `taken_apart` finds
them there again.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from gantry.blob.v1 import blob_pb2
from gantry_runtime.rpc import protobuf_wire
from gantry_standard import errors

PUT_BYTES = 4 << 20
"""Most bytes of an object that PutObject writes; with more it raises PayloadTooLarge."""

SERIALISED = frozenset(("StoreWhole",))
"""Methods whose requests are serialised already: pieces for the one who calls, bytes for the one who serves."""

_CHUNK = blob_pb2.StoreInstancesRequest.DESCRIPTOR.fields_by_name["chunk"].number
_MESSAGES = blob_pb2.StoreWholeRequest.DESCRIPTOR.fields_by_name["messages"].number


@dataclass(frozen=True, slots=True)
class Chunk:
    """Pieces of a part that are one `chunk`."""

    pieces: list[memoryview]
    size: int


Message = blob_pb2.StoreInstancesRequest | Chunk


def _encoded(message: Message) -> tuple[int, list[bytes | memoryview]]:
    if isinstance(message, Chunk):
        header = protobuf_wire.header(_CHUNK, message.size)
        return len(header) + message.size, [header, *message.pieces]
    data = message.SerializeToString()
    return len(data), [data]


def serialised(message: Message) -> list[bytes | memoryview]:
    """Return the pieces of a StoreInstancesRequest."""
    return _encoded(message)[1]


def whole(messages: Iterable[Message]) -> list[bytes | memoryview]:
    """Return the pieces of a StoreWholeRequest."""
    pieces: list[bytes | memoryview] = []
    for message in messages:
        length, encoded = _encoded(message)
        pieces.append(protobuf_wire.header(_MESSAGES, length))
        pieces += encoded
    return pieces


def taken_apart(request: bytes) -> list[blob_pb2.StoreInstancesRequest | memoryview]:
    """Return the messages of a StoreWholeRequest; a memoryview is a chunk.

    Raises:
        errors.BadRequest: it is none.
    """
    try:
        return [_message(data) for _, data in protobuf_wire.fields(memoryview(request))]
    except (DecodeError, ValueError) as error:
        raise errors.BadRequest("a store request cannot be read") from error


def _message(data: memoryview) -> blob_pb2.StoreInstancesRequest | memoryview:
    if data and data[0] == protobuf_wire.header(_CHUNK, 0)[0]:
        [(_, chunk)] = protobuf_wire.fields(data)
        return chunk
    return blob_pb2.StoreInstancesRequest.FromString(bytes(data))
