"""Buffers of the size of a message come from memory that is kept."""

import resource
import subprocess
import sys

PROGRAM = """
import resource, sys
from gantry_runtime import process
if sys.argv[1] == "tuned":
    assert process.tune_allocator()
for _ in range(50):
    held = [b"x" * (int(sys.argv[2]) << 10) for _ in range(8)]
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def faults(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", PROGRAM, how, "512"], capture_output=True, text=True, check=True).stdout)


def test_buffers_of_512_kib_are_not_mapped_anew_each_time() -> None:
    pages = 50 * 8 * (512 << 10) // resource.getpagesize()
    assert faults("as it is") - faults("tuned") > pages / 2
