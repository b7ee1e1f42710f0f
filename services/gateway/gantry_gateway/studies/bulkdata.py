"""Studies service, Retrieve: one bulkdata element by its BulkDataURI, or all bulkdata of an instance, series or study.

A value is sent as stored, little endian. Pixel data is sent uncompressed in one part, or compressed with one part per frame (one part for
a video), as the client prefers. The Content-Location of each part is the BulkDataURI of its element.

Source: PS3.18 §8.7.3.3, §10.4.1.1.5, §10.4.1.1.6, §10.4.3.3.5 and §10.4.3.3.6.
"""

import re
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from hashlib import blake2b

from gantry.blob.v1.blob_pb2 import BulkElement, StoredInstance
from gantry.index.v1.index_pb2 import InstanceRecord
from gantry_gateway.answers import bodies, mixed
from gantry_gateway.answers.bodies import Part
from gantry_gateway.answers.mixed import Assembly, Begin, Draft, Events
from gantry_gateway.content import retrieval
from gantry_gateway.content.answer_records import AnswerRecords
from gantry_gateway.content.renditions import IMPOSSIBLE
from gantry_gateway.content.retrieval import Limit, Target
from gantry_gateway.content.sources import Retrieval
from gantry_gateway.content.stored_content import Content, Relocate, frame_content, read
from gantry_gateway.http import responses, urls
from gantry_gateway.http.conditional import entity_tag, not_modified
from gantry_gateway.http.request import Request
from gantry_gateway.http.responses import Response
from gantry_gateway.studies.frames import FrameSet, content_type_of, frame_events, whole_frames
from gantry_runtime.frame_locations import frames_are_separate
from gantry_standard import errors
from gantry_standard.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN
from gantry_standard.http import negotiation
from gantry_standard.http.media_types import Resource
from gantry_standard.http.negotiation import Choice, Plan, available

PIXEL_DATA_PATHS = frozenset({"7FE00010", "7FE00008", "7FE00009"})
"""Pixel Data, Float Pixel Data and Double Float Pixel Data at the root of the data set, not in icons or private sequences (§10.4.3.3.6)."""

_BULK_PATH = re.compile(r"[0-9A-Fa-f]{8}(?:/[1-9][0-9]{0,9}/[0-9A-Fa-f]{8})*")


async def retrieve_bulkdata(request: Request) -> Response:
    """Answer GET of a BulkDataURI (§10.4.1.1.5): the value field, or the frames of encapsulated pixel data."""
    path = request.params["bulkdata"]
    if not _BULK_PATH.fullmatch(path):
        raise errors.NotFound("there is no such bulkdata; expected tags and item numbers separated by slashes")
    record = await retrieval.record_of(request)
    element = _Element(record, _bulk_element(record.stored, path.upper()))
    return await _send_element(request, element, retrieval.choices(request, element.resource))


async def retrieve_all_bulkdata(request: Request) -> Response:
    """Answer GET of all bulkdata of a study, a series or an instance (§10.4.1.1.5)."""
    return await _send_all(request, retrieval.target(request), None, only_pixels=False)


async def retrieve_pixel_data(request: Request) -> Response:
    """Answer GET of the pixel data of a study, a series or an instance (§10.4.1.1.6)."""
    return await _send_all(request, retrieval.target(request), None, only_pixels=True)


async def send_legacy(request: Request, target: Target, choices: tuple[Choice, ...]) -> Response:
    """Send the bulkdata of a study, a series or an instance that was requested as application/octet-stream (Table 10.4.4-1).

    Raises:
        errors.NotAcceptable: there is no bulkdata, or none that can be sent in an acceptable form.
    """
    try:
        return await _send_all(request, target, choices, only_pixels=False)
    except _NoBulkdata as error:
        raise errors.NotAcceptable(error.message) from error


class _NoBulkdata(errors.NotFound):
    """The study, series or instance has no bulkdata, or no pixel data if only that was requested."""


