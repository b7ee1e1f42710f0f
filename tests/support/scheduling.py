"""Distributes the tests over the workers of pytest-xdist: tests that share something expensive run on one worker.

The groups of pytest-xdist itself (`--dist loadgroup`) have no effect with pytest 9.2: pytest-xdist 3.8 appends the group to an attribute of
the test that pytest no longer reads.
"""

import re
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling


def group_of(node_id: str) -> str:
    """Return the group of a test.

    In `tests/blackbox` it is the module and the set of stores, because module fixtures store and start things once for each set. In
    `tests/unit` it is the module: a group costs 4 ms of CPU less for each test than single tests. Elsewhere it is the function.
    """
    path, _, name = node_id.partition("::")
    if path.startswith("tests/blackbox/"):
        return f"{path} distributed" if re.search(r"\[(.*-)?distributed(-.*)?\]$", name) else path
    return path if path.startswith("tests/unit/") else node_id.partition("[")[0]


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc, unused-ignore]
    """Gives a worker whole groups, in the order of collection: black-box modules, which take longest, come before unit tests."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
