"""Freed memory stays with the process: seen from outside, in a process of its own."""

import subprocess
import sys

import pytest

MEASURE = """
import numpy as np
from sbs_train.contract.console import keep_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
if {keep}:
    assert keep_freed_memory()
x = np.ones(8_000_000)
held = resident()
del x
print(held - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is told to keep memory")
@pytest.mark.parametrize(("keep", "given_back"), [(False, True), (True, False)])
def test_a_large_block_is_given_back_unless_it_is_to_be_kept(keep, given_back):
    result = subprocess.run([sys.executable, "-c", MEASURE.format(keep=keep)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (int(result.stdout) > 60e6) == given_back
