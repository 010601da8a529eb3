"""What tells a tracker where a step is: phases, layers, and whose a storage is. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.cache_utils import DynamicLayer

from harness.algorithms.base import Training
from harness.algorithms.roles import ORDER
from harness.algorithms.trl_head import head_within
from harness.base.replacing import replaced
from harness.models.meta_model import layers_of
from harness.rehearsal.tracker import Tracker


class Clock:
    """Stands in for the worker's: phases go to the tracker."""

    def __init__(self, tracker: Tracker):
        """Tell ``tracker``."""
        self.tracker = tracker

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Spend the body in phase ``name``."""
        outer = self.tracker.phase
        self.tracker.enter(name)
        try:
            yield
        finally:
            self.tracker.enter(outer)


class Steady(TrainerCallback):
    """Before the step: the optimizer's state is made, as after a step before."""

    def __init__(self, tracker: Tracker):
        """Tell ``tracker`` whose the states are."""
        self.tracker = tracker

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Take a step with gradients of zero, which moves nothing."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        with self.tracker.creating("gradients"):
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
        with self.tracker.creating("optimizer"):
            optimizer.step()
        for parameter in parameters:
            parameter.grad = None
        self.tracker.enter("train")


@contextmanager
def booked(tracker: Tracker) -> Iterator[None]:
    """What a key-value cache makes is booked on it, and what TRL's output head makes on the logits."""

    def by(owner: str, made: Any) -> Any:
        def owned(*arguments: Any, **options: Any) -> Any:
            with tracker.creating(owner):
                return made(*arguments, **options)

        return owned

    with replaced(DynamicLayer, "update", by("kv_cache", DynamicLayer.update)), head_within(partial(by, "logits")):
        yield


def mark_layers(model: nn.Module, config: Any, tracker: Tracker) -> None:
    """Marks where a layer's forward pass begins and ends, and where its backward pass begins."""
    for i, layer in enumerate(layers_of(model, config.get_text_config().num_hidden_layers)):

        def before(*_: Any, i: int = i) -> None:
            tracker.mark("in", i)

        def after(_module: Any, _args: Any, out: Any, i: int = i) -> None:
            tracker.mark("out", i)
            tensor = out[0] if isinstance(out, tuple) else out
            if tensor.requires_grad:
                tensor.register_hook(lambda _: tracker.mark("back", i))

        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)


def watch_owners(training: Training, tracker: Tracker) -> None:
    """Weights by role; gradients as they come."""
    trainer, roles = training.trainer, training.resident
    for role in sorted(roles, key=ORDER.index, reverse=True):  # what is shared ends with the first in order
        tracker.own(roles[role], "weights" if role == "policy" else role)
    for group in (trainer.model.parameters(), roles.get("critic", ())):
        for parameter in group:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: tracker.own([p.grad], "gradients"))
