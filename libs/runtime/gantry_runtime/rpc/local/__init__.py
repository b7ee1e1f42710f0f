"""RPC between processes of one machine: gRPC's services, stubs and errors over a Unix socket, without gRPC's transport.

A call over grpcio costs its two processes half a millisecond of CPU together, and more with half a megabyte in it; one of these costs
a tenth of that (docs/decisions/0100-neighbours.md). Generated stubs and servicers are used as they are: `Channel` gives a stub what it
needs of a grpc.aio.Channel, `Services` collects what `add_…Servicer_to_server` registers. Calls raise grpc.aio.AioRpcError as theirs do.

A call carries the `call_context` of who makes it, where there is one: behind the method's name, which HAS_CONTEXT in its length says.

On the wire each frame is HEADER (length of the payload, kind, number of the call) and its payload. A call begins with CALL; one with a
single request carries it there. A single answer is RESULT; anything else ends with STATUS. Of a stream, at most WINDOW_BYTES and one
message wait untaken at the receiver: it says TAKEN when they are taken. Calls end with their connection, as the processes do.
"""
