"""The GPU check where there is no GPU: it says so, and checks nothing in silence."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check"


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
