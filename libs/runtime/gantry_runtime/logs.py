"""Logs: one JSON object per line on standard error, facts as fields, no patient attributes."""

import json
import logging
import sys
import time
from functools import lru_cache
from typing import TextIO

from gantry_runtime.call_context import CURRENT, CallContext

_STANDARD = set(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}


class Lines(logging.Formatter):
    """A record as one JSON object."""

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


class _Requests:
    """Writes lines of requests and calls without the machinery of logging, which costs as much as a fifth of a small answer."""

    def __init__(self) -> None:
        self.handler: logging.StreamHandler[TextIO] | None = None
        self.service = ""
        self._second = 0
        self._stamp = ""

    def write(self, level: int, event: str, context: CallContext, what: str, seconds: float) -> None:
        """Write one line, where there is a handler."""
        assert self.handler is not None
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._stamp = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        trace = f'"traceparent": {_quoted(context.traceparent)}, ' if context.traceparent else ""
        stream = self.handler.stream
        stream.write(
            f'{{"time": "{self._stamp}.{int((now - second) * 1000):03d}Z", "level": "{_level(level)}", "service": "{self.service}", '
            f'"event": "{event}", "request_id": {_quoted(context.request_id)}, {trace}{what}, "ms": {seconds * 1000:.2f}}}\n'
        )
        stream.flush()


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
    """Log a request that was answered. For levels that the logger is enabled for."""
    if _requests.handler is None:
        facts = {"method": method, "transaction": transaction, "status": status, "ms": round(seconds * 1000, 2)}
        log.log(level, "request", extra=facts)
    else:
        _requests.write(level, "request", CURRENT.get(), _what(method, transaction, status), seconds)


def call(log: logging.Logger, method: str, status: str, seconds: float) -> None:
    """Log a call of another service that was answered, where it belongs to a request.

    Args:
        status: name of the gRPC status, such as OK.
    """
    context = CURRENT.get()
    if not context.request_id or not log.isEnabledFor(logging.INFO):
        return
    if _requests.handler is None:
        log.info("call", extra={"method": method, "status": status, "ms": round(seconds * 1000, 2)})
    else:
        _requests.write(logging.INFO, "call", context, _call(method, status), seconds)


def applied(log: logging.Logger, context: CallContext, subject: str, seconds: float) -> None:
    """Log that a message of a stream was applied, where it was published for a request.

    Args:
        context: of the message.
        subject: of the message; its last token after a kind is a UID or a kind.
        seconds: from its publication on, by the clocks of two hosts; less than 0 is 0.
    """
    seconds = max(0.0, seconds)
    if not context.request_id or not log.isEnabledFor(logging.INFO):
        return
    if _requests.handler is None:
        log.info("applied", extra={"request_id": context.request_id, "subject": subject, "ms": round(seconds * 1000, 2)})
    else:
        _requests.write(logging.INFO, "applied", context, f'"subject": {_quoted(subject)}', seconds)


def configure(service: str, level: str) -> None:
    """Send all logs of this process to standard error as lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("nats").setLevel(logging.WARNING)
    _requests.handler, _requests.service = handler, service
