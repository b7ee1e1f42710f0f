"""What Store accepts, changes and answers (PS3.18 §10.5, Annex I): every reason, every warning, coercion, the second reader."""

import io
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.blackbox.conftest import forget, settings_of
from tests.support import broken, instances
from tests.support import hand_made as h
from tests.support.dicomweb import AS_STORED, DICOM, JSON, DicomWeb, items, related, value, walk
from tests.support.suite import STORE_SETS, Suite

COERCION, ELEMENTS_DISCARDED, DOES_NOT_MATCH = 0xB000, 0xB006, 0xB007
PRIVATE_CLASS = "1.2.826.0.1.3680043.9.7133.99.1"
VERIFICATION = "1.2.840.10008.1.1"
GE_PRIVATE_SYNTAX = "1.2.840.113619.5.2"
MOST_BYTES = 4 << 20
RULES = """
[[rule]]
name = "patients of the north site"

[rule.match]
InstitutionName = "North.*"

[[rule.action]]
attribute = "IssuerOfPatientID"
set = "NORTH"
when = "empty"

[[rule.action]]
attribute = "PatientID"
prefix = "N-"

[[rule]]
name = "old accession numbers"

[rule.match]
AccessionNumber = "OLD-.*"

[[rule.action]]
attribute = "AccessionNumber"
pattern = "^OLD-0*"
replacement = "A"
"""


