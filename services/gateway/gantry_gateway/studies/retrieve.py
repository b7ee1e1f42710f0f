"""Studies service, Retrieve: a study, a series or an instance, in the form that the client prefers.

An instance is sent as stored if the client accepts that. Otherwise the renderer transcodes it while it is sent.

Source: PS3.18 §10.4.1.1.1, Table 10.4.4-1.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from hashlib import blake2b

from gantry.index.v1.index_pb2 import InstanceRecord
from gantry_gateway.answers import bodies, mixed
from gantry_gateway.answers.bodies import Part
from gantry_gateway.answers.mixed import Assembly, Begin, Draft, Events
from gantry_gateway.content import retrieval
from gantry_gateway.content.answer_records import AnswerRecords
from gantry_gateway.content.renditions import IMPOSSIBLE
from gantry_gateway.content.retrieval import Limit, Target
from gantry_gateway.content.sources import Retrieval
from gantry_gateway.content.stored_content import Content, read, served_content
from gantry_gateway.http import responses, urls
from gantry_gateway.http.conditional import entity_tag, not_modified
from gantry_gateway.http.request import Request
from gantry_gateway.http.responses import Chunk, Response
from gantry_gateway.studies import archive, bulkdata
from gantry_gateway.studies.frames import content_type_of
from gantry_standard import errors
from gantry_standard.http.media_types import DICOM, OCTET_STREAM, ZIP, Resource
from gantry_standard.http.negotiation import Choice, Plan, available


async def retrieve_instances(request: Request) -> Response:
    """Answer GET of a study, a series or an instance, in the most preferred form that can be produced."""
    target = retrieval.target(request)
    resource = Resource.INSTANCE if target.instance else Resource.INSTANCES
    refusal: errors.NotAcceptable | None = None
    for send, choices in _forms(retrieval.choices(request, resource)):
        try:
            return await send(request, target, choices)
        except errors.NotAcceptable as error:
            refusal = refusal or error
    raise refusal or errors.NotAcceptable(available(resource))


Form = Callable[[Request, Target, tuple[Choice, ...]], Awaitable[Response]]


def _forms(choices: tuple[Choice, ...]) -> Iterator[tuple[Form, tuple[Choice, ...]]]:
    """Yield the function that sends each accepted form, and the choices of that form; the form of the best choice first."""
    forms: dict[str, Form] = {DICOM: send_files, OCTET_STREAM: bulkdata.send_legacy, ZIP: archive.send_archive}
    choices_by_form = {name: tuple(choice for choice in choices if choice.media_type == name) for name in forms}
    for name in sorted((name for name in forms if choices_by_form[name]), key=lambda name: choices_by_form[name][0].preference):
        yield forms[name], choices_by_form[name]


@dataclass(slots=True)
class _Files:
    """The instances of a response, and how each is sent.

    Attributes:
        plans: for each instance the plans to try, best first; either all single part or all multipart.
        refused: number of instances that cannot be sent in an acceptable form.
        stored_as: transfer syntax of the last instance, sent or refused.
    """

    records: AnswerRecords
    base_url: str
    plans: list[tuple[Plan, ...]] = field(default_factory=list)
    refused: int = 0
    stored_as: str = ""
    etag: str = ""

    @property
    def are_stored(self) -> bool:
        """Whether all instances are sent as stored."""
        return all(plans[0].as_stored for plans in self.plans)

    def url(self, index: int) -> str:
        """Return the URL of an instance."""
        stored = self.records.stored(index)
        return urls.instance(self.base_url, stored.study_instance_uid, stored.series_instance_uid, stored.sop_instance_uid)

    def part(self, index: int) -> Part:
        """Return the part of an instance as stored."""
        return Part(content_type_of(self.plans[index][0]), self.url(index), served_content(self.records.stored(index)))

    def __iter__(self) -> Iterator[Part]:
        """Yield the parts of all instances as stored."""
        return map(self.part, range(len(self.plans)))

    async def relocate(self, index: int) -> Content:
        """Return the present content of an instance from index."""
        return served_content((await self.records.present(index)).stored)


async def send_files(request: Request, target: Target, choices: tuple[Choice, ...]) -> Response:
    """Send PS3.10 files.

    Raises:
        errors.NotAcceptable: no instance can be sent in an acceptable transfer syntax.
    """
    tools = retrieval.of(request)
    files = await _collect(request, tools, target, choices)
    best, status = files.plans[0][0], 206 if files.refused else 200
    if not files.refused and not_modified(request.headers.get("if-none-match", ""), files.etag):
        return bodies.not_modified(files.etag)
    if files.are_stored and best.multipart:
        many = len(files.plans)
        return await bodies.multipart(request, tools.reader, DICOM, files, many, files.etag, files.relocate, status)
    if best.multipart:
        return await mixed.send(request, Assembly(tools.renditions, _drafts(tools, files)), DICOM, status, files.etag)
    if best.as_stored:
        return await bodies.single_part(request, tools.reader, files.part(0), files.etag, files.relocate)
    return await _send_transcoded(request, tools, files)


async def _collect(request: Request, tools: Retrieval, target: Target, choices: tuple[Choice, ...]) -> _Files:
    """Request the instances from index and decide how each is sent."""
    files = _Files(AnswerRecords(tools.records, target.study), request.base_url)
    limit, facts = Limit(request), blake2b(digest_size=16)
    same: dict[tuple[Plan, ...], tuple[tuple[Plan, ...], str]] = {}
    async with aclosing(retrieval.records_of(request, target)) as records:
        async for record in records:
            files.stored_as = record.stored.layout.wire_transfer_syntax_uid
            possible = await _possible(tools, choices, record)
            possible, name = same.get(possible) or same.setdefault(possible, (possible, repr(possible[:1])))
            facts.update(f"{record.version} {record.stored.sop_instance_uid} {name};".encode())
            if not possible:
                files.refused += 1
                continue
            limit.add(served_content(record.stored).length)
            files.records.add(record, whole=not possible[0].as_stored)
            files.plans.append(possible)
    if not files.plans:
        what = available(Resource.INSTANCE if target.instance else Resource.INSTANCES, files.stored_as)
        raise errors.NotAcceptable(f"no transfer syntax that the client accepts can be produced; {what}")
    files.etag = entity_tag(facts.hexdigest(), weak=files.plans[0][0].multipart)
    return files


async def _possible(tools: Retrieval, choices: tuple[Choice, ...], record: InstanceRecord) -> tuple[Plan, ...]:
    """Return the plans without transcoding, or with one that the renderer supports; all single part or all multipart, as the best plan."""
    possible: list[Plan] = []
    for plan in retrieval.plans_of(record.stored, choices):
        if possible and (possible[0].as_stored or plan.multipart is not possible[0].multipart):
            continue
        if plan.as_stored or await tools.renditions.can_send(record, plan.transfer_syntax_uid):
            possible.append(plan)
    return tuple(possible)


async def _drafts(tools: Retrieval, files: _Files) -> AsyncIterator[Draft]:
    for index, plans in enumerate(files.plans):
        stored = files.records.stored(index)

        def make(plan: Plan, index: int = index) -> Events:
            return _file(tools, files, index, plan)

        yield Draft(stored.sop_instance_uid, files.records.version(index), plans, make)


async def _file(tools: Retrieval, files: _Files, index: int, plan: Plan) -> Events:
    """Yield the part of one instance."""
    url = files.url(index)
    if plan.as_stored:
        content = served_content(files.records.stored(index))
        yield Begin(content_type_of(plan), url, content.length)
        async with aclosing(read(tools.reader, [content], lambda _: files.relocate(index))) as stored:
            async for _, chunk in stored:
                yield chunk
        return
    begun = False
    async with aclosing(tools.renditions.instance(await files.records.record(index), plan.transfer_syntax_uid)) as messages:
        async for message in messages:
            if not begun:
                begun = True
                yield Begin(content_type_of(plan), url, None)
            yield message.data


async def _send_transcoded(request: Request, tools: Retrieval, files: _Files) -> Response:
    """Send one instance as a single part, transcoded by the renderer by the first plan that succeeds."""
    reason = ""
    for plan in files.plans[0]:
        if plan.as_stored:
            return await bodies.single_part(request, tools.reader, files.part(0), files.etag, files.relocate)
        content_type, url = content_type_of(plan), files.url(0)
        if request.method == "HEAD":
            return responses.Immediate(200, bodies.single_part_headers(content_type, url, files.etag), [])
        try:
            return await bodies.generated(request, content_type, url, files.etag, _bytes_only(_file(tools, files, 0, plan)))
        except IMPOSSIBLE as error:
            reason = error.message
    raise errors.NotAcceptable(f"{reason}; expected another transfer syntax, such as *")


async def _bytes_only(events: Events) -> AsyncGenerator[Chunk, None]:
    async with aclosing(events):
        async for event in events:
            if not isinstance(event, Begin):
                yield event
