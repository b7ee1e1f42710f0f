"""The ASGI application: finds the row of ROUTES, calls its handler, answers errors.

HEAD runs the GET handler and drops the body. OPTIONS with Access-Control-Request-Method is a preflight (`cors.py`).
"""

import asyncio
import importlib
import logging
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import cast
from urllib.parse import unquote

from prometheus_client import Histogram
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gantry_gateway.http import cors, health, problems, urls
from gantry_gateway.http.request import ClientGone, Gateway, Request
from gantry_gateway.http.responses import Immediate
from gantry_gateway.http.routes import Route, compile_path
from gantry_gateway.http.server import write_whole
from gantry_runtime import logs, telemetry
from gantry_standard import errors
from gantry_standard.http.random_bits import random_hex

log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[ASGIApp]]
WebSocketHandler = Callable[[Gateway, Scope, Receive, Send], Awaitable[None]]
Methods = dict[str, tuple[Route, Handler | None]]

CANCEL_AGAIN_S = 0.5
WATCH_AFTER_S = 0.05
"""Seconds that an answer may take before it is watched whether its client is still there."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._\-]{1,64}")
_UNSAFE = re.compile("[\x00-\x1f\x7f\ufffd]")


def load(handler: str) -> Handler | None:
    """Return the function that a row names as module:function, None for ""."""
    if not handler:
        return None
    module, _, function = handler.partition(":")
    found: Handler = getattr(importlib.import_module(f"gantry_gateway.{module}"), function)
    return found


class Router:
    """Finds the rows for a path below the base.

    Args:
        routes: ROUTES, or some of them; the first matching path wins.

    Raises:
        ImportError, AttributeError: the handler of a row is not there.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        by_path: dict[str, Methods] = {}
        for route in routes:
            by_path.setdefault(route.path, {})[route.method] = (route, load(route.handler))
        self._paths = [(compile_path(path), methods) for path, methods in by_path.items()]
        self.find = lru_cache(4096)(self._find)

    def _find(self, path: str) -> tuple[Methods, dict[str, str]] | None:
        for pattern, methods in self._paths:
            if match := pattern.fullmatch(path):
                return methods, match.groupdict()
        return None


def allowed(methods: Methods) -> str:
    """Return the Allow header of a resource: what it has and this server offers."""
    names = [name for name, (_, handler) in methods.items() if handler]
    return ", ".join(sorted({*names, *(["HEAD"] if "GET" in names else []), "OPTIONS"}))


class Application:
    """The gateway as ASGI.

    Args:
        uri_service: answers `wado_path`; 501 where there is none.
        websocket: answers WebSocket handshakes; refused where there is none.
    """

    def __init__(
        self, gateway: Gateway, router: Router, uri_service: Handler | None = None, websocket: WebSocketHandler | None = None
    ) -> None:
        self.gateway = gateway
        self.router = router
        self.uri_service = uri_service
        self.websocket = websocket
        self.base_path = gateway.settings.base_path.rstrip("/")
        self.wado_path = gateway.settings.wado_path.rstrip("/")
        self._seconds: dict[tuple[str, int], Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "websocket" and self.websocket is not None:
            await self.websocket(self.gateway, scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "no notifications here"})
        else:
            raise RuntimeError(f"ASGI {scope['type']} is not served")

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin = time.perf_counter()
        request_id = _request_id(scope)
        logs.REQUEST_ID.set(request_id)
        common = cors.headers(scope, self.gateway.settings)
        common.append((b"x-request-id", request_id.encode("ascii")))
        answer = _Answer(send, scope["method"] == "HEAD", common)
        transaction = "other"
        try:
            transaction, response = await self._respond(scope, receive)
            if not answer.send_whole(response):
                await response(scope, receive, answer.send)
        except (_HeadAnswered, ClientGone):
            pass
        except Exception as error:
            # The status line is out: only a broken connection tells the client, and the server breaks it for what is not complete.
            log.error("answer broke off", extra={"transaction": transaction, "error": type(error).__name__}, exc_info=_unexpected(error))
            if not answer.started:
                raise
        finally:
            seconds = time.perf_counter() - begin
            self._observe(transaction, answer.status, seconds)
            level = logging.DEBUG if transaction == "health" else logging.INFO
            if log.isEnabledFor(level):
                logs.request(log, level, request_id, scope["method"], transaction, answer.status, seconds)

    def _observe(self, transaction: str, status: int, seconds: float) -> None:
        key = (transaction, status)
        histogram = self._seconds.get(key)
        if histogram is None:
            histogram = self._seconds[key] = telemetry.HTTP_SECONDS.labels(transaction, str(status))
        histogram.observe(seconds)

    async def _respond(self, scope: Scope, receive: Receive) -> tuple[str, ASGIApp]:
        base = urls.base_url(scope, self.base_path, self.gateway.settings.public_url)
        request = Request(scope, receive, self.gateway, {}, base)
        transaction, allow = "other", ""
        try:
            if cors.is_preflight(scope):
                return "preflight", cors.preflight(scope, self.gateway.settings)
            path = decode_path(scope["raw_path"])
            if path.startswith("/healthz/"):
                return "health", await health.respond(request)
            if path.rstrip("/") == self.wado_path:
                transaction = "RetrieveURI"
                if self.uri_service is None:
                    raise errors.Unsupported("the URI service (WADO-URI) is not offered by this server")
                return transaction, await self.uri_service(request)
            found = self._find(path)
            if found is None:
                raise errors.NotFound(f"there is no resource {path}; the DICOMweb root is {self.base_path}")
            methods, request.params = found
            row = methods.get("GET" if scope["method"] == "HEAD" else scope["method"])
            if row is None and scope["method"] == "OPTIONS":
                transaction, allow = "RetrieveCapabilities", allowed(methods)
                raise errors.Unsupported("RetrieveCapabilities is not offered by this server")
            if row is None:
                allow = allowed(methods)
                raise errors.MethodNotAllowed(f"{scope['method']} is not a method of {path}; it has {allow}")
            transaction = row[0].transaction
            if row[1] is None:
                allow = allowed(methods)
                raise errors.Unsupported(f"{transaction} is not offered by this server")
            return transaction, await _while_client_waits(receive, scope["method"], row[1](request))
        except errors.GantryError as error:
            if type(error) is errors.GantryError:
                log.error("request failed", extra={"transaction": transaction, "error": error.message})
            return transaction, problems.problem(error, request.accept, base, allow)
        except ClientGone:
            raise
        except Exception:
            log.exception("request failed", extra={"transaction": transaction})
            return transaction, problems.status_report(500, "the server failed; its log has the reason", request.accept)

    def _find(self, path: str) -> tuple[Methods, dict[str, str]] | None:
        if not path.startswith(self.base_path + "/") and path != self.base_path:
            return None
        return self.router.find(path[len(self.base_path) :].rstrip("/") or "/")


