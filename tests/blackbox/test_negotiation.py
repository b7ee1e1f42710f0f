"""Content negotiation (PS3.18 §8.7): what is chosen, and when nothing is."""

from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import instances
from tests.support.accept_headers import accept_headers
from tests.support.dicomweb import AS_STORED, DICOM, JSON, OCTETS, XML, DicomWeb, parts_of


@pytest.fixture
def path(dicomweb: DicomWeb) -> str:
    """An instance with three frames in JPEG 2000."""
    data_set = instances.encapsulated("jpeg 2000")
    dicomweb.store(instances.encoded(data_set, instances.ENCAPSULATED["jpeg 2000"]))
    return instances.resource(data_set)


@pytest.mark.requirement("A-015")
def test_any_type_selects_the_default_of_the_resource(dicomweb: DicomWeb, path: str) -> None:
    assert dicomweb.get(f"{path}/metadata", "*/*").headers["content-type"] == JSON
    assert dicomweb.get("/studies?limit=1", "*/*").headers["content-type"] == JSON
    assert 'type="application/dicom"' in dicomweb.get(path, "*/*").headers["content-type"]
    assert 'type="application/octet-stream"' in dicomweb.get(f"{path}/frames/1", "*/*").headers["content-type"]


@pytest.mark.requirement("A-016")
def test_a_range_of_a_type_selects_its_default(dicomweb: DicomWeb, path: str) -> None:
    assert dicomweb.get(f"{path}/frames/1/rendered", "image/*").headers["content-type"].startswith("image/jpeg")
    assert dicomweb.get(f"{path}/metadata", "application/*").headers["content-type"] == JSON


@pytest.mark.requirement("A-017")
@pytest.mark.parametrize("accept", [f"foo, {JSON}", f"{JSON}, application/x-unknown;q=0.9", f";;, {JSON}", f"/, {JSON};q=0.1"])
def test_entries_that_are_unknown_or_no_media_types_are_ignored(dicomweb: DicomWeb, path: str, accept: str) -> None:
    response = dicomweb.get(f"{path}/metadata", accept)
    assert response.status_code == 200
    assert response.headers["content-type"] == JSON


@pytest.mark.requirement("A-021", "A-022", "A-023")
def test_nothing_acceptable_is_406_and_the_body_says_what_there_is(dicomweb: DicomWeb, path: str) -> None:
    for accept in ("application/zip", f"{JSON};q=0"):
        response = dicomweb.get(f"{path}/metadata", accept)
        assert response.status_code == 406
        assert JSON in response.text
    assert (
        dicomweb.get(f"{path}/frames/1/rendered", "image/jpeg;q=0, image/*").headers["content-type"].startswith(("image/png", "image/gif"))
    )
    response = dicomweb.get(f"{path}/rendered", "application/zip")
    assert response.status_code == 406
    assert "image/jpeg" in response.text


@pytest.mark.requirement("A-024")
def test_the_accept_parameter_chooses_within_the_header(dicomweb: DicomWeb, path: str) -> None:
    response = dicomweb.get(f"{path}/frames/1/rendered?accept=image/png", "*/*")
    assert response.headers["content-type"].startswith("image/png")
    response = dicomweb.get(f"{path}/metadata?accept=application/dicom%2Bjson", "*/*")
    assert response.headers["content-type"] == JSON


@pytest.mark.requirement("A-026")
def test_the_accept_parameter_has_no_wildcards(dicomweb: DicomWeb, path: str) -> None:
    assert dicomweb.get(f"{path}/metadata?accept=*/*", "*/*").status_code == 400


@pytest.mark.requirement("A-027")
def test_an_accept_parameter_outside_the_header_is_not_used(dicomweb: DicomWeb, path: str) -> None:
    assert dicomweb.get(f"{path}/frames/1/rendered?accept=image/png", "image/jpeg").headers["content-type"].startswith("image/jpeg")


@pytest.mark.requirement("A-028")
def test_dicom_and_rendered_types_together_are_refused(dicomweb: DicomWeb, path: str) -> None:
    assert dicomweb.get(path, "application/dicom, image/png").status_code == 400


@pytest.mark.requirement("A-029")
@pytest.mark.parametrize(
    "accept",
    [
        'multipart/related; type="application/dicom"',
        "multipart/related; type=application/dicom",
        "MULTIPART/related;TYPE=Application/DICOM",
    ],
)
def test_the_type_parameter_may_be_quoted_bare_and_in_any_case(dicomweb: DicomWeb, path: str, accept: str) -> None:
    assert len(dicomweb.parts(path, accept)) == 1


@pytest.mark.requirement("A-030", "A-037")
def test_of_several_transfer_syntaxes_the_one_of_the_highest_q_that_can_be_made_is_sent(dicomweb: DicomWeb, path: str) -> None:
    for choices, expected in {
        ("1.2.840.10008.1.2.4.90;q=1", "1.2.840.10008.1.2.1;q=0.5"): "1.2.840.10008.1.2.4.90",
        ("1.2.840.10008.1.2.4.90;q=0.2", "1.2.840.10008.1.2.1;q=0.5"): "1.2.840.10008.1.2.1",
        ("1.2.840.10008.1.2.4.100;q=1", "1.2.840.10008.1.2.1;q=0.5"): "1.2.840.10008.1.2.1",
    }.items():
        accept = ", ".join(f"{DICOM}; transfer-syntax={choice}" for choice in choices)
        (part,) = dicomweb.parts(path, accept)
        assert part.transfer_syntax == expected


@pytest.mark.requirement("A-036")
def test_a_transfer_syntax_that_cannot_be_made_is_406(dicomweb: DicomWeb, path: str) -> None:
    response = dicomweb.get(path, f"{DICOM}; transfer-syntax=1.2.840.10008.1.2.4.100")
    assert response.status_code == 406
    assert response.text


