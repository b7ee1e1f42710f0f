"""The port Access: called once for each request and handshake; the caller travels with the calls of the request."""

from collections.abc import AsyncIterator

import pytest
from starlette.types import Scope

from gantry_gateway.http.access import Everybody
from gantry_runtime import call_context
from gantry_runtime.call_context import CURRENT
from gantry_runtime.callers import ANONYMOUS, Caller
from gantry_standard import errors
from tests.support.nats_server import NatsServer
from tests.unit.gateway.harness import Running, running

READER = Caller("reader", visible_studies=frozenset({"1.2.3"}))
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Said:
    """Access: the same caller, or the same error, for all requests; records the calls."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Caller | errors.GantryError = READER

    async def caller_of(self, scope: Scope) -> Caller:
        self.asked.append(scope["path"])
        if isinstance(self.answer, errors.GantryError):
            raise self.answer
        return self.answer


@pytest.fixture
async def gateway(nats_server: NatsServer) -> AsyncIterator[Running]:
    async with running(nats_server) as opened:
        yield opened


async def test_today_everybody_is_anonymous() -> None:
    assert await Everybody().caller_of({"type": "http"}) == ANONYMOUS


async def test_a_request_of_nobody_in_particular_carries_its_id_and_trace_context(gateway: Running) -> None:
    answer = await gateway.http.get("/studies", headers={"X-Request-Id": "r-1", "traceparent": TRACEPARENT})
    assert answer.headers["x-request-id"] == "r-1"
    assert isinstance(gateway.gateway.access, Everybody)
    made = await gateway.http.get("/studies", headers={"X-Request-Id": "no id: it has spaces"})
    assert len(made.headers["x-request-id"]) == 16


@pytest.mark.parametrize("traceparent", ["", "nonsense", TRACEPARENT.upper(), TRACEPARENT + "-00", TRACEPARENT[:-1]])
async def test_a_trace_context_that_is_none_is_not_passed_on(gateway: Running, traceparent: str) -> None:
    contexts: list[call_context.CallContext] = []

    class Noting(Said):
        async def caller_of(self, scope: Scope) -> Caller:
            contexts.append(CURRENT.get())
            return ANONYMOUS

    gateway.gateway.access = Noting()
    await gateway.http.get("/studies", headers={"traceparent": traceparent})
    assert [context.traceparent for context in contexts] == [""]
    assert len(contexts[0].request_id) == 16


async def test_an_access_that_refuses_is_answered_with_its_error(gateway: Running) -> None:
    gateway.gateway.access = said = Said()
    said.answer = errors.Forbidden("who are you?")
    answer = await gateway.http.get("/studies")
    assert (answer.status_code, "who are you?" in answer.text) == (403, True)
    assert len(said.asked) == 1


async def test_what_is_no_resource_is_refused_before_anybody_is_asked(gateway: Running) -> None:
    gateway.gateway.access = said = Said()
    assert (await gateway.http.get("/nothing")).status_code == 404
    assert said.asked == []
