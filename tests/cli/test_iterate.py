"""Rounds from the command line: each begins with the policy of the one before, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.base.records import Outcome, TrialResult
from harness.cli.loops.iterate import _following, _merged, _one_trial, _place, _table, measured, typed
from harness.cli.main import main
from harness.config.compose import compose, hydra_config
from tests.conftest import QUICK
from tests.judges.server import Planted, serving
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


def of_rounds(words: list[str], *folders: str) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The configurations of the first round and of a later one, and the words of the latter."""
    first = _one_trial(words, "r", folders)
    following = _following(words, first, folders)
    with hydra_config(list(folders)):
        later = compose([*following, "model.path=policy", "sweep=r-round-2"])
    return dict(first.plain), later, following


MINE = """
# @package _global_
defaults:
  - override /train: mine
model:
  _target_: harness.models.HF
  path: m
  stop_tokens: ["?", "it's"]
  chat_template: "off"
  attention: eager
  dtype: bfloat16
"""


def test_what_a_models_yaml_says_holds_in_every_round(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_small(tmp_path / "m")
    for name, text in {"model": MINE, "train": "defaults: [standard, _self_]\npreset: tiny\nmax_length: 512\n"}.items():
        (tmp_path / "conf" / name).mkdir(parents=True)
        (tmp_path / "conf" / name / "mine.yaml").write_text(text.lstrip())
    words = ["model=mine", "+model.revision=x", "+model.trust_remote_code=true", "beta=0.1", "train.steps=2"]
    first, later, following = of_rounds([*words, "eval.evaluators.lm_eval=null"], str(tmp_path / "conf"))
    own = {k: v for k, v in first["model"].items() if k not in ("path", "revision")}
    assert own["stop_tokens"] == ["?", "it's"] and own.items() <= later["model"].items()
    assert later["model"]["path"] == "policy" and later["model"]["revision"] is None, "which no later round begins with"
    assert later["train"] == first["train"] and later["train"]["max_length"] == 512
    assert later["eval"] == first["eval"] and later["beta"] == 0.1
    assert "model=hf" in following and not any("mine" in word for word in following)


def test_rounds_of_the_embedded_model_keep_its_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, later, _ = of_rounds([*QUICK, "eval.max_length=90"])
    assert first["train"] == later["train"] and later["train"]["preset"] == "tiny"
    assert later["eval"]["max_length"] == 90 and later["model"]["dtype"] == "float32", "as it computes everywhere"


def test_a_policy_is_no_gguf_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"GGUF" * 400)
    words = ["model=hf", "model.path=.", "model.gguf_file=x.gguf", "model.pad_token='<p>'"]
    _, later, _ = of_rounds([*words, "eval.evaluators.lm_eval=null"])
    assert later["model"]["gguf_file"] is None and later["model"]["pad_token"] == "<p>"


def test_a_value_is_typed_as_it_is_read():
    texts = ["<|im_end|>", "it's", "", "a\\", "a\\'b", "${oc.env:HOME}", "a,b:{c}[d]=e", "null", "1"]
    values = [*texts, None, True, 3, 1e-05, texts, {"steps": None, "seconds": 2.5}]
    with hydra_config([]):
        plain = compose([f"+extra.v{i}={typed(value)}" for i, value in enumerate(values)])
    assert list(plain["extra"].values()) == values


def test_rounds_of_other_settings_have_policies_of_their_own():
    places = {
        _place(Path("outputs/r-round-1", trial), "r", number, dtype)
        for trial in ("dpo-b0.1-aa", "dpo-b0.5-bb")
        for number in (1, 2)
        for dtype in ("float32", "bfloat16")
    }
    assert len(places) == 8 and {place.parent for place in places} == {Path("outputs/r-rounds")}


