"""What was answered 200 is never lost: every process is killed in the middle of a store, and the suite is stopped and rebuilt."""

import io
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import httpx
import pydicom
import pytest

from gantry.events.v1.events_pb2 import Change
from tests.support import instances
from tests.support.changes import wait_for_changes
from tests.support.dicomweb import AS_STORED, JSON, DicomWeb, items, related, value
from tests.support.suite import Suite
from tests.support.workitems import STATE, Worklist, listening, new_ae_title

Starter = Callable[..., Suite]
PARTS = ("gateway", "blob", "index", "renderer", "workflow", "nats")
IN_ALL = 200
PER_REQUEST = 4


def files(number: int, study: str) -> dict[str, bytes]:
    """Return instances of one study by their SOP Instance UID."""
    series = instances.new_uid()
    data_sets = [instances.ct(24, 24, StudyInstanceUID=study, SeriesInstanceUID=series, InstanceNumber=at) for at in range(number)]
    return {str(data_set.SOPInstanceUID): instances.encoded(data_set) for data_set in data_sets}


def store_patiently(dicomweb: DicomWeb, sent: dict[str, bytes], acknowledged: set[str]) -> None:
    """Store instances; add to `acknowledged` what was answered for. Tries again as a client does, until all is stored."""
    end = time.monotonic() + 90
    while missing := [uid for uid in sent if uid not in acknowledged]:
        assert time.monotonic() < end, f"{len(missing)} instances could not be stored"
        try:
            response = dicomweb.stow(*(sent[uid] for uid in missing))
        except httpx.HTTPError:
            time.sleep(0.1)
            continue
        assert response.status_code in (200, 202, 503), response.text
        if response.status_code == 503:
            assert "retry-after" in response.headers
            time.sleep(0.1)
            continue
        assert not items(response.json(), "00081198"), response.text
        acknowledged |= {value(item, "00081155") for item in items(response.json(), "00081199")}


def check_all(dicomweb: DicomWeb, study: str, sent: dict[str, bytes]) -> None:
    """Check that exactly what was sent is found and that every byte of it is right."""
    rows = dicomweb.search(f"/studies/{study}/instances?limit=1000")
    assert sorted(value(row, "00080018") for row in rows) == sorted(sent)
    (row,) = dicomweb.search(f"/studies?StudyInstanceUID={study}")
    assert value(row, "00201208") == len(sent)
    parts = dicomweb.parts(f"/studies/{study}", AS_STORED)
    assert {part.header("Content-Location").rsplit("/", 1)[-1]: part.content for part in parts} == sent
    assert len(dicomweb.metadata(f"/studies/{study}")) == len(sent)


@pytest.mark.thorough
@pytest.mark.parametrize("part", PARTS)
def test_killing_a_part_during_a_store_loses_nothing_that_was_answered(breakable_suite: Suite, part: str) -> None:
    suite = breakable_suite
    dicomweb, study = suite.client(), instances.new_uid()
    before, sent, acknowledged = len(suite.output()), files(IN_ALL, study), set[str]()
    uids = list(sent)
    kill_at = sorted(random.Random(part).sample(range(10, IN_ALL - 10), 3))
    for begin in range(0, IN_ALL, PER_REQUEST):
        if kill_at and begin >= kill_at[0]:
            kill_at.pop(0)
            killer = threading.Timer(random.Random(begin).random() * 0.02, suite.kill, [part])
            killer.start()
        store_patiently(dicomweb, {uid: sent[uid] for uid in uids[begin : begin + PER_REQUEST]}, acknowledged)
    suite.wait_ready()
    assert acknowledged == set(sent)
    check_all(dicomweb, study, sent)
    assert f"{part} ended with signal 9, started again" in suite.output()[before:]
    suite.restart()
    check_all(dicomweb, study, sent)
    assert suite.run("verify", "--data", str(suite.data)).stdout.strip().endswith("all digests agree")


def delete_patiently(dicomweb: DicomWeb, path: str) -> None:
    """Delete, again and again as a client does, until it is deleted."""
    end = time.monotonic() + 60
    while True:
        with suppress(httpx.HTTPError):
            status = dicomweb.request("DELETE", path).status_code
            if status in (200, 204, 410):
                return
            # 404: the store was answered 202, and index has not applied it yet
            assert status in (404, 503), status
        assert time.monotonic() < end, f"{path} could not be deleted"
        time.sleep(0.1)


