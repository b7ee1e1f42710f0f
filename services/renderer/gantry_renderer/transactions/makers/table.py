"""Makers: which class makes the rendering of which kind of content.

To add a kind of content: a module with its maker, and a row in MAKERS. Kinds without a row are not acceptable.
"""

from collections.abc import Callable
from typing import Protocol

from gantry_renderer.picture.draw import Presentation
from gantry_renderer.transactions.makers.image_frames import ImageFrames
from gantry_renderer.transactions.sources import Sources
from gantry_renderer.workers.pool import Pool
from gantry_runtime.blob_reader import BlobReader
from gantry_standard.dicom.content_kinds import ContentKind


class Maker(Protocol):
    """Makes renderings of one kind of content."""

    async def make(self, sources: Sources, frame_number: int, presentation: Presentation) -> bytes:
        """Return a rendering in the media type of `presentation`.

        Args:
            sources: the subject is of the maker's kind.
            frame_number: of the subject, from 1.

        Raises:
            NotFound: the subject has fewer frames.
            NotAcceptable: it cannot be shown, or not in this media type.
            BadRequest: the presentation does not fit to it, or a source that the maker needs is missing.
        """
        ...


MAKERS: dict[ContentKind, Callable[[BlobReader, Pool], Maker]] = {
    ContentKind.IMAGE: ImageFrames,
}
