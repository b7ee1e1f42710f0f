"""Responses with several items, some of which the renderer makes while they are sent.

If an item cannot be made before the status line is sent, its other transfer syntaxes are tried. If none can be made, the item is left
out and the status is 206. If an item fails after the status line, the connection is closed. The failure is remembered, so the next
request leaves the item out.

Source: PS3.18 §10.4.3.1.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from gantry_gateway.answers import bodies
from gantry_gateway.content.renditions import IMPOSSIBLE, Renditions
from gantry_gateway.http.request import Request
from gantry_gateway.http.responses import Chunk, Immediate, Response
from gantry_standard import errors
from gantry_standard.http import multipart_writer
from gantry_standard.http.negotiation import Plan


@dataclass(frozen=True, slots=True)
class Begin:
    """The beginning of a part.

    Attributes:
        content_type: as sent.
        content_location: URL of the resource.
        length: of the part in bytes; None if it is not known.
    """

    content_type: str
    content_location: str
    length: int | None


Events = AsyncGenerator[Begin | Chunk, None]


@dataclass(frozen=True, slots=True)
class Draft:
    """An item of a response: an instance, or a bulkdata element.

    Attributes:
        sop_instance_uid, version: of the instance.
        plans: the plans to try, best first.
        make: returns the parts of the item for a plan. It raises one of IMPOSSIBLE before the first part if the plan cannot be fulfilled.
    """

    sop_instance_uid: str
    version: int
    plans: tuple[Plan, ...]
    make: Callable[[Plan], Events]


class Assembly:
    """Computes the chunks of a payload from drafts.

    Attributes:
        committed: whether the status line was sent.
        sent: number of parts.
        left_out: number of items that could not be made.
        media_type: of the first part; "" before it.
        reason: why the last item could not be made.
    """

    def __init__(self, renditions: Renditions, drafts: AsyncIterator[Draft]) -> None:
        self._renditions = renditions
        self._drafts = drafts
        self.committed = False
        self.sent = 0
        self.left_out = 0
        self.media_type = self.reason = ""

    async def parts(self, boundary: str) -> AsyncGenerator[Chunk, None]:
        """Yield the chunks of a multipart payload."""
        async for draft in self._drafts:
            async with aclosing(self._attempts(draft)) as events:
                async for event in events:
                    if isinstance(event, Begin):
                        self.media_type = self.media_type or event.content_type.partition(";")[0]
                        head = (boundary, event.content_type, event.content_location, event.length)
                        yield multipart_writer.part_head(*head, first=self.sent == 0)
                        self.sent += 1
                    else:
                        yield event
        yield multipart_writer.closing(boundary, empty=self.sent == 0)

    async def _attempts(self, draft: Draft) -> Events:
        for plan in draft.plans:
            begun = False
            try:
                async with aclosing(draft.make(plan)) as events:
                    async for event in events:
                        begun = True
                        yield event
                return
            except IMPOSSIBLE as error:
                if begun or (self.committed and plan is draft.plans[-1]):
                    self._renditions.remember_refusal(draft.sop_instance_uid, draft.version, plan.transfer_syntax_uid)
                    raise errors.Unavailable(f"instance {draft.sop_instance_uid} could not be finished: {error.message}") from error
                self.reason = error.message
        self.left_out += 1


async def send(request: Request, assembly: Assembly, media_type: str, status: int, etag: str) -> Response:
    """Return the response with the parts of an assembly.

    Args:
        media_type: expected media type of the root part.
        status: 206 if items were already left out.

    Raises:
        errors.NotAcceptable: no item could be made.
    """
    boundary = multipart_writer.new_boundary()
    if request.method == "HEAD":
        # Whether all items can be made is known only after they are made
        return Immediate(status, bodies.multipart_headers(media_type, boundary, etag), [])
    response = await bodies.gathered(status, [], assembly.parts(boundary))
    assembly.committed = True
    if assembly.left_out and not assembly.sent:
        raise errors.NotAcceptable(f"{assembly.reason}; expected another transfer syntax, such as *")
    response.headers = [*bodies.multipart_headers(assembly.media_type or media_type, boundary, etag), *response.headers]
    if assembly.left_out:
        response.status = 206
    return response
