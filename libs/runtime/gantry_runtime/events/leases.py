"""Leases: a lease allows one process at a time to do a task that several processes could do."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from gantry_runtime.events.streams import Bucket, JetStreamContext, open_bucket
from gantry_runtime.process import end_tasks
from gantry_standard import errors

log = logging.getLogger(__name__)

LEASE_S = 2.0
"""Seconds after its last renewal at which a lease expires, so that another process can acquire it."""

RENEW_S = LEASE_S / 4
"""Seconds between renewals."""


class Lease:
    """One key of the bucket `lease`, with at most one holder at a time. The holder calls `renew` every RENEW_S seconds.

    For a moment two processes may believe that they hold the lease, for example when one of them was suspended. The writes of a holder must
    therefore be safe when two processes make them.

    Args:
        js: JetStream of a connected client.
        key: name of the lease.
        holder: name of this process. It must be unique. A process that is started again with the same name gets its lease back at once.
    """

    def __init__(self, js: JetStreamContext, key: str, holder: str) -> None:
        self.key = key
        self._js = js
        self._holder = holder.encode()
        self._revision = 0
        self._renewed = 0.0
        self._bucket: Bucket | None = None

    async def _opened(self) -> Bucket:
        """Return the bucket; it is opened at the first call, and again after a failure."""
        if self._bucket is None:
            self._bucket = await open_bucket(self._js, "lease", LEASE_S)
        return self._bucket

    async def acquire(self) -> bool:
        """Acquire the lease if no other process holds it. Return whether this process holds it now."""
        self._bucket = None
        with suppress(errors.Conflict, errors.RetryLater, errors.NotFound):
            bucket = await self._opened()
            value, revision = await bucket.get(self.key)
            self._revision = await bucket.replace(self.key, self._holder, revision if value == self._holder else 0)
            self._renewed = asyncio.get_running_loop().time()
            return True
        return False

    async def renew(self) -> bool:
        """Renew the lease. Return False if another process holds it, or if it may expire before the next renewal."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(RENEW_S):
                bucket = await self._opened()
                begin = loop.time()
                try:
                    self._revision = await bucket.replace(self.key, self._holder, self._revision)
                except errors.Conflict:
                    # If the response to an earlier renewal was lost, the revision has changed but the holder is still this process.
                    value, revision = await bucket.get(self.key)
                    if value != self._holder:
                        return False
                    self._revision = revision
                else:
                    self._renewed = begin
        except (errors.RetryLater, errors.NotFound, TimeoutError):
            # NotFound: the bucket was lost with the volume of NATS. It is created again, and the lease expires.
            self._bucket = None
        return loop.time() - self._renewed < LEASE_S - RENEW_S

    async def release(self) -> None:
        """Release the lease, so that another process can acquire it at once."""
        with suppress(errors.Conflict, errors.RetryLater, errors.NotFound, TimeoutError):
            async with asyncio.timeout(RENEW_S):
                await (await self._opened()).remove(self.key, self._revision)


async def leases_held(js: JetStreamContext) -> list[str]:
    """Return the keys of all leases that a process holds.

    Raises:
        errors.Unavailable: NATS does not answer.
    """
    try:
        return await (await open_bucket(js, "lease", LEASE_S)).keys()
    except errors.NotFound as error:
        raise errors.Unavailable("the NATS bucket of leases was lost") from error


async def hold_lease(js: JetStreamContext, key: str, holder: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` whenever this process holds the lease `key`, without end. One process at a time runs it.

    `work` is cancelled when the lease is lost, and started again when it is acquired again. For a moment two processes may run it, for
    example when one of them was suspended, so its writes must be compare-and-set. Conflict and Unavailable start `work` again; any other
    exception of `work` is raised.

    Args:
        js: JetStream of a connected client.
        key: name of the lease.
        holder: name of this process; it must be unique.
        work: the task.
    """
    lease = Lease(js, key, holder)
    while True:
        if not await lease.acquire():
            await asyncio.sleep(RENEW_S)
            continue
        log.info("lease acquired", extra={"lease": key})
        working = asyncio.create_task(_task(work), name=key)
        try:
            if await _renewed_while(lease, working):
                working.result()
            else:
                log.warning("lease lost", extra={"lease": key})
        except (errors.Conflict, errors.Unavailable) as error:
            log.warning("work under a lease ended", extra={"lease": key, "reason": error.message})
        finally:
            await end_tasks([working])
            await lease.release()
        await asyncio.sleep(0.05)


async def _task(work: Callable[[], Awaitable[None]]) -> None:
    await work()


async def _renewed_while(lease: Lease, working: asyncio.Task[None]) -> bool:
    """Renew the lease until the work has ended (return True) or the lease is lost (return False)."""
    while True:
        done, _ = await asyncio.wait({working}, timeout=RENEW_S)
        if done:
            return True
        if not await lease.renew():
            return False
