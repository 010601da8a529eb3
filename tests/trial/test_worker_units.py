"""The story of one trial, run in this process: what it saves, counts, holds in memory and writes down."""

from __future__ import annotations

import copy
import gc
import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from harness.algorithms.base import Training
from harness.models.adapters import Full, LoRA
from harness.store.journal import Journal, read
from harness.trial import artifacts, records, worker
from harness.trial.job import Job
from tests.inside import plain_config, tell
from tests.toys import random_llama


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


# -- saved and loaded ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algo", "adapter"),
    [
        ("dpo", "full"),
        ("dpo", "qlora"),
        ("ppo", "lora"),
        *(pytest.param(*both, marks=pytest.mark.slow) for both in [("dpo", "lora"), ("grpo", "lora"), ("ppo", "full")]),
    ],
)
def test_what_a_trial_saved_gives_the_same_numbers_when_it_is_loaded_again(tmp_path, cache, algo, adapter):
    options = (f"algo={algo}", f"adapter={adapter}", *(["algo.temperature=0.7"] if algo == "grpo" else []))
    trained = tell(tmp_path, cache, *options)
    loaded = tell(tmp_path, cache, *options, mode="evaluate")
    expected = trained.under("eval/")
    assert {"eval/preference_accuracy", "eval/likelihood_accuracy", "eval/true_reward"} <= expected.keys()
    assert loaded.under("eval/") == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert expected["eval/logratio_margin"] != 0.0  # it did learn something
    assert trained.series and not loaded.series
    files = {p.name for p in (tmp_path / "artifacts" / "model").iterdir()}
    assert ("model.safetensors" if adapter == "full" else "adapter_model.safetensors") in files
    assert not any(name.endswith((".bin", ".pt", ".pth")) for name in files)


