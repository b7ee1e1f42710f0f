"""Addresses of services, as settings hold them: HOST:PORT for gRPC, `local:PATH` for a socket of this machine (`neighbour`)."""

import os
from pathlib import Path

LOCAL = "local:"
MOST_PATH_BYTES = 100
"""Longest path of a socket; the system's limit is 107, and a temporary name beside it is longer."""


def local(path: Path) -> str | None:
    """Return the address of a socket; None where its path would be too long."""
    return f"{LOCAL}{path}" if len(os.fsencode(path)) <= MOST_PATH_BYTES else None