@pytest.mark.requirement("A-019")
def test_a_missing_q_counts_as_one(dicomweb: DicomWeb, path: str) -> None:
    assert dicomweb.get(f"{path}/frames/1/rendered", "image/jpeg;q=0.9, image/png").headers["content-type"].startswith("image/png")


@pytest.mark.requirement("A-018")
def test_the_highest_q_wins(dicomweb: DicomWeb, path: str) -> None:
    assert dicomweb.get(f"{path}/frames/1/rendered", "image/jpeg;q=0.2, image/png;q=0.9").headers["content-type"].startswith("image/png")
    assert dicomweb.get(f"{path}/frames/1/rendered", "image/jpeg;q=0.9, image/png;q=0.2").headers["content-type"].startswith("image/jpeg")


@pytest.mark.requirement("A-020")
def test_the_most_specific_range_decides_the_q(dicomweb: DicomWeb, path: str) -> None:
    accept = "image/*;q=1, image/jpeg;q=0.1, image/gif;q=0, image/png;q=0.5"
    assert dicomweb.get(f"{path}/frames/1/rendered", accept).headers["content-type"].startswith("image/png")


def kind(dicomweb: DicomWeb, path: str, accept: str) -> str:
    """Return the kind of metadata that is answered: JSON or XML."""
    response = dicomweb.get(path, accept)
    assert response.status_code == 200, response.text
    content_type = response.headers["content-type"]
    assert content_type == JSON or content_type.startswith(XML)
    return JSON if content_type == JSON else XML


@pytest.mark.requirement("A-018", "A-019")
def test_the_highest_q_wins_between_json_and_xml(dicomweb: DicomWeb, path: str) -> None:
    assert kind(dicomweb, f"{path}/metadata", f"{JSON};q=0.2, {XML};q=0.9") == XML
    assert kind(dicomweb, f"{path}/metadata", f"{JSON};q=0.9, {XML};q=0.2") == JSON
    assert kind(dicomweb, f"{path}/metadata", f"{XML};q=0.9, {JSON}") == JSON
    assert kind(dicomweb, f"{path}/metadata", f"{JSON};q=0.9, {XML}") == XML


@pytest.mark.requirement("A-020", "A-021")
def test_the_most_specific_range_decides_between_json_and_xml(dicomweb: DicomWeb, path: str) -> None:
    assert kind(dicomweb, f"{path}/metadata", f"*/*;q=1, {JSON};q=0.1, {XML};q=0.5") == XML
    assert kind(dicomweb, f"{path}/metadata", f"{JSON};q=0, */*") == XML
    assert kind(dicomweb, f"{path}/metadata", f"{XML};q=0, */*;q=0.1") == JSON


@pytest.mark.requirement("A-024", "A-025", "A-027")
def test_the_accept_parameter_chooses_between_json_and_xml(dicomweb: DicomWeb, path: str) -> None:
    xml = quote(XML, safe="")
    assert kind(dicomweb, f"{path}/metadata?accept={xml}", f"{JSON}, */*") == XML
    assert kind(dicomweb, f"{path}/metadata?accept={xml}", "*/*") == XML
    assert kind(dicomweb, f"{path}/metadata?accept={xml}", JSON) == JSON
    assert kind(dicomweb, f"{path}/metadata?accept={quote(JSON, safe='')}", f"{XML}, */*;q=0.1") == JSON
    data_set = path.split("/")[2]
    assert kind(dicomweb, f"/studies?StudyInstanceUID={data_set}&accept={xml}", "*/*") == XML


@pytest.mark.requirement("A-025")
def test_the_accept_parameter_beats_the_header(dicomweb: DicomWeb, path: str) -> None:
    response = dicomweb.get(f"{path}/frames/1/rendered?accept=image/png", "image/jpeg, */*;q=0.1")
    assert response.headers["content-type"].startswith("image/png")


@pytest.mark.requirement("A-041", "A-058", "A-057")
def test_an_error_has_a_body_with_its_type_whatever_was_accepted(dicomweb: DicomWeb) -> None:
    for accept, kind in {"application/zip": "text/html", "*/*": "text/html", JSON: "application/json", "text/plain": "text/plain"}.items():
        response = dicomweb.get(f"/studies/{instances.new_uid()}/metadata", accept)
        assert response.status_code in (404, 406)
        assert response.headers["content-type"].startswith(kind)
        assert len(response.text) > 20


@settings(deadline=None, max_examples=60, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(accept=accept_headers(), query=st.none() | accept_headers())
def test_any_accept_header_is_answered(dicomweb: DicomWeb, path: str, accept: str, query: str | None) -> None:
    headers = [("Accept", accept.strip().encode("latin-1"))]
    for target in (path, f"{path}/frames/1", f"{path}/bulkdata", f"{path}/metadata", f"{path}/rendered"):
        parameters = {} if query is None else {"params": {"accept": query}}
        response = dicomweb.http.send(dicomweb.http.build_request("GET", dicomweb.url + target, headers=headers, **parameters))
        assert response.status_code in (200, 400, 406), (target, response.text)
        assert response.content


def test_a_list_with_a_multipart_alternative_gives_json(dicomweb: DicomWeb, path: str) -> None:
    response = dicomweb.get(f"{path}/metadata", f"{JSON}, {XML}")
    assert response.status_code == 200
    assert response.headers["content-type"] == JSON
    assert dicomweb.get(f"{path}/metadata", "application/dicom+json, application/json").status_code == 200


def test_octet_stream_and_dicom_are_both_dicom_types(dicomweb: DicomWeb, path: str) -> None:
    assert parts_of(dicomweb.get(f"{path}/frames/1", f"{OCTETS}, {AS_STORED};q=0.1"))
