"""The worklist commands of `gantry`: `watch` and `worklist`, with the client of worklist_client.py.

To add a `gantry worklist` command: a row in `ACTIONS` and a coroutine that takes the client and the parsed arguments and returns the
exit status.
"""

import argparse
import asyncio
import json
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gantry_standard import errors
from gantry_standard.dicom import native_xml
from gantry_standard.dicom.limits import ScanFailure
from gantry_standard.dicom.pydicom_tables import tag_of
from gantry_standard.workitems import GLOBAL_SUBSCRIPTION
from gantry_suite.client import Failed, print_table, server_url, shown
from gantry_suite.worklist_client import DataSet, WorklistClient, code, items, new_uid, performed_procedure, references, value

COLUMNS = (
    ("WORKITEM", "SOPInstanceUID"),
    ("STATE", "ProcedureStepState"),
    ("PRIORITY", "ScheduledProcedureStepPriority"),
    ("INPUT", "InputReadinessState"),
    ("START", "ScheduledProcedureStepStartDateTime"),
    ("WORKLIST", "WorklistLabel"),
    ("LABEL", "ProcedureStepLabel"),
)
"""The columns that `gantry worklist list` prints."""
FIRST_CONNECTION_S = 2.0
"""Seconds that `gantry watch` waits for its first connection; for later ones it waits without limit."""


async def _watch(worklist: WorklistClient, arguments: argparse.Namespace) -> int:
    """Print event reports as they arrive, one JSON object per line."""

    def tell(sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)

    if arguments.subscribe:
        await worklist.subscribe(arguments.ae, arguments.subscribe)
    async with aclosing(worklist.events(arguments.ae, within_s=FIRST_CONNECTION_S, tell=tell)) as events:
        async for event in events:
            print(json.dumps(event.data_set, ensure_ascii=False), flush=True)
    return 0


async def _list(worklist: WorklistClient, arguments: argparse.Namespace) -> int:
    """Print the workitems that match."""
    for word in arguments.keys:
        if "=" not in word:
            raise Failed(f"{word!r} is no KEY=VALUE")
    rows = await worklist.search(dict(word.split("=", 1) for word in arguments.keys), limit=arguments.limit)
    if arguments.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        print_table([[heading for heading, _ in COLUMNS]] + [[shown(row, tag_of(keyword)) for _, keyword in COLUMNS] for row in rows])
    return 0


async def _show(worklist: WorklistClient, arguments: argparse.Namespace) -> int:
    """Print a workitem as JSON."""
    print(json.dumps(await worklist.get(arguments.workitem), indent=1, ensure_ascii=False))
    return 0


async def _create(worklist: WorklistClient, arguments: argparse.Namespace) -> int:
    """Create a workitem from a file and print its UID."""
    print(await worklist.create(_read(arguments.file), arguments.uid or ""))
    return 0


async def _claim(worklist: WorklistClient, arguments: argparse.Namespace) -> int:
    """Claim a workitem; print the Transaction UID, and write it to a file if one is named."""
    if arguments.transaction_file is None:
        print(await worklist.claim(arguments.workitem, arguments.transaction or ""))
        return 0
    transaction_uid, is_new = _saved_transaction(arguments)
    try:
        print(await worklist.claim(arguments.workitem, transaction_uid))
    except errors.ResourceError:
        if is_new:
            _forget(arguments.transaction_file)
        raise
    return 0


def _saved_transaction(arguments: argparse.Namespace) -> tuple[str, bool]:
    """Return the Transaction UID in the file, and whether the file was created now.

    The file is written before the claim: without its Transaction UID a workitem can never be completed. An existing file belongs to an
    earlier claim, which may have had no response.
    """
    file: Path = arguments.transaction_file
    if file.exists() and not arguments.transaction:
        return _transaction(arguments), False
    transaction_uid = arguments.transaction or new_uid()
    try:
        file.write_text(transaction_uid + "\n", encoding="ascii")
    except OSError as error:
        raise Failed(f"{file} cannot be written: {error.strerror}") from error
    return transaction_uid, True


