"""Trials that read a prompt once for all of its completions learn what those learn that read it anew each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.algorithms.regrouped import groups_together
from tests.rehearsal.test_rehearsal import assert_agree, setup_of
from tests.runs import Sandbox

STEPS = (
    "model=shape/llama-10m", "task.pairs=64", "task.eval_pairs=8", "task.eval_prompts=8", "eval=none", "train.steps=3",
    "train.batch_size=16", "train.micro_batch_size=8", "train.max_length=64", "train.max_completion_length=16",
    "train.logging_steps=1", "train.save=none", "train.share_prefix=true,false", "runner.threads=1",
)  # fmt: skip
ROUNDED = 1e-4
ONE_EACH = {"ppo"}
"""One completion of a prompt, and prompts of one length: nothing to share, and no padding to save."""
LOSSES = {"train/loss", "train/grad_norm", "train/kl", "train/approx_kl", "train/value_loss", "train/logps/chosen"}


def series(folder: Path) -> dict[tuple[str, int], float]:
    events = [json.loads(line) for line in (folder / "worker.jsonl").read_text().splitlines()]
    points = [e for e in events if e["kind"] == "series"]
    return {(name, e["step"]): v for e in points for name, v in e["values"].items() if name in LOSSES}


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "algos"), [
    ("lora", "dpo,kto,orpo,sft,grpo,online_dpo,ppo"),
    ("full", "dpo,grpo"),
    ("qlora", "kto,ppo"),
])  # fmt: skip
def test_losses_and_gradients_are_those_of_rows_read_apart(tmp_path, cache_dir, adapter, algos):
    sandbox = Sandbox(tmp_path, cache_dir)
    done = sandbox.run("-m", f"algo={algos}", f"adapter={adapter}", *STEPS, "sweep=p", quick=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    both: dict[str, dict[Any, Any]] = {}
    for folder in sandbox.folders("p"):
        result = json.loads((folder / "result.json").read_text())
        both.setdefault(result["config"]["algo"]["name"], {})[result["config"]["train"]["share_prefix"]] = (
            series(folder), result["metrics"].get("throughput/computed_share"),
        )  # fmt: skip
    assert len(both) == len(algos.split(","))
    for algo, found in both.items():
        (shared, computed), (apart, none) = found[True], found[False]
        assert none is None and apart, algo
        most = 1.0 if algo in ONE_EACH else 0.95
        assert computed is not None and computed <= most, (algo, computed)
        assert shared.keys() == apart.keys()
        for name, value in apart.items():
            assert shared[name] == pytest.approx(value, rel=1e-3, abs=ROUNDED), (algo, name)


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["dpo", "kto", "grpo", "ppo"])
def test_a_rehearsal_without_data_foresees_what_is_shared(algo):
    assert_agree(setup_of(f"algo={algo}", "adapter=lora", "train.share_prefix=true"))


def test_rows_of_one_prompt_stand_beside_each_other_within_a_step():
    def micro(prompts: list[int], first: int) -> dict[str, Any]:
        rows = torch.arange(first, first + len(prompts))
        return {
            "prompt_ids": torch.tensor(prompts)[:, None], "prompt_mask": torch.ones(len(prompts), 1, dtype=torch.long),
            "advantages": rows, "row": rows.tolist(), "num_items_in_batch": torch.tensor(7), "none": None,
        }  # fmt: skip

    step = [micro([5, 3, 5, 4], 0), micro([3, 5, 4, 5], 4)]
    found = groups_together(step)
    assert [b["prompt_ids"].flatten().tolist() for b in found] == [[5, 5, 5, 5], [3, 3, 4, 4]]
    assert [b["advantages"].tolist() for b in found] == [[0, 2, 5, 7], [1, 4, 3, 6]] == [b["row"] for b in found]
    assert all(b["num_items_in_batch"] == 7 and b["none"] is None for b in found)
