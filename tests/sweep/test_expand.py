"""A sweep before it runs: expanded, checked, duplicates named."""

from __future__ import annotations

import json
import shlex
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from harness.base.errors import UserError, UserErrors
from harness.cli.launch import job, resume_command
from harness.cli.main import main
from harness.store.mlflow_store import SweepRun
from harness.sweep.expand import plan_sweep, write_manifest

FEW = ("sweep=test", "task.pairs=20", "task.eval_pairs=4", "task.eval_prompts=4")


def plan(*overrides, multirun=True, **options):
    return plan_sweep([*FEW, *overrides], multirun=multirun, **options)


def names(sweep):
    """Trial ids without the digest at their end, in launch order."""
    return [p.trial.trial_id.rsplit("-", 1)[0] for p in sweep.points]


def errors_of(*overrides, **options):
    with pytest.raises(UserErrors) as caught:
        plan(*overrides, **options)
    return [str(e) for e in caught.value.errors]


def test_a_cross_product_is_expanded_in_hydras_order():
    sweep = plan("algo=dpo,ipo", "beta=0.1,0.5", "seed=0")
    assert names(sweep) == [
        "dpo-lora-b0.1-r16-s0",
        "dpo-lora-b0.5-r16-s0",
        "ipo-lora-b0.1-r16-s0",
        "ipo-lora-b0.5-r16-s0",
    ]
    assert sweep.expanded and sweep.own_process
    assert (sweep.duplicates, sweep.invalid) == ((), ())


def test_ranges_and_globs_expand_too():
    assert names(plan("seed=range(0,3)")) == [f"dpo-lora-b0.1-r16-s{n}" for n in range(3)]
    assert names(plan("algo=glob([dp*,ip*])")) == ["dpo-lora-b0.1-r16-s0", "ipo-lora-b0.1-r16-s0"]


def test_without_commas_a_sweep_is_one_trial():
    assert names(plan("algo=kto")) == ["kto-lora-b0.1-r16-s0"]
    assert names(plan("algo=kto", multirun=False)) == ["kto-lora-b0.1-r16-s0"]


def test_a_list_in_brackets_is_one_value_and_no_sweep():
    sweep = plan("adapter.targets=[q_proj,v_proj]")
    assert [p.setup.adapter.targets for p in sweep.points] == [("q_proj", "v_proj")]


def test_combinations_that_are_the_same_trial_are_named_with_their_twin():
    sweep = plan("adapter=full,lora", "rank=8,16")
    assert names(sweep) == ["dpo-full-b0.1-s0", "dpo-lora-b0.1-r8-s0", "dpo-lora-b0.1-r16-s0"]
    ((overrides, twin),) = sweep.duplicates
    assert {"adapter=full", "rank=16"} <= set(overrides)
    assert twin == sweep.points[0].trial.trial_id


def test_every_point_knows_the_overrides_that_make_it():
    points = plan("algo=dpo,ipo").points
    assert ["algo=dpo" in p.overrides for p in points] == [True, False]
    assert points[0].trial.sweep == "test"


def test_the_folder_is_named_after_the_sweep(tmp_path):
    assert plan(f"outputs={tmp_path}").folder == tmp_path / "test"


# -- errors --------------------------------------------------------------------------------------------


def test_all_errors_of_a_sweep_are_reported_together():
    messages = errors_of("algo=dpo,grpo,kto", "train.batch_size=12", "train.micro_batch_size=1", "rank=0,8")
    assert [m.split(":")[0] for m in messages] == ["adapter.rank=0", "train.batch_size=12", "train.micro_batch_size=1"]


def test_an_error_that_all_trials_share_is_said_once():
    assert len(errors_of("algo=dpo,ipo", "seed=-1")) == 1


def test_an_unknown_option_among_good_ones_is_reported():
    (message,) = errors_of("algo=dpo,nope")
    assert "algo=nope" in message


def test_a_group_option_and_a_value_that_are_wrong_in_different_trials_are_reported_together():
    nope, beta = errors_of("algo=nope,dpo", "beta=0")
    assert "algo=nope" in nope
    assert beta.startswith("algo.beta=0")


def test_runner_and_tracking_are_checked_too():
    assert errors_of("runner.timeout_s=-1")[0].startswith("runner.timeout_s=-1")
    assert errors_of("tracking.required=perhaps")[0].startswith("tracking.required=perhaps")


def test_errors_of_runner_tracking_and_trials_are_reported_together():
    keys = {m.split("=")[0] for m in errors_of("runner.timeout_s=-1", "tracking.required=perhaps", "algo.beta=x")}
    assert keys == {"runner.timeout_s", "tracking.required", "algo.beta"}


def test_the_valid_rest_of_a_sweep_may_run():
    sweep = plan("algo=dpo,grpo", "train.batch_size=12", "runner.skip_invalid=true")
    assert names(sweep) == ["dpo-lora-b0.1-r16-s0"]
    ((overrides, errors),) = sweep.invalid
    assert "algo=grpo" in overrides
    assert "train.batch_size=16" in str(errors)


def test_a_sweep_without_a_valid_trial_is_refused_all_the_same():
    (message,) = errors_of("algo=grpo", "train.batch_size=12", "runner.skip_invalid=true")
    assert message.startswith("train.batch_size=12")


