"""Media types: the representations of each resource, and the transfer syntaxes of each bulkdata media type.

The transfer syntaxes of a bulkdata media type are those of TRANSFER_SYNTAXES. To add a representation of a resource: an offer in OFFERS.

Source: PS3.18 §8.7.3, §8.7.4, Tables 8.7.3-2 to 8.7.3-7, 8.7.4-1 and 10.4.4-1.
"""

from dataclasses import dataclass
from enum import Enum

from gantry_standard.dicom.transfer_syntaxes import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TRANSFER_SYNTAXES,
)

NEVER_SENT = frozenset((IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN))
"""Implicit VR LE and Explicit VR BE must not be sent (§8.7.3); deflated data sets are sent inflated."""

DICOM = "application/dicom"
DICOM_JSON = "application/dicom+json"
DICOM_XML = "application/dicom+xml"
OCTET_STREAM = "application/octet-stream"
ZIP = "application/zip"
"""Extension: the files of a study or series in one archive, with a DICOMDIR."""

# Table 8.7.3-3 to 8.7.3-5, and application/octet-stream for native pixel data; the order in which they are offered.
_BULKDATA_MEDIA_TYPES = (
    "image/jpeg",
    "image/dicom-rle",
    "image/jls",
    "image/jp2",
    "image/jpx",
    "image/jphc",
    "image/jxl",
    "video/mpeg",
    "video/mp4",
    "video/h265",
    OCTET_STREAM,
)


def _transfer_syntaxes(media_type: str) -> tuple[str, ...]:
    """Return the transfer syntaxes in which bulkdata of a media type may be sent, the default first."""
    rows = [row for row in TRANSFER_SYNTAXES.values() if row.media_type == media_type and row.uid not in NEVER_SENT]
    return tuple(row.uid for row in sorted(rows, key=lambda row: not row.is_default_of_media_type))


# Bulkdata media type -> transfer syntaxes; the first is the default of the media type (PS3.18 §8.7.3.3). Derived from TRANSFER_SYNTAXES.
BULKDATA: dict[str, tuple[str, ...]] = {media_type: _transfer_syntaxes(media_type) for media_type in _BULKDATA_MEDIA_TYPES}

_MEDIA_TYPE_OF = {uid: media_type for media_type, uids in BULKDATA.items() for uid in uids}

# Names that older clients send (§8.7.3.3.2 notes).
ALIASES = {"image/x-dicom-rle": "image/dicom-rle", "image/x-jls": "image/jls"}

# Rendered media types of a single frame, the default first (Table 8.7.4-1).
RENDERED_IMAGES = ("image/jpeg", "image/png", "image/gif")

# Types that can only mean DICOM, or only a rendering; image/jpeg, image/jp2 and the like are both (§8.7.5).
ONLY_DICOM = frozenset({DICOM, DICOM_JSON, DICOM_XML, OCTET_STREAM})
ONLY_RENDERED = frozenset({"image/gif", "image/png", "image/jph", "application/pdf"})
ONLY_RENDERED_TOP = "text"

# Rendered media types that can embed an ICC profile, and those whose coding loses something (§8.3.5.1.2, §8.3.5.1.5).
ICC_CAPABLE = frozenset({"image/jpeg", "image/png", "image/jp2", "image/jpx", "image/jph"})
LOSSY = frozenset({"image/jpeg"})


def bulkdata_media_type(transfer_syntax_uid: str) -> str:
    """Return the media type of bulkdata in a transfer syntax; application/octet-stream if no table names one."""
    return _MEDIA_TYPE_OF.get(transfer_syntax_uid, OCTET_STREAM)


@dataclass(frozen=True, slots=True)
class Offer:
    """One representation of a resource.

    Attributes:
        media_type: of the payload, or of the parts.
        multipart: multipart/related of it; else a single part.
        parameters: media type parameters that distinguish representations of the same type.
        by_name: only a range that names the media type covers it, not a wildcard: an obsolete form, or an extension.
    """

    media_type: str
    multipart: bool = False
    parameters: tuple[tuple[str, str], ...] = ()
    by_name: bool = False


