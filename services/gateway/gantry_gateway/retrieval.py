"""What the retrieve transactions share: records, the reader of stored bytes, the renderer. Opened in main.py."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gantry.index.v1.index_pb2 import InstanceRecord
from gantry_gateway import records, urls
from gantry_gateway.records import Records
from gantry_gateway.renditions import Renditions
from gantry_gateway.request import Gateway, Request
from gantry_runtime.blob_reader import BlobReader
from gantry_standard import errors
from gantry_standard.media_types import Resource
from gantry_standard.negotiation import Choice, negotiate

PART = "retrieval"
"""Name under which it stands in `Gateway.parts`."""

_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What the retrieve handlers use."""

    records: Records
    reader: BlobReader
    renditions: Renditions


@asynccontextmanager
async def opened(gateway: Gateway, reader: BlobReader) -> AsyncIterator[Retrieval]:
    """Open what retrieve needs, and close it with the context."""
    kept = Records(gateway.index, gateway.settings.record_cache_entries)
    retrieval = Retrieval(kept, reader, Renditions(gateway.renderer, gateway.index))
    gateway.parts[PART] = retrieval
    async with records.listening(kept, gateway.nats):
        yield retrieval


def of(request: Request) -> Retrieval:
    """Return what `opened` made."""
    found: Retrieval = request.gateway.parts[PART]
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
        errors.NotFound: a UID is none: digits and dots, 1 to 64 characters.
    """
    found = [request.params.get(name, "") for name in ("study", "series", "instance")]
    for name, uid in zip(("study", "series", "instance"), found, strict=True):
        if name in request.params and not _UID.fullmatch(uid):
            raise errors.NotFound(f"there is no {name} of this name; expected a UID of digits and dots, at most 64 characters")
    return Target(*found)


async def record_of(request: Request) -> InstanceRecord:
    """Return the record of the instance that the path names. Errors as `Records.get`."""
    found = target(request)
    return await of(request).records.get(found.study, found.series, found.instance)


def choices(request: Request, resource: Resource) -> tuple[Choice, ...]:
    """Return what the client accepts of a resource. Errors as `negotiate`."""
    query_accept = request.parameter("accept") if request.scope["query_string"] else None
    return negotiate(resource, request.accept, query_accept, request.gateway.settings.strict_accept)
