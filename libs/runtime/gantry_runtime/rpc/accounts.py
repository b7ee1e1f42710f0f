"""Metric and log line of each call that was served, over gRPC or local sockets. Only calls that belong to a request are logged."""

import logging
import time

from gantry_runtime import logs, telemetry

log = logging.getLogger(__name__)


def account(method: str, status: str, begin: float) -> None:
    """Count and log a call that has ended.

    Args:
        method: name of the method, without its service.
        status: name of the gRPC status.
        begin: `time.perf_counter()` at the start of the call.
    """
    seconds = time.perf_counter() - begin
    telemetry.RPC_SECONDS.labels(method).observe(seconds)
    logs.call(log, method, status, seconds)
