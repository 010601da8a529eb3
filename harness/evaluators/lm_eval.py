"""EleutherAI's lm-evaluation-harness on the model in memory, adapters and 4-bit weights included."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt

from harness.errors import UserError
from harness.evaluators.base import EvalContext, Evaluation, Evaluator
from harness.tasks.base import Task, TaskData

EMBEDDED = ("arithmetic_generate", "arithmetic_choice", "letters")
FOLDER = Path(__file__).parent / "lm_eval_tasks"


@dataclass(frozen=True)
class LmEval(Evaluator):
    """lm-eval tasks by name.

    Attributes:
        tasks: names known to lm-eval or to ``include_path``; ``embedded`` stands for the tasks that come with
            the arithmetic world: one generative, one multiple choice, one out of alignment's domain.
        include_path: folder with YAML tasks of your own.
        limit: documents per task; null takes all.
        num_fewshot: examples in the prompt; null is the task's own.
    """

    tasks: tuple[str, ...] = ("embedded",)
    include_path: str | None = None
    limit: Annotated[int, Gt(0)] | None = None
    num_fewshot: Annotated[int, Ge(0)] | None = None

    def not_applicable(self, task: Task, data: TaskData) -> str | None:
        """The embedded tasks need the embedded data."""
        if self.tasks == ("embedded",) and not data.retention:
            return "the embedded lm-eval tasks ask about arithmetic; name others: eval.evaluators.lm_eval.tasks=[...]"
        return None

    def evaluate(self, context: EvalContext) -> Evaluation:
        """``simple_evaluate`` with fixed seeds; the model is left in the mode it was in."""
        import numpy
        import torch
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.models import huggingface
        from lm_eval.tasks import TaskManager

        names: list[Any] = [n for t in self.tasks for n in (EMBEDDED if t == "embedded" else (t,))]
        if not context.data.retention:
            names = [n for n in names if n not in EMBEDDED]
        paths: Any = [str(FOLDER)] + ([self.include_path] if self.include_path else [])
        manager = TaskManager(
            include_path=paths,
            include_defaults=any(n not in EMBEDDED for n in names),
            metadata={"harness_rows": embedded_rows(context)} if context.data.retention else None,
        )
        unknown = [n for n in names if n not in manager.all_tasks]
        if unknown:
            raise UserError(
                "unknown to lm-eval",
                key="eval.evaluators.lm_eval.tasks",
                value=unknown,
                fix="see `lm-eval ls tasks`, or set eval.evaluators.lm_eval.include_path",
            )
        wrapper: Any = huggingface.HFLM  # its metaclass hides the signature from type checkers
        training, python_state, numpy_state = context.model.training, random.getstate(), numpy.random.get_state()
        with torch.random.fork_rng(devices=[context.device] if context.device == "cuda" else []):
            found: Any = simple_evaluate(
                model=wrapper(
                    pretrained=context.model,
                    tokenizer=context.tokenizer,
                    batch_size=context.batch_size,
                    max_length=context.max_length,
                    device=context.device,
                ),
                tasks=names,
                task_manager=manager,
                limit=self.limit,
                num_fewshot=self.num_fewshot,
                bootstrap_iters=0,
                log_samples=False,
                apply_chat_template=bool(context.tokenizer.chat_template) and not context.data.retention,
                random_seed=context.seed,
                numpy_random_seed=context.seed,
                torch_random_seed=context.seed,
                fewshot_random_seed=context.seed,
            )
        context.model.train(training)
        random.setstate(python_state)  # lm-eval reseeds the global generators
        numpy.random.set_state(numpy_state)
        assert found is not None
        return Evaluation(
            metrics=plain_metrics(found["results"], {n: d["effective"] for n, d in found["n-samples"].items()})
        )


def plain_metrics(results: dict[str, dict[str, Any]], documents: dict[str, int]) -> dict[str, float]:
    """lm-eval's ``exact_match,none`` as ``<task>/exact_match``; MLflow refuses the comma.

    A filter other than ``none`` stays in the name. The standard error of a mean of zeros and ones is computed
    here, since lm-eval leaves it out without bootstrapping for some metrics.
    """
    metrics: dict[str, float] = {}
    for task, values in results.items():
        for key, value in values.items():
            name, _, filter_name = key.partition(",")
            if isinstance(value, bool) or not isinstance(value, int | float) or name.endswith("_stderr"):
                continue
            if name in ("sample_len", "sample_count") or not math.isfinite(value):
                continue
            label = f"{task}/{name}" + ("" if filter_name in ("", "none") else f"_{filter_name}")
            metrics[label] = float(value)
            n = documents.get(task, 0)
            if n > 1 and 0 <= value <= 1 and name in ("acc", "acc_norm", "exact_match"):
                metrics[f"{label}_stderr"] = math.sqrt(value * (1 - value) / (n - 1))
    return metrics


def embedded_rows(context: EvalContext) -> dict[str, list[dict[str, Any]]]:
    """Documents of the three embedded tasks, from the held-out prompts of the context's split."""
    answered = [r for r in context.data.eval_prompts[context.split] if r["answer"] is not None]
    rng = random.Random("lm-eval-choices")
    choice = []
    for row in answered:
        right = int(row["answer"])
        others = sorted({right + d for d in (-11, -10, -1, 1, 9, 10)} - {right})
        options = [str(right), *(str(o) for o in rng.sample([o for o in others if o >= 0], 3))]
        rng.shuffle(options)
        choice.append({"prompt": row["prompt"], "choices": options, "target": options.index(str(right))})
    return {
        "generate": [{"prompt": r["prompt"], "answer": r["answer"]} for r in answered],
        "choice": choice,
        "letters": [{"prompt": r["prompt"], "answer": r["completion"]} for r in context.data.retention],
    }