KINDS = {Change.KIND_CREATED: "created", Change.KIND_DELETED: "deleted", Change.KIND_SETTLED: "settled"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "shared_breakable_suite", ["one-machine", pytest.param("distributed", marks=pytest.mark.distributed)], indirect=True
)
@pytest.mark.parametrize("part", ["index", "nats", "workflow", "blob"])
def test_killing_a_part_during_stores_and_deletions_leaves_each_decision_on_the_stream_in_order(breakable_suite: Suite, part: str) -> None:
    suite = breakable_suite
    dicomweb, study = suite.client(), instances.new_uid()
    sent, acknowledged = files(36, study), set[str]()
    uids = list(sent)
    series = pydicom.dcmread(io.BytesIO(sent[uids[0]]), stop_before_pixels=True).SeriesInstanceUID
    kill_at = random.Random(part).sample(range(len(uids)), 4)
    deleted = uids[::3]
    for number, uid in enumerate(uids):
        if number in kill_at:
            threading.Timer(random.Random(number).random() * 0.05, suite.kill, [part]).start()
        store_patiently(dicomweb, {uid: sent[uid]}, acknowledged)
        if uid in deleted:
            delete_patiently(dicomweb, f"/studies/{study}/series/{series}/instances/{uid}")
    suite.wait_ready()
    expected = {uid: ["created", "deleted"] if uid in deleted else ["created"] for uid in uids}

    def told(changes: list[Change]) -> dict[str, list[str]]:
        by_uid: dict[str, list[str]] = {uid: [] for uid in uids}
        for change in changes:
            for one in change.instances:
                by_uid[one.sop_instance_uid].append(KINDS[change.kind])
        return by_uid

    changes = wait_for_changes(suite, study, lambda changes: told(changes) == expected)
    assert told(changes) == expected
    sequences = [change.sequence for change in changes if change.kind != Change.KIND_SETTLED]
    assert sequences == sorted(sequences)
    assert [change.id for change in changes] == [f"{change.sequence}-{KINDS[change.kind]}" for change in changes]


def test_killing_everything_at_once_loses_nothing_and_leaves_nobody_behind(breakable_suite: Suite) -> None:
    suite = breakable_suite
    dicomweb, study = suite.client(), instances.new_uid()
    sent = files(20, study)
    dicomweb.store(*sent.values())
    pids = suite.pids()
    for name in ("up", *PARTS):
        # Without their supervisor they end by themselves: some may be faster than we are.
        with suppress(ProcessLookupError):
            os.kill(pids[name], signal.SIGKILL)
    assert suite.process is not None
    suite.process.wait(10)
    suite.start()
    assert not set(pids.values()) & set(suite.pids().values())
    check_all(dicomweb, study, sent)


