"""Peak memory of a trial: what the sampler, the kernel and torch saw of it, and what was predicted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from harness.base.records import Event
from harness.store import journal
from harness.store.cache import HELD_OUT, MARGINS
from harness.telemetry.host import MB
from harness.telemetry.sampler import MemorySummary

TORCH = "torch"
"""The lens of what torch's allocator held, as the worker reports it at the end of each phase."""
PEAKS = ("host_peak_mb", "allocated_peak_mb", "reserved_peak_mb")
"""What the worker tells of a stretch of a phase (``telemetry.clock``)."""
HOPELESS = 2.0
"""Times what there is. No prediction was more than 20 % above what a trial took (docs/memory.md)."""
MOST_STRETCHES = 2_000
"""That are kept in a table: a rollout makes two."""
ALL_RANKS = "memory/all_ranks_peak_mb"
"""What the processes of a trial took together; the headline is that of the largest."""
OF_RANK = "rank_sample"
"""The kind of a row of samples of one process of several; it names its ``rank``."""


@dataclass(frozen=True)
class OfRank:
    """One process of a trial that has several, as its own journal and sampler saw it."""

    events: list[Event]
    summary: MemorySummary | None


@dataclass(frozen=True)
class Expected:
    """What a trial was predicted to need, in bytes.

    Attributes:
        tensors: highest level of live tensors.
        needed: of the device, what is there beside tensors included: comparable with ``memory/peak_mb``.
        phase: that sets the peak.
        limit: what there is; None where nothing limits it.
        where: that limit is, in words (``NVIDIA H200``).
        baseline: what ``eval.baseline=auto`` comes to, where it is not the deployed base.
    """

    tensors: float
    needed: float
    phase: str
    limit: float | None = None
    where: str = ""
    baseline: str | None = None

    @property
    def fits(self) -> bool:
        """Whether it should."""
        return self.limit is None or self.needed <= self.limit

    @property
    def hopeless(self) -> bool:
        """Whether it needs so much more than there is that no error of the prediction explains it."""
        return self.limit is not None and self.needed > HOPELESS * self.limit

    @property
    def metrics(self) -> dict[str, float]:
        """For the journal."""
        return {"memory/predicted_peak_mb": self.needed / MB, "memory/predicted_tensors_mb": self.tensors / MB}

    @property
    def why_unfit(self) -> str:
        """The reason of the outcome ``unfit``."""
        has = f"{self.where} has {(self.limit or 0) / MB:,.0f} MB"
        return f"predicted to need {self.needed / MB:,.0f} MB in phase {self.phase}, and {has}"


def out_of_memory(reason: str, expected: Expected | None, summary: MemorySummary | None, limit_mb: float | None) -> str:
    """The reason of an ``oom``, with what was predicted, how far it got, and what there was."""
    figures = []
    if expected is not None:
        figures.append(f"predicted {expected.needed / MB:,.0f} MB")
    if summary is not None and summary.peak_mb is not None:
        figures.append(f"high-water mark {summary.peak_mb:,.0f} MB in {summary.high_water_phase}")
    if expected is not None and expected.limit is not None:
        figures.append(f"limit {expected.limit / MB:,.0f} MB")
    elif limit_mb is not None:
        figures.append(f"limit {limit_mb:,.0f} MB beyond its start")
    return f"{reason} ({'; '.join(figures)})" if figures else reason


def phase_rows(worker: Sequence[Event]) -> list[dict[str, Any]]:
    """Each stretch of a phase: when it began (seconds since the epoch), how long it took, and its peaks in MB.

    The last one of a trial that died in it has no peaks, and lasts to its last word.
    """
    rows: list[dict[str, Any]] = []
    changes = [event for event in worker if event.kind == "phase"]
    for event, after in zip_longest(changes, changes[1:]):
        if event.data["name"] is None:
            continue
        end = (after or worker[-1]).time
        row = {"phase": event.data["name"], "began": event.time, "seconds": end - event.time}
        told = {} if after is None else after.data
        rows.append({**row, **{name: journal.number(told.get(name)) for name in PEAKS}})
    return rows


