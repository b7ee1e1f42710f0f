"""What the retrieve transactions share: records, the reader of stored bytes, the renderer. Installed by main.py."""

from dataclasses import dataclass
from functools import lru_cache

from gantry.index.v1.index_pb2 import InstanceRecord
from gantry_gateway import urls
from gantry_gateway.records import Records
from gantry_gateway.renditions import Renditions
from gantry_gateway.request import Gateway, Request
from gantry_runtime.blob_reader import BlobReader
from gantry_standard.media_types import Resource
from gantry_standard.negotiation import Choice, negotiate, select


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What the retrieve handlers use."""

    records: Records
    reader: BlobReader
    renditions: Renditions


def install(gateway: Gateway, reader: BlobReader) -> Records:
    """Make what retrieve needs and put it into `Gateway.parts` as "reader", "records" and "retrieval".

    Nothing is connected: without `records.listening` every request asks index.
    """
    kept = Records(gateway.index, gateway.settings.record_cache_entries)
    made = Renditions(gateway.renderer, gateway.index, gateway.settings.rendition_cache_bytes)
    gateway.parts["reader"], gateway.parts["records"] = reader, kept
    gateway.parts["retrieval"] = Retrieval(kept, reader, made)
    return kept


def of(request: Request) -> Retrieval:
    """Return what `install` made."""
    found: Retrieval = request.gateway.parts["retrieval"]
    return found


@dataclass(frozen=True, slots=True)
class Target:
    """The study, series or instance of a path; "" for what the path does not name."""

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
        errors.BadRequest: a UID is none.
    """
    return _target(*[request.params.get(name, "") for name in ("study", "series", "instance")])


@lru_cache(4096)
def _target(study: str, series: str, instance: str) -> Target:
    named = {"study": study, "series": series, "instance": instance}
    return Target(*[urls.uid(named, name) for name in named])


async def record_of(request: Request) -> InstanceRecord:
    """Return the record of the instance that the path names. Errors as `Records.get`."""
    found = target(request)
    return await of(request).records.get(found.study, found.series, found.instance)


def choices(request: Request, resource: Resource) -> tuple[Choice, ...]:
    """Return what the client accepts of a resource. Errors as `negotiate`."""
    query_accept = request.parameter("accept") if request.scope["query_string"] else None
    return negotiate(resource, request.accept, query_accept, request.gateway.settings.strict_accept)


def selected(request: Request, resource: Resource) -> Choice:
    """Return the representation that the client wants of metadata, search results or a store response. Errors as `negotiate`."""
    query_accept = request.parameter("accept") if request.scope["query_string"] else None
    return select(resource, request.accept, query_accept, request.gateway.settings.strict_accept)
