"""Leases: of all processes that may do something, one does it at a time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from gantry_runtime.events.streams import Bucket, JetStreamContext, open_bucket
from gantry_runtime.process import end_tasks
from gantry_standard import errors

log = logging.getLogger(__name__)

LEASE_S = 2.0
"""Seconds after its last renewal at which a lease is free for others."""

RENEW_S = LEASE_S / 4
"""Seconds between renewals."""


class Lease:
    """One key of the bucket `lease`: at most one holder at a time, who calls `renew` every RENEW_S seconds.

    Two may believe that they hold it for a moment (a process that was frozen), so what a holder writes must bear that.

    Args:
        holder: who this is, unique to the process; one that was started again under the same name has its lease back at once.
    """

    def __init__(self, js: JetStreamContext, key: str, holder: str) -> None:
        self.key = key
        self._js = js
        self._holder = holder.encode()
        self._revision = 0
        self._renewed = 0.0
        self._bucket: Bucket | None = None

    async def _opened(self) -> Bucket:
        """Return the bucket: asked for once, and again after it failed."""
        if self._bucket is None:
            self._bucket = await open_bucket(self._js, "lease", LEASE_S)
        return self._bucket

    async def acquire(self) -> bool:
        """Take the lease if nobody else holds it."""
        self._bucket = None
        with suppress(errors.Conflict, errors.RetryLater, errors.NotFound):
            bucket = await self._opened()
            value, revision = await bucket.get(self.key)
            self._revision = await bucket.replace(self.key, self._holder, revision if value == self._holder else 0)
            self._renewed = asyncio.get_running_loop().time()
            return True
        return False

    async def renew(self) -> bool:
        """Prolong the lease; False when another one holds it, or it may end before the next renewal."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(RENEW_S):
                bucket = await self._opened()
                begin = loop.time()
                try:
                    self._revision = await bucket.replace(self.key, self._holder, self._revision)
                except errors.Conflict:
                    # Of a renewal whose answer was lost, the revision is another one and the holder the same.
                    value, revision = await bucket.get(self.key)
                    if value != self._holder:
                        return False
                    self._revision = revision
                else:
                    self._renewed = begin
        except (errors.RetryLater, errors.NotFound, TimeoutError):
            # NotFound: the bucket was lost with NATS's volume. It is made again, and the lease ends.
            self._bucket = None
        return loop.time() - self._renewed < LEASE_S - RENEW_S

    async def release(self) -> None:
        """Give the lease back, so that another has it at once."""
        with suppress(errors.Conflict, errors.RetryLater, errors.NotFound, TimeoutError):
            async with asyncio.timeout(RENEW_S):
                await (await self._opened()).remove(self.key, self._revision)


async def leases_held(js: JetStreamContext) -> list[str]:
    """Return the keys of all leases that somebody holds.

    Raises:
        errors.Unavailable: NATS does not answer.
    """
    try:
        return await (await open_bucket(js, "lease", LEASE_S)).keys()
    except errors.NotFound as error:
        raise errors.Unavailable("the bucket of leases was lost just now") from error


async def hold_lease(js: JetStreamContext, key: str, holder: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do `work` whenever this process holds the lease `key`, for ever: one process of all does it at a time.

    `work` is cancelled when the lease is lost, and begun again when it is held again. Two may do it for a moment (a process that
    was frozen), so what it writes must be compared and set. What `work` raises is raised; a Conflict or Unavailable begins it again.

    Args:
        holder: who this is, unique to the process.
    """
    lease = Lease(js, key, holder)
    while True:
        if not await lease.acquire():
            await asyncio.sleep(RENEW_S)
            continue
        log.info("lease taken", extra={"lease": key})
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
    """Renew until the work has ended: True; or until the lease is lost: False."""
    while True:
        done, _ = await asyncio.wait({working}, timeout=RENEW_S)
        if done:
            return True
        if not await lease.renew():
            return False
