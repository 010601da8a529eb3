"""Fault injection: what survives a kill, a torn write, a full disk and a lost answer, at every place and at random.

All of it is ``slow``. The systematic half (``test_points.py``) has the real runner and projection, a real SQLite store
and a worker of a few lines, and takes about two seconds a point; the random half (``test_kills.py``) runs whole
command lines. Both are bounded: ``HARNESS_FAULT_POINTS`` and ``HARNESS_FAULT_KILLS`` say how much is run.

Which fault of the list is held where (rows of the fault-injection run that this was written for):

===  ==================================================================================================
F1   test_past, test_points: results carry their keys; every place of two attempts under two sets of keys
F2   test_runs_in_mlflow, test_points: one run per trial, whatever is lost
F3   test_streams: a reader that goes away
F4   test_past (damaged files), test_disks: sync takes each trial by itself
F5   test_past: a lost result is made from the journals
F6   test_tracking: first use of a store by several commands
F7   test_cache: checksums
F8   test_cache, test_disks: a cache that can only be read
F9   test_guard, test_kills: the forkserver ends with its runner
F10  test_tracking, test_journal: no password anywhere
F11  test_tracking: outputs that cannot be written
F12  test_cache: drafts of killed builders
F13  test_config: nothing of a stranger is imported
F14  test_rewards (a limit of time), test_guard (a watchdog outside of the interpreter)
F15  test_preflight: chat templates
F16  test_journal: damaged lines
F17  test_tracking, test_points: a database that is full
F18  test_tracking: a missing driver
===  ==================================================================================================
"""
