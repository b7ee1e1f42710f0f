"""Delete, an extension to PS3.18; restore; and what becomes of two contents under one UID at the same moment."""

import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from pydicom import Dataset

from tests.support import instances
from tests.support.dicomweb import AS_STORED, JSON, OCTETS_AS_STORED, DicomWeb, items, value
from tests.support.suite import Suite, another_gateway

pytestmark = pytest.mark.distributed

DUPLICATE = 0x0111
LEVELS = {"study": instances.study_resource, "series": instances.series_resource, "instance": instances.resource}
SEEN_S = 2.0


def delete(dicomweb: DicomWeb, path: str) -> httpx.Response:
    return dicomweb.request("DELETE", path)


def resources_of(data_set: Dataset, level: str) -> list[tuple[str, str]]:
    """Return (path, Accept) of everything that can be retrieved at and below a level of an instance with bulkdata and pixels."""
    instance, below = instances.resource(data_set), [level, *[one for one in ("series", "instance") if level != "instance"]]
    found = [(f"{LEVELS[one](data_set)}{suffix}", accept) for one in below for suffix, accept in (("", AS_STORED), ("/metadata", JSON))]
    found += [(f"{instance}/frames/1", OCTETS_AS_STORED), (f"{instance}/rendered", "image/jpeg")]
    return [*found, (f"{instance}/frames/1/rendered", "image/png"), (f"{instance}/bulkdata/7FE00010", OCTETS_AS_STORED)]


@contextmanager
def clients_of(suite: Suite, number: int) -> Iterator[list[DicomWeb]]:
    opened = [DicomWeb(suite.url, suite.origin) for _ in range(number)]
    yield opened
    for client in opened:
        client.http.close()


def a_series(**attributes: str) -> list[Dataset]:
    study, series = instances.new_uid(), instances.new_uid()
    return [instances.ct(StudyInstanceUID=study, SeriesInstanceUID=series, InstanceNumber=n, **attributes) for n in range(1, 4)]


@pytest.mark.requirement("A-054", "R-032")
@pytest.mark.parametrize("level", LEVELS)
def test_what_was_deleted_is_gone_at_every_resource_and_not_found_by_search(dicomweb: DicomWeb, level: str) -> None:
    data_set = instances.ct()
    dicomweb.store(instances.encoded(data_set))
    for path, accept in resources_of(data_set, level):
        assert dicomweb.get(path, accept).status_code == 200, path
    response = delete(dicomweb, LEVELS[level](data_set))
    assert (response.status_code, response.content) == (204, b"")
    for path, accept in resources_of(data_set, level):
        gone = dicomweb.get(path, accept)
        assert gone.status_code == 410, path
        assert "was deleted" in gone.text, path
        assert data_set.PatientID not in gone.text
    for path in ("/studies", "/series", "/instances"):
        assert dicomweb.search(f"{path}?StudyInstanceUID={data_set.StudyInstanceUID}") == []


@pytest.mark.requirement("A-054")
@pytest.mark.parametrize("level", LEVELS)
def test_deleting_twice_is_gone_and_deleting_what_never_was_is_not_found(dicomweb: DicomWeb, level: str) -> None:
    data_set = instances.ct()
    assert delete(dicomweb, LEVELS[level](data_set)).status_code == 404
    dicomweb.store(instances.encoded(data_set))
    assert delete(dicomweb, LEVELS[level](data_set)).status_code == 204
    again = delete(dicomweb, LEVELS[level](data_set))
    assert again.status_code == 410
    assert again.content


def test_what_is_left_of_a_study_is_there_as_before(dicomweb: DicomWeb) -> None:
    data_sets, other = a_series(), instances.ct(Modality="MR")
    other.StudyInstanceUID = data_sets[0].StudyInstanceUID
    dicomweb.store(*(instances.encoded(one) for one in (*data_sets, other)))
    study = instances.study_resource(other)
    assert delete(dicomweb, instances.resource(data_sets[1])).status_code == 204
    (row,) = dicomweb.search(f"/studies?StudyInstanceUID={other.StudyInstanceUID}")
    assert (value(row, "00201208"), value(row, "00201206"), row["00080061"]["Value"]) == (3, 2, ["CT", "MR"])
    assert delete(dicomweb, instances.series_resource(data_sets[0])).status_code == 204
    (row,) = dicomweb.search(f"/studies?StudyInstanceUID={other.StudyInstanceUID}")
    assert (value(row, "00201208"), value(row, "00201206"), row["00080061"]["Value"]) == (1, 1, ["MR"])
    assert dicomweb.get(f"{instances.series_resource(data_sets[0])}/metadata", JSON).status_code == 410
    assert [value(one, "00080018") for one in dicomweb.metadata(study)] == [other.SOPInstanceUID]
    (part,) = dicomweb.parts(study, AS_STORED)
    assert part.content == instances.encoded(other)
    assert delete(dicomweb, instances.series_resource(instances.ct(StudyInstanceUID=other.StudyInstanceUID))).status_code == 404


