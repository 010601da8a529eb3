"""EleutherAI's lm-evaluation-harness on the model in memory, adapters and 4-bit weights included.

Beside its scores: results per document, calibration of multiple-choice tasks, and documents that training shows.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge, Gt

from harness.base.calibration import t_quantile, wilson
from harness.base.errors import UserError
from harness.config import closure
from harness.evaluators.base import EvalContext, Evaluation, Evaluator
from harness.tasks.arithmetic import Arithmetic
from harness.tasks.audit import copies
from harness.tasks.base import Task, TaskData
from harness.tasks.conversation import Style

EMBEDDED = ("arithmetic_generate", "arithmetic_choice", "letters")
FOLDER = Path(__file__).parent / "lm_eval_tasks"
BINS = 10
Samples = Mapping[str, Sequence[Mapping[str, Any]]]
"""lm-eval's record per task: a dictionary per document and filter."""


@dataclass(frozen=True)
class LmEval(Evaluator):
    """lm-eval tasks by name.

    Attributes:
        tasks: names known to lm-eval or to ``include_path``; ``embedded`` stands for the tasks that come with
            the arithmetic world: one generative, one multiple choice, one out of alignment's domain.
        include_path: folder with YAML tasks of your own.
        limit: documents per task; null takes all.
        num_fewshot: examples in the prompt; null is the task's own.
        max_length: tokens of prompt and answer; null is the model's context, at most 8,192. What is longer loses its
            beginning and is counted.
    """

    reads_training: ClassVar[bool] = True  # it says which of its questions training has shown

    tasks: tuple[str, ...] = ("embedded",)
    include_path: str | None = None
    limit: Annotated[int, Gt(0)] | None = None
    num_fewshot: Annotated[int, Ge(0)] | None = None
    max_length: Annotated[int, Gt(1)] | None = None

    def not_applicable(self, task: Task, data: TaskData) -> str | None:
        """The embedded tasks need the embedded data."""
        if self.tasks == ("embedded",) and not data.retention:
            return "the embedded lm-eval tasks ask about arithmetic; name others: eval.evaluators.lm_eval.tasks=[...]"
        return None

    def contents(self) -> Mapping[str, str]:
        """Of the folder of tasks every file: the YAML, the Python beside it, and data."""
        folder = Path(self.include_path).expanduser() if self.include_path else None
        return {"include_path": closure.content_digest(closure.files_below(folder))} if folder else {}

    def on_fixture(self, context: EvalContext, judge: str) -> tuple[LmEval, EvalContext]:
        """On the embedded tasks: others may have to be fetched, and their files and names are keyed as they are."""
        if not context.data.retention:
            task = Arithmetic(pairs=1, eval_pairs=1, eval_prompts=6)
            data = replace(task.load(), train_pairs=(), train_prompts=())
            rows = Style().rows
            context = replace(context, task=task, data=data, rows=rows, split="test")
        return replace(self, tasks=("embedded",), include_path=None), context

    def evaluate(self, context: EvalContext) -> Evaluation:
        """``simple_evaluate`` with fixed seeds; the model is left in the mode it was in.

        Raises:
            UserError: a task is unknown, lacks a package, or, on the baseline, training shows more of its documents
                than ``eval.max_leaked`` allows.
        """
        import numpy
        import torch
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.tasks import TaskManager

        from harness.evaluators.lm_eval_model import CountingModel, economical, length_for
        from harness.models.generation import own_distribution

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
        training, python_state, numpy_state = context.model.training, random.getstate(), numpy.random.get_state()
        model = CountingModel(context, length_for(context, self.max_length))
        chat = bool(context.tokenizer.chat_template) if context.chat is None else context.chat
        with (
            torch.random.fork_rng(devices=[context.device] if context.device == "cuda" else []),
            own_distribution(context.model, context.tokenizer, top_k=0),
            economical(),
        ):
            try:
                found: Any = simple_evaluate(
                    model=model,
                    tasks=names,
                    task_manager=manager,
                    limit=self.limit,
                    num_fewshot=self.num_fewshot,
                    bootstrap_iters=0,
                    log_samples=True,
                    apply_chat_template=chat and not context.data.retention,
                    random_seed=context.seed,
                    numpy_random_seed=context.seed,
                    torch_random_seed=context.seed,
                    fewshot_random_seed=context.seed,
                )
            except ModuleNotFoundError as error:
                raise UserError(
                    f"a task needs the package {error.name!r}, which is not installed",
                    key="eval.evaluators.lm_eval.tasks",
                    value=names,
                    fix=f"pip install {error.name}, or lm_eval's extra for the task (ifeval, math, ...)",
                ) from None
        context.model.train(training)
        random.setstate(python_state)  # lm-eval reseeds the global generators
        numpy.random.set_state(numpy_state)
        assert found is not None
        samples = by_reported_name(found["samples"], found.get("group_subtasks") or {}, found["results"], names)
        leaks = leaked(samples, context) if context.on_baseline else []
        effective = {n: d["effective"] for n, d in found["n-samples"].items()}
        documents = {name: len({_document(s) for s in own}) for name, own in samples.items()} | effective
        return Evaluation(
            metrics=plain_metrics({n: v for n, v in found["results"].items() if n in samples}, documents)
            | choice_calibration(samples)
            | truncated(samples, model.cut),
            notes=[
                f"{name}: answers have {tokens} tokens at most, fewer than the task allows (of {model.max_length})"
                for name, tokens in model.shortened.items()
            ],
            tables={"lm_eval_leaks": leaks} if leaks else {},
            examples={
                f"lm_eval_{name}": columns for name, own in samples.items() if (columns := per_document(name, own))
            },
        )


