"""Content negotiation, row by row."""

import pytest

from gantry_standard import errors
from gantry_standard.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN as EXPLICIT
from gantry_standard.dicom.transfer_syntaxes import transfer_syntax
from gantry_standard.http import media_types
from gantry_standard.http.media_types import DICOM, DICOM_JSON, DICOM_XML, OCTET_STREAM, OFFERS, Offer, Resource
from gantry_standard.http.negotiation import Plan, available, negotiate, parse, plans, quality_of, select

XML = 'multipart/related; type="application/dicom+xml"'
J2K = "1.2.840.10008.1.2.4.90"
JPEG = "1.2.840.10008.1.2.4.50"
SV1 = "1.2.840.10008.1.2.4.70"
HTJ2K = "1.2.840.10008.1.2.4.201"
OCTETS = 'multipart/related; type="application/octet-stream"'

HEADER = "text/*;q=0.5, text/html;q=0.4, text/html;level=1, text/html;level=2;q=0.7, image/png, */*;q=0.4"


@pytest.mark.parametrize(
    ("offer", "quality"),
    [
        (Offer("text/html", parameters=(("level", "1"),)), 1.0),
        (Offer("text/html", parameters=(("level", "2"),)), 0.7),
        (Offer("text/plain"), 0.5),
        (Offer("text/rtf"), 0.5),
        (Offer("text/html"), 0.4),
        (Offer("application/x-latex"), 0.4),
    ],
    ids=["html;level=1", "html;level=2", "plain", "rtf", "html", "x-latex"],
)
def test_worked_example_of_table_8_7_8_1(offer: Offer, quality: float) -> None:
    assert quality_of(offer, parse(HEADER), frozenset({"level"})) == quality


# Rows: Accept, stored transfer syntax, the best plan (media type, multipart, transfer syntax), None for 406.
FRAME_ROWS = [
    ('multipart/related; type="application/octet-stream"; transfer-syntax=*', J2K, (OCTET_STREAM, True, J2K)),
    ("multipart/related;type=application/octet-stream;transfer-syntax=*", J2K, (OCTET_STREAM, True, J2K)),
    ('multipart/related ; type = "application/octet-stream" ; transfer-syntax = "*" ', J2K, (OCTET_STREAM, True, J2K)),
    (f"{OCTETS}; transfer-syntax={EXPLICIT}; transfer-syntax=*", J2K, (OCTET_STREAM, True, J2K)),
    (f"{OCTETS}; transfer-syntax={J2K};", J2K, (OCTET_STREAM, True, J2K)),
    ("MULTIPART/Related; TYPE=Application/Octet-Stream; Transfer-Syntax=*", J2K, (OCTET_STREAM, True, J2K)),
    (OCTETS, J2K, (OCTET_STREAM, True, EXPLICIT)),
    ("", J2K, (OCTET_STREAM, True, EXPLICIT)),
    ("*/*", J2K, (OCTET_STREAM, True, EXPLICIT)),
    ("*/*; transfer-syntax=*", J2K, (OCTET_STREAM, True, J2K)),
    ("application/*", J2K, (OCTET_STREAM, False, EXPLICIT)),
    ("multipart/related", J2K, (OCTET_STREAM, True, EXPLICIT)),
    ('multipart/related; type="*/*"', J2K, (OCTET_STREAM, True, EXPLICIT)),
    ("application/octet-stream", J2K, (OCTET_STREAM, False, EXPLICIT)),
    ("application/octet-stream; transfer-syntax=*", J2K, (OCTET_STREAM, False, J2K)),
    ("image/*", J2K, ("image/jp2", False, J2K)),
    ('multipart/related; type="image/*"', J2K, ("image/jp2", True, J2K)),
    ('multipart/related; type="image/*"', JPEG, ("image/jpeg", True, JPEG)),
    ("image/jpeg", JPEG, ("image/jpeg", False, JPEG)),
    ("image/jpeg", "1.2.840.10008.1.2.4.57", ("image/jpeg", False, SV1)),
    ("image/jphc", "1.2.840.10008.1.2.4.202", ("image/jphc", False, HTJ2K)),
    ("image/jphc; transfer-syntax=*", "1.2.840.10008.1.2.4.202", ("image/jphc", False, "1.2.840.10008.1.2.4.202")),
    ("image/jpeg", EXPLICIT, ("image/jpeg", False, SV1)),
    ("image/jpeg; transfer-syntax=*", EXPLICIT, ("image/jpeg", False, SV1)),
    ('multipart/related; type="image/jphc"', J2K, ("image/jphc", True, HTJ2K)),
    ("image/jp2; level=1", J2K, ("image/jp2", False, J2K)),
    ('multipart/related; type="image/x-jls"', EXPLICIT, ("image/jls", True, "1.2.840.10008.1.2.4.80")),
    ("image/x-dicom-rle", EXPLICIT, ("image/dicom-rle", False, "1.2.840.10008.1.2.5")),
    (
        f"image/jpeg;transfer-syntax={JPEG};q=0.5, image/jpeg;transfer-syntax={SV1};q=0.9",
        EXPLICIT,
        ("image/jpeg", False, SV1),
    ),
    (f"image/jpeg;transfer-syntax={JPEG}, image/jpeg;transfer-syntax={SV1};q=0.9", EXPLICIT, ("image/jpeg", False, JPEG)),
    (f"image/jp2;q=0.1, {OCTETS};q=0.2", J2K, (OCTET_STREAM, True, EXPLICIT)),
    (f"{OCTETS}; transfer-syntax=*; q=0.1, {OCTETS}", J2K, (OCTET_STREAM, True, EXPLICIT)),
    (f"foo, {OCTETS}", J2K, (OCTET_STREAM, True, EXPLICIT)),
    (f"image/jp2;q=abc, {OCTETS}", J2K, (OCTET_STREAM, True, EXPLICIT)),
    (f"image/jp2;q=2, {OCTETS};q=0.001", J2K, (OCTET_STREAM, True, EXPLICIT)),
    (f"{OCTETS};q=0, */*", J2K, (OCTET_STREAM, False, EXPLICIT)),
    (f"multipart/mixed, {OCTETS}", J2K, (OCTET_STREAM, True, EXPLICIT)),
    (f"{OCTETS}; transfer-syntax=1.2.840.10008.1.2", J2K, None),
    (f"{OCTETS}; transfer-syntax=1.2.840.10008.1.2.2", J2K, None),
    (f"image/jp2; transfer-syntax={JPEG}", J2K, None),
    ("application/dicom", J2K, None),
    ("application/x-unknown", J2K, None),
    ("video/*;q=0", J2K, None),
    ("text/html", J2K, None),
    (";;,,", J2K, None),
    ('"', J2K, None),
]


