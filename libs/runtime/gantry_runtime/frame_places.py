"""Where the bytes of a frame lie in the object that holds its instance, from blob's frame table.

Source: PS3.5 §8.1.1 (frames of 1-bit pixels follow each other without padding), §A.4 (fragments).
"""

from typing import NamedTuple

from gantry.blob.v1.blob_pb2 import EncapsulatedFrames, FrameTable, StoredInstance
from gantry_standard import errors


class FramePlace(NamedTuple):
    """The place of one frame.

    Attributes:
        ranges: (offset, length) in bytes, in order; of a fragmented frame one range for each fragment.
        bit_offset: bits of the first byte that belong to the frame before; not 0 only for frames of 1-bit pixels.
        bits: bits of a native frame; 0 for a compressed one.
    """

    ranges: tuple[tuple[int, int], ...]
    bit_offset: int = 0
    bits: int = 0

    @property
    def is_aligned(self) -> bool:
        """Whether the frame begins and ends with a whole byte."""
        return not (self.bit_offset or self.bits & 7)


def locate_frame(stored: StoredInstance, frame_number: int) -> FramePlace:
    """Return where a frame lies.

    Args:
        frame_number: from 1, within the instance.

    Raises:
        NotAcceptable: the stored form does not tell which bytes belong to the frame.
    """
    table, index = stored.layout.frames, frame_number - 1
    if table.WhichOneof("encoding") == "encapsulated":
        return FramePlace(_fragments(table, index, stored.sop_instance_uid))
    frame_bits = table.native.frame_bits
    begin = index * frame_bits
    first, end = begin >> 3, (begin + frame_bits + 7) >> 3
    return FramePlace(((table.native.offset + first, end - first),), begin & 7, frame_bits)


def frames_are_separate(stored: StoredInstance) -> bool:
    """Say whether the stored form tells which bytes belong to which frame; that of native pixel data always does."""
    table = stored.layout.frames
    return table.WhichOneof("encoding") != "encapsulated" or _are_separate(table.encapsulated, table.number_of_frames)


def _are_separate(frames: EncapsulatedFrames, number_of_frames: int) -> bool:
    return bool(frames.first_fragments) or len(frames.fragment_offsets) == number_of_frames


def _fragments(table: FrameTable, index: int, sop_instance_uid: str) -> tuple[tuple[int, int], ...]:
    frames, number_of_fragments = table.encapsulated, len(table.encapsulated.fragment_offsets)
    if not _are_separate(frames, table.number_of_frames):
        raise errors.NotAcceptable(
            f"instance {sop_instance_uid} holds {table.number_of_frames} frames in {number_of_fragments} fragments: "
            "none can be had by itself"
        )
    first_fragments = frames.first_fragments
    if not first_fragments:
        return ((frames.fragment_offsets[index], frames.fragment_lengths[index]),)
    begin = first_fragments[index]
    end = first_fragments[index + 1] if index + 1 < len(first_fragments) else number_of_fragments
    return tuple(zip(frames.fragment_offsets[begin:end], frames.fragment_lengths[begin:end], strict=True))
