"""Plans: what fits, what to change, what is kept, and the command."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from harness.base.errors import UserError
from harness.cli.main import main
from harness.cli.plan import QUANTIZED, names, planned
from harness.plan import gpus
from harness.plan.fixes import Fix, candidates
from harness.plan.gpus import Gpu, gpu_of, needed
from harness.plan.predict import Prediction, Target, inputs
from harness.plan.render import Row, as_json, render
from harness.plan.spread import numbers
from harness.sweep.expand import plan_sweep
from tests.rehearsal.test_rehearsal import SMALL, setup_of

# -- fit and fixes -------------------------------------------------------------------------------------


def test_gpus_go_by_name_or_size():
    assert gpu_of("H100").bytes == 81_559 * 2**20 - gpus.DRIVERS_OWN  # 78.9 GiB; torch shows 79.1
    assert gpu_of("24GB").bytes == 24 * 10**9 and gpu_of("24 GiB").bytes == 24 * 2**30
    with pytest.raises(UserError, match="h100.*h200"):
        gpu_of("h1000")


def test_no_known_gpu_is_said_to_hold_more_than_torch_was_seen_to_find_there():
    """GiB of "total capacity" in torch's out-of-memory messages."""
    seen = {"t4": 14.56, "rtx3090": 23.5, "rtx4090": 23.64, "rtx5090": 31.37, "l40s": 44.53, "a100-40gb": 39.5,
            "a100-80gb": 79.25, "h100": 79.11}  # fmt: skip
    for name, gib in seen.items():
        assert 0.95 * gib < gpu_of(name).bytes / 2**30 <= gib, name


def test_of_the_gpu_that_is_there_what_its_driver_keeps_is_left_out(monkeypatch):
    monkeypatch.setattr(gpus, "first_visible", lambda: ("NVIDIA H100", 81_559 * 2**20))
    assert gpus.gpu_present() == Gpu("NVIDIA H100", gpu_of("h100").bytes)


def test_a_trial_needs_more_than_its_tensors():
    assert needed(10e9) == 10e9 * (1 + gpus.FRAGMENTED) + gpus.CONTEXT_BYTES
    assert Gpu("x", int(needed(10e9))).fits(10e9) and not Gpu("x", int(needed(10e9)) - 1).fits(10e9)


def test_without_a_gpu_what_comes_and_goes_counts_twice_and_any_phase_may_decide():
    found = Prediction({"load": {"weights": 5e9}, "train": {"weights": 1e9, "activations": 3e9}})
    assert found.peak == 5e9 and found.phase == "load"
    assert found.needed(cuda=False) == 1e9 + gpus.HEAP * 3e9 + gpus.PROCESS_BYTES
    assert found.needed(cuda=True) == needed(5e9)


def test_changes_that_leave_the_result_alone_are_tried_first():
    setup = setup_of("algo=dpo", "adapter=full", "train.gradient_checkpointing=false")
    tried = list(candidates(setup, Prediction({"train": {"weights": 1.0}})))
    assert tried[0] == ("train.gradient_checkpointing=true",)
    assert tried[1] == ("train.micro_batch_size=2", "train.gradient_checkpointing=true")
    assert tried.index(("adapter=lora",)) > 1 and tried[-1][0] == "train.max_length=32"


def test_a_trial_that_trains_where_its_base_cannot_be_judged_is_told_so():
    found = Prediction({"baseline": {"weights": 141e9}})
    assert list(candidates(setup_of("eval=default"), found))[-1] == ("eval=none",)
    assert ("eval=none",) not in candidates(setup_of("eval=none"), found)
    row = Row("dpo-qlora", found, fixes=(Fix(("eval=none",), 42e9),))
    said = render([row], gpu_of("h100"), cuda=True, rule="r", markdown=True)
    assert "`eval=none` (needs" in said and "it is then not judged" in said


