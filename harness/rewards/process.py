"""A reward for every step of a completion, by a model that grades steps (a process reward model, arXiv 2305.20050)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, Lt, MinLen

from harness.base.errors import UserError
from harness.base.records import UNTOLD
from harness.config import identity
from harness.rewards.base import Desk, Opened, Payment
from harness.rewards.learned import Held, LearnedReward, Recipe
from harness.rewards.steps import Aggregate, aggregated, read_as, shares, steps_of
from harness.tasks.base import Row, Task, TaskData
from harness.tasks.conversation import prompt_ids
from harness.tasks.reading.files import fingerprint_of
from harness.tasks.reading.rows import unescaped
from harness.tasks.reading.splits import SPLITS
from harness.tasks.reading.steps import StepRows, read_steps

PATH_KEY = "reward.path_of_steps"
SEPARATOR = "\n"
"""Of data of one's own; that of TRL's trainers of such models."""
HELD_OUT_ROWS = 1000
"""Of a task that makes its rows, per split."""


@dataclass(frozen=True)
class StepModelSpec(Recipe):
    """Recipe of the stage that trains a model to grade steps.

    Attributes:
        separator: follows each step.
        rows: to learn from; of a file the first ones, None: all.
        path: the file; None takes the task's rows.
        held_out: share of the file's prompts that are held out.
        task: whose rows they are; no part of the recipe, as the rows' own digest is an input of the stage.
    """

    stage: ClassVar[str] = "process_model"

    separator: str
    rows: int | None
    path: str | None
    held_out: float
    task: Task | None = field(default=None, metadata=UNTOLD, compare=False)

    @property
    def key(self) -> str:
        """Without the task, which a trial has one of."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("task", "adapter")}
        return identity.digest(
            {"steps of": {**asdict(self.adapter), "adapter": type(self.adapter).__qualname__}, **told}
        )

    def load(self) -> StepRows:
        """The rows; raises ``UserError`` naming file, line and fix."""
        if self.path is not None:
            found = read_steps(self.path, key=PATH_KEY, held_out=self.held_out, seed=self.seed)
            return StepRows(found.train[: self.rows], found.held_out)
        assert self.task is not None and self.rows is not None
        held = {split: self.task.step_rows(split, HELD_OUT_ROWS) for split in SPLITS}
        return StepRows(self.task.step_rows("train", self.rows), held)


@dataclass(frozen=True)
class ProcessReward(LearnedReward):
    """Scores each step of a completion by the probability that it is right, between 0 and 1.

    PPO is paid where steps end (``dense``); others, and best-of-n, one number per completion (``aggregate``). Both come
    to the same sum for a completion, so what differs is where it is paid. A model by ``path`` is one for token
    classification with two labels, of which the last says that a step is right, or with one, whose output is the
    log-odds of that; it is read at the last token of each step, its separator included.

    Attributes:
        path_of_steps: rows to learn from, of ``prompt``, ``steps`` (or ``completions``) and ``labels``; null takes the
            task's, where it knows which steps are right (``task.steps``).
        rows: to learn from; null takes the preset's, and all rows of a file.
        held_out: share of the prompts of ``path_of_steps`` on which the model is judged alone.
        separator: what parts steps; null is the task's own, or a line break.
        aggregate: the worst step, the product of all (the probability that all are right, if they were independent),
            their mean, or the last.
        dense: pay PPO where steps end; false pays the one number at the end.
        without_steps: paid to a completion that has none, since nothing is in it.
    """

    each_token: ClassVar[bool] = True
    labels: ClassVar[tuple[int, ...]] = (1, 2)

    path_of_steps: str | None = None
    rows: Annotated[int, Gt(0)] | None = None
    held_out: Annotated[float, Gt(0), Lt(1)] = 0.1
    separator: Annotated[str, MinLen(1)] | None = None
    aggregate: Aggregate = "product"
    dense: bool = True
    without_steps: Annotated[float, Ge(0), Le(1)] = 0.0
    spec: StepModelSpec | None = None

    def problems(self, task: Task) -> list[UserError]:
        """Somebody must know which steps are right."""
        found = super().problems(task)
        if self.path is not None and self.path_of_steps is not None:
            rule, fix = "a model by reward.path is not trained", "leave one of them out"
            found.append(UserError(rule, key=PATH_KEY, value=self.path_of_steps, fix=fix))
        if self.path is None and self.path_of_steps is None and task.step_separator is None:
            found.append(
                UserError(
                    "nobody knows which steps of this task's completions are right, so no model can learn it",
                    key="reward",
                    value="process",
                    fix=f"{PATH_KEY}=FILE with rows of prompt, steps and labels; a trained model: reward.path=...; or "
                    "task=arithmetic task.steps=2; reward=verifier and reward=model pay for whole completions",
                )
            )
        return found

    def data_problems(self, data: TaskData) -> list[UserError]:
        """The file must hold such rows."""
        if self.path is not None or self.path_of_steps is None:
            return []
        try:
            found = read_steps(self.path_of_steps, key=PATH_KEY, held_out=self.held_out, seed=self.seed)
        except UserError as error:
            return [error]
        if found.away_from(data.eval_prompts).train:
            return []
        rule, fix = "all of its prompts are held out by the task", "name rows of other prompts"
        return [UserError(rule, key=PATH_KEY, value=self.path_of_steps, fix=fix)]

    def tuned(self) -> tuple[str, ...]:
        """Of a file all rows are read where no number is named."""
        return super().tuned() if self.path_of_steps is not None else (*super().tuned(), "rows")

    def recipe(self, task: Task, **options: Any) -> StepModelSpec:
        """With where its rows come from."""
        assert self.separator is not None
        own = {"rows": self.rows, "separator": self.separator, "path": self.path_of_steps, "held_out": self.held_out}
        return StepModelSpec(**{**own, **options}, task=None if self.path_of_steps else task)

    def bind(self, task: Task, adapter: Any, preset: str) -> ProcessReward:
        """The separator is the task's where none is set, and the rest is the preset's."""
        own = None if self.separator is None else unescaped(self.separator)
        told = replace(self, separator=own or task.step_separator or SEPARATOR)
        return super(ProcessReward, told).bind(task, adapter, preset)

    def contents(self) -> Mapping[str, str]:
        """The file's, and the model's."""
        found = dict(super().contents())
        if self.path_of_steps is not None:
            found["path_of_steps"] = fingerprint_of({PATH_KEY: self.path_of_steps})
        return found

    def open(self, desk: Desk) -> Graded:
        """With the model at hand."""
        return Graded(self, desk, self.held(desk))

    def without_weights(self) -> ProcessReward:
        """A model of the same shape."""
        return _Weightless(**{f.name: getattr(self, f.name) for f in fields(self)})


