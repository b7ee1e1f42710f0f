"""Ports that are chosen before they are listened on."""

import socket
import subprocess
import sys
from contextlib import closing

import pytest

from gantry_suite.ports import Ports, is_free
from tests.support.nats_server import free_port

HOST = "127.0.0.1"
HOLDER = (
    "import sys; from gantry_suite.ports import Ports; held = Ports(); print(held.take('127.0.0.1', int(sys.argv[1])), flush=True); input()"
)


def test_a_port_is_free_or_not() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(HOST, port)
        with closing(Ports()) as ports:
            assert not ports.take(HOST, port)
    with closing(Ports()) as ports:
        assert ports.take(HOST, port), "what could not be taken is not held"


def test_a_port_that_was_taken_is_nobody_elses_until_it_is_let_go() -> None:
    port = free_port()
    with closing(Ports()) as first, closing(Ports()) as second:
        assert first.take(HOST, port)
        assert first.take(HOST, port), "it is ours"
        assert not second.take(HOST, port)
        assert is_free(HOST, port), "to hold it is not to listen on it"
        with socket.socket() as client, pytest.raises(OSError, match="in use"):
            client.bind((HOST, port))
        assert second.take("127.0.0.2", port), "the port of another address is another one"
        first.close()
        assert second.take(HOST, port)


def test_a_port_that_is_ours_stays_ours_while_it_is_listened_on() -> None:
    port = free_port()
    with closing(Ports()) as ours, closing(Ports()) as others:
        assert ours.take(HOST, port)
        with socket.create_server((HOST, port)):
            assert not ours.take(HOST, port)
        assert not others.take(HOST, port)


def test_a_killed_process_lets_go() -> None:
    port = free_port()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"True\n"
    with closing(Ports()) as ports:
        assert not ports.take(HOST, port)
        holder.kill()
        holder.communicate()
        assert ports.take(HOST, port)
