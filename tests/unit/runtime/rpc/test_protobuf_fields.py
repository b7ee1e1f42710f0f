"""Bytes put around serialised messages are what protobuf writes, and are taken apart again."""

import pytest

from gantry.blob.v1 import blob_pb2
from gantry_runtime.rpc import protobuf_fields


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16383, 16384, 1 << 21])
def test_header_is_what_protobuf_writes(length: int) -> None:
    chunk = bytes(length)
    inner = blob_pb2.StoreInstancesRequest(chunk=chunk)
    assert protobuf_fields.header(3, length) + chunk == inner.SerializeToString()
    serialised = inner.SerializeToString()
    outer = blob_pb2.StoreWholeRequest(messages=[inner]).SerializeToString()
    assert protobuf_fields.header(1, len(serialised)) + serialised == outer
    assert [(number, bytes(data)) for number, data in protobuf_fields.fields(memoryview(outer))] == [(1, serialised)]
    assert [(number, bytes(data)) for number, data in protobuf_fields.fields(memoryview(serialised))] == [(3, chunk)]


def test_fields_come_in_their_order() -> None:
    messages = [blob_pb2.StoreInstancesRequest(chunk=bytes(number)) for number in range(300)]
    outer = blob_pb2.StoreWholeRequest(messages=messages).SerializeToString()
    parsed = [blob_pb2.StoreInstancesRequest.FromString(bytes(data)) for _, data in protobuf_fields.fields(memoryview(outer))]
    assert parsed == messages


@pytest.mark.parametrize("data", ["08 01", "0a", "0a 05 01", "0a 80", "0a ff ff ff ff ff ff ff ff ff ff ff", "8a 01 00"])
def test_what_is_no_such_message_is_refused(data: str) -> None:
    with pytest.raises(ValueError, match="byte"):
        list(protobuf_fields.fields(memoryview(bytes.fromhex(data))))