def test_where_the_base_as_deployed_is_too_large_changes_are_tried_with_it_judged_in_4_bits(monkeypatch):
    def foreseen(setups: Any, *_: Any) -> list[Prediction]:
        """Deployed 140 GB, in 4 bits 38; training 5 GB a row of a micro-batch on top."""
        found = []
        for setup in setups:
            base = 38e9 if setup.eval.baseline == "quantized" else 140e9
            rows = setup.train.micro_batch_size * setup.train.max_length / 1024
            found.append(Prediction({"baseline": {"weights": base}, "train": {"weights": 38e9 + 5e9 * rows}}))
        return found

    for place in ("harness.cli.plan.predict", "harness.plan.fixes.predict"):
        monkeypatch.setattr(place, foreseen)
    sweep = plan_sweep(["algo=dpo", "adapter=qlora", "model=shape/llama-8b", "sweep=s"], multirun=False)
    row = planned(sweep.points, gpu_of("50GB"), Target(cuda=True))[0]
    assert row.note == QUANTIZED and row.prediction is not None and row.prediction.peak == 58e9
    assert row.fixes[0].overrides == ("train.micro_batch_size=1",) and row.nearest is None
    small = planned(sweep.points, gpu_of("40GB"), Target(cuda=True))[0]
    assert not small.fixes and small.nearest is not None
    assert small.nearest.peak == 38e9 + 2.5e9  # half the length, a row at a time
    said = render([small], gpu_of("40GB"), cuda=True, rule="r", markdown=True)
    assert f"left to change is the GPU: {needed(40.5e9) / 1e9:.1f} GB, predicted" in said, said
    fitting = planned(sweep.points, gpu_of("80GB"), Target(cuda=True))[0]
    assert fitting.note == QUANTIZED and not fitting.fixes


def test_seed_rate_and_beta_share_a_prediction_and_the_reference_does_not():
    target = Target(cuda=True)
    one = inputs(setup_of("algo=grpo", "seed=0", "beta=0.1"), target)
    assert inputs(setup_of("algo=grpo", "seed=1", "beta=0.5", "train.learning_rate=1e-5"), target) == one
    assert inputs(setup_of("algo=grpo", "beta=0"), target) != one
    assert inputs(setup_of("algo=grpo", "train.max_length=48"), target) != one


def test_a_plan_never_shows_a_figure_without_the_word_predicted_and_its_assumptions():
    found = Prediction({"train": {"weights": 16e9, "activations": 2.5e9}, "load": {"weights": 16e9}})
    for markdown in (True, False):
        shown = render(
            [Row("dpo-lora", found), Row("bad", None, "no such layer")],
            gpu_of("h100"),
            cuda=True,
            rule="r",
            markdown=markdown,
        )
        assert shown.startswith(("Predicted", "# Predicted")) and "predicted peak" in shown
        assert "18.5" in shown and "Assumptions" in shown and "bad: not predicted, no such layer" in shown
    told = json.loads(as_json([Row("dpo-lora", found), Row("bad", None, "no such layer")], None, cuda=True, rule="r"))
    assert told["trials"][0]["predicted_peak_bytes"] == 18.5e9 and told["assumptions"]
    assert told["trials"][1] == {"trial": "bad", "problem": "no such layer"}


# -- the command ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_plans_caches_and_advises(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    line = ["plan", "-m", "algo=dpo", "adapter=lora,full", *SMALL, "--gpu", "1.0GB", "--lengths", "limit"]
    assert main(line) == 0
    first = capsys.readouterr().out
    assert "dpo-lora" in first and "dpo-full" in first and "fits" in first and "- dpo-full" in first
    assert "(needs 0." in first and "predicted)" in first  # a change that was tried
    monkeypatch.setattr("harness.plan.predict._rehearsed", lambda wanted, _: [] if not wanted else pytest.fail("again"))
    assert main(line) == 0
    assert capsys.readouterr().out == first
    assert not (tmp_path / "mlflow.db").exists() and not (tmp_path / "outputs").exists()


def test_trials_of_one_id_are_told_apart_by_what_was_swept():
    def point(trial_id: str, *overrides: str) -> Any:
        return SimpleNamespace(trial=SimpleNamespace(trial_id=trial_id), overrides=overrides)

    points = [
        point("dpo-lora-s0-aaaaaaaa", "model=a", "algo=dpo"),
        point("dpo-lora-s0-bbbbbbbb", "model=b", "algo=dpo"),
        point("kto-lora-s0-cccccccc", "model=a", "algo=kto"),
    ]
    assert names(points) == ["dpo-lora model=a", "dpo-lora model=b", "kto-lora"]


