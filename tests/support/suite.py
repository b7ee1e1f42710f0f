"""Runs the whole suite for a test: `gantry up` on free ports, in its own directory, on one of the two sets of stores."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from tests.support.dicomweb import DicomWeb
from tests.support.nats_server import free_port

SERVICES = ("blob", "index", "renderer", "workflow", "gateway")
READY_S = 60.0
STORE_SETS = ("one-machine", "distributed")


def one_machine() -> dict[str, str]:
    """Return the settings of the default stores."""
    return {"GANTRY_OBJECT_STORE": "directory", "GANTRY_INDEX_STORE": "sqlite"}


def distributed(s3: Mapping[str, str], elasticsearch_url: str) -> dict[str, str]:
    """Return the settings of S3 and Elasticsearch, with a new bucket and prefix."""
    name = f"gantry-test-{uuid.uuid4().hex[:12]}"
    return {
        **s3,
        "GANTRY_OBJECT_STORE": "s3",
        "GANTRY_S3_BUCKET": name,
        "GANTRY_INDEX_STORE": "elasticsearch",
        "GANTRY_ELASTICSEARCH_URL": elasticsearch_url,
        "GANTRY_ELASTICSEARCH_PREFIX": name,
    }


def anonymous_memory(pid: int) -> int:
    """Return RssAnon of a process in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


