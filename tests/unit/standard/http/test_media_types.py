"""The tables of media types."""

import pytest
from pydicom.uid import UID

from gantry_standard.dicom.transfer_syntaxes import TRANSFER_SYNTAXES
from gantry_standard.http.media_types import BULKDATA, NEVER_SENT, OCTET_STREAM, OFFERS, RENDERED_IMAGES, Resource, bulkdata_media_type

ROOT = "1.2.840.10008.1.2."


@pytest.mark.parametrize(
    ("media_type", "default"),
    [
        ("image/jpeg", "4.70"),
        ("image/dicom-rle", "5"),
        ("image/jls", "4.80"),
        ("image/jp2", "4.90"),
        ("image/jpx", "4.92"),
        ("image/jphc", "4.201"),
        ("video/mpeg", "4.101"),
        ("video/mp4", "4.102"),
        ("video/h265", "4.107"),
        (OCTET_STREAM, "1"),
    ],
)
def test_default_transfer_syntax(media_type: str, default: str) -> None:
    assert BULKDATA[media_type][0] == ROOT + default


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        pytest.param("image/jpeg", ["4.70", "4.50", "4.51", "4.57"], id="Table 8.7.3-3 JPEG"),
        pytest.param("image/jphc", ["4.201", "4.202", "4.203"], id="Table 8.7.3-3 HTJ2K"),
        pytest.param("video/mpeg", ["4.101", "4.100", "4.100.1", "4.101.1"], id="Table 8.7.3-5 MPEG-2"),
        pytest.param(OCTET_STREAM, ["1"], id="8.7.3 native pixel data is sent in Explicit VR Little Endian only"),
    ],
)
def test_transfer_syntaxes_of_a_media_type(media_type: str, expected: list[str]) -> None:
    assert list(BULKDATA[media_type]) == [ROOT + suffix for suffix in expected]


def test_every_transfer_syntax_with_a_media_type_is_sent_in_it_or_never() -> None:
    named = {row.uid for row in TRANSFER_SYNTAXES.values() if row.media_type}
    assert named - NEVER_SENT == {uid for row in BULKDATA.values() for uid in row}


def test_every_transfer_syntax_belongs_to_one_media_type() -> None:
    uids = [uid for row in BULKDATA.values() for uid in row]
    assert len(uids) == len(set(uids))
    assert all(bulkdata_media_type(uid) == media_type for media_type, row in BULKDATA.items() for uid in row)


# JPEG XL came into the standard after the dictionary of pydicom 3.0.
@pytest.mark.parametrize("uid", [uid for media_type, row in BULKDATA.items() for uid in row if media_type != "image/jxl"])
def test_every_transfer_syntax_is_one(uid: str) -> None:
    assert UID(uid).is_transfer_syntax


def test_a_transfer_syntax_without_a_media_type_of_its_own() -> None:
    assert bulkdata_media_type("1.2.840.10008.1.2.1.98") == OCTET_STREAM


@pytest.mark.parametrize("resource", [Resource.INSTANCES, Resource.FRAMES, Resource.RENDERED_FRAMES])
def test_several_items_are_multipart_only(resource: Resource) -> None:
    assert all(offer.multipart or offer.media_type == "application/zip" for offer in OFFERS[resource])


def test_required_rendered_types() -> None:
    assert RENDERED_IMAGES[0] == "image/jpeg"
    assert {"image/png", "image/gif"} <= set(RENDERED_IMAGES)
