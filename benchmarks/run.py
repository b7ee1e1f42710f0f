#!/usr/bin/env python3
"""Measure a suite of our own, alone or side by side with Orthanc: what `make bench` calls.

    python benchmarks/run.py                          one suite on this machine, all scenarios of the slice
    python benchmarks/run.py --peer orthanc           side by side with Debian's Orthanc, interleaved, with the estimate against 1.13
    python benchmarks/run.py --peer orthanc --distributed   and a suite on S3 and Elasticsearch in the same run
    python benchmarks/run.py --checkout DIR           side by side with another checkout of Gantry, such as the one before a change;
                                                      its `make install` must have run
    python benchmarks/run.py --scenario S4 --quick    a check that it runs

The suite and the peer live in a directory of their own below --work and are ended afterwards. Settings of the suite (GANTRY_INDEX_STORE, …)
are taken from the environment. More options of bench.py may follow after `--`.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FIRST = "S1,S2,S3,S4,S5,S6,S8,S10,S11"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def distributed(work: Path, stack: contextlib.ExitStack, name: str = "bench") -> dict[str, str]:
    """Return settings of a suite on S3 and Elasticsearch: the servers that GANTRY_TEST_* names, else ones that are started and ended here.

    `name` keeps the bucket and the indices of several suites apart.
    """
    names = {"GANTRY_S3_ENDPOINT": "GANTRY_TEST_S3_ENDPOINT", "GANTRY_S3_ACCESS_KEY": "GANTRY_TEST_S3_ACCESS_KEY",
             "GANTRY_S3_SECRET_KEY": "GANTRY_TEST_S3_SECRET_KEY", "GANTRY_ELASTICSEARCH_URL": "GANTRY_TEST_ELASTICSEARCH_URL"}
    given = dict(os.environ)
    if not all(given.get(name) for name in names.values()):
        servers = ROOT / "tests" / "servers"
        printed = subprocess.run([servers / "up.sh", work / "servers"], check=True, capture_output=True, text=True).stdout
        stack.callback(subprocess.run, [servers / "down.sh", work / "servers"], check=False)
        given |= dict(line.removeprefix("export ").split("=", 1) for line in printed.splitlines() if "=" in line)
        os.environ.update(given)
    name = f"{name}-{os.getpid()}"
    return {"GANTRY_OBJECT_STORE": "s3", "GANTRY_INDEX_STORE": "elasticsearch", "GANTRY_S3_BUCKET": name, "GANTRY_ELASTICSEARCH_PREFIX": name,
            **{setting: given[name] for setting, name in names.items()}}


@contextlib.contextmanager
def gantry(work: Path, name: str = "gantry", settings: dict[str, str] | None = None, programs: Path = Path(sys.executable).parent):
    """Run a suite; yields (base, wado, pids). `programs` is the folder of its commands."""
    port, data = free_port(), work / name
    command = [str(programs / "gantry"), "up", "--port", str(port), "--data", str(data), "--no-samples"]
    environment = os.environ | (settings or {})
    process = subprocess.Popen(command, stdout=(work / f"{name}.log").open("wb"), stderr=subprocess.STDOUT, env=environment)
    try:
        _wait(f"http://127.0.0.1:{port}/healthz/suite", process, work / f"{name}.log")
        pids = [int(path.read_text()) for path in sorted((data / "run").glob("*.pid")) if path.stem != "up"]
        yield f"http://127.0.0.1:{port}/dicom-web", f"http://127.0.0.1:{port}/wado", pids
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@contextlib.contextmanager
def orthanc(work: Path):
    """Run Debian's Orthanc; yields (base, wado, pids)."""
    port = free_port()
    started = subprocess.run([sys.executable, HERE / "peers" / "orthanc.py", "--dir", work / "orthanc", "--port", str(port)], capture_output=True, text=True)
    if started.returncode:
        sys.exit(started.stderr)
    pid = int(started.stdout)
    try:
        yield f"http://127.0.0.1:{port}/dicom-web", f"http://127.0.0.1:{port}/wado", [pid]
    finally:
        os.kill(pid, signal.SIGTERM)


def _wait(url, process, log, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    sys.exit(f"no answer from {url}; see {log}\n{log.read_text()[-2000:]}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer", choices=["", "orthanc"], default="")
    p.add_argument("--distributed", action="store_true", help="also measure a suite on S3 and Elasticsearch with --peer; with --checkout measure both there")
    p.add_argument("--checkout", type=Path, help="another checkout of Gantry to compare with")
    p.add_argument("--scenario", default=FIRST)
    p.add_argument("--work", help="directory to work in (default: a temporary one)")
    p.add_argument("--json", default=str(ROOT / "build" / "bench.json"))
    p.add_argument("--quick", action="store_true")
    p.add_argument("more", nargs="*")
    args = p.parse_args()
    Path(args.json).parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        work = Path(args.work or stack.enter_context(tempfile.TemporaryDirectory(prefix="gantry-bench-")))
        work.mkdir(parents=True, exist_ok=True)
        both = args.checkout is not None and args.distributed
        base, wado, pids = stack.enter_context(gantry(work, settings=distributed(work, stack) if both else None))
        command = [sys.executable, str(HERE / "bench.py"), "--scenario", args.scenario, "--load", "--memory", "--json", args.json]
        if args.checkout:
            settings = distributed(work, stack, "other") if both else None
            other_base, other_wado, other_pids = stack.enter_context(gantry(work, "other", settings, args.checkout / ".venv" / "bin"))
            command += ["--base", other_base, "--wado", other_wado, "--label", "other", "--pids", ",".join(map(str, other_pids))]
            command += ["--compare", base, "--wado2", wado, "--label2", "gantry", "--pids2", ",".join(map(str, pids))]
        elif args.peer:
            peer_base, peer_wado, peer_pids = stack.enter_context(orthanc(work))
            command += ["--base", peer_base, "--wado", peer_wado, "--label", "orthanc", "--pids", ",".join(map(str, peer_pids))]
            command += ["--compare", base, "--wado2", wado, "--label2", "gantry", "--pids2", ",".join(map(str, pids))]
            if args.distributed:
                base, wado, pids = stack.enter_context(gantry(work, "distributed", distributed(work, stack)))
                command += ["--third", base, "--wado3", wado, "--label3", "distributed", "--pids3", ",".join(map(str, pids))]
        else:
            command += ["--base", base, "--wado", wado, "--label", "gantry", "--pids", ",".join(map(str, pids))]
        command += ["--quick", "--scale", "0.05"] if args.quick else ["--settle", "8"]
        subprocess.run([*command, *args.more], check=True)
        subprocess.run([sys.executable, str(HERE / "table.py"), args.json, *(["--against-1.13"] if args.peer and not args.quick and "--scale" not in args.more else [])], check=True)
        wrong = {name: {label: s["reason"] for label, s in case["servers"].items() if s["answer"] in ("wrong", "errors") and label != "orthanc"}
                 for name, case in json.loads(Path(args.json).read_text())["cases"].items()}
        if any(wrong.values()):
            sys.exit(f"wrong answers of ours: {json.dumps({k: v for k, v in wrong.items() if v})}")


if __name__ == "__main__":
    main()
