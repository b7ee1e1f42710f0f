"""The gRPC edge of index: translate, call, translate."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gantry.blob.v1.blob_pb2 import Location, StoredInstance
from gantry.events.v1.events_pb2 import Decision, InstancesDeleted, InstancesRestored, NamedUpload
from gantry.index.v1 import index_pb2
from gantry.index.v1.index_pb2_grpc import IndexServiceServicer
from gantry_index.applying.workitems import WorkitemReader
from gantry_index.service import Following
from gantry_index.stores.port import Dead, Fragment, IndexStore, Place, Present, Scope, place_of
from gantry_runtime import call_context, telemetry
from gantry_runtime.events import streams
from gantry_runtime.query_messages import query_of, workitem_query_of
from gantry_runtime.stored_instances import collection_of
from gantry_standard import errors
from gantry_standard.dicom.uids import is_valid_uid
from gantry_standard.query.levels import Level
from gantry_standard.query.matching import MatchKey, Operation, Query

if TYPE_CHECKING:
    from gantry.blob.v1.blob_pb2_grpc import BlobServiceAsyncStub

log = logging.getLogger(__name__)

MESSAGE_BYTES = 4 << 20
"""Number of metadata bytes after which a new message is begun."""
UPLOADS_PER_EVENT = 500
"""Largest number of uploads in one event, which keeps it below 256 KiB."""
APPLY_TIMEOUT_S = 10.0
CURRENT_TIMEOUT_S = 10.0
"""Seconds for which a call of the sweeper waits until index has applied the whole stream."""
MOST_DUE = 10_000
MOST_DESCRIBED = 1000


class IndexEdge(IndexServiceServicer):
    """The handlers of IndexService.

    Args:
        search_maximum: largest number of rows of one search.
        current_timeout_s: seconds for which a search of workitems waits until index is current.
    """

    def __init__(
        self,
        following: Following,
        workitems: WorkitemReader,
        blob: "BlobServiceAsyncStub",
        client: streams.Client,
        search_maximum: int,
        current_timeout_s: float,
    ) -> None:
        self._following = following
        self._workitems = workitems
        self._blob = blob
        self._client = client
        self._js = client.jetstream()
        self._search_maximum = search_maximum
        self._current_timeout_s = current_timeout_s

    @property
    def _store(self) -> IndexStore:
        return self._following.store

    async def Search(self, request: index_pb2.SearchRequest, context: Any) -> index_pb2.SearchResponse:
        """Search studies, series or instances."""
        page = await self._store.search(visible(query_of(request, self._search_maximum)))
        return index_pb2.SearchResponse(rows=page.rows, remaining=page.remaining)

    async def SearchWorkitems(self, request: index_pb2.SearchWorkitemsRequest, context: Any) -> index_pb2.SearchWorkitemsResponse:
        """Search workitems; if the request says so, after all changes up to now are applied."""
        if request.current:
            await self._workitems.wait_until_current(self._current_timeout_s)
        page = await self._workitems.store.search(visible(workitem_query_of(request, self._search_maximum)))
        return index_pb2.SearchWorkitemsResponse(rows=page.rows, remaining=page.remaining)

    async def GetInstances(self, request: index_pb2.GetInstancesRequest, context: Any) -> AsyncIterator[index_pb2.GetInstancesResponse]:
        """Return the records of a scope."""
        async for records in self._store.records(scope_of(request.scope)):
            yield index_pb2.GetInstancesResponse(records=[index_pb2.InstanceRecord.FromString(record) for record in records])

    async def GetMetadata(self, request: index_pb2.GetMetadataRequest, context: Any) -> AsyncIterator[index_pb2.GetMetadataResponse]:
        """Return the metadata of a scope, or "unchanged" if its state tag is the one in the request."""
        scope = scope_of(request.scope)
        state = await self._store.state(scope)
        if state and state == request.known_state:
            yield index_pb2.GetMetadataResponse(state=state, unchanged=True)
            return
        async for fragments in self._store.fragments(scope):
            for part in _bounded(fragments):
                answer, state = index_pb2.GetMetadataResponse(state=state), b""
                for fragment in part:
                    _add_fragment(answer, fragment)
                yield answer

    async def DeleteInstances(self, request: index_pb2.DeleteInstancesRequest, context: Any) -> index_pb2.DeleteInstancesResponse:
        """Publish the deletion, and wait until it is applied and its decision is durable."""
        by_collection: dict[str, list[NamedUpload]] = {}
        async for records in self._store.records(scope_of(request.scope)):
            for record in records:
                stored = index_pb2.InstanceRecord.FromString(record).stored
                by_collection.setdefault(collection_of(stored), []).append(named(stored))
        for collection, uploads in by_collection.items():
            await self._announce("InstancesDeleted", InstancesDeleted, collection, uploads)
        return index_pb2.DeleteInstancesResponse(deleted=sum(len(uploads) for uploads in by_collection.values()))

    async def RestoreInstances(self, request: index_pb2.RestoreInstancesRequest, context: Any) -> index_pb2.RestoreInstancesResponse:
        """Publish the restoration, wait until it is applied, and count the restored instances."""
        if not is_valid_uid(request.uid):
            raise errors.BadRequest(f"{request.uid[:80]!r} is not a UID")
        by_collection: dict[str, list[NamedUpload]] = {}
        async for tombstones in self._store.tombstones(request.uid, call_context.caller().visible_studies):
            for tombstone in tombstones:
                by_collection.setdefault(collection_of(tombstone.stored), []).append(named(tombstone.stored))
        answer = index_pb2.RestoreInstancesResponse(here=await self._count_here(request.uid))
        if not by_collection and not answer.here:
            raise errors.NotFound(f"nothing is known of {request.uid}")
        for collection, uploads in by_collection.items():
            await self._announce("InstancesRestored", InstancesRestored, collection, uploads)
            for start in range(0, len(uploads), UPLOADS_PER_EVENT):
                part = uploads[start : start + UPLOADS_PER_EVENT]
                present, _ = await self._store.present([upload.sop_instance_uid for upload in part], [])
                for upload in part:
                    now = present.get(upload.sop_instance_uid)
                    if now is None or now.deleted:
                        answer.gone += 1
                    elif now.place == (upload.location.object, upload.location.offset):
                        answer.restored += 1
                    else:
                        answer.here += 1
        return answer

    async def _count_here(self, uid: str) -> int:
        """Return how many instances a study, series or instance has now."""
        tags = {Level.STUDY: "0020000D", Level.SERIES: "0020000E"}
        present, _ = await self._store.present([uid], [])
        studies = call_context.caller().visible_studies
        count = sum(
            not instance.deleted and (studies is None or collection_of(instance.stored) in studies) for instance in present.values()
        )
        for level, tag in tags.items():
            query = Query(Level.INSTANCE, keys=(MatchKey((tag,), Operation.EQUAL, (uid,), level=level),), limit=1)
            page = await self._store.search(visible(query))
            count += len(page.rows) + page.remaining
        return count

    async def _announce(
        self, name: str, message: type[InstancesDeleted | InstancesRestored], collection: str, uploads: Sequence[NamedUpload]
    ) -> None:
        """Publish events about uploads of a collection, UPLOADS_PER_EVENT in each, and wait until each is applied."""
        subject = streams.SUBJECTS[name].format(partition=streams.partition_of(collection))
        for start in range(0, len(uploads), UPLOADS_PER_EVENT):
            reply_subject = self._client.new_inbox()
            event = message(
                collection=collection,
                instances=uploads[start : start + UPLOADS_PER_EVENT],
                reply_subject=reply_subject,
            )
            await self._publish(subject, event.SerializeToString(), reply_subject)

    async def _publish(self, subject: str, data: bytes, reply_subject: str) -> None:
        applied = asyncio.get_running_loop().create_future()

        async def reply_received(message: Any) -> None:
            if not applied.done():
                applied.set_result(None)

        subscription = await self._client.subscribe(reply_subject, cb=reply_received)
        try:
            await streams.publish(self._js, subject, data, {"Nats-Msg-Id": reply_subject})
            async with asyncio.timeout(APPLY_TIMEOUT_S):
                await applied
        except TimeoutError as error:
            raise errors.Unavailable("the change is stored and will be applied, but is not applied yet") from error
        finally:
            await subscription.unsubscribe()

    async def ListDue(self, request: index_pb2.ListDueRequest, context: Any) -> index_pb2.ListDueResponse:
        """Return uploads whose bytes may be removed."""
        if not 1 <= request.limit <= MOST_DUE:
            raise errors.BadRequest(f"limit is {request.limit}, expected 1 to {MOST_DUE}")
        await self._following.wait_until_current(CURRENT_TIMEOUT_S)
        due = await self._store.due(request.before_s, request.after_object, request.limit)
        uploads = [index_pb2.DueUpload(name=Location(object=key, offset=offset), object=dead.object) for (key, offset), dead in due]
        return index_pb2.ListDueResponse(uploads=uploads)

    async def DescribeUploads(self, request: index_pb2.DescribeUploadsRequest, context: Any) -> index_pb2.DescribeUploadsResponse:
        """Return the conditions of uploads, and the objects that have their bytes."""
        if len(request.uploads) > MOST_DESCRIBED:
            raise errors.BadRequest(f"{len(request.uploads)} uploads, expected at most {MOST_DESCRIBED}")
        await self._following.wait_until_current(CURRENT_TIMEOUT_S)
        named_by = [(upload.sop_instance_uid, (upload.location.object, upload.location.offset)) for upload in request.uploads]
        present, dead = await self._store.present([uid for uid, _ in named_by], [place for _, place in named_by])
        return index_pb2.DescribeUploadsResponse(uploads=[state_of(present.get(uid), dead.get(place), place) for uid, place in named_by])

    async def FilterUnknownPacks(self, request: index_pb2.FilterUnknownPacksRequest, context: Any) -> index_pb2.FilterUnknownPacksResponse:
        """Return the packs that were not announced completely, according to the events that index has applied."""
        if not await self._store.generation():
            raise errors.Unavailable("the index is being built")
        return index_pb2.FilterUnknownPacksResponse(objects=await self._store.unknown_packs(list(request.objects)))

    async def Reindex(self, request: index_pb2.ReindexRequest, context: Any) -> AsyncIterator[index_pb2.ReindexResponse]:
        """Build a new index generation from the object store and swap it in."""
        read = total = instances = 0
        async for progress in self._following.reindex():
            read, total, instances = progress.packs_read, progress.packs_total, progress.instances
            yield index_pb2.ReindexResponse(packs_read=read, packs_total=total, instances=instances)
        yield index_pb2.ReindexResponse(packs_read=read, packs_total=total, instances=instances, done=True)

    async def GetAppliedSequence(self, request: index_pb2.GetAppliedSequenceRequest, context: Any) -> index_pb2.GetAppliedSequenceResponse:
        """Return the cursor of the reader of the collection's partition. The reader may run in another process."""
        readers = self._following.readers
        reader = readers[streams.partition_of(request.collection) % len(readers)]
        return index_pb2.GetAppliedSequenceResponse(sequence=await self._store.cursor(reader))

    async def GetStatus(self, request: index_pb2.GetStatusRequest, context: Any) -> index_pb2.GetStatusResponse:
        """Return the counts, the cursor, and the problem that keeps index from applying events."""
        status = index_pb2.GetStatusResponse(index_store=self._store.name, applied_sequence=self._following.reader.applied)
        try:
            counts = await self._store.counts()
            status.studies, status.series, status.instances = counts.studies, counts.series, counts.instances
            status.poison_events = counts.poison
            status.generation = await self._store.generation()
            state = await streams.describe_stream(self._js, streams.STORE)
            status.stream_sequence = state.last_sequence if state else 0
            telemetry.INDEX_LAG.set(max(0, status.stream_sequence - status.applied_sequence))
            status.explanation = self._following.reader.problem
        except errors.RetryLater as error:
            status.explanation = error.message
        status.ready = not status.explanation
        return status


