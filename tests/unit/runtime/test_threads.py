"""Calls in threads: results, errors, order, how many threads, cancellation, and the end."""

import asyncio
import logging
import threading
from contextvars import ContextVar

import pytest

from gantry_runtime.threads import Threads


async def test_a_call_returns_its_result_from_another_thread() -> None:
    with Threads(2, "example") as threads:
        assert await threads.run(divmod, 17, 5) == (3, 2)
        assert (await threads.run(threading.current_thread)).name == "example-0"


async def test_a_call_raises_what_it_raises() -> None:
    with Threads(1, "example") as threads:
        with pytest.raises(ZeroDivisionError):
            await threads.run(divmod, 1, 0)
        assert await threads.run(int, "3") == 3


async def test_a_call_has_the_context_variables_of_who_made_it() -> None:
    variable = ContextVar("variable", default="nobody")

    async def asking(name: str) -> str:
        variable.set(name)
        return await threads.run(variable.get)

    with Threads(1, "example") as threads:
        assert await asyncio.gather(asking("one"), asking("other")) == ["one", "other"]
        assert await threads.run(variable.get) == "nobody"


async def test_so_many_calls_run_at_once_as_there_may_be_threads() -> None:
    with Threads(3, "example") as threads:
        together = threading.Barrier(3, timeout=10)
        assert sorted(await asyncio.gather(*(threads.run(together.wait) for _ in range(3)))) == [0, 1, 2]
        names = {thread.name for thread in await asyncio.gather(*(threads.run(threading.current_thread) for _ in range(20)))}
        assert names <= {"example-0", "example-1", "example-2"}


async def test_one_thread_makes_its_calls_in_the_order_in_which_they_came() -> None:
    made: list[int] = []
    with Threads(1, "example") as threads:
        await asyncio.gather(*(threads.run(made.append, number) for number in range(100)))
    assert made == list(range(100))


async def test_a_call_that_is_cancelled_while_it_waits_is_not_made() -> None:
    made: list[int] = []
    go_on = threading.Event()
    with Threads(1, "example") as threads:
        first = threads.run(go_on.wait, 10)
        second = threads.run(made.append, 2)
        second.cancel()
        go_on.set()
        assert await first is True
        await threads.run(made.append, 3)
    assert made == [3]


async def test_one_that_is_cancelled_while_it_runs_ends_by_itself() -> None:
    made: list[int] = []
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(10)
        made.append(1)

    with Threads(1, "example") as threads:
        running = threads.run(work)
        await begun.wait()
        running.cancel()
        go_on.set()
        await threads.run(int)
    assert made == [1]
    assert running.cancelled()


async def test_closing_waits_for_what_was_asked_for() -> None:
    made: list[int] = []
    with Threads(1, "example") as threads:
        for number in range(10):
            threads.submit(made.append, number)
    assert made == list(range(10))


async def test_what_nobody_waits_for_is_logged_when_it_fails(caplog: pytest.LogCaptureFixture) -> None:
    with Threads(1, "example") as threads, caplog.at_level(logging.ERROR):
        threads.submit(divmod, 1, 0)
        await threads.run(int)
    assert [record.message for record in caplog.records] == ["call in a thread failed"]
