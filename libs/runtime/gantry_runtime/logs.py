"""Logs: one JSON object per line on standard error, with facts as fields and without patient attributes."""

import asyncio
import json
import logging
import sys
import time
from collections import deque
from functools import lru_cache
from typing import TextIO

from gantry_runtime.call_context import CURRENT, CallContext

_STANDARD = set(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}


class Lines(logging.Formatter):
    """Formats a log record as one JSON object."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self.service = service

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a line feed."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self.service,
            "event": record.getMessage(),
        }
        context = CURRENT.get()
        if context.request_id:
            line["request_id"] = context.request_id
        if context.traceparent:
            line["traceparent"] = context.traceparent
        line.update({key: value for key, value in record.__dict__.items() if key not in _STANDARD})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


_quoted = json.encoder.encode_basestring_ascii


GATHER_S = 0.02
"""Longest time that the line of a request waits for others. One write for many lines costs a small part of a write for each."""


class Handler(logging.StreamHandler[TextIO]):
    """Writes records at once, and the lines of requests together every GATHER_S seconds. The order of all lines is kept."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: deque[str] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop that is going to write the lines."""

    def gather(self, line: str) -> None:
        """Write a line within GATHER_S seconds; at once where no event loop runs, such as in a thread."""
        self._lines.append(line)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(GATHER_S, self._write_due)

    def _write_due(self) -> None:
        self._loop = None
        self.flush()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the lines that wait, then the record."""
        self._write_lines()
        super().emit(record)

    def flush(self) -> None:
        """Write the lines that wait, and whatever the stream holds back."""
        self._write_lines()
        super().flush()

    def _write_lines(self) -> None:
        self.acquire()
        try:
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if lines:
                self.stream.write("".join(lines))
        finally:
            self.release()


class _Requests:
    """Makes the log lines of requests and calls directly. The logging module would take a fifth of the CPU of a small response."""

    def __init__(self) -> None:
        self.handler: Handler | None = None
        self.service = ""
        self._second = 0
        self._stamp = ""

    def write(self, level: int, event: str, context: CallContext, what: str, seconds: float) -> None:
        """Have one line written. `configure` must have been called.

        Args:
            level: of the logging module.
            event: constant name of the event.
            context: of the request.
            what: further fields, as JSON without the outer braces.
            seconds: duration.
        """
        assert self.handler is not None
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._stamp = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        trace = f'"traceparent": {_quoted(context.traceparent)}, ' if context.traceparent else ""
        self.handler.gather(
            f'{{"time": "{self._stamp}.{int((now - second) * 1000):03d}Z", "level": "{_level(level)}", "service": "{self.service}", '
            f'"event": "{event}", "request_id": {_quoted(context.request_id)}, {trace}{what}, "ms": {seconds * 1000:.2f}}}\n'
        )


_requests = _Requests()


@lru_cache
def _level(level: int) -> str:
    return logging.getLevelName(level).lower()


@lru_cache(1024)
def _what(method: str, transaction: str, status: int) -> str:
    return json.dumps({"method": method, "transaction": transaction, "status": status})[1:-1]


@lru_cache(1024)
def _call(method: str, status: str) -> str:
    return json.dumps({"method": method, "status": status})[1:-1]


def request(log: logging.Logger, level: int, method: str, transaction: str, status: int, seconds: float) -> None:
    """Log a request that was answered. The caller checks that `log` is enabled for `level`."""
    if _requests.handler is None:
        facts = {"method": method, "transaction": transaction, "status": status, "ms": round(seconds * 1000, 2)}
        log.log(level, "request", extra=facts)
    else:
        _requests.write(level, "request", CURRENT.get(), _what(method, transaction, status), seconds)


def call(log: logging.Logger, method: str, status: str, seconds: float) -> None:
    """Log a call of another service that was answered, if it belongs to a request.

    Args:
        method: name of the method.
        status: name of the gRPC status, such as OK.
        seconds: duration.
    """
    context = CURRENT.get()
    if not context.request_id or not log.isEnabledFor(logging.INFO):
        return
    if _requests.handler is None:
        log.info("call", extra={"method": method, "status": status, "ms": round(seconds * 1000, 2)})
    else:
        _requests.write(logging.INFO, "call", context, _call(method, status), seconds)


def applied(log: logging.Logger, context: CallContext, subject: str, seconds: float) -> None:
    """Log that a message of a stream was applied, if it was published for a request.

    Args:
        context: from the headers of the message.
        subject: of the message. It contains UIDs and kinds of events, but no patient attributes.
        seconds: time since its publication, by the clocks of two hosts. A negative value is logged as 0.
    """
    seconds = max(0.0, seconds)
    if not context.request_id or not log.isEnabledFor(logging.INFO):
        return
    if _requests.handler is None:
        log.info("applied", extra={"request_id": context.request_id, "subject": subject, "ms": round(seconds * 1000, 2)})
    else:
        _requests.write(logging.INFO, "applied", context, f'"subject": {_quoted(subject)}', seconds)


def configure(service: str, level: str) -> None:
    """Write all logs of this process to standard error, as JSON lines.

    Args:
        service: name of the service, a field of each line.
        level: lowest level that is logged, such as info.
    """
    handler = Handler(sys.stderr)
    handler.setFormatter(Lines(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("nats").setLevel(logging.WARNING)
    _requests.handler, _requests.service = handler, service
