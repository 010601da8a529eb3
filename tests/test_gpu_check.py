"""The GPU check where there is no GPU: it says so, and checks nothing in silence."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.telemetry.inventory import device_levels
from tests.telemetry.driver import GB, Driver, Gpu

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check"


class Told:
    """In place of a report: what was checked, and how it came out."""

    def __init__(self) -> None:
        self.passed: dict[str, bool] = {}
        self.said: list[str] = []

    def check(self, name: str, passed: bool, found: str) -> None:
        self.passed[name] = passed

    def say(self, text: str = "") -> None:
        self.said.append(text)


def test_of_a_gpu_and_a_full_stand_in_a_trial_takes_the_gpu_and_a_second_trial_the_other(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    from gpu_several import UUID, Another, choice

    driver = Driver(Gpu("GPU-a", used=3 * GB))
    told = Told()
    choice(told, driver, tmp_path)
    assert told.passed and all(told.passed.values())
    assert set(device_levels(Another(driver))) == {"GPU-a", UUID}
    busy = Told()
    choice(busy, Driver(Gpu("GPU-a", used=int(79.5 * GB))), tmp_path)
    assert list(busy.passed.values()) == [False, True], "the stand-in has more memory free: the check must say so"


@pytest.mark.slow
def test_prompts_that_are_read_once_are_compared_with_prompts_that_are_not(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from gpu_prefixes import prefixes

    told = Told()
    prefixes(told, ["llama-10m"], device="cpu", lengths={"pairs": (2, 2, 40, 8), "groups": (1, 4, 40, 8)})
    assert list(told.passed.values()) == [True, True]
    rows = [line for line in told.said if line.startswith("| llama-10m")]
    assert len(rows) == 2, rows


def test_without_a_gpu_it_says_why_nothing_was_checked(tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: run the check itself")
    out = tmp_path / "check.md"
    done = subprocess.run([sys.executable, SCRIPT, "--out", out], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    said = out.read_text()
    assert "Nothing was checked: torch is a build without CUDA" in said or "no NVIDIA device is visible" in said
    assert f"torch {torch.__version__}" in said and "transformers" in said
