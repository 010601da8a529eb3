"""How many processes train one trial together. Import-light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from harness.base.errors import UserError
from harness.config.train import Train


@dataclass(frozen=True)
class Parallel:
    """The processes of a trial: one for each GPU, or on a CPU as many as are asked for.

    ``train.batch_size`` is split among them and not multiplied, so that a recipe stays the same.

    Attributes:
        processes: how many.
        strategy: ``ddp``: each holds the whole model, and gradients are averaged. ``fsdp2``: each holds a part of every
            weight, gradient and optimizer state, and gathers a layer while it computes it.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    processes: Annotated[int, Ge(1)] = 1
    strategy: Literal["ddp", "fsdp2"] = "ddp"

    @property
    def sharded(self) -> bool:
        """Whether the policy is in pieces while it trains."""
        return self.processes > 1 and self.strategy == "fsdp2"

    def problems(self, train: Train, *, joint: bool = False) -> list[UserError]:
        """A batch that cannot be split; with ``joint`` each micro-batch is, and not the batch into micro-batches."""
        batch, micro = train.batch_size, train.micro_batch_size
        if self.processes == 1 or not batch or not micro or batch % micro:
            return []
        if batch % self.processes:
            sizes = [n for n in range(1, batch + 1) if batch % n == 0]
            nearest = min(sizes, key=lambda n: abs(n - self.processes))
            words = f"must divide train.batch_size ({batch}), which is split among them"
            fix = f"parallel.processes={nearest}, or another train.batch_size"
            return [UserError(words, key="parallel.processes", value=self.processes, fix=fix)]
        if joint:
            if micro % self.processes:
                words = f"must be a multiple of parallel.processes ({self.processes}), which split each micro-batch"
                fix = f"train.micro_batch_size={batch}"
                return [UserError(words, key="train.micro_batch_size", value=micro, fix=fix)]
            return []
        share = batch // self.processes
        if share % micro:
            words = f"must divide the {share} rows of train.batch_size that each of {self.processes} processes takes"
            largest = next(size for size in range(min(micro, share), 0, -1) if share % size == 0)
            fix = f"train.micro_batch_size={largest}"
            return [UserError(words, key="train.micro_batch_size", value=micro, fix=fix)]
        return []
