"""Rounds from the command line: each begins with the policy of the one before, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli.loops.iterate import _without_model
from harness.cli.main import main
from tests.conftest import QUICK
from tests.judges.small import save_small
from tests.runs import Sandbox

WORDS = "one two three four five six seven eight nine ten".split()
PROMPTS = [f"What of {word} and {other}?" for word in WORDS for other in WORDS[:2]]


@pytest.mark.parametrize(
    ("words", "key", "rule"),
    [
        ((), "rounds", "how many rounds"),
        (("rounds=0",), "rounds", "greater than or equal to 1"),
        (("rounds=2", "iterate.dtype=int8"), "iterate.dtype", "bfloat16"),
        (("rounds=2", "algo=dpo,ipo"), "iterate", "2 trials"),
        (("rounds=2", "algo=none"), "algo", "trains nothing"),
        (("rounds=2", "train.save=none"), "train.save", "keeps no policy"),
    ],
)
def test_what_makes_no_rounds_is_refused(tmp_path, monkeypatch, capsys, words, key, rule):
    monkeypatch.chdir(tmp_path)
    assert main(["iterate", *QUICK, *words]) == 2
    said = capsys.readouterr().err
    assert key in said and rule in said and not Path("outputs").exists()


def test_help_says_what_a_round_is(capsys):
    assert main(["iterate", "--help"]) == 0
    assert "rounds=3" in capsys.readouterr().out


def test_from_the_second_round_on_the_model_is_another_one():
    words = ["model=hf", "model.path=./m", "model.dtype=bfloat16", "+model.revision=x", "beta=0.1", "model.steps=3"]
    assert _without_model(words) == ["model.dtype=bfloat16", "beta=0.1"]


@pytest.mark.slow
def test_each_round_begins_with_the_policy_of_the_last_and_its_rows_are_that_policys(tmp_path, cache_dir):
    sandbox = Sandbox(tmp_path, cache_dir)
    save_small(tmp_path / "m")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "principles.txt").write_text("Be brief.\nBe kind.")
    words = (
        "iterate", "rounds=2", "sweep=r", "algo=dpo", "adapter=lora", "model=hf", "model.path=m", "task=constitution",
        "task.prompts=prompts.txt", "task.principles=principles.txt", "judge@task.judge=longer",
        "task.between=samples", "task.writer.temperature=1.0", "task.writer.read=words", "task.writer.max_tokens=300",
        "task.held_out=0.5", "train.steps=2", "train.batch_size=2", "train.learning_rate=1e-3", "train.max_length=1024",
        "eval.max_length=1024",
        "task.allow_skipped=1.0",
        "eval.evaluators.lm_eval=null", "runner.predict=false", "train.warmup_ratio=0",
    )  # fmt: skip
    first = sandbox.run(*words, quick=False)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.splitlines()[-1].startswith(f"policy:  {tmp_path / 'outputs/r-rounds/2'}")
    models, made = [], []
    for number in (1, 2):
        (folder,) = sandbox.folders(f"r-round-{number}")
        models.append(json.loads((folder / "result.json").read_text())["config"]["model"]["path"])
    for card in sorted(sandbox.cache.glob("constitution/*/pairs.jsonl"), key=lambda path: path.stat().st_mtime):
        made.append([json.loads(line) for line in card.read_text().splitlines()])
    assert models == ["m", str(tmp_path / "outputs/r-rounds/1")]
    assert len(made) == 2 and made[0] != made[1], "the second round's rows are of another writer"
    times = {p: p.stat().st_mtime for p in tmp_path.glob("outputs/*/*/result.json")}
    again = sandbox.run(*words, quick=False)
    assert again.returncode == 0, again.stderr
    assert times == {p: p.stat().st_mtime for p in tmp_path.glob("outputs/*/*/result.json")}
