"""From a configuration to a trial: knobs, recipes, combinations and keys."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import pytest
import yaml

from harness.base.errors import UserErrors
from harness.config import closure, devices, identity
from harness.config.compose import compose as compose_now
from harness.config.compose import conf_dir, hydra_config
from harness.config.train import fill_from_preset
from harness.evaluators.lm_eval import LmEval
from harness.trial.assemble import assemble as assemble_now
from harness.trial.checks import check_data
from harness.trial.identify import identify

FEW = ("task.pairs=20", "task.eval_pairs=4", "task.eval_prompts=4")


@functools.cache
def composed(*overrides):
    """The configuration as text: composing is what takes time here."""
    with hydra_config():
        return json.dumps(compose_now(["sweep=test", *overrides]))


@pytest.fixture
def assemble():
    """``assemble("algo=kto", ...)`` -> a built and checked Setup."""
    return lambda *overrides: assemble_now(json.loads(composed(*overrides)))


@pytest.fixture
def trial(assemble):
    """``trial("algo=kto", ...)`` -> the identified Trial on a handful of rows."""

    def call(*overrides):
        setup = assemble(*FEW, *overrides)
        return identify(setup, check_data(setup))

    return call


@pytest.fixture
def complaints(assemble):
    """``complaints("rank=0", ...)`` -> the messages with which a trial is refused."""

    def call(*overrides):
        with pytest.raises(UserErrors) as caught:
            check_data(assemble(*FEW, *overrides))
        return [str(e) for e in caught.value.errors]

    return call


def preferences_file(folder, marker="yes"):
    path = folder / "rows.jsonl"
    rows = [{"prompt": f"q{i}", "chosen": f"{marker} {i}", "rejected": f"no {i}"} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (f"task.path={path}", "task=preferences", "model=shape/llama-10m")


# -- knobs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["ppo", "grpo"])
def test_online_algorithms_train_without_dropout_and_say_so(assemble, algo):
    plain, dropped = (assemble(f"algo={algo}", f"adapter.dropout={p}") for p in (0.0, 0.2))
    assert dropped.adapter == plain.adapter and "adapter.dropout" in dropped.unused
    assert identify(dropped, check_data(dropped)).trial_id == identify(plain, check_data(plain)).trial_id


def test_dropout_splits_trials_of_an_offline_algorithm(assemble):
    plain, dropped = (assemble("algo=kto", f"adapter.dropout={p}") for p in (0.0, 0.2))
    assert "adapter.dropout" not in dropped.unused
    assert identify(dropped, check_data(dropped)).trial_id != identify(plain, check_data(plain)).trial_id


def test_beta_and_rank_reach_the_algorithm_and_the_adapter(assemble):
    setup = assemble("beta=0.3", "rank=4")
    assert (setup.algo.beta, setup.adapter.rank) == (0.3, 4)
    assert (setup.beta, setup.rank) == (0.3, 4)


@pytest.mark.parametrize(
    ("algo", "adapter", "beta", "rank"),
    [("dpo", "lora", 0.1, 16), ("grpo", "qlora", 0.04, 16), ("kto", "full", 0.1, None), ("sft", "lora", None, 16)],
)
def test_without_them_the_own_defaults_hold(assemble, algo, adapter, beta, rank):
    setup = assemble(f"algo={algo}", f"adapter={adapter}")
    assert (setup.beta, setup.rank) == (beta, rank)


def test_a_knob_may_be_set_in_either_place_or_alike_in_both(trial):
    one, two = trial("beta=0.3", "rank=4"), trial("algo.beta=0.3", "adapter.rank=4")
    both = trial("beta=0.3", "algo.beta=0.3", "rank=4", "adapter.rank=4")
    assert one == two == both


def test_a_knob_set_to_two_values_is_an_error_for_each_knob(complaints):
    beta, rank = complaints("beta=0.3", "algo.beta=0.5", "rank=4", "adapter.rank=8")
    assert beta.startswith("algo.beta=0.5 against beta=0.3: ") and "set beta alone" in beta
    assert rank.startswith("adapter.rank=8 against rank=4: ") and "set rank alone" in rank


def test_rank_does_not_split_trials_of_full_fine_tuning(trial, assemble):
    ids = {trial(f"adapter={a}", f"rank={r}").trial_id for a in ("full", "lora") for r in (8, 16)}
    assert len(ids) == 3
    assert "rank" in assemble("adapter=full", "rank=8").unused
    assert "rank" not in assemble("adapter=lora", "rank=8").unused


def test_the_reward_is_no_part_of_an_offline_trial(trial, assemble):
    assert assemble("algo=dpo").reward is None
    assert "reward" in assemble("algo=dpo").unused
    assert "reward" not in trial("algo=dpo").config
    assert trial("algo=dpo") == trial("algo=dpo", "~reward")


def test_the_reward_of_an_online_trial_knows_its_task(assemble, trial):
    setup = assemble("algo=grpo", *FEW)
    assert setup.reward.task == setup.task
    assert trial("algo=grpo").config["reward"] == {"name": "verifier"}


def test_what_only_training_uses_does_not_split_trials_that_do_not_train(trial):
    ids = {
        trial("algo=none", *o).trial_id
        for o in ((), ("seed=3",), ("beta=0.5",), ("rank=4",), ("adapter=full",), ("train.steps=7",))
    }
    assert len(ids) == 1


def test_quantization_splits_trials_that_do_not_train_since_it_changes_what_is_evaluated(trial):
    ids = {
        trial("algo=none", f"adapter={a}", *o).trial_id
        for a, o in (("lora", ()), ("qlora", ()), ("qlora", ("adapter.quant_type=fp4",)))
    }
    assert len(ids) == 3


# -- ids and keys --------------------------------------------------------------------------------------


def test_ids_are_readable_and_unique(trial):
    ids = [
        trial(*o).trial_id
        for o in ((), ("algo=ipo",), ("adapter=full",), ("beta=0.5",), ("rank=8",), ("seed=1",), ("train.steps=3",))
    ]
    assert [i.rsplit("-", 1)[0] for i in ids] == [
        "dpo-lora-b0.1-r16-s0",
        "ipo-lora-b0.1-r16-s0",
        "dpo-full-b0.1-s0",
        "dpo-lora-b0.5-r16-s0",
        "dpo-lora-b0.1-r8-s0",
        "dpo-lora-b0.1-r16-s1",
        "dpo-lora-b0.1-r16-s0",
    ]
    assert len(set(ids)) == 7


def test_ids_and_keys_are_the_same_in_another_process(trial):
    script = (
        "from harness.config.compose import *; from harness.trial.assemble import *\n"
        "from harness.trial.checks import check_data; from harness.trial.identify import identify\n"
        f"with hydra_config(): setup = assemble(compose(['sweep=test', *{FEW!r}]))\n"
        "trial = identify(setup, check_data(setup)); print(trial.trial_id, trial.train_key, trial.eval_key)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    here = trial()
    assert done.stdout.split() == [here.trial_id, here.train_key, here.eval_key]


@pytest.mark.parametrize(
    "override",
    ["beta=0.5", "rank=8", "seed=1", "train.learning_rate=1e-4", "train.steps=3", "train.save=full", "task.seed=1",
     "model.steps=3", "adapter.dropout=0.1", "adapter=full", "algo=ipo"],
)  # fmt: skip
def test_what_changes_training_changes_the_train_key(trial, override):
    assert trial(override).train_key != trial().train_key


@pytest.mark.parametrize("override", ["train.logging_steps=3", "train.checkpoint_steps=5"])
def test_how_often_a_trial_reports_changes_neither_id_nor_keys(trial, override):
    before, after = trial(), trial(override)
    assert (after.trial_id, after.train_key, after.eval_key) == (before.trial_id, before.train_key, before.eval_key)


@pytest.mark.parametrize(
    "override",
    ["eval.evaluators.true_reward.samples=2", "eval.evaluators.lm_eval=null", "eval.seed=1", "eval.split=validation",
     "eval=none"],
)  # fmt: skip
def test_what_changes_evaluation_changes_the_eval_key_alone(trial, override):
    before, after = trial(), trial(override)
    assert after.eval_key != before.eval_key
    assert (after.trial_id, after.train_key) == (before.trial_id, before.train_key)


def test_a_retrained_policy_is_evaluated_anew(trial):
    assert trial("seed=1").eval_key != trial().eval_key


def test_changed_rows_under_the_same_path_change_the_key_and_not_the_id(assemble, tmp_path):
    def identified(marker):
        setup = assemble(*preferences_file(tmp_path, marker))
        return identify(setup, check_data(setup))

    before, after = identified("yes"), identified("sure")
    assert before.trial_id == after.trial_id
    assert before.train_key != after.train_key
    assert identity.what_changed(before.why, after.why) == "data"


def with_changed(monkeypatch, module):
    """Let a module of the house read as if a line had been added to it."""
    path, read = closure.file_of(module), closure.Sources.read
    monkeypatch.setattr(closure.Sources, "read", lambda own, p: read(own, p) + ("CHANGED = 1\n" if p == path else ""))


def test_changed_training_code_changes_the_train_key_and_is_named(trial, monkeypatch):
    before = trial()
    with_changed(monkeypatch, "harness.trial.assemble")
    after = trial()
    assert before.train_key != after.train_key
    assert identity.what_changed(before.why, after.why) == "training code"


def test_changed_evaluation_code_changes_the_eval_key_alone(trial, monkeypatch):
    before = trial()
    with_changed(monkeypatch, "harness.evaluators.scoring")
    after = trial()
    assert (before.train_key, before.eval_key == after.eval_key) == (after.train_key, False)
    assert identity.what_changed(before.why, after.why) == "evaluation: evaluation code"


def test_another_algorithms_file_changes_no_key_of_this_trial(trial, monkeypatch):
    dpo, ppo = trial(), trial("algo=ppo", "train.batch_size=8")
    with_changed(monkeypatch, "harness.algorithms.ppo.mathematics")
    assert (trial().train_key, trial().eval_key) == (dpo.train_key, dpo.eval_key)
    assert trial("algo=ppo", "train.batch_size=8").train_key != ppo.train_key


def test_another_device_changes_the_train_key_and_is_named_and_the_id_stays(trial, monkeypatch):
    before = trial()
    assert trial("runner.device=cpu").train_key == before.train_key  # auto comes to that here
    after = trial("runner.device=cuda")
    assert before.train_key != after.train_key and before.trial_id == after.trial_id
    assert identity.what_changed(before.why, after.why) == "device"
    assert after.digests == before.digests  # a gate compares what ran elsewhere


@pytest.mark.parametrize(
    ("node", "build", "device"), [(True, "2.13.0", "cuda"), (True, "2.13.0+cpu", "cpu"), (False, "2.13.0", "cpu")]
)
def test_the_device_is_found_without_torch(monkeypatch, node, build, device):
    monkeypatch.setattr(devices, "gpu_visible", lambda: node)
    monkeypatch.setattr(identity, "version_of", lambda name: build)
    assert devices.compute_device("auto") == device
    assert devices.compute_device("cpu") == "cpu"


def test_another_version_of_a_computing_library_changes_the_train_key(trial, monkeypatch):
    before = trial("model=shape/llama-10m")
    versions = {**identity.library_versions(), "torch": "99.0"}
    monkeypatch.setattr(identity, "library_versions", lambda: versions)
    after = trial("model=shape/llama-10m")
    assert before.train_key != after.train_key
    assert identity.what_changed(before.why, after.why) == "version of torch"


def test_the_build_of_a_library_is_recorded_and_keys_nothing(monkeypatch):
    versions = {"torch": "2.13.0+cpu"}
    monkeypatch.setattr(identity, "version_of", lambda name: versions.get(name, "1.0"))
    identity.library_versions.cache_clear()
    try:
        assert identity.library_versions()["torch"] == "2.13.0"
        assert identity.environment()["versions"]["torch"] == "2.13.0+cpu"
    finally:
        identity.library_versions.cache_clear()


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("tracking.uri=postgresql://u:secret@host/db a=b", "tracking.uri=postgresql://…@host/db a=b"),
        ("tracking.uri=sqlite:///x.db", "tracking.uri=sqlite:///x.db"),
    ],
)
def test_a_recorded_command_holds_no_password(typed, shown):
    assert identity.without_password(typed) == shown


def test_the_recorded_configuration_is_the_effective_one(trial):
    config = trial("beta=0.3", "adapter=full", "rank=4").config
    assert (config["beta"], config["rank"], config["seed"]) == (0.3, None, 0)
    assert config["algo"] == {"name": "dpo", "beta": 0.3, "share_reference": None}
    assert config["adapter"] == {"name": "full"}


# -- recipes -------------------------------------------------------------------------------------------

TABLE = {
    "tiny": {"lora": {"learning_rate": 2e-3, "steps": 150, "batch_size": 32}},
    "standard": {"lora": {"learning_rate": 5e-6, "epochs": 1, "batch_size": 64, "micro_batch_size": 4}},
}


def test_the_recipe_fills_what_is_null():
    filled = fill_from_preset({"preset": "standard", "learning_rate": None, "weight_decay": 0.1}, TABLE, "lora")
    assert filled == {"preset": "standard", "weight_decay": 0.1, **TABLE["standard"]["lora"]}


def test_what_the_user_sets_wins_over_the_recipe():
    filled = fill_from_preset({"preset": "tiny", "learning_rate": 1.0, "batch_size": 2}, TABLE, "lora")
    assert (filled["learning_rate"], filled["batch_size"], filled["steps"]) == (1.0, 2, 150)


def test_a_length_in_steps_silences_the_epochs_of_the_recipe_and_the_other_way_round():
    in_steps = fill_from_preset({"preset": "standard", "steps": 9, "epochs": None}, TABLE, "lora")
    in_epochs = fill_from_preset({"preset": "tiny", "steps": None, "epochs": 2}, TABLE, "lora")
    assert (in_steps["steps"], in_steps["epochs"]) == (9, None)
    assert (in_epochs["steps"], in_epochs["epochs"]) == (None, 2)


def test_a_micro_batch_that_nobody_names_is_the_whole_batch():
    assert fill_from_preset({"preset": "tiny"}, TABLE, "lora")["micro_batch_size"] == 32


def test_the_model_chooses_the_recipe_so_that_toy_rates_never_reach_a_real_one(assemble):
    tiny, real = assemble("model=tiny").train, assemble("model=shape/llama-10m").train
    assert (tiny.preset, tiny.learning_rate, tiny.steps, tiny.epochs, tiny.max_length) == ("tiny", 1e-3, 150, None, 96)
    assert (real.preset, real.learning_rate, real.steps, real.epochs, real.max_length) == (
        "standard", 5e-6, None, 1.0, 1024,
    )  # fmt: skip


@pytest.mark.parametrize("algo", ["dpo", "ipo", "kto", "grpo", "sft"])
@pytest.mark.parametrize("adapter", ["full", "lora", "qlora"])
def test_every_rate_of_a_standard_preset_is_far_below_its_toy_one(algo, adapter):
    presets = yaml.safe_load((conf_dir() / "algo" / f"{algo}.yaml").read_text())["presets"]
    toy, real = (presets[name][adapter]["learning_rate"] for name in ("tiny", "standard"))
    assert toy >= 10 * real > 0


def test_a_preset_that_the_algorithm_lacks_is_one_error_with_those_that_it_has(complaints):
    (message,) = complaints("train.preset=mine")
    assert message.startswith("train.preset=mine: ") and "(standard, tiny)" in message
    assert "train.preset=standard, or write algo.presets.mine" in message
    given = ("train.learning_rate=1e-3", "train.batch_size=8")
    assert [m.split(":")[0] for m in complaints("train.preset=mine", *given)] == ["train.steps"]


# -- impossible combinations ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "key", "fix"),
    [
        (("algo=kto", "train.micro_batch_size=1"), "train.micro_batch_size=1", "train.micro_batch_size=2"),
        (("algo=kto", "train.batch_size=1"), "train.micro_batch_size=1", "train.micro_batch_size=2"),
        (("rank=0",), "adapter.rank=0", "adapter.rank"),
        (("train.batch_size=10", "train.micro_batch_size=4"), "train.micro_batch_size=4", "train.micro_batch_size=10"),
        (("algo=grpo", "train.batch_size=12"), "train.batch_size=12", "train.batch_size=16"),
        (("algo=ppo", "task.pairs=8"), "train.batch_size=64", "train.batch_size=8"),
        (("algo=ppo", "task.pairs=8", "algo.minibatches=2"), "train.batch_size=64", "train.batch_size=4"),
        (("algo=ppo", "task.pairs=8", "algo.minibatches=9"), "train.batch_size=64", "more training prompts"),
        (("algo=grpo", "task.pairs=5"), "train.batch_size=64", "train.batch_size=40"),
        (
            ("algo=grpo", "algo.num_generations=1", "train.batch_size=16"),
            "algo.num_generations=1",
            "algo.num_generations=8",
        ),
        (("algo=grpo", "~reward"), "reward=None", "reward=verifier"),
        (("beta=0",), "algo.beta=0.0", "beta=0.1"),
        (("algo=kto", "beta=-1"), "algo.beta=-1.0", "beta=0.1"),
        (("model.hidden=130",), "model.hidden=130", "model.hidden=128"),
        (("model=hf",), "model.path", "model.path=..."),
        (("model=hf", "model.path=./nowhere"), "model.path=./nowhere", "name a model directory"),
        (("eval.batch_size=0",), "eval.batch_size=0", "eval.batch_size"),
    ],
)
def test_an_impossible_combination_is_refused_with_key_value_and_fix(complaints, overrides, key, fix):
    (message,) = complaints(*overrides)
    assert message.startswith(f"{key}: ")
    assert fix in message.partition("fix: ")[2]


def test_a_batch_that_the_data_cannot_fill_is_told(assemble):
    def told(*overrides: str) -> list[str]:
        setup = assemble(*FEW, "train.batch_size=32", *overrides)
        return setup.algo.notes(check_data(setup), setup.train)

    assert told("algo=dpo") == ["dpo has 20 training rows: each step takes all of them, not 32"]
    assert told("algo=sft") == ["sft has 20 training rows: each step takes all of them, not 32"]
    (few,) = told("algo=dpo", "train.epochs=3")
    assert few.startswith("dpo has 20 training rows: each step takes all of them, not 32, and training is over after 3")
    assert "smaller train.batch_size" in few.partition("fix: ")[2]
    assert told("algo=dpo", "train.epochs=10") == told("algo=dpo")
    assert told("algo=kto") == told("algo=grpo") == []


def test_a_beta_of_zero_is_grpos_way_to_have_no_reference(assemble):
    setup = assemble("algo=grpo", "beta=0")
    assert (setup.beta, setup.algo.uses_reference) == (0.0, False)
    assert assemble("algo=grpo").algo.uses_reference


def test_grpo_has_no_reward_on_preference_data_and_the_message_has_the_fix(assemble, tmp_path):
    with pytest.raises(UserErrors) as caught:
        assemble("algo=grpo", *preferences_file(tmp_path))
    (error,) = caught.value.errors
    assert error.key == "reward"
    assert "no reward" in str(error)
    assert "algo=dpo" in error.fix and "runner.skip_invalid=true" in error.fix


def test_kto_needs_both_labels(assemble, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"q{i}", "completion": "a", "label": True}) + "\n" for i in range(20))
    )
    with pytest.raises(UserErrors, match=r"labels: desirable only[\s\S]*algo=sft"):
        check_data(assemble("algo=kto", "task=preferences", f"task.path={path}", "model=shape/llama-10m"))


def test_dpo_on_unpaired_rows_is_sent_to_kto(assemble, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"q{i}", "completion": "a", "label": bool(i % 2)} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserErrors, match="algo=kto"):
        check_data(assemble("algo=dpo", "task=preferences", f"task.path={path}", "model=shape/llama-10m"))


@pytest.mark.parametrize("seed", ["-1", "1.5", "abc", "true", "null"])
def test_a_seed_is_a_whole_number_of_at_least_0(complaints, seed):
    (message,) = complaints(f"seed={seed}")
    assert message.startswith("seed=") and "fix: seed=0" in message


@pytest.mark.parametrize("override", ["resume=maybe", "sweep=null", "sweep=../elsewhere"])
def test_a_top_level_value_that_makes_no_sense_is_refused(assemble, override):
    with pytest.raises(UserErrors, match=override.partition("=")[0]):
        assemble(override)


@pytest.mark.parametrize("group", ["algo", "adapter", "model", "task", "eval"])
def test_a_group_that_was_removed_is_an_error_that_names_it(assemble, group):
    with pytest.raises(UserErrors) as caught:
        assemble(f"~{group}")
    assert caught.value.errors[0].key == group


def test_errors_of_all_groups_are_reported_together(complaints):
    keys = [m.split("=")[0] for m in complaints("algo.beta=x", "task.held_out=2", "train.steps=ten", "seed=-1")]
    assert keys == ["algo.beta", "task.held_out", "train.steps", "seed"]


# -- content behind paths ------------------------------------------------------------------------------


def folder_of_a_model(folder, weights="1"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(weights)
    return folder


@pytest.mark.parametrize(
    ("options", "field", "judged"),
    [
        (("algo=grpo", "reward=model", "reward.path={}"), "content of reward.path", False),
        (
            ("algo=grpo", "reward=weighted", "+reward.parts.own._target_=harness.rewards.weighted.Part",
             "+reward.parts.own.reward={{_target_:harness.rewards.model.ModelReward,path:{}}}"),
            "content of reward.parts.own.path", False,
        ),
        (("model=hf", "task=preferences", "task.path={}/../rows.jsonl", "model.path={}"), "base", False),
        (
            ("eval.evaluators.win_rate={{_target_:harness.evaluators.win_rate.WinRate,judge:{}}}",),
            "evaluation: content of win_rate.judge", True,
        ),
        (("eval.evaluators.lm_eval.include_path={}",), "evaluation: content of lm_eval.include_path", True),
    ],
)  # fmt: skip
def test_other_content_under_the_same_path_changes_the_key_and_is_named(assemble, tmp_path, options, field, judged):
    preferences_file(tmp_path)
    folder = folder_of_a_model(tmp_path / "folder")

    def identified():
        few = () if "model=hf" in options else FEW
        setup = assemble(*few, *(o.format(folder) for o in options))
        return identify(setup, check_data(setup))

    before = identified()
    (folder / "nested").mkdir()
    assert identified() == before  # of a model's folder nothing below counts, of tasks only files
    folder_of_a_model(folder, weights="22")
    after = identified()
    assert before.trial_id == after.trial_id
    assert (before.train_key == after.train_key) is judged and before.eval_key != after.eval_key
    assert identity.what_changed(before.why, after.why) == field


def test_python_beside_the_tasks_of_lm_eval_counts_in_folders_too(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "utils.py").write_text("RIGHT = 1\n")
    (tmp_path / "mine.yaml").write_text("task: mine\n")
    evaluator = LmEval(tasks=("mine",), include_path=str(tmp_path))
    before = evaluator.contents()
    (tmp_path / "deep" / "utils.py").write_text("RIGHT = 22\n")
    assert evaluator.contents() != before and LmEval().contents() == {}


def test_a_hub_model_is_known_by_its_commit_where_the_local_cache_has_it(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert identity.model_content("owner/name") == "owner/name@None"
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("a" * 40)
    assert identity.model_content("owner/name") == "owner/name@" + "a" * 40
    assert identity.model_content("owner/name", "v2") == "owner/name@v2"
    (refs / "main").write_text("b" * 40)
    assert identity.model_content("owner/name") == "owner/name@" + "b" * 40
    assert identity.model_content("owner/name", "c" * 40) == "owner/name@" + "c" * 40