@pytest.mark.parametrize("when", ["while the instance is sent", "before the end"])
def test_a_store_that_breaks_off_leaves_nothing(breakable_suite: Suite, when: str) -> None:
    suite = breakable_suite
    dicomweb, data_set = suite.client(), instances.ct(64, 64)
    body = related([instances.encoded(data_set)], "B")
    body = body[: len(body) // 2] if when == "while the instance is sent" else body[:-5]

    def broken():  # type: ignore[no-untyped-def]
        yield body
        raise ConnectionAbortedError

    with pytest.raises((ConnectionAbortedError, httpx.HTTPError)):
        dicomweb.post_related(broken(), "B")
    assert dicomweb.search(f"/instances?SOPInstanceUID={data_set.SOPInstanceUID}") == []
    suite.restart()
    assert dicomweb.search(f"/instances?SOPInstanceUID={data_set.SOPInstanceUID}") == []
    dicomweb.store(instances.encoded(data_set))


def test_a_restart_keeps_everything_and_reindex_makes_the_same_answers_from_the_objects_alone(breakable_suite: Suite) -> None:
    suite = breakable_suite
    dicomweb, worklist = suite.client(), Worklist(suite.client())
    study = instances.new_uid()
    data_sets = [instances.ct(StudyInstanceUID=study, InstanceNumber=number) for number in range(5)]
    others = [instances.with_bulk(), instances.encapsulated("jpeg 2000"), instances.japanese()]
    dicomweb.store(*(instances.encoded(data_set) for data_set in data_sets))
    for data_set in others:
        syntax = instances.ENCAPSULATED["jpeg 2000"] if "NumberOfFrames" in data_set else instances.NATIVE["implicit"]
        dicomweb.store(instances.encoded(data_set, syntax))
    first = data_sets[0]
    changed = instances.ct(StudyInstanceUID=study, SeriesInstanceUID=first.SeriesInstanceUID, SOPInstanceUID=first.SOPInstanceUID)
    assert dicomweb.stow(instances.encoded(changed)).status_code == 409
    assert dicomweb.request("DELETE", instances.resource(data_sets[1])).status_code in (200, 204)
    uid = worklist.created()

    def answers() -> list[object]:
        paths = [f"/studies/{study}/{name}" for name in ("series", "instances", "metadata")]
        paths += ["/studies?includefield=all", "/instances?limit=100"]
        paths += [f"{instances.resource(data_set)}/metadata" for data_set in others]
        found: list[object] = [dicomweb.get(path, JSON).json() for path in paths]
        found += [sorted(part.content for part in dicomweb.parts(f"/studies/{study}", AS_STORED))]
        found += [dicomweb.get(instances.resource(data_sets[1]), AS_STORED).status_code, value(worklist.get(uid), STATE)]
        return found

    before = answers()
    suite.restart()
    assert answers() == before
    assert suite.stop() == 0
    shutil.rmtree(suite.data / "index")
    suite.start()
    suite.run("reindex", "--data", str(suite.data))
    assert answers() == before
    dicomweb.store(instances.encoded(instances.ct(StudyInstanceUID=study)))
    (row,) = dicomweb.search(f"/studies?StudyInstanceUID={study}")
    assert value(row, "00201208") == 5


def test_verify_finds_one_flipped_byte(breakable_suite: Suite) -> None:
    suite = breakable_suite
    dicomweb = suite.client()
    data_sets = [instances.ct(), instances.ct()]
    dicomweb.store(*(instances.encoded(data_set) for data_set in data_sets))
    assert suite.run("verify", "--data", str(suite.data)).returncode == 0
    files_of_blob = [path for path in sorted((suite.data / "objects").rglob("*")) if path.is_file()]
    pack = next(path for path in files_of_blob if data_sets[1].SOPInstanceUID.encode() in path.read_bytes())
    content = bytearray(pack.read_bytes())
    place = content.index(data_sets[1].PixelData, content.index(data_sets[1].SOPInstanceUID.encode()))
    content[place + 1000] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)
    found = suite.run("verify", "--data", str(suite.data), check=False)
    content[place + 1000] ^= 1
    pack.write_bytes(content)
    assert found.returncode == 1
    assert data_sets[1].SOPInstanceUID in found.stdout
    assert data_sets[0].SOPInstanceUID not in found.stdout


def test_export_gives_the_file_exactly_as_it_was_sent(breakable_suite: Suite) -> None:
    suite = breakable_suite
    dicomweb, data_set = suite.client(), instances.ct()
    sent = b"II*\0".ljust(128, b"P") + instances.encoded(data_set, instances.NATIVE["implicit"])[128:]
    dicomweb.store(sent)
    suite.run("export", data_set.SOPInstanceUID, "original.dcm", "--data", str(suite.data))
    assert (suite.directory / "original.dcm").read_bytes() == sent
    missing = suite.run("export", "1.2.3.4", "nothing.dcm", "--data", str(suite.data), check=False)
    assert missing.returncode == 1
    assert not (suite.directory / "nothing.dcm").exists()


