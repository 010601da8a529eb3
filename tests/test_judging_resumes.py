"""A whole sweep whose judge falls ill once: named again it trains nothing, and says what an undisturbed one says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs import Sandbox

PLUGIN = '''
"""A judge that falls ill once per folder."""

from dataclasses import dataclass
from pathlib import Path

from harness.evaluators.base import Evaluation, Evaluator


@dataclass(frozen=True)
class Ill(Evaluator):
    mark: str = ""

    def on_fixture(self, context, judge):
        return Ill(mark="/"), context  # it is well there

    def evaluate(self, context):
        if not context.on_baseline and not Path(self.mark).exists():
            Path(self.mark).touch()
            raise RuntimeError("the judge fell ill")
        return Evaluation({"health": 1.0})
'''


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "save"), [("lora", "adapter"), ("full", "none")])
def test_a_sweep_whose_judge_fell_ill_trains_nothing_when_it_is_named_again(
    tmp_path: Path, cache_dir: Path, adapter: str, save: str
) -> None:
    sandbox = Sandbox(tmp_path, cache_dir)
    (tmp_path / "illness.py").write_text(PLUGIN)
    mark = tmp_path / "was_ill"
    sweep = (
        f"adapter={adapter}", f"train.save={save}", "plugins=[illness]",
        "+eval.evaluators.ill._target_=illness.Ill", f"+eval.evaluators.ill.mark={mark}",
    )  # fmt: skip
    there = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"}
    ill = sandbox.run(*sweep, "sweep=ill", **there)
    assert ill.returncode == 1 and "fell ill" in ill.stdout + ill.stderr
    again = sandbox.run(*sweep, "sweep=ill", **there)
    assert again.returncode == 0 and "evaluates without training" in again.stderr, again.stderr
    undisturbed = sandbox.run(*sweep, "sweep=well", **there)
    assert undisturbed.returncode == 0, undisturbed.stderr

    (folder,) = sandbox.folders("ill")
    attempts = [e for e in sandbox.events(folder, "runner.jsonl") if e["kind"] == "attempt"]
    assert [a["mode"] for a in attempts] == ["train", "evaluate"]
    steps = [e["step"] for e in sandbox.events(folder, "worker.jsonl") if e["kind"] == "series"]
    assert steps == sorted(set(steps)), "each step once"
    ((one,), (two,)) = (sandbox.results(name).values() for name in ("ill", "well"))
    told = [
        {
            k: v
            for k, v in r["metrics"].items()
            if k.startswith(("eval/", "baseline/", "delta/", "params/", "train/loss"))
        }
        for r in (one, two)
    ]
    assert told[0] == pytest.approx(told[1], rel=1e-6, abs=1e-6) and told[0]["eval/health"] == 1.0
    assert one["metrics"]["budget/tokens"] == two["metrics"]["budget/tokens"]
    assert one["metrics"]["time/train_s"] > 0
    assert bool(list(folder.rglob("*.safetensors"))) == (save != "none")
    assert json.loads((folder / "result.json").read_text())["outcome"] == "finished"
