"""Tasks end when they are cancelled, also if a library loses the first cancellation."""

import asyncio

from gantry_runtime.process import end_tasks


async def test_task_that_loses_a_cancellation_is_ended_all_the_same() -> None:
    lost = 0

    async def loses_one() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost += 1
                if lost > 1:
                    raise

    task = asyncio.create_task(loses_one())
    await asyncio.sleep(0)
    await asyncio.wait_for(end_tasks([task]), 5)
    assert (task.cancelled(), lost) == (True, 2)


async def test_nothing_to_end_is_fine() -> None:
    assert await asyncio.wait_for(end_tasks([]), 5) is None
