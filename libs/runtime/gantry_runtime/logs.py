"""Logs: one JSON object per line on standard error, facts as fields, no patient attributes."""

import contextvars
import json
import logging
import sys
import time
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


class _Requests:
    """Writes the line of each request without the machinery of logging, which costs as much as a fifth of a small answer."""

    def __init__(self) -> None:
        self.handler: logging.StreamHandler[TextIO] | None = None
        self.service = ""
        self._second = 0
        self._stamp = ""

    def write(self, level: int, request_id: str, facts: dict[str, str | int | float]) -> None:
        """Write one line. Once there is a handler."""
        assert self.handler is not None
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._stamp = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        line = {
            "time": f"{self._stamp}.{int((now - second) * 1000):03d}Z",
            "level": logging.getLevelName(level).lower(),
            "service": self.service,
            "event": "request",
            "request_id": request_id,
            **facts,
        }
        stream = self.handler.stream
        stream.write(json.dumps(line) + "\n")
        stream.flush()


_requests = _Requests()


def request(log: logging.Logger, level: int, request_id: str, facts: dict[str, str | int | float]) -> None:
    """Log a request that was answered, with these facts."""
    if not log.isEnabledFor(level):
        return
    if _requests.handler is None:
        log.log(level, "request", extra=facts)
    else:
        _requests.write(level, request_id, facts)


def configure(service: str, level: str) -> None:
    """Send all logs of this process to standard error as lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("nats").setLevel(logging.WARNING)
    _requests.handler, _requests.service = handler, service
