"""How often a sampled completion beats the one that the model gave before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Gt

from harness.base.errors import UserError
from harness.config import identity
from harness.evaluators.base import EvalContext, Evaluation, Evaluator
from harness.tasks.base import Row, Task, TaskData, prompt_key

if TYPE_CHECKING:
    from harness.evaluators.scoring import Sample
    from harness.rewards.model import ModelReward

JUDGE_KEY = "eval.evaluators.win_rate.judge"


@dataclass(frozen=True)
class WinRate(Evaluator):
    """Trained model against the one training started from, the same prompts, judged by one reward for both.

    Raw, a tie counting one half, and length-controlled: what a logistic regression on the difference in length
    expects between answers of equal length (``calibration.length_controlled_rate``).

    Attributes:
        samples: completions per prompt on either side.
        max_prompts: at most this many prompts of the split; null takes all.
        judge: a sequence-classification model with one label, by directory or hub id; null is the task's own rule.
            A judge that the policy was trained against only tells how well it was exploited.
    """

    compares: ClassVar[bool] = True

    samples: Annotated[int, Gt(0)] = 4
    max_prompts: Annotated[int, Gt(0)] | None = None
    judge: str | None = None

    def not_applicable(self, task: Task, data: TaskData) -> str | None:
        """The task must be able to score a completion, or a judge be named."""
        if self.judge is None and not task.has_reward:
            return "no rule scores a completion of this task; name a reward model: eval.evaluators.win_rate.judge=..."
        return None if any(data.eval_prompts.values()) else "the data has no held-out prompts"

    def contents(self) -> Mapping[str, str]:
        """The judge's, where one is named."""
        return {} if self.judge is None else {"judge": identity.pinned_content(self.judge, key=JUDGE_KEY)}

    def on_fixture(self, context: EvalContext, judge: str) -> tuple[WinRate, EvalContext]:
        """With a toy in place of its judge."""
        return (self if self.judge is None else replace(self, judge=judge)), context

    def evaluate(self, context: EvalContext) -> Evaluation:
        """Sample on either side and compare sample by sample."""
        from harness.base import calibration
        from harness.evaluators.preference import wins
        from harness.evaluators.scoring import grouped, held_out_samples, share_with_bounds

        if context.before_training is None:
            return Evaluation({}, absent={"win_rate": "there is no other model to win against"})
        k = self.samples
        rows, mine = held_out_samples(context, per_prompt=k, max_prompts=self.max_prompts)
        with context.before_training() as before:
            _, theirs = held_out_samples(before, per_prompt=k, max_prompts=self.max_prompts)
        del before  # a base that was loaded for the while goes before a judge comes
        score = self._score(context)
        won = wins(score([rows[d.row] for d in mine], mine), score([rows[d.row] for d in theirs], theirs))
        controlled = calibration.length_controlled_rate(
            won, [float(a.tokens - b.tokens) for a, b in zip(mine, theirs, strict=True)]
        )
        per_prompt = grouped(won, k)
        names = [prompt_key(row["prompt"]) for row in rows]
        metrics = dict(share_with_bounds("win_rate", per_prompt, names, draws=k))
        if controlled is not None:
            metrics["win_rate_length_controlled"] = controlled
        return Evaluation(metrics, examples={"wins": {"example": names, "win_rate": per_prompt}})

    @property
    def judge_model(self) -> ModelReward | None:
        """The judge, where it is not the task's rule."""
        from harness.rewards.model import ModelReward

        return None if self.judge is None else ModelReward(path=self.judge)

    def _score(self, context: EvalContext) -> Callable[[Sequence[Row], Sequence[Sample]], list[float]]:
        """The task's rule, or the judge, loaded."""
        judge = self.judge_model
        if judge is None:
            return lambda rows, drawn: [s.reward for s in context.task.scores(rows, [d.text for d in drawn])]
        from harness.rewards.base import Desk

        rows = context.bare or context.rows
        desk = Desk(None, context.tokenizer, rows, {}, context.device, context.frozen, context.precision)
        try:
            score = replace(judge, score_batch_size=context.batch_size).open(desk)
        except UserError as error:
            raise UserError(error.rule, key=JUDGE_KEY, value=self.judge, fix=error.fix) from None
        return lambda rows, drawn: list(score(rows, [d.text for d in drawn], [d.ended for d in drawn]))
