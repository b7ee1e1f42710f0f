"""Where the bytes of a frame lie, from the frame table of blob.

Source: PS3.5 §8.1.1 (1-bit frames follow each other without padding), §A.4 (fragments).
"""

from dataclasses import dataclass

import numpy as np

from gantry.blob.v1 import blob_pb2
from gantry_standard import errors
from gantry_standard.dicom.scanned import PixelDescription


@dataclass(frozen=True, slots=True)
class FramePlace:
    """Ranges (offset, length) of one frame in its object.

    Attributes:
        bit_offset: bits of the first byte that belong to the frame before; not 0 only for 1-bit pixels.
        bits: bits of the frame; 0 for a compressed one.
    """

    ranges: tuple[tuple[int, int], ...]
    bit_offset: int = 0
    bits: int = 0

    @property
    def is_aligned(self) -> bool:
        """Whether the frame begins and ends with a byte."""
        return self.bits % 8 == 0 and self.bit_offset == 0

    def aligned(self, data: bytes) -> bytes:
        """Return the frame from bit 0 on, padded with zero bits to whole bytes."""
        if self.is_aligned:
            return data
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        return np.packbits(bits[self.bit_offset : self.bit_offset + self.bits], bitorder="little").tobytes()


def number_of_frames(stored: blob_pb2.StoredInstance) -> int:
    """Return the number of frames; 0 without pixel data."""
    return stored.layout.frames.number_of_frames if stored.layout.HasField("frames") else 0


def locate(stored: blob_pb2.StoredInstance, frame_number: int) -> FramePlace:
    """Return where a frame lies; numbers start at 1.

    Raises:
        NotAcceptable: the instance has no pixel data.
        NotFound: it has fewer frames.
    """
    count = number_of_frames(stored)
    if count == 0:
        raise errors.NotAcceptable(f"instance {stored.sop_instance_uid} has no pixel data")
    if not 1 <= frame_number <= count:
        raise errors.NotFound(f"frame {frame_number} of {stored.sop_instance_uid}: the instance has {count} frames")
    table = stored.layout.frames
    index = frame_number - 1
    if table.WhichOneof("encoding") == "native":
        return _native(table.native, index)
    return _encapsulated(table.encapsulated, index)


def _native(frames: blob_pb2.NativeFrames, index: int) -> FramePlace:
    begin = index * frames.frame_bits
    end = begin + frames.frame_bits
    return FramePlace(((frames.offset + begin // 8, (end + 7) // 8 - begin // 8),), begin % 8, frames.frame_bits)


def _encapsulated(frames: blob_pb2.EncapsulatedFrames, index: int) -> FramePlace:
    first = frames.first_fragments
    begin = first[index] if first else index
    end = first[index + 1] if first and index + 1 < len(first) else (len(frames.fragment_offsets) if first else index + 1)
    return FramePlace(tuple(zip(frames.fragment_offsets[begin:end], frames.fragment_lengths[begin:end], strict=True)))


def describe(stored: blob_pb2.StoredInstance) -> PixelDescription:
    """Return the image pixel description of an instance, as its frames are: some writers say YBR_FULL_422 and write every sample."""
    pixel, layout = stored.layout.pixel, stored.layout
    interpretation = pixel.photometric_interpretation
    whole_bits = pixel.rows * pixel.columns * 3 * pixel.bits_allocated
    if interpretation == "YBR_FULL_422" and layout.HasField("frames") and layout.frames.native.frame_bits == whole_bits:
        interpretation = "YBR_FULL"
    return PixelDescription(
        rows=pixel.rows,
        columns=pixel.columns,
        samples_per_pixel=pixel.samples_per_pixel or 1,
        photometric_interpretation=interpretation,
        planar_configuration=pixel.planar_configuration,
        bits_allocated=pixel.bits_allocated,
        bits_stored=pixel.bits_stored or pixel.bits_allocated,
        high_bit=pixel.high_bit or max(0, (pixel.bits_stored or pixel.bits_allocated) - 1),
        pixel_representation=pixel.pixel_representation,
        tag=pixel.tag,
        vr=pixel.vr,
    )
