"""The lines of requests are gathered, in order with all other lines."""

import asyncio
import io
import logging
import threading

from gantry_runtime.logs import Handler
from tests.support.nats_server import until


class Counting(io.StringIO):
    """Counts writes."""

    writes = 0

    def write(self, text: str, /) -> int:
        self.writes += 1
        return super().write(text)


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("gantry", logging.WARNING, "", 0, message, (), None)


async def test_lines_of_requests_are_written_together() -> None:
    stream = Counting()
    handler = Handler(stream)
    for number in range(100):
        handler.gather(f"{number}\n")
    assert stream.getvalue() == ""
    await until(stream.getvalue, 5)
    assert stream.getvalue().split() == [str(number) for number in range(100)]
    assert stream.writes == 1
    handler.gather("again\n")
    await until(lambda: "again" in stream.getvalue(), 5)


async def test_a_record_is_written_at_once_and_behind_the_lines_before_it() -> None:
    stream = io.StringIO()
    handler = Handler(stream)
    handler.gather("first\n")
    handler.emit(record("second"))
    handler.gather("third\n")
    assert stream.getvalue() == "first\nsecond\n"
    handler.flush()
    assert stream.getvalue() == "first\nsecond\nthird\n"


def test_without_an_event_loop_a_line_is_written_at_once() -> None:
    stream = io.StringIO()
    handler = Handler(stream)
    thread = threading.Thread(target=handler.gather, args=("from a thread\n",))
    thread.start()
    thread.join()
    assert stream.getvalue() == "from a thread\n"


def test_lines_that_wait_when_the_loop_ends_are_written_at_the_end_of_the_process() -> None:
    stream = io.StringIO()
    handler = Handler(stream)

    async def serve() -> None:
        handler.gather("last\n")

    asyncio.run(serve())
    handler.close()
    handler.flush()
    assert stream.getvalue() == "last\n"
    asyncio.run(serve())
    handler.flush()
    assert stream.getvalue() == "last\nlast\n"
