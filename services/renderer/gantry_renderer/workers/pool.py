"""A pool of worker processes that decode and render; a crash of a decoder ends one worker only.

Each worker is a process (`worker.py`) that is connected by a socket. A job is a small message: the worker reads the pixels itself where it
can, and returns large results through shared memory. A worker that dies is replaced. Its job is tried once more on another worker; if that
one dies too, the job is refused, because the frame crashes the decoder. A worker whose job exceeds the time limit is killed and replaced,
and the job is not tried again.
"""

import asyncio
import logging
import mmap
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, NoReturn

from gantry_renderer.workers import exchange
from gantry_runtime import telemetry
from gantry_runtime.call_context import CURRENT, CallContext
from gantry_standard import errors

log = logging.getLogger(__name__)

RESTART_PAUSE_S = 1.0
"""Seconds before a worker that did not start is started again."""

CHECK_IDLE_S = 1.0
"""Seconds between two looks for idle workers that have died."""

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class WorkerDied(Exception):
    """The process ended during a job."""


def _request() -> CallContext:
    """Return the request id and trace context of a job's request. The caller is left out: a worker needs only its job."""
    context = CURRENT.get()
    return CallContext(context.request_id, context.traceparent)


class Worker:
    """One worker process. Only one job runs at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._shared: mmap.mmap | None = None

    @property
    def pid(self) -> int:
        """Process id; 0 before the start."""
        return self._process.pid if self._process else 0

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start the process and wait until it is ready for jobs.

        Raises:
            WorkerDied: the process ended before it was ready.
        """
        await asyncio.to_thread(self._spawn)
        await self._receive()

    def _spawn(self) -> None:
        self.close()
        ours, theirs = socket.socketpair()
        memory = exchange.shared_memory()
        try:
            self._shared = exchange.mapped(memory)
            command = [sys.executable, "-m", "gantry_renderer.workers.worker", str(theirs.fileno()), str(memory)]
            with theirs:
                self._process = subprocess.Popen(command, pass_fds=[theirs.fileno(), memory], env={**os.environ, **_ONE_THREAD})
        finally:
            os.close(memory)
        ours.setblocking(False)
        self._connection = ours

    async def call(self, job: str, arguments: tuple[Any, ...]) -> Any:
        """Run one job in the process and return its result.

        Raises:
            WorkerDied: the process ended before it returned a result.
            GantryError: what the job raised.
        """
        if self._connection is None or self._shared is None:
            raise WorkerDied
        try:
            await asyncio.get_running_loop().sock_sendall(self._connection, exchange.packed((job, arguments, _request())))
        except OSError as error:
            raise WorkerDied from error
        outcome, value = await self._receive()
        if outcome == "shared":
            return self._shared[:value]
        if outcome == "result":
            return value
        if isinstance(value, errors.GantryError):
            raise value
        raise RuntimeError(f"{job} failed in the worker:\n{value}")

    async def _receive(self) -> Any:
        if self._connection is None:
            raise WorkerDied
        try:
            return await exchange.received(self._connection)
        except (EOFError, OSError) as error:
            raise WorkerDied from error

    def kill(self) -> None:
        """Kill the process; a running `call` then raises WorkerDied."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Kill the process, wait for its end, and close its socket and memory."""
        if self._process is not None:
            self.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        if self._shared is not None:
            self._shared.close()
        self._process = self._connection = self._shared = None


