"""One small image for each kind of pixel data in PS3.3 §C.7.6.3: its values, and the transfer syntaxes that encode it without loss.

The transfer syntaxes are taken from PS3.5 §8.2, not from the code under test.
"""

import zlib
from dataclasses import dataclass, field
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragmented_frames
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from tests.support.instances import MULTI_FRAME_BYTE_SC, general

LE = "1.2.840.10008.1.2.1"
DEFLATED_FRAME, RLE = "1.2.840.10008.1.2.8.1", "1.2.840.10008.1.2.5"
BASELINE, EXTENDED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
PROCESS_14, SV1 = "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"
JPEG_LS, NEAR = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"
J2K, J2K_LOSSY = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"
HTJ2K, RPCL, HTJ2K_LOSSY = "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"
JPEG_XL, RECOMPRESSED, JPEG_XL_LOSSY = "1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.112"

LOSSLESS = frozenset((DEFLATED_FRAME, RLE, PROCESS_14, SV1, JPEG_LS, J2K, HTJ2K, RPCL, JPEG_XL))
LOSSY = frozenset((BASELINE, EXTENDED, NEAR, J2K_LOSSY, HTJ2K_LOSSY, JPEG_XL_LOSSY))

Values = NDArray[Any]


@dataclass(frozen=True)
class Kind:
    """A kind of pixel data.

    Attributes:
        values: shape (frames, rows, columns) or (frames, rows, columns, 3), of the type that the attributes say.
        lossless: transfer syntaxes that hold it without loss.
        interpretation: Photometric Interpretation; `decoded` once a codec has it.
        attributes: that are not those of the values' type.
        keyword: of the pixel element.
    """

    values: Values
    lossless: frozenset[str]
    interpretation: str = "MONOCHROME2"
    decoded: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    keyword: str = "PixelData"

    @property
    def after(self) -> str:
        """Photometric Interpretation of decoded pixels."""
        return self.decoded or self.interpretation

    def stored_bits(self, values: Values) -> Values:
        """Return the Bits Stored lowest bits as unsigned values: pydicom drops the other bits."""
        if values.dtype.kind != "u" or "BitsStored" not in self.attributes:
            return values
        return values & values.dtype.type((1 << self.attributes["BitsStored"]) - 1)


def _noise(low: int, high: int, dtype: str, *shape: int) -> Values:
    return np.random.default_rng(7).integers(low, high, shape, endpoint=True).astype(dtype)


_COLOR = _noise(0, 255, "u1", 2, 5, 8, 3)
_PAIRED = np.repeat(_noise(0, 255, "u1", 2, 5, 4, 3), 2, axis=2)
_PAIRED[..., 0] = _COLOR[..., 0]
_UNSIGNED_ONLY = LOSSLESS - {JPEG_XL}

KINDS: dict[str, Kind] = {
    "8 bits": Kind(_noise(0, 255, "u1", 3, 7, 9), LOSSLESS),
    "8 bits, inverse": Kind(_noise(0, 255, "u1", 1, 8, 8), LOSSLESS, "MONOCHROME1"),
    "8 bits, signed": Kind(_noise(-128, 127, "i1", 2, 7, 9), _UNSIGNED_ONLY),
    "8 of 16 bits": Kind(_noise(0, 255, "<u2", 1, 7, 9), LOSSLESS, attributes={"BitsStored": 8}),
    "10 of 16 bits": Kind(_noise(0, 1023, "<u2", 1, 7, 9), LOSSLESS, attributes={"BitsStored": 10}),
    "12 of 16 bits": Kind(_noise(0, 4095, "<u2", 2, 17, 70), LOSSLESS, attributes={"BitsStored": 12}),
    "12 of 16 bits, signed": Kind(_noise(-2048, 2047, "<i2", 2, 9, 11), _UNSIGNED_ONLY, attributes={"BitsStored": 12}),
    "12 of 16 bits, more in the others": Kind(_noise(0, 65535, "<u2", 2, 9, 11), LOSSLESS, attributes={"BitsStored": 12}),
    "16 bits": Kind(_noise(0, 65535, "<u2", 1, 9, 11), LOSSLESS),
    "16 bits, signed": Kind(_noise(-32768, 32767, "<i2", 1, 9, 11), _UNSIGNED_ONLY),
    "32 bits": Kind(_noise(0, 2**32 - 1, "<u4", 2, 6, 5), frozenset((RLE, DEFLATED_FRAME))),
    "32 bits, signed": Kind(_noise(-(2**31), 2**31 - 1, "<i4", 1, 6, 5), frozenset((RLE, DEFLATED_FRAME))),
    "1 bit": Kind(_noise(0, 1, "u1", 3, 5, 7), frozenset((DEFLATED_FRAME,)), attributes={"BitsAllocated": 1, "BitsStored": 1}),
    "palette": Kind(_noise(0, 255, "u1", 2, 6, 8), _UNSIGNED_ONLY, "PALETTE COLOR"),
    "colour by pixel": Kind(_COLOR, LOSSLESS, "RGB"),
    "colour by plane": Kind(_COLOR, LOSSLESS, "RGB", attributes={"PlanarConfiguration": 1}),
    "colour of 16 bits": Kind(_noise(0, 65535, "<u2", 1, 6, 8, 3), LOSSLESS, "RGB"),
    "luminance and chrominance": Kind(_COLOR, _UNSIGNED_ONLY, "YBR_FULL"),
    "chrominance of two pixels": Kind(_PAIRED, _UNSIGNED_ONLY, "YBR_FULL_422", "YBR_FULL"),
    "float": Kind(np.linspace(-1, 1, 60, dtype="<f4").reshape(1, 6, 10), frozenset(), keyword="FloatPixelData"),
    "double float": Kind(np.linspace(-1, 1, 60, dtype="<f8").reshape(1, 6, 10), frozenset(), keyword="DoubleFloatPixelData"),
}