@dataclass(frozen=True, slots=True)
class _Element:
    """A bulkdata element of an instance."""

    record: InstanceRecord
    element: BulkElement

    @property
    def stored(self) -> StoredInstance:
        """The instance."""
        return self.record.stored

    @property
    def encoding(self) -> str:
        """ "native" or "encapsulated" for pixel data with a frame table; "" for any other value."""
        layout = self.stored.layout
        if self.element.path != layout.pixel.tag or not layout.HasField("frames"):
            return ""
        return str(layout.frames.WhichOneof("encoding"))

    @property
    def resource(self) -> Resource:
        """The kind of resource for negotiation."""
        return {"native": Resource.PIXEL_DATA, "encapsulated": Resource.COMPRESSED_BULKDATA}.get(self.encoding, Resource.BULKDATA)

    @property
    def stored_as(self) -> str:
        """Transfer syntax of the stored value."""
        return self.stored.layout.wire_transfer_syntax_uid if self.encoding == "encapsulated" else EXPLICIT_VR_LITTLE_ENDIAN

    def url(self, base: str) -> str:
        """Return the BulkDataURI, as in the metadata."""
        stored = self.stored
        instance = urls.instance(base, stored.study_instance_uid, stored.series_instance_uid, stored.sop_instance_uid)
        return f"{instance}/bulkdata/{self.element.path}"

    def number_of_parts(self, plan: Plan) -> int:
        """Return the number of parts for a plan: compressed frames are separate parts (§8.7.3.3.2)."""
        is_value = plan.transfer_syntax_uid == EXPLICIT_VR_LITTLE_ENDIAN or not self.encoding
        return 1 if is_value else self.stored.layout.frames.number_of_frames

    def plans(self, choices: tuple[Choice, ...]) -> tuple[Plan, ...]:
        """Return the plans that fit the choices, best first, whether or not the renderer supports them."""
        if self.encoding == "encapsulated":
            possible = retrieval.plans_of(self.stored, choices)
            return possible if frames_are_separate(self.stored) else tuple(plan for plan in possible if not plan.as_stored)
        possible = negotiation.plans(choices, EXPLICIT_VR_LITTLE_ENDIAN)
        return possible if self.encoding else tuple(plan for plan in possible if plan.as_stored)

    def content(self, plan: Plan, index: int) -> Content:
        """Return the content of a part as stored.

        Args:
            index: of the part, from 0.
        """
        if self.number_of_parts(plan) == 1 and self.encoding != "encapsulated":
            value = self.element.value
            return Content(self.stored.location.object, ((value.offset, value.length),), value.length)
        return frame_content(self.stored, index + 1)

    def frames(self, url: str) -> FrameSet:
        """Return all frames, each with the URL of the element."""
        numbers = range(1, self.stored.layout.frames.number_of_frames + 1)
        return FrameSet(self.record, numbers, self.element.path, lambda _: url)


def _bulk_element(stored: StoredInstance, path: str) -> BulkElement:
    for element in stored.layout.bulk:
        if element.path == path:
            return element
    raise errors.NotFound(f"instance {stored.sop_instance_uid} has no bulkdata {path}")


def _elements(record: InstanceRecord, only_pixels: bool) -> dict[int, _Element]:
    """Return index → element of the bulkdata of an instance, or of its pixel data only."""
    bulk = enumerate(record.stored.layout.bulk)
    return {number: _Element(record, element) for number, element in bulk if not only_pixels or element.path in PIXEL_DATA_PATHS}


async def _possible(tools: Retrieval, element: _Element, choices: tuple[Choice, ...]) -> tuple[Plan, ...]:
    """Return the plans without transcoding, or with one that the renderer supports."""
    possible: list[Plan] = []
    for plan in element.plans(choices):
        if not plan.multipart and element.number_of_parts(plan) > 1:
            continue
        if plan.as_stored or await tools.renditions.can_send(element.record, plan.transfer_syntax_uid):
            possible.append(plan)
    return tuple(possible)


async def _send_element(request: Request, element: _Element, choices: tuple[Choice, ...]) -> Response:
    """Send one element in the first form that can be produced."""
    tools, url = retrieval.of(request), element.url(request.base_url)
    Limit(request).add(element.element.value.length)
    reason = "nothing that the client accepts can be produced"
    for plan in await _possible(tools, element, choices):
        facts = (element.record.version, element.element.path, plan.media_type.partition("/")[2], plan.transfer_syntax_uid)
        etag = entity_tag(*facts, weak=plan.multipart)
        if not_modified(request.headers.get("if-none-match", ""), etag):
            return bodies.not_modified(etag, url)
        try:
            send = _send_stored_element if plan.as_stored else _send_transcoded_element
            return await send(request, tools, element, plan, etag)
        except IMPOSSIBLE as error:
            reason = error.message
    raise errors.NotAcceptable(f"{reason}; {available(element.resource, element.stored_as)}")