class Admission:
    """Bounds the number of concurrent requests of one kind.

    Args:
        limit: of concurrent requests.
        what: plural noun of the requests, for the error message.
    """

    def __init__(self, limit: int, what: str) -> None:
        self._limit = limit
        self._what = what
        self.inside = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Count one request while the context is open.

        Raises:
            Overloaded: the limit is reached.
        """
        if self.inside >= self._limit:
            raise errors.Overloaded(f"the renderer has {self.inside} {self._what} in hand, which is its limit", retry_after_s=1)
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


class Pool:
    """Runs jobs in `size` processes, in the order in which they come.

    Args:
        size: number of processes.
        timeout_s: seconds that one job may take.
    """

    def __init__(self, size: int, timeout_s: float) -> None:
        self.size = size
        self._timeout_s = timeout_s
        self._workers = [Worker() for _ in range(size)]
        self._idle: list[Worker] = []
        self._waiting: deque[asyncio.Future[Worker]] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._running = 0

    @property
    def ready_workers(self) -> int:
        """Number of workers that are alive."""
        return sum(worker.is_alive() for worker in self._workers)

    @property
    def waiting_jobs(self) -> int:
        """Number of jobs that wait for a worker."""
        return len(self._waiting)

    @property
    def running_jobs(self) -> int:
        """Number of jobs that run in a worker, including those whose request was cancelled."""
        return self._running

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers; 0 for one that is being started."""
        return [worker.pid for worker in self._workers]

    async def _start(self) -> None:
        try:
            await asyncio.gather(*(worker.start() for worker in self._workers))
        except WorkerDied as error:
            raise RuntimeError("a worker process ended before it was ready; its error output says why") from error
        self._idle = list(self._workers)

    async def _stop(self) -> None:
        self._closed = True
        for waiting in self._waiting:
            waiting.cancel()
        for worker in self._workers:
            worker.kill()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self._workers:
            await asyncio.to_thread(worker.close)

    async def keep(self) -> NoReturn:
        """Replace workers that die while they are idle, as long as the pool is open.

        A worker that dies during a job is replaced at once. The death of an idle worker is noticed only by this task or by the next job.
        Without this task, a renderer whose last worker died would not be ready, get no requests, and never become ready again.
        """
        while True:
            await asyncio.sleep(CHECK_IDLE_S)
            dead = [worker for worker in self._idle if not worker.is_alive()]
            self._idle = [worker for worker in self._idle if worker not in dead]
            for worker in dead:
                self._own(self._restart(worker))

    async def run(self, job: str, *arguments: Any) -> Any:
        """Run one of `worker.JOBS` and return its result.

        Cancelling removes a waiting job from the queue. A running job runs to its end and its result is dropped.

        Raises:
            NotAcceptable: two workers died during the job.
            Unavailable: the job exceeded the time limit.
            GantryError: what the job raised.
        """
        begin = time.perf_counter()
        try:
            try:
                return await self._try(job, arguments)
            except WorkerDied:
                log.warning("worker died, trying once more", extra={"job": job})
                return await self._try(job, arguments)
        except WorkerDied:
            log.error("job killed two workers", extra={"job": job})
            raise errors.NotAcceptable("the frame cannot be decoded: it ended the decoder twice; it is available as stored") from None
        finally:
            telemetry.RENDER_SECONDS.labels(job).observe(time.perf_counter() - begin)

    async def _try(self, job: str, arguments: tuple[Any, ...]) -> Any:
        worker = await self._take()
        done = self._own(worker.call(job, arguments))
        self._running += 1
        # The worker returns to the pool when its job has ended, also where the request was cancelled before
        done.add_done_callback(lambda future: self._give_back(worker, future))
        try:
            # Not wait_for: in Python 3.11 it loses a cancellation that arrives together with the result (python/cpython#86296), and the
            # work of a disconnected client would go on
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(done)
        except TimeoutError:
            log.error("job took too long, its worker is replaced", extra={"job": job, "timeout_s": self._timeout_s})
            worker.kill()
            raise errors.Unavailable(f"the frame took longer than {self._timeout_s:g} s") from None
        except asyncio.CancelledError:
            if not done.done():
                self._end_if_late(worker, done)
            raise

    def _end_if_late(self, worker: Worker, done: "asyncio.Task[Any]") -> None:
        handle = asyncio.get_running_loop().call_later(self._timeout_s, worker.kill)
        done.add_done_callback(lambda _: handle.cancel())

    async def _take(self) -> Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.is_alive():
                return worker
            self._own(self._restart(worker))
        waiting: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        telemetry.RENDER_QUEUE.set(len(self._waiting))
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():
                self._offer(waiting.result())
            raise
        finally:
            with suppress(ValueError):
                self._waiting.remove(waiting)
            telemetry.RENDER_QUEUE.set(len(self._waiting))

    def _give_back(self, worker: Worker, done: "asyncio.Task[Any]") -> None:
        self._running -= 1
        if self._closed:
            return
        if done.cancelled() or isinstance(done.exception(), WorkerDied) or not worker.is_alive():
            self._own(self._restart(worker))
        else:
            self._offer(worker)

    def _offer(self, worker: Worker) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(worker)
                return
        self._idle.append(worker)

    async def _restart(self, worker: Worker) -> None:
        while not self._closed:
            try:
                await worker.start()
            except Exception:
                # Any error (no process, thread or file handle left) is retried: a worker that is not restarted is missing for good
                log.exception("worker does not start")
                await asyncio.sleep(RESTART_PAUSE_S)
            else:
                log.info("worker replaced", extra={"pid": worker.pid})
                self._offer(worker)
                return

    def _own(self, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


@asynccontextmanager
async def opened(size: int, timeout_s: float) -> AsyncIterator[Pool]:
    """Open a pool and wait until its workers are ready.

    Args:
        size: number of workers; 0 for one per core.
        timeout_s: seconds that one job may take.

    Raises:
        RuntimeError: a worker ended before it was ready.
    """
    pool = Pool(size or os.cpu_count() or 1, timeout_s)
    try:
        await pool._start()
        yield pool
    finally:
        await pool._stop()