@pytest.mark.parametrize("content", ["the same", "another"])
def test_what_was_deleted_can_be_stored_again(dicomweb: DicomWeb, content: str) -> None:
    data_set = instances.ct()
    dicomweb.store(instances.encoded(data_set))
    before = dicomweb.get(instances.resource(data_set), AS_STORED)
    assert delete(dicomweb, instances.study_resource(data_set)).status_code == 204
    if content == "another":
        data_set.PatientID = "P-2"
    dicomweb.store(instances.encoded(data_set))
    after = dicomweb.get(instances.resource(data_set), AS_STORED, {"If-None-Match": before.headers["etag"]})
    assert after.status_code == 200
    assert after.headers["etag"] != before.headers["etag"]
    assert dicomweb.parts(instances.resource(data_set), AS_STORED)[0].content == instances.encoded(data_set)
    (row,) = dicomweb.search(f"/studies?StudyInstanceUID={data_set.StudyInstanceUID}")
    assert (value(row, "00201208"), value(row, "00100020")) == (1, data_set.PatientID)
    assert delete(dicomweb, instances.study_resource(data_set)).status_code == 204
    assert dicomweb.get(instances.resource(data_set), AS_STORED).status_code == 410


def test_deleting_while_the_study_is_stored_leaves_a_study_that_agrees_with_itself(suite: Suite, dicomweb: DicomWeb) -> None:
    study = instances.new_uid()
    sent = {str(one.SOPInstanceUID): instances.encoded(one) for one in (instances.ct(16, 16, StudyInstanceUID=study) for _ in range(24))}
    done = threading.Event()

    def deleting(other: DicomWeb) -> list[int]:
        told = []
        while not done.is_set():
            told.append(delete(other, f"/studies/{study}").status_code)
        return told

    with clients_of(suite, 1) as (other,), ThreadPoolExecutor(1) as pool:
        deleted = pool.submit(deleting, other)
        for one in sent.values():
            assert dicomweb.stow(one).status_code == 200
        done.set()
        assert set(deleted.result()) <= {204, 404, 410}
    rows = dicomweb.search(f"/studies/{study}/instances?limit=100")
    left = sorted(value(row, "00080018") for row in rows)
    if left:
        (row,) = dicomweb.search(f"/studies?StudyInstanceUID={study}")
        assert value(row, "00201208") == len(left)
        assert sorted(value(one, "00080018") for one in dicomweb.metadata(f"/studies/{study}")) == left
    for uid in sent.keys() - set(left):
        assert dicomweb.search(f"/instances?SOPInstanceUID={uid}") == []
    dicomweb.store(*sent.values())
    parts = dicomweb.parts(f"/studies/{study}", AS_STORED)
    assert {part.header("Content-Location").rsplit("/", 1)[-1]: part.content for part in parts} == sent


def test_a_delete_is_seen_at_once_where_it_was_made_and_within_two_seconds_elsewhere(suite: Suite, dicomweb: DicomWeb) -> None:
    with another_gateway(suite) as gateway:
        other = gateway.client
        for _ in range(3):
            data_set = instances.ct()
            dicomweb.store(instances.encoded(data_set))
            frames = f"{instances.resource(data_set)}/frames/1"
            for client in (dicomweb, other, dicomweb, other):
                assert client.get(frames, OCTETS_AS_STORED).status_code == 200
            assert delete(dicomweb, instances.study_resource(data_set)).status_code == 204
            end = time.monotonic() + SEEN_S
            assert dicomweb.get(frames, OCTETS_AS_STORED).status_code == 410
            assert dicomweb.search(f"/studies?StudyInstanceUID={data_set.StudyInstanceUID}") == []
            while other.get(frames, OCTETS_AS_STORED).status_code != 410:
                assert time.monotonic() < end
            assert other.search(f"/studies?StudyInstanceUID={data_set.StudyInstanceUID}") == []


