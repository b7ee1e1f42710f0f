"""The distributed set in containers: docker-compose up, one walk through it, down."""

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from tests.support.nats_server import free_port

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.compose


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    """The whole set, built and running; the DICOMweb root."""
    if shutil.which("docker-compose") is None or "DOCKER_HOST" not in os.environ:
        assert os.environ.get("CI") != "true", "no docker-compose, or no DOCKER_HOST"
        pytest.skip("no docker-compose, or no DOCKER_HOST")
    port = str(free_port())
    environment = {**os.environ, "GANTRY_PORT": port}
    compose = ["docker-compose", "-p", f"gantry-test-{port}"]
    try:
        subprocess.run([*compose, "up", "--build", "-d"], cwd=ROOT, env=environment, check=True, timeout=1200)
        _wait(f"http://127.0.0.1:{port}/healthz/suite", 180)
        yield f"http://127.0.0.1:{port}/dicom-web"
    except BaseException:
        subprocess.run([*compose, "ps"], cwd=ROOT, env=environment, check=False)
        subprocess.run([*compose, "logs", "--tail", "40"], cwd=ROOT, env=environment, check=False)
        raise
    finally:
        subprocess.run([*compose, "down", "-v", "-t", "5"], cwd=ROOT, env=environment, check=False, timeout=300)


def _wait(url: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def _get(url: str, accept: str) -> tuple[dict[str, str], bytes]:
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=60) as answer:
        return dict(answer.headers), answer.read()


def test_a_stored_instance_is_found_read_and_rendered(base: str) -> None:
    path = Path(str(get_testdata_file("CT_small.dcm")))
    dataset = dcmread(path)
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() + b"\r\n--b--\r\n"
    request = urllib.request.Request(
        f"{base}/studies",
        body,
        {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b', "Accept": "application/dicom+json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
        stored = json.loads(answer.read())
    assert stored["00081199"]["Value"][0]["00081155"]["Value"] == [dataset.SOPInstanceUID]

    found = json.loads(_get(f"{base}/studies?PatientID={dataset.PatientID}", "application/dicom+json")[1])
    assert [row["0020000D"]["Value"][0] for row in found] == [dataset.StudyInstanceUID]

    instance = f"{base}/studies/{dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}/instances/{dataset.SOPInstanceUID}"
    assert _get(f"{instance}/frames/1", "application/octet-stream")[1] == dataset.PixelData
    metadata = json.loads(_get(f"{instance}/metadata", "application/dicom+json")[1])
    assert metadata[0]["00280010"]["Value"] == [dataset.Rows]
    headers, image = _get(f"{instance}/rendered", "image/jpeg")
    assert headers["content-type"] == "image/jpeg"
    assert image[:3] == b"\xff\xd8\xff"


def test_the_gateway_answers_for_all_five_services(base: str) -> None:
    status = json.loads(_get(base.removesuffix("/dicom-web") + "/healthz/suite", "application/json")[1])
    assert {"gateway", "blob", "index", "renderer", "workflow"} <= set(status["services"])
    with pytest.raises(urllib.error.HTTPError) as refused:
        _get(f"{base}/nothing", "application/json")
    assert refused.value.code == 404
