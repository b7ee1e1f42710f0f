"""The client commands of `gantry`: store, search, metadata, rendered, retrieve, status, over HTTP.

They need only the DICOMweb root of a server, so they work with any reachable suite.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from gantry_suite import multipart

DEFAULT_URL = "http://127.0.0.1:8080/dicom-web"
DICOM_JSON = {"Accept": "application/dicom+json"}
BATCH_FILES = 200
BATCH_BYTES = 256 << 20
"""Most files of one store request; a request also ends with the file that reaches this many bytes."""

COLUMNS = {
    "studies": ("00080020", "00100020", "00100010", "00080061", "00201206", "00201208", "0020000D"),
    "series": ("00080060", "00200011", "0008103E", "00201209", "0020000D", "0020000E"),
    "instances": ("00080016", "00200013", "00280008", "0020000D", "0020000E", "00080018"),
}
"""The columns that `search` prints, per level."""

HEADINGS = {
    "00080016": "SOPClassUID",
    "00080018": "SOPInstanceUID",
    "00080020": "StudyDate",
    "00080060": "Modality",
    "00080061": "Modalities",
    "0008103E": "SeriesDescription",
    "00100010": "PatientName",
    "00100020": "PatientID",
    "0020000D": "StudyInstanceUID",
    "0020000E": "SeriesInstanceUID",
    "00200011": "Number",
    "00200013": "Number",
    "00201206": "Series",
    "00201208": "Instances",
    "00201209": "Instances",
    "00280008": "Frames",
}


class Failed(Exception):
    """A command failed; the message is shown to the user."""


@dataclass
class Stored:
    """The results of one or more store requests."""

    lines: list[str]
    stored: int = 0
    failed: int = 0


def server_url(given: str | None) -> str:
    """Return the DICOMweb root: `--url`, else GANTRY_URL, else the suite that runs in ./.gantry, else the default."""
    if given or os.environ.get("GANTRY_URL"):
        return (given or os.environ["GANTRY_URL"]).rstrip("/")
    try:
        return Path(".gantry/run/url").read_text(encoding="utf-8").strip()
    except OSError:
        return DEFAULT_URL


@contextmanager
def session() -> Iterator[httpx.Client]:
    """Open an HTTP client; network errors become `Failed` with a readable message."""
    try:
        with httpx.Client(timeout=httpx.Timeout(300, connect=5), trust_env=False) as client:
            yield client
    except httpx.ConnectError as error:
        raise Failed(f"nothing answers at {_address(error)}; is the suite running? (gantry up)") from error
    except httpx.HTTPError as error:
        raise Failed(f"the connection to {_address(error)} broke: {type(error).__name__} {error}".rstrip()) from error
    except httpx.InvalidURL as error:
        raise Failed(f"that is no URL: {error}") from error


def _address(error: httpx.HTTPError) -> str:
    try:
        return str(error.request.url)
    except RuntimeError:
        return "the server"


def checked(response: httpx.Response) -> httpx.Response:
    """Return a successful response.

    Raises:
        Failed: the response is an error; the message is the server's.
    """
    if response.is_success:
        return response
    response.read()
    message = response.text.strip()
    if response.headers.get("content-type", "").startswith("application/"):
        try:
            message = str(response.json().get("message", message))
        except (ValueError, AttributeError):
            message = response.text.strip()
    raise Failed(f"{response.request.method} {response.request.url}\n{response.status_code} {response.reason_phrase}: {message[:2000]}")


def files_below(paths: list[Path]) -> list[Path]:
    """Return the named files, and all files below the named folders.

    Raises:
        Failed: there is no such path.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(inner for inner in path.rglob("*") if inner.is_file())
        elif path.is_file():
            files.append(path)
        else:
            raise Failed(f"there is no file or folder {path}")
    return files


