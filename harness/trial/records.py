"""What a trial writes into its journal of parameters, memory, time and evaluations. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from harness.algorithms.base import Training
from harness.evaluators.base import Evaluation
from harness.models import coverage
from harness.models.adapters import trainable_in
from harness.store.journal import Journal
from harness.telemetry.clock import PhaseClock
from harness.trial.artifacts import keep_examples
from harness.trial.assemble import Setup
from harness.trial.context import Ground

SNAPSHOT_ENTRIES = 200_000
"""Allocations and frees that a memory snapshot holds, the latest; some hundred bytes each."""


@contextmanager
def recorded(ground: Ground, journal: Journal) -> Iterator[None]:
    """Where it was asked for, record CUDA's allocations and keep them as an artifact, also when memory runs out."""
    if ground.snapshot and ground.device != "cuda":
        journal.write("note", message="runner.memory_snapshot: only CUDA's allocator keeps a history; there is none")
    if not ground.snapshot or ground.device != "cuda":
        yield
        return
    torch.cuda.memory._record_memory_history(max_entries=SNAPSHOT_ENTRIES)
    try:
        yield
    finally:
        target = ground.folder / "artifacts" / "memory_snapshot.pickle"
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.cuda.memory._dump_snapshot(str(target))
        torch.cuda.memory._record_memory_history(enabled=None)
        journal.write("artifact", path=target.name)


def count_parameters(policy: Any, expected: int, journal: Journal) -> None:
    """Log the counts; the trainable one must be what was expected of the adapter."""
    trainable = trainable_in(policy)
    total = sum(coverage.values_in(p) for p in policy.parameters())
    journal.write("metrics", values={"params/trainable": trainable, "params/total": total})
    if trainable != expected:
        raise RuntimeError(f"{trainable:,} parameters are trainable, and {expected:,} were expected of the adapter")


def account_for_roles(training: Training, setup: Setup, journal: Journal) -> None:
    """Log what each resident role weighs; with an adapter no role but the policy may hold a base of its own."""
    from harness.algorithms.roles import role_bytes

    weights = role_bytes(training.resident)
    journal.write("metrics", values={f"memory/role_{role}_mb": size / 1e6 for role, size in weights.items()})
    if setup.adapter.off_is_base and setup.adapter.peft_config() is not None and weights.get("reference"):
        raise RuntimeError(f"an adapter trial holds {weights['reference']:,} bytes of a second model as its reference")


def record(ground: Ground, journal: Journal, prefix: str, found: Evaluation) -> None:
    """Metrics, tables, results per example and reasons of an evaluation, under ``baseline/`` or ``eval/``."""
    journal.write("metrics", values={f"{prefix}/{k}": v for k, v in found.metrics.items()})
    for name, rows in found.tables.items():
        journal.write("table", name=f"{prefix}_{name}", rows=list(rows))
    for unit, columns in found.examples.items():
        keep_examples(ground, f"{prefix}_{unit}", columns, journal)
    for name, reason in found.absent.items():
        journal.write("note", message=f"{prefix}/{name}: {reason}", absent=f"{prefix}/{name}")
    for line in found.notes:
        journal.write("note", message=f"{prefix}: {line}")


def report_clock(clock: PhaseClock, journal: Journal) -> None:
    """Seconds and torch's own peaks per phase."""
    seconds = clock.seconds()
    values: dict[str, float] = {f"time/{phase}_s": s for phase, s in seconds.items()}
    values["time/total_s"] = sum(seconds.values())
    peaks = clock.peaks()
    for lens in ("allocated", "reserved"):
        found = {phase: mb for phase, p in peaks.items() if (mb := getattr(p, f"{lens}_peak_mb")) is not None}
        values |= {f"memory/{phase}_{lens}_peak_mb": mb for phase, mb in found.items()}
        if found:
            values[f"memory/{lens}_peak_mb"] = max(found.values())
    journal.write("metrics", values=values)
    journal.write("done")
