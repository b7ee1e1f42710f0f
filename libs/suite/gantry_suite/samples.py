"""The sample instances of the pydicom package: stored in an empty archive, and used in the printed example commands."""

import importlib.util
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gantry_suite import client

DEFAULT_DATA = Path(".gantry")
SHOWN = "CT_small.dcm"
"""The sample that the example commands store again and render."""

SHOWN_UIDS = (
    "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322",
    "1.3.6.1.4.1.5962.1.3.1.1.20040119072730.12322",
    "1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322",
)
"""Study, Series and SOP Instance UID of `SHOWN`."""


def files() -> list[Path]:
    """Return the instances in pydicom's own folder; nothing is downloaded."""
    root = _folder()
    return sorted(path for path in root.rglob("*") if path.is_file() and path.name != "DICOMDIR" and is_instance(path))


def _folder() -> Path:
    """Return pydicom's data folder, without importing pydicom: its import would delay the start."""
    package = importlib.util.find_spec("pydicom")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "data"


def is_instance(path: Path) -> bool:
    """Return whether a file is named .dcm or has the DICOM prefix."""
    with path.open("rb") as file:
        return path.suffix == ".dcm" or file.read(132)[128:] == b"DICM"


def load_if_empty(url: str, say: Callable[[str], None]) -> None:
    """Store the samples if the archive is empty. Refused samples are counted; no failure ends the suite."""
    try:
        with client.session() as http:
            if client.checked(http.get(f"{url}/studies", params={"limit": 1}, headers=client.DICOM_JSON)).content:
                return
            sample_files = files()
            say(f"the archive is empty: loading the {len(sample_files)} sample files that pydicom ships")
            total = client.store_files(
                http, url, sample_files, lambda total: say(f"samples   {total.stored + total.failed} of {len(sample_files)}")
            )
            say(f"samples   {total.stored} stored, {total.failed} refused (broken on purpose, or other contents of a stored UID)")
    except client.Failed as failure:
        say(f"the samples were not loaded: {failure}")


def commands_to_try(url: str, data: Path) -> list[str]:
    """Return lines with the address of the suite and four commands to paste."""
    program = _program()
    option = "" if data == DEFAULT_DATA else f" --url {shlex.quote(url)}"
    file = _folder() / "test_files" / SHOWN
    study, series, instance = _shown_instance(url)
    path = f"{study}/{series}/{instance}"
    resource = f"{url}/studies/{study}/series/{series}/instances/{instance}"
    commands = (
        (f"store {shlex.quote(_relative(file))}", f"POST {url}/studies"),
        (f"search studies StudyInstanceUID={study}", f"GET  {url}/studies?StudyInstanceUID={study}"),
        (f"metadata {path}", f"GET  {resource}/metadata"),
        (f"rendered {path} -o image.jpg", f"GET  {resource}/rendered"),
    )
    lines = ["", f"Gantry listens at {url}    (Ctrl-C stops it)", "", "Try in another terminal:"]
    for command, call in commands:
        lines += [f"  {program} {command}{option}", f"      {call}"]
    return lines


def _shown_instance(url: str) -> tuple[str, str, str]:
    """Return the UIDs of an image in the archive, else those of the sample that the first command stores."""
    try:
        with client.session() as http:
            response = http.get(f"{url}/instances", params={"SOPInstanceUID": SHOWN_UIDS[2]}, headers=client.DICOM_JSON)
            if response.is_success and not response.content:
                response = http.get(f"{url}/instances", params={"limit": 200}, headers=client.DICOM_JSON)
            rows: list[dict[str, Any]] = response.json() if response.is_success and response.content else []
    except (client.Failed, ValueError):
        return SHOWN_UIDS
    image = next((row for row in rows if row.get("00280010", {}).get("Value")), None)
    if image is None:
        return SHOWN_UIDS
    study, series, instance = (str(image[tag]["Value"][0]) for tag in ("0020000D", "0020000E", "00080018"))
    return study, series, instance


def _program() -> str:
    """Return the command that starts this program from the current folder."""
    return shlex.quote(_relative(Path(sys.argv[0]).absolute())) if Path(sys.argv[0]).name == "gantry" else "gantry"


def _relative(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
