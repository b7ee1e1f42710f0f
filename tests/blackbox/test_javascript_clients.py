"""The clients that viewers in a browser are built on: the npm package dicomweb-client, against the running suite."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import instances
from tests.support.suite import Suite

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
