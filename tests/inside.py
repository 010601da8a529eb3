"""Helpers of the tests that run a trial inside the test's own process, and read what it told its journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.records import Event
from harness.config.compose import compose, hydra_config
from harness.runner.child import tell_story
from harness.store.journal import Journal, read
from harness.trial.job import Job
from tests.conftest import QUICK

# 64 wide: bitsandbytes' 4-bit kernels for CPUs are right only for rows that are a multiple of 64 values.
SIZES = (*(o for o in QUICK if "lm_eval" not in o), "model.hidden=64", "model.intermediate=128", "train.steps=2")


@dataclass(frozen=True)
class Told:
    """A trial, as its journal tells it."""

    events: list[Event]

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics; of a name written twice the latest."""
        return {k: v for e in self.events if e.kind == "metrics" for k, v in e.data["values"].items()}

    def under(self, prefix: str) -> dict[str, float]:
        return {k: v for k, v in self.metrics.items() if k.startswith(prefix)}

    @property
    def points(self) -> list[tuple[int, str, float]]:
        """(step, name, value) of every series."""
        events = [e.data for e in self.events if e.kind == "series"]
        return [(e["step"], name, value) for e in events for name, value in e["values"].items()]

    @property
    def series(self) -> list[tuple[int, str, float]]:
        """The points of those that are no clock reading."""
        return [p for p in self.points if "time" not in p[1] and not p[1].endswith(("_s", "/seconds"))]

    @property
    def stages(self) -> dict[str, bool]:
        """Stage -> whether the cache had it."""
        return {e.data["stage"]: e.data["hit"] for e in self.events if e.kind == "stage"}


def tell(folder: Path, cache: Path, *overrides: str, mode: Any = "train", sizes: Sequence[str] = SIZES) -> Told:
    """Run a trial here and now, without lm-eval where it is not asked for; ``sizes`` make it small."""
    plain = plain_config(*overrides, sizes=sizes)
    journal = Journal(folder / f"worker-{mode}.jsonl")
    job = Job(folder=str(folder), plain=plain, cache_dir=str(cache), mode=mode, device="cpu")
    try:
        tell_story(job, journal)
    finally:
        journal.close()
    return Told(read(journal.path))


def plain_config(*overrides: str, sizes: Sequence[str] = SIZES) -> dict[str, Any]:
    judged = [] if any("eval=" in o or "lm_eval" in o for o in overrides) else ["eval.evaluators.lm_eval=null"]
    with hydra_config():
        return compose(["sweep=test", *sizes, *judged, *overrides])
