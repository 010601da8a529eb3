"""How often a sampled completion beats the one that the model gave before training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from harness.evaluators.base import EvalContext, Evaluation, Evaluator
from harness.tasks.base import Task, TaskData, prompt_key


@dataclass(frozen=True)
class WinRate(Evaluator):
    """Trained model against the one training started from, the same prompts, judged by the task's own reward.

    Raw, a tie counting one half, and length-controlled: what a logistic regression on the difference in length
    expects between answers of equal length (``stats.length_controlled_rate``).

    Attributes:
        samples: completions per prompt on either side.
        max_prompts: at most this many prompts of the split; null takes all.
    """

    samples: Annotated[int, Gt(0)] = 4
    max_prompts: Annotated[int, Gt(0)] | None = None

    def not_applicable(self, task: Task, data: TaskData) -> str | None:
        """The task must be able to score a completion."""
        if not task.has_reward:
            return "the task has no rule that scores a completion"
        return None if any(data.eval_prompts.values()) else "the data has no held-out prompts"

    def evaluate(self, context: EvalContext) -> Evaluation:
        """Sample on either side and compare sample by sample."""
        from harness import stats
        from harness.evaluators.preference import wins
        from harness.evaluators.scoring import grouped, held_out_samples, with_stderr

        if context.before_training is None:
            return Evaluation({}, absent={"win_rate": "there is no other model to win against"})
        k = self.samples
        rows, mine = held_out_samples(context, per_prompt=k, max_prompts=self.max_prompts)
        with context.before_training() as before:
            _, theirs = held_out_samples(before, per_prompt=k, max_prompts=self.max_prompts)
        rewards = [[context.task.score(rows[d.row], d.text).reward for d in side] for side in (mine, theirs)]
        won = wins(*rewards)
        controlled = stats.length_controlled_rate(
            won, [float(a.tokens - b.tokens) for a, b in zip(mine, theirs, strict=True)]
        )
        per_prompt = grouped(won, k)
        metrics = dict(with_stderr("win_rate", per_prompt))
        if controlled is not None:
            metrics["win_rate_length_controlled"] = controlled
        names = [prompt_key(row["prompt"]) for row in rows]
        return Evaluation(metrics, examples={"wins": {"example": names, "win_rate": per_prompt}})
