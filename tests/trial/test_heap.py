"""Freed memory: held for the next step, given back between phases. In processes of their own: it is for good."""

import subprocess
import sys

import pytest

from harness.trial.heap import _glibc

pytestmark = pytest.mark.skipif(_glibc() is None, reason="glibc only")

FAULTS = """
import ctypes, resource
from harness.trial.heap import hold_freed_memory
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
if {hold}:
    assert hold_freed_memory()

def step():
    blocks = [c.malloc(24 * 2**20) for _ in range(3)]
    for block in blocks:
        ctypes.memset(block, 1, 24 * 2**20)
    for block in blocks:
        c.free(block)

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

RESIDENT = """
import ctypes, os
from harness.trial.heap import give_back, hold_freed_memory
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
hold_freed_memory()
mb = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
start, block = mb(), c.malloc(30 * 2**20)
ctypes.memset(block, 1, 30 * 2**20)
c.free(block)
held = mb() - start
give_back()
print(held, mb() - start)
"""


def printed(code: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def test_a_step_that_repeats_faults_its_pages_in_once():
    (default,), (held,) = printed(FAULTS.format(hold=False)), printed(FAULTS.format(hold=True))
    assert default > 5 * 6000  # three blocks of 6,144 pages, in each of five steps, most of them anew
    assert held < default / 10


def test_memory_held_is_given_back():
    held, left = printed(RESIDENT)
    assert held > 25
    assert left < 5
