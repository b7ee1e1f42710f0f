"""Where frames lie."""

import pytest

from gantry.blob.v1.blob_pb2 import EncapsulatedFrames, FrameTable, Layout, NativeFrames, StoredInstance
from gantry_runtime.frame_locations import FrameLocation, frames_are_separate, locate_frame
from gantry_standard import errors


def native(frame_bits: int, number_of_frames: int) -> StoredInstance:
    table = FrameTable(number_of_frames=number_of_frames, native=NativeFrames(offset=100, frame_bits=frame_bits))
    return StoredInstance(sop_instance_uid="1.2.3", layout=Layout(frames=table))


def encapsulated(number_of_frames: int, lengths: list[int], first_fragments: list[int]) -> StoredInstance:
    offsets = [100 * index for index in range(1, len(lengths) + 1)]
    frames = EncapsulatedFrames(fragment_offsets=offsets, fragment_lengths=lengths, first_fragments=first_fragments)
    return StoredInstance(
        sop_instance_uid="1.2.3", layout=Layout(frames=FrameTable(number_of_frames=number_of_frames, encapsulated=frames))
    )


@pytest.mark.parametrize(
    ("frame_bits", "frame_number", "expected"),
    [
        (64, 1, FrameLocation(((100, 8),), 0, 64)),
        (64, 3, FrameLocation(((116, 8),), 0, 64)),
        pytest.param(9, 1, FrameLocation(((100, 2),), 0, 9), id="1-bit pixels, first frame"),
        pytest.param(9, 2, FrameLocation(((101, 2),), 1, 9), id="1-bit pixels, second frame begins inside a byte"),
        pytest.param(12, 2, FrameLocation(((101, 2),), 4, 12), id="1-bit pixels, second frame ends with a byte"),
    ],
)
def test_native_frames_follow_each_other(frame_bits: int, frame_number: int, expected: FrameLocation) -> None:
    place = locate_frame(native(frame_bits, 3), frame_number)
    assert place == expected
    assert place.is_aligned == (frame_bits == 64)


def test_fragments_of_a_frame_are_its_ranges() -> None:
    stored = encapsulated(2, [5, 6, 7], [0, 1])
    assert [locate_frame(stored, number) for number in (1, 2)] == [FrameLocation(((100, 5),)), FrameLocation(((200, 6), (300, 7)))]
    assert locate_frame(stored, 1).is_aligned
    assert locate_frame(encapsulated(2, [5, 6], []), 2) == FrameLocation(((200, 6),))


def test_frames_that_are_not_separate_are_not_acceptable() -> None:
    stored = encapsulated(3, [5, 6], [])
    assert not frames_are_separate(stored)
    with pytest.raises(errors.NotAcceptable, match="3 frames in 2 fragments"):
        locate_frame(stored, 1)
    assert frames_are_separate(encapsulated(2, [5, 6], []))
    assert frames_are_separate(encapsulated(1, [5, 6], [0]))
    assert frames_are_separate(native(9, 3))