@pytest.mark.parametrize(("accept", "stored", "expected"), FRAME_ROWS, ids=[row[0] or "missing" for row in FRAME_ROWS])
def test_frame(accept: str, stored: str, expected: tuple[str, bool, str] | None) -> None:
    try:
        found = plans(negotiate(Resource.FRAME, accept), stored, may_stay=transfer_syntax(stored).is_lossy)
    except errors.NotAcceptable:
        found = ()
    assert (found[0].media_type, found[0].multipart, found[0].transfer_syntax_uid) == expected if expected else found == ()


@pytest.mark.parametrize(
    ("resource", "accept", "media_type", "multipart"),
    [
        pytest.param(Resource.INSTANCES, "*/*", DICOM, True, id="study, any"),
        pytest.param(Resource.INSTANCES, "application/dicom, */*;q=0.1", DICOM, True, id="single part is ignored for a study"),
        pytest.param(Resource.INSTANCE, "application/dicom", DICOM, False, id="instance, single part"),
        pytest.param(Resource.INSTANCE, "*/*", DICOM, True, id="instance, any"),
        pytest.param(Resource.BULKDATA, "*/*", OCTET_STREAM, False, id="bulkdata, any"),
        pytest.param(Resource.BULKDATA, OCTETS, OCTET_STREAM, True, id="bulkdata, multipart"),
        pytest.param(Resource.RENDERED, "*/*", "image/jpeg", False, id="rendered, any"),
        pytest.param(Resource.RENDERED, "image/*", "image/jpeg", False, id="rendered, image"),
        pytest.param(Resource.RENDERED, "image/*;q=0.5, image/png", "image/png", False, id="rendered, png"),
        pytest.param(Resource.RENDERED_FRAMES, "*/*", "image/jpeg", True, id="rendered frames, any"),
        pytest.param(Resource.RENDERED_INSTANCE_FRAMES, "image/png", "image/png", True, id="rendered multi-frame, single part"),
    ],
)
def test_best_choice(resource: Resource, accept: str, media_type: str, multipart: bool) -> None:
    best = negotiate(resource, accept)[0]
    assert (best.media_type, best.multipart) == (media_type, multipart)


