"""Render: one frame as an image in a rendered media type (PS3.18 §10.4.1.1.3)."""

from collections.abc import Hashable

from gantry_renderer.codecs import coding
from gantry_renderer.picture.draw import Presentation
from gantry_renderer.stored.frames import locate
from gantry_renderer.transactions.flights import Flights
from gantry_renderer.transactions.makers.table import MAKERS
from gantry_renderer.transactions.sources import Sources
from gantry_renderer.workers.pool import Admission, Pool
from gantry_runtime.blob_reader import BlobReader
from gantry_runtime.byte_bounded_cache import ByteBoundedCache
from gantry_runtime.rpc.channels import OPTIONS
from gantry_standard import errors

MAX_IMAGE_BYTES = int(dict(OPTIONS)["grpc.max_send_message_length"]) - 4096
"""One message carries the image."""


class Rendering:
    """Has the maker of the subject's kind of content render it; identical requests share one job, and results are cached."""

    def __init__(self, reader: BlobReader, pool: Pool, admission: Admission, cache: ByteBoundedCache[bytes]) -> None:
        self._makers = {kind: maker(reader, pool) for kind, maker in MAKERS.items()}
        self._admission = admission
        self._cache = cache
        self._flights = Flights()

    async def render(self, sources: Sources, frame_number: int, presentation: Presentation) -> bytes:
        """Return the image.

        Raises:
            NotFound: the subject has fewer frames.
            NotAcceptable: it has no pixel data, or none that can be decoded or shown.
            BadRequest: the source region lies outside the frame.
            PayloadTooLarge: the image does not fit into a message.
            Overloaded: the limit of requests is reached.
        """
        key = ("render", sources.key, frame_number, presentation)
        image = self._cache.get(key)
        if image is None:
            image = await self._flights.share(key, lambda: self._render(key, sources, frame_number, presentation))
        if len(image) > MAX_IMAGE_BYTES:
            raise errors.PayloadTooLarge(f"the image has {len(image)} bytes; {MAX_IMAGE_BYTES} are possible, a viewport makes it smaller")
        return image

    async def _render(self, key: Hashable, sources: Sources, frame_number: int, presentation: Presentation) -> bytes:
        maker = self._makers.get(sources.kind)
        if maker is None:
            raise _no_rendering(sources, frame_number)
        with self._admission():
            image = await maker.make(sources, frame_number, presentation)
        # Cached before the work ends: a request that comes then finds either the running work or the image
        self._cache.put(key, image)
        return image


def _no_rendering(sources: Sources, frame_number: int) -> errors.NotAcceptable:
    """Return why a kind of content without a maker has no rendering.

    Raises:
        NotAcceptable: it has no pixel data, or none that can be decoded.
        NotFound: it has fewer frames.
    """
    subject = sources.subject
    locate(subject.stored, frame_number)
    coding.require_decodable(subject.transfer_syntax_uid, subject.description)
    return errors.NotAcceptable(f"instance {subject.name} is of the kind {sources.kind.value}, of which no rendering is made")
