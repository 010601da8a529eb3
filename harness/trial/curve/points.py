"""The curve of a trial: cheap evaluations at shares of its training budget, which change nothing of the training.

A result at the end of training hides where it peaked. Points at equal shares of a budget are points at equal cost,
whatever the algorithm. Imports torch by what it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from transformers import TrainerCallback

from harness.algorithms.base import Training
from harness.algorithms.budget_meter import Meter
from harness.base.errors import Diverged, Stopped
from harness.evaluators.base import EvalContext, Evaluation, curve_split
from harness.evaluators.curve import UNPAID, best_of_n, first_rows, measured
from harness.store.journal import Journal
from harness.telemetry.clock import PhaseClock
from harness.trial.checks import ranks_by
from harness.trial.context import Ground
from harness.trial.curve.best import Snapshots, best_of, forget
from harness.trial.curve.losing import best_rival, has_lost, point_of, points_on_record
from harness.trial.curve.undisturbed import undisturbed

PREFIX, BEST_OF = "curve/", "best_of/"
START, END = 0.0, 1.0
"""Shares at which every curve has a point: the base, and what training ends with."""
ROUNDING = 1e-9
"""By which a share of the budget may fall short of the share that was asked for."""


class Curve(TrainerCallback):
    """Takes a point where a share of the budget is spent, one at the start and one at the end.

    A step that passes several shares has one point, of the last of them. A share that an earlier process of the same
    training has on record is not taken again.

    Attributes:
        points: what was journalled, those of earlier processes included: the event's fields, in order.
    """

    def __init__(self, ground: Ground, base: Any, clock: PhaseClock, journal: Journal):
        """Score the pairs of a point under ``base``, the model that training starts from; nothing is trained yet."""
        from harness.evaluators.scoring import pair_log_probs

        self.ground, self.clock, self.journal = ground, clock, journal
        settings = ground.setup.eval
        self.split = curve_split(ground.data, settings.split)
        self.data = replace(
            ground.data,
            eval_pairs=first_rows(ground.data.eval_pairs, self.split, settings.curve_pairs),
            eval_prompts=first_rows(ground.data.eval_prompts, self.split, settings.curve_prompts),
        )
        self.points: list[Mapping[str, Any]] = (
            points_on_record(ground.folder, journal.path.name) if ground.resume else []
        )
        self._snapshots: Snapshots | None = None
        if not ground.resume:
            forget(ground.folder)  # of another training
        self._told: set[str] = set()
        self._reference = pair_log_probs(self._context(base)) if self.data.eval_pairs[self.split] else None

    def attach(self, training: Training, meter: Meter) -> None:
        """Watch a trainer from now on, after all that it calls already."""
        self._training, self._meter = training, meter
        if self.ground.setup.train.keep == "best":
            self._snapshots = Snapshots(self.ground.folder, training.trainer.model)
        training.trainer.add_callback(self)

    # -- the trainer's events --------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The base, on the same rows; nothing where training goes on from a checkpoint."""
        if state.global_step == 0:
            self._best_of_n(self.ground.setup.eval.best_of)
            self._take(START, START, 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Where this step passed a share that was asked for; the last step has its point at the end."""
        spent = self._meter.done(state.max_steps)
        passed = [share for share in self.ground.setup.eval.at if share <= spent + ROUNDING]
        if passed and spent < END and not control.should_training_stop:
            self._take(max(passed), spent, state.global_step)
            if self.ground.stop_losing:
                self._stop_if_lost()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What came of it."""
        self._take(END, END, state.global_step)

    def settle(self) -> None:
        """After training: give the policy the weights of the best point, where those are to be kept."""
        if self._snapshots is None:
            return
        best = best_of(self.points, self.metric)
        if best is None:
            self.journal.write("note", message=f"train.keep=best: no point has {self.metric}; the last policy is kept")
            return
        if best["share"] < END:
            self._snapshots.put_back(best["share"])
        value = best["values"][self.metric]
        self.journal.write("kept", share=best["share"], step=best["step"], metric=self.metric, value=value)
        self.journal.write("metrics", values={f"{PREFIX}kept_share": best["share"]})

    def _stop_if_lost(self) -> None:
        """End the trial where the latest point says that it cannot be the best.

        Raises:
            Stopped: it has lost.
        """
        point, folder = self.points[-1], self.ground.folder
        own = point_of(folder.name, point["values"], self.metric)
        best = best_rival(folder, point["share"], self.metric) if own is not None else None
        if own is None or best is None or not has_lost(own, best):
            return
        what = self.metric.removeprefix(PREFIX).replace("_", " ")
        raise Stopped(
            f"lost at {point['share']:g} of its budget: {what} {own}, and {best.name} had {best} there "
            f"({self.split} split)"
        )

    @property
    def metric(self) -> str:
        """By which points are ranked."""
        return f"{PREFIX}{ranks_by(self.ground.setup.task, self.data, self.split)}"

    # -- a point ---------------------------------------------------------------------------------------

    def _take(self, share: float, spent: float, step: int) -> None:
        if self.points and self.points[-1]["share"] >= share:
            return
        policy, absent = self._training.trainer.model, {}
        with self._meter.paused(), self.clock.phase("evaluate"), undisturbed(policy):
            try:
                trained = share > START or not self._starts_at_base
                found = measured(self._looked_at(policy, share), self._training.paid, trained=trained)
            except Diverged as error:  # training itself says whether the trial has diverged
                found, absent = Evaluation({}), {"point": str(error)}
            values = {f"{PREFIX}share": share, f"{PREFIX}spent": spent}
            values |= {f"{PREFIX}{name}": value for name, value in found.metrics.items()}
            point = {"share": share, "spent": spent, "step": step, "values": values, "absent": absent}
            snapshots = self._snapshots
            if snapshots is not None and best_of([*self.points, point], self.metric) is not point:
                snapshots = None
            if snapshots is not None and share < END:
                snapshots.write(share)
        self.points.append(point)
        self.journal.write("point", **point)
        if snapshots is not None:
            snapshots.drop_but(share)
        for name, why in found.absent.items():
            if share > START and name not in self._told:
                self._told.add(name)
                self.journal.write("note", message=f"{PREFIX}{name}: {why}", absent=f"{PREFIX}{name}")
        for why in absent.values():
            self.journal.write("note", message=f"curve: no point at {share:g} of the budget: {why}")

    def _best_of_n(self, most: int) -> None:
        """What the reward gives where it only chooses among samples of the base; nothing where that is on record."""
        if not most or self.points:
            return
        paid, prompts = self._training.paid, self.data.eval_prompts.get(self.split)
        if paid is None or not prompts:
            why = UNPAID if paid is None else f"no held-out prompts in split {self.split}"
            self.journal.write("note", message=f"{BEST_OF}proxy_reward: {why}", absent=f"{BEST_OF}proxy_reward")
            return
        policy = self._training.trainer.model
        with self._meter.paused(), self.clock.phase("evaluate"), undisturbed(policy):
            found = best_of_n(self._context(policy), paid, most)
        for n, values in found.items():
            self.journal.write("series", step=n, values={f"{BEST_OF}{name}": value for name, value in values.items()})

    def _looked_at(self, policy: Any, share: float) -> EvalContext:
        """The rows of a point under ``policy``; at the start there is no preference yet."""
        reference = None if share == START else self._reference
        context = replace(self._context(policy), reference=reference, before_training=self._before(policy))
        if share == START and self._starts_at_base:
            context.memo.kept = self._known_of_the_base
        return context

    @property
    def _starts_at_base(self) -> bool:
        adapter = self.ground.setup.adapter
        return adapter.peft_config() is None or adapter.starts_at_base

    def _known_of_the_base(self, key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        """Samples of the base are those of every trial whose curve starts there."""
        from harness.evaluators.scoring import SAMPLES

        if key[0] != SAMPLES:
            return compute()
        return self.ground.of_the_base()((*key, "curve", self.split), compute)

    def _context(self, model: Any) -> EvalContext:
        return replace(self.ground.eval_context(model, None), data=self.data, split=self.split)

    def _before(self, policy: Any) -> Callable[[], AbstractContextManager[EvalContext]] | None:
        """The way to the model before training: the adapter off, or the copy that training holds; None without one."""
        adapter, training = self.ground.setup.adapter, self._training
        off = adapter.peft_config() is not None and adapter.off_is_base
        if not off and training.reference != "own":
            return None

        @contextmanager
        def turn() -> Iterator[EvalContext]:
            if off:
                with policy.disable_adapter():
                    yield self._context(policy)
            else:
                yield self._context(training.trainer.ref_model)

        return turn
