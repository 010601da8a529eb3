"""Ends what a runner leaves behind when it is killed: the forkserver and its trials.

A process of its own, started as a script with the standard library alone. It waits on a pipe whose other end only the
runner holds, so it learns of the runner's end from the kernel. A watchdog within a trial needs the interpreter, which a
regular expression that backtracks or a long call of C keeps for itself; and a forkserver in the middle of its imports
hears nothing for seconds. It is no descendant of the trial, so the trial's memory is measured without it.

Lines on standard input: ``watch PID`` and ``forget``.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Listen until the runner is gone, then end what it had."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # what ends the runner must not end its guard first
    server, born = 0, ""
    for line in sys.stdin:
        word, _, pid = line.strip().partition(" ")
        server, born = (int(pid), birth(int(pid))) if word == "watch" else (0, "")
    if server and birth(server) == born:
        end(server)


def end(server: int) -> None:
    """Kill a forkserver and the process groups of its children; none can be forked meanwhile."""
    send(server, signal.SIGSTOP)
    for pid in children(server):
        group = os.getpgid(pid) if alive(pid) else 0
        send(-pid if group == pid else pid, signal.SIGKILL)
    send(server, signal.SIGKILL)


def send(pid: int, number: int) -> None:
    """A signal to a process or, below zero, to a group."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return  # gone already


def children(parent: int) -> list[int]:
    """Direct children, from ``/proc``."""
    found = [int(name) for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc") else []
    return [pid for pid in found if fields(pid)[1:2] == [str(parent)]]


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    return bool(fields(pid))


def birth(pid: int) -> str:
    """When a process began, in the kernel's ticks: a number may be given to another one."""
    return "".join(fields(pid)[19:20])


def fields(pid: int) -> list[str]:
    """``/proc/PID/stat`` from the state on; empty where there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


if __name__ == "__main__":
    main()
