"""Hostile programs: none passes, none leaves a trace outside its sandbox, and the next one is judged as ever."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.sandbox import jail, seccomp
from harness.sandbox.exam import Hall, Paper
from tests.runs import wait_for
from tests.sandbox.programs import FORGES, HARMS, HOME, RIGHT

pytestmark = pytest.mark.skipif(jail.problem("bubblewrap") is not None, reason=f"{jail.problem('bubblewrap')}")
HALL = Hall(seconds=1.0, memory_mb=256)
TESTS = "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(41) == 42\n"


@pytest.fixture(scope="module")
def listener():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.05)
        yield server


@pytest.mark.parametrize("name", FORGES)
def test_no_program_forges_a_pass(name):
    assert not HALL.one(Paper(FORGES[name], TESTS, "f")).passed
    assert not HALL.one(Paper(FORGES[name], "assert all(map(f, [1]))\nassert f(41) == 42\n")).passed


@pytest.mark.parametrize("name", HARMS)
def test_no_program_does_harm_and_the_next_is_judged_as_ever(name, listener):
    program = HARMS[name].replace("PORT", str(listener.getsockname()[1]))
    began = time.monotonic()
    found = HALL.one(Paper(program, TESTS, "f"))
    assert not found.passed and found.why
    assert time.monotonic() - began < 30
    with pytest.raises(TimeoutError):
        listener.accept()
    traces = (Path(HOME), Path("/usr"), Path("/"), jail.INSIDE)
    assert not any((folder / "harness-was-here").exists() for folder in traces)
    assert (jail.INSIDE / "wire.py").read_text().startswith('"""Plain values')
    assert HALL.one(Paper(RIGHT, TESTS, "f")).passed


def test_memory_is_bounded_and_nothing_is_left_running():
    before = _children()
    for name in ("memory", "memory in a file of memory", "memory in /dev/shm", "memory in /tmp", "fork bomb"):
        HALL.one(Paper(HARMS[name], TESTS, "f"))
    wait_for(lambda: _children() <= before, 10, "the sandboxes' end")
    import resource

    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 2 * 10**9


def _children() -> int:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return sum("candidate.py" in line or "examiner.py" in line for line in listed.splitlines())


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("def f(x):\n    return [x, (x, 'a'), {x: {1.5}}, None, True, b'b', 2j, 10**30]",
         "assert f(3) == [3, (3, 'a'), {3: {1.5}}, None, True, b'b', 2j, 10**30]"),
        ("def f(x):\n    return (i for i in x)", "assert list(f([1, 2])) == [1, 2]"),
        ("def f(x):\n    x.append(1)", "a = []\nf(a)\nassert a == [1]"),
        ("def f(x):\n    raise ValueError('no')", "try:\n    f(1)\nexcept ValueError as e:\n    assert 'no' in str(e)"),
        ("class P:\n    def __init__(self, a):\n        self.a = a\ndef f(ps):\n    return sum(p.a for p in ps)",
         "assert f([P(1), P(2)]) == 3\nassert P(5).a == 5"),
        ("from collections import Counter\ndef f(x):\n    return Counter(x)", "assert f('aab') == {'a': 2, 'b': 1}"),
        ("def f(x):\n    return float('nan')", "import math\nassert math.isnan(f(1))"),
        ("def f(x):\n    return x[::-1]\ndef g(x):\n    return f(f(x))", "assert g('añ\\ud800') == 'añ\\ud800'"),
        ("import math, heapq\ndef f(x, *, y=2):\n    return x * y", "assert f(2, y=5) == 10"),
    ],
)  # fmt: skip
def test_what_a_program_may_do_is_judged_as_in_one_process(program, tests):
    found = HALL.one(Paper(program, tests))
    assert found.passed, found.why


def test_a_wrong_answer_fails_with_the_tests_own_words():
    found = HALL.one(Paper("def f(x):\n    return 3", "assert f(1) == 2, 'one and one'"))
    assert not found.passed and "one and one" in found.why


def test_what_the_tests_do_wrong_is_no_pass():
    assert "SyntaxError" in HALL.one(Paper(RIGHT, "assert f(1) ==")).why
    assert "NameError" in HALL.one(Paper(RIGHT, "assert nobody(1)")).why


def test_without_a_sandbox_programs_are_judged_alike():
    plain = Hall(kind="none", seconds=2.0)
    assert plain.one(Paper(RIGHT, TESTS, "f")).passed
    assert not plain.one(Paper(FORGES["exits at once"], TESTS, "f")).passed


def test_a_machine_without_bubblewrap_is_told_so(monkeypatch):
    jail.problem.cache_clear()
    monkeypatch.setattr(jail.shutil, "which", lambda name: None)
    found = jail.problem("bubblewrap")
    jail.problem.cache_clear()
    assert found is not None and "apt-get install bubblewrap" in str(found) and jail.problem("none") is None


def test_the_filter_knows_the_numbers_of_this_machine():
    rules = seccomp.program()
    assert rules is not None and len(rules) % 8 == 0
    assert seccomp.program("riscv64") is None
    assert os.uname().machine in seccomp.MACHINES and sys.platform == "linux"
