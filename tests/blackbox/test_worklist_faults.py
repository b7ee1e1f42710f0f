"""Workflow, both gateways and nats-server are killed again and again while workitems are worked on: no change and no report is lost.

`GANTRY_TEST_KILL_CYCLES` (100) says how many workitems, `GANTRY_TEST_KILL_SEED` which moments; `-s` shows the figures.
"""

import asyncio
import itertools
import json
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from gantry_runtime.process import end_tasks
from tests.support import instances
from tests.support.dicomweb import JSON, Object, value
from tests.support.suite import AnotherGateway, Suite, another_gateway
from tests.support.workitems import FILTERED, GLOBAL, PROGRESS, STATE, TRANSACTION_UID, new_ae_title, performed, workitem

CYCLES = int(os.environ.get("GANTRY_TEST_KILL_CYCLES", "100"))
SEED = int(os.environ.get("GANTRY_TEST_KILL_SEED", "318"))
WORKERS = 6
CYCLES_PER_KILL = 10
LABELS = ("LEFT", "RIGHT")
GLOBALS, FILTEREDS, DIRECTS = 8, 6, 6
"""Subscribers of each kind; 20 in all, each with one connection, at first half of them on each gateway."""
ANSWER_S = 12.0
PATIENCE_S = 60.0
"""Seconds that one request is tried again, and that the last reports may take."""
STEPS = ("SCHEDULED", "IN PROGRESS", "50", "COMPLETED")
"""What is reported of each workitem, in this order: three states, and the progress between them."""
SCP_STATUS_CHANGE = 4

Report = tuple[str, str, int]
"""Workitem, one of STEPS, Message ID."""


class Subscriber:
    """An AE title whose connection is opened again when it breaks, at the gateway that is there."""

    def __init__(self, ae_title: str, urls: list[str]) -> None:
        self.ae_title = ae_title
        self.connections: list[list[Report]] = []
        """What each connection brought."""
        self.arrived: dict[tuple[str, str], float] = {}
        """When a report came for the first time."""
        self.missing: set[tuple[str, str]] = set()
        self.expected: set[str] = set()
        self.restarts = 0
        self._urls = [f"ws{url.removeprefix('http')}/subscribers/{ae_title}" for url in urls]

    def expect(self, uid: str) -> None:
        """Expect everything about a workitem."""
        self.expected.add(uid)
        self.missing |= {(uid, step) for step in STEPS}

    async def listen(self) -> None:
        """Receive, for ever."""
        pause_s = 0.1
        for url in itertools.cycle(self._urls):
            with suppress(OSError, TimeoutError, EOFError, ConnectionClosed, InvalidHandshake, InvalidMessage):
                async with connect(url, proxy=None, open_timeout=5, close_timeout=1) as socket:
                    heard: list[Report] = []
                    self.connections.append(heard)
                    pause_s = 0.1
                    async for message in socket:
                        self._hear(json.loads(message), heard)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))
            pause_s = min(2 * pause_s, 1.0)

    def _hear(self, report: Object, heard: list[Report]) -> None:
        if value(report, "00001002") == SCP_STATUS_CHANGE:
            assert value(report, "00741246") == "WARM START", "reports were dropped"
            self.restarts += 1
            return
        uid, message_id = value(report, "00001000"), value(report, "00000110")
        step = value(report, STATE) if STATE in report else f"{float(value(report[PROGRESS]['Value'][0], '00741004')):g}"
        heard.append((uid, step, message_id))
        self.arrived.setdefault((uid, step), time.monotonic())
        self.missing.discard((uid, step))

    def repeated(self) -> int:
        """Return how many reports came again."""
        everything = [report for heard in self.connections for report in heard]
        return len(everything) - len(set(everything))

    def check(self, subscribed: Counter[tuple[str, str]]) -> None:
        """Check what came: each workitem's reports in order, on one connection never twice, later again under the same Message ID only.

        Args:
            subscribed: how often it asked for a workitem; each time brings a report of the state, of its own.
        """
        assert not self.missing, f"{self.ae_title} never got {sorted(self.missing)[:5]} and {len(self.missing)} in all"
        message_ids: dict[tuple[str, str], set[int]] = {}
        so_far: dict[str, int] = {}
        for heard in self.connections:
            assert len(set(heard)) == len(heard), f"{self.ae_title}: repeated on one connection"
            assert {uid for uid, _, _ in heard} <= self.expected, f"{self.ae_title} heard of what it did not subscribe to"
            on_this: dict[str, int] = {}
            for uid, step, message_id in heard:
                at, before = STEPS.index(step), on_this.get(uid)
                message_ids.setdefault((uid, step), set()).add(message_id)
                if before is None:
                    assert at <= so_far.get(uid, -1) + 1, f"{self.ae_title}: {step} of {uid} came before what was before it"
                else:
                    assert at == before + 1 or (at == before == 0), f"{self.ae_title}: {step} of {uid} after {STEPS[before]}"
                on_this[uid], so_far[uid] = at, max(at, so_far.get(uid, -1))
        for (uid, step), found in message_ids.items():
            most = max(1, subscribed[self.ae_title, uid]) if step == STEPS[0] else 1
            assert len(found) <= most, f"{self.ae_title}: {step} of {uid} under {len(found)} Message IDs"


