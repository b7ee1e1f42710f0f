"""The process gantry-workflow."""

import asyncio
import logging
import sys
from typing import TYPE_CHECKING

import grpc.aio

from gantry.blob.v1.blob_pb2_grpc import BlobServiceStub
from gantry.index.v1.index_pb2_grpc import IndexServiceStub
from gantry.workflow.v1.workflow_pb2_grpc import add_WorkflowServiceServicer_to_server
from gantry_runtime import process, telemetry
from gantry_runtime.events import streams
from gantry_runtime.events.streams import JetStreamContext
from gantry_runtime.rpc import channels
from gantry_runtime.settings import SettingsError
from gantry_standard import errors
from gantry_workflow.arrivals import follow
from gantry_workflow.arrivals.rules import Rule, load_rules
from gantry_workflow.edge import WorkflowEdge
from gantry_workflow.settings import WorkflowSettings
from gantry_workflow.streams import backup, leader
from gantry_workflow.streams.report_writer import ReportWriter
from gantry_workflow.streams.workitems import Workitems

if TYPE_CHECKING:
    from gantry.blob.v1.blob_pb2_grpc import BlobServiceAsyncStub

log = logging.getLogger(__name__)

RETRY_S = 0.2


async def opens(running: process.Process, settings: WorkflowSettings) -> None:
    """Open connections and streams, start the tasks, and return when requests are served. Block while NATS or blob does not answer.

    Raises:
        SettingsError: `GANTRY_WORKITEM_RULES` cannot be read, or a rule is wrong.
    """
    stack, rules = running.stack, read_rules(settings)
    client = await stack.enter_async_context(streams.connected(settings.nats_url, "workflow"))
    js = client.jetstream()
    channel = await stack.enter_async_context(channels.channel(settings.blob_address))
    blob = BlobServiceStub(channel)
    reports, copies = ReportWriter(js), backup.Copier(js, blob)

    def register(server: grpc.aio.Server) -> None:
        add_WorkflowServiceServicer_to_server(WorkflowEdge(Workitems(js), reports, settings, missing), server)

    async def missing() -> str:
        try:
            await reports.progress()
            lag = await copies.lag()
        except errors.GantryError as error:
            return error.message
        if lag.seconds > settings.workitem_copy_lag_s:
            return f"copies of workitems in the object store are {lag.seconds:.0f} s behind ({lag.changes} changes)"
        return ""

    await stack.enter_async_context(telemetry.admin(settings.workflow_admin_listen, missing))
    await open_streams(js, blob)
    await follow.begin(js, bool(rules))
    await stack.enter_async_context(channels.serving(register, settings.workflow_listen))
    running.watch(leader.lead(js, blob, reports, copies, settings), "leader")
    running.watch(copies.observe(), "lag of copies")
    if rules:
        index = IndexServiceStub(await stack.enter_async_context(channels.channel(settings.index_address)))
        arrived = follow.Arrivals(js, index, blob, rules, settings)
        running.watch(arrived.lead(leader.holder(settings)), "arrivals")


def read_rules(settings: WorkflowSettings) -> tuple[Rule, ...]:
    """Read the rules that create workitems for arriving studies; return () if no file is set.

    Raises:
        SettingsError: the file cannot be read, or rules in it are wrong; one line per problem.
    """
    if settings.workitem_rules is None:
        return ()
    try:
        return load_rules(settings.workitem_rules)
    except ValueError as error:
        raise SettingsError("\n".join(f"GANTRY_WORKITEM_RULES: {line}" for line in str(error).splitlines())) from error


async def open_streams(js: JetStreamContext, blob: "BlobServiceAsyncStub") -> None:
    """Create the streams WORKITEMS and REPORTS, and restore WORKITEMS from the object store; retry until NATS and blob answer."""
    last_reason = ""
    while True:
        try:
            await backup.restore(js, blob)
            await streams.ensure_stream(js, streams.WORKITEMS)
            await streams.ensure_stream(js, streams.REPORTS)
            return
        except errors.GantryError as error:
            if error.message != last_reason:
                log.warning("waiting for streams", extra={"reason": error.message})
            last_reason = error.message
            await asyncio.sleep(RETRY_S)


def main() -> int:
    """Run until a signal stops the process; return the exit status."""
    return process.run("workflow", WorkflowSettings, opens)


if __name__ == "__main__":
    sys.exit(main())
