"""Decode a PNG or GIF file into native frames, for a store that transforms them.

The file is written to a temporary directory. A worker writes the decoded frames to a second file there, one after another, and the response
is read from that file. At most one frame and the image file are in memory, and only in the worker.

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
        most_bytes: largest file, in bytes.
        most_decoded_bytes: largest size of all decoded frames of a file together, in bytes.
    """

    def __init__(self, pool: Pool, admission: Admission, most_bytes: int, most_decoded_bytes: int) -> None:
        self._pool = pool
        self._admission = admission
        self._most_bytes = most_bytes
        self._most_decoded_bytes = most_decoded_bytes

    async def decode(self, requests: Requests) -> AsyncGenerator[renderer_pb2.DecodeImageResponse]:
        """Yield the pixel description, then the frames in chunks of at most 1 MiB.

        Raises:
            errors.BadRequest: the file cannot be read.
            errors.PayloadTooLarge: the file or its decoded frames exceed the limits.
            errors.Overloaded: the limit of concurrent requests is reached.
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
        """Write the file to `path` and return its media type.

        A file that is too large is read to its end, so that the client gets the error and not a broken connection.
        """
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
    """Return the Image Pixel Description of decoded frames."""
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