def test_an_unknown_gpu_ends_with_the_known_ones(capsys):
    assert main(["plan", *SMALL, "--gpu", "h1000"]) == 2
    assert "rtx4090" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_that_cannot_be_built_says_at_which_layer(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    broken = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "hidden_act": "no-such", "vocab_size": 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(broken))
    setup_of().model.tokenizer(None).save_pretrained(folder)
    assert main(["plan", "model=hf", f"model.path={folder}", "eval=none", "train.max_length=64"]) == 2
    shown = capsys.readouterr()
    path = "LlamaForCausalLM > LlamaModel > LlamaDecoderLayer 0 > LlamaMLP"
    assert f"cannot be built without weights: stopped in {path}" in shown.out


# -- several GPUs --------------------------------------------------------------------------------------


def test_where_judging_sets_the_peak_its_batches_are_made_smaller_before_more_gpus_are_asked_for(monkeypatch):
    def foreseen(setups: Any, *_: Any) -> list[Prediction]:
        return [
            Prediction({
                "train": {"weights": 170e9 / s.parallel.processes},
                "evaluate": {"weights": 32e9, "kv_cache": 1e9 * s.eval.batch_size},
            })
            for s in setups
        ]  # fmt: skip

    for module in ("harness.cli.plan", "harness.plan.fixes", "harness.plan.spread"):
        monkeypatch.setattr(f"{module}.predict", foreseen)
    sweep = plan_sweep([*SMALL, "algo=dpo", "adapter=lora", "eval.batch_size=64"], multirun=False)
    row = planned(sweep.points, gpu_of("h100"), Target(cuda=True), gpus=8)[0]
    last = row.shares[-1]
    assert last.processes == 4 and "eval.batch_size=8" in last.overrides


def test_of_several_gpus_2_4_8_and_the_last_one_are_tried():
    assert [numbers(n) for n in (1, 2, 3, 6, 8)] == [[], [2], [2, 3], [2, 4, 6], [2, 4, 8]]


def test_the_fewest_gpus_that_hold_a_trial_are_named(monkeypatch):
    def foreseen(setups: Any, *_: Any) -> list[Prediction]:
        """160 GB in one piece, 16 GB of which every process has."""
        return [Prediction({"train": {"weights": 16e9 + 144e9 / s.parallel.processes}}) for s in setups]

    monkeypatch.setattr("harness.cli.plan.predict", foreseen)
    monkeypatch.setattr("harness.plan.fixes.predict", foreseen)
    monkeypatch.setattr("harness.plan.spread.predict", foreseen)
    sweep = plan_sweep([*SMALL, "algo=dpo", "adapter=lora"], multirun=False)
    gpu = gpu_of("h100")
    row = planned(sweep.points, gpu, Target(cuda=True), gpus=8)[0]
    assert [share.processes for share in row.shares] == [2, 4]
    assert row.shares[-1].overrides[:2] == ("parallel.processes=4", "parallel.strategy=fsdp2")
    assert row.shares[-1].overrides[2:] == ("train.micro_batch_size=2",), "its part of a batch is no more"
    said = render([row], gpu, cuda=True, rule="r", markdown=False)
    assert (
        "on 4, with `parallel.processes=4 parallel.strategy=fsdp2 train.micro_batch_size=2`" in said
        and "- 2: each needs" in said
    )
    told = json.loads(as_json([row], gpu, cuda=True, rule="r"))["trials"][0]["shares"]
    assert [(share["processes"], share["fits"]) for share in told] == [(2, False), (4, True)]


def test_where_pieces_are_refused_the_processes_hold_the_whole_policy_and_no_number_of_gpus_may_do(monkeypatch):
    whole = [Prediction({"train": {"weights": 160e9}})]
    for module in ("harness.cli.plan", "harness.plan.fixes", "harness.plan.spread"):
        monkeypatch.setattr(f"{module}.predict", lambda setups, *_: whole * len(setups))
    sweep = plan_sweep([*SMALL, "algo=grpo"], multirun=False)
    row = planned(sweep.points, gpu_of("h100"), Target(cuda=True), gpus=4)[0]
    assert [share.overrides[1] for share in row.shares] == ["parallel.strategy=ddp"] * 2
    assert "on none of these" in render([row], gpu_of("h100"), cuda=True, rule="r", markdown=True)


def test_how_many_gpus_of_no_kind_is_refused(capsys, monkeypatch):
    monkeypatch.setattr("harness.cli.plan.gpu_present", lambda: None)
    assert main(["plan", "--gpus", "8", "algo=dpo"]) == 2
    assert "--gpu h100 --gpus 8" in capsys.readouterr().err
    assert main(["plan", "--gpus", "0", "algo=dpo"]) == 2
