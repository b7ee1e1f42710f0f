"""Codecs: how the bytes of one frame become samples, and samples bytes, in each transfer syntax.

To add a codec, add a module with its functions and a row to CODECS. `coding.py` has the functions that read this table.

Lossless encoders keep every allocated bit, also those above Bits Stored, where retired overlays may be: encoding and decoding gives the
same samples. A row with a `loss` is used only for a client that names its transfer syntax, never by default.

Decoders return colour by pixel (Planar Configuration 0). Samples are signed if Pixel Representation is 1, sign extended from Bits
Stored. The result is RGB if the codec reverses a colour transform:
- lossy JPEG of YBR_FULL and YBR_FULL_422 gives RGB (every JPEG decoder converts and up-samples by itself);
- JPEG 2000 and HTJ2K of YBR_RCT and YBR_ICT, and JPEG XL of anything, give RGB;
- JPEG Lossless, JPEG-LS and RLE do not transform: YBR_FULL stays YBR_FULL;
- native YBR_FULL_422 is up-sampled to YBR_FULL; YBR_PARTIAL_422 has no such form and stays unchanged.
`coding.decoded_description` computes these attributes from those of the instance, before any frame is decoded.

Source: PS3.5 §8.1, §8.2, Annex A, Annex G; PS3.3 §C.7.6.3.
"""

from collections.abc import Callable
from dataclasses import dataclass

from gantry_renderer.codecs import deflated, htj2k, jpeg, jpeg_2000, jpeg_ls, jpeg_xl, library, native, rle
from gantry_renderer.codecs.samples import DOUBLE_FLOAT_TAG, FLOAT_TAG, PARTIAL_RANGE, Samples
from gantry_standard.dicom.scanned import PixelDescription
from gantry_standard.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN


@dataclass(frozen=True, slots=True)
class Takes:
    """Which decoded pixels an encoder accepts (tables in PS3.5 §8.2.1 to §8.2.16).

    Attributes:
        allocated, stored: values of Bits Allocated and Bits Stored.
        signed: Pixel Representation may be 1.
        interpretations: Photometric Interpretations; empty for any.
    """

    allocated: frozenset[int]
    stored: range
    interpretations: frozenset[str] = frozenset()
    signed: bool = True

    def fits(self, description: PixelDescription) -> bool:
        """Say whether the encoder accepts such pixels."""
        if description.tag in (FLOAT_TAG, DOUBLE_FLOAT_TAG) or description.samples_per_pixel not in (1, 3):
            return False
        if description.pixel_representation and not self.signed:
            return False
        if self.interpretations and description.photometric_interpretation not in self.interpretations:
            return False
        return description.bits_allocated in self.allocated and description.bits_stored in self.stored