def _forget(file: Path) -> None:
    file.unlink(missing_ok=True)


async def _progress(worklist: WorklistClient, arguments: argparse.Namespace) -> int:
    """Report the progress of a claimed workitem."""
    await worklist.report_progress(arguments.workitem, _transaction(arguments), arguments.percent, arguments.description)
    return 0


async def _complete(worklist: WorklistClient, arguments: argparse.Namespace) -> int:
    """Complete a claimed workitem; add what was performed if it is not recorded yet."""
    performed: DataSet | None = None
    if arguments.performed:
        performed = _read(arguments.performed)
    else:
        workitem = await worklist.get(arguments.workitem)
        if arguments.output or not items(workitem, "UnifiedProcedureStepPerformedProcedureSequence"):
            performed = _performed(workitem, arguments, worklist.url)
    await worklist.complete(arguments.workitem, _transaction(arguments), performed)
    print(f"{arguments.workitem} is COMPLETED")
    return 0


def _performed(workitem: DataSet, arguments: argparse.Namespace, url: str) -> DataSet:
    """Return what was performed: scheduled station and procedure, else this machine and the workitem's label; and the outputs."""
    station = (
        None if items(workitem, "ScheduledStationNameCodeSequence") else code(socket.gethostname()[:16], "L", socket.gethostname()[:64])
    )
    label = str(value(workitem, "ProcedureStepLabel") or "performed")
    procedure = None if items(workitem, "ScheduledWorkitemCodeSequence") else code(label[:16], "L", label[:64])
    outputs = references([_instance(output) for output in arguments.output], url)
    return performed_procedure(workitem, outputs=outputs, station=station, procedure=procedure)


