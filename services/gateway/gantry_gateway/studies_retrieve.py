"""Studies service, Retrieve: instances.

What is stored leaves as stored wherever the client accepts that; anything else is made by the renderer while it is sent.

Source: PS3.18 §10.4.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from hashlib import blake2b

from gantry.index.v1.index_pb2 import InstanceRecord
from gantry_gateway import payload, retrieval, urls
from gantry_gateway.conditional import entity_tag, not_modified
from gantry_gateway.payload import Part, Response
from gantry_gateway.renditions import IMPOSSIBLE
from gantry_gateway.request import Request
from gantry_gateway.retrieval import Retrieval, Target
from gantry_gateway.stored_content import AskAgain, Content, Piece, read, wire_content
from gantry_gateway.studies_frames import content_type_of
from gantry_standard import errors, multipart_writer
from gantry_standard.media_types import DICOM, Resource
from gantry_standard.negotiation import Choice, Plan, available, plans


@dataclass(frozen=True, slots=True)
class _Delivery:
    """How one instance is sent.

    Attributes:
        plans: what may be tried, best first; all single part or all multipart.
        record: kept only where the renderer needs it.
    """

    sop_instance_uid: str
    series_instance_uid: str
    url: str
    plans: tuple[Plan, ...]
    content: Content
    record: InstanceRecord | None

    @property
    def part(self) -> Part:
        return Part(content_type_of(self.plans[0]), self.url, self.content)


async def retrieve_instances(request: Request) -> Response:
    """Answer GET of a study, a series or an instance (§10.4.1.1.1)."""
    target = retrieval.target(request)
    resource = Resource.INSTANCE if target.instance else Resource.INSTANCES
    choices = retrieval.choices(request, resource)
    tools = retrieval.of(request)
    deliveries: list[_Delivery] = []
    facts = blake2b(digest_size=16)
    refused, stored_as = 0, ""
    async for record in _records(tools, target):
        stored_as = record.stored.layout.wire_transfer_syntax_uid
        possible = await _possible(tools, choices, stored_as)
        facts.update(f"{record.version} {record.stored.sop_instance_uid} {possible[:1]};".encode())
        if possible:
            deliveries.append(_delivery(request.base_url, record, possible))
        else:
            refused += 1
    if not deliveries:
        raise errors.NotAcceptable(f"no transfer syntax that the client accepts can be produced; {available(resource, stored_as)}")
    etag = entity_tag(facts.hexdigest(), weak=deliveries[0].plans[0].multipart)
    if not refused and not_modified(request.headers.get("if-none-match", ""), etag):
        return payload.not_modified(etag)
    return await _send_instances(request, deliveries, 206 if refused else 200, etag)


async def _records(tools: Retrieval, target: Target) -> AsyncGenerator[InstanceRecord, None]:
    if target.instance:
        yield await tools.records.get(target.study, target.series, target.instance)
        return
    async for record in tools.records.scope(target.study, target.series):
        yield record


async def _possible(tools: Retrieval, choices: tuple[Choice, ...], stored_as: str) -> tuple[Plan, ...]:
    """Return the plans that need no transcoding or one that the renderer knows; all in the form of the best, single part or multipart."""
    found: list[Plan] = []
    for plan in plans(choices, stored_as):
        if found and (found[0].as_stored or plan.multipart is not found[0].multipart):
            continue
        if plan.as_stored or await tools.renditions.can_transcode(stored_as, plan.transfer_syntax_uid):
            found.append(plan)
    return tuple(found)


def _delivery(base: str, record: InstanceRecord, possible: tuple[Plan, ...]) -> _Delivery:
    stored = record.stored
    study, series, instance = stored.study_instance_uid, stored.series_instance_uid, stored.sop_instance_uid
    url = urls.instance(base, study, series, instance)
    return _Delivery(instance, series, url, possible, wire_content(stored), None if possible[0].as_stored else record)


async def _send_instances(request: Request, deliveries: list[_Delivery], status: int, etag: str) -> Response:
    tools = retrieval.of(request)

    async def ask_again(index: int) -> Content:
        delivery = deliveries[index]
        record = await tools.records.ask(request.params["study"], delivery.series_instance_uid, delivery.sop_instance_uid)
        return wire_content(record.stored)

    if any(not delivery.plans[0].as_stored for delivery in deliveries):
        return await _send_transcoded(tools, deliveries, status, etag, ask_again)
    if not deliveries[0].plans[0].multipart:
        return await payload.single_part(request, tools.reader, deliveries[0].part, etag, ask_again)
    parts = [delivery.part for delivery in deliveries]
    return await payload.multipart(tools.reader, DICOM, parts, len(parts), etag, ask_again, status)


class _Attempt:
    """Turns instances into pieces, some of them by the renderer.

    Until the status line is sent (`committed`), an instance that turns out impossible is tried in its next transfer syntax and then left
    out; after it, it breaks the answer off.
    """

    def __init__(self, tools: Retrieval, deliveries: Sequence[_Delivery], ask_again: AskAgain) -> None:
        self._tools = tools
        self._deliveries = deliveries
        self._ask_again = ask_again
        self.committed = False
        self.sent = 0
        self.left_out = 0
        self.content_type = ""
        self.reason = ""

    async def parts(self, boundary: str) -> AsyncGenerator[Piece, None]:
        """Yield a multipart payload."""
        for index in range(len(self._deliveries)):
            async with aclosing(self.instance(index, boundary)) as pieces:
                async for piece in pieces:
                    yield piece
        yield multipart_writer.closing(boundary, empty=self.sent == 0)

    async def instance(self, index: int, boundary: str = "") -> AsyncGenerator[Piece, None]:
        """Yield one instance in the first of its plans that works; with the head of its part where there is a boundary."""
        delivery = self._deliveries[index]
        for plan in delivery.plans:
            begun = False
            try:
                async with aclosing(self._pieces(index, plan)) as pieces:
                    async for piece in pieces:
                        if not begun:
                            begun, self.content_type = True, content_type_of(plan)
                            if boundary:
                                length = delivery.content.length if plan.as_stored else None
                                yield multipart_writer.part_head(boundary, self.content_type, delivery.url, length, self.sent == 0)
                            self.sent += 1
                        yield piece
                return
            except IMPOSSIBLE as error:
                if begun or self.committed:
                    raise errors.Unavailable(f"instance {delivery.sop_instance_uid} could not be finished: {error.message}") from error
                self.reason = error.message
        self.left_out += 1

    async def _pieces(self, index: int, plan: Plan) -> AsyncGenerator[Piece, None]:
        delivery = self._deliveries[index]
        if plan.as_stored or delivery.record is None:
            async with aclosing(read(self._tools.reader, [delivery.content], lambda _: self._ask_again(index))) as stored:
                async for _, piece in stored:
                    yield piece
            return
        async with aclosing(self._tools.renditions.instance(delivery.record, plan.transfer_syntax_uid)) as messages:
            async for message in messages:
                yield message.data


async def _send_transcoded(tools: Retrieval, deliveries: list[_Delivery], status: int, etag: str, ask_again: AskAgain) -> Response:
    """Send instances of which the renderer makes some. Those that turn out impossible before the status line are left out: 206."""
    attempt = _Attempt(tools, deliveries, ask_again)
    if deliveries[0].plans[0].multipart:
        boundary = multipart_writer.new_boundary()
        response = await payload.gathered(status, payload.multipart_headers(DICOM, boundary, etag), attempt.parts(boundary))
    else:
        response = await payload.gathered(status, [], attempt.instance(0))
        fields = payload.headers(content_type=attempt.content_type, content_location=deliveries[0].url, etag=etag, vary="Accept")
        response.headers = [*fields, *response.headers]
    attempt.committed = True
    if attempt.sent == 0:
        raise errors.NotAcceptable(f"{attempt.reason}; expected another transfer syntax, such as *")
    if attempt.left_out:
        response.status = 206
    return response
