"""Kinds of content: what an instance shows, by its SOP class. What makes a rendering of it depends on that.

To add a kind, add a member to ContentKind and rows for its SOP classes.

Source: PS3.4 Annex B.5 (Table B.5-1); PS3.18 §8.7.4 for the kinds that have rendered media types.
"""

from enum import Enum
from functools import lru_cache

from gantry_standard.dicom.transfer_syntaxes import transfer_syntax


class ContentKind(Enum):
    """What an instance shows."""

    IMAGE = "image"
    """Frames of pixels: what has no other kind."""
    VIDEO = "video"
    """Frames of pixels in one bit stream, told by the transfer syntax."""
    PRESENTATION_STATE = "presentation state"
    STRUCTURED_REPORT = "structured report"
    ENCAPSULATED_DOCUMENT = "encapsulated document"
    WAVEFORM = "waveform"


_STORAGE_ROOT = "1.2.840.10008.5.1.4.1.1."

# Root of SOP class UIDs below 1.2.840.10008.5.1.4.1.1 -> kind (PS3.4 Table B.5-1)
_KINDS = {
    "9.": ContentKind.WAVEFORM,
    "11.": ContentKind.PRESENTATION_STATE,
    "88.": ContentKind.STRUCTURED_REPORT,
    "104.": ContentKind.ENCAPSULATED_DOCUMENT,
}


@lru_cache(maxsize=1024)
def content_kind(sop_class_uid: str, transfer_syntax_uid: str) -> ContentKind:
    """Return the kind of content of an instance.

    Args:
        transfer_syntax_uid: of the stored pixel data; tells a video from an image.
    """
    suffix = sop_class_uid.removeprefix(_STORAGE_ROOT)
    if suffix != sop_class_uid:
        for root, kind in _KINDS.items():
            if suffix.startswith(root):
                return kind
    return ContentKind.VIDEO if transfer_syntax(transfer_syntax_uid).is_video else ContentKind.IMAGE
