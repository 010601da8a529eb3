"""The report's tables of what the evaluators measured beside the leaderboard. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from harness.base import formatting
from harness.report.intervals import LEGEND, interval, known, measured, shared, value_of
from harness.report.leaderboard import BASE_LABEL
from harness.report.sections import merging

SHOWN_ABOVE = {"preference_accuracy", "true_reward", "correct", "length_only_accuracy", "preference_pairs"}
GROUPS = {
    "Preference": ("likelihood_", "sequence_likelihood_", "logratio_", "preference_margin", "chosen_", "rejected_"),
    "Win rate, calibration": ("win_rate", "preference_brier", "preference_ece", "declined_", "best_of_"),
    "Drift and diversity": ("kl_", "entropy_", "self_similarity", "distinct_", "repetition"),
    "Length": ("completion_tokens", "ended_by_eos"),
}
"""Tables of the evaluation section, and how the names of their metrics begin."""
OWN = re.compile(
    r"(?P<label>[\w\-]+)/(?:[\w\-]+/)?(?:wanted|unwanted|attack_success|plain_accuracy|leading_accuracy|accuracy_change|"
    r"flipped|adopted|accuracy(?:_\d+)?|passed|whole|turn_\d+|too_long|judge_\w+)"
)
"""Metrics of evaluators over the user's own prompts, which stand under the label of each (docs/surfaces.md)."""


def evaluations(frame: pd.DataFrame, averaged: bool = False) -> list[str]:
    """Measurements beside the leaderboard's: the evaluators' own, and lm-eval's, with their change in brackets.

    Args:
        frame: trials, or recipes as ``recipes.averages`` gives them.
        averaged: whether it is the latter.
    """
    tails = [c.removeprefix("eval/") for c in frame.columns if c.startswith("eval/")]
    tails = [t for t in tails if not t.endswith(("_stderr", "_low", "_high")) and t not in SHOWN_ABOVE]
    tails = [t for t in tails if not t.startswith(merging.NAMES)]
    tails = [t for t in tails if known(frame, f"eval/{t}")]
    tails = [t for t in tails if not t.endswith(("truncated", "/too_long")) or any(known(frame, f"eval/{t}"))]
    own: dict[str, list[str]] = {}
    for t in tails:
        if (found := OWN.fullmatch(t)) is not None:
            own.setdefault(f"Own prompts: {found['label']}", []).append(t)
    tasks = [t for t in tails if "/" in t and not any(t in group for group in own.values())]
    groups = {title: [t for t in tails if t.startswith(starts) and "/" not in t] for title, starts in GROUPS.items()}
    placed = {t for group in [tasks, *groups.values(), *own.values()] for t in group}
    tables = []
    for title, group in {
        **groups,
        **own,
        "lm-eval tasks": tasks,
        "Other measurements": [t for t in tails if t not in placed],
    }.items():
        if group:
            tables.append(f"### {title}\n\n{_table(frame, group, 'recipe' if averaged else 'trial')}")
    over = (
        "means over seeds, and the wider of their interval and that of the held-out rows"
        if averaged
        else "held-out rows"
    )
    words = (
        f"{LEGEND} ({over}); in parentheses is the difference to the base. A figure without brackets describes all "
        "samples together (distinct n-grams, percentiles of length), or rows of one prompt: it has no interval."
    )
    return ["## Evaluation", words, *tables] if tables else []


def _table(frame: pd.DataFrame, tails: Sequence[str], kind: str) -> str:
    rows = []
    base = [interval(shared(frame, f"baseline/{t}")) for t in tails]
    if any(c != formatting.MISSING for c in base):
        rows.append([BASE_LABEL, *base])
    for row in frame.to_dict("records"):
        cells = [interval(measured(row, f"eval/{t}")) for t in tails]
        changes = [formatting.number(value_of(row, f"delta/{t}"), signed=True) for t in tails]
        if any(c != formatting.MISSING for c in cells):
            pairs = zip(cells, changes, strict=True)
            rows.append(
                [formatting.escape(row["label"]), *(c if d == formatting.MISSING else f"{c} ({d})" for c, d in pairs)]
            )
    return formatting.table([kind, *(formatting.escape(t) for t in tails)], rows)