@pytest.mark.parametrize(
    ("resource", "accept"),
    [
        pytest.param(Resource.INSTANCES, "application/dicom", id="single part of a study"),
        pytest.param(Resource.INSTANCES, "application/octet-stream", id="legacy bulkdata of a study, single part"),
        pytest.param(Resource.INSTANCE, "application/zip", id="an archive of one instance"),
        pytest.param(Resource.FRAMES, "application/octet-stream", id="single part of several frames"),
        pytest.param(Resource.RENDERED, "image/jpeg;transfer-syntax=1.2.840.10008.1.2.4.50", id="transfer-syntax on a rendered type"),
        pytest.param(Resource.RENDERED_FRAMES, "image/jpeg", id="single part of rendered frames"),
    ],
)
def test_not_acceptable(resource: Resource, accept: str) -> None:
    with pytest.raises(errors.NotAcceptable) as raised:
        negotiate(resource, accept)
    assert OFFERS[resource][0].media_type in raised.value.message


@pytest.mark.parametrize("accept", ["application/dicom, image/png", f"{OCTETS}, text/*", "application/dicom+json, application/pdf"])
def test_dicom_and_rendered_types_do_not_mix(accept: str) -> None:
    with pytest.raises(errors.BadRequest):
        negotiate(Resource.FRAME, accept)


def test_a_missing_header_is_refused_when_strict() -> None:
    with pytest.raises(errors.NotAcceptable):
        negotiate(Resource.FRAME, "", strict=True)
    with pytest.raises(errors.NotAcceptable):
        negotiate(Resource.FRAME, "", "application/x-unknown", strict=True)
    (choice,) = negotiate(Resource.FRAME, "", "application/octet-stream", strict=True)
    assert (choice.media_type, choice.multipart) == (OCTET_STREAM, False)


@pytest.mark.parametrize(
    ("header", "query", "expected"),
    [
        pytest.param("*/*", "application/octet-stream", (OCTET_STREAM, False), id="the parameter beats the header"),
        pytest.param("", "application/octet-stream", (OCTET_STREAM, False), id="the header may be missing"),
        pytest.param("image/jp2, application/*;q=0.1", "application/octet-stream", (OCTET_STREAM, False), id="covered by a wildcard"),
        pytest.param("image/jp2", "application/octet-stream", ("image/jp2", False), id="not covered: not used"),
        pytest.param("image/jp2, application/octet-stream;q=0", "application/octet-stream", ("image/jp2", False), id="excluded"),
        pytest.param("*/*", "application/x-unknown", (OCTET_STREAM, True), id="unknown: the header decides"),
        pytest.param("*/*", "image/jp2;q=0.2, application/octet-stream;q=0.1", ("image/jp2", False), id="a list with q"),
    ],
)
def test_accept_parameter(header: str, query: str, expected: tuple[str, bool]) -> None:
    best = negotiate(Resource.FRAME, header, query)[0]
    assert (best.media_type, best.multipart) == expected


@pytest.mark.parametrize("query", ["*/*", "image/*", 'multipart/related; type="image/*"'])
def test_the_accept_parameter_has_no_wildcards(query: str) -> None:
    with pytest.raises(errors.BadRequest):
        negotiate(Resource.FRAME, "*/*", query)


def test_all_that_the_header_accepts_follows_in_order() -> None:
    found = plans(negotiate(Resource.FRAME, f"image/jls, {OCTETS};q=0.5, image/jp2;q=0.7"), EXPLICIT)
    assert [plan.media_type for plan in found] == ["image/jls", "image/jp2", OCTET_STREAM]
    assert [plan.as_stored for plan in found] == [False, False, True]


def test_what_is_lossy_already_may_stay_where_no_transfer_syntax_is_named() -> None:
    video = "1.2.840.10008.1.2.4.102"
    named, unnamed = (negotiate(Resource.INSTANCE, f"{DICOM}{more}") for more in (f"; transfer-syntax={EXPLICIT}", ""))
    assert [plan.transfer_syntax_uid for plan in plans(unnamed, video, may_stay=True)] == [EXPLICIT, video]
    assert [plan.transfer_syntax_uid for plan in plans(unnamed, video)] == [EXPLICIT]
    assert [plan.transfer_syntax_uid for plan in plans(named, video, may_stay=True)] == [EXPLICIT]


@pytest.mark.parametrize("accept", ["*/*", "application/*", "multipart/*", "multipart/related", 'multipart/related; type="*/*"'])
def test_a_wildcard_selects_neither_the_legacy_form_nor_the_archive(accept: str) -> None:
    try:
        found = negotiate(Resource.INSTANCES, accept)
    except errors.NotAcceptable:
        assert accept == "application/*"
    else:
        assert {choice.media_type for choice in found} == {DICOM}