def visible(query: Query) -> Query:
    """Return the query, restricted to the studies that the caller may see. For an unrestricted caller it is the same object."""
    studies = call_context.caller().visible_studies
    return query if studies is None else replace(query, visible_studies=studies)


def scope_of(scope: index_pb2.Scope) -> Scope:
    """Return the scope of a message, restricted to the studies that the caller may see.

    Raises:
        errors.BadRequest: the message names neither a collection nor an instance.
    """
    if not scope.collection and not scope.sop_instance_uid:
        raise errors.BadRequest("a scope must name a collection or an instance")
    studies = call_context.caller().visible_studies
    return Scope(scope.collection, scope.series_instance_uid, scope.sop_instance_uid, studies)


def named(stored: StoredInstance) -> NamedUpload:
    """Return the upload of an instance, as events name it."""
    object_key, offset = place_of(stored)
    return NamedUpload(
        series_instance_uid=stored.series_instance_uid,
        sop_instance_uid=stored.sop_instance_uid,
        location=Location(object=object_key, offset=offset),
    )


def state_of(present: Present | None, dead: Dead | None, place: Place) -> index_pb2.UploadState:
    """Return the condition of an upload as a message."""
    if present is not None and present.place == place and not present.deleted:
        return index_pb2.UploadState(condition=index_pb2.UploadState.CONDITION_LIVE, object=present.stored.location.object)
    if dead is None:
        return index_pb2.UploadState(condition=index_pb2.UploadState.CONDITION_UNKNOWN)
    is_swept = dead.kind == Decision.KIND_SWEPT
    condition = index_pb2.UploadState.CONDITION_SWEPT if is_swept else index_pb2.UploadState.CONDITION_DEAD
    return index_pb2.UploadState(condition=condition, object=dead.object)


def _bounded(fragments: Sequence[Fragment]) -> list[list[Fragment]]:
    parts: list[list[Fragment]] = [[]]
    size = 0
    for fragment in fragments:
        if size > MESSAGE_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(fragment)
        size += len(fragment.dicom_json)
    return parts


def _add_fragment(answer: index_pb2.GetMetadataResponse, fragment: Fragment) -> None:
    """Add a fragment to a response in place, because protobuf would copy a separate message."""
    added = answer.fragments.add(dicom_json=fragment.dicom_json, sop_instance_uid=fragment.sop_instance_uid, version=fragment.version)
    if fragment.location:
        added.location.MergeFromString(fragment.location)
