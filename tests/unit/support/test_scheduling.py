"""Which tests run on one worker."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.scheduling import group_of

A = "tests/blackbox/test_a.py"


@pytest.mark.parametrize(
    ("node_id", "group"),
    [
        (f"{A}::test_x[one-machine]", A),
        (f"{A}::test_x[one-machine-distributed_name]", A),
        (f"{A}::test_x", A),
        (f"{A}::test_x[distributed]", f"{A} distributed"),
        (f"{A}::test_x[distributed-a[1]]", f"{A} distributed"),
        (f"{A}::test_x[a-distributed-b]", f"{A} distributed"),
        ("tests/unit/blob/test_a.py::test_x[1]", "tests/unit/blob/test_a.py"),
        ("tests/stores/test_a.py::test_x[s3-1]", "tests/stores/test_a.py::test_x"),
    ],
)
def test_the_group_of_a_test(node_id: str, group: str) -> None:
    assert group_of(node_id) == group


def test_the_tests_of_a_module_run_on_one_worker() -> None:
    modules = ["tests/unit/standard/http/test_multipart.py", "tests/unit/standard/http/test_media_types.py"]
    command = [sys.executable, "-m", "pytest", *modules, "-n", "2", "-v", "-o", "addopts=-p no:cacheprovider --strict-markers"]
    environment = {"GANTRY_TEST_REAL_SERVERS": "no", "PATH": "/usr/bin:/bin", "TERM": "dumb"}
    done = subprocess.run(command, cwd=Path(__file__).parents[3], env=environment, capture_output=True, text=True, timeout=100, check=False)
    lines = [line.split() for line in done.stdout.splitlines() if " PASSED " in line]
    workers = {module: {line[0] for line in lines if any(word.startswith(module) for word in line)} for module in modules}
    assert [len(names) for names in workers.values()] == [1, 1], done.stdout[-2000:]
