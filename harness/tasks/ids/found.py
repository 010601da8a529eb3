"""What the audit of token ids found: which rows are left out and why, and whether what is left is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.base.errors import UserError
from harness.tasks.base import Row, TaskData

RARE = 0.001
"""Probability below which what a split lost is no chance."""

FILLS = "the prompt leaves no room within the limit"
FULL = "the prompt and a sampled completion are beyond the model's context"
EQUAL = "both sides are the same tokens"
EMPTY = "a completion has no tokens but its end"
NOTHING = "the prompt encodes to nothing"
REFUSED = "the chat template refuses the row"


@dataclass(frozen=True)
class Limits:
    """Of one trial, in tokens.

    Attributes:
        train: of prompt and completion in training.
        rollout: of these for a sampled completion; 0 for offline algorithms.
        scored: of prompt and completion in evaluation.
        sampled: of a completion that evaluators sample.
        context: the model's; None where it does not say.
        vocabulary: rows of the embedding matrix.
    """

    train: int
    rollout: int
    scored: int
    sampled: int
    context: int | None
    vocabulary: int | None


@dataclass(frozen=True)
class Found:
    """What the audit found, fit for JSON.

    Attributes:
        facts: for the data card, by heading.
        notes: a line each, for the log.
        examples: decoded sequences, trained tokens between ⟦ and ⟧.
        refusals: rules that the rows break as a whole: key, rule, fix.
        dropped: kind of rows -> reason -> indices of the rows left out.
        rows: kind of rows -> number of rows looked at.
        longest: kind of rows -> tokens of the longest one that was kept.
    """

    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    refusals: list[dict[str, str]] = field(default_factory=list)
    dropped: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    longest: dict[str, int] = field(default_factory=dict)

    def problems(self, allowed: float) -> list[UserError]:
        """Errors of a trial that allows the share ``allowed`` of its rows to be left out."""
        found = [UserError(r["rule"], key=r["key"], fix=r["fix"]) for r in self.refusals]
        for kind, reasons in self.dropped.items():
            count, total = sum(map(len, reasons.values())), self.rows[kind]
            if count < total and (count <= allowed * total or self._by_chance(kind, allowed)):
                continue
            why = "; ".join(f"{len(rows):,}: {reason}" for reason, rows in reasons.items())
            found.append(
                UserError(
                    f"{count:,} of {total:,} {spoken(kind)} cannot be used ({why}), more than the share allowed",
                    key="task.allow_skipped",
                    value=allowed,
                    fix=_remedy(reasons, count / total),
                )
            )
        return found

    def _by_chance(self, kind: str, allowed: float) -> bool:
        """Whether a small split lost more than its share though the rows of all splits together did not.

        One long row among a hundred may fall into a split of six.
        """
        from scipy.stats import binom

        lost = {k: sum(map(len, reasons.values())) for k, reasons in self.dropped.items()}
        alike = [k for k in self.rows if k.endswith("prompts") == kind.endswith("prompts")]
        if sum(lost.get(k, 0) for k in alike) > allowed * sum(self.rows[k] for k in alike):
            return False
        return bool(binom.sf(lost[kind] - 1, self.rows[kind], allowed) > RARE)

    def kept(self, data: TaskData) -> TaskData:
        """The data without the rows that were left out."""

        def rest(kind: str, rows: Sequence[Row]) -> Sequence[Row]:
            out = {i for rows_out in self.dropped.get(kind, {}).values() for i in rows_out}
            return [row for i, row in enumerate(rows) if i not in out] if out else rows

        return replace(
            data,
            train_pairs=rest("train_pairs", data.train_pairs),
            train_unpaired=rest("train_unpaired", data.train_unpaired),
            train_prompts=rest("train_prompts", data.train_prompts),
            eval_pairs={s: rest(f"eval_pairs/{s}", rows) for s, rows in data.eval_pairs.items()},
            eval_prompts={s: rest(f"eval_prompts/{s}", rows) for s, rows in data.eval_prompts.items()},
        )


def spoken(kind: str) -> str:
    """A kind of rows in words."""
    name, _, split = kind.partition("/")
    words = {
        "train_pairs": "training pairs",
        "train_unpaired": "training completions",
        "train_prompts": "training prompts",
        "eval_pairs": "held-out pairs",
        "eval_prompts": "held-out prompts",
    }
    return words[name] + (f", {split}" if split else "")


def _remedy(reasons: Mapping[str, Sequence[int]], share: float) -> str:
    allow = f"task.allow_skipped={min(1.0, share + 0.005):.2f}" if share < 1 else "other rows"
    if FILLS in reasons:
        return f"a larger train.max_length, or shorter prompts, or {allow}"
    if FULL in reasons:
        return f"a smaller eval.max_completion_length, or shorter prompts, or {allow}"
    if any(reason.startswith(REFUSED) for reason in reasons):
        return f"rows in the form that the template wants, or model.chat_template=off for rows of text, or {allow}"
    return f"look at the rows with `python -m harness data`, or {allow}"
