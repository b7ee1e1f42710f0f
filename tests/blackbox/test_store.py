"""Store (PS3.18 §10.5): what is answered, and that it is there right afterwards."""

import io
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack

import pydicom
import pytest

from tests.support import instances
from tests.support.dicomweb import AS_STORED, DICOM, JSON, DicomWeb, items, parts_of, related, value
from tests.support.suite import Suite

UNSUPPORTED_CLASS = 290
DUPLICATE = 273
STUDY_MISMATCH = 43264
CANNOT_UNDERSTAND = range(49152, 53248)
MODALITY_WORKLIST = "1.2.840.10008.5.1.4.31"


@pytest.mark.distributed
@pytest.mark.requirement("S-001", "S-022", "S-028")
def test_an_instance_that_is_stored_can_be_retrieved_at_once(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    sent = instances.encoded(data_set)
    response = dicomweb.stow(sent)
    assert response.status_code == 200
    assert response.headers["content-type"] == JSON
    answer = response.json()
    assert isinstance(answer, dict)
    assert "00081198" not in answer
    (part,) = dicomweb.parts(instances.resource(data_set), AS_STORED)
    assert part.content == sent


@pytest.mark.requirement("S-030", "S-032", "S-040")
def test_the_answer_names_each_instance_and_where_it_can_be_retrieved(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    answer = dicomweb.stow(instances.encoded(data_set)).json()
    assert answer["00081190"] == {"vr": "UR", "Value": [dicomweb.url + instances.study_resource(data_set)]}
    (item,) = items(answer, "00081199")
    assert item == {
        "00081150": {"vr": "UI", "Value": [instances.CT_IMAGE]},
        "00081155": {"vr": "UI", "Value": [data_set.SOPInstanceUID]},
        "00081190": {"vr": "UR", "Value": [dicomweb.url + instances.resource(data_set)]},
    }
    assert dicomweb.get(value(item, "00081190"), AS_STORED).status_code == 200


@pytest.mark.distributed
@pytest.mark.requirement("S-002")
def test_one_request_may_carry_several_studies(dicomweb: DicomWeb) -> None:
    data_sets = [instances.ct() for _ in range(3)]
    response = dicomweb.stow(*(instances.encoded(data_set) for data_set in data_sets))
    assert response.status_code == 200
    assert {value(item, "00081155") for item in items(response.json(), "00081199")} == {data_set.SOPInstanceUID for data_set in data_sets}
    for data_set in data_sets:
        assert len(dicomweb.parts(instances.study_resource(data_set), AS_STORED)) == 1
    assert not response.json()["00081190"].get("Value")


@pytest.mark.requirement("S-003")
def test_instances_of_one_study_can_be_stored_under_that_study(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    assert dicomweb.stow(instances.encoded(data_set), study=data_set.StudyInstanceUID).status_code == 200
    assert len(dicomweb.metadata(instances.study_resource(data_set))) == 1


@pytest.mark.requirement("S-004", "S-023", "S-031")
def test_an_instance_of_another_study_fails_and_the_others_are_stored(dicomweb: DicomWeb) -> None:
    mine, other = instances.ct(), instances.ct()
    response = dicomweb.stow(instances.encoded(mine), instances.encoded(other), study=mine.StudyInstanceUID)
    assert response.status_code == 202
    (failed,) = items(response.json(), "00081198")
    assert failed == {
        "00081150": {"vr": "UI", "Value": [instances.CT_IMAGE]},
        "00081155": {"vr": "UI", "Value": [other.SOPInstanceUID]},
        "00081197": {"vr": "US", "Value": [STUDY_MISMATCH]},
    }
    assert [value(item, "00081155") for item in items(response.json(), "00081199")] == [mine.SOPInstanceUID]
    assert dicomweb.get(instances.resource(other), AS_STORED).status_code == 404


@pytest.mark.requirement("S-004")
def test_a_request_whose_every_instance_is_of_another_study_is_a_conflict(dicomweb: DicomWeb) -> None:
    other = instances.ct()
    response = dicomweb.stow(instances.encoded(other), study=instances.new_uid())
    assert response.status_code == 409
    assert [value(item, "00081197") for item in items(response.json(), "00081198")] == [STUDY_MISMATCH]


@pytest.mark.requirement("S-024")
def test_a_class_that_is_no_storage_class_is_refused(dicomweb: DicomWeb) -> None:
    response = dicomweb.stow(instances.encoded(instances.ct(SOPClassUID=MODALITY_WORKLIST)))
    assert response.status_code == 409
    (failed,) = items(response.json(), "00081198")
    assert value(failed, "00081197") == UNSUPPORTED_CLASS


def test_a_private_storage_class_is_accepted(dicomweb: DicomWeb) -> None:
    data_set = instances.ct(SOPClassUID="1.2.826.0.1.3680043.9.7133.99.1")
    assert dicomweb.stow(instances.encoded(data_set)).status_code == 200
    assert len(dicomweb.parts(instances.resource(data_set), AS_STORED)) == 1


@pytest.mark.requirement("S-033", "S-023")
def test_a_part_that_is_no_instance_fails_without_a_name_and_the_others_are_stored(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    response = dicomweb.stow(b"this is no DICOM, only some text that goes on for a while" * 10, instances.encoded(data_set))
    assert response.status_code == 202
    (failure,) = items(response.json(), "0008119A")
    assert value(failure, "00081197") in CANNOT_UNDERSTAND
    assert len(items(response.json(), "00081199")) == 1
    assert dicomweb.get(instances.resource(data_set), AS_STORED).status_code == 200


@pytest.mark.distributed
def test_a_truncated_file_fails_and_nothing_of_it_is_found(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    response = dicomweb.stow(instances.encoded(data_set)[:-700])
    assert response.status_code == 409
    failures = items(response.json(), "00081198") + items(response.json(), "0008119A")
    assert [value(failure, "00081197") in CANNOT_UNDERSTAND for failure in failures] == [True]
    assert dicomweb.search(f"/instances?SOPInstanceUID={data_set.SOPInstanceUID}") == []


@pytest.mark.distributed
@pytest.mark.requirement("S-025")
def test_a_body_without_its_closing_boundary_is_refused_and_nothing_of_it_is_stored(dicomweb: DicomWeb) -> None:
    first, second = instances.ct(), instances.ct()
    body = related([instances.encoded(first), instances.encoded(second)], "B")
    for end in (len(body) - 7, len(body) - 500, len(body) // 2):
        response = dicomweb.post_related(body[:end], "B")
        assert response.status_code == 400
        assert response.text
    assert dicomweb.search(f"/instances?SOPInstanceUID={first.SOPInstanceUID},{second.SOPInstanceUID}") == []


@pytest.mark.requirement("S-025")
@pytest.mark.parametrize(
    "content_type",
    ['multipart/related; type="application/dicom"', 'multipart/related; type="application/dicom"; boundary=""'],
    ids=["no boundary", "empty boundary"],
)
def test_a_content_type_without_a_boundary_is_refused(dicomweb: DicomWeb, content_type: str) -> None:
    response = dicomweb.post_related(related([instances.encoded(instances.ct())], "B"), "B", content_type=content_type)
    assert response.status_code == 400
    assert "boundary" in response.text


@pytest.mark.requirement("S-025")
def test_a_body_that_does_not_hold_its_boundary_is_refused(dicomweb: DicomWeb) -> None:
    assert dicomweb.post_related(instances.encoded(instances.ct()), "never-there").status_code == 400


@pytest.mark.requirement("S-026", "A-055", "A-056")
@pytest.mark.parametrize(
    "content_type", ["text/plain", "text/csv", 'multipart/related; type="text/plain"; boundary=B', "multipart/form-data; boundary=B"]
)
def test_another_content_type_is_refused_with_those_that_are_taken(dicomweb: DicomWeb, content_type: str) -> None:
    response = dicomweb.post_related(related([b"x"], "B"), "B", content_type=content_type)
    assert response.status_code == 415
    assert "application/dicom" in response.text


@pytest.mark.requirement("S-027")
def test_a_chunked_body_without_content_length_is_stored(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    body = related([instances.encoded(data_set)], "B")

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(body), 333):
            yield body[at : at + 333]

    response = dicomweb.post_related(pieces(), "B")
    assert "content-length" not in response.request.headers
    assert response.status_code == 200
    assert dicomweb.parts(instances.resource(data_set), AS_STORED)[0].content == instances.encoded(data_set)


@pytest.mark.requirement("S-036")
def test_location_is_the_study_that_was_stored_or_all_studies(dicomweb: DicomWeb) -> None:
    data_set, other = instances.ct(), instances.ct()
    response = dicomweb.stow(instances.encoded(data_set))
    assert response.headers["location"] == dicomweb.url + instances.study_resource(data_set)
    assert "content-location" in response.headers
    response = dicomweb.stow(instances.encoded(instances.ct()), instances.encoded(other))
    assert response.headers["location"] == dicomweb.url + "/studies"


@pytest.mark.requirement("S-038")
@pytest.mark.parametrize("body", [b"", b"--B--\r\n"], ids=["no bytes", "no parts"])
def test_an_empty_payload_is_refused(dicomweb: DicomWeb, body: bytes) -> None:
    response = dicomweb.post_related(body, "B")
    assert response.status_code == 400
    assert response.text


@pytest.mark.distributed
@pytest.mark.requirement("S-041")
def test_the_same_content_again_is_a_success_and_changes_nothing(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    sent = instances.encoded(data_set)
    assert dicomweb.stow(sent).status_code == 200
    assert dicomweb.stow(sent).status_code == 200
    assert dicomweb.stow(sent, sent).status_code == 200
    assert len(dicomweb.metadata(instances.study_resource(data_set))) == 1
    assert dicomweb.parts(instances.resource(data_set), AS_STORED)[0].content == sent


@pytest.mark.distributed
@pytest.mark.requirement("S-041")
def test_other_content_under_the_same_uid_fails_and_the_first_stays(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    first = instances.encoded(data_set)
    data_set.StudyDescription = "another one"
    second = instances.encoded(data_set)
    dicomweb.store(first)
    response = dicomweb.stow(second)
    assert response.status_code == 409
    (failed,) = items(response.json(), "00081198")
    assert value(failed, "00081155") == data_set.SOPInstanceUID
    assert value(failed, "00081197") == DUPLICATE
    assert dicomweb.parts(instances.resource(data_set), AS_STORED)[0].content == first


@pytest.mark.distributed
@pytest.mark.requirement("S-041")
def test_of_two_contents_under_one_uid_in_one_request_the_first_part_wins(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    first = instances.encoded(data_set)
    data_set.PatientID = "P-2"
    response = dicomweb.stow(first, instances.encoded(data_set))
    assert response.status_code == 202
    assert [value(item, "00081197") for item in items(response.json(), "00081198")] == [DUPLICATE]
    assert dicomweb.parts(instances.resource(data_set), AS_STORED)[0].content == first


@pytest.mark.requirement("S-042")
def test_a_single_part_application_dicom_is_stored(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    response = dicomweb.post_related(instances.encoded(data_set), "", content_type="application/dicom")
    assert response.status_code == 200
    assert dicomweb.parts(instances.resource(data_set), AS_STORED)[0].content == instances.encoded(data_set)


@pytest.mark.requirement("S-044")
def test_without_accept_the_answer_is_json(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    response = dicomweb.stow(instances.encoded(data_set), accept=None)
    assert response.status_code == 200
    assert response.headers["content-type"] == JSON
    assert len(items(response.json(), "00081199")) == 1


@pytest.mark.requirement("S-044")
def test_an_answer_that_nobody_accepts_is_refused_before_anything_is_stored(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    assert dicomweb.stow(instances.encoded(data_set), accept="image/png").status_code == 406
    assert dicomweb.search(f"/instances?SOPInstanceUID={data_set.SOPInstanceUID}") == []


@pytest.mark.requirement("A-029")
@pytest.mark.parametrize(
    "content_type",
    [
        'multipart/related; type="application/dicom"; boundary=B',
        "multipart/related; type=application/dicom; boundary=B",
        'multipart/related;type="application/dicom";boundary="B"',
        "Multipart/Related; boundary=B; TYPE=application/dicom",
    ],
    ids=["quoted type", "bare type", "quoted boundary", "other case and order"],
)
def test_the_content_type_may_be_spelled_in_every_legal_way(dicomweb: DicomWeb, content_type: str) -> None:
    data_set = instances.ct()
    body = related([instances.encoded(data_set)], "B")
    assert dicomweb.post_related(body, "B", content_type=content_type).status_code == 200


@pytest.mark.parametrize(
    ("wrap", "part_type", "newline"),
    [
        pytest.param(lambda body: b"\r\n" + body, "application/dicom", b"\r\n", id="CRLF before the first boundary"),
        pytest.param(lambda body: b"This is a preamble.\r\n" + body, "application/dicom", b"\r\n", id="preamble"),
        pytest.param(lambda body: body + b"An epilogue.", "application/dicom", b"\r\n", id="epilogue"),
        pytest.param(lambda body: body.rstrip(b"\r\n"), "application/dicom", b"\r\n", id="no CRLF at the end"),
        pytest.param(lambda body: body, "application/dicom", b"\n", id="LF instead of CRLF"),
        pytest.param(lambda body: body.replace(b"Content-Type:", b"content-type:"), "application/dicom", b"\r\n", id="lower-case names"),
        pytest.param(lambda body: body, "", b"\r\n", id="no headers in the parts"),
        pytest.param(
            lambda body: body, f"application/dicom; transfer-syntax={pydicom.uid.ExplicitVRLittleEndian}", b"\r\n", id="named syntax"
        ),
        pytest.param(lambda body: body.replace(b"--B\r\n", b"--B \t\r\n"), "application/dicom", b"\r\n", id="space after the boundary"),
    ],
)
def test_multipart_is_read_as_clients_write_it(dicomweb: DicomWeb, wrap, part_type: str, newline: bytes) -> None:  # type: ignore[no-untyped-def]
    data_sets = [instances.ct(), instances.ct()]
    body = wrap(related([instances.encoded(data_set) for data_set in data_sets], "B", part_type, newline))
    response = dicomweb.post_related(body, "B")
    assert response.status_code == 200, response.text
    for data_set in data_sets:
        assert dicomweb.parts(instances.resource(data_set), AS_STORED)[0].content == instances.encoded(data_set)


def test_a_boundary_may_be_split_anywhere_between_chunks(dicomweb: DicomWeb) -> None:
    data_sets = [instances.ct(4, 4), instances.ct(4, 4)]
    boundary = "A-quite-long-boundary-0123456789"
    body = related([instances.encoded(data_set) for data_set in data_sets], boundary)
    at = body.index(boundary.encode(), 100)

    def pieces() -> Iterator[bytes]:
        yield body[: at - 4]
        for place in range(at - 4, at + 40):
            yield body[place : place + 1]
        yield body[at + 40 :]

    assert dicomweb.post_related(pieces(), boundary).status_code == 200
    for data_set in data_sets:
        assert dicomweb.parts(instances.resource(data_set), AS_STORED)[0].content == instances.encoded(data_set)


def test_bytes_that_look_nearly_like_the_boundary_stay_data(dicomweb: DicomWeb) -> None:
    lure = b"\r\n--BOUNDARY0\r\n\r\n--BOUNDAR\r\n--\r\n\r\n\r\n-" * 50
    data_set = instances.ct()
    data_set.PixelData = (lure + data_set.PixelData)[: 32 * 48 * 2]
    response = dicomweb.post_related(related([instances.encoded(data_set)], "BOUNDARY1"), "BOUNDARY1")
    assert response.status_code == 200
    assert dicomweb.parts(instances.resource(data_set), AS_STORED)[0].content == instances.encoded(data_set)


@pytest.mark.requirement("A-039")
def test_the_transfer_syntax_of_the_file_prevails_over_that_of_the_part(dicomweb: DicomWeb) -> None:
    data_set = instances.encapsulated("jpeg 2000")
    sent = instances.encoded(data_set, instances.ENCAPSULATED["jpeg 2000"])
    assert dicomweb.stow(sent, part_type=f"application/dicom; transfer-syntax={instances.NATIVE['explicit']}").status_code == 200
    (part,) = dicomweb.parts(instances.resource(data_set), AS_STORED)
    assert part.transfer_syntax == instances.ENCAPSULATED["jpeg 2000"]
    assert part.content == sent


@pytest.mark.parametrize("name", instances.NATIVE)
def test_every_native_encoding_is_stored_and_understood(dicomweb: DicomWeb, name: str) -> None:
    data_set = instances.ct(PatientID=f"native {name}")
    dicomweb.store(instances.encoded(data_set, instances.NATIVE[name]))
    (found,) = dicomweb.metadata(instances.resource(data_set))
    assert value(found, "00100020") == f"native {name}"
    (part,) = dicomweb.parts(instances.resource(data_set), DICOM)
    read = pydicom.dcmread(io.BytesIO(part.content))
    assert (read.pixel_array == instances.ct_pixels()).all()


@pytest.mark.requirement("A-069")
def test_a_preamble_that_could_be_run_leaves_as_zeros(dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    sent = b"#!/bin/sh\nexit 1\n".ljust(128, b"X") + instances.encoded(data_set)[128:]
    dicomweb.store(sent)
    for accept in (DICOM, AS_STORED):
        (part,) = dicomweb.parts(instances.resource(data_set), accept)
        assert part.content[:132] == b"\0" * 128 + b"DICM"
        assert part.content[132:] == sent[132:]


@pytest.mark.parametrize(
    "uid", ["1..2", "1.2.", "1.2.x", "1" * 65], ids=["empty component", "ends with a dot", "a letter", "65 characters"]
)
def test_an_instance_whose_uid_is_none_fails(dicomweb: DicomWeb, uid: str) -> None:
    good, bad = instances.ct(4, 4), instances.ct(4, 4)
    stand_in = "9" * (len(uid) + len(uid) % 2)
    with pydicom.config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bad.StudyInstanceUID = stand_in
        encoded = instances.encoded(bad).replace(stand_in.encode(), uid.encode().ljust(len(stand_in), b"\0"))
    response = dicomweb.stow(encoded, instances.encoded(good))
    assert response.status_code == 202
    assert len(items(response.json(), "00081198")) + len(items(response.json(), "0008119A")) == 1
    assert parts_of(dicomweb.get(instances.resource(good), AS_STORED))


@pytest.mark.distributed
def test_a_hundred_instances_in_one_request_are_each_answered_for(dicomweb: DicomWeb) -> None:
    study, series = instances.new_uid(), instances.new_uid()
    data_sets = [instances.ct(8, 8, StudyInstanceUID=study, SeriesInstanceUID=series, InstanceNumber=number) for number in range(1, 101)]
    response = dicomweb.stow(*(instances.encoded(data_set) for data_set in data_sets))
    assert response.status_code == 200
    assert {value(item, "00081155") for item in items(response.json(), "00081199")} == {data_set.SOPInstanceUID for data_set in data_sets}
    (row,) = dicomweb.search(f"/studies?StudyInstanceUID={study}")
    assert value(row, "00201208") == 100
    assert [value(found, "00200013") for found in dicomweb.metadata(f"/studies/{study}/series/{series}")] == list(range(1, 101))


def test_uploads_that_send_nothing_more_do_not_keep_others_out(suite: Suite, dicomweb: DicomWeb) -> None:
    head = (
        b'POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/related; type="application/dicom"; boundary=B\r\n'
        b"Content-Length: 99999999\r\n\r\n--B\r\nContent-Type: application/dicom\r\n\r\n"
    )
    begun = instances.encoded(instances.ct(512, 512))
    with ExitStack() as stack:
        for _ in range(70):  # more than GANTRY_CONCURRENT_UPLOADS
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", suite.port), 10))
            connection.sendall(head + begun + bytes(1_700_000 - len(begun)))
        deadline = time.monotonic() + 10
        while (response := dicomweb.stow(instances.encoded(instances.ct()))).status_code == 503 and time.monotonic() < deadline:
            pass
        assert response.status_code == 200
        assert dicomweb.stow(*[instances.encoded(instances.ct(512, 512)) for _ in range(4)]).status_code == 200
