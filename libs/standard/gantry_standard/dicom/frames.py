"""Locate frames in Pixel Data.

Encapsulated Pixel Data has up to three sources that tell which fragments form a frame: the Extended Offset Table, the Basic Offset
Table, and the fragments themselves, whose first bytes show where a codestream begins. A table that contradicts the
fragments is ignored.

Source: PS3.5 §8.2, §A.4 and Annex D; PS3.3 §C.7.6.3; PS3.18 §10.4.1.1.6.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gantry_standard.dicom.scanned import EncapsulatedFrames, FrameTable, NativeFrames, Origin, PixelDescription, Span
from gantry_standard.dicom.transfer_syntaxes import Codestream

# Photometric Interpretation to samples per two pixels, where chrominance is shared between pixels (PS3.3 §C.7.6.3.1.2).
_SAMPLES_PER_TWO_PIXELS = {"YBR_FULL_422": 4, "YBR_PARTIAL_422": 4, "YBR_PARTIAL_420": 3}
_BITS_BY_TAG = {"7FE00008": 32, "7FE00009": 64}
_ITEM_HEADER_BYTES = 8


@dataclass(frozen=True, slots=True)
class FragmentTable:
    """The fragments and offset tables of encapsulated Pixel Data.

    Attributes:
        offsets, lengths: bytes, item headers left out.
        starts: for each fragment 1 if it starts a codestream, else 0.
        basic_offset_table: value of the first item.
        extended_offset_table: value of (7FE0,0001).
    """

    origin: Origin
    offsets: Sequence[int]
    lengths: Sequence[int]
    starts: bytes | bytearray
    basic_offset_table: bytes = b""
    extended_offset_table: bytes = b""


def is_codestream_start(codestream: Codestream, head: bytes) -> bool:
    """Return whether the first bytes of a fragment start a codestream.

    Args:
        head: at least 12 bytes if the fragment has them.
    """
    if codestream is Codestream.JPEG:
        return head[:3] == b"\xff\xd8\xff"
    if codestream is Codestream.JPEG_2000:
        return head[:4] == b"\xff\x4f\xff\x51" or head[:12] == b"\0\0\0\x0cjP  \r\n\x87\n"
    if codestream is Codestream.JPEG_XL:
        return head[:2] == b"\xff\x0a" or head[:12] == b"\0\0\0\x0cJXL \r\n\x87\n"
    if codestream is Codestream.RLE and len(head) >= 8:
        segments, first_offset = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:8], "little")
        return 1 <= segments <= 15 and first_offset == 64
    return False


def locate_native_frames(span: Span, pixel: PixelDescription, number_of_frames: int) -> FrameTable | None:
    """Divide native pixel data into frames.

    Args:
        span: value of the pixel element.
        number_of_frames: (0028,0008); pass 1 if it is absent.

    Returns:
        The complete frames, at most `number_of_frames`; None if there is no complete frame, or if Image Pixel Description does not give the
        size of a frame.
    """
    bits = _BITS_BY_TAG.get(pixel.tag, pixel.bits_allocated)
    pixels = pixel.rows * pixel.columns
    frame_bits = pixels * (pixel.samples_per_pixel or 1) * bits
    if frame_bits == 0:
        return None
    per_two_pixels = _SAMPLES_PER_TWO_PIXELS.get(pixel.photometric_interpretation)
    # Some writers name 422 but write every sample; the length shows it.
    if per_two_pixels and pixel.samples_per_pixel == 3 and span.length * 8 < frame_bits * number_of_frames:
        frame_bits = pixels * per_two_pixels * bits // 2
    whole_frames = min(number_of_frames, span.length * 8 // frame_bits)
    return FrameTable(whole_frames, NativeFrames(span, frame_bits)) if whole_frames else None


def locate_encapsulated_frames(fragments: FragmentTable, number_of_frames: int, *, is_video: bool = False) -> FrameTable | None:
    """Find the fragments of each frame.

    A video is one bit stream: one entry with all fragments, whatever Number of Frames is. If there are fewer fragments than frames, the
    table ends at the last fragment.

    Args:
        number_of_frames: (0028,0008); pass 1 if it is absent.

    Returns:
        None if there are no fragments, or if it is unknown which fragments form a frame.
    """
    count = len(fragments.offsets)
    if not count:
        return None
    first_fragments = (0,) if is_video else _first_fragments(fragments, count, number_of_frames)
    if first_fragments is None:
        return None
    is_one_to_one = len(first_fragments) == count
    return FrameTable(
        len(first_fragments),
        EncapsulatedFrames(
            fragments.origin,
            tuple(fragments.offsets),
            tuple(fragments.lengths),
            () if is_one_to_one else tuple(first_fragments),
        ),
    )


def _first_fragments(fragments: FragmentTable, count: int, number_of_frames: int) -> Sequence[int] | None:
    starts = [index for index, is_start in enumerate(fragments.starts) if is_start]
    candidates = (
        _from_table(fragments, fragments.extended_offset_table, 8),
        _from_table(fragments, fragments.basic_offset_table, 4),
        range(count) if count == number_of_frames else None,
        starts if starts and starts[0] == 0 else None,
    )
    for candidate in candidates:
        if candidate is not None and len(candidate) == number_of_frames and _agrees(candidate, starts, number_of_frames):
            return candidate
    if number_of_frames == 1:
        return (0,)
    if count == number_of_frames:
        return range(count)
    # Number of Frames is wrong. Accept one codestream per fragment, or a consistent table.
    if len(starts) == count or count < number_of_frames:
        return range(count)
    tables = candidates[:2]
    return next((table for table in tables if table is not None and _agrees(table, starts, len(table))), None)


def _agrees(first_fragments: Sequence[int], starts: list[int], number_of_frames: int) -> bool:
    """Return whether frames begin at codestreams; True if the starts are unknown (`starts` has another length)."""
    return len(starts) != number_of_frames or list(first_fragments) == starts


def _from_table(fragments: FragmentTable, table: bytes, size: int) -> Sequence[int] | None:
    """Return the first fragment of each entry of an offset table; None if an entry does not point at a fragment, or points backwards."""
    if not table or len(table) % size:
        return None
    origin = fragments.offsets[0] - _ITEM_HEADER_BYTES
    index_of = {offset - _ITEM_HEADER_BYTES - origin: index for index, offset in enumerate(fragments.offsets)}
    fragment_indices = [index_of.get(entry, -1) for entry in struct.unpack(f"<{len(table) // size}{'Q' if size == 8 else 'I'}", table)]
    is_ascending = all(before < after for before, after in pairwise(fragment_indices))
    return fragment_indices if fragment_indices[0] == 0 and is_ascending else None
