"""Calls between processes of one machine: the services, stubs and errors of gRPC over a Unix socket, without gRPC's transport.

A call over grpcio costs half a millisecond of CPU in the two processes together, and more if it has half a megabyte of data. A local call
costs a tenth of that (docs/decisions/0100-neighbours.md). Generated stubs and servicers are used unchanged: `Channel` has the methods of
grpc.aio.Channel that a stub calls, and `Services` collects the handlers that `add_…Servicer_to_server` registers. Calls raise
grpc.aio.AioRpcError, as calls over gRPC do.

A frame is HEADER (length of the body, kind, number of the call) and a body. A call begins with CALL, or with CALL_WITH_REQUEST when it has
a single request. The body of both begins with the length of the method's name and the name. If the bit HAS_CONTEXT of that length is set,
the `call_context` follows. A call with a single response ends with RESULT; every other call, and every failure, ends with STATUS.

Flow control: at most WINDOW_BYTES and one message of a stream wait at the receiver. The receiver sends TAKEN with the number of bytes that
were read. When a connection is lost, its calls fail.
"""
