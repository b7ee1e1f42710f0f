"""Finds the bytes of a frame in the object that holds its instance, with the frame table that blob wrote.

Source: PS3.5 §8.1.1 (frames of 1-bit pixels follow each other without padding), §A.4 (fragments).
"""

from typing import NamedTuple

from gantry.blob.v1.blob_pb2 import EncapsulatedFrames, FrameTable, StoredInstance
from gantry_standard import errors


class FrameLocation(NamedTuple):
    """The location of one frame within an object.

    Attributes:
        ranges: (offset, length) in bytes, in order. A frame in several fragments has one range per fragment.
        bit_offset: number of bits in the first byte that belong to the previous frame, 0 to 7. Only frames of 1-bit pixels have other
            values than 0.
        bits: length of a native frame in bits; 0 for a compressed frame.
    """

    ranges: tuple[tuple[int, int], ...]
    bit_offset: int = 0
    bits: int = 0

    @property
    def is_aligned(self) -> bool:
        """Whether the frame begins and ends at byte boundaries."""
        return not (self.bit_offset or self.bits & 7)


def locate_frame(stored: StoredInstance, frame_number: int) -> FrameLocation:
    """Return the location of a frame.

    Args:
        stored: the instance, with its frame table.
        frame_number: counts from 1; at most the number of frames of the instance.

    Raises:
        NotAcceptable: the Pixel Data does not say which fragments belong to which frame.
    """
    table, index = stored.layout.frames, frame_number - 1
    if table.WhichOneof("encoding") == "encapsulated":
        return FrameLocation(_fragments(table, index, stored.sop_instance_uid))
    frame_bits = table.native.frame_bits
    begin = index * frame_bits
    first, end = begin >> 3, (begin + frame_bits + 7) >> 3
    return FrameLocation(((table.native.offset + first, end - first),), begin & 7, frame_bits)


def frames_are_separate(stored: StoredInstance) -> bool:
    """Return whether the bytes of each frame are known. For native pixel data they always are."""
    table = stored.layout.frames
    return table.WhichOneof("encoding") != "encapsulated" or _are_separate(table.encapsulated, table.number_of_frames)


def _are_separate(frames: EncapsulatedFrames, number_of_frames: int) -> bool:
    return bool(frames.first_fragments) or len(frames.fragment_offsets) == number_of_frames


def _fragments(table: FrameTable, index: int, sop_instance_uid: str) -> tuple[tuple[int, int], ...]:
    frames, number_of_fragments = table.encapsulated, len(table.encapsulated.fragment_offsets)
    if not _are_separate(frames, table.number_of_frames):
        raise errors.NotAcceptable(
            f"instance {sop_instance_uid} has {table.number_of_frames} frames in {number_of_fragments} fragments and no offset table "
            "that says which fragments belong to which frame; single frames cannot be retrieved"
        )
    first_fragments = frames.first_fragments
    if not first_fragments:
        return ((frames.fragment_offsets[index], frames.fragment_lengths[index]),)
    begin = first_fragments[index]
    end = first_fragments[index + 1] if index + 1 < len(first_fragments) else number_of_fragments
    return tuple(zip(frames.fragment_offsets[begin:end], frames.fragment_lengths[begin:end], strict=True))
