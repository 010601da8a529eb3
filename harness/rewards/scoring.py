"""A reward as a trainer calls it: one finite number per completion, or an error that names the row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.base.errors import UserError
from harness.rewards.base import Opened, Payment, Reward, ScoreFunction
from harness.rewards.composite import means_of
from harness.tasks.base import Row, Task, Text, text_of
from harness.tasks.judging import tally


class Scorer:
    """Scores the completions of prompt rows and remembers what the task itself thinks of them.

    Args:
        reward: bound to its task.
        task: its true reward, where it knows one, is told beside the reward's.
        rows: the prompt rows.
    """

    def __init__(self, reward: Reward, task: Task, rows: Sequence[Row]):
        """Score through the reward itself until ``use`` replaces it."""
        self.reward, self.task, self.rows = reward, task, rows
        self._function: ScoreFunction = lambda rows, completions, _: reward(rows, completions)
        self._means: dict[str, float] = {}

    def use(self, function: ScoreFunction) -> None:
        """Score through ``function`` from now on: what the reward has become with its models at hand."""
        self._function = function

    def means(self) -> dict[str, float]:
        """True reward and share correct of the last completions scored, where the task knows them.

        Of a reward with a pattern also the share of completions that it took too long for.
        """
        return self._means

    def __call__(self, completions: Sequence[Text], indices: Sequence[int], ended: Sequence[bool]) -> list[float]:
        """One finite number per completion.

        Args:
            completions: text or messages.
            indices: each one's row.
            ended: whether it ended by itself.

        Raises:
            UserError: naming the reward's function and the row, for anything else.
        """
        rows, texts = [self.rows[i] for i in indices], [text_of(c) for c in completions]
        self._means = {}
        if self.task.has_reward:
            scores = self.task.scores(rows, texts)
            self._means = {
                "true_reward": sum(s.reward for s in scores) / len(scores),
                "correct": sum(s.correct for s in scores) / len(scores),
            }
        tally.take()
        values = checked(self.reward, self._function, rows, texts, ended)
        tried, expired = tally.take()
        if tried:
            self._means = {**self._means, "reward_timeouts": expired / tried}
        self._means = {**self._means, **means_of(self._function)}
        return values

    def placed(self) -> Sequence[Sequence[Payment]] | None:
        """Where each of the last completions scored earns its reward; None where that is its end."""
        return self._function.placed() if isinstance(self._function, Opened) else None

    def paid(self, rows: Sequence[Row], texts: Sequence[str], ended: Sequence[bool]) -> list[float]:
        """One finite number for each completion of rows that need not be the scorer's own; nothing is remembered."""
        return checked(self.reward, self._function, rows, texts, ended)


def checked(
    reward: Reward, function: ScoreFunction, rows: Sequence[Row], texts: Sequence[str], ended: Sequence[bool]
) -> list[float]:
    """Call ``function`` and insist on one finite number per completion."""
    name = f"{type(reward).__module__}.{type(reward).__qualname__}"
    try:
        given: Any = function(rows, texts, ended)
        values: list[Any] | None = None
        if hasattr(given, "__iter__") and not isinstance(given, str):
            values = list(given)  # a generator may raise now
    except UserError:
        raise
    except Exception as error:
        at = _culprit(function, rows, texts, ended)
        raise UserError(
            f"the reward {name} raised {type(error).__name__}: {error}",
            key="reward",
            fix=f"mend it: called with {_one(rows[at], texts[at])}, it must return a list of one finite number",
        ) from error
    if values is None:
        rule, fix = (
            f"the reward {name} returned {given!r}",
            "return a list of one finite number per completion, in order",
        )
        raise UserError(rule, key="reward", fix=fix)
    if len(values) != len(texts):
        raise UserError(
            f"the reward {name} returned {len(values)} numbers for {len(texts)} completions",
            key="reward",
            fix="return exactly one number per completion, in order",
        )
    values = [v.item() if hasattr(v, "item") else v for v in values]  # numbers of NumPy and torch
    for value, row, text in zip(values, rows, texts, strict=True):
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(
                f"the reward {name} must give a finite number",
                key="reward",
                value=value,
                fix=f"see what it makes of {_one(row, text)}",
            )
    return [float(v) for v in values]


def _one(row: Row, text: str) -> str:
    return f"the row {dict(row)!r} and the completion {text!r}"


def _culprit(
    function: ScoreFunction, rows: Sequence[Mapping[str, Any]], texts: Sequence[str], ended: Sequence[bool]
) -> int:
    """The first row that fails alone; the first of the batch where none does."""
    for i in range(len(rows)):
        try:
            function(rows[i : i + 1], texts[i : i + 1], ended[i : i + 1])
        except Exception:
            return i
    return 0
