"""The distributed set in containers: docker-compose up, one walk through it, down."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from tests.support.nats_server import free_port

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.compose, pytest.mark.timeout(1500)]  # the first one builds five images


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
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(url, timeout=5)
            if answer.status_code == 200:
                return
            assert time.monotonic() < end, answer.text
        assert time.monotonic() < end, f"no answer from {url}"
        time.sleep(0.5)


def _get(url: str, accept: str) -> httpx.Response:
    answer = httpx.get(url, headers={"Accept": accept}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def test_a_stored_instance_is_found_read_and_rendered(base: str) -> None:
    path = Path(str(get_testdata_file("CT_small.dcm")))
    dataset = dcmread(path)
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() + b"\r\n--b--\r\n"
    answer = httpx.post(
        f"{base}/studies",
        content=body,
        headers={"Content-Type": 'multipart/related; type="application/dicom"; boundary=b', "Accept": "application/dicom+json"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["00081199"]["Value"][0]["00081155"]["Value"] == [dataset.SOPInstanceUID]

    found = _get(f"{base}/studies?PatientID={dataset.PatientID}", "application/dicom+json").json()
    assert [row["0020000D"]["Value"][0] for row in found] == [dataset.StudyInstanceUID]

    instance = f"{base}/studies/{dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}/instances/{dataset.SOPInstanceUID}"
    assert _get(f"{instance}/frames/1", "application/octet-stream").content == dataset.PixelData
    metadata = _get(f"{instance}/metadata", "application/dicom+json").json()
    assert metadata[0]["00280010"]["Value"] == [dataset.Rows]
    rendered = _get(f"{instance}/rendered", "image/jpeg")
    assert rendered.headers["content-type"] == "image/jpeg"
    assert rendered.content[:3] == b"\xff\xd8\xff"


def test_the_gateway_answers_for_all_five_services(base: str) -> None:
    status = _get(base.removesuffix("/dicom-web") + "/healthz/suite", "application/json").json()
    assert {"gateway", "blob", "index", "renderer", "workflow"} <= set(status["services"])
    assert httpx.get(f"{base}/nothing", timeout=30).status_code == 404