def by_reported_name(
    samples: Samples, subtasks: Mapping[str, Sequence[str]], results: Mapping[str, Any], asked: Sequence[str]
) -> dict[str, list[Mapping[str, Any]]]:
    """The records of every task that is reported, with its name in each as ``task``.

    A group is reported as one task with the records of its parts where lm-eval gives a figure for it, and its parts
    only where they were asked for by name.
    """

    def parts(name: str) -> Iterator[str]:
        if name in samples:
            yield name
        for part in subtasks.get(name, ()):
            yield from parts(part)

    def has_figures(name: str) -> bool:
        return any(isinstance(v, int | float) and "," in k for k, v in results.get(name, {}).items())

    def reported(name: str) -> Iterator[str]:
        if has_figures(name):
            yield name
        else:
            for part in subtasks.get(name, ()):
                yield from reported(part)

    chosen = dict.fromkeys(name for asked_for in asked for name in reported(asked_for))
    return {
        name: [{**s, "task": part} for part in dict.fromkeys(parts(name)) for s in samples[part]] for name in chosen
    }


def truncated(samples: Samples, cut: Mapping[str, Collection[int]]) -> dict[str, float]:
    """``<task>/truncated``: documents of each reported task whose prompt was cut, given their numbers by part."""
    parts = {name: {(s["task"], s["doc_id"]) for s in own} for name, own in samples.items()}
    return {
        f"{name}/truncated": float(sum(number in cut.get(part, ()) for part, number in documents))
        for name, documents in parts.items()
    }


