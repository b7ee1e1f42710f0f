"""Encodes and decodes the messages of a store request without copying the bytes of instances.

Protobuf copies the bytes of a message when it is filled, put into another message, serialised, parsed and read. For a chunk of half a
megabyte that is expensive. So no message object is created for a chunk: `whole` puts the buffers of all chunks into the encoding of one
StoreWholeRequest, and `taken_apart` returns views of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from gantry.blob.v1 import blob_pb2
from gantry_runtime.rpc import protobuf_fields
from gantry_standard import errors

PUT_BYTES = 4 << 20
"""Largest object in bytes that PutObject writes. It raises PayloadTooLarge for a larger one."""

SERIALISED = frozenset(("StoreWhole",))
"""Methods that are called with a serialised request: a list of buffers in the client, bytes in the server."""

_CHUNK = blob_pb2.StoreInstancesRequest.DESCRIPTOR.fields_by_name["chunk"].number
_MESSAGES = blob_pb2.StoreWholeRequest.DESCRIPTOR.fields_by_name["messages"].number


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of a part that are sent as one `chunk` field. `size` is the length of all buffers in bytes."""

    buffers: list[memoryview]
    size: int


Message = blob_pb2.StoreInstancesRequest | Chunk


def _encoded(message: Message) -> tuple[int, list[bytes | memoryview]]:
    if isinstance(message, Chunk):
        header = protobuf_fields.header(_CHUNK, message.size)
        return len(header) + message.size, [header, *message.buffers]
    data = message.SerializeToString()
    return len(data), [data]


def serialised(message: Message) -> list[bytes | memoryview]:
    """Return the encoding of a StoreInstancesRequest, in consecutive buffers."""
    return _encoded(message)[1]


def whole(messages: Iterable[Message]) -> list[bytes | memoryview]:
    """Return the encoding of a StoreWholeRequest with these messages, in consecutive buffers."""
    buffers: list[bytes | memoryview] = []
    for message in messages:
        length, encoded = _encoded(message)
        buffers.append(protobuf_fields.header(_MESSAGES, length))
        buffers += encoded
    return buffers


def taken_apart(request: bytes) -> list[blob_pb2.StoreInstancesRequest | memoryview]:
    """Return the messages of a StoreWholeRequest. A chunk is returned as a memoryview of `request`.

    Raises:
        errors.BadRequest: the bytes are not a StoreWholeRequest.
    """
    try:
        return [_message(data) for _, data in protobuf_fields.fields(memoryview(request))]
    except (DecodeError, ValueError) as error:
        raise errors.BadRequest("a store request cannot be read") from error


def _message(data: memoryview) -> blob_pb2.StoreInstancesRequest | memoryview:
    if data and data[0] == protobuf_fields.header(_CHUNK, 0)[0]:
        [(_, chunk)] = protobuf_fields.fields(data)
        return chunk
    return blob_pb2.StoreInstancesRequest.FromString(bytes(data))
