"""Where a report's numbers come from: data, environment, and the commands that make them again. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from harness.base import formatting
from harness.report.leaderboard import known

LENSES = {
    "private": "private resident memory of the trial's processes",
    "nvml_process": "GPU memory of the trial's processes, from the driver",
    "nvml_device_delta": "GPU memory in use on the device beyond what was in use at the start",
}


def data_card(card: str | None) -> list[str]:
    """The best trial's card, below a heading of the report; cards are markdown of our own making."""
    if not card:
        return []
    title, _, rest = card.strip().partition("\n")
    return ["## Data", title.lstrip("# ") + ".", re.sub(r"^(#+) ", r"#\1 ", rest.strip(), flags=re.MULTILINE)]


def environment(
    frame: pd.DataFrame, found: Mapping[str, Any], source: str, command: str | None, again: str | None
) -> list[str]:
    """What the numbers were measured on, and how to get them again."""
    facts: dict[str, str] = {
        "source": source,
        "device": _values(frame, "device_name") or str(found.get("processor") or ""),
        "precision": _values(frame, "precision"),
        "memory is": ", ".join(LENSES.get(v, v) for v in _values(frame, "memory_lens").split(", ") if v),
        "commit": _values(frame, "git_sha"),
        "data digest": _values(frame, "dataset_digest"),
        "base digest": _values(frame, "base_digest"),
        "platform": str(found.get("platform") or ""),
        "python": str(found.get("python") or ""),
        **{str(k): str(v) for k, v in dict(found.get("versions") or {}).items()},
    }
    if started := known(frame, "started"):
        facts["trials started"] = f"{_stamp(min(started))} to {_stamp(max(started))} UTC"
    rows = [[formatting.escape(k), v if k == "source" else formatting.escape(v, 300)] for k, v in facts.items() if v]
    parts = ["## Environment", formatting.table(["what", "value"], rows, left=2)]
    if command:
        parts += ["To run the sweep again:", formatting.code(shown_command(command))]
    if again:
        parts += ["To write this report again:", formatting.code(again)]
    return parts


def commands(frame: pd.DataFrame) -> list[str]:
    """What runs each row of the leaderboard alone."""
    rows = frame[["label", "command"]].dropna() if "command" in frame else pd.DataFrame()
    if rows.empty:
        return []
    lines = [
        line
        for label, command in rows.itertuples(index=False)
        for line in (f"# {formatting.printable(label)}", formatting.printable(command))
    ]
    return [
        "## Commands",
        "To run one trial of this report again, in a sweep of its own:",
        formatting.code("\n".join(lines)),
    ]


def shown_command(command: str) -> str:
    """A recorded ``sys.argv`` as one would type it: ``python -m harness ...``."""
    typed = re.sub(r"^\S*harness/__main__\.py(?=\s|$)", "python -m harness", command)
    return re.sub(r"^\S*/bin/harness(?=\s|$)", "harness", typed)


def _stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M")


def _values(frame: pd.DataFrame, column: str) -> str:
    """The distinct ones; the first few where they are many."""
    found = sorted(set(map(str, known(frame, column))))
    return ", ".join(found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
