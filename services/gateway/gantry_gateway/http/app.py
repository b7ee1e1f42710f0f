"""The ASGI application: finds the row of a path in the table of mounts, calls its handler, and answers errors.

HEAD calls the GET handler and sends no body. OPTIONS with Access-Control-Request-Method is a preflight (`cors.py`).
A WebSocket handshake is handled like a request, by a row with the method `WEBSOCKET`. Its handler returns an ASGI application that
serves the connection. An error refuses the handshake with the same response that a request would get.
"""

import asyncio
import importlib
import logging
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import cast
from urllib.parse import unquote

from prometheus_client import Histogram
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gantry_gateway.http import cors, problems, urls
from gantry_gateway.http.request import ClientGone, Gateway, Request
from gantry_gateway.http.responses import Immediate
from gantry_gateway.http.routes import EVERY_RESOURCE, HEALTH_TRANSACTION, WEBSOCKET, Mount, Route, compile_path
from gantry_gateway.http.server import write_whole
from gantry_gateway.http.trust import Trust
from gantry_runtime import logs, telemetry
from gantry_runtime.call_context import CURRENT, CallContext
from gantry_runtime.callers import ANONYMOUS
from gantry_standard import errors
from gantry_standard.http.random_bits import random_hex

log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[ASGIApp]]
Methods = dict[str, tuple[Route, Handler | None]]

