"""Transfer syntaxes: one row per UID, with its encoding and its media type. To add one, add a row.

Source: PS3.5 §10 and Annex A, PS3.6 Table A-1; PS3.18 Tables 8.7.3-2 to 8.7.3-5 for the media types.
"""

from dataclasses import dataclass
from enum import Enum

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
RLE_LOSSLESS = "1.2.840.10008.1.2.5"


class Codestream(Enum):
    """How the first bytes of a frame can be recognised, if they can."""

    NONE = 0
    JPEG = 1
    """JPEG and JPEG-LS: SOI, then another marker."""
    JPEG_2000 = 2
    """JPEG 2000 and HTJ2K: SOC and SIZ."""
    JPEG_XL = 3
    RLE = 4
    """Header of 16 words: number of segments, 64, …"""


@dataclass(frozen=True, slots=True)
class TransferSyntax:
    """One transfer syntax.

    Attributes:
        media_type: of its bulkdata (PS3.18 §8.7.3), in lower case; application/octet-stream for native pixel data, "" if PS3.18
            names none.
        is_default_of_media_type: the meaning of the media type without a transfer-syntax parameter.
        is_lossy: may lose information. True if the reversible and the irreversible form share a UID.
        is_supported: False for syntaxes that are not data sets in a file.
    """

    uid: str
    name: str
    is_encapsulated: bool = False
    is_explicit: bool = True
    is_big_endian: bool = False
    is_deflated: bool = False
    is_lossy: bool = False
    is_video: bool = False
    codestream: Codestream = Codestream.NONE
    media_type: str = "application/octet-stream"
    is_default_of_media_type: bool = False
    is_supported: bool = True


def _encapsulated(
    suffix: str, name: str, media_type: str, codestream: Codestream, *, lossy: bool = False, default: bool = False
) -> TransferSyntax:
    return TransferSyntax(
        f"1.2.840.10008.1.2.{suffix}",
        name,
        is_encapsulated=True,
        is_lossy=lossy,
        codestream=codestream,
        media_type=media_type,
        is_default_of_media_type=default,
    )


def _video(suffix: str, name: str, media_type: str, *, default: bool = False) -> TransferSyntax:
    return TransferSyntax(
        f"1.2.840.10008.1.2.{suffix}",
        name,
        is_encapsulated=True,
        is_lossy=True,
        is_video=True,
        media_type=media_type,
        is_default_of_media_type=default,
    )


def _not_a_file(suffix: str, name: str) -> TransferSyntax:
    return TransferSyntax(f"1.2.840.10008.1.2.{suffix}", name, media_type="", is_supported=False)


