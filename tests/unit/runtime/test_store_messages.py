"""What is put together without protobuf is what protobuf puts together, and the other way round."""

import pytest

from gantry.blob.v1 import blob_pb2
from gantry_runtime.store_messages import Chunk, Message, serialised, taken_apart, whole
from gantry_standard import errors

START = blob_pb2.StoreInstancesRequest(start=blob_pb2.StoreStart(request_id="7", collection="1.2"))
PART = blob_pb2.StoreInstancesRequest(part=blob_pb2.PartStart(part_number=300, content_type="application/dicom"))
END = blob_pb2.StoreInstancesRequest(end=blob_pb2.StoreEnd())


def chunk(*pieces: bytes) -> Chunk:
    return Chunk([memoryview(piece) for piece in pieces], sum(map(len, pieces)))


def as_message(message: Message) -> blob_pb2.StoreInstancesRequest:
    return blob_pb2.StoreInstancesRequest(chunk=b"".join(message.buffers)) if isinstance(message, Chunk) else message


@pytest.mark.parametrize("size", [1, 127, 128, 20_000, 1 << 20])
def test_a_request_is_what_protobuf_makes_of_it(size: int) -> None:
    messages: list[Message] = [START, PART, chunk(bytes([7]) * size, b"tail"), PART, chunk(b"x"), END]
    as_messages = [as_message(message) for message in messages]
    request = b"".join(whole(messages))
    assert request == blob_pb2.StoreWholeRequest(messages=as_messages).SerializeToString()
    assert [b"".join(serialised(message)) for message in messages] == [message.SerializeToString() for message in as_messages]
    found = taken_apart(request)
    assert [isinstance(one, memoryview) for one in found] == [False, False, True, False, True, False]
    assert [blob_pb2.StoreInstancesRequest(chunk=bytes(one)) if isinstance(one, memoryview) else one for one in found] == as_messages


@pytest.mark.parametrize(
    "request_bytes", [b"\x0a\x7f", b"\x08\x01", b"\x0a\x02\x1a\x05", b"\x0a\x04\x1a\x00\x1a\x00", b"\x0a\x02\x0a\x7f", b"GET / HTTP/1.1"]
)
def test_what_is_no_request_is_bad(request_bytes: bytes) -> None:
    with pytest.raises(errors.BadRequest):
        taken_apart(request_bytes)