def test_reads_go_on_while_nats_is_down_and_stores_say_503(breakable_suite: Suite) -> None:
    suite = breakable_suite
    dicomweb, data_set = suite.client(), instances.ct()
    dicomweb.store(instances.encoded(data_set))
    (suite.data / "run" / "nats.conf").rename(suite.data / "run" / "nats.conf.away")
    suite.kill("nats")
    try:
        assert dicomweb.get(instances.resource(data_set), AS_STORED).status_code == 200
        assert dicomweb.metadata(instances.resource(data_set))
        assert len(dicomweb.search(f"/studies?StudyInstanceUID={data_set.StudyInstanceUID}")) == 1
        response = dicomweb.stow(instances.encoded(instances.ct()))
        assert response.status_code == 503
        assert "retry-after" in response.headers
        assert dicomweb.get(f"{dicomweb.origin}/healthz/ready").status_code == 503
    finally:
        (suite.data / "run" / "nats.conf.away").rename(suite.data / "run" / "nats.conf")
    suite.wait_ready()
    dicomweb.store(instances.encoded(instances.ct()))


def test_without_index_a_store_is_202_with_a_warning_and_nothing_is_lost(own_suite: Starter) -> None:
    suite = own_suite(GANTRY_STORE_OUTCOME_S="1")
    dicomweb, data_set = suite.client(), instances.ct()
    pid = suite.pid("index")
    os.kill(pid, signal.SIGSTOP)
    try:
        response = dicomweb.stow(instances.encoded(data_set))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert response.status_code == 202
    assert "warning" in response.headers
    assert [value(item, "00081155") for item in items(response.json(), "00081199")] == [data_set.SOPInstanceUID]
    end = time.monotonic() + 20
    while not dicomweb.search(f"/instances?SOPInstanceUID={data_set.SOPInstanceUID}"):
        assert time.monotonic() < end
    assert dicomweb.parts(instances.resource(data_set), AS_STORED)[0].content == instances.encoded(data_set)


@pytest.mark.requirement("W-077")
def test_a_restart_is_reported_and_workitems_and_subscriptions_survive_it(breakable_suite: Suite) -> None:
    suite = breakable_suite
    worklist, ae_title = Worklist(suite.client()), new_ae_title()
    uid, transaction = worklist.claimed()
    worklist.subscribe(uid, ae_title)
    with listening(worklist.dicomweb, ae_title) as reports:
        assert value(reports.next_of(uid), STATE) == "IN PROGRESS"
    suite.restart()
    assert value(worklist.get(uid), STATE) == "IN PROGRESS"
    with listening(worklist.dicomweb, ae_title) as reports:
        report = reports.next()
        while value(report, "00001002") != 4:
            report = reports.next()
        assert value(report, "00741242") == "RESTARTED"
        assert {value(report, "00741244"), value(report, "00741246")} <= {"WARM START", "COLD START"}
        assert worklist.change_state(uid, "CANCELED", transaction).status_code == 200
        assert value(reports.next_of(uid, 1), STATE) == "CANCELED"


@pytest.mark.parametrize("part", ["workflow", "nats", "gateway"])
def test_killing_a_part_loses_no_report(breakable_suite: Suite, part: str) -> None:
    suite = breakable_suite
    worklist, ae_title = Worklist(suite.client()), new_ae_title()
    uid = worklist.created()
    worklist.subscribe(uid, ae_title)
    with listening(worklist.dicomweb, ae_title) as reports:
        assert reports.next_of(uid)
    assert worklist.change_state(uid, "IN PROGRESS", instances.new_uid()).status_code == 200
    suite.wait_restarted(part, suite.kill(part))
    with listening(worklist.dicomweb, ae_title) as reports:
        while value(reports.next_of(uid), STATE) != "IN PROGRESS":
            pass


def test_an_instance_with_known_pixels_is_still_read_by_pydicom_after_all_that(breakable_suite: Suite) -> None:
    suite = breakable_suite
    dicomweb, data_set = suite.client(), instances.ct()
    dicomweb.store(instances.encoded(data_set))
    suite.wait_restarted("renderer", suite.kill("renderer"))
    (part,) = dicomweb.parts(instances.resource(data_set), AS_STORED)
    assert (pydicom.dcmread(io.BytesIO(part.content)).pixel_array == instances.ct_pixels()).all()
    assert dicomweb.get(f"{instances.resource(data_set)}/rendered", "image/png").status_code == 200