class Resource(Enum):
    """Resources for negotiation. They differ by the number of items in the response, not by their paths."""

    INSTANCES = "instances of a study or series"
    INSTANCE = "an instance"
    METADATA = "metadata"
    SEARCH = "search results"
    STORE = "a store response"
    WORKITEM = "a workitem"
    FRAME = "one frame"
    FRAMES = "frames"
    BULKDATA = "bulkdata"
    PIXEL_DATA = "uncompressed pixel data"
    COMPRESSED_BULKDATA = "compressed pixel data"
    BULKDATA_ITEMS = "bulkdata of several items"
    RENDERED = "one rendered image"
    RENDERED_FRAMES = "rendered frames"
    RENDERED_INSTANCE_FRAMES = "a rendered instance of several frames"


def _both(media_types: tuple[str, ...], multipart_first: bool) -> tuple[Offer, ...]:
    """Return each type as multipart and as single part."""
    return tuple(Offer(media_type, multipart is multipart_first) for media_type in media_types for multipart in (True, False))


_COMPRESSED = tuple(media_type for media_type in BULKDATA if media_type != OCTET_STREAM)
_JSON_OR_XML = (Offer(DICOM_JSON), Offer(DICOM_XML, multipart=True))

# In our order of preference; the first is what */* selects (Table 10.4.4-1).
OFFERS: dict[Resource, tuple[Offer, ...]] = {
    Resource.INSTANCES: (Offer(DICOM, multipart=True), Offer(OCTET_STREAM, multipart=True, by_name=True), Offer(ZIP, by_name=True)),
    Resource.INSTANCE: (
        Offer(DICOM, multipart=True),
        Offer(DICOM),
        Offer(OCTET_STREAM, multipart=True, by_name=True),
        Offer(OCTET_STREAM, by_name=True),
    ),
    Resource.METADATA: _JSON_OR_XML,
    Resource.SEARCH: _JSON_OR_XML,
    Resource.STORE: (*_JSON_OR_XML, Offer(DICOM_XML)),
    Resource.WORKITEM: (*_JSON_OR_XML, Offer(DICOM_XML)),
    Resource.FRAME: _both((OCTET_STREAM, *_COMPRESSED), multipart_first=True),
    Resource.FRAMES: tuple(Offer(media_type, multipart=True) for media_type in (OCTET_STREAM, *_COMPRESSED)),
    Resource.BULKDATA: _both((OCTET_STREAM,), multipart_first=False),
    Resource.PIXEL_DATA: (*_both((OCTET_STREAM,), multipart_first=False), *_both(_COMPRESSED, multipart_first=True)),
    Resource.COMPRESSED_BULKDATA: _both((*_COMPRESSED, OCTET_STREAM), multipart_first=True),
    Resource.BULKDATA_ITEMS: tuple(Offer(media_type, multipart=True) for media_type in (OCTET_STREAM, *_COMPRESSED)),
    Resource.RENDERED: _both(RENDERED_IMAGES, multipart_first=False),
    Resource.RENDERED_FRAMES: tuple(Offer(media_type, multipart=True) for media_type in RENDERED_IMAGES),
    Resource.RENDERED_INSTANCE_FRAMES: tuple(Offer(media_type, multipart=True) for media_type in RENDERED_IMAGES),
}

# A single-part range for these is answered with one part per frame.
SINGLE_MEANS_MULTIPART = frozenset({Resource.RENDERED_INSTANCE_FRAMES})

# Resources without a default media type: */* selects the cheapest representation (§8.7.7).
NO_DEFAULT = frozenset({Resource.COMPRESSED_BULKDATA, Resource.BULKDATA_ITEMS})

# Tools that do not know application/dicom+json send application/json.
JSON_NAMES = frozenset({DICOM_JSON, "application/json"})
JSON_RESOURCES = frozenset({Resource.METADATA, Resource.SEARCH, Resource.STORE, Resource.WORKITEM})

RENDERED_RESOURCES = frozenset({Resource.RENDERED, Resource.RENDERED_FRAMES, Resource.RENDERED_INSTANCE_FRAMES})
