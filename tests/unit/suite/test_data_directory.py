"""The data directory: one supervisor at a time, a format that is known, ports that stay."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from gantry_suite.data_directory import FORMAT, PORTS, CannotStart, DataDirectory
from gantry_suite.ports import Ports


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    """A new data directory."""
    return DataDirectory(tmp_path / "data")


def test_a_new_directory_gets_the_format_and_its_folders(data: DataDirectory) -> None:
    with data.locked():
        assert (data.path / "format").read_text() == f"{FORMAT}\n"
        assert data.run.is_dir()
        assert data.logs.is_dir()


def test_a_second_supervisor_hears_who_holds_it(data: DataDirectory) -> None:
    other = DataDirectory(data.path)
    with data.locked(), pytest.raises(CannotStart, match=f"in use by process {os.getpid()} "), other.locked():
        pass
    with other.locked():
        pass


@pytest.mark.parametrize(
    ("text", "message"),
    [(str(FORMAT + 1), "written by a newer Gantry"), ("x", "expected a version number"), ("", "expected a version number")],
)
def test_a_format_that_is_not_ours_is_refused(data: DataDirectory, text: str, message: str) -> None:
    data.path.mkdir()
    (data.path / "format").write_text(text)
    with pytest.raises(CannotStart, match=message), data.locked():
        pass
    assert (data.path / "format").read_text() == text


def test_a_directory_of_the_former_format_is_taken_over(data: DataDirectory) -> None:
    data.path.mkdir()
    (data.path / "format").write_text("1\n")
    with data.locked():
        assert (data.path / "format").read_text() == f"{FORMAT}\n"
    assert not (data.path / "format.new").exists()


def test_a_place_that_cannot_be_a_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotStart, match="cannot be written"), DataDirectory(tmp_path / "file" / "data").locked():
        pass


def test_ports_stay_the_same_unless_one_is_taken(data: DataDirectory) -> None:
    with data.locked(), closing(Ports()) as ports:
        first = data.ports(("blob", "index", "nats"), ports)
        assert len(set(first.values())) == 3
        assert all(port in PORTS for port in first.values())
        assert data.ports(("blob", "index", "nats"), ports) == first
        with socket.create_server(("127.0.0.1", first["index"])):
            second = data.ports(("blob", "index", "nats"), ports)
        assert second["index"] != first["index"]
        assert {name: second[name] for name in ("blob", "nats")} == {name: first[name] for name in ("blob", "nats")}


def test_ports_of_a_suite_that_is_starting_are_not_given_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gantry_suite.data_directory.PORTS", range(PORTS.start, PORTS.start + 60))
    names = tuple(f"service{number}" for number in range(12))
    chosen: list[int] = []
    with ExitStack() as stack:
        for number in range(3):
            data, taken = DataDirectory(tmp_path / str(number)), stack.enter_context(closing(Ports()))
            stack.enter_context(data.locked())
            # Nobody listens on any of them yet, as before the services have started.
            chosen += data.ports(names, taken).values()
    assert len(set(chosen)) == 36


@pytest.mark.parametrize("text", ["", "[", "[]", '{"blob": "x"}', '{"blob": 80}'])
def test_a_file_of_ports_that_cannot_be_read_is_written_again(data: DataDirectory, text: str) -> None:
    with data.locked(), closing(Ports()) as taken:
        (data.run / "ports.json").write_text(text)
        ports = data.ports(("blob",), taken)
        assert ports["blob"] in PORTS
        assert json.loads((data.run / "ports.json").read_text()) == ports


def test_a_large_log_is_set_aside(data: DataDirectory) -> None:
    with data.locked():
        path = data.log("blob")
        with path.open("wb") as log:
            log.truncate(21 << 20)
        assert data.log("blob") == path
        assert not path.exists()
        assert (data.logs / "blob.log.1").stat().st_size == 21 << 20


def test_leftovers_of_a_killed_supervisor_are_ended_and_strangers_are_not(data: DataDirectory) -> None:
    sleep = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", sleep, "gantry_blob.main"], start_new_session=True) as ours:
        with subprocess.Popen([sys.executable, "-c", sleep]) as stranger, data.locked():
            # Popen returns when the child's memory is its own, a moment before its command line is there.
            while not Path(f"/proc/{ours.pid}/cmdline").read_bytes():
                assert ours.poll() is None
            data.write_pid("blob", ours.pid)
            data.write_pid("index", stranger.pid)
            data.write_pid("workflow", 2**22 + 1)
            # A child that has ended stays a zombie until its parent, this test, waits for it.
            assert data.end_leftovers(patience_s=0.2) == ["blob"]
            assert ours.wait(5) != 0
            assert stranger.poll() is None
            assert not list(data.run.glob("*.pid"))
            stranger.kill()