async def _while_client_waits(receive: Receive, method: str, answering: Awaitable[ASGIApp]) -> ASGIApp:
    """Await an answer that takes no payload; end it where the client goes away before it is there.

    Raises:
        ClientGone: it went away.
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
    """Cancels the current task when the client of a request goes away.

    It begins to look after `WATCH_AFTER_S`: most answers are there by then.
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

    def look(self) -> None:
        """Begin to look."""
        self._watching = self.task.get_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_gone = True
        while True:
            # Again where it was lost: `asyncio.timeout` and `wait_for` of Python 3.11 may lose one that meets the answer waited for.
            self.cancellations += 1
            self.task.cancel()
            await asyncio.sleep(CANCEL_AGAIN_S)

    def end(self) -> None:
        """Look no longer."""
        self.is_ended = True
        if self._watching is not None:
            self._watching.cancel()


class _Watches:
    """Those that shall begin to look: one timer for all of them, since a timer of its own costs a request more than the watch."""

    def __init__(self) -> None:
        self._waiting: deque[_Watch] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, watch: _Watch) -> None:
        """Let it begin when it is due."""
        self._waiting.append(watch)
        if self._timer is None or self._timer.cancelled():
            self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin)

    def _begin(self) -> None:
        self._timer, now = None, time.monotonic()
        while self._waiting and self._waiting[0].due <= now:
            watch = self._waiting.popleft()
            if not watch.is_ended:
                watch.look()
        if self._waiting:
            left = max(self._waiting[0].due - now, WATCH_AFTER_S / 10)
            self._timer = asyncio.get_running_loop().call_later(left, self._begin)


_watches = _Watches()


def decode_path(raw_path: bytes) -> str:
    """Percent-decode a path, segment by segment.

    Raises:
        errors.NotFound: a segment holds an encoded slash (but for those of bulkdata, whose names have slashes): no resource of ours
            has such a name, and proxies read it differently.
        errors.BadRequest: it holds a control character, or is not UTF-8.
    """
    path = raw_path.decode("latin-1")
    if "%" in path:
        segments = [unquote(segment) for segment in path.split("/")]
        if any("/" in segment for segment in segments) and "/bulkdata/" not in path:
            raise errors.NotFound("there is no resource with an encoded slash in a segment")
        path = "/".join(segments)
        if _UNSAFE.search(path):
            raise errors.BadRequest("the path holds a control character, or is not UTF-8 after percent-decoding")
    return path


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return random_hex(8)


def _unexpected(error: Exception) -> Exception | None:
    """Return the error where its traceback is worth a look."""
    return None if isinstance(error, errors.GantryError) else error


class _HeadAnswered(Exception):
    """Ends a GET handler's answer when its headers were all that was asked for."""


class _Answer:
    """Adds the headers that every answer has, and leaves the body out for HEAD."""

    def __init__(self, send: Send, head_only: bool, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._head_only = head_only
        self._headers = headers
        self.started = False
        self.status = 0

    def send_whole(self, response: ASGIApp) -> bool:
        """Send an answer at once; say whether it is there and could be."""
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
        """Pass one ASGI message on."""
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            message = {**message, "headers": [*message.get("headers", []), *self._headers]}
        elif self._head_only and message["type"] == "http.response.body":
            await self._send({"type": "http.response.body", "body": b""})
            raise _HeadAnswered
        await self._send(message)
