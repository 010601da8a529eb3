"""A training that changes nothing is told from one that does, and the only step of a training is no idle one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.algorithms.budget_meter import Meter
from harness.algorithms.changed import Before
from harness.algorithms.dpo import DPO
from harness.algorithms.sft import SFT
from harness.algorithms.trainers import ready_trainer


@pytest.fixture
def share_changed(job):
    """Of the weights, by a training with other knobs."""

    def train(algo=None, **knobs) -> float:
        algo = algo or SFT()
        mine = replace(job, train=replace(job.train, **knobs))
        training = ready_trainer(algo, mine)
        Meter(algo, mine.train).attach(training)
        before = Before(training.trainer.model)
        training.trainer.train()
        return before.changed(training.trainer.model)

    return train


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize("length", [{"steps": 1}, {"steps": None, "epochs": 1.0}], ids=["step", "epoch"])
def test_the_only_step_has_the_whole_learning_rate(share_changed, scheduler, length):
    # a tenth of one step is rounded up to one step of warm-up, whose rate is 0
    assert share_changed(warmup_ratio=0.1, scheduler=scheduler, **length) > 0.5


def test_two_steps_warm_up_as_ever(share_changed):
    assert share_changed(DPO(beta=0.1), warmup_ratio=0.5, steps=2) > 0.5


def test_a_learning_rate_that_rounds_away_changes_nothing(share_changed):
    assert share_changed(learning_rate=1e-30) == 0


def test_numbers_all_over_a_tensor_are_looked_at_and_frozen_ones_are_not():
    model = torch.nn.Linear(1000, 1, bias=False)
    model.register_parameter("frozen", torch.nn.Parameter(torch.zeros(3), requires_grad=False))
    before = Before(model)
    with torch.no_grad():
        model.frozen.add_(1)
    assert before.changed(model) == 0
    with torch.no_grad():
        model.weight[:, 500:].add_(1)
    assert before.changed(model) == pytest.approx(0.5, abs=0.01)


def test_bf16_loses_small_updates():
    model = torch.nn.Linear(64, 64, bias=False).to(torch.bfloat16)
    before = Before(model)
    with torch.no_grad():
        model.weight.fill_(1.0)
    assert before.changed(model) > 0.9
    before = Before(model)
    with torch.no_grad():
        model.weight.add_(1e-3)
    assert before.changed(model) == 0
