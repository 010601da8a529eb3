"""Journals what a trainer logs. Imported in the worker, by the time transformers is loaded anyway."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

from harness.journal import Journal

SKIPPED = (
    "epoch",
    "total_flos",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_loss",
)


class JournalCallback(TrainerCallback):
    """Turns trainer logs into ``train/`` series and steps into progress events.

    Attributes:
        tokens: tokens the trainer has processed, as it counts them.
    """

    def __init__(self, journal: Journal):
        """Write to ``journal``."""
        self.journal = journal
        self.tokens = 0.0
        self._progress_at = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Progress at most twice a second; the last step is always logged."""
        now = time.monotonic()
        if now - self._progress_at >= 0.5 or state.global_step in (1, state.max_steps):
            self._progress_at = now
            self.journal.write("progress", what="train", step=state.global_step, total=state.max_steps)
        if state.global_step == state.max_steps:
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """One point of every series."""
        values = {}
        for key, value in (logs or {}).items():
            if key in SKIPPED:
                continue
            if key == "num_tokens":
                self.tokens = float(value)
            try:
                values[f"train/{key}"] = float(value)
            except (TypeError, ValueError):
                continue  # transformers logs a few texts
        if values:
            self.journal.write("series", step=state.global_step, values=values)