def test_compressed_bulkdata_has_no_default_so_what_is_stored_comes_first() -> None:
    assert plans(negotiate(Resource.COMPRESSED_BULKDATA, "*/*"), J2K)[0] == Plan("image/jp2", True, J2K, True)


@pytest.mark.parametrize(
    "accept",
    [
        DICOM_JSON,
        "application/json",
        "*/*",
        "",
        "application/*",
        "application/json, text/plain, */*",
        'multipart/related; type="application/dicom+xml", application/dicom+json',
    ],
)
def test_json_is_accepted(accept: str) -> None:
    assert select(Resource.SEARCH, accept).media_type == DICOM_JSON
    assert select(Resource.WORKITEM, accept).media_type == DICOM_JSON


@pytest.mark.parametrize("accept", ["text/plain", f"{DICOM_JSON};q=0", "image/png"])
def test_a_workitem_is_neither_text_nor_image(accept: str) -> None:
    with pytest.raises(errors.NotAcceptable):
        select(Resource.WORKITEM, accept)


@pytest.mark.parametrize(("accept", "is_multipart"), [(XML, True), ("application/dicom+xml", False), (f"{DICOM_JSON};q=0, */*", True)])
def test_a_workitem_may_be_xml_related_or_single(accept: str, is_multipart: bool) -> None:
    choice = select(Resource.WORKITEM, accept)
    assert (choice.media_type, choice.multipart) == ("application/dicom+xml", is_multipart)


@pytest.mark.parametrize(
    ("accept", "query_accept", "expected"),
    [
        pytest.param(XML, None, DICOM_XML, id="alone"),
        pytest.param(f"{XML}, {DICOM_JSON}", None, DICOM_JSON, id="wanted equally, so ours first"),
        pytest.param(f"{DICOM_JSON};q=0.2, {XML};q=0.9", None, DICOM_XML, id="A-018"),
        pytest.param(f"{XML};q=0.9, {DICOM_JSON}", None, DICOM_JSON, id="A-019"),
        pytest.param(f"*/*;q=1, {DICOM_JSON};q=0.1, {XML};q=0.5", None, DICOM_XML, id="A-020"),
        pytest.param(f"{DICOM_JSON};q=0, */*", None, DICOM_XML, id="A-021"),
        pytest.param(f"application/json;q=0.5, {XML}", None, DICOM_XML, id="the alias of JSON"),
        pytest.param(f"{XML}, */*;q=0.1", None, DICOM_XML, id="rather than what a wildcard selects"),
        pytest.param(f"{DICOM_JSON}, */*", 'multipart/related;type="application/dicom+xml"', DICOM_XML, id="A-025"),
        pytest.param(DICOM_JSON, XML, DICOM_JSON, id="A-027"),
        pytest.param("multipart/related; type=application/dicom+xml; charset=latin-9", None, DICOM_XML, id="charset is ignored"),
    ],
)
def test_json_or_xml(accept: str, query_accept: str | None, expected: str) -> None:
    for resource in (Resource.METADATA, Resource.SEARCH):
        choice = select(resource, accept, query_accept)
        assert (choice.media_type, choice.multipart) == (expected, expected == DICOM_XML)
    assert select(Resource.STORE, accept, query_accept).media_type == expected


def test_xml_as_a_single_part_is_a_store_response_only() -> None:
    choice = select(Resource.STORE, DICOM_XML)
    assert (choice.media_type, choice.multipart) == (DICOM_XML, False)
    for resource in (Resource.METADATA, Resource.SEARCH):
        with pytest.raises(errors.NotAcceptable, match="application/dicom\\+xml"):
            select(resource, DICOM_XML)


def test_json_by_the_accept_parameter() -> None:
    assert select(Resource.SEARCH, "*/*", DICOM_JSON).media_type == DICOM_JSON
    assert select(Resource.SEARCH, "", "application/json").media_type == DICOM_JSON
    with pytest.raises(errors.BadRequest):
        select(Resource.SEARCH, "*/*", "*/*")


def test_what_is_available_is_told() -> None:
    sentence = available(Resource.FRAME, J2K)
    assert OCTETS in sentence
    assert sentence.endswith(f"stored as image/jp2 in transfer syntax {J2K}")


def test_a_header_of_many_ranges_is_bounded() -> None:
    assert len(parse(", ".join(f"a/b{n}" for n in range(1000)))) == 64


@pytest.mark.parametrize("resource", list(Resource))
def test_every_resource_has_offers(resource: Resource) -> None:
    assert media_types.OFFERS[resource]
