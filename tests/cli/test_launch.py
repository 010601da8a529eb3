"""What is said before a sweep runs."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from harness.cli import launch
from harness.runner.run_trial import Runner


@pytest.mark.parametrize(
    ("load", "runner", "device", "said"),
    [
        (0.2, Runner(), "cpu", False),
        (4.0, Runner(), "cpu", True),
        (4.0, Runner(threads=1), "cpu", False),  # it was chosen
        (4.0, Runner(), "cuda", False),  # the cores have little to do
    ],
)
def test_a_busy_machine_is_noticed_where_trials_would_take_its_cores(monkeypatch, load, runner, device, said):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(launch, "compute_device", lambda _: device)
    sweep: Any = SimpleNamespace(runner=runner)
    found = launch._busy(sweep)
    assert (found is not None) == said
    assert found is None or ("load 4.0 on 2 cores" in found and "runner.threads=1" in found)
