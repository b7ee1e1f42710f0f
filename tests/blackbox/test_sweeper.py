"""The sweeper: bytes of what was deleted, replaced or stored twice go once the undo window has passed, and nothing else does.

The suite of this module has windows of no time and replaces duplicates.
"""

import asyncio
import json
import re
from collections.abc import Iterator

import grpc
import pytest
from pydicom import Dataset

from gantry.blob.v1 import blob_pb2
from gantry.blob.v1.blob_pb2_grpc import BlobServiceStub
from tests.blackbox.conftest import forget, settings_of
from tests.support import instances
from tests.support.dicomweb import AS_STORED, JSON, OCTETS_AS_STORED, DicomWeb, items, value
from tests.support.nats_server import until
from tests.support.suite import STORE_SETS, Suite

pytestmark = pytest.mark.distributed
SWEEPING = {
    "GANTRY_DELETE_AFTER_S": "0",
    "GANTRY_SWEEP_EVERY_S": "0.5",
    "GANTRY_SWEEP_SETTLE_S": "0",
    "GANTRY_SWEEP_TRASH_S": "0",
    "GANTRY_ON_DUPLICATE": "replace",
}


@pytest.fixture(scope="module", params=STORE_SETS)
def sweeping(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A suite that sweeps all the time; a test leaves it running."""
    settings = settings_of(request.param, request) | SWEEPING
    running = Suite(tmp_path_factory.mktemp("sweeping"), settings)
    running.start()
    yield running
    running.close()
    forget(settings)


@pytest.fixture
def archive(sweeping: Suite) -> DicomWeb:
    return sweeping.client()


def stored(suite: Suite) -> tuple[int, int]:
    """Return how many packs and instances the object store holds, after reading every byte of them."""
    port = json.loads((suite.data / "run" / "ports.json").read_text())["blob"]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        found = list(BlobServiceStub(channel).Verify(blob_pb2.VerifyRequest(), timeout=60))
    # A pack that was swept while it was read has no bytes any more; anything else that is wrong is an error.
    assert all("no such object" in problem for pack in found for problem in pack.problems), found
    whole = [pack for pack in found if not pack.problems]
    return len(whole), sum(pack.instances for pack in whole)


def wait_stored(suite: Suite, packs: int, number: int) -> None:
    """Wait until the store holds these packs and instances; each look reads every byte of them."""
    message = lambda: f"{stored(suite)} packs and instances, expected {packs, number}"  # noqa: E731
    asyncio.run(until(lambda: stored(suite) == (packs, number), 60, message, pause_s=0.25))


def reindex(suite: Suite) -> None:
    suite.run("reindex", "--data", str(suite.data))


def samples(study: str) -> dict[str, bytes]:
    """Return files of one study of every shape: with renditions, fragments, bulkdata, JSON of its own in the pack."""
    made = [
        (instances.ct(), instances.NATIVE["implicit"]),
        (instances.with_bulk(), instances.NATIVE["implicit"]),
        (instances.encapsulated("jpeg 2000", fragments=2), instances.ENCAPSULATED["jpeg 2000"]),
        (instances.segmentation(), instances.NATIVE["explicit"]),
        (instances.ct(), instances.NATIVE["deflated"]),
        (instances.with_much_json(), instances.NATIVE["explicit"]),
    ]
    for data_set, _ in made:
        data_set.StudyInstanceUID = study
    return {instances.resource(data_set): instances.encoded(data_set, syntax) for data_set, syntax in made}


def everything(archive: DicomWeb, resources: list[str]) -> list[object]:
    """Return what can be had of instances, whatever their version."""
    found: list[object] = []
    for path in resources:
        found += [archive.metadata(path), [part.content for part in archive.parts(path, AS_STORED)]]
        found += [
            archive.get(f"{path}/frames/1", OCTETS_AS_STORED).status_code,
            archive.search(f"/instances?SOPInstanceUID={path.rsplit('/', 1)[-1]}"),
        ]
        for tag, element in archive.metadata(path)[0].items():
            if "BulkDataURI" in element:
                found += [tag, [part.content for part in archive.parts(element["BulkDataURI"], OCTETS_AS_STORED)]]
    return found


def test_a_pack_of_which_all_was_deleted_goes_and_stays_gone(sweeping: Suite, archive: DicomWeb) -> None:
    before, data_set = stored(sweeping), instances.ct()
    archive.store(instances.encoded(data_set))
    assert archive.request("DELETE", instances.study_resource(data_set)).status_code == 204
    wait_stored(sweeping, *before)
    for _ in range(2):
        assert archive.get(instances.resource(data_set), AS_STORED).status_code == 410
        assert archive.get(f"{instances.study_resource(data_set)}/metadata", JSON).status_code == 410
        done = sweeping.run("restore", data_set.StudyInstanceUID, "--data", str(sweeping.data), check=False)
        assert (done.returncode, done.stdout.splitlines()) == (
            1,
            ["0 instances restored", "1 cannot be restored: their bytes are given up"],
        )
        reindex(sweeping)
    archive.store(instances.encoded(data_set))
    assert archive.parts(instances.resource(data_set), AS_STORED)[0].content == instances.encoded(data_set)
    assert archive.request("DELETE", instances.study_resource(data_set)).status_code == 204
    wait_stored(sweeping, *before)


def test_what_is_left_of_a_pack_is_copied_and_every_answer_stays(sweeping: Suite, archive: DicomWeb) -> None:
    packs, number = stored(sweeping)
    sent, deleted = samples(instances.new_uid()), instances.ct()
    files = [instances.encoded(deleted), *sent.values()]
    archive.store(*files)
    before = everything(archive, list(sent))
    tags = {path: archive.get(path, AS_STORED).headers["etag"] for path in sent}
    assert archive.request("DELETE", instances.study_resource(deleted)).status_code == 204
    wait_stored(sweeping, packs + 1, number + len(sent))
    assert everything(archive, list(sent)) == before
    assert all(archive.get(path, AS_STORED).headers["etag"] != tag for path, tag in tags.items())
    reindex(sweeping)
    assert everything(archive, list(sent)) == before
    assert archive.get(instances.resource(deleted), AS_STORED).status_code == 410
    path, file = next(iter(sent.items()))
    sweeping.run("export", path.rsplit("/", 1)[-1], "out.dcm", "--data", str(sweeping.data))
    assert (sweeping.directory / "out.dcm").read_bytes() == file
    first, *rest = sent
    assert archive.request("DELETE", first).status_code == 204
    wait_stored(sweeping, packs + 1, number + len(rest))
    reindex(sweeping)
    assert [archive.get(path, AS_STORED).status_code for path in sent] == [410, *[200] * len(rest)]
    assert archive.request("DELETE", rest[0].partition("/series/")[0]).status_code == 204
    wait_stored(sweeping, packs, number)


def test_a_new_version_is_what_everybody_sees_and_the_old_one_is_swept(sweeping: Suite, archive: DicomWeb) -> None:
    packs, number = stored(sweeping)
    data_set, other = instances.ct(), instances.ct()
    path = instances.resource(data_set)
    archive.store(instances.encoded(data_set), instances.encoded(other))
    first = archive.get(path, AS_STORED)
    frame, image = archive.parts(f"{path}/frames/1", OCTETS_AS_STORED)[0].content, archive.get(f"{path}/rendered", "image/png").content
    data_set.PatientID, data_set.PixelData = "P-2", bytes(reversed(data_set.PixelData))
    archive.store(instances.encoded(data_set))
    second = archive.get(path, AS_STORED, {"If-None-Match": first.headers["etag"]})
    assert second.status_code == 200
    assert archive.parts(path, AS_STORED)[0].content == instances.encoded(data_set)
    assert archive.parts(f"{path}/frames/1", OCTETS_AS_STORED)[0].content == data_set.PixelData != frame
    assert archive.get(f"{path}/rendered", "image/png").content != image
    assert value(archive.metadata(path)[0], "00100020") == "P-2"
    of_study = f"/studies?StudyInstanceUID={data_set.StudyInstanceUID}"
    assert archive.search(f"{of_study}&PatientID=P-1") == []
    (row,) = archive.search(f"{of_study}&PatientID=P-2")
    assert value(row, "00201208") == 1
    wait_stored(sweeping, packs + 2, number + 2)
    reindex(sweeping)
    assert archive.parts(path, AS_STORED)[0].content == instances.encoded(data_set)
    assert archive.parts(instances.resource(other), AS_STORED)[0].content == instances.encoded(other)


def test_the_same_content_again_is_swept_and_the_first_stays(sweeping: Suite, archive: DicomWeb) -> None:
    packs, number = stored(sweeping)
    data_set, more = instances.ct(), instances.ct()
    archive.store(instances.encoded(data_set))
    tag = archive.get(instances.resource(data_set), AS_STORED).headers["etag"]
    archive.store(instances.encoded(data_set), instances.encoded(more))
    wait_stored(sweeping, packs + 2, number + 2)
    assert archive.get(instances.resource(data_set), AS_STORED).headers["etag"] == tag
    reindex(sweeping)
    assert archive.get(instances.resource(data_set), AS_STORED).headers["etag"] == tag
    assert archive.parts(instances.resource(more), AS_STORED)[0].content == instances.encoded(more)


def test_what_was_refused_is_kept_aside_and_can_be_exported(sweeping: Suite, archive: DicomWeb) -> None:
    first, deleted = instances.ct(), instances.ct()
    archive.store(instances.encoded(first))
    second = instances.ct(SOPInstanceUID=first.SOPInstanceUID, PatientID="P-2")
    response = archive.stow(instances.encoded(second), instances.encoded(deleted))
    assert [value(item, "00081197") for item in items(response.json(), "00081198")] == [0x0111]
    packs, number = stored(sweeping)
    assert archive.request("DELETE", instances.study_resource(deleted)).status_code == 204
    wait_stored(sweeping, packs, number - 1)
    for _ in range(2):
        (line,) = sweeping.run("duplicates", first.SOPInstanceUID, "--data", str(sweeping.data)).stdout.splitlines()
        decided, uids, place = line.split()
        assert uids == f"{second.StudyInstanceUID}/{second.SeriesInstanceUID}/{second.SOPInstanceUID}"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", decided)
        sweeping.run("export", first.SOPInstanceUID, "refused.dcm", "--at", place, "--data", str(sweeping.data))
        assert (sweeping.directory / "refused.dcm").read_bytes() == instances.encoded(second)
        reindex(sweeping)
    assert archive.get(instances.study_resource(second), AS_STORED).status_code == 404
    assert archive.parts(instances.resource(first), AS_STORED)[0].content == instances.encoded(first)


@pytest.mark.parametrize("part", ["blob", "index", "nats"])
def test_a_crash_while_it_sweeps_loses_nothing_and_is_finished_by_the_next_run(sweeping: Suite, archive: DicomWeb, part: str) -> None:
    packs, number = stored(sweeping)
    kept: dict[str, bytes] = {}
    deleted: list[Dataset] = []
    for _ in range(4):
        three = [instances.ct() for _ in range(3)]
        archive.store(*(instances.encoded(one) for one in three))
        kept |= {instances.resource(one): instances.encoded(one) for one in three[1:]}
        deleted.append(three[0])
    for round_number, data_set in enumerate(deleted):
        assert archive.request("DELETE", instances.resource(data_set)).status_code == 204
        if round_number % 2:
            sweeping.wait_restarted(part, sweeping.kill(part))
    wait_stored(sweeping, packs + 4, number + len(kept))
    assert sweeping.run("verify", "--data", str(sweeping.data)).stdout.strip().endswith("all digests agree")
    for _ in range(2):
        assert {path: archive.parts(path, AS_STORED)[0].content for path in kept} == kept
        assert {archive.get(instances.resource(one), AS_STORED).status_code for one in deleted} == {410}
        reindex(sweeping)
