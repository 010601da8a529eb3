"""The policy that is kept: the last, or the one at the best point of its curve, chosen by rows that do not judge it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.base.errors import UserErrors
from harness.evaluators.base import Evaluation
from harness.runner.child import tell_story
from harness.store.journal import Journal, read
from harness.trial import checks
from harness.trial.curve import best
from harness.trial.curve import points as curve
from harness.trial.curve.best import Snapshots, best_of
from harness.trial.identify import identify
from harness.trial.job import Job
from tests.inside import Told, plain_config, tell
from tests.toys import random_llama

AT = ("train.steps=4", "eval.at=[0.25,0.5,0.75]", "eval.curve_pairs=6", "eval.curve_prompts=5", "train.keep=best")
FEW = ("task.pairs=8", "task.eval_pairs=4", "task.eval_prompts=4")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let points have these true rewards, the base's first; gives the policy's trained weights at each of them."""

    def by(*rewards: float) -> list[dict[str, torch.Tensor]]:
        left, seen = list(rewards), []

        def measured(context: Any, paid: Any, **_: Any) -> Evaluation:
            weights = {n: p.detach().clone() for n, p in context.model.named_parameters() if p.requires_grad}
            seen.append(weights)
            return Evaluation({"true_reward": left.pop(0)})

        monkeypatch.setattr(curve, "measured", measured)
        return seen

    return by


def kept_weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "artifacts" / "model").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize(
    ("algo", "adapter"),
    [
        ("dpo", "lora"),
        pytest.param("dpo", "full", marks=pytest.mark.slow),
        pytest.param("grpo", "lora", marks=pytest.mark.slow),
        pytest.param("ppo", "lora", marks=pytest.mark.nightly),
        pytest.param("ppo", "full", marks=pytest.mark.nightly),
    ],
)  # fmt: skip
def test_the_policy_at_the_best_point_is_saved_and_judged(tmp_path, cache, scored, algo, adapter):
    options = (f"algo={algo}", f"adapter={adapter}", "train.learning_rate=1e-2", *AT)
    seen = scored(0.99, 0.2, 0.7, 0.7, 0.4)  # the base is no candidate; of equals the first
    told = tell(tmp_path, cache, *options)
    assert told.metrics["curve/kept_share"] == 0.5
    (kept,) = [dict(e.data) for e in told.events if e.kind == "kept"]
    assert kept == {"share": 0.5, "step": 2, "metric": "curve/true_reward", "value": 0.7}
    saved = kept_weights(tmp_path)
    plain = {n.replace(".default", ""): w for n, w in seen[2].items()}
    assert saved.keys() <= plain.keys() and saved
    assert all(torch.equal(weight, plain[name]) for name, weight in saved.items())
    later = {n.replace(".default", ""): w for n, w in seen[4].items()}
    assert not all(torch.equal(weight, later[name]) for name, weight in saved.items()), "training went on"
    loaded = tell(tmp_path, cache, *options, mode="evaluate")
    assert loaded.under("eval/") == pytest.approx(told.under("eval/"), rel=1e-6, abs=1e-6)
    assert not (tmp_path / best.FOLDER).exists()


@pytest.mark.nightly
def test_of_an_adapter_that_changes_its_base_the_best_point_is_kept_too(tmp_path, cache, scored):
    options = ("algo=dpo", "adapter=pissa", "train.learning_rate=1e-2")
    scored(0.0, 0.9, 0.1, 0.1, 0.1)
    peaked = tell(tmp_path / "peaked", cache, *options, *AT)
    scored(0.0, 0.1, 0.1, 0.1, 0.9)
    last = tell(tmp_path / "last", cache, *options, *AT)
    assert (peaked.metrics["curve/kept_share"], last.metrics["curve/kept_share"]) == (0.25, 1.0)
    drift = peaked.metrics["eval/kl_per_sequence"], last.metrics["eval/kl_per_sequence"]
    assert abs(drift[0]) < abs(drift[1]), "a step with a learning rate of zero has not drifted"


def test_where_the_last_point_is_the_best_it_is_the_policy_that_is_kept_anyway(tmp_path, cache, scored):
    options = ("algo=dpo", "adapter=lora", "eval=none", "train.steps=4")
    scored(0.0, 0.1, 0.2, 0.3, 0.4)
    told = tell(tmp_path / "best", cache, *options, *AT)
    plain = tell(tmp_path / "last", cache, *options)
    assert told.metrics["curve/kept_share"] == 1.0 and "curve/kept_share" not in plain.metrics
    first, second = kept_weights(tmp_path / "best"), kept_weights(tmp_path / "last")
    assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


class Killed(BaseException):
    """Stands for a kill."""


