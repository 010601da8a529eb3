"""``harness init``: what it writes is sound, and nothing is overwritten."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.runs import Sandbox
from tests.toys import build_model


@pytest.fixture
def sandbox(tmp_path: Path, cache_dir: Path) -> Sandbox:
    """A repository with a model and data of its own."""
    rows = [{"prompt": f"{i} plus {i} is", "chosen": f" {2 * i}", "rejected": " none"} for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_model(tmp_path / "model", "llama")
    return Sandbox(tmp_path, cache_dir)


def test_what_it_writes_is_sound(sandbox):
    made = sandbox.call("init", "mine", "--model", "model", "--data", "pairs.jsonl")
    assert made.returncode == 0, made.stderr
    names = [line for line in made.stdout.splitlines() if not line.startswith(("look:", "then:"))]
    assert names == [
        "alignment/experiment/mine.yaml", "alignment/rules/mine.yaml", "alignment/mine.sh",
        ".github/workflows/mine-gate.yml",
    ]  # fmt: skip
    subprocess.run(["bash", "-n", sandbox.cwd / "alignment" / "mine.sh"], check=True)
    assert yaml.safe_load((sandbox.cwd / ".github/workflows/mine-gate.yml").read_text())["jobs"]
    (check,) = [line.partition("harness ")[2] for line in made.stdout.splitlines() if line.startswith("look:")]
    short = ("train.steps=2", "train.max_length=64", "train.max_completion_length=8", "eval=quick")
    shown = sandbox.call(*check.split(), *short)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stdout.count("ok  dpo-lora-") == 4  # a trial for each seed

    from harness.gate.rules import read_rules

    assert "eval/preference_accuracy" in read_rules(str(sandbox.cwd / "alignment/rules/mine.yaml")).metrics


def test_nothing_is_overwritten_and_wrong_input_is_named(sandbox):
    assert sandbox.call("init", "mine", "--model", "model", "--data", "pairs.jsonl").returncode == 0
    before = (sandbox.cwd / "alignment" / "mine.sh").read_text()
    for arguments, words in (
        (("mine", "--model", "model", "--data", "pairs.jsonl"), "already exists"),
        (("Mine", "--model", "m", "--data", "pairs.jsonl"), "is no name for files"),
        (("b", "--model", "m"), "name the data, and one kind of it"),
        (("b", "--model", "m", "--data", "gone.jsonl"), "there is no such file"),
        (("b", "--model", "m", "--data", "pairs.jsonl", "--seeds", "1"), "2 seeds at least"),
        (("b", "--model", "m", "--data", "pairs.jsonl", "--dir", "gone"), "is not a folder"),
        (("b", "--data", "pairs.jsonl"), "--model"),
    ):
        shown = sandbox.call("init", *arguments)
        assert shown.returncode == 2 and words in shown.stderr and "Traceback" not in shown.stderr, shown
    assert (sandbox.cwd / "alignment" / "mine.sh").read_text() == before
    assert not (sandbox.cwd / "alignment" / "experiment" / "b.yaml").exists()


def test_problems_are_judged_by_their_reward_and_hub_ids_stay(sandbox):
    (sandbox.cwd / "sums.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    made = sandbox.call("init", "sums", "--model", "org/some-model", "--problems", "sums.jsonl", "--seeds", "3")
    assert made.returncode == 0, made.stderr
    experiment = yaml.safe_load((sandbox.cwd / "alignment/experiment/sums.yaml").read_text())
    assert experiment["model"]["path"] == "org/some-model" and experiment["task"]["path"] == "./sums.jsonl"
    assert experiment["hydra"]["sweeper"]["params"] == {"algo": "grpo", "adapter": "lora", "seed": "0,1,2"}
    assert "eval/true_reward" in (sandbox.cwd / "alignment/rules/sums.yaml").read_text()


def test_a_disk_that_is_full_leaves_no_half(sandbox, monkeypatch):
    from harness.cli import init
    from harness.store.result import replace_text

    def full(path: Path, text: str) -> None:
        if path.suffix == ".sh":
            raise OSError(28, "No space left on device")
        replace_text(path, text)

    monkeypatch.setattr(init, "replace_text", full)
    shown = sandbox.call("init", "mine", "--model", "model", "--data", "pairs.jsonl")
    assert shown.returncode == 2 and "No space left on device" in shown.stderr and "Traceback" not in shown.stderr
    assert not list((sandbox.cwd / "alignment").rglob("*.*"))


@pytest.mark.parametrize("name", ["my pairs.jsonl", "it's.jsonl", 'a "b": c.jsonl', "größe.jsonl"])
def test_paths_that_yaml_would_read_otherwise_are_quoted(sandbox, name):
    (sandbox.cwd / "pairs.jsonl").rename(sandbox.cwd / name)
    assert sandbox.call("init", "mine", "--model", "model", "--data", name).returncode == 0
    experiment = yaml.safe_load((sandbox.cwd / "alignment/experiment/mine.yaml").read_text())
    assert experiment["task"]["path"] == f"./{name}"


def test_a_file_where_a_folder_must_be_is_named(sandbox):
    (sandbox.cwd / "alignment").write_text("notes")
    shown = sandbox.call("init", "mine", "--model", "model", "--data", "pairs.jsonl")
    assert shown.returncode == 2 and "cannot be written" in shown.stderr and "Traceback" not in shown.stderr
    assert (sandbox.cwd / "alignment").read_text() == "notes"


STAND_IN = """#!/bin/bash
echo "$*" >> asked
case "$*" in *" -m --config-dir"*) exit $SWEEP_ENDS ;; *" gate "*) exit 1 ;; esac
"""


@pytest.mark.parametrize(("sweep_ends", "ends", "asked"), [(0, 1, 3), (1, 1, 3), (2, 2, 1)])
def test_a_trial_that_fails_is_in_the_report_and_before_the_gate_and_wrong_input_ends_at_once(
    sandbox, tmp_path, sweep_ends, ends, asked
):
    assert sandbox.call("init", "mine", "--model", "model", "--data", "pairs.jsonl").returncode == 0
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(STAND_IN)
    (tmp_path / "bin" / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "SWEEP_ENDS": str(sweep_ends)}
    done = subprocess.run(["bash", "alignment/mine.sh"], cwd=sandbox.cwd, env=environment, check=False)
    assert done.returncode == ends
    lines = (sandbox.cwd / "asked").read_text().splitlines()
    assert len(lines) == asked and lines[0].endswith("experiment=mine sweep=mine")
