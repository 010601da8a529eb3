"""The processes that train one trial together. Today a trial is one process: rank 0 of 1."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """Where a process stands among those of its trial.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self):
        """Refuse a rank that is not there."""
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} of {self.size} processes")

    @property
    def leads(self) -> bool:
        """Whether this process keeps what is kept once for all: the journal, artifacts, stages."""
        return self.rank == 0

    def accumulation(self, batch_size: int, micro_batch_size: int) -> int:
        """Forward passes of each process in an optimizer step over ``batch_size`` rows of all of them together.

        Raises:
            ValueError: the processes cannot share the batch evenly.
        """
        passes, left = divmod(batch_size, micro_batch_size * self.size)
        if left or not passes:
            raise ValueError(f"a batch of {batch_size} is no multiple of {self.size} x {micro_batch_size} rows")
        return passes