async def _send_stored_element(request: Request, tools: Retrieval, element: _Element, plan: Plan, etag: str) -> Response:
    url, relocate = element.url(request.base_url), _relocation(tools, element, plan)
    many = element.number_of_parts(plan)
    parts = _StoredParts(content_type_of(plan), url, element, plan)
    if not plan.multipart:
        return await bodies.single_part(request, tools.reader, next(iter(parts)), etag, relocate)
    return await bodies.multipart(request, tools.reader, plan.media_type, parts, many, etag, relocate)


def _relocation(tools: Retrieval, element: _Element, plan: Plan) -> Relocate:
    """Return a function that returns the present content of a part of an element."""
    stored = element.stored

    async def relocate(index: int) -> Content:
        present = await tools.records.ask(stored.study_instance_uid, stored.series_instance_uid, stored.sop_instance_uid)
        if present.stored.dataset_digest != stored.dataset_digest:
            raise errors.Unavailable("the instance was replaced while it was read")
        return _Element(present, _bulk_element(present.stored, element.element.path)).content(plan, index)

    return relocate


@dataclass(frozen=True, slots=True)
class _StoredParts:
    """The parts of an element as stored."""

    content_type: str
    url: str
    element: _Element
    plan: Plan

    def __iter__(self) -> Iterator[Part]:
        """Yield them in order."""
        for index in range(self.element.number_of_parts(self.plan)):
            yield Part(self.content_type, self.url, self.element.content(self.plan, index))


async def _send_transcoded_element(request: Request, tools: Retrieval, element: _Element, plan: Plan, etag: str) -> Response:
    url = element.url(request.base_url)
    if not plan.multipart:
        if request.method == "HEAD":
            return responses.Immediate(200, bodies.single_part_headers(content_type_of(plan), url, etag), [])
        return await bodies.generated(request, content_type_of(plan), url, etag, whole_frames(tools, element.frames(url), plan))

    async def drafts() -> AsyncIterator[Draft]:
        yield _draft(request, tools, element, (plan,))

    return await mixed.send(request, Assembly(tools.renditions, drafts()), plan.media_type, 200, etag)


def _draft(request: Request, tools: Retrieval, element: _Element, plans: tuple[Plan, ...]) -> Draft:
    url = element.url(request.base_url)
    return Draft(element.stored.sop_instance_uid, element.record.version, plans, lambda plan: _element_events(tools, element, plan, url))


async def _element_events(tools: Retrieval, element: _Element, plan: Plan, url: str) -> Events:
    """Yield the parts of one element."""
    if plan.as_stored:
        async with aclosing(_stored_events(tools, element, plan, url)) as stored:
            async for event in stored:
                yield event
    elif plan.transfer_syntax_uid != EXPLICIT_VR_LITTLE_ENDIAN:
        async with aclosing(frame_events(tools, element.frames(url), plan)) as frames:
            async for event in frames:
                yield event
    else:
        begun = False
        async with aclosing(whole_frames(tools, element.frames(url), plan)) as chunks:
            async for chunk in chunks:
                if not begun:
                    begun = True
                    yield Begin(content_type_of(plan), url, None)
                yield chunk


async def _stored_events(tools: Retrieval, element: _Element, plan: Plan, url: str) -> Events:
    contents, relocate = [part.content for part in _StoredParts("", url, element, plan)], _relocation(tools, element, plan)
    begun = 0
    async with aclosing(read(tools.reader, contents, relocate)) as chunks:
        async for index, chunk in chunks:
            while begun <= index:
                yield Begin(content_type_of(plan), url, contents[begun].length)
                begun += 1
            yield chunk
    for content in contents[begun:]:
        yield Begin(content_type_of(plan), url, content.length)


