"""gantry-blob: opens the object store, serves BlobService, announces packs and runs the sweeper."""

import asyncio
import logging
import socket
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from gantry.blob.v1.blob_pb2_grpc import add_BlobServiceServicer_to_server
from gantry.index.v1.index_pb2_grpc import IndexServiceStub
from gantry_blob.edge import BlobEdge, Pools
from gantry_blob.packs.announcer import Announcer, AnnouncerTimes
from gantry_blob.packs.pack import PackLimits
from gantry_blob.packs.sweeper import LEASE, Sweeper, SweeperTimes
from gantry_blob.settings import BlobSettings
from gantry_blob.stores.directory import INCOMING, DirectoryStore
from gantry_blob.stores.port import ObjectStore
from gantry_blob.storing import second_reader
from gantry_blob.storing.coercion import Coercion, load_rules
from gantry_blob.storing.request import StoreRules
from gantry_blob.threads import in_thread
from gantry_runtime import telemetry
from gantry_runtime.events import leases, streams
from gantry_runtime.process import Process, run
from gantry_runtime.rpc import channels
from gantry_runtime.store_messages import SERIALISED
from gantry_runtime.threads import Threads
from gantry_standard import errors
from gantry_standard.dicom.limits import Limits

log = logging.getLogger(__name__)

CLEAN_EVERY_S = 6 * 3600.0
STATUS_S = 5.0


@contextmanager
def _store(settings: BlobSettings) -> Iterator[ObjectStore]:
    store: ObjectStore
    if settings.object_store == "s3":
        # Imported only when needed, because the S3 client is large and slow to import.
        from gantry_blob.stores.s3 import S3Store

        store = S3Store(
            settings.s3_endpoint, settings.s3_access_key, settings.s3_secret_key, settings.s3_bucket, part_bytes=settings.s3_part_bytes
        )
    else:
        store = DirectoryStore(settings.blob_directory, settings.disk_reserve_percent)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def _pools(settings: BlobSettings) -> Iterator[Pools]:
    with (
        Threads(settings.concurrent_uploads, "upload") as uploads,
        Threads(settings.blob_read_threads, "read") as reads,
        Threads(8, "other") as others,
        Threads(second_reader.CONCURRENT, "second-reader") as readers,
    ):
        second_readers = second_reader.SecondReaders(readers, settings.fallback_timeout_s, settings.fallback_max_waiting)
        yield Pools(uploads, reads, others, second_readers)


def _coercion(settings: BlobSettings) -> Coercion | None:
    rules = load_rules(settings.coercion_rules) if settings.coercion_rules is not None else ()
    return Coercion(rules, settings.modifying_system) if rules else None


def _rules(settings: BlobSettings) -> StoreRules:
    return StoreRules(
        pack=PackLimits(settings.pack_max_bytes, settings.pack_max_instances, settings.pack_max_trailer_bytes),
        scan=Limits(
            elements=settings.scan_max_elements,
            depth=settings.scan_max_depth,
            value_bytes=settings.scan_max_value_bytes,
            inflated_bytes=settings.scan_max_inflated_bytes,
        ),
        accept_private_sop_classes=settings.accept_private_sop_classes,
        most_parts=settings.store_max_parts,
        spool_directory=settings.blob_directory / INCOMING if settings.object_store == "directory" else None,
        spool_reserve=settings.disk_reserve_percent / 100,
        coerce=_coercion(settings),
        second_reader_bytes=settings.fallback_max_bytes,
        second_reader_parts=settings.fallback_max_parts,
        second_reader_budget_s=settings.fallback_budget_s,
    )


async def _clean(store: ObjectStore, pools: Pools) -> None:
    while True:
        try:
            if count := await in_thread(pools.others, store.clean):
                log.info("data of unfinished uploads removed", extra={"count": count})
            await asyncio.sleep(CLEAN_EVERY_S)
        except errors.GantryError as error:
            log.info("data of unfinished uploads could not be removed", extra={"reason": error.message})
            await asyncio.sleep(60)


async def _sweep(client: streams.Client, connected: asyncio.Task[None], sweeper: Sweeper) -> None:
    await asyncio.shield(connected)
    holder = f"{socket.gethostname()}:{uuid.uuid4().hex}"
    await leases.hold_lease(client.jetstream(), LEASE, holder, sweeper.run)


async def opens(process: Process, settings: BlobSettings) -> None:
    """Open everything. NATS and S3 need not be available; until they are, blob reports that it is not ready."""
    enter = process.stack.enter_async_context
    store = process.stack.enter_context(_store(settings))
    pools = process.stack.enter_context(_pools(settings))
    client, connected = await enter(streams.connecting(settings.nats_url, "gantry-blob"))
    publisher = streams.Publisher(client)
    index = IndexServiceStub(await enter(channels.channel(settings.index_address)))
    announcer = Announcer(store, publisher, index, pools.others, AnnouncerTimes(every_s=settings.announce_every_s))
    edge = BlobEdge(
        store, announcer, _rules(settings), pools, lambda: publisher.is_connected, settings.concurrent_uploads, settings.concurrent_reads
    )

    async def missing() -> str:
        if not publisher.is_connected:
            return "NATS is not connected"
        try:
            status = await asyncio.wait_for(in_thread(pools.others, store.status), STATUS_S)
        except TimeoutError:
            return "the object store does not answer"
        return "" if status.ready else status.explanation

    await enter(channels.serving(lambda server: add_BlobServiceServicer_to_server(edge, server), settings.blob_listen, as_bytes=SERIALISED))
    await enter(telemetry.admin(settings.blob_admin_listen, missing))
    process.watch(announcer.run(), "announcer")
    times = SweeperTimes(settings.sweep_every_s, settings.delete_after_s, settings.sweep_settle_s, settings.sweep_trash_s)
    sweeper = Sweeper(store, announcer, publisher, index, pools.others, times)
    process.watch(_sweep(client, connected, sweeper), "sweeper")
    process.watch(_clean(store, pools), "cleaner")


def main() -> int:
    """Run gantry-blob."""
    return run("blob", BlobSettings, opens)


if __name__ == "__main__":
    sys.exit(main())
