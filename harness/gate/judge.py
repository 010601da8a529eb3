"""From tables of trials to a gate's findings: what a program calls that has DataFrames and no command line. Pure."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from harness.base.errors import UserError
from harness.gate import baseline as store
from harness.gate.baseline import Baseline
from harness.gate.decide import Finding, decide
from harness.gate.rules import Rules
from harness.report.leaderboard import succeeded
from harness.report.recipes import recipe_labels


def judge(
    candidate: pd.DataFrame, baseline: Baseline | pd.DataFrame, rules: Rules, despite: Collection[str] = ()
) -> list[Finding]:
    """Hold trials against a baseline, or against other trials.

    Args:
        candidate: as ``results.from_mlflow`` or ``from_folder`` gives it. Where its trials come from is not looked at.
        baseline: from its file (``gate.baseline.read``), or another table of trials.
        rules: what may get worse (``gate.rules.read_rules``).
        despite: digests (``gate.baseline.DIGESTS``) that may differ.

    Raises:
        UserError: a trial without a seed, or a rule that is for recipes of which there are none.
    """
    names = list(rules.metrics)
    before = baseline.recipes if isinstance(baseline, Baseline) else store.records(baseline, names)
    after = store.records(candidate, [*names, *rules.changes])
    known = {**before, **after}
    for name, rule in rules.metrics.items():
        if (idle := rule.idle(known)) is not None:
            key, fix = f"rules.metrics.{name}.only", f"known: {', '.join(known)}"
            raise UserError("matches no recipe", key=key, value=idle, fix=fix)
    return decide(before, after, rules, unfinished(candidate), despite)


def unfinished(frame: pd.DataFrame) -> dict[str, str]:
    """Recipe -> what became of those of its trials that did not finish."""
    found: dict[str, list[str]] = {}
    for label, row in zip(recipe_labels(frame), frame.to_dict("records"), strict=True):
        if not succeeded(row["outcome"]):
            reason = "" if pd.isna(row["reason"]) else f" ({row['reason']})"
            found.setdefault(label, []).append(f"{row['trial_id']} is {row['outcome']}{reason}")
    return {label: "; ".join(said) for label, said in found.items()}
