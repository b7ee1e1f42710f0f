"""Kinds of content by SOP class."""

import pytest

from gantry_standard.dicom.content_kinds import ContentKind, content_kind

STORAGE = "1.2.840.10008.5.1.4.1.1."
NATIVE, H264 = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.102"


@pytest.mark.parametrize(
    ("sop_class_uid", "transfer_syntax_uid", "expected"),
    [
        pytest.param(f"{STORAGE}2", NATIVE, ContentKind.IMAGE, id="CT Image"),
        pytest.param(f"{STORAGE}481.2", NATIVE, ContentKind.IMAGE, id="RT Dose"),
        pytest.param(f"{STORAGE}77.1.1.1", H264, ContentKind.VIDEO, id="Video Endoscopic Image"),
        pytest.param(f"{STORAGE}77.1.1.1", "1.2.840.10008.1.2.4.50", ContentKind.IMAGE, id="Video Endoscopic Image of JPEG frames"),
        pytest.param(f"{STORAGE}11.1", NATIVE, ContentKind.PRESENTATION_STATE, id="Grayscale Softcopy Presentation State"),
        pytest.param(f"{STORAGE}88.33", NATIVE, ContentKind.STRUCTURED_REPORT, id="Comprehensive SR"),
        pytest.param(f"{STORAGE}88.59", NATIVE, ContentKind.STRUCTURED_REPORT, id="Key Object Selection Document"),
        pytest.param(f"{STORAGE}104.1", NATIVE, ContentKind.ENCAPSULATED_DOCUMENT, id="Encapsulated PDF"),
        pytest.param(f"{STORAGE}9.1.1", NATIVE, ContentKind.WAVEFORM, id="12-lead ECG Waveform"),
        pytest.param("2.25.1.11.1", NATIVE, ContentKind.IMAGE, id="private SOP class"),
        pytest.param("", NATIVE, ContentKind.IMAGE, id="no SOP class"),
    ],
)
def test_kind_of_content(sop_class_uid: str, transfer_syntax_uid: str, expected: ContentKind) -> None:
    assert content_kind(sop_class_uid, transfer_syntax_uid) is expected