def _instance(output: str) -> DataSet:
    uids = output.strip("/").split("/")
    if len(uids) != 4 or not all(uids):
        raise Failed(f"{output!r} has {len(uids)} UIDs, expected SOPCLASS/STUDY/SERIES/INSTANCE")
    keywords = ("SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    return {tag_of(keyword): {"vr": "UI", "Value": [uid]} for keyword, uid in zip(keywords, uids, strict=True)}


async def _cancel(worklist: WorklistClient, arguments: argparse.Namespace) -> int:
    """Cancel a claimed workitem, or request its cancellation."""
    if arguments.transaction or arguments.transaction_file:
        await worklist.cancel(arguments.workitem, _transaction(arguments), arguments.reason)
        print(f"{arguments.workitem} is CANCELED")
    else:
        await worklist.request_cancellation(arguments.workitem, arguments.reason)
        print(f"{arguments.workitem}: {value(await worklist.get(arguments.workitem), 'ProcedureStepState')}, cancellation was requested")
    return 0


def _transaction(arguments: argparse.Namespace) -> str:
    """Return the given Transaction UID, or the one in the file.

    Raises:
        Failed: neither exists.
    """
    if arguments.transaction:
        return str(arguments.transaction)
    if not arguments.transaction_file:
        raise Failed("the Transaction UID of the claim is needed: --transaction UID, or --transaction-file FILE")
    try:
        return str(arguments.transaction_file.read_text(encoding="ascii").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise Failed(f"{arguments.transaction_file} cannot be read: {error}") from error


def _read(path: Path) -> DataSet:
    """Read a data set: DICOM JSON, or the Native DICOM Model if the name ends with .xml; - reads JSON from standard input.

    Raises:
        Failed: it is neither.
    """
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        data_set: Any = native_xml.to_json_model(content) if path.suffix.lower() == ".xml" else json.loads(content)
    except (OSError, ValueError, ScanFailure) as error:
        raise Failed(f"{path} cannot be read: {error}") from error
    if isinstance(data_set, list) and len(data_set) == 1:
        (data_set,) = data_set
    if not isinstance(data_set, dict):
        raise Failed(f"{path} holds no data set: expected one DICOM JSON object")
    return data_set


@dataclass(frozen=True)
class Action:
    """One command of `gantry worklist`."""

    name: str
    summary: str
    run: Callable[[WorklistClient, argparse.Namespace], Awaitable[int]]
    add_arguments: Callable[[argparse.ArgumentParser], None]


def _url(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="DICOMweb root (GANTRY_URL, else the suite in ./.gantry)")
    parser.add_argument("--retry", type=float, default=0, metavar="SECONDS", help="try again while the server does not answer (0)")


def _workitem(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workitem", metavar="WORKITEM", help="UID of the workitem")


def _key(parser: argparse.ArgumentParser) -> None:
    _workitem(parser)
    parser.add_argument("--transaction", metavar="UID", help="Transaction UID of the claim")
    parser.add_argument("--transaction-file", type=Path, metavar="FILE", help="file that holds it; `claim` writes it")


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="matching keys, such as ProcedureStepState=SCHEDULED")
    parser.add_argument("--limit", type=int, help="most rows")
    parser.add_argument("--json", action="store_true", help="print DICOM JSON instead of a table")


def _create_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="DICOM JSON, or XML (.xml); - for standard input")
    parser.add_argument("--uid", help="UID of the workitem (a new one)")


def _progress_arguments(parser: argparse.ArgumentParser) -> None:
    _key(parser)
    parser.add_argument("percent", type=float, metavar="PERCENT")
    parser.add_argument("description", nargs="?", default="", metavar="TEXT")


def _complete_arguments(parser: argparse.ArgumentParser) -> None:
    _key(parser)
    parser.add_argument("--performed", type=Path, metavar="FILE", help="data set with the UPS Performed Procedure Sequence")
    parser.add_argument(
        "--output", action="append", default=[], metavar="SOPCLASS/STUDY/SERIES/INSTANCE", help="an instance that came out; may be repeated"
    )


def _cancel_arguments(parser: argparse.ArgumentParser) -> None:
    _key(parser)
    parser.add_argument("--reason", default="", help="Reason For Cancellation")


ACTIONS = (
    Action("list", "list workitems", _list, _list_arguments),
    Action("show", "print a workitem as DICOM JSON", _show, _workitem),
    Action("create", "create a workitem from a file", _create, _create_arguments),
    Action("claim", "claim a workitem and print the Transaction UID", _claim, _key),
    Action("progress", "tell how far a claimed workitem is", _progress, _progress_arguments),
    Action("complete", "complete a claimed workitem", _complete, _complete_arguments),
    Action("cancel", "cancel a claimed workitem, or ask for the cancellation of any", _cancel, _cancel_arguments),
)


def add_worklist_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands of `gantry worklist`."""
    below = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for action in ACTIONS:
        one = below.add_parser(action.name, help=action.summary, description=action.summary[0].upper() + action.summary[1:] + ".")
        action.add_arguments(one)
        _url(one)
        one.set_defaults(action=action.run)


def add_watch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `gantry watch`."""
    parser.add_argument("ae", metavar="AE", help="AE title whose subscriptions are heard")
    parser.add_argument(
        "--subscribe", nargs="?", const=GLOBAL_SUBSCRIPTION, metavar="WORKITEM", help="subscribe first (to the global worklist)"
    )
    _url(parser)


def worklist(arguments: argparse.Namespace) -> int:
    """Run a command of `gantry worklist`. Returns the exit status."""
    return _run(arguments.action, arguments)


def watch(arguments: argparse.Namespace) -> int:
    """Print the event reports of an AE title as they arrive, across reconnections, until Ctrl-C."""
    try:
        return _run(_watch, arguments)
    except KeyboardInterrupt:
        return 0


def _run(action: Callable[[WorklistClient, argparse.Namespace], Awaitable[int]], arguments: argparse.Namespace) -> int:
    async def run() -> int:
        async with WorklistClient(server_url(arguments.url), retry_s=arguments.retry) as client:
            return await action(client, arguments)

    try:
        return asyncio.run(run())
    except errors.GantryError as error:
        raise Failed(error.message) from error
