"""The public names: a script without a guard around its main program does what the command line does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from tests.conftest import QUICK

SCRIPT = """
import harness

print("main runs")
trials = harness.run("algo=dpo,ipo", "sweep=monday", *{quick!r})
assert list(trials["outcome"]) == ["finished", "finished"], trials
assert set(harness.runs("monday")["trial_id"]) == set(trials["trial_id"])
page = harness.write_report("monday", formats=("md", "csv"))
assert page.read_text().startswith("# Sweep monday") and page.with_name("results.csv").is_file()
findings = harness.judge(trials, trials, "mine.yaml")
assert findings and not any(f.fails for f in findings), findings
print("done")
"""
RULES = """
_target_: harness.gate.rules.Rules
metrics:
  eval/preference_accuracy: {direction: up, absolute: 0.05}
"""


def test_the_public_names_are_there_and_importing_the_package_loads_nothing():
    assert all(callable(getattr(harness, name)) for name in harness.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = harness.nonsense
    code = "import sys, harness; print(*(m for m in sys.modules if m.startswith('harness')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["harness"]


def test_wrong_input_is_an_error_of_its_own_kind():
    with pytest.raises(harness.UserError, match="beta"):
        harness.run("algo=dpo", "beta=-1", "sweep=wrong")


@pytest.mark.slow
def test_a_script_without_a_guard_runs_reads_reports_and_judges(tmp_path: Path, cache_dir: Path):
    (tmp_path / "mine.yaml").write_text(RULES)
    (tmp_path / "script.py").write_text(SCRIPT.format(quick=QUICK))
    environment = {**os.environ, "HARNESS_CACHE": str(cache_dir), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stdout + done.stderr
    assert done.stdout.count("main runs") == 1, "no child runs the script again"


@pytest.mark.slow
def test_memory_is_predicted_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    table = harness.predict("algo=dpo", "model=shape/llama-10m", "adapter=lora,full", "eval=none", gpu="8GB")
    assert list(table["fits"]) == [True, True] and (table["peak_gb"] < 8).all()
    assert table["peak_gb"][1] > table["peak_gb"][0], "full fine-tuning holds more"
