"""Several gateways on one port are one replica: what one of them changed all see at once, and the port answers while one of them dies."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support import instances
from tests.support.suite import Suite, one_machine

GATEWAYS = ("gateway", "gateway-2", "gateway-3")
CONNECTIONS = 24
"""So many that each gateway has some: the chance that one of three has none of them is 1 in 5,000; the kernel spreads them."""


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A suite of three gateways."""
    running = Suite(tmp_path_factory.mktemp("gateways"), one_machine() | {"GANTRY_GATEWAYS": "3"})
    try:
        running.start()
        yield running
    finally:
        running.close()


@contextmanager
def connections(suite: Suite) -> Iterator[list[httpx.Client]]:
    """Open clients that have a connection each."""
    with ExitStack() as stack:
        made = [
            stack.enter_context(httpx.Client(base_url=suite.url, trust_env=False, verify=False, timeout=20)) for _ in range(CONNECTIONS)
        ]
        assert {client.get("/studies?limit=1").status_code for client in made} <= {200, 204}
        yield made


def requests_answered(suite: Suite, gateway: str) -> int:
    """Return how many requests a gateway has logged."""
    return len(re.findall(r'"event": ?"request"', (suite.data / "logs" / f"{gateway}.log").read_text()))


def test_each_gateway_answers_and_a_delete_is_seen_by_all_at_once(three: Suite) -> None:
    as_stored = {"Accept": "application/dicom; transfer-syntax=*"}
    with connections(three) as clients:
        for number in range(3):
            data_set = instances.ct()
            three.client().store(instances.encoded(data_set))
            path = instances.resource(data_set)
            for _ in range(2):
                assert {client.get(path, headers=as_stored).status_code for client in clients} == {200}
            assert clients[number].delete(path).status_code == 204
            assert [client.get(path, headers=as_stored).status_code for client in clients] == [410] * CONNECTIONS
    assert all(requests_answered(three, name) > 0 for name in GATEWAYS)
    assert three.gateways() == list(GATEWAYS)


def test_what_several_gateways_delete_at_the_same_moment_is_gone_for_all(three: Suite) -> None:
    as_stored = {"Accept": "application/dicom; transfer-syntax=*"}
    with connections(three) as clients, ThreadPoolExecutor(6) as threads:
        for _ in range(3):
            data_sets = [instances.ct() for _ in range(6)]
            three.client().store(*map(instances.encoded, data_sets))
            paths = [instances.resource(data_set) for data_set in data_sets]
            assert {client.get(path, headers=as_stored).status_code for client in clients for path in paths} == {200}
            deleted = threads.map(lambda client, path: client.delete(path).status_code, clients[:6], paths)
            assert list(deleted) == [204] * 6
            assert {client.get(path, headers=as_stored).status_code for client in clients for path in paths} == {410}


def test_metadata_of_a_series_is_never_older_than_the_last_change(three: Suite) -> None:
    first = instances.ct()
    there: list[str] = []
    series = instances.resource(first).partition("/instances/")[0]

    def seen(client: httpx.Client) -> tuple[str, ...]:
        answer = client.get(f"{series}/metadata")
        assert answer.status_code == (200 if there else 410)
        return tuple(sorted(one["00080018"]["Value"][0] for one in answer.json())) if there else ()

    with connections(three) as clients:
        for _ in range(3):
            data_set = instances.ct(StudyInstanceUID=first.StudyInstanceUID, SeriesInstanceUID=first.SeriesInstanceUID)
            three.client().store(instances.encoded(data_set))
            there.append(data_set.SOPInstanceUID)
            assert {seen(client) for client in clients + clients} == {tuple(sorted(there))}
        while there:
            assert clients[len(there)].delete(f"{series}/instances/{there.pop()}").status_code == 204
            assert {seen(client) for client in clients + clients} == {tuple(sorted(there))}


def test_a_replaced_instance_is_seen_by_all_at_once(tmp_path: Path) -> None:
    suite = Suite(tmp_path, one_machine() | {"GANTRY_GATEWAYS": "3", "GANTRY_ON_DUPLICATE": "replace"})
    try:
        suite.start()
        data_set = instances.ct()
        accept = {"Accept": "application/octet-stream"}
        path = f"{instances.resource(data_set)}/frames/1"
        with connections(suite) as clients:
            for version in range(1, 5):
                data_set.PixelData = bytes([version]) * len(data_set.PixelData)
                suite.client().store(instances.encoded(data_set))
                assert {client.get(path, headers=accept).content for client in clients} == {data_set.PixelData}
    finally:
        suite.close()


def is_answered(suite: Suite) -> bool:
    """Try a new connection; one that was given to a gateway that just died is broken."""
    try:
        with httpx.Client(base_url=suite.url, trust_env=False, verify=False, timeout=20) as client:
            return client.get("/studies?limit=1").status_code in (200, 204)
    except httpx.TransportError:
        return False


def wait_until_all_listen(suite: Suite) -> None:
    """Wait until each gateway takes connections: one that was started again does not before it can answer."""
    end = time.monotonic() + 20
    pids = {suite.pid(name) for name in suite.gateways()}
    while {found.pid for found in psutil.net_connections("tcp") if found.status == "LISTEN" and found.laddr[1] == suite.port} < pids:
        assert time.monotonic() < end, suite.logs()
        time.sleep(0.02)


def test_the_port_answers_while_a_gateway_is_killed_and_started_again(three: Suite) -> None:
    for name in GATEWAYS:
        killed = three.kill(name)
        answers = [is_answered(three) for _ in range(20)]
        assert sum(answers) >= 18, f"{answers} while {name} was away"
        three.wait_restarted(name, killed)
        wait_until_all_listen(three)
        assert all(is_answered(three) for _ in range(20))
