"""Renderings of image frames.

Source: PS3.18 §10.4.1.1.3, §8.3.5.1.
"""

from gantry_renderer.codecs import coding
from gantry_renderer.picture.draw import Presentation
from gantry_renderer.stored.frames import locate
from gantry_renderer.transactions.instances import AttributesReader, run_with_frame
from gantry_renderer.transactions.sources import Sources
from gantry_renderer.workers.pool import Pool
from gantry_runtime.blob_reader import BlobReader


class ImageFrames:
    """Makes an image of one frame of the subject; it uses no other source."""

    def __init__(self, reader: BlobReader, pool: Pool) -> None:
        self._reader = reader
        self._pool = pool
        self._attributes = AttributesReader(reader, pool)

    async def make(self, sources: Sources, frame_number: int, presentation: Presentation) -> bytes:
        """Return the image; as `Maker.make`."""
        instance = sources.subject
        locate(instance.stored, frame_number)
        coding.require_decodable(instance.transfer_syntax_uid, instance.description)
        attributes = (await self._attributes.read(instance)).frame(frame_number)
        image: bytes = await run_with_frame(self._reader, self._pool, "render", instance, frame_number, attributes, presentation)
        return image
