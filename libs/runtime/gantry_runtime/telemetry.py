"""Metrics of a process, and its admin port with /metrics, /healthz/live and /healthz/ready.

All metric and label names are defined here. No patient attribute is ever a label.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from prometheus_client import Counter, Gauge, Histogram, generate_latest

RPC_SECONDS = Histogram("gantry_rpc_seconds", "Time of one gRPC call in the server", ["method"])
HTTP_SECONDS = Histogram("gantry_http_seconds", "Time from request to the end of the answer", ["transaction", "status"])
INSTANCES_STORED = Counter("gantry_instances_stored_total", "Instances decided by index", ["outcome"])
INSTANCES_FAILED = Counter("gantry_instances_failed_total", "Instances refused by blob", ["reason"])
SECOND_READER = Counter("gantry_second_reader_total", "Files tried by the second reader: read, refused, too late, queue full", ["outcome"])
PACK_BYTES = Counter("gantry_pack_bytes_total", "Bytes written into packs")
SWEEPER_INSTANCES = Counter("gantry_sweeper_instances_total", "Uploads whose bytes were given up")
SWEEPER_PACKS = Counter("gantry_sweeper_packs_total", "Packs that the sweeper copied, put into the trash, or removed from it", ["what"])
SWEEPER_BYTES = Counter("gantry_sweeper_bytes_total", "Bytes removed from the trash")
SWEEPER_LAST_RUN = Gauge("gantry_sweeper_last_run_seconds", "When the sweeper's last complete run ended, seconds since 1970")
EVENTS_APPLIED = Counter("gantry_events_applied_total", "Events applied by index", ["kind"])
EVENTS_POISON = Counter("gantry_events_poison_total", "Events that could not be applied and were passed", ["kind"])
INDEX_LAG = Gauge("gantry_index_lag_messages", "Messages on STORE that index has not applied")
CHANGES_WAITING = Gauge("gantry_changes_waiting_seconds", "Seconds for which NATS has not taken what is to be published on CHANGES")
TERMS_LEFT_OUT = Counter("gantry_index_terms_left_out_total", "Values not indexed because of a limit", ["limit"])
RENDER_SECONDS = Histogram("gantry_render_seconds", "Time of one job in the renderer's pool", ["kind"])
RENDER_QUEUE = Gauge("gantry_render_queue_jobs", "Jobs that wait for a worker")
WORKITEM_CHANGES = Counter("gantry_workitem_changes_total", "Changes of workitems", ["kind"])
RULE_WORKITEMS = Counter("gantry_rule_workitems_total", "What rules made of what arrived: created, updated, kept, failed", ["outcome"])
WORKITEM_COPIES = Counter("gantry_workitem_copies_total", "Copies of workitems in the object store: written, failed, refused", ["outcome"])
WORKITEM_COPY_LAG_MESSAGES = Gauge("gantry_workitem_copy_lag_messages", "Changes on WORKITEMS behind the oldest that is not copied")
WORKITEM_COPY_LAG_SECONDS = Gauge("gantry_workitem_copy_lag_seconds", "Age of the oldest change on WORKITEMS that is not copied")
REPORTS_WRITTEN = Counter("gantry_reports_written_total", "Event reports written")
WEBSOCKETS = Gauge("gantry_websockets", "Open notification connections of this gateway")


@asynccontextmanager
async def admin(listen: str, ready: Callable[[], Awaitable[str]]) -> AsyncIterator[int]:
    """Serve the admin port while the context is open.

    Args:
        listen: HOST:PORT; port 0 selects a free port.
        ready: returns an empty string when the process can do its work, else a sentence that says what is missing.

    Yields:
        The port number.

    Raises:
        OSError: the port cannot be opened.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            path = head.split(b" ", 2)[1].split(b"?")[0]
            status, kind, body = await _respond(path, ready)
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
            )
            await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError, ConnectionError):
            pass
        finally:
            writer.close()

    host, _, port = listen.rpartition(":")
    server = await asyncio.start_server(answer, host, int(port))
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def _respond(path: bytes, ready: Callable[[], Awaitable[str]]) -> tuple[str, str, bytes]:
    if path == b"/metrics":
        return "200 OK", "text/plain; version=0.0.4", generate_latest()
    if path == b"/healthz/live":
        return "200 OK", "text/plain", b"live\n"
    if path == b"/healthz/ready":
        missing = await ready()
        return ("503 Service Unavailable", "text/plain", missing.encode() + b"\n") if missing else ("200 OK", "text/plain", b"ready\n")
    return "404 Not Found", "text/plain", b"/metrics, /healthz/live or /healthz/ready\n"
