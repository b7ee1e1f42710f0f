"""The frames of a stored instance: their number, their places and their pixel description.

Source: PS3.5 §8.1.1 (frames of 1-bit pixels follow each other without padding); PS3.3 §C.7.6.3.
"""

import numpy as np

from gantry.blob.v1 import blob_pb2
from gantry_runtime.frame_locations import FrameLocation, locate_frame
from gantry_standard import errors
from gantry_standard.dicom.scanned import PixelDescription


def aligned(place: FrameLocation, data: bytes) -> bytes:
    """Return a frame from bit 0 on, padded with zero bits to whole bytes.

    Args:
        data: the bytes of `place.ranges`, one after another.
    """
    if place.is_aligned:
        return data
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    return np.packbits(bits[place.bit_offset : place.bit_offset + place.bits], bitorder="little").tobytes()


def number_of_frames(stored: blob_pb2.StoredInstance) -> int:
    """Return the number of frames; 0 without pixel data."""
    return stored.layout.frames.number_of_frames if stored.layout.HasField("frames") else 0


def locate(stored: blob_pb2.StoredInstance, frame_number: int) -> FrameLocation:
    """Return the place of a frame; numbers start at 1.

    Raises:
        NotAcceptable: the instance has no pixel data, or its frames are not separate in the stored form.
        NotFound: it has fewer frames.
    """
    count = number_of_frames(stored)
    if count == 0:
        raise errors.NotAcceptable(f"instance {stored.sop_instance_uid} has no pixel data")
    if not 1 <= frame_number <= count:
        raise errors.NotFound(f"frame {frame_number} of {stored.sop_instance_uid}: the instance has {count} frames")
    return locate_frame(stored, frame_number)


def describe(stored: blob_pb2.StoredInstance) -> PixelDescription:
    """Return the pixel description of the frames.

    Some writers declare YBR_FULL_422 and write every sample; the length of a frame shows it, and the result is YBR_FULL.
    """
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
