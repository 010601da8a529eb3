"""What is to be done about a trial: reuse it, judge it anew, go on with its training, or train it. Reads its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.base.records import Outcome, Trial
from harness.config import identity
from harness.store import checkpoints, journal
from harness.store.past import description, result_of
from harness.store.result import since_attempt
from harness.trial.artifacts import kept_policy
from harness.trial.assemble import Setup


@dataclass(frozen=True)
class Decision:
    """What is to be done about a trial, given what its folder holds.

    Attributes:
        mode: ``reuse``, ``evaluate`` or ``train``.
        continues: whether the attempt builds on the one before.
        from_checkpoint: whether training goes on from a checkpoint.
        why: one line for the log.
    """

    mode: Literal["reuse", "evaluate", "train"]
    continues: bool
    from_checkpoint: bool
    why: str


def decide_mode(folder: Path, trial: Trial, setup: Setup, *, resume: bool, stop_losing: bool = False) -> Decision:
    """Decide between reusing, evaluating, continuing and training; a trial that had lost stays so (``stop_losing``)."""
    result = result_of(folder)
    if result is None:
        return Decision("train", False, False, "first attempt")
    before = description(folder)
    if not resume:
        return Decision("train", False, False, "trains again: resume=false")
    same_training = before.get("train_key") == trial.train_key
    changed = identity.what_changed(before.get("why") or {}, trial.why)
    if result.outcome.succeeded:
        if same_training and before.get("eval_key") == trial.eval_key:
            return Decision("reuse", False, False, "finished before in this sweep")
        if same_training and (not setup.algo.trains or (folder / "artifacts" / "model").is_dir()):
            return Decision("evaluate", True, False, f"evaluates without training; changed: {changed}")
        return Decision("train", False, False, f"trains again; changed: {changed}")
    if same_training and stop_losing and result.outcome is Outcome.STOPPED:
        return Decision("reuse", False, False, f"{result.outcome} before in this sweep: {result.reason}")
    if same_training and kept_policy(folder) is not None and _trained_once(folder):
        return Decision("evaluate", True, False, f"was {result.outcome} after training; evaluates without training")
    if same_training and checkpoints.newest(folder / "checkpoints"):
        return Decision("train", True, True, f"was {result.outcome}; continues from its last checkpoint")
    return Decision("train", False, False, f"was {result.outcome}; starts over")


def _trained_once(folder: Path) -> bool:
    """Whether the chain of attempts that the latest one belongs to holds a finished training."""
    chain = journal.latest_attempt(journal.read(folder / "runner.jsonl"))
    if any(e.kind == "outcome" and e.data["outcome"] == Outcome.FINISHED for e in chain):
        return True
    return any(e.kind == "trained" for e in since_attempt(journal.read(folder / "worker.jsonl"), chain))
