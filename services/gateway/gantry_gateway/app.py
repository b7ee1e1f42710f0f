"""The ASGI application: finds the row of ROUTES, calls its handler, answers errors.

HEAD runs the GET handler and drops the body. OPTIONS with Access-Control-Request-Method is a preflight (`cors.py`).
"""

import importlib
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gantry_gateway import cors, health, notifications, problems, urls
from gantry_gateway.request import ClientGone, Gateway, Request
from gantry_gateway.routes import ROUTES, Route, compile_path
from gantry_runtime import logs, telemetry
from gantry_standard import errors

log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


def _load(route: Route) -> Handler | None:
    if not route.handler:
        return None
    module, _, function = route.handler.partition(":")
    handler: Handler = getattr(importlib.import_module(f"gantry_gateway.{module}"), function)
    return handler


class Router:
    """Finds the row for a method and a path below the base."""

    def __init__(self) -> None:
        by_path: dict[str, list[tuple[Route, Handler | None]]] = {}
        for route in ROUTES:
            by_path.setdefault(route.path, []).append((route, _load(route)))
        self._paths: list[tuple[re.Pattern[str], dict[str, tuple[Route, Handler | None]]]] = [
            (compile_path(path), {route.method: (route, handler) for route, handler in rows}) for path, rows in by_path.items()
        ]
        self.find = lru_cache(4096)(self._find)

    def _find(self, path: str) -> tuple[dict[str, tuple[Route, Handler | None]], dict[str, str]] | None:
        for pattern, methods in self._paths:
            if match := pattern.fullmatch(path):
                return methods, match.groupdict()
        return None


def allowed(methods: dict[str, tuple[Route, Handler | None]]) -> str:
    """Return the Allow header of a resource."""
    names = [name for name, (_, handler) in methods.items() if handler]
    return ", ".join(sorted({*names, *(["HEAD"] if "GET" in names else []), "OPTIONS"}))


class Application:
    """The gateway as ASGI."""

    def __init__(self, gateway: Gateway, uri_service: Handler | None = None) -> None:
        self.gateway = gateway
        self.router = Router()
        self.uri_service = uri_service
        self.base_path = gateway.settings.base_path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] == "websocket":
            await notifications.serve_websocket(self.gateway, scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"ASGI {scope['type']} is not served")
        begin = time.perf_counter()
        logs.REQUEST_ID.set(uuid.uuid4().hex[:16])
        answer = _Answer(send, head_only=scope["method"] == "HEAD", origin_headers=cors.headers(scope, self.gateway.settings))
        transaction = "other"
        try:
            transaction, response = await self._respond(scope, receive)
            await response(scope, receive, answer.send)
        except ClientGone:
            return
        except Exception:
            log.exception("answer broke off", extra={"transaction": transaction, "status": answer.status})
            if answer.started:
                raise
        finally:
            telemetry.HTTP_SECONDS.labels(transaction, str(answer.status)).observe(time.perf_counter() - begin)

    async def _respond(self, scope: Scope, receive: Receive) -> tuple[str, ASGIApp]:
        base = urls.base_url(scope, self.base_path, self.gateway.settings.public_url)
        request = Request(scope, receive, self.gateway, {}, base)
        transaction, allow = "other", ""
        try:
            path: str = scope["path"]
            if path.startswith("/healthz/"):
                return "health", await health.respond(request)
            if cors.is_preflight(scope):
                return "preflight", cors.preflight(scope, self.gateway.settings)
            found = self._find(path)
            if found is None:
                raise errors.NotFound(f"there is no resource {path}; the DICOMweb root is {self.base_path}")
            methods, request.params = found
            row = methods.get("GET" if scope["method"] == "HEAD" else scope["method"])
            if row is None:
                allow = allowed(methods)
                raise errors.MethodNotAllowed(f"{scope['method']} is not a method of {path}; it has {allow}")
            transaction = row[0].transaction
            if row[1] is None:
                raise errors.Unsupported(f"{row[0].transaction} is not offered by this server")
            return transaction, await row[1](request)
        except errors.GantryError as error:
            if type(error) is errors.GantryError:
                log.error("request failed", extra={"transaction": transaction, "error": error.message})
            return transaction, problems.problem(error, request.accept, base, allow)
        except ClientGone:
            raise
        except Exception:
            log.exception("request failed", extra={"transaction": transaction})
            return transaction, problems.status_report(500, "the server failed; the log has the reason", request.accept)

    def _find(self, path: str) -> Any:
        if not path.startswith(self.base_path + "/") and path != self.base_path:
            return None
        below = path[len(self.base_path) :]
        return self.router.find(below.rstrip("/") or "/")


class _Answer:
    """Adds the headers that every answer has, and leaves the body out for HEAD."""

    def __init__(self, send: Send, head_only: bool, origin_headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._head_only = head_only
        self._headers = origin_headers
        self.started = False
        self.status = 0

    async def send(self, message: Message) -> None:
        """Pass one ASGI message on."""
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            message = {**message, "headers": [*message.get("headers", []), *self._headers]}
        elif self._head_only and message["type"] == "http.response.body":
            message = {"type": "http.response.body", "body": b"", "more_body": message.get("more_body", False)}
        await self._send(message)
