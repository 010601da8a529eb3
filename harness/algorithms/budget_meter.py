"""How long training goes on, in the unit that the user named, and what it took in the three others.

One mechanism for every algorithm: a callback counts, stops the trainer, and drives the learning rate. Steps and
prompts are known beforehand and become a number of steps. Tokens and seconds are not, so the learning rate follows
the share of the budget that is spent and not the step; training ends with the first step that spends the last of it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from harness.algorithms.packing import tokens_of
from harness.algorithms.trl_seam import follow, never_idle
from harness.base.world import World, of_leader, total
from harness.config.train import UNKNOWN_STEPS, Train
from harness.store import checkpoints

if TYPE_CHECKING:
    from harness.algorithms.base import Algorithm, Training

FILE = "budget.json"


class Meter(TrainerCallback):
    """Counts what training takes and ends it where the budget is spent.

    Tokens are those of the policy's forward passes with a gradient, padding left out: prompt and completion, both
    sides of a pair, each pass over a rollout anew. Seconds are those between the start and the end of training,
    rollouts included; of a resumed trial, those of the steps that were kept. Prompts are rows (a pair is one), and
    for online algorithms those that completions were sampled for.

    Args:
        algo: tells how many prompts its steps take.
        train: the knobs; ``train.budget`` may name one unit.
        world: this process among those that train together; what is counted is what all of them take.
    """

    def __init__(self, algo: Algorithm, train: Train, world: World | None = None):
        """Count nothing yet."""
        self.algo, self.train, self.world = algo, train, world or World()
        self.unit, self.amount = train.budget.named or ("steps", None)
        self.rows = self.steps = 0
        self._tokens: Any = 0
        self._began: float | None = None
        self._before = 0.0
        self._sampled: Callable[[], int | None] = lambda: None
        self._here: Any = 0  # tokens that this process has not told the others of

    def attach(self, training: Training) -> None:
        """Watch a trainer, whose model is wrapped by now, and end it in time."""
        trainer, sampler = training.trainer, training.sampler
        self.rows = training.rows or len(trainer.train_dataset)
        if sampler is not None:
            self._sampled = lambda: sampler.sampled_prompts
        trainer.model.register_forward_pre_hook(self._count, with_kwargs=True)
        never_idle(trainer)
        if self.unit == "prompts":
            trainer.args.max_steps = self.algo.steps_for(int(self.amount or 0), self.rows, self.train)
        elif self.unit in ("tokens", "seconds"):
            trainer.args.max_steps = UNKNOWN_STEPS
            trainer.create_scheduler = lambda *_, optimizer=None, **__: self._follow(trainer, optimizer)
        trainer.add_callback(self)

    @property
    def spent(self) -> dict[str, float]:
        """What training took so far, in every unit."""
        prompts = self._sampled()
        if prompts is None:
            prompts = self.algo.prompts_seen(self.steps, self.rows, self.train)
        tokens = int(self._tokens) + (int(self._here) if self.world.size == 1 else 0)
        return {"steps": self.steps, "prompts": prompts, "tokens": tokens, "seconds": self._seconds()}

    def _seconds(self) -> float:
        """The leader's, as of the last step, where there are several processes."""
        if self.world.size > 1 and self._began is not None:
            return self._told
        return self._before + (time.perf_counter() - self._began if self._began is not None else 0.0)

    def _agree(self) -> None:
        """Count what all processes have taken; each of them calls this at the same place."""
        if self.world.size == 1:
            return
        self._tokens = int(self._tokens) + total(self.world, [int(self._here)])[0]
        self._here = 0
        running = time.perf_counter() - self._began if self._began is not None else 0.0
        self._told = of_leader(self.world, self._before + running)

    @property
    def share(self) -> float:
        """Of the budget, that is spent; 0 where none is named."""
        return self.spent[self.unit] / self.amount if self.amount else 0.0

    def done(self, planned: int) -> float:
        """Share of training that is done, at most a rollout behind; ``planned`` are the steps known beforehand.

        Of tokens and seconds the share of the budget, of all else that of the steps. Where passes over a rollout end
        early, so that a number of prompts takes fewer steps than were planned, it is that of the rollouts gone by.
        """
        if self.unit in ("tokens", "seconds"):
            return self.share
        share, begun, rollout = self.steps / planned, self._sampled(), self.algo.rollout(self.train)
        if begun is not None and rollout is not None and self.train.steps is None and self.unit != "steps":
            share = max(share, (begun - rollout.prompts) / self.algo.prompts_seen(planned, self.rows, self.train))
        return share

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Seconds within this are not training's."""
        since = time.perf_counter()
        try:
            yield
        finally:
            if self._began is not None:
                self._began += time.perf_counter() - since

    def expected(self, steps: int, planned: int) -> int:
        """Steps in all, as far as ``steps`` of them tell."""
        if planned < UNKNOWN_STEPS:
            return planned
        return max(steps, round(steps / self.share)) if self.share else steps

    def restore(self, checkpoint: Path) -> None:
        """Go on counting from what ``checkpoint`` had."""
        kept = json.loads((checkpoint / FILE).read_text())
        self._tokens, self._before = kept["tokens"], kept["seconds"]

    def _count(self, model: Any, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        """Before each forward pass of the policy."""
        if not (torch.is_grad_enabled() and model.training):
            return
        mask, positions = options.get("attention_mask"), options.get("position_ids")
        if mask is not None:
            found = mask.sum()
        elif positions is not None:
            found = tokens_of(positions)
        else:
            found = options.get("input_ids", arguments[0] if arguments else None).numel()
        self._here = self._here + found

    def _follow(self, trainer: Any, optimizer: Any) -> Any:
        """A scheduler whose rate is a function of the share spent, not of the step."""

        def now(_: int) -> float:
            self._agree()
            return rate(self.share, self.train.scheduler, self.train.warmup_ratio)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or trainer.optimizer, now)
        return follow(trainer, scheduler)

    # -- the trainer's events --------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock starts."""
        self.steps, self._began = state.global_step, time.perf_counter()
        self._told = self._before

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Enough?"""
        self.steps = state.global_step
        self._agree()
        if self.unit in ("tokens", "seconds") and self.share >= 1:
            control.should_training_stop = control.should_log = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Beside the checkpoint, for ``restore``."""
        if not self.world.leads:
            return
        (checkpoints.of_step(Path(args.output_dir), state.global_step) / FILE).write_text(json.dumps(self.spent))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock stops."""
        self._before, self._began = self.spent["seconds"], None


def rate(share: float, scheduler: str, warmup: float) -> float:
    """The learning rate as a share of its peak, where ``share`` of the budget is spent.

    The curves of transformers' schedulers of the same names, over the budget and not over steps.
    """
    if share < warmup:
        return share / warmup
    if scheduler == "constant_with_warmup":
        return 1.0
    left = max(0.0, (1.0 - share) / (1.0 - warmup)) if warmup < 1 else 0.0
    return left if scheduler == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))
