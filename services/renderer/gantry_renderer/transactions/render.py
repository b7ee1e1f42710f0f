"""Render: one frame as an image in a rendered media type (PS3.18 §10.4.1.1.3)."""

from gantry_renderer.codecs import coding
from gantry_renderer.picture.draw import Presentation
from gantry_renderer.stored.frames import locate
from gantry_renderer.transactions.flights import Flights
from gantry_renderer.transactions.instances import AttributesReader, Instance, run_with_frame
from gantry_renderer.workers.pool import Admission, Pool
from gantry_runtime.blob_reader import BlobReader
from gantry_runtime.byte_bounded_cache import ByteBoundedCache
from gantry_runtime.rpc.channels import OPTIONS
from gantry_standard import errors

MAX_IMAGE_BYTES = int(dict(OPTIONS)["grpc.max_send_message_length"]) - 4096
"""One message carries the image."""


class Rendering:
    """Renders frames; identical requests in flight are one job, and results are kept."""

    def __init__(self, reader: BlobReader, pool: Pool, admission: Admission, cache: ByteBoundedCache[bytes]) -> None:
        self._reader = reader
        self._pool = pool
        self._admission = admission
        self._cache = cache
        self._attributes = AttributesReader(reader, pool)
        self._flights = Flights()

    async def render(self, instance: Instance, frame_number: int, presentation: Presentation) -> bytes:
        """Return the image.

        Raises:
            NotFound: the instance has fewer frames.
            NotAcceptable: it has no pixel data, or none that can be decoded or shown.
            BadRequest: the source region lies outside the frame.
            PayloadTooLarge: the image does not fit into a message.
            Overloaded: too many requests are in hand.
        """
        key = ("render", instance.key, frame_number, presentation)
        image = self._cache.get(key)
        if image is None:
            image = await self._flights.share(key, lambda: self._render(instance, frame_number, presentation))
            self._cache.put(key, image)
        if len(image) > MAX_IMAGE_BYTES:
            raise errors.PayloadTooLarge(f"the image has {len(image)} bytes; {MAX_IMAGE_BYTES} are possible, a viewport makes it smaller")
        return image

    async def _render(self, instance: Instance, frame_number: int, presentation: Presentation) -> bytes:
        with self._admission():
            locate(instance.stored, frame_number)
            coding.require_decodable(instance.transfer_syntax_uid, instance.description)
            attributes = (await self._attributes.read(instance)).frame(frame_number)
            image: bytes = await run_with_frame(self._reader, self._pool, "render", instance, frame_number, attributes, presentation)
            return image
