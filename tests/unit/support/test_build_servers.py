"""`tests/servers/build.sh` with stand-ins for the compilers: what two builds at the same moment do."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "servers" / "build.sh"
STAND_INS = {
    # Says that it has begun, and ends when the test says so.
    "go": 'echo begun >> "$LOG"; read -r _ < "$FIFO"; printf "#!/bin/sh\\n" > "$GOBIN/minio"; chmod +x "$GOBIN/minio"',
    "mvn": (
        'for argument; do case "$argument" in -DoutputDirectory=*) out=${argument#*=};; esac; done; mkdir -p "$out"\n'
        'for name in elasticsearch-8.0.0 netty-a transport-netty4-a elasticsearch-ssl-config-a; do touch "$out/$name.jar"; done'
    ),
    "javac": 'while [ "$1" != -d ]; do shift; done; touch "$2/RootPlugin.class"',
    "jar": "true",
}


def _child(pid: int) -> str:
    """Return the name of the program that a shell runs at this moment; "" where it runs none."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    try:
        return Path(f"/proc/{children[0]}/comm").read_text().strip() if children else ""
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it has ended meanwhile


@pytest.mark.skipif(not (shutil.which("flock") and Path("/proc/self/task").is_dir()), reason="needs flock and /proc")
def test_of_two_builds_at_the_same_moment_the_second_waits_and_finds_all_built(tmp_path: Path) -> None:
    programs, home, log, fifo = tmp_path / "programs", tmp_path / "home", tmp_path / "log", tmp_path / "fifo"
    programs.mkdir()
    (home / "bin").mkdir(parents=True)
    os.mkfifo(fifo)
    for name, script in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "SERVERS_HOME": str(home), "LOG": str(log), "FIFO": str(fifo)}
    first = subprocess.Popen([BUILD], env=environment, start_new_session=True)
    second = None
    try:
        deadline = time.monotonic() + 30
        while not log.exists():
            assert time.monotonic() < deadline
        second = subprocess.Popen([BUILD], env=environment, start_new_session=True)
        while (running := _child(second.pid)) not in ("flock", "go"):
            assert time.monotonic() < deadline
        assert running == "flock"
        fifo.write_text("go on\n")
        assert first.wait(30) == 0
        assert second.wait(30) == 0
    finally:
        for process in (first, second):
            if process is not None and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert log.read_text() == "begun\n"
    assert (home / "elasticsearch" / "ready").exists()
