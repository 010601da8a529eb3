"""What the model really says: sampled completions, scored by the task's own rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from harness.evaluators.base import EvalContext, Evaluation, Evaluator
from harness.tasks.base import Task, TaskData, prompt_key, text_of


@dataclass(frozen=True)
class TrueReward(Evaluator):
    """Mean true reward, share correct and length of sampled completions on held-out prompts.

    Attributes:
        samples: completions per prompt.
        temperature: of sampling; 0 is greedy.
        max_prompts: at most this many prompts of the split; null takes all.
        table_rows: completions kept as a table.
    """

    samples: Annotated[int, Gt(0)] = 4
    temperature: Annotated[float, Ge(0)] = 1.0
    max_prompts: Annotated[int, Gt(0)] | None = None
    table_rows: Annotated[int, Ge(0)] = 24

    def not_applicable(self, task: Task, data: TaskData) -> str | None:
        """The task must be able to score a completion."""
        if not task.has_reward:
            return "the task has no rule that scores a completion"
        return None if any(data.eval_prompts.values()) else "the data has no held-out prompts"

    def evaluate(self, context: EvalContext) -> Evaluation:
        """Sample, score, and average first within a prompt, so that prompts are the unit of the error."""
        from harness.evaluators.scoring import grouped, held_out_samples, share_with_bounds, task_scores, with_stderr

        rows, drawn = held_out_samples(
            context, per_prompt=self.samples, temperature=self.temperature, max_prompts=self.max_prompts
        )
        scores = task_scores(context, rows, drawn)
        columns = {
            "true_reward": grouped([s.reward for s in scores], self.samples),
            "correct": grouped([float(s.correct) for s in scores], self.samples),
            "completion_tokens": grouped([float(d.tokens) for d in drawn], self.samples),
            "ended_by_eos": grouped([float(d.ended) for d in drawn], self.samples),
        }
        table = [
            {
                "prompt": text_of(rows[d.row]["prompt"]),
                "completion": d.text,
                "reward": round(s.reward, 4),
                "correct": s.correct,
                "tokens": d.tokens,
                "ended": d.ended,
            }
            for d, s in zip(drawn, scores, strict=True)
        ][:: max(1, self.samples)][: self.table_rows]
        prompts = [prompt_key(row["prompt"]) for row in rows]
        metrics: dict[str, float] = {}
        for name, values in columns.items():
            if name in ("correct", "ended_by_eos"):
                metrics |= share_with_bounds(name, values, prompts, draws=self.samples)
            else:
                metrics |= with_stderr(name, values, prompts)
        return Evaluation(metrics, tables={"samples": table}, examples={"prompts": {"example": prompts, **columns}})
