"""The task contract: rows in, rows out, a digest of their content. No torch here."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from harness.base.errors import UserError

Row = Mapping[str, Any]
Text = str | list[dict[str, str]]
"""A prompt or a completion: plain text, or a list of ``{"role", "content"}`` messages."""


@dataclass(frozen=True)
class Score:
    """What a task thinks of one completion.

    Attributes:
        reward: the true reward, in the task's own unit (``docs/metrics.md``).
        correct: whether the completion is right, its style aside.
    """

    reward: float
    correct: bool

    def __post_init__(self) -> None:
        """Numbers of numpy's and torch's become Python's own, which can be written down."""
        if hasattr(self.reward, "item") or hasattr(self.correct, "item"):
            object.__setattr__(self, "reward", float(self.reward))
            object.__setattr__(self, "correct", bool(self.correct))


@dataclass(frozen=True)
class TaskData:
    """Every row a trial may touch, split by prompt and never by row.

    Attributes:
        train_pairs: ``prompt, chosen, rejected`` rows for alignment.
        train_unpaired: ``prompt, completion, label`` rows (KTO); empty where the pairs are to be unpaired.
        train_prompts: ``prompt`` rows plus whatever ``Task.score`` reads, for online algorithms.
        eval_pairs: per split (``validation``, ``test``) the held-out preference pairs, labels clean where known.
        eval_prompts: per split the held-out prompts.
        retention: ``prompt, completion`` rows of skills that alignment never touches; forgetting shows here.
        notes: one line per thing a reader should know (rows skipped and why, ...).
        curation: ``removed_by_<rule>`` and ``changed_by_<rule>`` of ``task.curate`` -> training rows.
    """

    train_pairs: Sequence[Row] = ()
    train_unpaired: Sequence[Row] = ()
    train_prompts: Sequence[Row] = ()
    eval_pairs: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    eval_prompts: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    retention: Sequence[Row] = ()
    notes: Sequence[str] = ()
    curation: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (16 hex digits) over the content of all rows, in order."""
        content = {
            "train_pairs": list(self.train_pairs),
            "train_unpaired": list(self.train_unpaired),
            "train_prompts": list(self.train_prompts),
            "eval_pairs": {k: list(v) for k, v in self.eval_pairs.items()},
            "eval_prompts": {k: list(v) for k, v in self.eval_prompts.items()},
            "retention": list(self.retention),
        }
        return digest_of(content)

    @cached_property
    def held_out_digest(self) -> str:
        """The same of the rows that nothing is trained on: trials that have them in common are judged alike."""
        content = {
            "eval_pairs": {k: list(v) for k, v in self.eval_pairs.items()},
            "eval_prompts": {k: list(v) for k, v in self.eval_prompts.items()},
            "retention": list(self.retention),
        }
        return digest_of(content)

    def training_prompts(self) -> list[str]:
        """The words of every prompt that training may see, in order; a prompt of several rows comes several times."""
        rows = (*self.train_pairs, *self.train_unpaired, *self.train_prompts)
        return [text_of(row["prompt"]) for row in rows]


def digest_of(content: Any) -> str:
    """SHA-256 of the canonical JSON of ``content``, first 16 hex digits."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prompt_key(prompt: Text) -> str:
    """A hashable identity of a prompt, text or messages."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def text_of(value: Text) -> str:
    """The words of a prompt or completion: messages are joined by newlines."""
    return value if isinstance(value, str) else "\n".join(str(m.get("content", "")) for m in value)


@dataclass(frozen=True)
class Task(ABC):
    """A task is a frozen description; ``load()`` makes its rows."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    has_reward: ClassVar[bool] = False
    """True where ``score`` knows the true reward of any completion."""
    embedded: ClassVar[bool] = False
    """Whether this is the toy that the package brings, whose rows say nothing of real ones."""
    shape_rows: ClassVar[frozenset[str]] = frozenset()
    """Fields that change rows, whose content is known, or no number at all; all others judge (``judged_by``)."""
    knows_declining: ClassVar[bool] = False
    """True where ``declines`` and ``answerable`` know what they are asked."""

    @property
    def step_separator(self) -> str | None:
        """What parts the steps of a completion, where ``step_rows`` knows which are right; None where it does not."""
        return None

    # Share of the rows that a trial may leave out; a task that reads files declares a field of this name.
    allow_skipped = 0.05

    @property
    def judged_by(self) -> dict[str, Any]:
        """Fields on which it may depend what a completion is worth; of a task of a user's own, all of them."""
        return {name: value for name, value in asdict(self).items() if name not in self.shape_rows}

    def base_recipe(self) -> dict[str, Any]:
        """What ``base_rows`` depends on; fields that it does not read may be left out, so that a base is shared."""
        return asdict(self)

    @abstractmethod
    def load(self) -> TaskData:
        """Read or make all rows; raises ``UserError`` naming file, line, field and fix."""

    def fingerprint(self) -> str:
        """What stands for the content of the files that ``load`` reads, without parsing them; empty without files.

        Rows are read once per process for equal tasks of equal fingerprints; keys hold the rows' own digest.
        """
        return ""

    def base_rows(self, count: int) -> list[Row]:
        """``prompt, completion`` rows that make an embedded base model, in training order."""
        raise UserError(
            "this data cannot make the embedded base model",
            key="model",
            value="tiny",
            fix="use task=arithmetic with it, or your own model: model=hf model.path=...",
        )

    def score(self, row: Row, completion: str) -> Score:
        """The true reward of ``completion`` for the prompt row; only where ``has_reward``."""
        raise TypeError(f"{type(self).__name__} knows no true reward")

    def scores(self, rows: Sequence[Row], completions: Sequence[str]) -> list[Score]:
        """The same for many at once, in order; a task whose rule takes long scores several at a time."""
        return [self.score(row, text) for row, text in zip(rows, completions, strict=True)]

    def step_rows(self, split: str, count: int) -> list[Row]:
        """``count`` rows for a process reward model; only where there is a ``step_separator``.

        Args:
            split: ``train``, ``validation`` or ``test``, whose prompts are apart.
            count: rows; the same call gives the same ones.

        Returns:
            rows of ``prompt``, ``steps`` (texts, without the separator) and ``labels`` (whether each is right).
        """
        raise TypeError(f"{type(self).__name__} does not know which steps are right")

    def declines(self, completion: str) -> bool:
        """Whether ``completion`` declines to answer; only where ``knows_declining``."""
        raise TypeError(f"{type(self).__name__} cannot tell declining from answering")

    def answerable(self, row: Row) -> bool:
        """Whether the prompt row has an answer; only where ``knows_declining``."""
        raise TypeError(f"{type(self).__name__} does not know which prompts have an answer")
