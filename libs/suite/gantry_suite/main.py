"""The `gantry` command.

To add a command: a row in `COMMANDS` and a function that takes the parsed arguments and returns the exit status.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gantry_suite import admin, client, up, worklist_commands


@dataclass(frozen=True)
class Command:
    """One command of `gantry`.

    Attributes:
        run: returns the exit status: 0 done, 1 something failed, 2 cannot start.
    """

    name: str
    summary: str
    examples: tuple[str, ...]
    run: Callable[[argparse.Namespace], int]
    add_arguments: Callable[[argparse.ArgumentParser], None]


def _url(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help=f"DICOMweb root (GANTRY_URL, else the suite in ./.gantry, else {client.DEFAULT_URL})")


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=Path(".gantry"), help="data directory of the running suite (.gantry)")


def _store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files and folders")
    _url(parser)


def _search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="[studies|series|instances] KEY=VALUE", help="level (studies) and matching keys")
    parser.add_argument("--limit", type=int, help="most rows")
    parser.add_argument("--json", action="store_true", help="print DICOM JSON instead of a table")
    _url(parser)


def _metadata(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="STUDY[/SERIES[/INSTANCE]]")
    _url(parser)


def _rendered(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="STUDY/SERIES/INSTANCE")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write; .png gives PNG, else JPEG")
    parser.add_argument("--frame", type=int, help="frame number, from 1")
    parser.add_argument("--window", help="CENTER,WIDTH[,FUNCTION]")
    parser.add_argument("--viewport", help="WIDTH,HEIGHT[,X,Y,W,H]")
    _url(parser)


def _retrieve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="STUDY[/SERIES[/INSTANCE]]")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write into")
    parser.add_argument("--transfer-syntax", default="*", help="UID, or * for as stored (*)")
    _url(parser)


def _export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uid", metavar="UID", help="SOP Instance UID")
    parser.add_argument("file", type=Path, metavar="FILE", help="file to write")
    parser.add_argument("--at", metavar="OBJECT:OFFSET:LENGTH", help="of an upload that was refused, as `gantry duplicates` prints it")
    _data(parser)


def _restore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uid", metavar="UID", help="Study, Series or SOP Instance UID")
    _data(parser)


def _duplicates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uid", nargs="?", default="", metavar="UID", help="only those of a study, a series or an instance")
    _data(parser)


COMMANDS = (
    Command("up", "run the whole suite on this machine", ("gantry up --port 8080 --data .gantry",), up.run, up.add_arguments),
    Command(
        "store",
        "store files and folders",
        ("gantry store scan.dcm", "gantry store ./study --url http://host:8080/dicom-web"),
        client.store,
        _store,
    ),
    Command(
        "search",
        "search studies, series or instances",
        ("gantry search", "gantry search 'PatientName=DOE*' StudyDate=20260101-", "gantry search series Modality=CT --limit 5 --json"),
        client.search,
        _search,
    ),
    Command(
        "metadata",
        "print metadata as DICOM JSON",
        ("gantry metadata 1.2.3", "gantry metadata 1.2.3/4.5.6/7.8.9"),
        client.metadata,
        _metadata,
    ),
    Command(
        "rendered",
        "write a rendered image",
        (
            "gantry rendered 1.2.3/4.5.6/7.8.9 -o image.jpg",
            "gantry rendered 1.2.3/4.5.6/7.8.9 -o image.png --window 40,400 --viewport 256,256",
        ),
        client.rendered,
        _rendered,
    ),
    Command("retrieve", "write instances into a folder", ("gantry retrieve 1.2.3 -o ./study",), client.retrieve, _retrieve),
    Command(
        "watch",
        "print event reports as they come",
        ("gantry watch VIEWER --subscribe",),
        worklist_commands.watch,
        worklist_commands.add_watch_arguments,
    ),
    Command(
        "worklist",
        "list, create, claim, complete and cancel workitems",
        (
            "gantry worklist list ProcedureStepState=SCHEDULED",
            "gantry worklist claim 1.2.3 --transaction-file claim",
            "gantry worklist complete 1.2.3 --transaction-file claim",
        ),
        worklist_commands.worklist,
        worklist_commands.add_worklist_arguments,
    ),
    Command("status", "print how the services and their stores are", ("gantry status",), client.status, _url),
    Command("reindex", "rebuild the index from the object store alone", ("gantry reindex --data .gantry",), admin.reindex, _data),
    Command("verify", "read every stored byte and compare digests", ("gantry verify --data .gantry",), admin.verify, _data),
    Command(
        "restore",
        "bring back a study, a series or an instance that was deleted and not swept yet",
        ("gantry restore 1.2.3",),
        admin.restore,
        _restore,
    ),
    Command(
        "duplicates",
        "list the uploads that were refused because their SOP Instance UID had other content",
        ("gantry duplicates", "gantry duplicates 1.2.3"),
        admin.duplicates,
        _duplicates,
    ),
    Command(
        "export", "write the file of one instance exactly as it was sent", ("gantry export 7.8.9 original.dcm",), admin.export, _export
    ),
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    top = argparse.ArgumentParser(prog="gantry", description="Gantry, a DICOMweb origin server: the suite, and its client.")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        below = commands.add_parser(
            command.name,
            help=command.summary,
            description=command.summary[0].upper() + command.summary[1:] + ".",
            epilog="\n".join(("examples:", *(f"  {example}" for example in command.examples))),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(below)
        below.set_defaults(run=command.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command."""
    parsed = parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except client.Failed as failure:
        print(f"gantry: {failure}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
