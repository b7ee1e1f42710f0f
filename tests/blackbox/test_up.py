"""`gantry up` and the commands beside it, as a person at the terminal sees them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import instances
from tests.support.dicomweb import DicomWeb, value
from tests.support.nats_server import free_port
from tests.support.suite import SERVICES, Suite, one_machine
from tests.support.workitems import Worklist, listening, new_ae_title


def gantry_up(suite: Suite, port: int, data: Path) -> subprocess.CompletedProcess[str]:
    """Run `gantry up` where it cannot start."""
    return subprocess.run(
        [sys.executable, "-m", "gantry_suite.main", "up", "--port", str(port), "--data", str(data)],
        capture_output=True,
        text=True,
        env=suite.environment(),
        timeout=60,
        check=False,
    )


def test_one_data_directory_has_one_suite_and_one_port_one_program(breakable_suite: Suite) -> None:
    suite = breakable_suite
    second = gantry_up(suite, free_port(), suite.data)
    assert second.returncode == 2
    assert f"is in use by process {suite.pid('up')}" in second.stderr
    third = gantry_up(suite, suite.port, suite.directory / "other")
    assert third.returncode == 2
    assert f"port {suite.port}" in third.stderr
    assert "taken" in third.stderr


def test_a_data_directory_of_a_newer_program_is_refused(breakable_suite: Suite) -> None:
    suite = breakable_suite
    ours = (suite.data / "format").read_text()
    assert suite.stop() == 0
    (suite.data / "format").write_text(f"{int(ours) + 1}\n")
    refused = gantry_up(suite, suite.port, suite.data)
    (suite.data / "format").write_text(ours)
    assert refused.returncode == 2
    assert "newer" in refused.stderr


def test_stopping_ends_every_process_in_order_and_starting_again_uses_the_same_ports(breakable_suite: Suite) -> None:
    suite = breakable_suite
    pids, ports = suite.pids(), json.loads((suite.data / "run" / "ports.json").read_text())
    assert set(pids) == {"up", "nats", *SERVICES}
    assert suite.stop(signal.SIGINT) == 0
    assert not [name for name, pid in pids.items() if psutil.pid_exists(pid)]
    assert not list((suite.data / "run").glob("*.pid"))
    assert suite.output().rstrip().endswith("stopped")
    suite.start()
    assert json.loads((suite.data / "run" / "ports.json").read_text()) == ports


def test_nobody_is_left_behind_when_the_supervisor_is_killed(breakable_suite: Suite) -> None:
    suite = breakable_suite
    parts = [psutil.Process(pid) for pid in suite.pids().values()]
    children = [process for part in parts for process in (part, *part.children(recursive=True))]
    os.kill(suite.pid("up"), signal.SIGKILL)
    _gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert suite.process is not None
    suite.process.wait(5)
    suite.start()


def test_a_service_that_dies_is_started_again_and_that_is_seen(breakable_suite: Suite) -> None:
    suite = breakable_suite
    suite.restart()
    for times in ("1st", "2nd"):
        suite.wait_restarted("renderer", suite.kill("renderer"))
        assert f"renderer ended with signal 9, started again ({times} time)" in suite.output()


def test_wrong_settings_are_told_and_nothing_keeps_running(breakable_suite: Suite, tmp_path: Path) -> None:
    suite = breakable_suite
    wrong = Suite(tmp_path / "wrong", {**one_machine(), "GANTRY_SEARCH_MAX_RESULTS": "many"})
    refused = gantry_up(wrong, wrong.port, wrong.data)
    assert refused.returncode == 2
    assert "GANTRY_SEARCH_MAX_RESULTS" in refused.stderr
    assert not list((wrong.data / "run").glob("*.pid"))
    assert suite.pids()


def test_an_empty_archive_is_given_samples_and_the_printed_commands_work(tmp_path: Path) -> None:
    port = free_port()
    environment = {name: text for name, text in os.environ.items() if not name.startswith("GANTRY_")}
    command = [sys.executable, "-m", "gantry_suite.main", "up", "--port", str(port), "--data", str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as up:
        try:
            assert up.stdout is not None
            lines: list[str] = []
            while not (lines and "/rendered" in lines[-1] and "GET" in lines[-1]):
                lines.append(up.stdout.readline())
                assert lines[-1], "".join(lines)
            text = "".join(lines)
            assert int(re.search(r"samples +(\d+) stored", text)[1]) > 100  # type: ignore[index]
            assert float(re.search(r"all ready in ([0-9.]+) s", text)[1]) < 30  # type: ignore[index]
            assert f"http://127.0.0.1:{port}/dicom-web" in text
            commands = [line.strip().removeprefix("gantry ") for line in lines if line.startswith("  gantry ")]
            assert [line.split()[0] for line in commands] == ["store", "search", "metadata", "rendered"]
            for line in commands:
                shell = f"{sys.executable} -m gantry_suite.main {line}"
                done = subprocess.run(shell, shell=True, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
                assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
                assert done.stdout
            assert (tmp_path / "image.jpg").read_bytes()[:2] == b"\xff\xd8"
        finally:
            up.send_signal(signal.SIGTERM)
            assert up.wait(60) == 0


@pytest.mark.distributed
def test_the_client_commands_store_search_show_and_retrieve(suite: Suite, tmp_path: Path) -> None:
    data_sets = [instances.ct(PatientID="command-line"), instances.ct()]
    folder = tmp_path / "files" / "below"
    folder.mkdir(parents=True)
    for number, data_set in enumerate(data_sets):
        (folder / f"{number}.dcm").write_bytes(instances.encoded(data_set))
    done = suite.run("store", str(tmp_path / "files"))
    assert "2 stored, 0 failed" in done.stdout
    assert data_sets[0].SOPInstanceUID in done.stdout
    study = data_sets[0].StudyInstanceUID
    assert study in suite.run("search", f"StudyInstanceUID={study}").stdout
    rows = json.loads(suite.run("search", "series", f"StudyInstanceUID={study}", "--json", "--limit", "3").stdout)
    assert [value(row, "0020000E") for row in rows] == [data_sets[0].SeriesInstanceUID]
    path = f"{study}/{data_sets[0].SeriesInstanceUID}/{data_sets[0].SOPInstanceUID}"
    assert value(json.loads(suite.run("metadata", path).stdout)[0], "00100020") == "command-line"
    suite.run("rendered", path, "-o", str(tmp_path / "image.png"), "--window", "40,400", "--viewport", "20,20")
    assert (tmp_path / "image.png").read_bytes().startswith(b"\x89PNG")
    suite.run("retrieve", study, "-o", str(tmp_path / "got"))
    assert [path.read_bytes() for path in (tmp_path / "got").iterdir()] == [instances.encoded(data_sets[0])]
    assert "index" in suite.run("status").stdout


def test_the_store_command_tells_what_failed_and_ends_with_1(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "good.dcm").write_bytes(instances.encoded(instances.ct()))
    (tmp_path / "bad.dcm").write_bytes(b"no DICOM at all" * 100)
    done = suite.run("store", str(tmp_path / "good.dcm"), str(tmp_path / "bad.dcm"), check=False)
    assert done.returncode == 1
    assert "1 stored, 1 failed" in done.stdout
    assert suite.run("store", str(tmp_path / "missing.dcm"), check=False).returncode == 1


@pytest.mark.parametrize("arguments", [["metadata", "1.2.3"], ["rendered", "1.2.3/4/5", "-o", "x.jpg"], ["search", "limit=x"]])
def test_a_command_that_the_server_refuses_shows_its_sentence(suite: Suite, arguments: list[str]) -> None:
    done = suite.run(*arguments, check=False)
    assert done.returncode == 1
    assert suite.url in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_is_not_there_is_told_in_one_line(suite: Suite) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        done = suite.run("search", "--url", f"http://127.0.0.1:{closed.getsockname()[1]}/dicom-web", check=False)
    assert done.returncode == 1
    assert "is the suite running?" in done.stderr


def test_watch_prints_reports_as_they_come(suite: Suite, dicomweb: DicomWeb) -> None:
    worklist, ae_title = Worklist(dicomweb), new_ae_title()
    uid = worklist.created()
    command = [sys.executable, "-m", "gantry_suite.main", "watch", ae_title, "--subscribe", uid, "--url", suite.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=suite.environment()) as watching:
        try:
            assert watching.stdout is not None
            report = json.loads(watching.stdout.readline())
        finally:
            watching.send_signal(signal.SIGINT)
            watching.wait(10)
    assert value(report, "00001000") == uid
    with listening(dicomweb, ae_title):
        pass
