"""What one process of workflow does for all: reports, copies, and keeping the stream small."""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from gantry_runtime.events import leases
from gantry_runtime.events.streams import JetStreamContext
from gantry_runtime.process import run_together
from gantry_standard import errors
from gantry_workflow.settings import WorkflowSettings
from gantry_workflow.streams import deletion, history
from gantry_workflow.streams.backup import Copier
from gantry_workflow.streams.report_writer import ReportWriter

if TYPE_CHECKING:
    from gantry.blob.v1.blob_pb2_grpc import BlobServiceAsyncStub

log = logging.getLogger(__name__)

RETRY_S = 1.0


async def lead(
    js: JetStreamContext, blob: "BlobServiceAsyncStub", reports: ReportWriter, copies: Copier, settings: WorkflowSettings
) -> None:
    """Work whenever this process holds the lease, for ever.

    Raises:
        RuntimeError: one of the tasks ended, which none may.
    """
    works: dict[str, Callable[[], Awaitable[None]]] = {
        "copy": copies.run,
        "history": lambda: history.purge_superseded(js, reports, settings.workitem_history_s),
        "burial": lambda: deletion.purge_deleted(js, blob, reports, settings.workitem_tombstone_s),
    }
    if settings.workitem_keep_s > 0:
        works["deletion"] = lambda: deletion.delete_final(js, reports, settings.workitem_keep_s)

    async def work() -> None:
        await run_together({"reports": reports.write(), **{name: _again(name, call) for name, call in works.items()}})

    await leases.hold_lease(js, "workflow", holder(settings), work)


def holder(settings: WorkflowSettings) -> str:
    """Return who holds the lease. It stays the same when a process on a fixed port is started again, which then need not wait."""
    port = settings.workflow_listen.rpartition(":")[2]
    return f"{socket.gethostname()}:{settings.workflow_listen}" + (f":{os.getpid()}" if port == "0" else "")


async def _again(name: str, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except errors.GantryError as error:
            log.warning("background work interrupted", extra={"work": name, "reason": error.message})
        except Exception:
            log.exception("background work failed", extra={"work": name})
        await asyncio.sleep(RETRY_S)
