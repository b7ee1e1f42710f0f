"""The process gantry-blob begins without NATS, says so, and is ready when it comes."""

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from gantry_blob.settings import BlobSettings
from gantry_runtime.settings import SettingsError, load
from tests.support.nats_server import NatsServer, free_port, until


def health(port: int) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz/ready", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


async def test_it_begins_without_nats_and_is_ready_when_nats_is_there(tmp_path: Path) -> None:
    server, admin = NatsServer(tmp_path / "nats"), free_port()
    environment = {
        "PYTHONPATH": ":".join(sys.path),
        "GANTRY_NATS_URL": server.url,
        "GANTRY_BLOB_DIRECTORY": str(tmp_path / "objects"),
        "GANTRY_BLOB_LISTEN": "127.0.0.1:0",
        "GANTRY_BLOB_ADMIN_LISTEN": f"127.0.0.1:{admin}",
    }
    process = subprocess.Popen([sys.executable, "-m", "gantry_blob.main"], env=environment)
    try:
        await until(lambda: health(admin)[0] == 503, 60)
        assert "NATS" in health(admin)[1]
        server.start()
        await until(lambda: health(admin)[0] == 200, 60)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        server.stop()


def test_wrong_settings_are_told_together() -> None:
    with pytest.raises(SettingsError) as told:
        load(BlobSettings, {"GANTRY_OBJECT_STORE": "s3", "GANTRY_S3_PART_BYTES": "5", "GANTRY_CONCURRENT_UPLOADS": "0"})
    assert all(name in str(told.value) for name in ("S3_ACCESS_KEY", "S3_PART_BYTES", "CONCURRENT_UPLOADS"))
