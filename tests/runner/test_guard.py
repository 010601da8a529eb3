"""What a killed runner leaves behind is ended from outside, whatever it is doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import alive, wait_for

BACKTRACKS = "__import__('re').match('(a+)+$', 'a' * 60 + 'b')"
SLEEPS = "__import__('time').sleep(600)"
RUNNER = """
import os, sys, time
from harness.runner import forkserver

def stuck(place):
    os.setpgid(0, 0)
    helper = os.fork()
    if helper == 0:
        time.sleep(600)
    with open(place + ".new", "w") as file:
        file.write(f"{os.getpid()} {helper}")
    os.replace(place + ".new", place)
    BUSY

if __name__ == "__main__":
    forkserver.warm_up()
    forkserver.start(stuck, sys.argv[1], name="stuck")
    from multiprocessing import forkserver as own
    print(own._forkserver._forkserver_pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("busy", [BACKTRACKS, SLEEPS])
def test_a_trial_that_never_gives_up_the_interpreter_ends_with_its_runner(tmp_path, busy):
    (tmp_path / "runner.py").write_text(RUNNER.replace("BUSY", busy))
    place = tmp_path / "pids"
    environment = {**os.environ, "HARNESS_PRELOAD": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    runner = subprocess.Popen(
        [sys.executable, str(tmp_path / "runner.py"), str(place)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert runner.stdout is not None
    server = int(runner.stdout.readline())
    wait_for(place.exists, 30, "the child")
    left = [server, *map(int, place.read_text().split())]
    assert all(map(alive, left))
    time.sleep(0.2)
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    runner.stdout.close()
    wait_for(lambda: not any(map(alive, left)), 5, "all of it to be gone")


def test_a_forkserver_in_the_middle_of_its_imports_ends_with_its_runner(tmp_path):
    script = (
        "import os, time\nfrom harness.runner import forkserver\nfrom multiprocessing import forkserver as own\n"
        "forkserver.warm_up()\nprint(own._forkserver._forkserver_pid, flush=True)\ntime.sleep(600)\n"
    )
    runner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert runner.stdout is not None
    server = int(runner.stdout.readline())
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    runner.stdout.close()
    wait_for(lambda: not alive(server), 5, "the forkserver to be gone")


def test_a_server_that_was_killed_is_replaced_when_a_process_is_to_start():
    script = (
        "import os, signal\nfrom harness.runner import forkserver\nfrom multiprocessing import forkserver as own\n"
        "forkserver.warm_up()\nos.kill(own._forkserver._forkserver_pid, signal.SIGKILL)\n"
        "process = forkserver.start(os._exit, 7, name='x')\nprocess.join()\n"
        "print(process.exitcode)\nforkserver.stop()\n"
    )
    environment = {**os.environ, "HARNESS_PRELOAD": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert (done.stdout, done.stderr) == ("7\n", "")


def test_the_guard_of_a_runner_that_ends_well_ends_too():
    script = (
        "from harness.runner import forkserver\nforkserver.warm_up()\nforkserver.stop()\n"
        "print(forkserver._guard.pid, flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    wait_for(lambda: not alive(int(done.stdout)), 5, "the guard to be gone")
