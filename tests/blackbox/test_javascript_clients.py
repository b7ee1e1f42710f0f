"""The clients that viewers in a browser are built on, against the running suite: the npm packages dicomweb-client and ws."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import instances
from tests.support.dicomweb import DicomWeb, value
from tests.support.suite import Suite
from tests.support.workitems import PROGRESS, STATE, Worklist, new_ae_title, performed

pytestmark = pytest.mark.long

CLIENTS = Path(__file__).parents[1] / "clients" / "javascript"


@pytest.fixture(scope="session")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the JavaScript clients, their packages installed; skips where there is no Node.js."""
    if not (shutil.which("node") and shutil.which("npm")):
        if os.environ.get("CI") == "true":
            pytest.fail("CI=true and no Node.js")
        pytest.skip("no Node.js")
    folder = tmp_path_factory.mktemp("javascript")
    shutil.copytree(CLIENTS, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]
    subprocess.run(command, cwd=folder, check=True, timeout=110)
    return folder


def run(folder: Path, script: str, *arguments: str) -> str:
    """Run a script of the folder; return what it prints."""
    command = ["node", script, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_dicomweb_client_stores_and_gets_back_every_byte(suite: Suite, clients: Path, tmp_path: Path) -> None:
    data_sets = [instances.ct(), instances.ct(40, 30)]
    sent = {data_set.SOPInstanceUID: instances.encoded(data_set) for data_set in data_sets}
    for uid, content in sent.items():
        (tmp_path / f"{uid}.dcm").write_bytes(content)
    found = json.loads(run(clients, "dicomweb.mjs", suite.url, *(str(tmp_path / f"{uid}.dcm") for uid in sent)))
    assert {one["sopInstanceUID"] for one in found} == set(sent)
    for one, data_set in ((one, next(d for d in data_sets if d.SOPInstanceUID == one["sopInstanceUID"])) for one in found):
        pixels = hashlib.sha256(data_set.PixelData).hexdigest()
        assert one["studies"] == [data_set.StudyInstanceUID]
        assert one["instance"] == hashlib.sha256(sent[one["sopInstanceUID"]]).hexdigest()
        assert one["series"] == [one["instance"]]
        assert one["frames"] == [pixels]
        assert one["bulkdata"] == [pixels]
        assert one["png"] == "PNG"


@pytest.mark.requirement("D-002", "W-079", "W-082")
def test_ws_hears_the_life_of_a_workitem(suite: Suite, dicomweb: DicomWeb, clients: Path) -> None:
    worklist, ae_title = Worklist(dicomweb), new_ae_title()
    uid, transaction = worklist.created(), instances.new_uid()
    command = ["node", "notifications.mjs", suite.url, ae_title, uid]
    with subprocess.Popen(command, cwd=clients, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            opened = json.loads(process.stdout.readline())
            assert opened == {"channel": f"ws{suite.url.removeprefix('http')}/subscribers/{ae_title}", "protocol": "", "extensions": ""}
            first = json.loads(process.stdout.readline())
            worklist.change_state(uid, "IN PROGRESS", transaction)
            worklist.update(uid, {PROGRESS: {"vr": "SQ", "Value": [{"00741004": {"vr": "DS", "Value": ["40"]}}]}}, transaction)
            worklist.update(uid, performed(), transaction)
            worklist.change_state(uid, "COMPLETED", transaction)
            out, err = process.communicate(timeout=30)
            assert process.returncode == 0, err
        finally:
            process.kill()
    *heard, closed = [first, *(json.loads(line) for line in out.splitlines())]
    reports = [one["report"] for one in heard if value(one["report"], "00001000") == uid]
    assert not any(one["isBinary"] for one in heard)
    assert [value(report, STATE) or value(report[PROGRESS]["Value"][0], "00741004") for report in reports] == [
        "SCHEDULED",
        "IN PROGRESS",
        "40",
        "COMPLETED",
    ]
    assert closed["code"] == 1000
    assert closed["pings"] > 0