def data_set(kind: Kind) -> Dataset:
    """Return an instance with these pixels, native."""
    values = kind.values
    made = general(MULTI_FRAME_BYTE_SC, "OT", ImageType=["ORIGINAL", "PRIMARY"])
    made.NumberOfFrames, made.Rows, made.Columns = values.shape[:3]
    made.SamplesPerPixel = 3 if values.ndim == 4 else 1
    made.PhotometricInterpretation = kind.interpretation
    if kind.keyword == "PixelData":
        made.BitsAllocated = made.BitsStored = 8 * values.dtype.itemsize
        made.PixelRepresentation = int(values.dtype.kind == "i")
        if values.ndim == 4:
            made.PlanarConfiguration = 0
    for keyword, value in kind.attributes.items():
        setattr(made, keyword, value)
    if kind.keyword == "PixelData":
        made.HighBit = made.BitsStored - 1
    if kind.interpretation == "PALETTE COLOR":
        for color in ("Red", "Green", "Blue"):
            setattr(made, f"{color}PaletteColorLookupTableDescriptor", [256, 0, 16])
            setattr(made, f"{color}PaletteColorLookupTableData", np.arange(0, 65536, 256, dtype="<u2").tobytes())
    setattr(made, kind.keyword, _native(kind))
    if kind.keyword == "PixelData":
        made["PixelData"].VR = "OB" if made.BitsAllocated <= 8 else "OW"
    return made


def _native(kind: Kind) -> bytes:
    values = kind.values
    if kind.attributes.get("BitsAllocated") == 1:
        data = np.packbits(values.ravel(), bitorder="little").tobytes()
    elif kind.attributes.get("PlanarConfiguration") == 1:
        data = np.moveaxis(values, -1, 1).tobytes()
    elif kind.interpretation == "YBR_FULL_422":
        pairs = values.reshape(-1, 2, 3)
        data = np.stack([pairs[:, 0, 0], pairs[:, 1, 0], pairs[:, 0, 1], pairs[:, 0, 2]], axis=1).tobytes()
    else:
        data = values.tobytes()
    return data + b"\0" * (len(data) % 2)


def by_pixel(kind: Kind) -> bytes:
    """Return the native pixel data once decoded: colour by pixel, every sample."""
    data = kind.values.tobytes()
    return data + b"\0" * (len(data) % 2)


def decoded(made: Dataset) -> Values:
    """Decode the frames of an instance by pydicom, or where it cannot by the bare codec: shape as `Kind.values`, colour as it is stored.

    imagecodecs is what the server decodes with, so JPEG XL is no independent witness here.
    """
    uid = UID(made.file_meta.TransferSyntaxUID)
    if uid in (DEFLATED_FRAME, JPEG_XL, JPEG_XL_LOSSY, RECOMPRESSED):
        count = int(made.get("NumberOfFrames", 1))
        frames = [b"".join(found) for found in generate_fragmented_frames(made.PixelData, number_of_frames=count)]
        return np.stack([_bare(uid, frame, made) for frame in frames])
    if "PixelData" not in made:
        return np.frombuffer(made.get("FloatPixelData") or made.DoubleFloatPixelData, "<f4" if "FloatPixelData" in made else "<f8").reshape(
            made.NumberOfFrames, made.Rows, made.Columns
        )
    array, _ = get_decoder(uid).as_array(made, raw=True)
    return array.reshape(int(made.get("NumberOfFrames", 1)), *array.shape[array.ndim - (2 if made.SamplesPerPixel == 1 else 3) :])


def _bare(uid: str, frame: bytes, made: Dataset) -> Values:
    if uid != DEFLATED_FRAME:
        return np.squeeze(imagecodecs.jpegxl_decode(frame))
    data = zlib.decompressobj(-15).decompress(frame)
    shape = (made.Rows, made.Columns, *([3] if made.SamplesPerPixel == 3 else []))
    if made.BitsAllocated == 1:
        return np.unpackbits(np.frombuffer(data, "u1"), bitorder="little", count=made.Rows * made.Columns).reshape(shape)
    return np.frombuffer(data, f"<{'i' if made.PixelRepresentation else 'u'}{made.BitsAllocated // 8}").reshape(shape)