def test_a_best_point_of_a_process_that_was_killed_is_kept_by_the_one_that_goes_on(
    tmp_path, cache, scored, monkeypatch
):
    options = ("algo=dpo", "adapter=lora", "train.checkpoint_steps=2", "eval=none", *AT)
    plain = plain_config(*options)

    def attempt(resume: bool) -> None:
        journal = Journal(tmp_path / "worker.jsonl")
        job = Job(folder=str(tmp_path), plain=plain, cache_dir=str(cache), device="cpu", resume_checkpoint=resume)
        try:
            tell_story(job, journal)
        finally:
            journal.close()

    seen = scored(0.0, 0.1, 0.9, 0.3, 0.4)
    step_end = curve.Curve.on_step_end

    def dies(own: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 4:
            raise Killed
        step_end(own, args, state, control, **more)

    with monkeypatch.context() as first:
        first.setattr(curve.Curve, "on_step_end", dies)
        with pytest.raises(Killed):
            attempt(resume=False)
    assert [p.name for p in (tmp_path / best.FOLDER).iterdir()] == ["0.5.safetensors"]
    attempt(resume=True)
    told = Told(read(tmp_path / "worker.jsonl"))
    assert told.metrics["curve/kept_share"] == 0.5
    plain_names = {n.replace(".default", ""): w for n, w in seen[2].items()}
    assert all(torch.equal(weight, plain_names[name]) for name, weight in kept_weights(tmp_path).items())
    assert not (tmp_path / best.FOLDER).exists()


def test_a_new_snapshot_leaves_the_one_on_record_until_the_point_is_journalled(tmp_path):
    policy = random_llama(0)
    policy.lm_head.requires_grad_(False)
    snapshots = Snapshots(tmp_path, policy)
    snapshots.write(0.25)
    weight = next(p for p in policy.parameters() if p.requires_grad)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
    snapshots.write(0.5)
    assert sorted(p.name for p in (tmp_path / best.FOLDER).iterdir()) == ["0.25.safetensors", "0.5.safetensors"]
    snapshots.put_back(0.25)
    assert torch.equal(weight, before)
    snapshots.drop_but(0.5)
    with pytest.raises(RuntimeError, match=r"0\.25 of the budget is gone"):
        snapshots.put_back(0.25)


def test_the_best_point_has_the_highest_figure_and_no_figure_is_no_candidate():
    def point(share: float, **values: float) -> dict[str, Any]:
        return {"share": share, "values": values}

    points = [point(0.0, m=9.0), point(0.2, m=0.5), point(0.4), point(0.6, m=0.7), point(1.0, m=0.7)]
    assert best_of(points, "m") is points[3]
    assert best_of([points[0], points[2]], "m") is None


# -- what is refused -----------------------------------------------------------------------------------


def test_a_best_point_needs_a_curve(assemble):
    with pytest.raises(UserErrors, match=r"train\.keep=best: .* no curve is asked for"):
        assemble("train.keep=best")


def test_a_policy_is_not_judged_by_the_split_that_chose_it(assemble):
    with pytest.raises(UserErrors, match=r"eval\.split=test, or train\.keep=last"):
        assemble("train.keep=best", "eval.at=[0.5]", "eval.split=validation")
    assemble("train.keep=best", "eval.at=[0.5]")
    assemble("eval.at=[0.5]", "eval.split=validation")


@pytest.mark.parametrize(
    ("lost", "words"),
    [("validation", "has none of its own"), ("apart", "are in the test split too"), ("scores", "no rule that scores")],
)
def test_data_must_have_a_validation_split_of_its_own_that_says_which_policy_is_better(
    assemble, monkeypatch, lost, words
):
    setup = assemble(*FEW, "algo=grpo", "train.keep=best", "eval.at=[0.5]", "train.batch_size=8")
    data = checks.check_data(setup)
    pairs, prompts = dict(data.eval_pairs), dict(data.eval_prompts)
    if lost == "validation":
        pairs, prompts = {"test": pairs["test"]}, {"test": prompts["test"]}
    elif lost == "apart":
        prompts["validation"] = [*prompts["validation"], prompts["test"][0]]
    else:
        pairs = {"test": pairs["test"]}
        monkeypatch.setattr(type(setup.task), "has_reward", False)
    monkeypatch.setattr(checks, "load_data", lambda *_: replace(data, eval_pairs=pairs, eval_prompts=prompts))
    with pytest.raises(UserErrors, match=words) as refused:
        checks.check_data(setup)
    assert "train.keep" in str(refused.value) and "train.keep=last" in str(refused.value)


def test_what_is_kept_is_part_of_the_trials_name_and_the_default_is_not(assemble):
    def known(*options: str) -> Any:
        setup = assemble(*FEW, *options)
        return identify(setup, checks.check_data(setup))

    plain, last = known(), known("train.keep=last")
    assert plain == last and "keep" not in plain.config["train"] and "curve" not in plain.config
    one, other = known("train.keep=best", "eval.at=[0.5]"), known("train.keep=best", "eval.at=[0.25]")
    assert len({plain.trial_id, one.trial_id, other.trial_id}) == 3
    assert one.config["train"]["keep"] == "best" and one.config["curve"]["at"] == [0.5]
