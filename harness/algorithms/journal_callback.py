"""Journals what a trainer logs. Imported in the worker, by the time transformers is loaded anyway."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from harness.algorithms.budget_meter import Meter
from harness.algorithms.sharding import local
from harness.base.errors import Diverged
from harness.base.world import World, wait
from harness.config.train import UNKNOWN_STEPS
from harness.store import checkpoints
from harness.store.journal import Journal

SKIPPED = (
    "num_tokens",  # what it counts differs between TRL's trainers; the meter's means one thing
    "epoch",
    "total_flos",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_loss",
)

WITHIN_S = 5.0
"""Seconds after which progress within a step is told."""
WORSE = 2.0
"""Times the first loss: from there on training has undone what the model could do, finite though every figure is."""
FLAT = 10
"""Points of the reward after which a reader is told that it has been the same for all completions so far."""
WATCHED = {"loss": "the loss", "grad_norm": "the gradient's norm"}


class Sealing(TrainerCallback):
    """Says that a checkpoint is complete. Attached last, since the others add to it when it is written."""

    def __init__(self, world: World, wish: Path | None = None):
        """Of the processes of ``world``; ``wish`` as ``JournalCallback`` has it."""
        self.world, self.wish = world, wish

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """All processes have written their parts."""
        wait(self.world)
        if self.world.leads:
            checkpoints.seal(checkpoints.of_step(Path(args.output_dir), state.global_step))
        if self.wish is not None:
            self.wish.unlink(missing_ok=True)


class JournalCallback(TrainerCallback):
    """Turns trainer logs into ``train/`` series, each point with what was spent by then, and steps into progress."""

    def __init__(
        self,
        journal: Journal,
        meter: Meter,
        learning_rate: float | None = None,
        wish: Path | None = None,
        falls: bool = False,
    ):
        """Write to ``journal``; ``learning_rate`` is named where training diverges.

        While the file ``wish`` is there, the next step ends with a checkpoint; None where there can be none.
        ``falls``: the loss measures how much is left to learn, as losses over given rows do and those of PPO and
        GRPO do not; one that ends far above its beginning is told.
        """
        self.journal, self.meter, self.learning_rate, self.wish = journal, meter, learning_rate, wish
        self.falls = falls
        self._ends: list[float] = []
        self._rewarded = self._flat = 0
        self._loss_of_step: Any = 0.0
        self._progress_at = 0.0
        self._part = 0

    def attach(self, trainer: Any) -> None:
        """Look at the loss of every step, not only of those that are logged: what follows a bad one is time lost."""
        take = trainer.training_step

        def taken(*arguments: Any, **options: Any) -> Any:
            loss = take(*arguments, **options)
            self._loss_of_step = self._loss_of_step + loss.detach()
            return loss

        trainer.training_step = taken

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What goes on from a checkpoint has had its first rewards."""
        if state.global_step:
            self._rewarded = FLAT + 1

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Progress within a step, which takes minutes where a large batch is made of many small ones."""
        self._part += 1
        if time.monotonic() - self._progress_at >= WITHIN_S:
            part = min(0.99, self._part / args.gradient_accumulation_steps)
            self._tell(round(state.global_step + part, 2), state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Progress at most twice a second; the last step is always logged.

        Raises:
            Diverged: the loss of this step is not finite.
        """
        loss, self._loss_of_step = float(self._loss_of_step), 0.0
        if not math.isfinite(loss):
            raise Diverged(self._told(state.global_step, f"the loss is {loss}"))
        self._part = 0
        if time.monotonic() - self._progress_at >= 0.5 or state.global_step in (1, state.max_steps):
            self._tell(state.global_step, state)
        if state.global_step == state.max_steps:
            control.should_log = True
        if self.wish is not None and self.wish.exists():
            control.should_save = True

    def _tell(self, step: float, state: Any) -> None:
        self._progress_at = time.monotonic()
        known = state.global_step or state.max_steps < UNKNOWN_STEPS
        total = self.meter.expected(state.global_step, state.max_steps) if known else None
        self.journal.write("progress", what="train", step=step, total=total)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """One point of every series.

        Raises:
            Diverged: a loss or a gradient is not finite.
        """
        values = {}
        for key, value in (logs or {}).items():
            if key in SKIPPED:
                continue
            try:
                values[f"train/{key}"] = float(value)
            except (TypeError, ValueError):
                continue  # transformers logs a few texts
        if values:
            values |= {f"train/{unit}": amount for unit, amount in self.meter.spent.items() if unit != "steps"}
            self.journal.write("series", step=state.global_step, values=values)
        wrong = [k for k in WATCHED if not math.isfinite(values.get(f"train/{k}", 0.0))]
        if wrong:
            found = values[f"train/{wrong[0]}"]
            raise Diverged(self._told(state.global_step, f"{WATCHED[wrong[0]]} is {found}"))
        self._look_at_rewards(values)
        if "train/loss" in values:
            self._ends = [*self._ends[:1], values["train/loss"]]

    def _look_at_rewards(self, values: dict[str, float]) -> None:
        """Tell, once, that completions are paid alike: there is nothing to learn from such a reward."""
        if (spread := values.get("train/reward_std")) is None:
            return
        rounding = 1e-6 * max(1.0, abs(values.get("train/reward", 0.0)))
        self._rewarded, self._flat = self._rewarded + 1, self._flat + (spread <= rounding)
        if self._flat == self._rewarded == FLAT:
            paid = f"({values['train/reward']:.3g} now)" if "train/reward" in values else "so far"
            said = f"all completions of each of the first {FLAT} logged steps were paid alike {paid}"
            self.journal.write(
                "note", message=f"{said}: from a reward that does not tell them apart nothing is learned"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """The last update may be the one that went too far.

        Raises:
            Diverged: a trained weight is not finite.
        """
        for name, weight in model.named_parameters() if model is not None else ():
            if weight.requires_grad and not bool(local(weight).isfinite().all()):
                raise Diverged(self._told(state.global_step, f"the weight {name} is not finite"))
        if self.falls and len(self._ends) == 2 and self._ends[1] > WORSE * self._ends[0] > 0:
            first, last = self._ends
            said = f"the loss began at {first:.3g} and ended at {last:.3g}: training made the model worse"
            self.journal.write("note", message=f"{said}{self._rate()}")

    def _told(self, step: int, what: str) -> str:
        return f"at step {step} {what}{self._rate()}"

    def _rate(self) -> str:
        return "" if self.learning_rate is None else f" (train.learning_rate is {self.learning_rate:g})"
