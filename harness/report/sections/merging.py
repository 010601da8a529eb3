"""What deploying the policy as one model costs: each way of merging its adapter against the adapter beside its base.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from harness.base import formatting
from harness.report.intervals import interval, measured, value_of
from harness.store.modelcard import MERGED

NAMES = (*MERGED, "unmerged", "multi_adapter", "adapter_mb")
"""How the names of the section's metrics begin."""
WORDS = """\
The adapter added to the weights of a base, against the same policy with the adapter beside its base: KL over the whole
vocabulary at every token of the held-out completions, and the change of preference accuracy pair by pair. **Bold**: a
change beyond noise. Tokens/s are `generate`'s, whose ratios tell more than themselves."""


def section(frame: pd.DataFrame, kind: str) -> list[str]:
    """A row for each recipe and way; nothing where nothing was merged.

    Args:
        frame: trials, or recipes as ``recipes.averages`` gives them.
        kind: which of the two.
    """
    body = []
    for row in frame.to_dict("records"):
        ways = [way for way in MERGED if value_of(row, f"eval/{way}_kl_per_token") is not None]
        if not ways:
            continue
        label = formatting.escape(row["label"])
        size, speed, many = (
            value_of(row, f"eval/{name}")
            for name in ("adapter_mb", "unmerged_tokens_per_s", "multi_adapter_tokens_per_s")
        )
        body.append([label, "not merged", "–", "–", formatting.number(size), formatting.whole(speed)])
        body += [[label, f"into {MERGED[way]}", *_cells(row, way)] for way in ways]
        if many is not None:
            body.append([label, "two adapters by request", "–", "–", formatting.number(size), formatting.whole(many)])
    if not body:
        return []
    heads = [kind, "the adapter", "KL per token", "Δ preference accuracy", "MB", "tokens/s"]
    return ["### Merging", WORDS, formatting.table(heads, body, left=2)]


def _cells(row: Mapping[Any, Any], way: str) -> list[str]:
    change = measured(row, f"eval/{way}_preference_accuracy_change")
    shown = interval(change, signed=True)
    if change is not None and change.low is not None and change.high is not None and not change.low <= 0 <= change.high:
        shown = f"**{shown}**"
    size, speed = (value_of(row, f"eval/{way}_{name}") for name in ("mb", "tokens_per_s"))
    kl = interval(measured(row, f"eval/{way}_kl_per_token"))
    return [kl, shown, formatting.number(size), formatting.whole(speed)]
