"""Shared reference log-probabilities: the same losses as with a reference at hand, computed once, never guessed."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from harness.algorithms.dpo import DPO, IPO
from harness.algorithms.kto import KTO
from harness.config.train import Budget, Train, sees_half
from harness.stages.reference import References, longest_first, looked_up, row_keys
from harness.store.cache import Cache
from tests.inside import Told, tell

ROWS = Dataset.from_dict(
    {"prompt_ids": [[1], [1, 2], [1]], "chosen_ids": [[3], [3], [3]], "rejected_ids": [[4], [5], [4]]}
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


def losses(told: Told) -> list[float]:
    return [value for _, name, value in told.points if name == "train/loss"]


# -- the same numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algo", "adapter"),
    [
        ("dpo", "full"),
        ("ipo", "lora"),
        ("kto", "qlora"),
        *(
            pytest.param(algo, adapter, marks=pytest.mark.slow)
            for algo, adapter in [
                ("dpo", "lora"), ("dpo", "qlora"), ("ipo", "full"), ("ipo", "qlora"), ("kto", "full"), ("kto", "lora"),
            ]
        ),
    ],
)  # fmt: skip
def test_losses_are_those_of_a_reference_at_hand(tmp_path, cache, algo, adapter):
    options = (f"algo={algo}", f"adapter={adapter}", "eval=none", "train.logging_steps=1", "train.steps=4")
    shared, live = (tell(tmp_path / str(on), cache, *options, f"algo.share_reference={on}") for on in ("true", "false"))
    assert len(losses(shared)) == 4
    assert losses(shared) == pytest.approx(losses(live), abs=1e-4, rel=1e-4)
    assert len({round(loss, 5) for loss in losses(live)}) > 1  # the policy moved, so the reference mattered


def test_without_a_second_model_full_fine_tuning_holds_the_policy_alone(tmp_path, cache):
    options = ("algo=dpo", "adapter=full", "eval=none")
    shared, live = (
        tell(tmp_path / str(on), cache, *options, f"algo.share_reference={on}").metrics for on in ("true", "false")
    )
    assert live["memory/role_reference_mb"] == pytest.approx(live["memory/role_policy_mb"])
    assert "memory/role_reference_mb" not in shared


# -- once ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_beta_seed_rank_and_ipo_find_what_the_first_trial_computed(tmp_path, tmp_path_factory):
    stages = tmp_path_factory.mktemp("own")
    first = tell(tmp_path / "0", stages, "algo=dpo", "adapter=full", "eval=none", "algo.share_reference=true")
    assert first.stages["reference"] is False and first.metrics["budget/reference_rows"] == 64
    others = (
        ("algo=dpo", "adapter=full", "beta=0.5"),
        ("algo=dpo", "adapter=full", "seed=3"),
        ("algo=ipo", "adapter=full"),
        ("algo=dpo", "adapter=lora", "rank=2"),
    )
    for i, other in enumerate(others, 1):
        told = tell(tmp_path / str(i), stages, *other, "eval=none", "algo.share_reference=true")
        assert told.stages["reference"] is True and told.metrics["budget/reference_rows"] == 0, other


def test_scoring_the_training_rows_tells_how_far_it_is(tmp_path, tmp_path_factory):
    """On a real model it takes minutes, in which nothing else is to be seen."""
    shared = ("algo=dpo", "adapter=lora", "eval=none", "algo.share_reference=true")
    told = tell(tmp_path, tmp_path_factory.mktemp("cache"), *shared)
    steps = [e.data for e in told.events if e.kind == "progress" and e.data["what"] == "training rows"]
    assert steps and (steps[-1]["step"], steps[-1]["total"]) == (64, 64)


@pytest.mark.slow
def test_what_changes_a_value_is_scored_again(tmp_path, tmp_path_factory):
    stages = tmp_path_factory.mktemp("own")
    shared = ("algo=dpo", "eval=none", "algo.share_reference=true")
    tell(tmp_path / "0", stages, *shared, "adapter=lora")
    for i, other in enumerate((("adapter=qlora",), ("train.max_length=40",), ("task.seed=5",), ("algo=kto",)), 1):
        assert tell(tmp_path / str(i), stages, *shared, *other).stages["reference"] is False, other


def test_where_training_sees_few_rows_nothing_is_shared_by_itself(tmp_path, cache):
    few = tell(tmp_path / "few", cache, "algo=dpo", "adapter=full", "eval=none")  # 2 steps of 8 from 64 pairs
    assert "reference" not in few.stages and few.metrics["budget/reference_rows"] == 16
    half = tell(tmp_path / "half", cache, "algo=dpo", "adapter=full", "eval=none", "train.steps=4")
    assert "reference" in half.stages


def test_the_rule_knows_every_way_to_end_training():
    train = Train(batch_size=8)
    assert sees_half(replace(train, steps=4), 64) and not sees_half(replace(train, steps=3), 64)
    assert sees_half(replace(train, epochs=1), 10**6) and not sees_half(replace(train, epochs=0.25), 10)
    assert not sees_half(replace(train, budget=Budget(prompts=20)), 64)
    assert sees_half(replace(train, budget=Budget(tokens=1)), 64)  # not known beforehand


# -- never guessed -------------------------------------------------------------------------------------


def test_a_row_that_is_missing_is_an_error():
    table = {"row": ["a"], "ref_chosen_logps": [-1.0], "ref_rejected_logps": [-2.0]}
    assert looked_up(table, ["a", "a"]) == {"ref_chosen_logps": [-1.0, -1.0], "ref_rejected_logps": [-2.0, -2.0]}
    with pytest.raises(RuntimeError, match="lacks 1 of 2 rows' reference log-probabilities"):
        looked_up(table, ["a", "b"])


def test_rows_are_known_by_their_tokens_and_values_come_back_in_order(tmp_path):
    assert row_keys(ROWS)[0] == row_keys(ROWS)[2] != row_keys(ROWS)[1]
    assert longest_first(ROWS)[0] == 1
    scored: list[int] = []
    references = References(Cache(tmp_path), {"base": "b"}, lambda _, rows: scored.append(rows), nullcontext)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True, eval=lambda: None, train=lambda _: None),
        args=SimpleNamespace(max_length=8),
        data_collator=lambda rows: rows,
        on_device=lambda rows: rows,
        compute_ref_log_probs=lambda _, rows: tuple(
            __import__("torch").tensor([float(len(r["prompt_ids"])) * sign for r in rows]) for sign in (1, -1)
        ),
    )
    for _ in range(2):
        found: dict[str, Any] = references.columns(trainer, ROWS, 2)
        assert found == {"ref_chosen_logps": [1.0, 2.0, 1.0], "ref_rejected_logps": [-1.0, -2.0, -1.0]}
    assert scored == [3, 0]


def test_only_losses_with_a_reference_share_one():
    from harness.algorithms.grpo import GRPO
    from harness.algorithms.sft import SFT
    from harness.tasks.base import TaskData

    train, data = Train(batch_size=8, steps=100), TaskData(train_pairs=[{}] * 8)
    assert [a.shares_reference(train, data) for a in (DPO(), IPO(), KTO(), GRPO(), SFT())] == [
        True,
        True,
        True,
        False,
        False,
    ]
