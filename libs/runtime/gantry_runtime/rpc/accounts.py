"""What is noted of each call that was served, over whichever transport: a metric, and a log line where it belongs to a request."""

import logging
import time

from gantry_runtime import logs, telemetry

log = logging.getLogger(__name__)


def account(method: str, status: str, begin: float) -> None:
    """Note a call that has ended.

    Args:
        status: name of its gRPC status.
        begin: `time.perf_counter()` of its beginning.
    """
    seconds = time.perf_counter() - begin
    telemetry.RPC_SECONDS.labels(method).observe(seconds)
    logs.call(log, method, status, seconds)