def test_a_policy_is_whole_or_is_merged_again(tmp_path, monkeypatch):
    @dataclass
    class Result:
        trial_id: str = "t"
        attempt: float = 1.0

    @dataclass
    class Kept:
        result: Result

    now, made, breaks = Result(), [], []

    def export(policy, target, dtype, say):
        made.append(policy.result.attempt)
        assert not target.exists()
        target.mkdir()
        if breaks:
            raise OSError("no space left")
        (target / "weights").write_text(str(policy.result.attempt))

    monkeypatch.setattr("harness.trial.exporting.kept", lambda folder: Kept(now))
    monkeypatch.setattr("harness.trial.exporting.export_merged", export)
    target = tmp_path / "r-rounds" / "1-t-float32"
    assert _merged(tmp_path, target, "float32") == _merged(tmp_path, target, "float32") == target and made == [1.0]
    now.attempt, breaks[:] = 2.0, [True]  # trained again, and killed while its policy is written
    with pytest.raises(OSError):
        _merged(tmp_path, target, "float32")
    now.attempt, breaks[:] = 1.0, []  # what was there is gone, whatever the attempt is now
    _merged(tmp_path, target, "float32")
    assert made == [1.0, 2.0, 1.0] and (target / "weights").read_text() == "1.0"


def result_of(held: str | None, **metrics: float) -> TrialResult:
    digests = {} if held is None else {"held_out": held}
    return TrialResult("t", Outcome.FINISHED, None, {}, metrics, digests, {})


@pytest.mark.parametrize(
    ("held", "metrics", "said"),
    [
        (("a", "a"), {"eval/true_reward": 0.5}, ["the same held-out rows"]),
        (("a", "b"), {"eval/preference_accuracy": 0.5}, ["held-out rows of its own"]),
        (
            (None, None),
            {"eval/kl_per_sequence": 2.0},
            ["held-out rows of its own", "kl per sequence: against the model"],
        ),
    ],
)
def test_the_table_says_what_its_lines_are_measured_on(held, metrics, said):
    found = [(result_of(one, **metrics, **{"eval/preference_pairs": 7.0 + i}), i) for i, one in enumerate(held, 1)]
    told = measured(found)
    assert len(told) == len(said) and all(words in line for words, line in zip(said, told, strict=True))
    lines = _table(found).splitlines()
    assert lines[0].endswith("preference pairs") and [line.split()[-1] for line in lines[2:]] == ["8", "9"]


@pytest.mark.slow
def test_each_round_begins_with_the_policy_of_the_last_and_its_rows_are_that_policys(tmp_path, cache_dir):
    sandbox = Sandbox(tmp_path, cache_dir)
    save_small(tmp_path / "m")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "principles.txt").write_text("Be brief.\nBe kind.")
    words = (
        "iterate", "rounds=2", "sweep=r", "algo=dpo", "adapter=lora", "model=hf", "model.path=m", "task=constitution",
        "task.prompts=prompts.txt", "task.principles=principles.txt", "judge@task.judge=served",
        "task.judge.model=m",
        "task.between=samples", "task.writer.temperature=1.0", "task.writer.read=words", "task.writer.max_tokens=700",
        "task.held_out=0.5", "train.steps=2", "train.batch_size=2", "train.learning_rate=1e-3", "train.max_length=1024",
        "eval.max_length=1024",
        "task.allow_skipped=1.0",
        "eval.evaluators.lm_eval=null", "runner.predict=false", "train.warmup_ratio=0",
    )  # fmt: skip
    with serving(Planted(longer=1.0)) as url:
        first = sandbox.run(*words, f"task.judge.url={url}", quick=False)
        assert first.returncode == 0, first.stdout + first.stderr
        assert first.stdout.splitlines()[-1].startswith(f"policy:  {tmp_path / 'outputs/r-rounds/2-dpo'}")
    models, made = [], []
    for number in (1, 2):
        (folder,) = sandbox.folders(f"r-round-{number}")
        models.append(json.loads((folder / "result.json").read_text())["config"]["model"]["path"])
    for card in sorted(sandbox.cache.glob("constitution/*/pairs.jsonl"), key=lambda path: path.stat().st_mtime):
        made.append([json.loads(line) for line in card.read_text().splitlines()])
    (begun,) = (path.name for path in tmp_path.glob("outputs/r-round-1/dpo-*"))
    assert models == ["m", str(tmp_path / f"outputs/r-rounds/1-{begun}-float32")]
    assert len(made) == 2 and made[0] != made[1], "the second round's rows are of another writer"
    with serving(Planted(longer=1.0)) as url:  # where it is reached is no part of what it is
        times = {p: p.stat().st_mtime for p in tmp_path.glob("outputs/*/*/result.json")}
        again = sandbox.run(*words, f"task.judge.url={url}", quick=False)
        assert again.returncode == 0, again.stderr
        assert times == {p: p.stat().st_mtime for p in tmp_path.glob("outputs/*/*/result.json")}