class Suite:
    """One running suite; a test that kills or stops a part of it starts it again."""

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.settings = dict(settings)
        self.port = free_port()
        self.origin = f"http://127.0.0.1:{self.port}"
        self.url = self.origin + settings.get("GANTRY_BASE_PATH", "/dicom-web")
        """The DICOMweb root."""
        self.process: subprocess.Popen[bytes] | None = None
        self._clients: list[DicomWeb] = []

    def client(self) -> DicomWeb:
        """Return a client that lives until `close`."""
        self._clients.append(DicomWeb(self.url, self.origin))
        return self._clients[-1]

    def close(self) -> None:
        """Close the clients, and stop the suite if it is still running."""
        for client in self._clients:
            client.http.close()
        if self.process is not None:
            self.stop()

    def is_running(self) -> bool:
        """Return whether `gantry up` runs."""
        return self.process is not None and self.process.poll() is None

    def start(self, *options: str) -> None:
        """Start `gantry up` and wait until the suite is ready."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "gantry_suite.main",
                    "up",
                    "--port",
                    str(self.port),
                    "--data",
                    str(self.data),
                    "--no-samples",
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
            )
        self.wait_ready()

    def environment(self) -> dict[str, str]:
        """Return the environment of the suite: its own settings, none of the outer GANTRY_ settings, one gateway by default."""
        outside = {name: value for name, value in os.environ.items() if not name.startswith("GANTRY_")}
        return outside | {"GANTRY_GATEWAYS": "1"} | self.settings

    def wait_ready(self) -> None:
        """Wait until /healthz/ready and /healthz/suite answer 200."""
        end = time.monotonic() + READY_S
        with httpx.Client(verify=False, trust_env=False, timeout=5) as http:
            while not self._is_ready(http):
                assert self.process is None or self.process.poll() is None, f"gantry up ended\n{self.output()}"
                assert time.monotonic() < end, f"{self.logs(20)}\n{self.output()}\n{self.logs(1)}\nthe suite is not ready after {READY_S} s"
                time.sleep(0.05)

    def _is_ready(self, http: httpx.Client) -> bool:
        try:
            return (self.data / "run" / "url").exists() and all(
                http.get(url).status_code == 200 for url in (f"{self.origin}/healthz/ready", f"{self.origin}/healthz/suite")
            )
        except httpx.HTTPError:
            return False

    def output(self) -> str:
        """Return what `gantry up` has printed so far."""
        return (self.directory / "up.log").read_text(encoding="utf-8", errors="replace")

    def logs(self, lines: int = 20) -> str:
        """Return the end of every service's log, for a failing test."""
        return "\n".join(
            f"== {path.stem}\n" + "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
            for path in sorted((self.data / "logs").glob("*.log"))
        )

    def pid(self, name: str) -> int:
        """Return the process id of a part (nats, up, or a service). Waits while the part is being restarted."""
        end = time.monotonic() + 20
        while True:
            try:
                pid = int((self.data / "run" / f"{name}.pid").read_text())
            except (OSError, ValueError):
                pid = 0
            if pid and psutil.pid_exists(pid):
                return pid
            assert time.monotonic() < end, f"{name} is not running\n{self.output()}"
            time.sleep(0.02)

    def gateways(self) -> list[str]:
        """Return the names of the gateways that share the port."""
        return sorted(path.stem for path in (self.data / "run").glob("gateway*.pid"))

    def pids(self) -> dict[str, int]:
        """Return every part's process."""
        return {name: self.pid(name) for name in ("up", "nats", *SERVICES, *self.gateways())}

    def kill(self, name: str) -> int:
        """Kill a part with SIGKILL; the supervisor restarts it. Returns the process id that was killed."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_restarted(self, name: str, killed: int) -> None:
        """Wait until a part that was killed runs again and the suite is ready."""
        end = time.monotonic() + READY_S
        while self.pid(name) == killed:
            assert time.monotonic() < end, f"{name} was not started again"
            time.sleep(0.02)
        self.wait_ready()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop the suite in order; return the exit status of `gantry up`."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(60)
        self.process = None
        return status

    def restart(self) -> None:
        """Stop the suite and start it again on the same directory."""
        assert self.stop() == 0
        self.start()

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a `gantry` command beside the suite."""
        done = subprocess.run(
            [sys.executable, "-m", "gantry_suite.main", *arguments],
            capture_output=True,
            text=True,
            env=self.environment() | {"GANTRY_URL": self.url},
            cwd=self.directory,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, f"gantry {' '.join(arguments)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


class AnotherGateway:
    """A gateway beside the suite's own, as on another machine: by TCP, and without the directory of the objects.

    Args:
        module: that is run; another one than the gateway's own may give it another `Access`.
        is_near: it is on the suite's machine after all: by Unix sockets, and with the directory of the objects where there is one.
    """

    def __init__(self, suite: Suite, module: str = "gantry_gateway.main", is_near: bool = False) -> None:
        self._module = module
        ports, self.port = json.loads((suite.data / "run" / "ports.json").read_text()), free_port()
        others = ("blob", "index", "renderer", "workflow")
        addresses = {f"GANTRY_{name.upper()}_ADDRESS": f"127.0.0.1:{ports[name]}" for name in others}
        if is_near:
            addresses = {f"GANTRY_{name.upper()}_ADDRESS": f"local:{suite.data / 'run' / name}.sock" for name in others}
            if suite.settings.get("GANTRY_OBJECT_STORE") == "directory":
                addresses["GANTRY_BLOB_DIRECTORY"] = str(suite.data / "objects")
        own = {"GANTRY_PORT": str(self.port), "GANTRY_NATS_URL": f"nats://127.0.0.1:{ports['nats']}"}
        self._environment = suite.environment() | addresses | own
        self._log = suite.directory / f"gateway-{self.port}.log"
        self.origin = f"http://127.0.0.1:{self.port}"
        self.url = self.origin + suite.settings.get("GANTRY_BASE_PATH", "/dicom-web")
        """The DICOMweb root."""
        self.client = DicomWeb(self.url, self.origin)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *prefix: str) -> None:
        """Start it, without waiting; `prefix` is a command that runs the one that follows."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", self._module],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> None:
        """Wait until /healthz/ready answers 200."""
        end = time.monotonic() + 30
        while not self._is_ready():
            assert time.monotonic() < end, self._log.read_text()
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return self.client.get(f"{self.origin}/healthz/ready").status_code == 200
        return False

    def kill(self) -> None:
        """Kill it with SIGKILL, and wait until it has ended."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """Stop it in order; return its exit status."""
        assert self.process is not None
        self.client.http.close()
        self.process.terminate()
        return self.process.wait(20)


@contextmanager
def another_gateway(suite: Suite, *prefix: str, module: str = "gantry_gateway.main", is_near: bool = False) -> Iterator[AnotherGateway]:
    """Run another gateway beside the suite's own; `prefix` is a command that runs the one that follows."""
    gateway = AnotherGateway(suite, module, is_near)
    gateway.start(*prefix)
    try:
        gateway.wait_ready()
        yield gateway
    finally:
        assert gateway.stop() == 0
