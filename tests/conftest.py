"""Shared fixtures: an offline world, and a small base model that tests train once per session."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "CUDA_VISIBLE_DEVICES": "",
    }
)
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores, and torch threads that wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"

SMALL = ("model.steps=12", "model.batch_size=16", "model.layers=2", "model.hidden=64", "model.intermediate=128")
"""A base that says nothing sensible but is made in a second."""

QUICK = (
    *SMALL,
    "task.pairs=64",
    "task.eval_pairs=24",
    "task.eval_prompts=12",
    "train.steps=3",
    "train.batch_size=8",
    "eval.evaluators.lm_eval=null",
    "runner.predict=false",  # takes longer than such a trial
)
"""Overrides under which a whole trial takes about two seconds."""


LONGEST = (
    "test_verdicts",
    "test_runs",
    "test_readme",
    "test_resume",
    "test_worker_units",
    "test_reference",
    "test_own_model",
    "test_gate",
)


NIGHTLY = (
    "test_losses_and_gradients_are_those_of_rows_read_apart[lora-",
    "test_losses_and_gradients_are_those_of_rows_read_apart[qlora-",
    "test_one_of_two_processes_is_predicted_within_five_percent_of_what_it_holds[full]",
    "agrees_at_two_sizes[llama-110m-",
    "agrees_at_two_sizes[llama-10m-ipo-",
    "agrees_at_two_sizes[llama-10m-grpo-full",
    "agrees_at_two_sizes[llama-10m-kto-full",
    "a_few_layers_tell_the_peaks_of_all[grpo-qlora-True",
    "grows_by_what_was_counted[ipo-",
    "grows_by_what_was_counted[kto-",
    "grows_by_what_was_counted[dpo-lora",
    "grows_by_what_was_counted[grpo-lora",
    "grows_by_what_was_counted[grpo-full",
    "grows_by_what_was_counted[ppo-qlora",
    "grows_by_what_was_counted[ppo-lora",
    "by_stochastic_rounding[ppo]",
    "weights_move_as_they_do_in_32_bits[ipo-",
    "weights_move_as_they_do_in_32_bits[kto-full",
    "weights_move_as_they_do_in_32_bits[kto-lora",
    "weights_move_as_they_do_in_32_bits[grpo-full",
    "weights_move_as_they_do_in_32_bits[grpo-qlora",
    "weights_move_as_they_do_in_32_bits[ppo-full",
    "weights_move_as_they_do_in_32_bits[ppo-qlora",
    "ties_exactly_from_memory_and_from_disk[ipo-",
    "ties_exactly_from_memory_and_from_disk[kto-",
    "ties_exactly_from_memory_and_from_disk[grpo-",
    "ties_exactly_from_memory_and_from_disk[ppo-full",
    "ties_exactly_from_memory_and_from_disk[ppo-qlora-auto",
    "is_refused_before_anything_runs_and_dpo_runs_alone[gpt_neox",
    "trains_nothing_when_it_is_named_again[full-none",
    "run_four_trials_under_one_parent[joblib",
    "takes_two_small_steps_and_is_judged[kto-qlora",
    "takes_two_small_steps_and_is_judged[dpo-lora",
    "losses_are_those_of_a_reference_at_hand[ipo-",
    "losses_are_those_of_a_reference_at_hand[kto-full",
    "false_alarms_stay_below_5_of_100_for_every_metric_and_size_of_sweep[200 examples",
    "loss_keeps_its_scale_however_a_rollout_is_cut[vespo",
    "loss_keeps_its_scale_however_a_rollout_is_cut[luspo",
    "test_a_sweep_that_is_killed_again_and_again_ends_as_if_nothing_had_happened",
    "test_the_script_that_ci_runs_sweeps_reports_and_gates",
    "test_each_round_begins_with_the_policy_of_the_last",
    "trains_nothing_when_it_is_named_again[lora-adapter",
    "run_four_trials_under_one_parent[submitit_local",
    "for_every_metric_and_size_of_sweep[multiples of 1/512",
    "for_every_metric_and_size_of_sweep[multiples of 1/30",
    "raise_at_most_twice_as_many[one recipe spreads 3",
    "in_pieces_trains_to_what_one_process_trains[losses",
    "in_pieces_trains_to_what_one_process_trains[tokens",
    "in_pieces_trains_to_what_one_process_trains[anchor",
    "killed_ends_the_others_and_is_named[1",
    "told_to_end_concludes_and_leaves_nothing[2",
    "told_to_end_leaves_no_job[2",
    "weights_move_as_they_do_in_32_bits[dpo-lora",
    "ties_exactly_from_memory_and_from_disk[dpo-lora-auto",
    "ties_exactly_from_memory_and_from_disk[dpo-qlora-auto",
    "agrees_at_two_sizes[llama-10m-ppo-full",
    "agrees_at_two_sizes[llama-10m-dpo-lora",
    "agrees_at_two_sizes[llama-10m-kto-qlora",
    "within_five_percent_of_what_it_holds[lora]",
    "reward_models_score_beside_each_other[full",
    "keeps_what_it_learned[lora",
)
"""Slow tests beside one of the same kind, or that take two minutes: with them all, CI would need more than it has."""


SLOW = (
    "holds_its_share_and_judges_the_whole[8",
    "takes_what_the_same_step_takes_on_real_tensors[kto-qlora",
    "training_rows_alone_are_judged_against_one_base[+curate",
    "weights_move_as_they_do_in_32_bits[dpo-full",
    "best_of_n_stands_beside_the_curve_and_changes_no_bit_either[grpo",
    "the_policy_at_the_best_point_is_saved_and_judged[dpo-lora",
    "judging_that_failed_goes_on_with_the_trained_policy_and_says_what_an_undisturbed_trial_says[lora-none",
    "drift_is_measured_against_the_model_that_training_started_from[qlora",
    "test_a_reward_model_judges_the_win_rate_where_no_rule_does",
    "test_a_base_in_four_bits_is_another_one",
    "test_bases_of_the_cache_are_kept_once_for_a_sweep",
    "a_few_layers_tell_the_peaks_of_all[dpo-lora-False",
    "takes_what_the_same_step_takes_on_real_tensors[dpo-full",
)
"""Likewise of the default suite, which has eight minutes on two cores; CI runs them with the slow ones."""


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest begin first, so that no worker is left with one of them at the end."""
    for item in items:
        if any(name in item.nodeid for name in NIGHTLY):
            item.add_marker(pytest.mark.nightly)
        elif any(name in item.nodeid for name in SLOW):
            item.add_marker(pytest.mark.slow)
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def compose() -> Any:
    """``compose("algo=kto", ...)`` -> the resolved configuration, with a fixed sweep name."""
    from harness.config.compose import compose as compose_now
    from harness.config.compose import hydra_config

    def call(*overrides: str) -> dict[str, Any]:
        with hydra_config():
            return compose_now(["sweep=test", *overrides])

    return call


@pytest.fixture
def assemble(compose: Any) -> Any:
    """``assemble("algo=kto", ...)`` -> a built and checked Setup."""
    from harness.trial.assemble import assemble as assemble_now

    return lambda *overrides: assemble_now(compose(*overrides))
