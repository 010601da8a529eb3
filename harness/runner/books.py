"""The books of a trial: an attempt is opened with all that it is about, and closed with its figures and outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.base.records import Event, Outcome, Trial, TrialResult
from harness.config import identity
from harness.store import journal
from harness.store.journal import Journal
from harness.store.memory_metrics import MOST_STRETCHES, OfRank, lens_of, memory_metrics, phase_rows, summary_from
from harness.store.past import description, past_of, result_of, settled
from harness.store.result import document, replace_text, write_json, write_result
from harness.telemetry.sampler import MemorySummary


def open_book(folder: Path, trial: Trial, unused: Sequence[str], plain: Mapping[str, Any], **attempt: Any) -> Journal:
    """Open an attempt: the line that says what it is about comes first, and the files that repeat it follow.

    Args:
        folder: the trial's, whose lock the caller holds.
        trial: its configuration and keys.
        unused: knobs that it does not use.
        plain: the composed configuration, for ``config.yaml``.
        attempt: ``mode``, ``continues`` and ``why``.
    """
    book = Journal(folder / "runner.jsonl")
    about = {**asdict(trial), "unused": list(unused), "environment": identity.environment()}
    book.write("attempt", **attempt, train_key=trial.train_key, eval_key=trial.eval_key, trial=about)
    _describe(folder)
    replace_text(folder / "config.yaml", _yaml(plain))
    return book


def close_open_attempt(folder: Path) -> bool:
    """Give an attempt whose runner died the outcome ``interrupted``; the caller holds the folder's lock.

    Where the journal has the outcome already, ``result.json`` and ``trial.json`` are made anew if they are lost,
    damaged, or of another attempt.

    Returns:
        whether an attempt was open.
    """
    past = past_of(folder)
    if past.began is None or not past.about:
        return False
    if past.ended is not None:
        if not settled(folder):
            _describe(folder)
            if (result := result_of(folder)) is not None:
                write_json(folder / "result.json", document(result))
        return False
    events = journal.read(folder / "runner.jsonl")
    worker, *others = (
        [e for e in journal.read(path) if e.time >= past.began.time - 1e-3]
        for path in (folder / "worker.jsonl", *sorted(folder.glob("worker.*.jsonl"), key=_rank))
    )
    theirs = [worker, *others] if any(others) else []
    ranks = {k: OfRank(own, summary_from(events, k)) for k, own in enumerate(theirs)}
    book = Journal(folder / "runner.jsonl")
    if any(e.kind == "done" for e in worker):
        outcome, reason = Outcome.FINISHED, None  # only the books were left open
    else:
        outcome, reason = Outcome.INTERRUPTED, "the runner was killed"
    close_books(book, folder, worker, summary_from(events), outcome, reason, ranks)
    return True


def close_books(
    book: Journal,
    folder: Path,
    worker: list[Event],
    summary: MemorySummary | None,
    outcome: Outcome,
    reason: str | None,
    ranks: Mapping[int, OfRank] | None = None,
) -> TrialResult:
    """Memory and energy figures, the outcome, and ``result.json``."""
    values = memory_metrics(worker, summary, ranks)
    if summary is not None and summary.energy_j:
        train = [summary.energy_j[p] for p in ("train", "rollout") if p in summary.energy_j]
        if train:
            values["energy/train_j"] = sum(train)
    book.write("metrics", values=values)
    if stretches := phase_rows(worker)[:MOST_STRETCHES]:
        book.write("table", name="phases", rows=stretches)
    if summary is not None:
        book.write(
            "memory",
            lens=lens_of(worker, summary),
            samples=summary.samples,
            missed=summary.missed,
            reason=summary.reason,
            high_water_phase=summary.high_water_phase,
        )
    for name in ("worker.jsonl", "runner.jsonl"):
        if damaged := journal.skipped(folder / name):
            book.write("note", message=f"{name}: {damaged} damaged lines are left out")
    began = past_of(folder).began
    book.write("outcome", outcome=str(outcome), reason=reason, attempt=None if began is None else began.time)
    book.close()
    _describe(folder)
    return write_result(folder, outcome, reason, description(folder))


def _rank(journal_of_rank: Path) -> int:
    """The number in ``worker.3.jsonl``."""
    number = journal_of_rank.name.split(".")[1]
    return int(number) if number.isdigit() else 0


def _describe(folder: Path) -> None:
    """``trial.json``: what the latest attempt is about."""
    if about := description(folder):
        write_json(folder / "trial.json", about)


def _yaml(plain: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(plain), sort_keys=False)
