"""The processes that train one trial together, and what they agree on. Torch is imported where there are several.

Every function is called by all of them, in the same order; in a trial of one process each does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

Value = TypeVar("Value")


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


def wait(world: World) -> None:
    """Until all of them are here."""
    if world.size > 1:
        import torch.distributed as dist

        dist.barrier()


def of_leader(world: World, value: Value) -> Value:
    """What the leader has, for all of them."""
    if world.size == 1:
        return value
    import torch.distributed as dist

    told = [value]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def total(world: World, values: Sequence[int]) -> list[int]:
    """The sums of what each of them counts."""
    if world.size == 1:
        return list(values)
    import torch
    import torch.distributed as dist

    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    counts = torch.tensor(list(values), dtype=torch.int64, device=device)
    dist.all_reduce(counts)
    return [int(count) for count in counts.tolist()]


@contextmanager
def leader_first(world: World) -> Iterator[None]:
    """Within it the leader is alone; the others follow when it is through, and find what it has made.

    Where the leader fails the others wait until somebody ends them.
    """
    if not world.leads:
        wait(world)
    yield
    if world.leads:
        wait(world)


@contextmanager
def sharing_cores(world: World) -> Iterator[None]:
    """On a CPU each of them computes with its share of the cores while all of them compute."""
    if world.size == 1:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // world.size))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
