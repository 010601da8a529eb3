"""A number that means nothing is absent: weights, logits and losses that are not finite end a trial as `diverged`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.algorithms.budget_meter import Meter
from harness.algorithms.journal_callback import JournalCallback, Sealing
from harness.base.errors import Diverged, UserErrors
from harness.base.records import Event, Outcome
from harness.base.world import World
from harness.config.building import build
from harness.config.train import UNKNOWN_STEPS
from harness.store import checkpoints
from harness.store.result import decide
from tests.conftest import QUICK
from tests.inside import tell
from tests.toys import build_model, conversational_rows, write_jsonl


@pytest.mark.parametrize("algo", ["dpo", "kto", "grpo", "ppo"])
def test_a_learning_rate_that_blows_up_ends_the_trial_with_the_step(tmp_path, cache_dir, algo):
    with pytest.raises(Diverged, match=r"(at|after) step \d+ (of \d+ )?(the|some)") as ended:
        tell(tmp_path / "t", cache_dir, f"algo={algo}", "train.learning_rate=1e30", *QUICK)
    assert "not finite" in str(ended.value) or "is nan" in str(ended.value) or "is inf" in str(ended.value)


def test_a_base_whose_weights_are_no_numbers_is_not_given_an_accuracy(tmp_path):
    folder = build_model(tmp_path / "model", "llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    data = write_jsonl(tmp_path / "prefs.jsonl", conversational_rows(40))
    with pytest.raises(Diverged, match="under the model before training"):
        tell(tmp_path / "t", tmp_path / "cache", "algo=dpo", "model=hf", f"model.path={folder}", "task=preferences",
             f"task.path={data}", "train.steps=2", sizes=())  # fmt: skip


def callback() -> JournalCallback:
    journal: Any = SimpleNamespace(write=lambda *_, **__: None)
    meter: Any = SimpleNamespace(spent={}, expected=lambda *_: 9)
    return JournalCallback(journal, meter, 0.5)


def noting(*, falls: bool = False) -> tuple[JournalCallback, list[str]]:
    """A callback, and the notes that it will have written."""
    said: list[str] = []
    one = callback()
    one.falls, one.journal.write = falls, lambda kind, **e: said.append(e["message"]) if kind == "note" else None
    return one, said


def test_a_step_ends_with_a_checkpoint_while_one_is_asked_for(tmp_path):
    one = callback()
    one.wish = tmp_path / "wanted"
    state, control = SimpleNamespace(global_step=3, max_steps=9), SimpleNamespace(should_save=False)
    one.on_step_end(None, state, control)
    assert not control.should_save
    one.wish.touch()
    one.on_step_end(None, state, control)
    assert control.should_save and one.wish.exists()
    (tmp_path / "checkpoint-3").mkdir()
    Sealing(World(), one.wish).on_save(SimpleNamespace(output_dir=tmp_path), state, control)
    assert not one.wish.exists() and checkpoints.newest(tmp_path) == tmp_path / "checkpoint-3"


def test_a_trial_killed_while_its_budget_is_written_keeps_the_checkpoint_before(tmp_path, cache_dir, monkeypatch):
    write = Meter.on_save

    def killed(self: Meter, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step == 4:
            raise KeyboardInterrupt
        write(self, args, state, control, **options)

    monkeypatch.setattr(Meter, "on_save", killed)
    with pytest.raises(KeyboardInterrupt):
        tell(tmp_path / "t", cache_dir, "algo=dpo", *QUICK, "train.steps=6", "train.checkpoint_steps=2")
    left = checkpoints.newest(tmp_path / "t" / "checkpoints")
    assert left is not None and left.name == "checkpoint-2" and (left / "budget.json").exists()


def test_progress_is_told_within_a_step_of_many_micro_batches(monkeypatch):
    told: list[tuple[float, int | None]] = []
    journal: Any = SimpleNamespace(write=lambda kind, **e: told.append((e["step"], e["total"])))
    meter: Any = SimpleNamespace(spent={}, expected=lambda step, planned: planned)
    one, now = JournalCallback(journal, meter), iter(range(0, 1000, 3))
    monkeypatch.setattr("harness.algorithms.journal_callback.time.monotonic", lambda: 100.0 + next(now))
    arguments = SimpleNamespace(gradient_accumulation_steps=4)
    for step in range(2):
        state = SimpleNamespace(global_step=step, max_steps=9)
        for _ in range(3):
            one.on_substep_end(arguments, state, None)
        one.on_step_end(arguments, SimpleNamespace(global_step=step + 1, max_steps=9), None)
    assert told == [(0.25, 9), (0.75, 9), (1, 9), (1.5, 9), (2, 9)]  # within a step every five seconds
    told.clear()
    one.on_substep_end(arguments, SimpleNamespace(global_step=0, max_steps=UNKNOWN_STEPS), None)
    one.on_substep_end(arguments, SimpleNamespace(global_step=0, max_steps=UNKNOWN_STEPS), None)
    assert told[-1][1] is None


@pytest.mark.parametrize("logs", [{"loss": float("nan")}, {"loss": 0.1, "grad_norm": float("inf")}])
def test_a_logged_loss_or_gradient_that_is_no_number_names_step_and_rate(logs):
    with pytest.raises(Diverged, match=r"at step 7 .* \(train.learning_rate is 0.5\)"):
        callback().on_log(None, SimpleNamespace(global_step=7), None, logs=logs)
    callback().on_log(None, SimpleNamespace(global_step=7), None, logs={"loss": 0.1, "rewards/margins": float("nan")})


def test_a_bad_step_ends_training_though_it_would_not_be_logged():
    one, losses = callback(), iter([0.5, 0.4, 0.3, float("nan")])
    trainer = SimpleNamespace(training_step=lambda *_: torch.tensor(next(losses)))
    one.attach(trainer)
    control = SimpleNamespace(should_save=False)
    assert trainer.training_step("model", {}) == 0.5 and trainer.training_step("model", {}) == pytest.approx(0.4)
    one.on_step_end(None, SimpleNamespace(global_step=1, max_steps=9), control)
    trainer.training_step("model", {}), trainer.training_step("model", {})
    with pytest.raises(Diverged, match=r"at step 2 the loss is nan"):
        one.on_step_end(None, SimpleNamespace(global_step=2, max_steps=9), control)


def test_the_weights_after_the_last_step_are_looked_at():
    model = torch.nn.Linear(2, 1)
    callback().on_train_end(None, SimpleNamespace(global_step=7), None, model=model)
    model.weight.data[0, 1] = float("inf")
    with pytest.raises(Diverged, match="the weight weight is not finite"):
        callback().on_train_end(None, SimpleNamespace(global_step=7), None, model=model)
    model.weight.requires_grad_(False)
    callback().on_train_end(None, SimpleNamespace(global_step=7), None, model=model)


@pytest.mark.parametrize(
    ("falls", "losses", "told"),
    [
        (True, [0.69, 3.0, 24.6], ["the loss began at 0.69 and ended at 24.6"]),
        (True, [0.69, 24.6, 0.7], []),  # where it ends is what counts
        (True, [-0.1, 4.0], []),  # weighted sums may be below zero, and then twice says nothing
        (False, [0.01, 5.0], []),  # PPO's and GRPO's losses say nothing about quality
    ],
)
def test_a_loss_that_ends_far_above_its_beginning_is_told(falls, losses, told):
    one, said = noting(falls=falls)
    for step, loss in enumerate(losses):
        one.on_log(None, SimpleNamespace(global_step=step), None, logs={"loss": loss})
    one.on_train_end(None, SimpleNamespace(global_step=9), None)
    assert len(said) == len(told) and all(part in text for part, text in zip(told, said, strict=True))


@pytest.mark.parametrize(
    ("spreads", "told"), [([0.0] * 30, 1), ([1.2e-7] * 30, 1), ([0.0] * 9, 0), ([0.0, 0.1, *[0.0] * 30], 0)]
)
def test_a_reward_that_pays_all_completions_alike_is_told_once(spreads, told):
    one, said = noting()
    for step, spread in enumerate(spreads):
        one.on_log(None, SimpleNamespace(global_step=step), None, logs={"reward": 0.25, "reward_std": spread})
    one.on_train_end(None, SimpleNamespace(global_step=99), None)
    assert len(said) == told and all("paid alike (0.25 now)" in text for text in said)


def test_a_policy_that_has_learned_it_all_is_not_told_so_when_it_goes_on():
    one, said = noting()
    one.on_train_begin(None, SimpleNamespace(global_step=50), None)
    for step in range(50, 90):
        one.on_log(None, SimpleNamespace(global_step=step), None, logs={"reward": 1.0, "reward_std": 0.0})
    assert not said


def test_it_is_an_outcome_of_its_own_with_the_words_as_its_reason():
    event = Event(0.0, "error", {"error": "Diverged", "message": "at step 7 the loss is nan", "oom": False})
    assert decide(1, [event]) == (Outcome.DIVERGED, "at step 7 the loss is nan")
    assert not Outcome.DIVERGED.succeeded


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_knob_that_is_no_number_is_refused(value):
    with pytest.raises(UserErrors, match="must be a finite number"):
        build({"_target_": "harness.config.train.Train", "learning_rate": value}, path="train")


def test_no_figure_of_a_diverged_trial_is_kept_that_is_not_a_number(tmp_path: Path, cache_dir: Path):
    from harness.store import journal
    from harness.store.result import metrics_of

    with pytest.raises(Diverged):
        tell(tmp_path / "t", cache_dir, "algo=dpo", "train.learning_rate=1e30", *QUICK)
    found = metrics_of(journal.read(tmp_path / "t" / "worker.jsonl"), [])
    assert "train/loss" not in found and not any(name.startswith("eval/") for name in found)
