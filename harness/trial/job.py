"""What the runner tells a trial's process. Imports nothing heavy: it is pickled across the forkserver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.base.world import World


@dataclass(frozen=True)
class Job:
    """One attempt at a trial.

    Attributes:
        folder: the trial's folder.
        plain: composed configuration, resolved.
        cache_dir: root of the stage cache.
        mode: ``train`` everything, ``evaluate`` what an earlier attempt saved, or ``preflight``: one step of the
            longest rows, and nothing kept.
        resume_checkpoint: continue from the last checkpoint, if there is one.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: torch's threads; None leaves its default.
        memory_limit_mb: cap on what the process may allocate beyond its start, in MB.
        snapshot: record CUDA's allocations while training, as an artifact.
        stop_losing: end training where a point of the curve says that the trial has lost.
        environment: variables for the child; it has the forkserver's, not the runner's.
        world: which of the trial's processes is asked.
        rows: digest of the rows that it was planned with.
    """

    folder: str
    plain: Mapping[str, Any]
    cache_dir: str
    mode: Literal["train", "evaluate", "preflight"] = "train"
    resume_checkpoint: bool = False
    device: str = "auto"
    threads: int | None = None
    memory_limit_mb: int | None = None
    snapshot: bool = False
    stop_losing: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    world: World = World()
    rows: str | None = None

    @property
    def wish(self) -> Path:
        """A file that is there while a checkpoint is asked for, out of turn; the trainer removes it with the next."""
        return Path(self.folder) / ".checkpoint-wanted"

    @property
    def journal(self) -> str:
        """Name of the file that the process writes: one writer a file, and the runner follows the leader's."""
        return "worker.jsonl" if self.world.leads else f"worker.{self.world.rank}.jsonl"
