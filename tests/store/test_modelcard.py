"""What is left of a trial can be found, understood and loaded, without the cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.base.records import Outcome, TrialResult
from harness.store.modelcard import card, how_to_load, way_to, write_card
from tests.conftest import QUICK
from tests.inside import tell

SMALL_RUN = [o for o in QUICK if "lm_eval" not in o]


def result(**metrics: float) -> TrialResult:
    config = {
        "algo": {"name": "dpo"}, "adapter": {"name": "lora"}, "model": {"name": "tiny"}, "task": {"name": "arithmetic"},
        "train": {"learning_rate": 1e-3, "steps": 3}, "beta": 0.1, "rank": 16, "seed": 0,
    }  # fmt: skip
    environment = {"versions": {"torch": "2.13.0"}}
    return TrialResult("dpo-lora-1", Outcome.FINISHED, None, config, metrics, {"dataset": "abc"}, environment)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_lines_of_the_card_load_the_policy_after_the_cache_is_gone(tmp_path, monkeypatch, adapter):
    cache, trial = tmp_path / "cache", tmp_path / "sweep" / "trial"
    tell(trial, cache, "algo=dpo", f"adapter={adapter}", "eval=none", sizes=SMALL_RUN)
    shutil.rmtree(cache)
    (written,) = write_card(trial, result())
    page = written.read_text()
    lines = page.partition("```python\n")[2].partition("```")[0]
    found: dict[str, Any] = {}
    monkeypatch.chdir(written.parent)  # wherever the folder was moved to
    exec(lines, found)
    ids = found["tokenizer"]("1+1=", return_tensors="pt")
    with torch.no_grad():
        assert found["model"](input_ids=ids["input_ids"]).logits.isfinite().all()
    assert ("AutoPeftModelForCausalLM" in lines) == (adapter == "lora")


def test_the_card_says_recipe_results_and_cost(tmp_path):
    scores = {"eval/true_reward": 0.5, "baseline/true_reward": 0.125, "delta/true_reward": 0.375}
    page = card(tmp_path, result(**scores, **{"memory/peak_mb": 321.0, "time/train_s": 12.0}))
    assert "| `learning_rate` | 0.001 |" in page and "| `beta` | 0.1 |" in page
    assert "| `true_reward` | 0.500 | 0.125 | 0.375 |" in page
    assert "peak memory 321 MB; 12.0 s of training." in page and "torch 2.13.0" in page
    front = page.split("---")[1]
    assert "library_name: transformers" in front and "- dpo" in front


def test_bases_of_the_cache_are_kept_once_for_a_sweep(tmp_path):
    cache, sweep = tmp_path / "cache", tmp_path / "sweep"
    for name in ("a", "b"):
        tell(sweep / name, cache, "algo=dpo", "adapter=lora", "eval=none", sizes=SMALL_RUN)
    (base,) = (sweep / "bases").iterdir()
    for name in ("a", "b"):
        config = json.loads((sweep / name / "artifacts" / "model" / "adapter_config.json").read_text())
        assert Path(config["base_model_name_or_path"]) == base.resolve()
    weights = base / "model.safetensors"
    assert weights.stat().st_nlink > 1  # no second copy on the disk
    assert how_to_load(sweep / "a" / "artifacts" / "model")[0] == "from peft import AutoPeftModelForCausalLM"


@pytest.mark.parametrize("virtual", [True, False])
def test_of_learned_tokens_it_is_said_how_they_are_seen(tmp_path, virtual):
    told = {"base_model_name_or_path": "org/base", **({"num_virtual_tokens": 16} if virtual else {})}
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    assert ("seen_by_generate" in card(tmp_path, result())) is virtual


@pytest.mark.parametrize("base", [None, "None"])
def test_an_adapter_on_random_weights_is_not_said_to_load(tmp_path, base):
    model = tmp_path / "trial" / "artifacts" / "model"
    model.mkdir(parents=True)
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    page, shown = card(model, result()), way_to(tmp_path / "trial", "the first")
    for words in (page, shown):
        assert "there is no model to load" in words and "from_pretrained" not in words
    assert "base_model" not in page and "None" not in page and "A base model, aligned by" in page
