"""Completions before and after training under the eyes of a judge, and how far that judge can be believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Gt

from harness.base.errors import UserError
from harness.evaluators.base import EvalContext, Evaluation, Evaluator
from harness.judges.base import Judge, Longer, Pair
from harness.tasks.base import Task, TaskData, prompt_key

if TYPE_CHECKING:
    from harness.rewards.judged import JudgeReward


@dataclass(frozen=True)
class Judged(Evaluator):
    """The trained model against the one that training started from, pair by pair, in both orders.

    Beside the win rate stands what it is worth: whether the judge prefers a place or a length, agrees with itself, can
    be read, and agrees with the labels of the held-out pairs.

    Attributes:
        judge: who compares.
        samples: completions per prompt on either side.
        max_prompts: at most this many prompts of the split.
        labelled: held-out pairs that the judge is held against; 0: none.
    """

    compares: ClassVar[bool] = True

    judge: Judge = field(default_factory=Longer)
    samples: Annotated[int, Gt(0)] = 1
    max_prompts: Annotated[int, Gt(0)] = 100
    labelled: Annotated[int, Ge(0)] = 100

    @property
    def judge_model(self) -> JudgeReward | None:
        """Its judge, where that is held on the trial's device."""
        from harness.rewards.judged import JudgeReward

        return JudgeReward.held(self.judge)

    def problems(self) -> list[UserError]:
        """Its judge's."""
        return self.judge.problems()

    def not_applicable(self, task: Task, data: TaskData) -> str | None:
        """There must be something to compare."""
        if any(data.eval_prompts.values()) or (self.labelled and any(data.eval_pairs.values())):
            return None
        return "the data has neither held-out prompts nor held-out pairs"

    def contents(self) -> Mapping[str, str]:
        """What the judge's answers depend on."""
        return {"judge": self.judge.settled().key}

    def on_fixture(self, context: EvalContext, judge: str) -> tuple[Judged, EvalContext]:
        """With a rule in place of its judge."""
        return replace(self, judge=Longer()), context

    def evaluate(self, context: EvalContext) -> Evaluation:
        """Ask, and measure the answers and their judge."""
        from harness.base.calibration import length_controlled_rate
        from harness.evaluators.scoring import grouped, share_with_bounds, with_stderr
        from harness.judges.asking import ask
        from harness.judges.biases import agreement, biases, first_longer, turned_by_lot

        rows = list(context.data.eval_pairs.get(context.split, ()))[: self.labelled]
        labelled = [Pair.of(r["prompt"], r["chosen"], r["rejected"]) for r in rows]
        names, compared = self._compared(context)
        verdicts, bill = ask(self.judge, [*labelled, *compared], context.cache, context.progress)
        on_labelled, on_compared = verdicts[: len(labelled)], verdicts[len(labelled) :]

        metrics: dict[str, float] = bill.metrics(self.judge)
        examples: dict[str, dict[str, list[Any]]] = {}
        absent: dict[str, str] = {}
        if labelled:
            points, kappa = agreement(on_labelled, [turned_by_lot(p) for p in labelled])
            metrics |= share_with_bounds("judge_agreement", points)
            if kappa is None:
                absent["judge_kappa"] = "on no labelled pair did both orders name one winner, or all of them one label"
            else:
                metrics["judge_kappa"] = kappa
            metrics |= share_with_bounds("labels_longer", first_longer(labelled))
        if not compared:
            absent["judge_win_rate"] = "there is no other model to win against"
        read = [(i, v.won) for i, v in enumerate(on_compared) if v.won is not None]
        if read:
            won, kept = [w for _, w in read], [compared[i] for i, _ in read]
            if (fair := length_controlled_rate(won, [float(len(p.first) - len(p.second)) for p in kept])) is not None:
                metrics["judge_win_rate_length_controlled"] = fair
            prompts = [names[i // self.samples] for i, _ in read]
            metrics |= share_with_bounds("judge_win_rate", won, prompts)
            if len(read) == len(compared):
                per_prompt = grouped(won, self.samples)
                examples["judged"] = {"example": names, "judge_win_rate": per_prompt}
        found = biases([*labelled, *compared], verdicts)
        metrics |= share_with_bounds("judge_first", found.first)
        metrics |= share_with_bounds("judge_consistency", found.consistent)
        metrics |= share_with_bounds("judge_longer", found.longer)
        metrics |= with_stderr("judge_unreadable", found.unreadable)
        return Evaluation(metrics, examples=examples, absent=absent, notes=self._notes(metrics))

    def _compared(self, context: EvalContext) -> tuple[list[str], list[Pair]]:
        """Prompts, and samples of either model for them, the trained one's first; nothing before training."""
        from harness.evaluators.scoring import held_out_samples

        if context.before_training is None or not context.data.eval_prompts.get(context.split):
            return [], []
        rows, mine = held_out_samples(context, per_prompt=self.samples, max_prompts=self.max_prompts)
        with context.before_training() as before:
            _, theirs = held_out_samples(before, per_prompt=self.samples, max_prompts=self.max_prompts)
        pairs = [Pair.of(rows[a.row]["prompt"], a.text, b.text) for a, b in zip(mine, theirs, strict=True)]
        return [prompt_key(row["prompt"]) for row in rows], pairs

    def _notes(self, metrics: Mapping[str, float]) -> list[str]:
        """What a reader of the win rate must know."""
        notes = []
        first = (metrics.get("judge_first_low", 0.0), metrics.get("judge_first_high", 1.0))
        if not first[0] <= 0.5 <= first[1]:
            place = "first" if first[0] > 0.5 else "second"
            notes.append(
                f"the judge prefers the reply that it is shown {place} ({metrics['judge_first']:.0%} name the first)"
            )
        if metrics.get("judge_agreement_low", 1.0) <= 0.5:
            notes.append("the judge agrees with the labels of held-out pairs no better than chance may")
        if metrics.get("judge_unreadable", 0.0) > 0.05:
            notes.append(
                f"{metrics['judge_unreadable']:.0%} of the judge's answers cannot be read; they count for nobody"
            )
        return notes
