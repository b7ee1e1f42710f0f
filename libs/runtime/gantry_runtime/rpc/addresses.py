"""Addresses of services in settings: HOST:PORT for gRPC, `local:PATH` for a Unix socket of this machine (`rpc.local`)."""

import os
from pathlib import Path

LOCAL = "local:"
MOST_PATH_BYTES = 100
"""Longest path of a socket. The limit of the system is 107 bytes; the rest is for the suffix of the temporary name."""


def local(path: Path) -> str | None:
    """Return the address of a socket; None if its path is longer than MOST_PATH_BYTES."""
    return f"{LOCAL}{path}" if len(os.fsencode(path)) <= MOST_PATH_BYTES else None
