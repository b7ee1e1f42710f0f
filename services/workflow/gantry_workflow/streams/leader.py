"""The tasks that only the process of workflow that holds the lease runs: event reports, copies, deletion and history."""

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
    """Acquire the lease and run the tasks while it is held; repeat until cancelled.

    Raises:
        RuntimeError: one of the tasks returned, which none may do.
    """
    works: dict[str, Callable[[], Awaitable[None]]] = {
        "copy": copies.run,
        "history": lambda: history.purge_superseded(js, reports, settings.workitem_history_s),
        "tombstones": lambda: deletion.purge_deleted(js, blob, reports, settings.workitem_tombstone_s),
    }
    if settings.workitem_keep_s > 0:
        works["deletion"] = lambda: deletion.delete_final(js, reports, settings.workitem_keep_s)

    async def work() -> None:
        await run_together({"reports": reports.write(), **{name: _retry_forever(name, call) for name, call in works.items()}})

    await leases.hold_lease(js, "workflow", holder(settings), work)


def holder(settings: WorkflowSettings) -> str:
    """Return the identifier of this process in the lease: host, address and, without a fixed port, process ID.

    With a fixed port it is the same after a restart, so that the restarted process need not wait until the lease expires.
    """
    port = settings.workflow_listen.rpartition(":")[2]
    return f"{socket.gethostname()}:{settings.workflow_listen}" + (f":{os.getpid()}" if port == "0" else "")


async def _retry_forever(name: str, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except errors.GantryError as error:
            log.warning("background work interrupted", extra={"work": name, "reason": error.message})
        except Exception:
            log.exception("background work failed", extra={"work": name})
        await asyncio.sleep(RETRY_S)
