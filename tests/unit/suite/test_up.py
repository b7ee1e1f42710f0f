"""What `gantry up` tells the services, and what the command line says by itself."""

import os
from pathlib import Path

import pytest

from gantry_suite import samples, up
from gantry_suite.client import Failed, batches, files_below, instance_path, server_url
from gantry_suite.data_directory import CannotStart, DataDirectory
from gantry_suite.main import COMMANDS, main

PORTS = {name: 20_000 + number for number, name in enumerate(up.PORT_NAMES)}


def environment(**given: str) -> dict[str, str]:
    """Return the settings of the services for an environment."""
    return up.settings_of_services(given, DataDirectory(Path("/data")), "127.0.0.1", 8080, PORTS)


def test_services_find_each_other_and_their_stores() -> None:
    settings = environment()
    assert settings["GANTRY_NATS_URL"] == f"nats://127.0.0.1:{PORTS['nats']}"
    for name in up.LISTENERS:
        nearby = f"local:/data/run/{name}.sock"
        assert settings[f"GANTRY_{name.upper()}_LISTEN"] == f"127.0.0.1:{PORTS[name]},{nearby}"
        assert settings[f"GANTRY_{name.upper()}_ADDRESS"] == nearby
    assert settings["GANTRY_BLOB_DIRECTORY"] == "/data/objects"
    assert settings["GANTRY_INDEX_DIRECTORY"] == "/data/index"
    assert (settings["GANTRY_HOST"], settings["GANTRY_PORT"]) == ("127.0.0.1", "8080")


def test_where_the_paths_of_sockets_would_be_too_long_services_find_each_other_over_tcp() -> None:
    data = DataDirectory(Path("/data") / ("d" * 100))
    settings = up.settings_of_services({}, data, "127.0.0.1", 8080, PORTS)
    for name in up.LISTENERS:
        assert settings[f"GANTRY_{name.upper()}_LISTEN"] == settings[f"GANTRY_{name.upper()}_ADDRESS"] == f"127.0.0.1:{PORTS[name]}"


def test_what_the_user_set_is_passed_on() -> None:
    settings = environment(GANTRY_NATS_URL="nats://elsewhere:4222", GANTRY_CORS_ORIGINS="*", PATH="/bin", GANTRY_BASE_PATH="")
    assert settings["GANTRY_NATS_URL"] == "nats://elsewhere:4222"
    assert settings["GANTRY_CORS_ORIGINS"] == "*"
    assert settings["PATH"] == "/bin"
    assert settings["GANTRY_BASE_PATH"] == "/dicom-web"


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("3", 3), ("16", 16), ("", min(2, os.cpu_count() or 1))])
def test_as_many_gateways_answer_as_were_asked_for(text: str, number: int) -> None:
    assert up.number_of_gateways({"GANTRY_GATEWAYS": text}) == number


@pytest.mark.parametrize("text", ["0", "17", "-1", "two", "1.5"])
def test_another_number_of_gateways_is_refused(text: str) -> None:
    with pytest.raises(CannotStart, match="expected a number from 1 to 16"):
        up.number_of_gateways({"GANTRY_GATEWAYS": text})


def test_with_s3_nobody_maps_files() -> None:
    assert "GANTRY_BLOB_DIRECTORY" not in environment(GANTRY_OBJECT_STORE="s3", GANTRY_BLOB_DIRECTORY="/else")


def test_the_samples_are_there_without_a_download() -> None:
    found = samples.files()
    assert len(found) > 150
    assert samples.SHOWN in {path.name for path in found}
    assert "DICOMDIR" not in {path.name for path in found}


def test_files_are_found_below_folders_and_sent_in_batches(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for number in range(450):
        (tmp_path / "a" / "b" / f"{number:03}").write_bytes(b"x")
    found = files_below([tmp_path, tmp_path / "a" / "b" / "000"])
    assert len(found) == 451
    assert [len(group) for group in batches(found)] == [200, 200, 51]
    with pytest.raises(Failed, match="no file or folder"):
        files_below([tmp_path / "missing"])


def test_paths_of_uids_become_paths_of_resources() -> None:
    assert instance_path("1.2") == "/studies/1.2"
    assert instance_path("1.2/3/4") == "/studies/1.2/series/3/instances/4"
    for wrong in ("1/2/3/4", "", "1//2"):
        with pytest.raises(Failed):
            instance_path(wrong)
    with pytest.raises(Failed):
        instance_path("1/2", least=3)


def test_the_server_is_the_one_named_else_the_one_running_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GANTRY_URL", raising=False)
    assert server_url(None) == "http://127.0.0.1:8080/dicom-web"
    (tmp_path / ".gantry" / "run").mkdir(parents=True)
    (tmp_path / ".gantry" / "run" / "url").write_text("http://127.0.0.1:9/dicom-web\n")
    assert server_url(None) == "http://127.0.0.1:9/dicom-web"
    monkeypatch.setenv("GANTRY_URL", "http://other/dicom-web/")
    assert server_url(None) == "http://other/dicom-web"
    assert server_url("http://named/x/") == "http://named/x"


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"  gantry {command}" in capsys.readouterr().out


def test_administrative_commands_say_when_no_suite_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["reindex"], ["verify"], ["export", "1.2", str(tmp_path / "out")]):
        assert main([*command, "--data", str(tmp_path)]) == 1
        assert "no suite is running" in capsys.readouterr().err