class Driver:
    """Works on workitems as a careful client does: asks again what was not answered, after having looked whether it was done."""

    def __init__(self, http: httpx.AsyncClient, urls: list[str]) -> None:
        self.retried: Counter[str] = Counter()
        self.done_without_answer = 0
        self.answered: dict[tuple[str, str], float] = {}
        """When each step of a workitem was answered, or was found done."""
        self.subscribed: Counter[tuple[str, str]] = Counter()
        self.finished: list[str] = []
        self._http = http
        self._urls = itertools.cycle(urls)

    async def _attempt(self, method: str, path: str, data_set: Object | None = None) -> httpx.Response | None:
        """Send a request once to one of the gateways; None: it was not answered, so it may or may not have been done."""
        content = None if data_set is None else json.dumps([data_set])
        headers = {"Accept": JSON, "Content-Type": JSON} if content else {"Accept": JSON}
        try:
            response = await self._http.request(method, f"{next(self._urls)}{path}", content=content, headers=headers)
        except httpx.TransportError as error:
            self.retried[type(error).__name__] += 1
            return None
        if response.status_code == 503:
            assert "retry-after" in response.headers
            self.retried["503"] += 1
            return None
        return response

    async def get(self, uid: str) -> Object | None:
        """Retrieve a workitem, however often that has to be asked; None: there is none."""
        async with asyncio.timeout(PATIENCE_S):
            while (response := await self._attempt("GET", f"/workitems/{uid}")) is None:
                await asyncio.sleep(random.uniform(0.05, 0.2))
        assert response.status_code in (200, 404), response.text
        return dict(response.json()[0]) if response.status_code == 200 else None

    async def change(self, method: str, path: str, data_set: Object, uid: str, is_done: Callable[[Object], bool]) -> None:
        """Make a change, once and for certain."""
        is_unsure = False
        async with asyncio.timeout(PATIENCE_S):
            while True:
                response = await self._attempt(method, path, data_set)
                if response is not None and response.is_success:
                    return
                found = await self.get(uid)
                if found is not None and is_done(found):
                    assert is_unsure or response is None, f"done, and refused: {response and response.text}"
                    self.done_without_answer += 1
                    return
                assert response is None, f"{method} {path}: {response.status_code} {response.text} {response.headers}"
                is_unsure = True
                await asyncio.sleep(random.uniform(0.05, 0.2))

    async def subscribe(self, uid: str, ae_title: str, query: str = "") -> None:
        """Subscribe an AE title; to do it twice is no harm."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                self.subscribed[ae_title, uid] += 1
                response = await self._attempt("POST", f"/workitems/{uid}/subscribers/{ae_title}{query}")
                if response is not None:
                    assert response.status_code == 201, response.text
                    return
                await asyncio.sleep(random.uniform(0.05, 0.2))

    async def cycle(self, uid: str, label: str, watcher: str) -> None:
        """Create a workitem, subscribe an AE title to it, claim, update and complete it."""
        transaction = instances.new_uid()
        made = workitem(x00741202={"vr": "LO", "Value": [label]})
        await self._step(uid, 0, "POST", f"/workitems?{uid}", made, lambda found: value(found, STATE) == "SCHEDULED")
        await self.subscribe(uid, watcher)
        await self._step(uid, 1, "PUT", f"/workitems/{uid}/state", state("IN PROGRESS", transaction), in_state("IN PROGRESS"))
        told = {PROGRESS: {"vr": "SQ", "Value": [{"00741004": {"vr": "DS", "Value": ["50"]}}]}, **performed()}
        await self._step(uid, 2, "POST", f"/workitems/{uid}?{transaction}", told, lambda found: "Value" in found[PROGRESS])
        await self._step(uid, 3, "PUT", f"/workitems/{uid}/state", state("COMPLETED", transaction), in_state("COMPLETED"))
        self.finished.append(uid)

    async def _step(self, uid: str, step: int, method: str, path: str, data_set: Object, is_done: Callable[[Object], bool]) -> None:
        await self.change(method, path, data_set, uid, is_done)
        self.answered[uid, STEPS[step]] = time.monotonic()


def state(name: str, transaction: str) -> Object:
    return {STATE: {"vr": "CS", "Value": [name]}, TRANSACTION_UID: {"vr": "UI", "Value": [transaction]}}


def in_state(name: str) -> Callable[[Object], bool]:
    return lambda found: value(found, STATE) == name


class Killer:
    """Kills one part or two after some progress, at a moment that nobody planned, until it is told to stop."""

    def __init__(self, suite: Suite, second: AnotherGateway, chance: random.Random) -> None:
        self.kills: Counter[str] = Counter()
        self._suite = suite
        self._second = second
        self._chance = chance
        self._order = self._parts()

    def _parts(self) -> Iterator[str]:
        """Yield parts to kill, all equally often, in an order of chance."""
        while True:
            yield from self._chance.sample(("workflow", "gateway", "second gateway", "nats"), 4)

    async def kill_on(self, progress: Callable[[], int]) -> None:
        """Kill for ever; `progress` counts cycles."""
        while True:
            due = progress() + self._chance.randrange(2, 2 * CYCLES_PER_KILL - 1)
            while progress() < due:
                await asyncio.sleep(0.01)
            for part in itertools.islice(self._order, 2 if self._chance.random() < 0.25 else 1):
                await asyncio.sleep(self._chance.uniform(0, 0.3))
                await asyncio.to_thread(self._kill, part)
                self.kills[part] += 1

    def _kill(self, part: str) -> None:
        if part == "second gateway":
            self._second.kill()
            self._second.start()
        else:
            with suppress(ProcessLookupError):
                self._suite.kill(part)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.requirement("W-077", "W-084")
def test_killing_everything_again_and_again_loses_no_change_and_no_report(own_suite: Callable[..., Suite]) -> None:
    suite = own_suite()
    with another_gateway(suite) as second:
        assert asyncio.run(story(suite, second)) == {"workflow", "gateway", "second gateway", "nats"}
        suite.wait_ready()
        second.wait_ready()


async def story(suite: Suite, second: AnotherGateway) -> set[str]:
    """Run the cycles, kill meanwhile, and check that nothing is lost; return what was killed."""
    chance, urls, begin = random.Random(SEED), [suite.url, second.url], time.monotonic()
    subscribers = [Subscriber(new_ae_title(), urls if at % 2 else urls[::-1]) for at in range(GLOBALS + FILTEREDS + DIRECTS)]
    everywhere, filtered, direct = subscribers[:GLOBALS], subscribers[GLOBALS:-DIRECTS], subscribers[-DIRECTS:]
    async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_S) as http:
        driver, killer = Driver(http, urls), Killer(suite, second, chance)
        for subscriber in everywhere:
            await driver.subscribe(GLOBAL, subscriber.ae_title)
        for at, subscriber in enumerate(filtered):
            await driver.subscribe(FILTERED, subscriber.ae_title, f"?filter=WorklistLabel%3D{LABELS[at % 2]}")
        uids = [instances.new_uid() for _ in range(CYCLES)]
        for at, uid in enumerate(uids):
            for subscriber in [*everywhere, *filtered[at % 2 :: 2], direct[at % DIRECTS]]:
                subscriber.expect(uid)
        waiting = iter(enumerate(uids))

        async def work() -> None:
            for at, uid in waiting:
                await driver.cycle(uid, LABELS[at % 2], direct[at % DIRECTS].ae_title)

        beside = [asyncio.create_task(subscriber.listen()) for subscriber in subscribers]
        beside.append(asyncio.create_task(killer.kill_on(lambda: len(driver.finished))))
        await ends_well(asyncio.gather(*(work() for _ in range(WORKERS))), beside)
        worked_s = time.monotonic() - begin
        await end_tasks([beside.pop()])
        await ends_well(everything_came(subscribers), beside)
        await end_tasks(beside)
        tell(driver, killer, subscribers, worked_s, time.monotonic() - begin)
        for subscriber in subscribers:
            subscriber.check(driver.subscribed)
        assert sorted(driver.finished) == sorted(uids)
        for uid in uids:
            found = await driver.get(uid)
            assert found is not None
            assert (value(found, STATE), float(value(found[PROGRESS]["Value"][0], "00741004"))) == ("COMPLETED", 50)
            assert found["00741216"] == performed()["00741216"]
    return {part for part, times in killer.kills.items() if times}


async def ends_well(work: Awaitable[Any], beside: list[asyncio.Task[None]]) -> None:
    """Wait for some work, and fail at once where something beside it does, which should not end."""
    working = asyncio.ensure_future(work)
    await asyncio.wait({working, *beside}, return_when=asyncio.FIRST_COMPLETED)
    for task in beside:
        if task.done():
            task.result()
    await working


async def everything_came(subscribers: list[Subscriber]) -> None:
    """Wait until all reports have come, or for as long as they may take."""
    end = time.monotonic() + PATIENCE_S
    while any(subscriber.missing for subscriber in subscribers) and time.monotonic() < end:
        await asyncio.sleep(0.05)


def tell(driver: Driver, killer: Killer, subscribers: list[Subscriber], worked_s: float, took_s: float) -> None:
    """Print the figures."""
    arrivals = [arrival for subscriber in subscribers for arrival in subscriber.arrived.items()]
    waits = sorted(arrived - driver.answered[what] for what, arrived in arrivals if what in driver.answered)
    received = sum(len(heard) for subscriber in subscribers for heard in subscriber.connections)
    print(
        f"\nseed {SEED}: {len(driver.finished)} cycles in {worked_s:.0f} s, all reports after {took_s:.0f} s"
        f"\nkilled: {', '.join(f'{part} {times}' for part, times in sorted(killer.kills.items()))}"
        f"\nrequests tried again: {', '.join(f'{why} {times}' for why, times in driver.retried.most_common())};"
        f" changes done without an answer: {driver.done_without_answer}"
        f"\nreports received: {received}, of these repeated {sum(subscriber.repeated() for subscriber in subscribers)};"
        f" missing {sum(len(subscriber.missing) for subscriber in subscribers)}"
        f"\nconnections: {sum(len(subscriber.connections) for subscriber in subscribers)},"
        f" restarts told to the first subscriber: {subscribers[0].restarts}"
        f"\nfrom the answer to the report: median {waits[len(waits) // 2] * 1e3:.0f} ms, longest {waits[-1]:.1f} s"
    )