@pytest.fixture(scope="module", params=STORE_SETS)
def strict_suite(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A suite with RULES, without private SOP classes, and with small payloads only."""
    directory = tmp_path_factory.mktemp(f"admission-{request.param}")
    rules = directory / "rules.toml"
    rules.write_text(RULES)
    settings = settings_of(request.param, request) | {
        "GANTRY_COERCION_RULES": str(rules),
        "GANTRY_MODIFYING_SYSTEM": "ARCHIVE",
        "GANTRY_ACCEPT_PRIVATE_SOP_CLASSES": "false",
        "GANTRY_STORE_MAX_BYTES": str(MOST_BYTES),
    }
    running = Suite(directory, settings)
    running.start()
    yield running
    running.close()
    forget(settings)


@pytest.fixture
def strict(strict_suite: Suite) -> DicomWeb:
    """A client of `strict_suite`."""
    return strict_suite.client()


def north(**attributes: object) -> Dataset:
    """Return a CT that the first rule is about."""
    return instances.ct(InstitutionName="North Hospital", **attributes)


def new_uids() -> dict[int, str]:
    """Return the four UIDs of an instance by their tags."""
    return {0x00080016: instances.CT_IMAGE, **{tag: instances.new_uid() for tag in (0x00080018, 0x0020000D, 0x0020000E)}}


def resource(uids: dict[int, str]) -> str:
    """Return the path of the instance that has these UIDs."""
    return f"/studies/{uids[0x0020000D]}/series/{uids[0x0020000E]}/instances/{uids[0x00080018]}"


def with_uids(data_set: bytes, uids: dict[int, str]) -> bytes:
    """Return a PS3.10 file of the UIDs and elements above them."""
    head = b"".join(h.explicit(tag, "UI", h.even(uid)) for tag, uid in sorted(uids.items()))
    return h.file(head + data_set)


def deep() -> bytes:
    """Return a file with sequences nested deeper than the limit."""
    nested = b""
    for _ in range(80):
        nested = h.explicit(0x0040A730, "SQ", h.item(nested) if nested else b"")
    return with_uids(nested, new_uids())


def without_series() -> bytes:
    """Return a file that does not say its series."""
    return h.file(h.explicit(0x00080016, "UI", h.even(instances.CT_IMAGE)) + h.explicit(0x00080018, "UI", h.even(instances.new_uid())))


REASONS: dict[int, Callable[[], bytes]] = {
    0x0122: lambda: instances.encoded(instances.ct(SOPClassUID=VERIFICATION)),
    0xC122: lambda: instances.encoded(instances.ct()).replace(b"1.2.840.10008.1.2.1\0", GE_PRIVATE_SYNTAX.encode().ljust(20, b"\0"), 1),
    0xA901: without_series,
    0xC000: lambda: instances.encoded(instances.ct())[:-700],
    0x0110: deep,
    0x0117: lambda: with_uids(h.explicit(0x00280010, "US", b"\1\0"), new_uids() | {0x00080018: "1.2..3"}),
}


@pytest.mark.requirement("S-034", "S-024", "S-031")
@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: f"{reason:04X}")
def test_each_fault_of_an_instance_has_its_reason_and_nothing_is_stored(dicomweb: DicomWeb, reason: int) -> None:
    good = instances.ct(4, 4)
    response = dicomweb.stow(REASONS[reason]())
    assert response.status_code == 409
    assert [value(failed, "00081197") for failed in failures(response.json())] == [reason]
    assert "00081199" not in response.json()
    assert response.json()["00081190"] == {"vr": "UR"}
    beside = dicomweb.stow(REASONS[reason](), instances.encoded(good))
    assert beside.status_code == 202
    assert [value(failed, "00081197") for failed in failures(beside.json())] == [reason]
    assert [value(item, "00081155") for item in items(beside.json(), "00081199")] == [good.SOPInstanceUID]


def failures(answer: dict) -> list[dict]:
    """Return the items of both sequences of failures."""
    return items(answer, "00081198") + items(answer, "0008119A")


@pytest.mark.distributed
@pytest.mark.requirement("S-034", "S-041")
def test_a_mismatch_with_the_request_and_a_duplicate_have_reasons_of_their_own(dicomweb: DicomWeb) -> None:
    stored, other = instances.ct(4, 4), instances.ct(4, 4)
    dicomweb.store(instances.encoded(stored))
    stored.StudyDescription = "changed"
    response = dicomweb.stow(instances.encoded(stored), instances.encoded(other), study=stored.StudyInstanceUID)
    assert response.status_code == 409
    found = {value(item, "00081155"): value(item, "00081197") for item in items(response.json(), "00081198")}
    assert found == {stored.SOPInstanceUID: 0x0111, other.SOPInstanceUID: 0xA900}


@pytest.mark.requirement("S-034", "S-037")
def test_a_nearly_full_disk_is_told_with_its_dicom_status_and_nothing_is_stored(own_suite: Callable[..., Suite]) -> None:
    suite = own_suite(GANTRY_DISK_RESERVE_PERCENT="99.9")
    dicomweb, data_set = suite.client(), instances.ct()
    response = dicomweb.stow(instances.encoded(data_set))
    assert response.status_code == 503
    assert response.headers["warning"].startswith(f"A700 {dicomweb.url}: ")
    assert int(response.headers["retry-after"]) > 0
    assert "disk" in response.text
    assert dicomweb.search(f"/instances?SOPInstanceUID={data_set.SOPInstanceUID}") == []


def fewer_frames_than_told() -> bytes:
    return instances.encoded(instances.multi_frame(3, NumberOfFrames=4))


def more_bytes_than_told() -> bytes:
    data_set = instances.ct()
    data_set.PixelData += b"\0" * 10
    return instances.encoded(data_set)


def fewer_bytes_than_told() -> bytes:
    data_set = instances.ct()
    data_set.PixelData = data_set.PixelData[:-10]
    return instances.encoded(data_set)


def fewer_fragments_than_told() -> bytes:
    return instances.encoded(instances.encapsulated("jpeg-ls", 3, NumberOfFrames=5), instances.ENCAPSULATED["jpeg-ls"])


def bits_missing() -> bytes:
    data_set = instances.segmentation(3)
    data_set.PixelData = data_set.PixelData[:-2]
    return instances.encoded(data_set)


@pytest.mark.requirement("S-035", "S-023")
@pytest.mark.parametrize(
    "make",
    [fewer_frames_than_told, more_bytes_than_told, fewer_bytes_than_told, fewer_fragments_than_told, bits_missing],
    ids=lambda make: make.__name__,
)
def test_pixel_data_of_another_length_than_its_attributes_say_is_stored_with_a_warning(
    dicomweb: DicomWeb, make: Callable[[], bytes]
) -> None:
    sent = make()
    response = dicomweb.stow(sent)
    assert response.status_code == 202
    (stored,) = items(response.json(), "00081199")
    assert value(stored, "00081196") == DOES_NOT_MATCH
    (part,) = dicomweb.parts(value(stored, "00081190"), AS_STORED)
    assert part.content == sent


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(lambda: instances.encoded(instances.segmentation(3)), id="1 bit, packed across frames"),
        pytest.param(lambda: instances.encoded(instances.multi_frame(3, 5, 7)), id="one byte of padding"),
        pytest.param(lambda: instances.encoded(instances.rgb()), id="three samples"),
        pytest.param(lambda: instances.encoded(instances.encapsulated("rle", 3), instances.ENCAPSULATED["rle"]), id="encapsulated"),
    ],
)
def test_pixel_data_that_is_as_long_as_its_attributes_say_has_no_warning(dicomweb: DicomWeb, sent: Callable[[], bytes]) -> None:
    response = dicomweb.stow(sent())
    assert response.status_code == 200
    assert [item for item in items(response.json(), "00081199") if "00081196" in item] == []


@pytest.mark.requirement("S-035")
@pytest.mark.parametrize(
    ("elements", "tag", "kept"),
    [
        pytest.param(
            h.explicit(0x00200010, "SH", b"1 ") + h.explicit(0x00200010, "SH", b"2 "), "00200010", {"vr": "SH", "Value": ["2"]}, id="twice"
        ),
        pytest.param(h.explicit(0x00020016, "AE", b"AE"), "00020016", None, id="group 2 in the data set"),
    ],
)
def test_elements_that_metadata_cannot_hold_are_told(dicomweb: DicomWeb, elements: bytes, tag: str, kept: object) -> None:
    uids = new_uids()
    response = dicomweb.stow(with_uids(elements, uids))
    assert response.status_code == 202
    assert [value(item, "00081196") for item in items(response.json(), "00081199")] == [ELEMENTS_DISCARDED]
    (found,) = dicomweb.metadata(resource(uids))
    assert found.get(tag) == kept


def test_a_group_length_is_nothing_that_anybody_misses(dicomweb: DicomWeb) -> None:
    uids = new_uids()
    response = dicomweb.stow(with_uids(h.explicit(0x00280000, "UL", struct.pack("<I", 10)) + h.explicit(0x00280010, "US", b"\7\0"), uids))
    assert response.status_code == 200
    (found,) = dicomweb.metadata(resource(uids))
    assert (found["00280010"]["Value"], "00280000" in found) == ([7], False)


def strictly_read(content: bytes) -> Dataset:
    """Read a PS3.10 file as PS3.5 and PS3.10 want it, and no other: raises for anything that is wrong."""
    assert content[:132] == b"\0" * 128 + b"DICM"
    with pydicom.config.strict_reading():
        read = pydicom.dcmread(io.BytesIO(content))
        list(read.iterall())
    meta = read.file_meta
    assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) == (read.SOPClassUID, read.SOPInstanceUID)
    assert meta.FileMetaInformationGroupLength > 0
    assert meta.ImplementationClassUID
    assert list(read.keys()) == sorted(read.keys())
    target = io.BytesIO()
    pydicom.dcmwrite(target, read)
    assert len(target.getvalue()) == len(content)
    return read


@pytest.mark.requirement("S-019", "S-010")
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda file: file, id="as it is"),
        pytest.param(lambda file: file[128:], id="no preamble"),
        pytest.param(lambda file: file[file.index(b"\x08\0\x05\0CS") :], id="data set alone"),
        pytest.param(lambda file: file.replace(b"\2\0\3\0", b"\2\0\3\1", 1), id="no Media Storage SOP Instance UID"),
    ],
)
def test_what_leaves_is_a_file_as_the_standard_wants_it(dicomweb: DicomWeb, change: Callable[[bytes], bytes]) -> None:
    data_set = instances.ct()
    sent = instances.encoded(data_set)
    assert dicomweb.stow(change(sent)).status_code == 200
    (part,) = dicomweb.parts(instances.resource(data_set), AS_STORED)
    read = strictly_read(part.content)
    assert read.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert (read.pixel_array == instances.ct_pixels()).all()


@pytest.mark.requirement("S-021", "S-020")
@pytest.mark.parametrize("name", instances.NATIVE)
def test_coercion_is_told_and_is_in_the_object_in_metadata_and_in_search(strict: DicomWeb, name: str) -> None:
    data_set = north(PatientID=f"7-{name}")
    response = strict.stow(instances.encoded(data_set, instances.NATIVE[name]))
    assert response.status_code == 202
    (stored,) = items(response.json(), "00081199")
    assert value(stored, "00081196") == COERCION
    (told,) = items(stored, "04000561")
    assert told["04000565"] == {"vr": "CS", "Value": ["COERCE"]}
    assert told["04000563"] == {"vr": "LO", "Value": ["ARCHIVE"]}
    assert told["04000564"] == {"vr": "LO"}
    assert value(told, "04000562").endswith("+0000")
    assert items(told, "04000550") == [{"00100020": {"vr": "LO", "Value": [f"7-{name}"]}, "00100021": {"vr": "LO"}}]
    (found,) = strict.metadata(instances.resource(data_set))
    assert items(found, "04000561") == [told]
    assert (value(found, "00100020"), value(found, "00100021")) == (f"N-7-{name}", "NORTH")
    assert [value(row, "0020000D") for row in strict.search(f"/studies?PatientID=N-7-{name}")] == [data_set.StudyInstanceUID]
    assert strict.search(f"/studies?PatientID=7-{name}") == []
    (part,) = strict.parts(instances.resource(data_set), DICOM)
    read = strictly_read(part.content)
    assert (read.PatientID, read.IssuerOfPatientID) == (f"N-7-{name}", "NORTH")
    assert read.OriginalAttributesSequence[0].ModifiedAttributesSequence[0].PatientID == f"7-{name}"
    assert (read.pixel_array == instances.ct_pixels()).all()


@pytest.mark.requirement("S-020")
def test_coercion_leaves_pixel_data_and_all_other_attributes_as_they_were(strict: DicomWeb) -> None:
    data_set = instances.encapsulated("jpeg 2000", 3, InstitutionName="North", PatientName="Müller^Jörg")
    data_set.private_block(0x0019, "ACME 1.0", create=True).add_new(0x10, "OB", instances.CURVE)
    sent = instances.encoded(data_set, instances.ENCAPSULATED["jpeg 2000"])
    assert strict.stow(sent).status_code == 202
    (part,) = strict.parts(instances.resource(data_set), AS_STORED)
    assert part.transfer_syntax == instances.ENCAPSULATED["jpeg 2000"]
    before, after = pydicom.dcmread(io.BytesIO(sent)), strictly_read(part.content)
    changed = {"OriginalAttributesSequence", "PatientID", "IssuerOfPatientID"}
    assert {element.keyword for element in after if before.get(element.tag) != element} == changed
    assert all(element == after[element.tag] for element in before if element.keyword not in changed)
    frames = strict.parts(instances.resource(data_set) + "/frames/3", 'multipart/related; type="image/jp2"; transfer-syntax=*')
    assert frames[0].content.rstrip(b"\0") == instances.frame_bitstreams("jpeg 2000", 3)[2].rstrip(b"\0")
    bulk = strict.get(instances.resource(data_set) + "/bulkdata/00191010", 'multipart/related; type="application/octet-stream"')
    assert instances.CURVE in bulk.content


@pytest.mark.distributed
def test_the_uploaded_file_stays_byte_for_byte_where_coercion_acted(strict: DicomWeb, strict_suite: Suite, tmp_path: Path) -> None:
    data_set = north()
    sent = instances.encoded(data_set, instances.NATIVE["implicit"])
    assert strict.stow(sent).status_code == 202
    strict_suite.run("export", "--data", str(strict_suite.data), data_set.SOPInstanceUID, str(tmp_path / "original.dcm"))
    assert (tmp_path / "original.dcm").read_bytes() == sent


@pytest.mark.distributed
@pytest.mark.requirement("S-041", "S-022")
def test_the_same_upload_again_is_no_coercion_and_changes_nothing(strict: DicomWeb) -> None:
    data_set = north()
    sent = instances.encoded(data_set)
    assert strict.stow(sent).status_code == 202
    before = strict.metadata(instances.resource(data_set))
    again = strict.stow(sent)
    assert again.status_code == 200
    assert [set(item) for item in items(again.json(), "00081199")] == [{"00081150", "00081155", "00081190"}]
    assert "location" not in again.headers
    assert strict.metadata(instances.resource(data_set)) == before


def test_items_of_original_attributes_that_are_there_are_kept(strict: DicomWeb) -> None:
    earlier = Dataset()
    earlier.ModifyingSystem, earlier.ReasonForTheAttributeModification = "SCANNER", "CORRECT"
    earlier.AttributeModificationDateTime, earlier.SourceOfPreviousValues = "20200101", ""
    modified = Dataset()
    modified.PatientID = "before"
    earlier.ModifiedAttributesSequence = Sequence([modified])
    data_set = north(OriginalAttributesSequence=Sequence([earlier]))
    response = strict.stow(instances.encoded(data_set))
    (stored,) = items(response.json(), "00081199")
    (told,) = items(stored, "04000561")
    (found,) = strict.metadata(instances.resource(data_set))
    first, second = items(found, "04000561")
    assert value(first, "04000563") == "SCANNER"
    assert items(first, "04000550") == [{"00100020": {"vr": "LO", "Value": ["before"]}}]
    assert second == told


@pytest.mark.requirement("S-022")
def test_an_instance_that_no_rule_is_about_is_stored_as_it_is(strict: DicomWeb) -> None:
    data_set = instances.ct(InstitutionName="South Hospital")
    sent = instances.encoded(data_set)
    strict.store(sent)
    assert strict.parts(instances.resource(data_set), AS_STORED)[0].content == sent
    already = instances.ct(InstitutionName="North", PatientID="N-1", IssuerOfPatientID="HERE")
    strict.store(instances.encoded(already))
    assert strict.parts(instances.resource(already), AS_STORED)[0].content == instances.encoded(already)


def test_a_value_may_be_rewritten_by_a_regular_expression(strict: DicomWeb) -> None:
    data_set = instances.ct(AccessionNumber="OLD-0042")
    assert strict.stow(instances.encoded(data_set)).status_code == 202
    assert [value(row, "0020000D") for row in strict.search("/studies?AccessionNumber=A42")] == [data_set.StudyInstanceUID]


@pytest.mark.requirement("S-034")
def test_a_coercion_that_cannot_be_written_fails_the_instance(strict: DicomWeb) -> None:
    data_set = north(PatientID="x" * 63)
    response = strict.stow(instances.encoded(data_set))
    assert response.status_code == 409
    assert [value(item, "00081197") for item in items(response.json(), "00081198")] == [0x0110]
    assert strict.search(f"/instances?SOPInstanceUID={data_set.SOPInstanceUID}") == []


@pytest.mark.requirement("S-034")
def test_private_classes_are_refused_where_the_setting_says_so(strict: DicomWeb) -> None:
    response = strict.stow(instances.encoded(instances.ct(SOPClassUID=PRIVATE_CLASS)))
    assert response.status_code == 409
    assert [value(item, "00081197") for item in items(response.json(), "00081198")] == [0x0122]


@pytest.mark.distributed
@pytest.mark.parametrize("is_chunked", [False, True], ids=["with Content-Length", "chunked"])
def test_a_payload_above_the_limit_is_refused_as_a_whole(strict: DicomWeb, is_chunked: bool) -> None:
    small, large = instances.ct(4, 4), instances.ct(1024, 2100)
    body = related([instances.encoded(small), instances.encoded(large)], "B")
    assert len(body) > MOST_BYTES
    response = strict.post_related((body[at : at + 50_000] for at in range(0, len(body), 50_000)) if is_chunked else body, "B")
    assert response.status_code == 413
    assert str(MOST_BYTES) in response.text
    assert strict.search(f"/instances?SOPInstanceUID={small.SOPInstanceUID}") == []


@pytest.mark.distributed
@pytest.mark.requirement("S-035")
def test_a_broken_structure_that_a_second_reader_accounts_for_is_stored_with_a_warning(
    dicomweb: DicomWeb, suite: Suite, tmp_path: Path
) -> None:
    rows = [
        (new_uids(), broken.READ_OTHERWISE[name]) for name in ("an item whose length is too small", "Implicit VR elements in Big Endian")
    ]
    sent = [row.make(uids) for uids, row in rows]
    response = dicomweb.stow(*sent)
    assert response.status_code == 202, response.text
    assert [value(item, "00081196") for item in items(response.json(), "00081199")] == [DOES_NOT_MATCH] * len(rows)
    for uids, row in rows:
        (found,) = dicomweb.metadata(resource(uids))
        assert found[row.tag] == row.element
        (part,) = dicomweb.parts(resource(uids), DICOM)
        assert strictly_read(part.content).to_json_dict()[row.tag] == row.element
    suite.run("export", "--data", str(suite.data), rows[1][0][0x00080018], str(tmp_path / "original.dcm"))
    assert (tmp_path / "original.dcm").read_bytes() == sent[1]


def test_a_broken_structure_that_a_second_reader_would_lose_something_of_is_refused(dicomweb: DicomWeb) -> None:
    uids = new_uids()
    response = dicomweb.stow(broken.LOST_BY_PYDICOM["a sequence whose length is too small"](uids))
    assert response.status_code == 409
    assert [value(item, "00081197") for item in failures(response.json())] == [0xC000]
    assert dicomweb.search(f"/instances?SOPInstanceUID={uids[0x00080018]}") == []


@pytest.mark.requirement("S-036")
def test_location_is_where_what_was_created_is(dicomweb: DicomWeb) -> None:
    data_set = instances.ct(4, 4)
    response = dicomweb.stow(instances.encoded(data_set))
    for name in ("location", "content-location"):
        assert response.headers[name] == dicomweb.url + instances.study_resource(data_set)
        assert [value(found, "00080018") for found in dicomweb.get(response.headers[name] + "/metadata", JSON).json()] == [
            data_set.SOPInstanceUID
        ]
    again = dicomweb.stow(instances.encoded(data_set))
    assert again.headers["content-location"] == response.headers["location"]
    assert "location" not in again.headers
    refused = dicomweb.stow(instances.encoded(instances.ct(SOPClassUID=VERIFICATION)))
    assert "location" not in refused.headers


@pytest.mark.requirement("S-030", "S-032", "S-040")
def test_every_url_of_an_answer_is_a_url(dicomweb: DicomWeb) -> None:
    first, second = instances.ct(4, 4), instances.ct(4, 4)
    answer = dicomweb.stow(instances.encoded(first), instances.encoded(second), b"junk" * 100).json()
    assert answer["00081190"] == {"vr": "UR"}
    urls = [element for tag, element in walk(answer) if tag == "00081190" and element.get("Value")]
    assert [element["vr"] for element in urls] == ["UR", "UR"]
    assert [element["Value"] for element in urls] == [[dicomweb.url + instances.resource(it)] for it in (first, second)]


def test_requests_full_of_broken_files_do_not_hold_up_an_ordinary_store(own_suite: Callable[..., Suite]) -> None:
    suite = own_suite(GANTRY_CONCURRENT_UPLOADS="3", GANTRY_FALLBACK_BUDGET_S="4")
    row, clients = broken.READ_OTHERWISE["an item whose length is too small"], [suite.client() for _ in range(6)]

    def store_broken(client: DicomWeb) -> httpx.Response:
        return client.stow(*(row.make(new_uids()) for _ in range(40)))

    ordinary, during = suite.client(), 0
    with ThreadPoolExecutor(len(clients)) as threads:
        running = [threads.submit(store_broken, client) for client in clients]
        while not all(request.done() for request in running):
            begin = time.monotonic()
            while (response := ordinary.stow(instances.encoded(instances.ct(4, 4)))).status_code == 503:
                assert time.monotonic() - begin < 3
            assert response.status_code == 200, response.text
            assert time.monotonic() - begin < 3
            during += 1
    assert during > 5
    answers = [request.result() for request in running]
    # More came at once than there are places: those are told to come again, and the others have their budget and no more.
    taken = [answer.json() for answer in answers if answer.status_code != 503]
    assert len(taken) >= 3
    for answer in taken:
        stored, failed = items(answer, "00081199"), failures(answer)
        assert len(stored) + len(failed) == 40
        assert {value(item, "00081196") for item in stored} <= {DOES_NOT_MATCH}
        assert {value(item, "00081197") for item in failed} == {0xC000}