def restore(suite: Suite, uid: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return suite.run("restore", uid, "--data", str(suite.data), check=check)


def answers(dicomweb: DicomWeb, data_sets: list[Dataset]) -> list[object]:
    """Return what a study answers, whatever the version."""
    study = instances.study_resource(data_sets[0])
    found: list[object] = [dicomweb.search(f"/studies?StudyInstanceUID={data_sets[0].StudyInstanceUID}")]
    found += [dicomweb.get(f"{study}/{name}", JSON).content for name in ("series", "instances", "metadata")]
    found += [dicomweb.get(instances.resource(one), AS_STORED).status_code for one in data_sets]
    if dicomweb.get(study, AS_STORED).status_code == 200:
        found += [part.content for part in dicomweb.parts(study, AS_STORED)]
    return found


@pytest.mark.parametrize("level", ["study", *(pytest.param(level, marks=pytest.mark.thorough) for level in ("series", "instance"))])
def test_what_was_deleted_can_be_restored_and_reindex_answers_the_same(suite: Suite, dicomweb: DicomWeb, level: str) -> None:
    data_sets = a_series()
    dicomweb.store(*(instances.encoded(one) for one in data_sets))
    whole = answers(dicomweb, data_sets)
    for _ in range(2):
        assert delete(dicomweb, LEVELS[level](data_sets[0])).status_code == 204
        assert answers(dicomweb, data_sets) != whole
        uid = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID", "instance": "SOPInstanceUID"}[level]
        printed = restore(suite, str(data_sets[0][uid].value)).stdout
        assert printed.splitlines()[0] == f"{1 if level == 'instance' else 3} instances restored"
        assert answers(dicomweb, data_sets) == whole
    assert delete(dicomweb, instances.resource(data_sets[1])).status_code == 204
    without = answers(dicomweb, data_sets)
    suite.run("reindex", "--data", str(suite.data))
    assert answers(dicomweb, data_sets) == without
    assert restore(suite, data_sets[0].StudyInstanceUID).stdout.splitlines()[0] == "1 instances restored"
    assert answers(dicomweb, data_sets) == whole
    suite.run("reindex", "--data", str(suite.data))
    assert answers(dicomweb, data_sets) == whole


def test_what_was_stored_anew_stays_when_the_first_is_restored(suite: Suite, dicomweb: DicomWeb) -> None:
    data_set = instances.ct()
    dicomweb.store(instances.encoded(data_set))
    assert delete(dicomweb, instances.study_resource(data_set)).status_code == 204
    data_set.PatientID = "P-2"
    dicomweb.store(instances.encoded(data_set))
    printed = restore(suite, data_set.SOPInstanceUID).stdout
    assert printed.splitlines() == ["0 instances restored", "1 were not deleted, or have been stored anew: they stay as they are"]
    assert dicomweb.parts(instances.resource(data_set), AS_STORED)[0].content == instances.encoded(data_set)
    assert delete(dicomweb, instances.study_resource(data_set)).status_code == 204
    assert restore(suite, data_set.SOPInstanceUID).stdout.splitlines() == ["1 instances restored"]
    assert dicomweb.parts(instances.resource(data_set), AS_STORED)[0].content == instances.encoded(data_set)


def test_restoring_what_never_was_fails_with_a_reason(suite: Suite) -> None:
    uid = instances.new_uid()
    done = restore(suite, uid, check=False)
    assert (done.returncode, done.stderr.strip()) == (1, f"gantry: nothing is known of {uid}")


@pytest.mark.requirement("S-041")
@pytest.mark.parametrize("where", ["in one study", "in two studies"])
def test_of_two_contents_under_one_uid_at_the_same_moment_exactly_one_is_stored(suite: Suite, dicomweb: DicomWeb, where: str) -> None:
    with clients_of(suite, 4) as clients:
        for _ in range(6):
            check_race(dicomweb, clients, where)


def check_race(dicomweb: DicomWeb, clients: list[DicomWeb], where: str) -> None:
    first = instances.ct(16, 16)
    contents = {}
    for number in range(len(clients)):
        other = instances.ct(16, 16, SOPInstanceUID=first.SOPInstanceUID, PatientID=f"P{number}")
        if where == "in one study":
            other.StudyInstanceUID, other.SeriesInstanceUID = first.StudyInstanceUID, first.SeriesInstanceUID
        contents[instances.encoded(other)] = other
    with ThreadPoolExecutor(len(clients)) as pool:
        told = list(pool.map(lambda pair: pair[0].stow(pair[1]), zip(clients, contents, strict=True)))
    assert sorted(response.status_code for response in told) == [200, 409, 409, 409]
    for response in told:
        failed = [value(item, "00081197") for item in items(response.json(), "00081198")]
        assert failed == ([] if response.status_code == 200 else [DUPLICATE])
    winner = next(sent for sent, response in zip(contents, told, strict=True) if response.status_code == 200)
    (row,) = dicomweb.search(f"/instances?SOPInstanceUID={first.SOPInstanceUID}")
    assert value(row, "0020000D") == contents[winner].StudyInstanceUID
    for sent, data_set in contents.items():
        response = dicomweb.get(instances.study_resource(data_set), AS_STORED)
        assert response.status_code == (200 if sent == winner or where == "in one study" else 404)
    assert dicomweb.parts(instances.resource(contents[winner]), AS_STORED)[0].content == winner