CANCEL_AGAIN_S = 0.5
WATCH_AFTER_S = 0.05
"""Seconds after the beginning of a request from which on a disconnection of its client is noticed."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._\-]{1,64}")
# W3C Trace Context §3.2: version, trace id, parent id, flags.
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_UNSAFE = re.compile("[\x00-\x1f\x7f\ufffd]")


def load(handler: str) -> Handler | None:
    """Import the handler module:function of a row; return None for ""."""
    if not handler:
        return None
    module, _, function = handler.partition(":")
    loaded: Handler = getattr(importlib.import_module(f"gantry_gateway.{module}"), function)
    return loaded


@dataclass(frozen=True, slots=True)
class Resource:
    """The resource of a path.

    Attributes:
        mount: the part of the gateway that it belongs to.
        methods: method → row and handler; `WEBSOCKET` is a method too.
        params: the variable segments of the path, by name.
    """

    mount: Mount
    methods: Methods
    params: dict[str, str]


class Router:
    """Finds the resource of a path.

    Args:
        mounts: if several mounts match, the one with the longest path is used; within it, the first matching row.

    Raises:
        ImportError, AttributeError: the handler of a row does not exist.
    """

    def __init__(self, mounts: Sequence[Mount]) -> None:
        longest_first = sorted(mounts, key=lambda mount: len(mount.path), reverse=True)
        self._mounts = [(mount, _patterns(mount.routes)) for mount in longest_first]
        self.find = lru_cache(4096)(self._find)

    def _find(self, path: str) -> Resource | None:
        for mount, patterns in self._mounts:
            if path == mount.path or path.startswith(mount.path + "/"):
                below = path[len(mount.path) :].rstrip("/") or "/"
                for pattern, methods in patterns:
                    if match := pattern.fullmatch(below):
                        return Resource(mount, methods, match.groupdict())
        return None


def _patterns(routes: Sequence[Route]) -> list[tuple[re.Pattern[str], Methods]]:
    """Return the pattern and the rows of each path, in the order of the table."""
    by_path: dict[str, Methods] = {}
    for route in routes:
        by_path.setdefault(route.path, {})[route.method] = (route, load(route.handler))
    everywhere = by_path.pop(EVERY_RESOURCE, {})
    return [(compile_path(path), {**everywhere, **methods}) for path, methods in by_path.items()]


def allowed(methods: Methods) -> str:
    """Return the Allow header of a resource: the methods with a handler, HEAD, and OPTIONS, which answers preflights."""
    names = {name for name, (_, handler) in methods.items() if handler and name != WEBSOCKET}
    return ", ".join(sorted(names | ({"HEAD"} if "GET" in names else set()) | ({"OPTIONS"} & methods.keys())))


class Application:
    """The gateway as ASGI."""

    def __init__(self, gateway: Gateway, router: Router) -> None:
        self.gateway = gateway
        self.router = router
        self.base_path = gateway.settings.base_path.rstrip("/")
        self._trust = Trust(gateway.settings)
        self._seconds: dict[tuple[str, int], Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] == "http":
            await self._serve(scope, receive, send, scope["method"])
        elif scope["type"] == "websocket":
            await receive()  # websocket.connect
            await self._serve(scope, receive, send, WEBSOCKET)
        else:
            raise RuntimeError(f"ASGI {scope['type']} is not served")

    async def _serve(self, scope: Scope, receive: Receive, send: Send, method: str) -> None:
        """Serve one request or WebSocket.

        Args:
            method: HTTP method, or `WEBSOCKET`.
        """
        begin = time.perf_counter()
        request_id, traceparent = _identity(scope)
        CURRENT.set(CallContext(request_id, traceparent))
        common = cors.headers(scope, self.gateway.settings)
        common.append((b"x-request-id", request_id.encode("ascii")))
        answer = _Answer(send, method == "HEAD", common)
        base_url = urls.base_url(scope, self.base_path, self.gateway.settings.public_url, self._trust.believes)
        request = Request(scope, receive, self.gateway, {}, base_url)
        transaction = "other"
        try:
            transaction, response = await self._respond(request, method)
            if method == WEBSOCKET:
                answer.accepted = partial(self._record, request, transaction, 101, begin)
            if not answer.send_whole(response):
                await response(scope, receive, answer.send)
        except (_HeadAnswered, ClientGone):
            pass
        except Exception as error:
            if not answer.started:
                await _failure(error, request, transaction)(scope, receive, answer.send)
                return
            # The status line was sent, so only a closed connection can signal the error. The server closes it after an incomplete response
            log.error(
                "response failed after the status line",
                extra={"transaction": transaction, "error": type(error).__name__},
                exc_info=_unexpected(error),
            )
        finally:
            if not answer.is_open:
                self._record(request, transaction, answer.status, begin)

    def _record(self, request: Request, transaction: str, status: int, begin: float) -> None:
        """Record the metric and the log line of a request; for a WebSocket, when the handshake is answered."""
        seconds = time.perf_counter() - begin
        key = (transaction, status)
        histogram = self._seconds.get(key)
        if histogram is None:
            histogram = self._seconds[key] = telemetry.HTTP_SECONDS.labels(transaction, str(status))
        histogram.observe(seconds)
        level = logging.DEBUG if transaction == HEALTH_TRANSACTION else logging.INFO
        if log.isEnabledFor(level):
            logs.request(log, level, request.method, transaction, status, seconds)

    async def _respond(self, request: Request, method: str) -> tuple[str, ASGIApp]:
        """Call the handler of a request; return the name of the transaction and the response, also for an error."""
        transaction, allow = "other", ""
        try:
            self._trust.check(request.scope, method, request.base_url)
            if method == "OPTIONS" and cors.is_preflight(request.scope):
                return "preflight", cors.preflight(request.scope, self.gateway.settings)
            path = decode_path(request.scope["raw_path"])
            resource = self.router.find(path)
            if resource is None:
                raise errors.NotFound(f"there is no resource {path}; the DICOMweb root is {self.base_path}")
            request.params = resource.params
            row = resource.methods.get("GET" if method == "HEAD" else method)
            if row is None and method == WEBSOCKET:
                raise errors.NotFound(f"{path} is not a WebSocket; notification connections are at {self.base_path}/subscribers/AETITLE")
            if row is None:
                allow = allowed(resource.methods)
                raise errors.MethodNotAllowed(f"{method} is not a method of {path}; it has {allow}")
            route, handler = row
            transaction = route.transaction
            if handler is None:
                allow = allowed(resource.methods)
                raise errors.Unsupported(f"{resource.mount.name}: {transaction} is not offered by this server")
            caller = await self.gateway.access.caller_of(request.scope)
            if caller is not ANONYMOUS:
                CURRENT.set(replace(CURRENT.get(), caller=caller))
            return transaction, await _while_client_waits(request.receive, method, handler(request))
        except ClientGone:
            raise
        except Exception as error:
            return transaction, _failure(error, request, transaction, allow)


def _failure(error: Exception, request: Request, transaction: str, allow: str = "") -> Response:
    """Return the response to a request that failed; log unexpected errors."""
    if not isinstance(error, errors.GantryError):
        log.error("request failed", extra={"transaction": transaction}, exc_info=error)
        return problems.status_report(500, "the server failed; its log has the reason", request.accept)
    if type(error) is errors.GantryError:
        log.error("request failed", extra={"transaction": transaction, "error": error.message})
    return problems.problem(error, request.accept, request.base_url, allow)


async def _while_client_waits(receive: Receive, method: str, answering: Awaitable[ASGIApp]) -> ASGIApp:
    """Await the response to a request. For GET and HEAD, cancel the handler if the client disconnects.

    Raises:
        ClientGone: the client disconnected.
    """
    if method not in ("GET", "HEAD"):
        return await answering
    watch = _Watch(receive)
    try:
        return await answering
    except asyncio.CancelledError:
        if not watch.is_gone:
            raise
        while watch.cancellations:
            watch.cancellations -= 1
            watch.task.uncancel()
        raise ClientGone from None
    finally:
        watch.end()


class _Watch:
    """Cancels the current task when the client of a request disconnects.

    It begins after `WATCH_AFTER_S`, as most responses are sent by then.
    """

    def __init__(self, receive: Receive) -> None:
        self.task = cast("asyncio.Task[object]", asyncio.current_task())
        self.is_gone = False
        self.is_ended = False
        self.cancellations = 0
        self.due = time.monotonic() + WATCH_AFTER_S
        self._receive = receive
        self._watching: asyncio.Task[None] | None = None
        _watches.add(self)

    def begin(self) -> None:
        """Begin to watch."""
        self._watching = self.task.get_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_gone = True
        while True:
            # Repeated, as `asyncio.timeout` and `wait_for` of Python 3.11 can lose a cancellation that arrives together with the result
            self.cancellations += 1
            self.task.cancel()
            await asyncio.sleep(CANCEL_AGAIN_S)

    def end(self) -> None:
        """Stop watching."""
        self.is_ended = True
        if self._watching is not None:
            self._watching.cancel()


class _Watches:
    """The watches that have not begun. They share one timer, as a timer per request would cost more CPU time than the watch."""

    def __init__(self) -> None:
        self._waiting: deque[_Watch] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, watch: _Watch) -> None:
        """Begin a watch when it is due."""
        self._waiting.append(watch)
        if self._timer is None or self._timer.cancelled():
            self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin)

    def _begin(self) -> None:
        self._timer, now = None, time.monotonic()
        while self._waiting and self._waiting[0].due <= now:
            watch = self._waiting.popleft()
            if not watch.is_ended:
                watch.begin()
        if self._waiting:
            wait_s = max(self._waiting[0].due - now, WATCH_AFTER_S / 10)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._begin)


_watches = _Watches()


def decode_path(raw_path: bytes) -> str:
    """Percent-decode a path, segment by segment.

    Raises:
        errors.NotFound: a segment has an encoded slash, and the path is not a BulkDataURI. No resource has such a name, and proxies
            interpret it differently.
        errors.BadRequest: the path has a control character, or is not UTF-8.
    """
    path = raw_path.decode("latin-1")
    if "%" in path:
        segments = [unquote(segment) for segment in path.split("/")]
        if any("/" in segment for segment in segments) and "/bulkdata/" not in path:
            raise errors.NotFound("there is no resource with an encoded slash in a segment")
        path = "/".join(segments)
        if _UNSAFE.search(path):
            raise errors.BadRequest("the path has a control character, or is not UTF-8 after percent-decoding")
    return path


def _identity(scope: Scope) -> tuple[str, str]:
    """Return request id and trace context of the client, if they are valid; else a new request id and ""."""
    request_id = traceparent = ""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            request_id = str(value, "ascii")
        elif name == b"traceparent" and _TRACEPARENT.fullmatch(value):
            traceparent = str(value, "ascii")
    return request_id or random_hex(8), traceparent


def _unexpected(error: Exception) -> Exception | None:
    """Return the error if its traceback is to be logged, else None."""
    return None if isinstance(error, errors.GantryError) else error


class _HeadAnswered(Exception):
    """Ends the response of a GET handler to HEAD after the headers."""


_STARTS = ("http.response.start", "websocket.http.response.start")


def _nothing() -> None:
    pass


class _Answer:
    """Sends a response with the headers of every response, and without a body for HEAD."""

    def __init__(self, send: Send, head_only: bool, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._head_only = head_only
        self._headers = headers
        self.started = False
        self.status = 0
        self.is_open = False
        """Whether a WebSocket was accepted."""
        self.accepted: Callable[[], None] = _nothing
        """Called when a WebSocket is accepted."""

    def send_whole(self, response: ASGIApp) -> bool:
        """Send a response whose body is in memory with one write; return False if that is not possible."""
        if isinstance(response, Immediate):
            status, fields, bodies = response.status, response.headers, response.bodies
        elif type(response) is Response and response.background is None:
            status, fields, bodies = response.status_code, response.raw_headers, (response.body,)
        else:
            return False
        if not write_whole(self._send, status, [*fields, *self._headers], bodies):
            return False
        self.started, self.status = True, status
        return True

    async def send(self, message: Message) -> None:
        """Send one ASGI message."""
        kind = message["type"]
        if kind in _STARTS:
            self.started, self.status = True, message["status"]
            message = {**message, "headers": [*message.get("headers", []), *self._headers]}
        elif kind == "websocket.accept":
            self.started = self.is_open = True
            await self._send({**message, "headers": [*message.get("headers", []), *self._headers]})
            self.accepted()
            return
        elif self._head_only and kind == "http.response.body":
            await self._send({"type": "http.response.body", "body": b""})
            raise _HeadAnswered
        await self._send(message)
