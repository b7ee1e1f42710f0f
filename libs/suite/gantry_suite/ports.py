"""Reserve TCP ports for processes of a suite, some time before the processes listen on them."""

import contextlib
import socket
import sys


class Ports:
    """The ports that this process reserves for its children, until `close`.

    No other `Ports` reserves them, and the system uses them for no outgoing connection. A port is reserved by a name in Linux's abstract
    socket namespace, which has the scope of the port itself (one network namespace), and by a socket that is bound but does not listen.
    Servers set SO_REUSEADDR, so they can listen beside that socket. Both reservations end with the process. On other systems only ports
    with a listener are recognised as used.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], contextlib.ExitStack] = {}

    def take(self, host: str, port: int) -> bool:
        """Reserve a port. Return whether it is reserved now: nobody listens on it and nobody else has reserved it."""
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
        """Release all ports."""
        for held in self._held.values():
            held.close()
        self._held.clear()


def is_free(host: str, port: int) -> bool:
    """Return whether a process can listen on a TCP port."""
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