@dataclass(frozen=True, slots=True)
class Codec:
    """A row: one transfer syntax.

    Attributes:
        name: of PS3.6, shortened.
        decode: bytes of one frame to samples.
        rgb_from: photometric interpretations that come out of `decode` as RGB.
        encode: samples to bytes of one frame; None where there is no encoder.
        takes: what the encoder accepts; one of them must fit.
        renamed: Photometric Interpretation of decoded samples and of encoded ones, where they differ.
        loss: Lossy Image Compression Method of `encode` (PS3.3 §C.7.6.1.1.5.1); "" where it is lossless.
        is_native: frames are uncompressed values, little endian.
        is_bytewise: frames keep every allocated bit.
        codec: name of the codec in imagecodecs that must be in the installed build; "" where none is needed.
        method_of_loss: returns the Lossy Image Compression Method of a bit stream, "" where it is lossless; None where the codec is
            always lossless.
    """

    name: str
    decode: Callable[[bytes, PixelDescription], Samples]
    rgb_from: frozenset[str] = frozenset()
    encode: Callable[[Samples, PixelDescription], bytes] | None = None
    takes: tuple[Takes, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    loss: str = ""
    is_native: bool = False
    is_bytewise: bool = False
    codec: str = ""
    method_of_loss: Callable[[bytes], str] | None = None

    @property
    def is_available(self) -> bool:
        """Whether the installed build of imagecodecs has the codec."""
        return not self.codec or library.has(self.codec)


_YBR = frozenset(("YBR_FULL", "YBR_FULL_422")) | PARTIAL_RANGE
_MCT = frozenset(("YBR_RCT", "YBR_ICT"))
_XL = _YBR | {"XYB"}

_GREY = frozenset(("MONOCHROME1", "MONOCHROME2"))
_INDEXED = _GREY | {"PALETTE COLOR"}
_COLOR = frozenset(("RGB", "YBR_FULL"))
_BITS_8, _BITS_16, _BITS_32 = frozenset((8,)), frozenset((8, 16)), frozenset((8, 16, 32))
_TO_16 = range(1, 17)
_TO_RCT, _TO_ICT = (("RGB", "YBR_RCT"),), (("RGB", "YBR_ICT"),)
_TO_422 = (("RGB", "YBR_FULL_422"), ("YBR_FULL", "YBR_FULL_422"))
_JPEG_2000_TAKES = (Takes(_BITS_16, _TO_16, _INDEXED), Takes(_BITS_16, _TO_16, _COLOR, signed=False))
_JPEG_LOSSLESS_TAKES = _JPEG_2000_TAKES
_JPEG_LS_TAKES = (
    Takes(_BITS_16, range(2, 17), _INDEXED),
    Takes(_BITS_16, range(2, 17), frozenset(("RGB",)), signed=False),
    Takes(_BITS_8, range(2, 9), frozenset(("YBR_FULL",)), signed=False),
)
_PLAIN_8 = Takes(_BITS_8, range(8, 9), _GREY | _COLOR, signed=False)

# PS3.6 Table A-1; PS3.5 §8.2
CODECS: dict[str, Codec] = {
    "1.2.840.10008.1.2": Codec("Implicit VR Little Endian", native.decode, is_native=True, is_bytewise=True),
    EXPLICIT_VR_LITTLE_ENDIAN: Codec("Explicit VR Little Endian", native.decode, encode=native.encode, is_native=True, is_bytewise=True),
    "1.2.840.10008.1.2.1.99": Codec("Deflated Explicit VR Little Endian", native.decode, is_native=True, is_bytewise=True),
    "1.2.840.10008.1.2.8.1": Codec(
        "Deflated Image Frame",
        deflated.decode,
        encode=deflated.encode,
        takes=(Takes(frozenset((1, 8, 16, 32, 64)), range(1, 65)),),
        is_bytewise=True,
    ),
    "1.2.840.10008.1.2.5": Codec(
        "RLE Lossless",
        rle.decode,
        encode=rle.encode,
        takes=(Takes(_BITS_32, range(1, 33)),),
        is_bytewise=True,
        codec="DICOMRLE",
    ),
    "1.2.840.10008.1.2.4.50": Codec(
        "JPEG Baseline",
        jpeg.decode,
        rgb_from=_YBR,
        encode=jpeg.encode_lossy,
        takes=(_PLAIN_8,),
        renamed=_TO_422,
        loss="ISO_10918_1",
        codec="JPEG8",
        method_of_loss=jpeg.method_of_loss,
    ),
    "1.2.840.10008.1.2.4.51": Codec(
        "JPEG Extended",
        jpeg.decode,
        rgb_from=_YBR,
        encode=jpeg.encode_lossy,
        takes=(Takes(_BITS_8, range(8, 9), _GREY, signed=False), Takes(frozenset((16,)), range(12, 13), _GREY, signed=False)),
        loss="ISO_10918_1",
        codec="JPEG8",
        method_of_loss=jpeg.method_of_loss,
    ),
    "1.2.840.10008.1.2.4.53": Codec(
        "JPEG Spectral Selection", jpeg.decode, rgb_from=_YBR, codec="JPEG8", method_of_loss=jpeg.method_of_loss
    ),
    "1.2.840.10008.1.2.4.55": Codec("JPEG Full Progression", jpeg.decode, rgb_from=_YBR, codec="JPEG8", method_of_loss=jpeg.method_of_loss),
    "1.2.840.10008.1.2.4.57": Codec(
        "JPEG Lossless",
        jpeg.decode,
        encode=jpeg.encode_lossless,
        takes=_JPEG_LOSSLESS_TAKES,
        codec="JPEG8",
        method_of_loss=jpeg.method_of_loss,
    ),
    "1.2.840.10008.1.2.4.70": Codec(
        "JPEG Lossless SV1",
        jpeg.decode,
        encode=jpeg.encode_lossless,
        takes=_JPEG_LOSSLESS_TAKES,
        codec="JPEG8",
        method_of_loss=jpeg.method_of_loss,
    ),
    "1.2.840.10008.1.2.4.80": Codec(
        "JPEG-LS Lossless",
        jpeg_ls.decode,
        encode=jpeg_ls.encode,
        takes=_JPEG_LS_TAKES,
        codec="JPEGLS",
        method_of_loss=jpeg_ls.method_of_loss,
    ),
    "1.2.840.10008.1.2.4.81": Codec(
        "JPEG-LS Near-lossless",
        jpeg_ls.decode,
        encode=jpeg_ls.encode_near,
        takes=(
            Takes(_BITS_16, range(6, 17), _GREY | {"RGB"}, signed=False),
            Takes(_BITS_8, range(6, 9), frozenset(("YBR_FULL",)), signed=False),
        ),
        loss="ISO_14495_1",
        codec="JPEGLS",
        method_of_loss=jpeg_ls.method_of_loss,
    ),
    "1.2.840.10008.1.2.4.90": Codec(
        "JPEG 2000 Lossless",
        jpeg_2000.decode,
        rgb_from=_MCT,
        encode=jpeg_2000.encode,
        takes=_JPEG_2000_TAKES,
        renamed=_TO_RCT,
        codec="JPEG2K",
        method_of_loss=jpeg_2000.method_of_loss,
    ),
    "1.2.840.10008.1.2.4.91": Codec(
        "JPEG 2000",
        jpeg_2000.decode,
        rgb_from=_MCT,
        encode=jpeg_2000.encode_lossy,
        takes=(Takes(_BITS_16, range(8, 17), _GREY), Takes(_BITS_16, range(8, 17), _COLOR, signed=False)),
        renamed=_TO_ICT,
        loss="ISO_15444_1",
        codec="JPEG2K",
        method_of_loss=jpeg_2000.method_of_loss,
    ),
    "1.2.840.10008.1.2.4.92": Codec(
        "JPEG 2000 Part 2 Lossless", jpeg_2000.decode, rgb_from=_MCT, codec="JPEG2K", method_of_loss=jpeg_2000.method_of_loss
    ),
    "1.2.840.10008.1.2.4.93": Codec(
        "JPEG 2000 Part 2", jpeg_2000.decode, rgb_from=_MCT, codec="JPEG2K", method_of_loss=jpeg_2000.method_of_loss
    ),
    "1.2.840.10008.1.2.4.201": Codec(
        "HTJ2K Lossless",
        htj2k.decode,
        rgb_from=_MCT,
        encode=htj2k.encode,
        takes=_JPEG_2000_TAKES,
        renamed=_TO_RCT,
        codec="HTJ2K",
        method_of_loss=htj2k.method_of_loss,
    ),
    "1.2.840.10008.1.2.4.202": Codec(
        "HTJ2K Lossless RPCL",
        htj2k.decode,
        rgb_from=_MCT,
        encode=htj2k.encode_rpcl,
        takes=_JPEG_2000_TAKES,
        renamed=_TO_RCT,
        codec="HTJ2K",
        method_of_loss=htj2k.method_of_loss,
    ),
    # Only grey: a frame may be encoded without loss, and for colour YBR_ICT would then be wrong
    "1.2.840.10008.1.2.4.203": Codec(
        "HTJ2K",
        htj2k.decode,
        rgb_from=_MCT,
        encode=htj2k.encode_lossy,
        takes=(Takes(_BITS_16, range(8, 17), _GREY),),
        loss="ISO_15444_15",
        codec="HTJ2K",
        method_of_loss=htj2k.method_of_loss,
    ),
    "1.2.840.10008.1.2.4.110": Codec(
        "JPEG XL Lossless",
        jpeg_xl.decode,
        rgb_from=_XL,
        encode=jpeg_xl.encode,
        takes=(Takes(_BITS_16, _TO_16, _GREY | {"RGB"}, signed=False),),
        codec="JPEGXL",
    ),
    "1.2.840.10008.1.2.4.111": Codec(
        "JPEG XL JPEG Recompression", jpeg_xl.decode, rgb_from=_XL, codec="JPEGXL", method_of_loss=jpeg_xl.method_of_recompressed_jpeg
    ),
    "1.2.840.10008.1.2.4.112": Codec(
        "JPEG XL",
        jpeg_xl.decode,
        rgb_from=_XL,
        encode=jpeg_xl.encode_lossy,
        takes=(Takes(_BITS_16, range(8, 17), _GREY | {"RGB"}, signed=False),),
        renamed=(("RGB", "XYB"),),
        loss="ISO_18181_1",
        codec="JPEGXL",
    ),
}

# Bit streams that are rewritten without decoding a pixel: (from, to) -> function. Attributes stay the same (PS3.5 §8.2.15)
REWRITES: dict[tuple[str, str], Callable[[bytes], bytes]] = {
    ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.111"): library.jpegxl_from_jpeg,
    ("1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.50"): library.jpeg_from_jpegxl,
}
