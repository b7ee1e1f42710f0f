"""A process may open as many connections as it is allowed to, not as few as a shell starts it with."""

import resource
import subprocess
import sys

PROGRAM = """
import resource
from gantry_runtime import process
before = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
print(before, process.raise_file_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_soft_limit_of_open_files_is_raised_to_the_hard_one() -> None:
    command = ["sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh", sys.executable, "-c", PROGRAM]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert [int(word) for word in printed.split()] == [256, hard, hard, hard]