class _Weightless(ProcessReward):
    """Holds a model of the right shape, for tensors without data."""

    def held(self, desk: Desk) -> Held:
        """A model from a configuration alone."""
        return self.shape(desk)


class Graded(Opened):
    """Grades the steps of completions, and remembers those of the last batch."""

    def __init__(self, reward: ProcessReward, desk: Desk, held: Held):
        """Score by ``held``."""
        self._reward, self._desk, self._held = reward, desk, held
        self._placed: list[list[Payment]] = []
        self._means: dict[str, float] = {}

    def __call__(self, rows: Sequence[Row], completions: Sequence[str], ended: Sequence[bool]) -> list[float]:
        """The aggregate of each completion."""
        reward = self._reward
        graded = self.grades(rows, completions, ended)
        self._placed = [
            [
                Payment(end, share)
                for (end, _), share in zip(own, shares([s for _, s in own], reward.aggregate), strict=True)
            ]
            for own in graded
        ]
        count, scores = len(completions), [score for own in graded for _, score in own]
        self._means = {
            "reward_steps": len(scores) / max(1, count),
            "reward_without_steps": sum(not own for own in graded) / max(1, count),
        }
        if scores:
            self._means["reward_per_step"] = math.fsum(scores) / len(scores)
        return [
            aggregated([score for _, score in own], reward.aggregate) if own else reward.without_steps for own in graded
        ]

    def grades(
        self, rows: Sequence[Row], completions: Sequence[str], ended: Sequence[bool]
    ) -> list[list[tuple[int, float]]]:
        """Of each completion the steps that the model can read: characters up to their ends, and scores from 0 to 1."""
        import torch

        from harness.models.classifier import score_places

        reward, desk, tokenizer = self._reward, self._desk, self._held.tokenizer
        separator = reward.separator or SEPARATOR
        steps = [steps_of(text, separator) for text in completions]
        whole = [i for i, found in enumerate(steps) if found]
        prompts = prompt_ids(
            tokenizer, [r["prompt"] for r in desk.rows([{"prompt": rows[i]["prompt"]} for i in whole])]
        )
        # What was cut off in the middle of a step is shown without the separator, as it is not known to be whole.
        texts = [[s.text + separator * (s.closed or ended[i]) for s in steps[i]] for i in whole]
        sequences, places = read_as(tokenizer, prompts, texts, reward.max_length)
        read = [[place for place in own if place >= 0] for own in places]
        odds = score_places(
            self._held.shell,
            sequences,
            read,
            pad=tokenizer.pad_token_id,
            batch_size=reward.score_batch_size,
            device=desk.device,
            precision=desk.precision,
            turn=self._held.turn,
        )
        scores = iter(torch.sigmoid(odds).tolist())
        found: list[list[tuple[int, float]]] = [[] for _ in completions]
        for i, own in zip(whole, places, strict=True):
            found[i] = [(step.end, next(scores)) for step, place in zip(steps[i], own, strict=True) if place >= 0]
        return found

    def means(self) -> Mapping[str, float]:
        """Steps per completion, their mean score, and the share of completions without any."""
        return self._means

    def placed(self) -> Sequence[Sequence[Payment]] | None:
        """Of the last batch, where ``dense``."""
        return self._placed if self._reward.dense else None
