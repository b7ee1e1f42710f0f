"""The data directory of a suite on one machine: its lock, its format version, and the files of a running suite.

lock        locked (flock) by the one supervisor that uses the directory
format      version of the layout
run/        ports.json, nats.conf, url, and one NAME.pid per process, while the suite runs
logs/       one NAME.log per process
nats/       JetStream
objects/    the object store
index/      the index store
"""

import contextlib
import fcntl
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from gantry_suite.ports import Ports

FORMAT = 2
"""Version of the layout that this program reads and writes.

1 has instances of studies only. 2 also has those of non-patient resources, which a program of format 1 would take for studies. The
directory itself is the same; index migrates its own files when it opens them.
"""

PORTS = range(20_000, 30_000)
"""Range of the loopback ports: below the ports that systems use for outgoing connections."""

LARGEST_LOG_BYTES = 20 << 20
"""A log larger than this is renamed to NAME.log.1 when its process starts."""


class CannotStart(Exception):
    """The suite cannot start; the message is shown to the user."""


class DataDirectory:
    """The directory that `gantry up --data` names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = path / "run"
        self.logs = path / "logs"
        self.nats = path / "nats"
        self.objects = path / "objects"
        self.index = path / "index"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the directory while the context is open.

        Raises:
            CannotStart: another supervisor has locked it, it is not writable, or its format version is unknown.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / "lock", "a+", encoding="utf-8")  # noqa: SIM115 - closed below, with the lock
        except OSError as error:
            raise CannotStart(f"the data directory {self.path} cannot be written: {error.strerror}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                raise CannotStart(
                    f"the data directory {self.path} is in use by {holder}; stop that first, or choose another with --data"
                ) from None
            lock.truncate(0)
            lock.write(f"process {os.getpid()} (gantry up, since {time.strftime('%Y-%m-%d %H:%M:%S')})\n")
            lock.flush()
            self._check_format()
            for directory in (self.run, self.logs, self.nats):
                directory.mkdir(exist_ok=True)
            yield

    def _check_format(self) -> None:
        path = self.path / "format"
        if not path.exists():
            self._write_format(path)
            return
        text = path.read_text(encoding="utf-8").strip()
        if not text.isdigit():
            raise CannotStart(f"{path} holds {text!r}, expected a version number; this is no data directory of Gantry")
        if int(text) > FORMAT:
            raise CannotStart(f"{self.path} has format {text}, written by a newer Gantry; this one reads up to format {FORMAT}")
        if int(text) < FORMAT:
            # Before any service runs: from now on an older program must not open the directory.
            self._write_format(path)

    def _write_format(self, path: Path) -> None:
        temporary = path.with_name("format.new")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(f"{FORMAT}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def ports(self, names: tuple[str, ...], taken: Ports) -> dict[str, int]:
        """Reserve a free loopback port per name; the port of the last run if it is still free."""
        path = self.run / "ports.json"
        known: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = {str(name): int(port) for name, port in dict(json.loads(path.read_text(encoding="utf-8"))).items()}
        chosen: dict[str, int] = {}
        for name in names:
            port = known.get(name, 0)
            while port in chosen.values() or port not in PORTS or not taken.take("127.0.0.1", port):
                port = random.choice(PORTS)
            chosen[name] = port
        path.write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")
        return chosen

    def log(self, name: str) -> Path:
        """Return the log file of a process; rename it first if it is large."""
        path = self.logs / f"{name}.log"
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > LARGEST_LOG_BYTES:
                path.replace(path.with_suffix(".log.1"))
        return path

    def write_pid(self, name: str, pid: int) -> None:
        """Write the pid file of a process."""
        temporary = self.run / f".{name}.pid"
        temporary.write_text(f"{pid}\n", encoding="utf-8")
        temporary.replace(self.run / f"{name}.pid")

    def forget_pid(self, name: str) -> None:
        """Remove the pid file of a process that has ended."""
        (self.run / f"{name}.pid").unlink(missing_ok=True)

    def end_leftovers(self, patience_s: float = 15) -> list[str]:
        """End processes that a killed supervisor has left running, and return their names."""
        left = {path.stem: pid for path in sorted(self.run.glob("*.pid")) if (pid := _running(path)) and path.stem != "up"}
        for pid in left.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + patience_s
        waiting = dict(left)
        while waiting and time.monotonic() < deadline:
            time.sleep(0.05)
            waiting = {name: pid for name, pid in waiting.items() if _running(self.run / f"{name}.pid") == pid}
        for pid in waiting.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        for path in self.run.glob("*.pid"):
            path.unlink()
        return list(left)


def _running(pid_file: Path) -> int:
    """Return the pid in a pid file if that process is running and belongs to a suite, else 0."""
    try:
        pid = int(pid_file.read_text(encoding="utf-8"))
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return 0
    # gateway-2 runs the program of gateway.
    ours = f"gantry_{pid_file.stem.partition('-')[0]}.main".encode() if pid_file.stem != "nats" else b"nats-server"
    return pid if ours in command else 0
