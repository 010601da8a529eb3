"""The code behind a trial's keys: which of its parts count for training, and which for judging. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config import closure, identity
from harness.evaluators.base import Evaluator
from harness.tasks.base import Task
from harness.tasks.curating.applying import rules_of, uncurated
from harness.tasks.curating.base import MarginRule

if TYPE_CHECKING:
    from harness.trial.assemble import Setup


def training_code(setup: Setup) -> dict[str, Path]:
    """The modules that can change what a trial trains, by name."""
    components = [setup.algo, setup.adapter, setup.model, setup.task, setup.reward, setup.train]
    specs = setup.reward.stages() if setup.reward is not None else ()
    stages = sorted({f"harness.stages.{spec.stage}" for spec in specs})
    curve = ["harness.trial.curve.points"] if setup.eval.at else []
    margins = ["harness.evaluators.scoring"] if rules_of(setup.task, MarginRule) else []
    return closure.of_training([*identity.modules_of(components), *stages, *curve, *margins])


def judging_code(evaluators: Iterable[Evaluator], task: Task) -> dict[str, Path]:
    """The modules that can change what evaluators say of a model; the task's, by whose rules they judge, among them."""
    return closure.closure(["harness.evaluators.base", *identity.modules_of([*evaluators, uncurated(task)])])


def baseline_code(setup: Setup, evaluator: Evaluator) -> dict[str, Path]:
    """What can change an evaluator's figures of the base: the story that runs it, the model, evaluator and task."""
    return closure.of_training(identity.modules_of([setup.model])) | judging_code([evaluator], setup.task)
