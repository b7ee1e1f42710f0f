"""Functions that the retrieve transactions share: target of a path, negotiation, records and metadata of a target, limits."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache

from gantry.blob.v1.blob_pb2 import StoredInstance
from gantry.index.v1.index_pb2 import GetMetadataRequest, GetMetadataResponse, InstanceRecord, MetadataFragment, Scope
from gantry_gateway.content.records import INDEX_S
from gantry_gateway.content.sources import Retrieval
from gantry_gateway.http import urls
from gantry_gateway.http.request import Request
from gantry_runtime.rpc import rpc_errors
from gantry_standard import errors
from gantry_standard.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, transfer_syntax
from gantry_standard.http import negotiation
from gantry_standard.http.media_types import DICOM, Resource
from gantry_standard.http.negotiation import Choice, Plan, negotiate, select

METADATA_S = 20 * INDEX_S
"""Timeout in seconds for the metadata of a study; a slow client prolongs it."""

LONGEST_VALUE_BYTES = 0xFFFFFFFE
"""Longest value of an element in bytes; longer pixel data can only be sent compressed (§8.7.3.4)."""


def of(request: Request) -> Retrieval:
    """Return the sources of content of this gateway."""
    return request.gateway.retrieval


@dataclass(frozen=True, slots=True)
class Target:
    """The study, series or instance of a path; a UID that the path does not have is ""."""

    study: str
    series: str
    instance: str

    def url(self, base: str) -> str:
        """Return the URL of the resource."""
        if self.instance:
            return urls.instance(base, self.study, self.series, self.instance)
        if self.series:
            return urls.series(base, self.study, self.series)
        return urls.study(base, self.study)


def target(request: Request) -> Target:
    """Return the target of a request.

    Raises:
        errors.BadRequest: a UID is not valid.
    """
    return _target(*[request.params.get(name, "") for name in ("study", "series", "instance")])


@lru_cache(4096)
def _target(study: str, series: str, instance: str) -> Target:
    named = {"study": study, "series": series, "instance": instance}
    return Target(*[urls.uid(named, name) for name in named])


async def record_of(request: Request) -> InstanceRecord:
    """Return the record of the instance of the path. Errors as `Records.get`."""
    scope = target(request)
    return await of(request).records.get(scope.study, scope.series, scope.instance)


def choices(request: Request, resource: Resource) -> tuple[Choice, ...]:
    """Return the acceptable representations of a resource, best first. Errors as `negotiate`."""
    query_accept = request.parameter("accept") if request.scope["query_string"] else None
    return negotiate(resource, request.accept, query_accept, request.gateway.settings.strict_accept)


def selected(request: Request, resource: Resource) -> Choice:
    """Return the best acceptable representation of metadata, search results or a store response. Errors as `select`."""
    query_accept = request.parameter("accept") if request.scope["query_string"] else None
    return select(resource, request.accept, query_accept, request.gateway.settings.strict_accept)


async def records_of(request: Request, target: Target) -> AsyncGenerator[InstanceRecord, None]:
    """Yield the records of a study, a series or an instance. Errors as `Records.get`."""
    tools = of(request)
    if target.instance:
        yield await tools.records.get(target.study, target.series, target.instance)
        return
    async with aclosing(tools.records.scope(target.study, target.series)) as records:
        async for record in records:
            yield record


async def metadata_of(request: Request, target: Target, known_state: bytes = b"") -> AsyncGenerator[GetMetadataResponse, None]:
    """Yield the metadata messages of index for a study, a series or an instance. Errors as `Records.get`.

    Args:
        known_state: state tag of a cached response. If it is still valid, index sends one message with `unchanged`.
    """
    scope = Scope(collection=target.study, series_instance_uid=target.series, sop_instance_uid=target.instance)
    call = request.gateway.index.GetMetadata(GetMetadataRequest(scope=scope, known_state=known_state), timeout=METADATA_S)
    try:
        with rpc_errors.translated("index"):
            async for message in call:
                yield message
    finally:
        call.cancel()


async def fragments_of(request: Request, target: Target) -> AsyncGenerator[list[MetadataFragment], None]:
    """Yield the metadata of a study, a series or an instance, in batches, in the order of `records_of`. Errors as `Records.get`."""
    async with aclosing(metadata_of(request, target)) as answers:
        async for answer in answers:
            yield list(answer.fragments)


def native_bytes(stored: StoredInstance) -> int:
    """Return the number of bytes of all frames, uncompressed; 0 without pixel data."""
    pixel = stored.layout.pixel
    bits = pixel.rows * pixel.columns * (pixel.samples_per_pixel or 1) * pixel.bits_allocated
    return (bits * stored.layout.frames.number_of_frames + 7) >> 3


def plans_of(stored: StoredInstance, choices: tuple[Choice, ...]) -> tuple[Plan, ...]:
    """Return the plans for the file or the pixel data of an instance that fit the choices, best first (§8.7.3.4)."""
    stored_as = stored.layout.wire_transfer_syntax_uid
    if stored_as == EXPLICIT_VR_LITTLE_ENDIAN:
        return negotiation.plans(choices, stored_as)
    if native_bytes(stored) <= LONGEST_VALUE_BYTES:
        return negotiation.plans(choices, stored_as, transfer_syntax(stored_as).is_lossy)
    plans = negotiation.plans(choices, stored_as, may_stay=True)
    return tuple(plan for plan in plans if (plan.media_type, plan.transfer_syntax_uid) != (DICOM, EXPLICIT_VR_LITTLE_ENDIAN))


class Limit:
    """Limits the bytes of a response to `GANTRY_RETRIEVE_MAX_BYTES`."""

    def __init__(self, request: Request) -> None:
        self._most = request.gateway.settings.retrieve_max_bytes
        self._bytes = 0

    @property
    def is_set(self) -> bool:
        """Whether there is a limit."""
        return self._most > 0

    def add(self, size_bytes: int) -> None:
        """Count stored bytes.

        Raises:
            errors.PayloadTooLarge: the response has more than the limit.
        """
        self._bytes += size_bytes
        if self._most and self._bytes > self._most:
            raise errors.PayloadTooLarge(f"the response would have more than {self._most} stored bytes; request less, such as one series")
