"""Logs: one JSON object per line on standard error, facts as fields, no patient attributes."""

import contextvars
import json
import logging
import sys
import time
from functools import lru_cache
from typing import TextIO

REQUEST_ID: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")

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
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        line.update({key: value for key, value in record.__dict__.items() if key not in _STANDARD})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


_quoted = json.encoder.encode_basestring_ascii


class _Requests:
    """Writes the line of each request without the machinery of logging, which costs as much as a fifth of a small answer."""

    def __init__(self) -> None:
        self.handler: logging.StreamHandler[TextIO] | None = None
        self.service = ""
        self._second = 0
        self._stamp = ""

    def write(self, level: int, request_id: str, what: str, seconds: float) -> None:
        """Write one line. Once there is a handler."""
        assert self.handler is not None
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._stamp = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        stream = self.handler.stream
        stream.write(
            f'{{"time": "{self._stamp}.{int((now - second) * 1000):03d}Z", "level": "{_level(level)}", "service": "{self.service}", '
            f'"event": "request", "request_id": {_quoted(request_id)}, {what}, "ms": {seconds * 1000:.2f}}}\n'
        )
        stream.flush()


_requests = _Requests()


@lru_cache
def _level(level: int) -> str:
    return logging.getLevelName(level).lower()


@lru_cache(1024)
def _what(method: str, transaction: str, status: int) -> str:
    return json.dumps({"method": method, "transaction": transaction, "status": status})[1:-1]


def request(log: logging.Logger, level: int, request_id: str, method: str, transaction: str, status: int, seconds: float) -> None:
    """Log a request that was answered. For levels that the logger is enabled for."""
    if _requests.handler is None:
        facts = {"method": method, "transaction": transaction, "status": status, "ms": round(seconds * 1000, 2)}
        log.log(level, "request", extra=facts)
    else:
        _requests.write(level, request_id, _what(method, transaction, status), seconds)


def configure(service: str, level: str) -> None:
    """Send all logs of this process to standard error as lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("nats").setLevel(logging.WARNING)
    _requests.handler, _requests.service = handler, service