def memory_metrics(
    worker: list[Event], summary: MemorySummary | None, ranks: Mapping[int, OfRank] | None = None
) -> dict[str, float]:
    """Peaks per phase, in MB: the sampler's, raised to the kernel's own high-water mark where there is no GPU.

    Of a trial on a GPU of which the driver tells nothing (a MIG slice), they are what torch's allocator held: the
    host's memory is another thing.

    Of a trial of several processes the peaks are those of the largest, for which a GPU must have room; ``summary`` is
    of all of them together.
    """
    if ranks:
        return _of_ranks(worker, summary, ranks)
    lens = lens_of(worker, summary)
    peaks = dict(summary.phase_peak_mb) if summary is not None and lens != TORCH else {}
    if lens in (None, "private", TORCH):
        own = "reserved_peak_mb" if lens == TORCH else "host_peak_mb"
        for event in worker:
            previous, mark = event.data.get("previous"), journal.number(event.data.get(own))
            if event.kind == "phase" and previous and mark is not None:
                peaks[previous] = max(peaks.get(previous, 0.0), mark)
    metrics = {f"memory/{phase}_peak_mb": mb for phase, mb in peaks.items()}
    if peaks:
        own = [mb for phase, mb in peaks.items() if phase not in _shared_work(worker)]
        metrics["memory/peak_mb"] = max(own or peaks.values())
    return metrics


def _of_ranks(worker: list[Event], together: MemorySummary | None, ranks: Mapping[int, OfRank]) -> dict[str, float]:
    """The largest of each figure, each process's own peak, and that of all together."""
    built = [event for event in worker if event.kind in ("stage", "done")]  # the leader tells for all
    each = {k: memory_metrics(worker if k == 0 else [*rank.events, *built], rank.summary) for k, rank in ranks.items()}
    metrics = {name: max(found[name] for found in each.values() if name in found) for name in _names(each.values())}
    peaks = {k: found["memory/peak_mb"] for k, found in each.items() if "memory/peak_mb" in found}
    metrics.update({f"memory/rank_{k}_peak_mb": mb for k, mb in peaks.items()})
    if peaks:
        seen = together.peak_mb if together is not None and together.peak_mb is not None else 0.0
        metrics[ALL_RANKS] = max(seen, *peaks.values())
    return metrics


def _names(found: Iterable[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for metrics in found for name in metrics))


def lens_of(worker: list[Event], summary: MemorySummary | None) -> str | None:
    """Through which the memory of a trial was seen: the sampler's, or torch's where that saw only the host's."""
    sampled = None if summary is None else summary.lens
    on_gpu = any(e.kind == "device" and e.data.get("device") == "cuda" for e in worker)
    return TORCH if on_gpu and sampled in (None, "private") else sampled


def _shared_work(worker: list[Event]) -> set[str]:
    """Phases of a finished trial in which it built something for the cache, which is no cost of its own."""
    if not any(e.kind == "done" for e in worker):
        return set()  # the high-water mark of a trial that failed is wherever it was
    stages = [e.data for e in worker if e.kind == "stage" and not e.data["hit"] and not e.data.get("within")]
    return {phase for data in stages if (phase := _phase_of(str(data["stage"]))) is not None}


def _phase_of(stage: str) -> str | None:
    """The phase that a stage fills; None of samples of the base, which are drawn in the midst of evaluation."""
    if stage.startswith("baseline-"):
        return "baseline"
    if stage.startswith(HELD_OUT):
        return None if stage.endswith("samples") else "reference"
    return "reference" if stage in ("reference", MARGINS) else "prepare"


def summary_from(events: list[Event], rank: int | None = None) -> MemorySummary | None:
    """Peaks from the sample rows of a journal whose runner died; with ``rank`` those of one process of several."""
    kind = "sample" if rank is None else OF_RANK
    rows = [e.data for e in journal.latest_attempt(events) if e.kind == kind and e.data.get("rank") == rank]
    if not rows:
        return None
    peaks: dict[str, float] = {}
    for row in rows:
        peaks[row["phase"]] = max(peaks.get(row["phase"], 0.0), float(row["used_mb"]))
    return MemorySummary(
        lens=rows[-1]["lens"],
        peak_mb=max(peaks.values()),
        phase_peak_mb=peaks,
        high_water_phase=max(peaks, key=peaks.__getitem__),
        samples=sum(int(r["n"]) for r in rows),
        missed=0,
        energy_j=None,
        reason="the runner was killed: from the rows it had written",
    )
