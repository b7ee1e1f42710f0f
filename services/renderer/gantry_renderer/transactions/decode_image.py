"""Native frames out of a PNG or GIF file, for a store that transforms them.

The file is gathered in a temporary directory, a process of the pool writes the frames next to it, one after another, and the answer is read
from there: what is in memory is at most one frame and its file, and that in the process that decodes.

Source: PS3.18 §10.5.2 and its notes.
"""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from gantry.blob.v1 import blob_pb2
from gantry.renderer.v1 import renderer_pb2
from gantry_renderer.picture.image_files import FILE, FRAMES, DecodedImage
from gantry_renderer.workers.pool import Admission, Pool
from gantry_runtime.rpc.channels import CHUNK_BYTES
from gantry_standard import errors

GATHER_BYTES = 1 << 20

Requests = AsyncIterator[renderer_pb2.DecodeImageRequest]


class ImageDecoding:
    """Decodes whole image files.

    Args:
        most_bytes: of a file.
        most_decoded_bytes: of all its frames.
    """

    def __init__(self, pool: Pool, admission: Admission, most_bytes: int, most_decoded_bytes: int) -> None:
        self._pool = pool
        self._admission = admission
        self._most_bytes = most_bytes
        self._most_decoded_bytes = most_decoded_bytes

    async def decode(self, requests: Requests) -> AsyncGenerator[renderer_pb2.DecodeImageResponse]:
        """Yield the description, then the frames.

        Raises:
            errors.BadRequest: the file cannot be read.
            errors.PayloadTooLarge: it, or what is in it, is larger than this renderer takes.
            errors.Overloaded: there is no room for another one.
        """
        with self._admission(), tempfile.TemporaryDirectory(prefix="gantry-image-") as directory:
            media_type = await self._gather(requests, Path(directory) / FILE)
            try:
                image: DecodedImage = await self._pool.run("decode_image", media_type, directory, self._most_decoded_bytes)
            except errors.NotAcceptable:
                raise errors.BadRequest(f"the {media_type} file ends every decoder that reads it") from None
            yield renderer_pb2.DecodeImageResponse(pixel=description(image), number_of_frames=image.number_of_frames)
            with (Path(directory) / FRAMES).open("rb") as frames:
                while data := await asyncio.to_thread(frames.read, CHUNK_BYTES):
                    yield renderer_pb2.DecodeImageResponse(data=data)

    async def _gather(self, requests: Requests, path: Path) -> str:
        """Write the file down; take all of it also when it is too large, so that the client hears why."""
        media_type, size, held = "", 0, bytearray()
        with path.open("wb") as file:
            async for message in requests:
                media_type = media_type or message.media_type
                size += len(message.data)
                if size > self._most_bytes:
                    continue
                held += message.data
                if len(held) >= GATHER_BYTES:
                    await asyncio.to_thread(file.write, bytes(held))
                    held.clear()
            await asyncio.to_thread(file.write, bytes(held))
        if size > self._most_bytes:
            raise errors.PayloadTooLarge(f"the {media_type} file has {size} bytes, expected at most {self._most_bytes}")
        return media_type


def description(image: DecodedImage) -> blob_pb2.PixelDescription:
    """Return what the frames are."""
    return blob_pb2.PixelDescription(
        rows=image.rows,
        columns=image.columns,
        samples_per_pixel=image.samples,
        photometric_interpretation="MONOCHROME2" if image.samples == 1 else "RGB",
        bits_allocated=image.bits,
        bits_stored=image.bits,
        high_bit=image.bits - 1,
        tag="7FE00010",
        vr="OB" if image.bits == 8 else "OW",
    )