def batches(files: list[Path]) -> Iterator[list[Path]]:
    """Yield the files in groups, one per store request."""
    group: list[Path] = []
    size = 0
    for path in files:
        group.append(path)
        size += path.stat().st_size
        if len(group) == BATCH_FILES or size >= BATCH_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def store_files(client: httpx.Client, url: str, files: list[Path], progress: Callable[[Stored], None]) -> Stored:
    """Store files, streamed from disk; call `progress` with the totals after each request.

    Raises:
        Failed: the server refused a whole request, not only instances in it.
    """
    total = Stored([])
    for group in batches(files):
        boundary = multipart.new_boundary()
        response = client.post(
            f"{url}/studies",
            content=multipart.encode_files(group, boundary),
            headers={"Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}', **DICOM_JSON},
        )
        if response.status_code != httpx.codes.CONFLICT or "dicom+json" not in response.headers.get("content-type", ""):
            checked(response)
        _add_outcomes(total, response.json())
        progress(total)
    return total


def _add_outcomes(total: Stored, answer: dict[str, Any]) -> None:
    for item in _items(answer, "00081199"):
        total.stored += 1
        warning = f" (warning {_first(item, '00081196'):04X}H)" if _first(item, "00081196") else ""
        total.lines.append(f"stored  {_first(item, '00081155')}{warning}")
    for item in _items(answer, "00081198"):
        total.failed += 1
        total.lines.append(f"failed  {_first(item, '00081155')}: reason {int(_first(item, '00081197') or 0):04X}H")
    for item in _items(answer, "0008119A"):
        total.failed += 1
        total.lines.append(f"failed  a part that is no instance: reason {int(_first(item, '00081197') or 0):04X}H")


def _items(data_set: dict[str, Any], tag: str) -> list[dict[str, Any]]:
    return list(data_set.get(tag, {}).get("Value", []))


def _first(data_set: dict[str, Any], tag: str) -> Any:
    values = data_set.get(tag, {}).get("Value", [])
    return values[0] if values else ""


def shown(data_set: dict[str, Any], tag: str) -> str:
    """Return the values of an attribute in readable form."""
    values = data_set.get(tag, {}).get("Value", [])
    return "\\".join(value.get("Alphabetic", "") if isinstance(value, dict) else str(value) for value in values)


def instance_path(path: str, least: int = 1) -> str:
    """Turn STUDY[/SERIES[/INSTANCE]] into the path of the resource.

    Raises:
        Failed: it has fewer than `least` or more than three UIDs.
    """
    uids = path.strip("/").split("/")
    if not least <= len(uids) <= 3 or not all(uids):
        raise Failed(f"{path!r} has {len(uids)} UIDs, expected {'STUDY[/SERIES[/INSTANCE]]' if least == 1 else 'STUDY/SERIES/INSTANCE'}")
    names = ("studies", "series", "instances")
    return "".join(f"/{name}/{uid}" for name, uid in zip(names, uids, strict=False))


def store(arguments: argparse.Namespace) -> int:
    """Store files and folders; print the result of each instance. Returns 1 if one failed."""
    files = files_below(arguments.paths)
    if not files:
        raise Failed("there is no file to store")
    shown = 0

    def progress(total: Stored) -> None:
        nonlocal shown
        print("\n".join(total.lines[shown:]), flush=True)
        shown = len(total.lines)

    with session() as client:
        total = store_files(client, server_url(arguments.url), files, progress)
    print(f"{total.stored} stored, {total.failed} failed")
    return 1 if total.failed else 0


def search(arguments: argparse.Namespace) -> int:
    """Search studies, series or instances; print one line per match, or JSON."""
    words = list(arguments.words)
    level = words.pop(0) if words and words[0] in COLUMNS else "studies"
    for word in words:
        if "=" not in word:
            raise Failed(f"{word!r} is neither studies, series, instances nor KEY=VALUE")
    parameters = [tuple(word.split("=", 1)) for word in words]
    if arguments.limit is not None:
        parameters.append(("limit", str(arguments.limit)))
    with session() as client:
        response = checked(client.get(f"{server_url(arguments.url)}/{level}", params=parameters, headers=DICOM_JSON))
    rows = response.json() if response.content else []
    if arguments.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        print_table([[HEADINGS[tag] for tag in COLUMNS[level]]] + [[shown(row, tag) for tag in COLUMNS[level]] for row in rows])
    for warning in response.headers.get_list("warning"):
        print(warning, file=sys.stderr)
    return 0


def print_table(rows: list[list[str]]) -> None:
    """Print rows as columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())


def metadata(arguments: argparse.Namespace) -> int:
    """Print the metadata of a study, series or instance as JSON."""
    with session() as client:
        response = checked(client.get(f"{server_url(arguments.url)}{instance_path(arguments.path)}/metadata", headers=DICOM_JSON))
    print(json.dumps(response.json(), indent=1, ensure_ascii=False))
    return 0


def rendered(arguments: argparse.Namespace) -> int:
    """Write the rendered image of an instance to a file; .png gives PNG, anything else JPEG."""
    frame = f"/frames/{arguments.frame}" if arguments.frame else ""
    parameters = {}
    if arguments.window:
        parts = arguments.window.split(",")
        parameters["window"] = arguments.window if len(parts) == 3 else f"{arguments.window},linear"
    if arguments.viewport:
        parameters["viewport"] = arguments.viewport
    kind = "image/png" if arguments.output.suffix.lower() == ".png" else "image/jpeg"
    url = f"{server_url(arguments.url)}{instance_path(arguments.path, least=3)}{frame}/rendered"
    with session() as client:
        response = checked(client.get(url, params=parameters, headers={"Accept": kind}))
    arguments.output.write_bytes(response.content)
    print(f"{arguments.output}: {len(response.content)} bytes, {response.headers['content-type']}")
    return 0


def retrieve(arguments: argparse.Namespace) -> int:
    """Write the instances of a study, series or instance into a folder, one file each, as they are received."""
    arguments.output.mkdir(parents=True, exist_ok=True)
    syntax = arguments.transfer_syntax
    accept = f'multipart/related; type="application/dicom"; transfer-syntax={syntax}'
    url = f"{server_url(arguments.url)}{instance_path(arguments.path)}"
    with session() as client, client.stream("GET", url, headers={"Accept": accept}) as response:
        checked(response)
        try:
            number = _write_parts(response, arguments.output)
        except multipart.BrokenMultipart as error:
            raise Failed(f"GET {url}\n{error}") from error
    print(f"{number} instances in {arguments.output}")
    return 0


def _write_parts(response: httpx.Response, folder: Path) -> int:
    number, file = 0, None
    temporary = folder / ".part"
    target = temporary
    try:
        for piece in multipart.decode(response.iter_bytes(), multipart.boundary_of(response.headers.get("content-type", ""))):
            if isinstance(piece, multipart.PartHeaders):
                if file is not None:
                    file.close()
                    temporary.replace(target)
                number += 1
                uid = piece.get("content-location", str(number)).rstrip("/").rsplit("/", 1)[-1]
                target = folder / f"{''.join(letter for letter in uid if letter in '0123456789.')}.dcm"
                file = temporary.open("wb")
            elif file is not None:
                file.write(piece)
        if file is not None:
            file.close()
            temporary.replace(target)
    finally:
        if file is not None:
            file.close()
        temporary.unlink(missing_ok=True)
    return number


def status(arguments: argparse.Namespace) -> int:
    """Print the health of the services and their stores. Returns 1 if one is unhealthy."""
    url = httpx.URL(server_url(arguments.url)).copy_with(raw_path=b"/healthz/suite")
    with session() as client:
        response = client.get(url, headers={"Accept": "application/json"})
    try:
        answer = response.json()
    except ValueError:
        checked(response)
        raise Failed(f"{url} did not answer with JSON") from None
    for line in _readable(answer):
        print(line)
    return 0 if response.is_success else 1


def _readable(value: Any, indent: str = "") -> Iterator[str]:
    """Yield nested JSON as indented lines."""
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield f"{indent}{name}"
            yield from _readable(inner, indent + "  ")
        else:
            yield f"{indent}{name:<18} {inner}"