@dataclass(slots=True)
class _Elements:
    """The bulkdata elements of a response, and how each is sent.

    Attributes:
        elements: for each element, the index of its instance, its index among the bulkdata of the instance, and the plans to try.
        first_parts: for each element, the index of its first part in the response.
        refused: number of elements that cannot be sent in an acceptable form.
    """

    request: Request
    records: AnswerRecords
    elements: list[tuple[int, int, tuple[Plan, ...]]] = field(default_factory=list)
    first_parts: list[int] = field(default_factory=list)
    number_of_parts: int = 0
    refused: int = 0
    etag: str = ""

    @property
    def are_stored(self) -> bool:
        """Whether all elements are sent as stored, and all records are whole."""
        return self.records.are_whole and all(plans[0].as_stored for _, _, plans in self.elements)

    def add(self, index: int, number: int, element: _Element, plans: tuple[Plan, ...]) -> None:
        """Append an element.

        Args:
            index: of its instance.
            number: index among the bulkdata of the instance.
        """
        self.elements.append((index, number, plans))
        self.first_parts.append(self.number_of_parts)
        self.number_of_parts += element.number_of_parts(plans[0])

    def __iter__(self) -> Iterator[Part]:
        """Yield the parts of all elements as stored."""
        for index, number, plans in self.elements:
            record = self.records.whole(index)
            element = _Element(record, record.stored.layout.bulk[number])
            yield from _StoredParts(content_type_of(plans[0]), element.url(self.request.base_url), element, plans[0])

    async def relocate(self, part: int) -> Content:
        """Return the present content of a part from index."""
        position = bisect_right(self.first_parts, part) - 1
        index, number, plans = self.elements[position]
        record = await self.records.present(index)
        return _Element(record, record.stored.layout.bulk[number]).content(plans[0], part - self.first_parts[position])

    async def drafts(self, tools: Retrieval) -> AsyncGenerator[Draft, None]:
        """Yield a draft of each element, to be produced while it is sent."""
        for index, number, plans in self.elements:
            record = await self.records.record(index)
            yield _draft(self.request, tools, _Element(record, record.stored.layout.bulk[number]), plans)


async def _send_all(request: Request, target: Target, choices: tuple[Choice, ...] | None, only_pixels: bool) -> Response:
    """Send the bulkdata of a study, a series or an instance. If an instance has one element, send it like its BulkDataURI.

    Args:
        choices: the acceptable representations; None to negotiate them.
        only_pixels: send pixel data only.

    Raises:
        errors.NotFound: there is no such bulkdata.
        errors.NotAcceptable: no element can be sent in an acceptable form.
    """
    if target.instance:
        elements = _elements(await retrieval.record_of(request), only_pixels)
        if len(elements) == 1:
            (element,) = elements.values()
            accepted = choices if choices is not None else retrieval.choices(request, element.resource)
            return await _send_element(request, element, accepted)
    if choices is None:
        choices = retrieval.choices(request, Resource.BULKDATA_ITEMS)
    tools = retrieval.of(request)
    selected = await _collect(request, tools, target, choices, only_pixels)
    status = 206 if selected.refused else 200
    if not selected.refused and not_modified(request.headers.get("if-none-match", ""), selected.etag):
        return bodies.not_modified(selected.etag)
    media_type = selected.elements[0][2][0].media_type
    if selected.are_stored:
        parts = (selected, selected.number_of_parts, selected.etag, selected.relocate, status)
        return await bodies.multipart(request, tools.reader, media_type, *parts)
    return await mixed.send(request, Assembly(tools.renditions, selected.drafts(tools)), media_type, status, selected.etag)


async def _collect(request: Request, tools: Retrieval, target: Target, choices: tuple[Choice, ...], only_pixels: bool) -> _Elements:
    """Request the instances from index and decide how each of their elements is sent."""
    accepted = tuple(choice for choice in choices if choice.multipart)
    selected, limit, facts = _Elements(request, AnswerRecords(tools.records, target.study)), Limit(request), blake2b(digest_size=16)
    same: dict[tuple[Plan, ...], tuple[Plan, ...]] = {}
    async with aclosing(retrieval.records_of(request, target)) as records:
        async for record in records:
            elements = _elements(record, only_pixels)
            if elements:
                selected.records.add(record, whole=True)
            for number, element in elements.items():
                possible = await _possible(tools, element, accepted)
                facts.update(f"{record.version} {record.stored.sop_instance_uid} {element.element.path} {possible[:1]};".encode())
                if not possible:
                    selected.refused += 1
                    continue
                limit.add(element.element.value.length)
                selected.add(len(selected.records) - 1, number, element, same.setdefault(possible, possible))
    if not selected.elements and not selected.refused:
        raise _NoBulkdata(f"there is no {'pixel data' if only_pixels else 'bulkdata'} in it")
    if not selected.elements:
        raise errors.NotAcceptable(f"nothing that the client accepts can be produced; {available(Resource.BULKDATA_ITEMS)}")
    selected.etag = entity_tag(facts.hexdigest(), weak=True)
    return selected
