"""What is installed works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_wheel_holds_conf_and_works_outside_the_checkout(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    assert (installed / "harness" / "conf" / "config.yaml").is_file()
    assert (installed / "harness" / "evaluators" / "lm_eval_tasks" / "letters.yaml").is_file()

    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from harness.cli import main as m; from harness.config import compose as c\n"
            "print(c.conf_dir()); m.main(['validate'])",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert str(installed / "harness" / "conf") in done.stdout, done.stdout + done.stderr
    assert "all sound" in done.stdout, done.stdout + done.stderr


def test_the_console_script_and_the_module_are_the_same_program() -> None:
    script = Path(sys.executable).parent / "harness"
    by_name = subprocess.run([str(script), "--help"], capture_output=True, text=True, check=True).stdout
    by_module = subprocess.run([sys.executable, "-m", "harness", "--help"], capture_output=True, text=True, check=True)
    assert (
        by_name == by_module.stdout
        and "algo: cpo, dpo, grpo, ipo, kto, none, online_dpo, orpo, ppo, rloo, sft, simpo" in by_name
    )
