"""TCP ports for processes of a suite, which are chosen a while before they are listened on."""

import contextlib
import socket
import sys


class Ports:
    """The ports that this process gives to its children. Nobody else who asks a `Ports` gets them until `close`, and no connection either.

    Each is held by a name in Linux's abstract namespace of sockets, which has the scope of the port itself (one network namespace), and
    by a socket that is bound and never listens: with SO_REUSEADDR, as servers set it, it can be listened on beside that, but the system
    gives it to no outgoing connection. Both go with the process. Elsewhere only what is listened on already is seen.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], contextlib.ExitStack] = {}

    def take(self, host: str, port: int) -> bool:
        """Take a port; say whether it is ours now: nobody listens on it, and nobody else has taken it."""
        if (host, port) in self._held:
            return is_free(host, port)
        with contextlib.ExitStack() as stack:
            if sys.platform == "linux":
                try:
                    stack.enter_context(socket.socket(socket.AF_UNIX)).bind(f"\0gantry port {host}:{port}")
                    bound = stack.enter_context(_reusable(host))
                    if not is_free(host, port):
                        return False
                    bound.bind((host, port))
                except OSError:
                    return False
            elif not is_free(host, port):
                return False
            self._held[host, port] = stack.pop_all()
        return True

    def close(self) -> None:
        """Let go of all."""
        for held in self._held.values():
            held.close()
        self._held.clear()


def is_free(host: str, port: int) -> bool:
    """Say whether a TCP port can be listened on."""
    with _reusable(host) as probe:
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
        return True


def _reusable(host: str) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return listener