def test_a_merged_copy_says_what_the_adapter_says(tmp_path, cache):
    from transformers import AutoModelForCausalLM

    told = tell(tmp_path, cache, "algo=dpo", "adapter=lora", "train.save=full")
    assert [p for e in told.events if e.kind == "artifact" and "." not in (p := e.data["path"])] == ["model", "merged"]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "artifacts" / "merged").eval()
    plain = plain_config("algo=dpo", "adapter=lora", "train.save=full")
    setup = worker.assemble(plain)
    job = Job(folder=str(tmp_path), plain=plain, cache_dir=str(cache), device="cpu")
    journal = Journal(tmp_path / "other.jsonl")
    ground = worker.prepare_ground(setup, worker.check_data(setup), job, journal)
    adapted = worker.load_trained(ground, ground.load_policy_base())
    journal.close()
    ids = torch.tensor([ground.tokenizer("12+7=")["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, adapted(input_ids=ids).logits, atol=1e-4)


JUDGED_BY_PAIRS = tuple(
    f"eval.evaluators.{name}=null" for name in ("true_reward", "win_rate", "calibration", "behaviour")
)


def fails_once(monkeypatch: Any, target: Any, name: str, error: Exception) -> None:
    """The function ``name`` of ``target`` raises at its first call and is itself again afterwards."""
    whole, left = getattr(target, name), [error]

    def once(*arguments: Any, **options: Any) -> Any:
        if left:
            raise left.pop()
        return whole(*arguments, **options)

    monkeypatch.setattr(target, name, once)


@pytest.mark.parametrize(
    ("adapter", "save"), [("lora", "none"), ("lora", "full"), pytest.param("full", "adapter", marks=pytest.mark.slow)]
)
def test_judging_that_failed_goes_on_with_the_trained_policy_and_says_what_an_undisturbed_trial_says(
    tmp_path, cache, monkeypatch, adapter, save
):
    options = ("algo=dpo", f"adapter={adapter}", f"train.save={save}", *JUDGED_BY_PAIRS)
    whole = tell(tmp_path / "whole", cache, *options)
    fails_once(monkeypatch, worker, "judge_trained", RuntimeError("the judge fell ill"))
    folder = tmp_path / "ill"
    with pytest.raises(RuntimeError, match="fell ill"):
        tell(folder, cache, *options)
    assert "trained" in {e.kind for e in read(folder / "worker-train.jsonl")}
    again = tell(folder, cache, *options, mode="evaluate")
    assert again.under("eval/") == pytest.approx(whole.under("eval/"), rel=1e-6, abs=1e-6)
    assert not again.series and again.events[-1].kind == "done"
    kept = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.safetensors"))
    assert (
        kept
        == {
            "none": [],
            "adapter": ["artifacts/model/model.safetensors"],
            "full": ["artifacts/merged/model.safetensors", "artifacts/model/adapter_model.safetensors"],
        }[save]
    )


def test_a_policy_that_cannot_be_saved_is_judged_from_memory_and_saved_when_there_is_room(tmp_path, cache, monkeypatch):
    fails_once(monkeypatch, artifacts, "save_whole", OSError(28, "No space left on device"))
    told = tell(tmp_path, cache, "algo=dpo", "adapter=lora", *JUDGED_BY_PAIRS)
    (note,) = [e.data["message"] for e in told.events if e.kind == "note" and "No space" in e.data["message"]]
    assert "judged from memory" in note and "eval/preference_accuracy" in told.metrics
    assert [e.kind for e in told.events].count("trained") == 1 and told.events[-1].kind == "done"
    assert (tmp_path / "artifacts" / "model" / "adapter_model.safetensors").is_file()


def test_where_there_is_no_room_at_all_the_figures_are_on_record_and_the_error_says_what_is_lost(
    tmp_path, cache, monkeypatch
):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts, "save_whole", full)
    with pytest.raises(RuntimeError, match=r"make room there.*is lost.*from its last checkpoint, or anew"):
        tell(tmp_path, cache, "algo=dpo", "adapter=lora", *JUDGED_BY_PAIRS)
    events = read(tmp_path / "worker-train.jsonl")
    assert "trained" not in {e.kind for e in events}
    assert any("eval/preference_accuracy" in e.data["values"] for e in events if e.kind == "metrics")


def test_a_policy_is_saved_whole_or_not_at_all(tmp_path):
    class Half:
        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir(parents=True)
            (folder / "model.safetensors").write_text("half")
            if self.dies:
                raise OSError("disk full")

        dies = True

    target = tmp_path / "artifacts" / "model"
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    with pytest.raises(OSError, match="disk full"):
        artifacts.save_whole(Half(), tokenizer, target)
    assert not list(tmp_path.rglob("*.safetensors"))
    target.mkdir(parents=True)
    (target / "older").write_text("of another training")
    whole = Half()
    whole.dies = False
    artifacts.save_whole(whole, tokenizer, target)
    assert [p.name for p in target.iterdir()] == ["model.safetensors"] and len(list(target.parent.iterdir())) == 1


@pytest.mark.parametrize("named", ["base", "owner/name"])
def test_an_adapter_names_a_base_in_a_folder_by_its_whole_path(tmp_path, monkeypatch, named):
    class Adapted:
        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir(parents=True)
            (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}))

    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    artifacts.save_whole(Adapted(), SimpleNamespace(save_pretrained=lambda folder: None), tmp_path / "model")
    kept = json.loads((tmp_path / "model" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert kept == (str(tmp_path / "base") if named == "base" else named)


def test_merging_makes_no_second_copy_of_the_weights(tmp_path, cache, monkeypatch):
    copied: list[Any] = []
    settle, whole = worker.settle, copy.deepcopy

    def watched(*arguments: Any) -> None:
        with monkeypatch.context() as during:
            during.setattr(copy, "deepcopy", lambda x, *a, **o: copied.append(type(x)) or whole(x, *a, **o))
            settle(*arguments)

    monkeypatch.setattr(worker, "settle", watched)
    tell(tmp_path, cache, "algo=dpo", "adapter=lora", "train.save=full", "eval=none")
    assert (tmp_path / "artifacts" / "merged" / "model.safetensors").is_file()
    assert not [kind for kind in copied if issubclass(kind, torch.nn.Module | torch.Tensor)]


def test_a_trial_that_keeps_nothing_leaves_no_weights(tmp_path, cache):
    tell(tmp_path, cache, "algo=dpo", "adapter=lora", "train.save=none")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(("algo", "adapter"), [("dpo", "full"), ("ppo", "lora"), ("kto", "qlora")])
def test_a_preflight_takes_one_step_and_leaves_nothing(tmp_path, cache, algo, adapter):
    told = tell(tmp_path, cache, f"algo={algo}", f"adapter={adapter}", mode="preflight")
    assert told.events[-1].kind == "done" and told.metrics["time/train_s"] > 0
    assert not told.series and not (tmp_path / "artifacts").exists() and not (tmp_path / "checkpoints").exists()


def test_a_memory_snapshot_is_kept_also_when_memory_runs_out(tmp_path, monkeypatch):
    calls: list[Any] = []
    memory = SimpleNamespace(
        _record_memory_history=lambda **options: calls.append(options), _dump_snapshot=lambda path: calls.append(path)
    )
    monkeypatch.setattr(torch.cuda, "memory", memory)
    journal = Journal(tmp_path / "journal.jsonl")
    ground: Any = SimpleNamespace(snapshot=True, device="cuda", folder=tmp_path)
    with pytest.raises(MemoryError), records.recorded(ground, journal):
        raise MemoryError
    target = str(tmp_path / "artifacts" / "memory_snapshot.pickle")
    assert calls == [{"max_entries": records.SNAPSHOT_ENTRIES}, target, {"enabled": None}]
    ground.device = "cpu"
    with records.recorded(ground, journal):
        pass
    journal.close()
    artifact, note = read(tmp_path / "journal.jsonl")
    assert artifact.data == {"path": "memory_snapshot.pickle"} and "only CUDA" in note.data["message"]


# -- counts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["full", "lora", "qlora"])
def test_parameters_are_counted_by_their_logical_size(tmp_path, cache, adapter):
    """Width 64, MLP 128, two layers, 46 tokens tied; every linear layer at rank 4."""
    told = tell(tmp_path, cache, f"adapter={adapter}", *([] if adapter == "full" else ["rank=4"]))
    vocabulary = len("abcdefghijklmnopqrstuvwxyz0123456789 +-=?.,") + 3
    base = vocabulary * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64  # embeddings, two layers, last norm
    added = 2 * 4 * (4 * (64 + 64) + 3 * (64 + 128))
    found = told.under("params/")
    assert found.pop("params/changed") > 0.1  # in a first step lora_A has no gradient, since lora_B is 0
    assert found == {
        "params/trainable": base if adapter == "full" else added,
        "params/total": base if adapter == "full" else base + added,
    }


def test_a_count_that_is_not_the_formulas_stops_the_trial_and_is_still_on_record(tmp_path):
    journal = Journal(tmp_path / "worker.jsonl")
    with pytest.raises(RuntimeError, match=r"6 parameters are trainable, and 7 were expected of the adapter"):
        worker.count_parameters(torch.nn.Linear(2, 2), 7, journal)
    journal.close()
    (event,) = read(tmp_path / "worker.jsonl")
    assert event.data["values"] == {"params/trainable": 6, "params/total": 6}


def test_frozen_parameters_count_in_the_total_alone(tmp_path):
    layer = torch.nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    journal = Journal(tmp_path / "worker.jsonl")
    worker.count_parameters(layer, 4, journal)
    journal.close()
    assert read(tmp_path / "worker.jsonl")[0].data["values"] == {"params/trainable": 4, "params/total": 6}


# -- one base ------------------------------------------------------------------------------------------


def models_alive() -> int:
    gc.collect()
    return sum(type(o) is LlamaForCausalLM for o in gc.get_objects())


@pytest.mark.parametrize(
    ("algo", "adapter", "models"),
    [
        ("kto", "lora", 1),
        ("dpo", "full", 2),
        *(
            pytest.param(*three, marks=pytest.mark.slow)
            for three in [("dpo", "lora", 1), ("grpo", "lora", 1), ("sft", "full", 1)]
        ),
    ],
)
def test_an_adapter_trial_holds_one_base_and_full_fine_tuning_a_reference_beside_it(
    tmp_path, cache, monkeypatch, algo, adapter, models
):
    seen: dict[str, Any] = {}
    before = models_alive()

    def look(training: Training, setup: Any, journal: Any) -> None:
        seen["models"] = models_alive() - before
        seen["reference"] = getattr(training.trainer, "ref_model", None)
        seen["adapters"] = list(getattr(training.trainer.model, "peft_config", {}))
        seen["held"] = training.reference
        accounted(training, setup, journal)

    accounted = worker.account_for_roles
    monkeypatch.setattr(worker, "account_for_roles", look)
    told = tell(tmp_path, cache, f"algo={algo}", f"adapter={adapter}", "eval=none")
    assert seen["models"] == models
    assert (seen["reference"] is not None) == (models == 2)
    assert seen["held"] == ("none" if algo == "sft" else "base" if adapter == "lora" else "own")
    assert [e.data["reference"] for e in told.events if e.kind == "training"] == [seen["held"]]
    assert seen["adapters"] == (["default"] if adapter == "lora" else [])
    roles = told.under("memory/role_")
    assert roles["memory/role_policy_mb"] > 0
    if algo != "sft":
        expected = 0 if adapter == "lora" else roles["memory/role_policy_mb"]
        assert roles["memory/role_reference_mb"] == pytest.approx(expected, rel=0.01)
    else:
        assert "memory/role_reference_mb" not in roles


def test_a_second_model_beside_an_adapter_stops_the_trial(tmp_path):
    journal = Journal(tmp_path / "worker.jsonl")
    setup: Any = SimpleNamespace(adapter=LoRA())
    training = Training(SimpleNamespace(model=random_llama(0), ref_model=random_llama(0)), "own")
    with pytest.raises(RuntimeError, match="bytes of a second model as its reference"):
        worker.account_for_roles(training, setup, journal)
    full: Any = SimpleNamespace(adapter=Full())
    worker.account_for_roles(training, full, journal)
    journal.close()


# -- the journal ---------------------------------------------------------------------------------------


def test_rollouts_are_a_phase_of_their_own_inside_training(tmp_path, cache):
    told = tell(tmp_path, cache, "algo=grpo", "adapter=lora", "eval=none")
    changes = [(e.data["previous"], e.data["name"]) for e in told.events if e.kind == "phase"]
    assert changes.count(("train", "rollout")) == changes.count(("rollout", "train")) == 2  # a rollout per step
    assert Counter(name for _, name in changes)["rollout"] == 2
    assert {"time/rollout_s", "time/train_s", "throughput/rollout_tokens_per_s"} <= told.metrics.keys()
    parts = [v for k, v in told.under("time/").items() if k != "time/total_s"]
    assert sum(parts) == pytest.approx(told.metrics["time/total_s"])


def test_the_journal_tells_the_phases_in_the_order_of_the_story(tmp_path, cache):
    told = tell(tmp_path, cache, "algo=dpo", "adapter=lora")
    names = [e.data["name"] for e in told.events if e.kind == "phase" and e.data["name"]]
    assert names == ["prepare", "baseline", "prepare", "reference", "prepare", "train", "evaluate", "evaluate"]
    shared = tell(tmp_path / "shared", cache, "algo=dpo", "adapter=lora", "algo.share_reference=true")
    names = [e.data["name"] for e in shared.events if e.kind == "phase" and e.data["name"]]
    assert names[4:8] == ["prepare", "reference", "prepare", "train"]
    assert told.events[-1].kind == "done"


def test_every_metric_of_the_base_has_its_twin_after_training(tmp_path, cache):
    told = tell(tmp_path, cache, "algo=dpo", "adapter=lora")
    baseline = {k.removeprefix("baseline/") for k in told.under("baseline/")}
    trained = {k.removeprefix("eval/") for k in told.under("eval/")}
    assert baseline and baseline <= trained
    assert not {name for name in baseline if name.startswith(("preference_accuracy", "preference_margin"))}
    absent = {e.data["absent"] for e in told.events if e.kind == "note" and e.data.get("absent")}
    assert "baseline/preference_accuracy" in absent


def test_a_model_that_is_not_trained_is_judged_and_ties_with_itself(tmp_path, cache):
    told = tell(tmp_path, cache, "algo=none", "adapter=full")
    assert told.metrics["eval/preference_accuracy"] == 0.5
    assert told.metrics["eval/true_reward"] == told.metrics["baseline/true_reward"]
    assert not told.series and not list(tmp_path.rglob("*.safetensors"))


# -- the cache changes nothing -------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["dpo", "grpo"])
@pytest.mark.slow
def test_a_baseline_from_the_cache_changes_neither_training_nor_evaluation(tmp_path, algo):
    """lm-eval reseeds the global generators and leaves eval mode, so a cold run must prove it undoes both."""
    options = (f"algo={algo}", "adapter=lora", "eval.evaluators.lm_eval.limit=4")
    cold, warm = (tell(tmp_path / run, tmp_path / "cache", *options) for run in ("cold", "warm"))
    assert set(cold.stages.values()) == {False} and set(warm.stages.values()) == {True}
    assert cold.stages.keys() == warm.stages.keys() >= {"sft", "baseline-preference", "baseline-true_reward"}
    assert [s for s in cold.series if s[1] == "train/loss"]
    assert cold.series == warm.series  # to the bit
    assert cold.under("eval/") == warm.under("eval/")
    assert cold.under("baseline/") == warm.under("baseline/")


def test_results_per_example_are_kept_as_parquet_and_average_to_the_metrics(tmp_path, cache):
    import pandas as pd

    told = tell(tmp_path, cache, "algo=dpo", "adapter=full")
    kept = {e.data["path"] for e in told.events if e.kind == "artifact" and e.data["path"].startswith("examples/")}
    assert {"examples/baseline_prompts.parquet", "examples/eval_pairs.parquet", "examples/eval_wins.parquet"} <= kept
    for path in kept:
        prefix, frame = Path(path).stem.partition("_")[0], pd.read_parquet(tmp_path / "artifacts" / path)
        for name in set(frame) - {"example", "cluster"}:
            assert frame[name].mean() == pytest.approx(told.metrics[f"{prefix}/{name}"]), name


@pytest.mark.parametrize("adapter", ["full", "lora", "qlora"])
def test_drift_is_measured_against_the_model_that_training_started_from(tmp_path, cache, adapter):
    still = tell(tmp_path / "still", cache, "algo=dpo", f"adapter={adapter}", "train.learning_rate=1e-12").metrics
    moved = tell(tmp_path / "moved", cache, "algo=dpo", f"adapter={adapter}", "train.learning_rate=1e-2").metrics
    assert still["eval/kl_per_sequence"] == pytest.approx(0, abs=1e-4)
    assert still["eval/win_rate"] == pytest.approx(0.5, abs=0.05)
    assert moved["eval/kl_per_sequence"] > 0.01
    assert "baseline/kl_per_sequence" not in still and "baseline/entropy_per_token" in still


# -- the base's figures --------------------------------------------------------------------------------

RULE = """
from dataclasses import dataclass
from harness.tasks.arithmetic import Arithmetic
from harness.tasks.base import Score
from {helper} import REWARD

@dataclass(frozen=True)
class Ruled(Arithmetic):
    def score(self, row, completion):
        return Score(REWARD + super().score(row, completion).reward, True)  # pairs need a better side
"""


FAST = (
    "task.pairs=4", "task.eval_pairs=2", "task.eval_prompts=2", "eval.max_completion_length=3",
    "model.config.vocab_size=64", "model.config.hidden_size=16", "model.config.num_hidden_layers=1",
)  # fmt: skip


def test_the_base_is_judged_anew_when_the_tasks_rule_of_scoring_has_changed(tmp_path, monkeypatch):
    """An untrained model showed a difference of -200 where the base's figure came from the cache."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ruled_task.py").write_text(RULE.format(helper="ruled_helper"))
    options = ("algo=none", "model=shape/llama-10m", "plugins=[ruled_task]", "task._target_=ruled_task.Ruled")
    for reward, hit in ((100.0, False), (100.0, True), (-100.0, False)):
        (tmp_path / "ruled_helper.py").write_text(f"REWARD = {reward}\n")
        for name in ("ruled_task", "ruled_helper"):
            monkeypatch.delitem(sys.modules, name, raising=False)  # a sweep begins with fresh imports
        told = tell(tmp_path / "trial", tmp_path / "cache", *options, sizes=FAST)
        assert told.metrics["baseline/true_reward"] == told.metrics["eval/true_reward"]
        assert abs(told.metrics["eval/true_reward"] - reward) < 2
        assert told.stages["baseline-true_reward"] is hit


def test_training_that_found_no_rows_is_no_training():
    trainer = SimpleNamespace(train=lambda **_: None, state=SimpleNamespace(global_step=0))
    with pytest.raises(RuntimeError, match="before its first step"):
        worker.take_steps(trainer, None)
