"""The curve: points at shares of the budget, which change no bit of the trial that they are taken of."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from harness.algorithms.budget_meter import Meter
from harness.algorithms.dpo import DPO
from harness.algorithms.grpo import GRPO
from harness.algorithms.ppo.algorithm import PPO
from harness.base.errors import Diverged, UserErrors
from harness.base.records import Event, Outcome
from harness.config.train import UNKNOWN_STEPS, Budget, Train
from harness.runner.child import tell_story
from harness.runner.decide_mode import decide_mode
from harness.store.journal import Journal, read
from harness.store.points import points_of
from harness.store.result import metrics_of, write_json
from harness.trial.checks import check_data
from harness.trial.curve import points as curve
from harness.trial.curve.losing import points_on_record
from harness.trial.curve.undisturbed import undisturbed
from harness.trial.identify import identify
from harness.trial.job import Job
from harness.trial.worker import seed_everything
from tests.inside import Told, plain_config, tell
from tests.toys import random_llama

AT = ("train.steps=4", "train.logging_steps=1", "eval.at=[0.25,0.5,0.75]", "eval.curve_pairs=6", "eval.curve_prompts=5")
WITHOUT = (*AT[:2], "eval.at=[]")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


def points(told: Told) -> list[dict[str, Any]]:
    return [dict(e.data) for e in told.events if e.kind == "point"]


def shares(told: Told) -> list[float]:
    return [point["share"] for point in points(told)]


def test_the_start_is_sampled_once_for_all_trials_of_a_base_and_is_what_sampling_it_gives(tmp_path, monkeypatch):
    from harness.evaluators import scoring

    sampled: list[int] = []
    sample = scoring.sample
    monkeypatch.setattr(scoring, "sample", lambda *a, **k: sampled.append(1) or sample(*a, **k))
    cache, starts, counts = tmp_path / "cache", [], []
    for name, algo in (("first", "algo=grpo"), ("second", "algo=dpo"), ("apart", "algo=grpo")):
        if name == "apart":
            monkeypatch.setattr(curve.Curve, "_starts_at_base", False)
        sampled.clear()
        told = tell(tmp_path / name, cache, algo, "adapter=lora", "eval=none", *AT)
        starts.append({k: v for k, v in points(told)[0]["values"].items() if "proxy" not in k})
        counts.append(len(sampled))
    assert counts == [5, 4, 5], "one of five points is the base's"
    assert starts[0] == starts[1] == starts[2] and starts[0]["curve/kl_per_sequence"] == 0.0


# -- nothing is changed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ("algo=dpo", "adapter=lora", "adapter.dropout=0.2", "train.gradient_checkpointing=true"),
        *(
            pytest.param(more, marks=pytest.mark.slow)
            for more in [
                ("algo=dpo", "adapter=full"),
                ("algo=kto", "adapter=lora", "adapter.dropout=0.2"),
                ("algo=grpo", "adapter=lora"),
                ("algo=ppo", "adapter=lora"),
            ]
        ),
        *(
            pytest.param(more, marks=pytest.mark.nightly)
            for more in [
                ("algo=dpo", "adapter=pissa"),
                ("algo=dpo", "adapter=qlora"),
                ("algo=grpo", "adapter=full", "train.gradient_checkpointing=true"),
                ("algo=ppo", "adapter=full"),
                ("algo=ppo", "adapter=lora", "reward=model", "reward.steps=2"),
            ]
        ),
    ],
    ids=lambda options: "-".join(o.split("=")[1] for o in options[:2]),
)
def test_a_trial_has_the_same_bits_with_a_curve_and_without(tmp_path, cache, options):
    plain = tell(tmp_path / "plain", cache, *options, *WITHOUT)
    curved = tell(tmp_path / "curved", cache, *options, *AT)
    assert shares(curved) == [0.0, 0.25, 0.5, 0.75, 1.0] and not points(plain)
    assert curved.under("eval/") == plain.under("eval/") and len(plain.under("eval/")) > 20
    assert curved.series == plain.series and len(plain.series) > 20
    counted = ("budget/steps", "budget/prompts", "budget/tokens")
    assert [curved.metrics[k] for k in counted] == [plain.metrics[k] for k in counted]
    files = {p.relative_to(tmp_path / "plain") for p in (tmp_path / "plain").rglob("*.safetensors")}
    assert files and all((tmp_path / "plain" / f).read_bytes() == (tmp_path / "curved" / f).read_bytes() for f in files)
    assert all(hit for stage, hit in curved.stages.items() if stage.startswith("baseline")), "the base is the same"


def test_a_look_leaves_random_state_modes_trained_parameters_and_use_cache_as_they_were():
    model = random_llama(0).train()
    model.model.layers[0].eval()  # a role of its own
    for parameter in model.lm_head.parameters():
        parameter.requires_grad_(False)
    model.config.use_cache = False
    modes = [m.training for m in model.modules()]
    trained = [p.requires_grad for p in model.parameters()]

    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(1)
    expected = draws()
    seed_everything(1)
    with pytest.raises(RuntimeError, match="midway"), undisturbed(model):
        assert not any(m.training for m in model.modules())
        draws()
        model.requires_grad_(True)
        raise RuntimeError("midway")
    assert draws() == expected
    assert [m.training for m in model.modules()] == modes and [p.requires_grad for p in model.parameters()] == trained
    assert model.config.use_cache is False


@pytest.mark.parametrize("algo", ["grpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_best_of_n_stands_beside_the_curve_and_changes_no_bit_either(tmp_path, cache, algo):
    options = (f"algo={algo}", "adapter=lora", "reward=length", "eval=none", *AT)
    plain = tell(tmp_path / "plain", cache, *options)
    told = tell(tmp_path / "chosen", cache, *options, "eval.best_of=8")
    assert points(told) == points(plain)
    by_n = {e.data["step"]: e.data["values"] for e in told.events if "best_of/n" in e.data.get("values", {})}
    assert list(by_n) == [1, 2, 3, 4, 6, 8]
    paid = [values["best_of/proxy_reward"] for values in by_n.values()]
    assert paid == sorted(paid) and paid[0] < paid[-1], "what chooses rises with the choice"
    assert by_n[1]["best_of/kl_per_sequence"] == 0.0 and "best_of/true_reward_stderr" in by_n[8]
    files = [p.relative_to(tmp_path / "plain") for p in (tmp_path / "plain").rglob("*.safetensors")]
    assert files and all((tmp_path / "plain" / f).read_bytes() == (tmp_path / "chosen" / f).read_bytes() for f in files)


def test_what_is_paid_nothing_has_no_best_of_n_and_without_a_curve_it_is_refused(tmp_path, cache):
    told = tell(tmp_path, cache, "algo=dpo", "adapter=lora", "eval=none", *AT, "eval.best_of=4")
    assert not [e for e in told.events if "best_of/n" in e.data.get("values", {})]
    (why,) = [e.data["message"] for e in told.events if e.data.get("absent") == "best_of/proxy_reward"]
    assert "is paid nothing" in why
    with pytest.raises(UserErrors, match="eval.best_of=4: best-of-n stands beside a curve"):
        tell(tmp_path / "none", cache, "algo=grpo", "adapter=lora", "eval=none", *WITHOUT, "eval.best_of=4")


# -- what a point says ---------------------------------------------------------------------------------


def test_points_have_the_figures_of_the_policy_at_their_step_and_the_first_is_the_base(tmp_path, cache):
    options = ("algo=dpo", "adapter=lora", "train.learning_rate=1e-2", "eval=none", *AT)
    told = tell(tmp_path, cache, *options)
    found = points(told)
    assert [p["step"] for p in found] == [0, 1, 2, 3, 4]
    base, last = found[0]["values"], found[-1]["values"]
    assert base["curve/kl_per_sequence"] == 0.0 and "curve/preference_accuracy" not in base
    names = {"preference_accuracy", "true_reward", "kl_per_sequence", "completion_tokens", "ended_by_eos"}
    assert {f"curve/{n}" for n in names} <= last.keys() and "curve/proxy_reward" not in last
    assert last["curve/kl_per_sequence"] != 0.0
    (why,) = [e.data["message"] for e in told.events if e.kind == "note" and e.data.get("absent")]
    assert why == "curve/proxy_reward: the algorithm learns from given rows and is paid nothing"


def test_the_last_point_is_the_final_evaluation_of_the_same_rows(tmp_path, cache):
    """Four pairs and four prompts in each split: with all of them, a point at the end is an evaluation."""
    rows = ("task.eval_pairs=4", "task.eval_prompts=4", "eval.split=validation")
    judged = ("eval=quick", "eval.evaluators.true_reward.samples=1", "eval.evaluators.true_reward.max_prompts=null")
    options = ("algo=grpo", "adapter=lora", "train.learning_rate=1e-2", *rows, *judged, *AT)
    told = tell(tmp_path, cache, *options, "eval.curve_pairs=999", "eval.curve_prompts=999")
    last = points(told)[-1]["values"]
    assert last["curve/preference_accuracy"] == told.metrics["eval/preference_accuracy"]
    assert last["curve/true_reward"] == told.metrics["eval/true_reward"]
    assert last["curve/completion_tokens"] == told.metrics["eval/completion_tokens"]
    assert last["curve/proxy_reward"] == last["curve/true_reward"], "the verifier pays the true reward"


def test_the_proxy_is_what_training_pays_and_not_the_true_reward(tmp_path, cache):
    told = tell(tmp_path, cache, "algo=grpo", "adapter=lora", "reward=length", "eval=none", *AT)
    for point in points(told):
        values = point["values"]
        assert values["curve/proxy_reward"] != values["curve/true_reward"]
    assert not [e for e in told.events if e.kind == "note" and e.data.get("absent")]


@pytest.mark.parametrize(
    ("options", "present"),
    [
        (("algo=dpo", "algo.share_reference=true"), False),
        (("algo=dpo", "algo.share_reference=false"), True),
        (("algo=sft",), False),
        (("algo=grpo",), True),
    ],
)
def test_under_full_fine_tuning_kl_is_told_where_a_reference_is_resident_and_absent_elsewhere(
    tmp_path, cache, options, present
):
    told = tell(tmp_path, cache, *options, "adapter=full", "train.learning_rate=1e-2", "eval=none", *AT)
    after = points(told)[1:]
    assert all(("curve/kl_per_sequence" in p["values"]) is present for p in after)
    assert all("curve/preference_accuracy" in p["values"] for p in after), "its reference was scored before training"
    absent = {e.data["absent"] for e in told.events if e.kind == "note" and e.data.get("absent")}
    assert ("curve/kl_per_sequence" in absent) is not present


def test_a_step_that_passes_several_shares_has_one_point_and_the_last_step_the_last(tmp_path, cache):
    told = tell(
        tmp_path, cache, "algo=sft", "adapter=lora", "eval=none", *AT, "eval.at=[0.1,0.2,0.4,0.9]", "train.steps=2"
    )
    assert [(p["share"], p["spent"], p["step"]) for p in points(told)] == [(0.0, 0.0, 0), (0.4, 0.5, 1), (1.0, 1.0, 2)]


def test_points_are_on_validation_rows_whatever_split_the_final_figures_are_of(tmp_path, cache, monkeypatch):
    seen = []
    whole = curve.measured
    monkeypatch.setattr(
        curve, "measured", lambda context, *more, **options: seen.append(context) or whole(context, *more, **options)
    )
    tell(tmp_path, cache, "algo=sft", "adapter=lora", "eval=none", *AT)
    assert {c.split for c in seen} == {"validation"}
    assert {(len(c.data.eval_pairs["validation"]), len(c.data.eval_prompts["validation"])) for c in seen} == {(6, 5)}
    assert all("test" not in c.data.eval_pairs for c in seen)


# -- time, divergence, resuming ------------------------------------------------------------------------


def test_seconds_in_points_are_of_evaluation_and_no_budget_counts_them(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("harness.algorithms.budget_meter.time.perf_counter", lambda: now[0])
    meter = Meter(DPO(), Train(batch_size=4, budget=Budget(seconds=10.0)))
    meter.rows = 4
    state: Any = SimpleNamespace(global_step=0)
    meter.on_train_begin(None, state, None)
    now[0] += 3
    with meter.paused():
        now[0] += 50
    now[0] += 2
    assert meter.spent["seconds"] == 5 and meter.share == 0.5
    meter.on_train_end(None, state, None)
    with meter.paused():
        now[0] += 50
    assert meter.spent["seconds"] == 5


def test_every_point_is_in_the_phase_of_evaluation_and_costs_no_training_time(tmp_path, cache, monkeypatch):
    whole = curve.measured
    monkeypatch.setattr(curve, "measured", lambda *given, **options: time.sleep(0.5) or whole(*given, **options))
    told = tell(tmp_path, cache, "algo=dpo", "adapter=lora", "eval=none", *AT)
    changes = [(e.data["previous"], e.data["name"]) for e in told.events if e.kind == "phase"]
    assert changes.count(("train", "evaluate")) == changes.count(("evaluate", "train")) == 5
    assert told.metrics["time/evaluate_s"] > 2.5
    assert told.metrics["budget/seconds"] <= told.metrics["time/train_s"], "the meter stood still in points"
    spent = told.metrics["budget/tokens"] / told.metrics["throughput/train_tokens_per_s"]
    assert spent == pytest.approx(told.metrics["time/train_s"], rel=1e-6)


@pytest.mark.parametrize("algo", ["dpo", "grpo"])
def test_a_trial_diverges_with_the_same_words_with_a_curve_and_without(tmp_path, cache, algo):
    said = []
    for name, options in (("plain", WITHOUT), ("curved", AT)):
        with pytest.raises(Diverged) as ended:
            tell(
                tmp_path / name,
                cache,
                f"algo={algo}",
                "adapter=lora",
                "train.learning_rate=1e30",
                "eval=none",
                *options,
            )
        said.append(str(ended.value))
    assert said[0] == said[1]


def test_a_point_without_finite_figures_is_absent_with_the_reason_and_training_goes_on(tmp_path, cache, monkeypatch):
    whole, calls = curve.measured, []

    def at_times(context: Any, paid: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise Diverged("2 of 12 judged sequences have no finite log-probability")
        return whole(context, paid, **options)

    monkeypatch.setattr(curve, "measured", at_times)
    told = tell(tmp_path, cache, "algo=dpo", "adapter=lora", "eval=none", *AT)
    broken = points(told)[2]
    assert broken["values"] == {"curve/share": 0.5, "curve/spent": 0.5} and "2 of 12" in broken["absent"]["point"]
    assert told.events[-1].kind == "done" and shares(told)[-1] == 1.0


class Killed(BaseException):
    """Stands for a kill: nothing is written of it."""


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["dpo", "grpo"])
def test_a_trial_that_goes_on_from_a_checkpoint_has_no_point_twice(tmp_path, cache, monkeypatch, algo):
    """Killed after the point at three quarters; its last checkpoint is from the half."""
    options = (f"algo={algo}", "adapter=lora", "train.checkpoint_steps=2", *AT)
    whole = tell(tmp_path / "whole", cache, *options)
    plain, folder = plain_config(*options), tmp_path / "killed"

    def attempt(resume: bool) -> None:
        journal = Journal(folder / "worker.jsonl")
        try:
            tell_story(
                Job(folder=str(folder), plain=plain, cache_dir=str(cache), device="cpu", resume_checkpoint=resume),
                journal,
            )
        finally:
            journal.close()

    step_end = curve.Curve.on_step_end

    def dies(own: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 4:
            raise Killed
        step_end(own, args, state, control, **more)

    with monkeypatch.context() as first:
        first.setattr(curve.Curve, "on_step_end", dies)
        with pytest.raises(Killed):
            attempt(resume=False)
    before = [dict(e.data) for e in read(folder / "worker.jsonl") if e.kind == "point"]
    assert [p["share"] for p in before] == [0.0, 0.25, 0.5, 0.75]
    attempt(resume=True)
    told = Told(read(folder / "worker.jsonl"))
    assert any("continues from checkpoint-2" in e.data.get("message", "") for e in told.events if e.kind == "note")
    assert shares(told) == [0.0, 0.25, 0.5, 0.75, 1.0] and points(told)[:4] == before
    if algo == "dpo":  # whose course does not depend on where it was interrupted
        assert points(told) == points(whole) and told.under("eval/") == whole.under("eval/")


def test_points_of_an_earlier_training_are_no_points_of_this_one(tmp_path):
    worker, runner = Journal(tmp_path / "worker.jsonl"), Journal(tmp_path / "runner.jsonl")
    for share, continues in ((0.25, False), (0.5, False), (0.75, True)):
        time.sleep(0.005)  # a millisecond is the same moment
        runner.write("attempt", continues=continues)
        worker.write("point", share=share, step=1, values={})
    runner.close()
    worker.close()
    assert [p["share"] for p in points_on_record(tmp_path, worker.path.name)] == [0.5, 0.75]


# -- how much is done ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "planned", "steps", "done"),
    [
        (Train(batch_size=8, steps=40), 40, 10, 0.25),
        (Train(batch_size=8, epochs=2), 20, 5, 0.25),
        (Train(batch_size=8, budget=Budget(prompts=80)), 10, 5, 0.5),
        (Train(batch_size=8, budget=Budget(tokens=1000)), UNKNOWN_STEPS, 5, 0.3),
    ],
)
def test_what_is_done_is_a_share_of_the_steps_or_of_the_budget_in_tokens(train, planned, steps, done):
    meter = Meter(DPO(), train)
    meter.rows, meter.steps, meter._tokens = 80, steps, 300
    assert meter.done(planned) == pytest.approx(done)


def test_where_rollouts_end_early_what_is_done_are_the_rollouts_gone_by():
    """Four rollouts of 32 prompts, eight steps each if no pass ends early; here each ended after two."""
    train = Train(batch_size=16, budget=Budget(prompts=128))
    meter = Meter(PPO(epochs=4, minibatches=2, stop_at_kl=0.1), train)
    meter.rows, meter.steps, meter._sampled = 1000, 6, lambda: 3 * 32
    assert meter.done(32) == pytest.approx(0.5)
    whole = Meter(GRPO(num_generations=8), replace(train, budget=Budget(prompts=64)))
    whole.rows, whole.steps = 1000, 8
    assert whole.done(32) == pytest.approx(0.25), "no rollout ends early, so the steps tell"


# -- identity ------------------------------------------------------------------------------------------

FEW = ("task.pairs=8", "task.eval_pairs=4", "task.eval_prompts=4")


def test_a_trial_without_a_curve_is_known_as_before_and_one_with_it_keeps_its_folder_and_not_its_train_key(assemble):
    def known(*options: str) -> Any:
        setup = assemble(*FEW, *options)
        return identify(setup, check_data(setup))

    plain, curved = known(), known("eval.at=[0.5]")
    assert not {"at", "curve_pairs", "curve_prompts"} & plain.config["eval"].keys()
    assert not [name for name in plain.why if "curve" in name or name.endswith(".at")]
    assert curved.config["eval"]["at"] == [0.5]
    assert curved.trial_id == plain.trial_id and curved.train_key != plain.train_key
    assert curved.digests["evaluators"] == plain.digests["evaluators"], "the final evaluation is the same"
    assert known("eval.at=[0.5]", "eval.curve_prompts=5").train_key != curved.train_key
    assert known("eval.at=[0.5,0.25]").train_key == known("eval.at=[0.25,0.5]").train_key != curved.train_key
    assert known("eval.seed=3").train_key == plain.train_key
    assert known("eval.at=[0.5]", "eval.seed=3").train_key != curved.train_key, "its points are other samples"


def test_a_finished_trial_without_a_curve_is_trained_again_where_one_is_asked_for(tmp_path, assemble):
    plain, curved = assemble(*FEW), assemble(*FEW, "eval.at=[0.5]")
    before, now = identify(plain, check_data(plain)), identify(curved, check_data(curved))
    (tmp_path / "artifacts" / "model").mkdir(parents=True)
    book = Journal(tmp_path / "runner.jsonl")
    about = {"trial_id": before.trial_id, "config": {}, "digests": {}, "environment": {}, "why": dict(before.why)}
    keys = {"train_key": before.train_key, "eval_key": before.eval_key}
    book.write("attempt", mode="train", continues=False, why="first", trial={**about, **keys}, **keys)
    book.write("outcome", outcome=str(Outcome.FINISHED), reason=None)
    book.close()
    write_json(tmp_path / "trial.json", {**about, **keys})
    assert decide_mode(tmp_path, before, plain, resume=True).mode == "reuse"
    decided = decide_mode(tmp_path, now, curved, resume=True)
    assert (decided.mode, decided.continues) == ("train", False) and "curve.at" in decided.why


def test_a_trial_that_trains_nothing_has_no_curve_and_says_so(assemble):
    setup = assemble(*FEW, "algo=none", "eval.at=[0.5]")
    assert "eval.at" in setup.unused and not setup.eval.at


@pytest.mark.parametrize("wrong", ["[0]", "[1]", "[1.5]", "[-0.1]", "0.5"])
def test_shares_lie_between_start_and_end(assemble, wrong):
    with pytest.raises(UserErrors, match=r"eval\.at"):
        assemble(f"eval.at={wrong}")


# -- books ---------------------------------------------------------------------------------------------


def test_points_are_series_by_step_and_the_last_of_them_is_a_figure_of_the_trial():
    events = [
        Event(1.0, "point", {"share": 0.5, "step": 5, "values": {"curve/true_reward": 0.6, "curve/share": 0.5}}),
        Event(2.0, "point", {"share": 1.0, "step": 9, "values": {"curve/true_reward": 0.4, "curve/share": 1.0}}),
    ]
    assert [(p.name, p.value, p.step) for p in points_of(events, [])][::2] == [
        ("curve/true_reward", 0.6, 5),
        ("curve/true_reward", 0.4, 9),
    ]
    assert metrics_of(events, []) == {"curve/true_reward": 0.4, "curve/share": 1.0}


def test_a_line_that_lacks_what_a_point_needs_is_none(tmp_path):
    journal = Journal(tmp_path / "worker.jsonl")
    journal.write("point", share=0.5, values={})
    journal.write("point", share=0.5, step=3, values={})
    journal.close()
    assert [e.data["step"] for e in read(tmp_path / "worker.jsonl")] == [3]