def per_document(name: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A value per document for each metric of a task that is a number there; empty where none is for all of them."""
    columns: dict[str, dict[str, float]] = {}
    for sample in samples:
        for metric in sample.get("metrics", ()):
            value = sample.get(metric)
            if isinstance(value, bool | int | float) and math.isfinite(value):
                columns.setdefault(_label(name, metric, sample.get("filter", "none")), {})[_document(sample)] = float(
                    value
                )
    documents = list(dict.fromkeys(_document(s) for s in samples))
    whole = {
        label: [values[d] for d in documents] for label, values in columns.items() if len(values) == len(documents)
    }
    return {"example": documents, **whole} if whole else {}


def choice_calibration(samples: Samples) -> dict[str, float]:
    """``<task>/ece`` and ``<task>/brier`` of multiple-choice tasks.

    The confidence of an answer is the softmax of the log-likelihoods of the choices (nats, summed over tokens), the
    prediction the most likely choice, right where lm-eval's ``acc`` says so. Ten equal bins from 0 to 1; ``brier``
    is the mean squared difference of that confidence and being right.
    """
    metrics: dict[str, float] = {}
    for name, own in samples.items():
        judged = [(_confidence(s["filtered_resps"]), float(s["acc"])) for s in own if _is_choice(s)]
        if judged and len(judged) == len({_document(s) for s in own}):
            sure, right = [c for c, _ in judged], [r for _, r in judged]
            metrics |= _errors_of_choices(name, np.array(sure), np.array(right))
    return metrics


def _errors_of_choices(name: str, sure: np.ndarray, right: np.ndarray) -> dict[str, float]:
    from harness.base import calibration

    def ece(places: np.ndarray | slice) -> float:
        return calibration.expected_calibration_error(calibration.reliability(sure[places], right[places], bins=BINS))

    found = {"ece": ece(slice(None)), "ece_stderr": calibration.bootstrap_error(ece, len(sure))}
    squares = (sure - right) ** 2
    found |= {"brier": float(squares.mean()), "brier_stderr": calibration.clustered_error(squares)}
    return {f"{name}/{tail}": value for tail, value in found.items() if value is not None}


def _is_choice(sample: Mapping[str, Any]) -> bool:
    """Whether a record holds a log-likelihood for each choice, and which was right."""
    answers = sample.get("filtered_resps") or ()
    return (
        sample.get("acc") in (0, 1)
        and len(answers) > 1
        and len(answers) == len(sample.get("arguments", ()))
        and all(isinstance(a, list | tuple) and len(a) == 2 and isinstance(a[0], float) for a in answers)
    )


def _confidence(answers: Sequence[tuple[float, bool]]) -> float:
    highest = max(a[0] for a in answers)
    return 1 / math.fsum(math.exp(a[0] - highest) for a in answers)


def leaked(samples: Samples, context: EvalContext) -> list[dict[str, str]]:
    """Documents that a training prompt shows: a row for each.

    A document is looked for by each of its texts (lm-eval's fields) as held-out prompts are (``audit``).

    Raises:
        UserError: more of a task than ``eval.max_leaked`` allows.
    """
    texts = {
        name: {_document(s): [v for v in s["doc"].values() if isinstance(v, str)] for s in own}
        for name, own in samples.items()
    }
    held = {t for documents in texts.values() for fields in documents.values() for t in fields}
    shown = copies(held, context.data.training_prompts())
    rows: list[dict[str, str]] = []
    for name, documents in texts.items():
        hits = {
            d: shown[next(t for t in fields if t in shown)] for d, fields in documents.items() if shown.keys() & fields
        }
        for document, (how, text, source) in hits.items():
            rows.append({"task": name, "document": document, "how": how, "text": text, "in_training": source})
        if len(hits) > context.max_leaked * len(documents):
            how, text, source = next(iter(hits.values()))
            raise UserError(
                f"{len(hits) / len(documents):.1%} of the documents of {name} are shown in training, such as "
                f"{text[:60]!r} ({how}: {source[:60]!r}), more than eval.max_leaked={context.max_leaked}",
                key="eval.evaluators.lm_eval.tasks",
                value=name,
                fix="remove them from the training rows, leave the task out, or allow them: eval.max_leaked=1",
            )
    return rows


def _document(sample: Mapping[str, Any]) -> str:
    return f"{sample['task']}:{sample['doc_id']}"


def _label(task: str, metric: str, filter_name: str) -> str:
    return f"{task}/{metric}" + ("" if filter_name in ("", "none") else f"_{filter_name}")


def plain_metrics(results: dict[str, dict[str, Any]], documents: dict[str, int]) -> dict[str, float]:
    """lm-eval's ``exact_match,none`` as ``<task>/exact_match``; MLflow refuses the comma.

    A filter other than ``none`` stays in the name. The standard error of a mean of zeros and ones is computed
    here, and Wilson's interval, since lm-eval leaves it out without bootstrapping for some metrics.
    """
    metrics: dict[str, float] = {}
    for task, values in results.items():
        for key, value in values.items():
            name, _, filter_name = key.partition(",")
            if isinstance(value, bool) or not isinstance(value, int | float) or name.endswith("_stderr"):
                continue
            if name in ("sample_len", "sample_count") or not math.isfinite(value):
                continue
            label = _label(task, name, filter_name)
            metrics[label] = float(value)
            n = documents.get(task, 0)
            if n > 1 and 0 <= value <= 1 and name in ("acc", "acc_norm", "exact_match"):
                metrics[f"{label}_stderr"] = math.sqrt(value * (1 - value) / (n - 1))
                low, high = wilson(float(value), n, t_quantile(n - 1))
                metrics |= {f"{label}_low": low, f"{label}_high": high}
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