TRANSFER_SYNTAXES: dict[str, TransferSyntax] = {
    row.uid: row
    for row in (
        TransferSyntax(IMPLICIT_VR_LITTLE_ENDIAN, "Implicit VR Little Endian", is_explicit=False),
        TransferSyntax(EXPLICIT_VR_LITTLE_ENDIAN, "Explicit VR Little Endian", is_default_of_media_type=True),
        TransferSyntax(DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, "Deflated Explicit VR Little Endian", is_deflated=True),
        TransferSyntax(EXPLICIT_VR_BIG_ENDIAN, "Explicit VR Big Endian", is_big_endian=True),
        _encapsulated("4.50", "JPEG Baseline (Process 1)", "image/jpeg", Codestream.JPEG, lossy=True),
        _encapsulated("4.51", "JPEG Extended (Process 2 and 4)", "image/jpeg", Codestream.JPEG, lossy=True),
        _encapsulated("4.52", "JPEG Extended (Process 3 and 5)", "", Codestream.JPEG, lossy=True),
        _encapsulated("4.53", "JPEG Spectral Selection (Process 6 and 8)", "", Codestream.JPEG, lossy=True),
        _encapsulated("4.54", "JPEG Spectral Selection (Process 7 and 9)", "", Codestream.JPEG, lossy=True),
        _encapsulated("4.55", "JPEG Full Progression (Process 10 and 12)", "", Codestream.JPEG, lossy=True),
        _encapsulated("4.56", "JPEG Full Progression (Process 11 and 13)", "", Codestream.JPEG, lossy=True),
        _encapsulated("4.57", "JPEG Lossless (Process 14)", "image/jpeg", Codestream.JPEG),
        _encapsulated("4.58", "JPEG Lossless (Process 15)", "", Codestream.JPEG),
        _encapsulated("4.59", "JPEG Extended, Hierarchical (Process 16 and 18)", "", Codestream.JPEG, lossy=True),
        _encapsulated("4.60", "JPEG Extended, Hierarchical (Process 17 and 19)", "", Codestream.JPEG, lossy=True),
        _encapsulated("4.61", "JPEG Spectral Selection, Hierarchical (Process 20 and 22)", "", Codestream.JPEG, lossy=True),
        _encapsulated("4.62", "JPEG Spectral Selection, Hierarchical (Process 21 and 23)", "", Codestream.JPEG, lossy=True),
        _encapsulated("4.63", "JPEG Full Progression, Hierarchical (Process 24 and 26)", "", Codestream.JPEG, lossy=True),
        _encapsulated("4.64", "JPEG Full Progression, Hierarchical (Process 25 and 27)", "", Codestream.JPEG, lossy=True),
        _encapsulated("4.65", "JPEG Lossless, Hierarchical (Process 28)", "", Codestream.JPEG),
        _encapsulated("4.66", "JPEG Lossless, Hierarchical (Process 29)", "", Codestream.JPEG),
        _encapsulated(
            "4.70", "JPEG Lossless, First-Order Prediction (Process 14, Selection Value 1)", "image/jpeg", Codestream.JPEG, default=True
        ),
        _encapsulated("4.80", "JPEG-LS Lossless", "image/jls", Codestream.JPEG, default=True),
        _encapsulated("4.81", "JPEG-LS Lossy (Near-Lossless)", "image/jls", Codestream.JPEG, lossy=True),
        _encapsulated("4.90", "JPEG 2000 (Lossless Only)", "image/jp2", Codestream.JPEG_2000, default=True),
        _encapsulated("4.91", "JPEG 2000", "image/jp2", Codestream.JPEG_2000, lossy=True),
        _encapsulated("4.92", "JPEG 2000 Part 2 Multi-component (Lossless Only)", "image/jpx", Codestream.JPEG_2000, default=True),
        _encapsulated("4.93", "JPEG 2000 Part 2 Multi-component", "image/jpx", Codestream.JPEG_2000, lossy=True),
        TransferSyntax("1.2.840.10008.1.2.4.94", "JPIP Referenced", media_type=""),
        TransferSyntax("1.2.840.10008.1.2.4.95", "JPIP Referenced Deflate", is_deflated=True, media_type=""),
        _video("4.100", "MPEG2 Main Profile / Main Level", "video/mpeg"),
        _video("4.100.1", "Fragmentable MPEG2 Main Profile / Main Level", "video/mpeg"),
        _video("4.101", "MPEG2 Main Profile / High Level", "video/mpeg", default=True),
        _video("4.101.1", "Fragmentable MPEG2 Main Profile / High Level", "video/mpeg"),
        _video("4.102", "MPEG-4 AVC/H.264 High Profile / Level 4.1", "video/mp4", default=True),
        _video("4.102.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.1", "video/mp4"),
        _video("4.103", "MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1", "video/mp4"),
        _video("4.103.1", "Fragmentable MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1", "video/mp4"),
        _video("4.104", "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video", "video/mp4"),
        _video("4.104.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video", "video/mp4"),
        _video("4.105", "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video", "video/mp4"),
        _video("4.105.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video", "video/mp4"),
        _video("4.106", "MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2", "video/mp4"),
        _video("4.106.1", "Fragmentable MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2", "video/mp4"),
        _video("4.107", "HEVC/H.265 Main Profile / Level 5.1", "video/h265", default=True),
        _video("4.108", "HEVC/H.265 Main 10 Profile / Level 5.1", "video/h265"),
        _encapsulated("4.110", "JPEG XL Lossless", "image/jxl", Codestream.JPEG_XL, default=True),
        _encapsulated("4.111", "JPEG XL JPEG Recompression", "image/jxl", Codestream.JPEG_XL, lossy=True),
        _encapsulated("4.112", "JPEG XL", "image/jxl", Codestream.JPEG_XL, lossy=True),
        _encapsulated("4.201", "High-Throughput JPEG 2000 (Lossless Only)", "image/jphc", Codestream.JPEG_2000, default=True),
        _encapsulated("4.202", "High-Throughput JPEG 2000 RPCL (Lossless Only)", "image/jphc", Codestream.JPEG_2000),
        _encapsulated("4.203", "High-Throughput JPEG 2000", "image/jphc", Codestream.JPEG_2000, lossy=True),
        TransferSyntax("1.2.840.10008.1.2.4.204", "JPIP HTJ2K Referenced", media_type=""),
        TransferSyntax("1.2.840.10008.1.2.4.205", "JPIP HTJ2K Referenced Deflate", is_deflated=True, media_type=""),
        _encapsulated("5", "RLE Lossless", "image/dicom-rle", Codestream.RLE, default=True),
        _encapsulated("8.1", "Deflated Image Frame Compression", "", Codestream.NONE),
        _not_a_file("6.1", "RFC 2557 MIME Encapsulation"),
        _not_a_file("6.2", "XML Encoding"),
        _not_a_file("7.1", "SMPTE ST 2110-20 Uncompressed Progressive Active Video"),
        _not_a_file("7.2", "SMPTE ST 2110-20 Uncompressed Interlaced Active Video"),
        _not_a_file("7.3", "SMPTE ST 2110-30 PCM Digital Audio"),
        # Implicit VR with pixels in big endian: a private syntax of GE, not supported.
        TransferSyntax("1.2.840.113619.5.2", "GE Private Implicit VR Big Endian", media_type="", is_supported=False),
    )
}


def transfer_syntax(uid: str) -> TransferSyntax:
    """Return the row of a transfer syntax; an unknown one is treated as Explicit VR Little Endian that may be encapsulated."""
    return TRANSFER_SYNTAXES.get(uid) or TransferSyntax(uid, "unknown", is_encapsulated=True, is_lossy=True, media_type="")