def test_grpo_without_a_reward_is_refused_with_the_fix_and_dpo_runs_if_asked(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {
            "prompt": [{"role": "user", "content": f"q{i}"}],
            "chosen": [{"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "assistant", "content": "no"}],
        }
        for i in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["sweep=test", "algo=dpo,grpo", "task=preferences", f"task.path={path}", "model=shape/llama-10m"]
    with pytest.raises(UserErrors, match=r"no reward[\s\S]*runner.skip_invalid=true"):
        plan_sweep(line, multirun=True)
    sweep = plan_sweep([*line, "runner.skip_invalid=true"], multirun=True)
    assert [p.setup.algo.name for p in sweep.points] == ["dpo"]


def test_commas_without_m_are_a_user_error_that_mentions_it():
    with pytest.raises(UserError) as caught:
        plan("algo=dpo,grpo", multirun=False)
    assert caught.value.errors[0].fix.startswith("add -m")


def test_bad_override_grammar_is_a_user_error():
    for multirun in (False, True):
        with pytest.raises(UserError, match="no viable alternative"):
            plan("beta=[", multirun=multirun)


def test_an_unknown_launcher_is_a_user_error_that_lists_the_known_ones():
    with pytest.raises(UserError, match="basic"):
        plan("hydra/launcher=nope")


def test_a_sweep_over_the_name_of_the_sweep_is_refused():
    with pytest.raises(UserError, match="sweep"):
        plan_sweep([*FEW[1:], "sweep=a,b"], multirun=True)


@pytest.mark.parametrize("arguments", [["algo=nope"], ["-m", "algo=dpo,nope"], ["algo=dpo,grpo"], ["beta=["]])
def test_the_command_line_ends_with_2_and_no_traceback(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, *FEW]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert "Traceback" not in shown.err + shown.out
    assert list(tmp_path.iterdir()) == []


# -- the user's own folder -----------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """A ``--config-dir`` with an algorithm and a study in it."""
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo" / "mine.yaml").write_text(
        "_target_: harness.algorithms.dpo.IPO\nbeta: 0.7\n"
        "recipes: {tiny: {lora: {learning_rate: 1.0e-3, steps: 5, batch_size: 8}}}\n"
    )
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "study.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /adapter: full\n"
        "train: {steps: 7}\n"
        "hydra: {sweeper: {params: {algo: 'dpo,ipo'}}}\n"
    )
    return [str(tmp_path)]


@pytest.mark.parametrize("multirun", [False, True])
def test_an_algorithm_in_a_folder_of_ones_own_is_found(own, multirun):
    (point,) = plan("algo=mine", multirun=multirun, config_dirs=own).points
    assert point.trial.trial_id.startswith("ipo-lora-b0.7-r16-s0-")
    assert (point.setup.train.learning_rate, point.setup.train.steps) == (1e-3, 5)


def test_it_can_be_swept_beside_the_algorithms_of_the_house(own):
    assert names(plan("algo=dpo,mine", config_dirs=own)) == ["dpo-lora-b0.1-r16-s0", "ipo-lora-b0.7-r16-s0"]


def test_a_study_chooses_groups_values_and_what_is_swept(own):
    sweep = plan("experiment=study", config_dirs=own)
    assert names(sweep) == ["dpo-full-b0.1-s0", "ipo-full-b0.1-s0"]
    assert {p.setup.train.steps for p in sweep.points} == {7}


def test_the_command_line_wins_over_a_study(own):
    sweep = plan("experiment=study", "adapter=lora", "algo=kto", "train.steps=3", config_dirs=own)
    assert names(sweep) == ["kto-lora-b0.1-r16-s0"]
    assert sweep.points[0].setup.train.steps == 3


# -- the manifest --------------------------------------------------------------------------------------


def test_the_manifest_holds_what_jobs_in_other_processes_need(tmp_path):
    sweep = plan("algo=dpo,grpo", "train.batch_size=12", "runner.skip_invalid=true", f"outputs={tmp_path}")
    write_manifest(sweep, SweepRun("sqlite:///x.db", "1", "parent"))
    manifest = json.loads((tmp_path / "test" / "sweep.json").read_text())
    assert manifest["sweep"] == "test"
    assert manifest["trials"] == [p.trial.trial_id for p in sweep.points]
    assert "algo=grpo" in manifest["invalid"][0]["overrides"]
    assert SweepRun(**manifest["tracking"]) == SweepRun("sqlite:///x.db", "1", "parent")
    write_manifest(sweep, None)
    assert json.loads((tmp_path / "test" / "sweep.json").read_text())["tracking"] is None


def test_the_line_that_goes_on_with_an_interrupted_sweep_is_the_users_with_its_name():
    options = SimpleNamespace(multirun=True, config_dir="my conf", config_path=None, config_name=None)
    said = resume_command(options, ["algo=dpo,ipo", "task.prompt_end=a b", "resume=false", "sweep=monday"])
    assert shlex.split(said) == [
        "python", "-m", "harness", "-m", "--config-dir", "my conf", "algo=dpo,ipo", "task.prompt_end=a b",
        "sweep=monday",
    ]  # fmt: skip


def test_a_trial_that_the_sweep_was_not_planned_with_is_not_run(tmp_path, monkeypatch, capsys):
    """Someone edits a YAML for the next study while this one runs: Hydra composes each job when its turn comes."""
    monkeypatch.chdir(tmp_path)
    sweep = plan("algo=dpo")
    write_manifest(sweep, None)
    changed = OmegaConf.create({**sweep.points[0].setup.plain, "beta": 0.7})
    job(changed)
    said = capsys.readouterr()
    assert "dpo-lora-b0.7-r16-s0" in said.err + said.out and "none of the trials that test was planned with" in (
        said.err + said.out
    )
    assert [p.name for p in sweep.folder.iterdir()] == ["sweep.json"]
