"""Of several programs, or answers, for a problem: is one of them right? With pass@k's unbiased estimator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge, Gt

from harness.evaluators.base import EvalContext, Evaluation, Evaluator
from harness.tasks.base import Row, Task, TaskData, prompt_key, text_of
from harness.tasks.code import Code


@dataclass(frozen=True)
class PassAtK(Evaluator):
    """Share of held-out prompts of which at least one of k samples is right, for each k.

    Of n samples with c right ones, 1 - C(n - c, k) / C(n, k) is the mean over all choices of k (arXiv 2107.03374).

    Attributes:
        k: numbers of samples; at most ``samples``.
        samples: drawn per prompt.
        temperature: of sampling; 0 is greedy.
        max_prompts: at most this many prompts; null takes all.
        path: a file of programming problems that every model is judged on, all of its rows (``task=code``); null asks
            the task's own held-out prompts.
        label: stands before the metrics' names, ``LABEL/pass_at_1``; null: none.
        sandbox, timeout_s, memory_mb: as ``task=code`` has them, where there is a ``path``.
    """

    k: Sequence[int] = (1,)
    samples: Annotated[int, Gt(0)] = 4
    temperature: Annotated[float, Ge(0)] = 1.0
    max_prompts: Annotated[int, Gt(0)] | None = None
    path: str | None = None
    label: str | None = None
    sandbox: str = "bubblewrap"
    timeout_s: Annotated[float, Gt(0)] = 5.0
    memory_mb: Annotated[int, Ge(64)] = 512

    def __post_init__(self) -> None:
        """Check what fields demand of each other; ``ValueError`` is what ``build()`` collects."""
        if not self.k or min(self.k) < 1 or max(self.k) > self.samples:
            raise ValueError(f"k must lie between 1 and samples ({self.samples}), not {list(self.k)}")
        if self.sandbox not in ("bubblewrap", "none"):
            raise ValueError(f"sandbox must be bubblewrap or none, not {self.sandbox}")

    def not_applicable(self, task: Task, data: TaskData) -> str | None:
        """A rule must say which completions are right."""
        if self.path is not None:
            return None
        if not task.has_reward:
            return "no rule tells which completions are right; name a file of problems: eval.evaluators.NAME.path=..."
        return None if any(data.eval_prompts.values()) else "the data has no held-out prompts"

    def contents(self) -> Mapping[str, str]:
        """Of the file."""
        return {} if self.path is None else {"path": self._problems().fingerprint()}

    def asks(self) -> Sequence[str]:
        """Of every problem of the file."""
        return [] if self.path is None else [text_of(row["prompt"]) for row in self._rows()]

    def _rows(self) -> Sequence[Row]:
        return self._problems().all_rows("eval.evaluators.NAME")

    def _problems(self) -> Code:
        assert self.path is not None
        return Code(
            path=self.path,
            sandbox="none" if self.sandbox == "none" else "bubblewrap",
            timeout_s=self.timeout_s,
            memory_mb=self.memory_mb,
        )

    def on_fixture(self, context: EvalContext, judge: str) -> tuple[PassAtK, EvalContext]:
        """On the fixture's own task: the file's content is keyed as it is."""
        return replace(self, path=None), context

    def evaluate(self, context: EvalContext) -> Evaluation:
        """Sample, judge, and average over prompts."""
        from harness.evaluators.scoring import held_out_samples, share_with_bounds, task_scores

        if self.path is not None:
            task = self._problems()
            context = replace(context, task=task, data=TaskData(eval_prompts={"test": self._rows()}), split="test")
        n = self.samples
        rows, drawn = held_out_samples(
            context, per_prompt=n, temperature=self.temperature, max_prompts=self.max_prompts
        )
        right = [s.correct for s in task_scores(context, rows, drawn)]
        names = [prompt_key(row["prompt"]) for row in rows]
        counts = [sum(right[i * n : (i + 1) * n]) for i in range(len(rows))]
        lead = "" if self.label is None else f"{self.label}/"
        columns = {f"{lead}pass_at_{k}": [at_least_one(n, c, k) for c in counts] for k in self.k}
        metrics: dict[str, float] = {}
        for name, values in columns.items():
            metrics |= share_with_bounds(name, values, names)
        return Evaluation(metrics, examples={"passes" if self.label is None else f"passes_{self.label}": {
            "example": names, **columns}})  # fmt: skip


def at_least_one(n: int, right: int, k: int) -> float:
    """The chance that one of k samples is right, drawn without putting back from n of which so many are."""
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)
