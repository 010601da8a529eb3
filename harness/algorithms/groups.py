"""What algorithms share that sample several completions of each prompt and compare them. Import-light."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import Ge, Gt

from harness.algorithms.base import Algorithm, Rollout
from harness.base.errors import UserError
from harness.config.train import Train

Kind = TypeVar("Kind", bound="Groups")


@dataclass(frozen=True)
class Groups(Algorithm):
    """Samples groups of completions, one group a prompt, under the present policy.

    Attributes:
        num_generations: completions per prompt (the group).
        num_iterations: optimization passes over one rollout.
        rollout_batches: optimizer steps that one pass over a rollout makes.
        temperature: sampling temperature of rollouts.
    """

    family: ClassVar[Literal["offline", "online", "none"]] = "online"
    consumes: ClassVar[Literal["pairs", "unpaired", "prompts", "nothing"]] = "prompts"

    beta: Annotated[float, Ge(0)] | None = None
    num_generations: Annotated[int, Gt(0)] = 8
    num_iterations: Annotated[int, Gt(0)] = 1
    rollout_batches: Annotated[int, Gt(0)] = 1
    temperature: Annotated[float, Gt(0)] = 1.0

    @property
    def uses_reference(self) -> bool:
        """Only with a KL penalty."""
        return bool(self.beta)

    def problems(self, task: Any, data: Any, train: Train) -> list[UserError]:
        """Groups of at least two that fill the batch evenly; the reward is checked by the trial."""
        found = super().problems(task, data, train)
        size = self.num_generations
        if size < 2:
            found.append(
                UserError(
                    f"{self.name} compares completions within a group, so a group needs at least 2",
                    key="algo.num_generations",
                    value=size,
                    fix="algo.num_generations=8",
                )
            )
        elif train.batch_size and train.batch_size % size:
            found.append(
                UserError(
                    f"must be a multiple of algo.num_generations ({size}), so that groups stay whole",
                    key="train.batch_size",
                    value=train.batch_size,
                    fix=f"train.batch_size={(train.batch_size // size + 1) * size}",
                )
            )
        return found

    def rollout(self, train: Train) -> Rollout:
        """Groups of completions."""
        assert train.batch_size
        groups = train.batch_size * self.rollout_batches // self.num_generations
        return Rollout(steps=self.num_iterations * self.rollout_batches, prompts=groups)

    def with_rollouts(self: Kind, factor: int) -> Kind:
        """More batches in a rollout."""
        return replace(self, rollout_batches=self.rollout_batches * factor)

    def sampling(self) -> dict[str, Any]:
        """How it samples, for ``online.online_config``."""
        return {
            "num_generations": self.num_generations,
            "num_iterations": self.num_iterations,
            "rollout_batches": self.rollout_batches,
            "temperature": self.temperature,
        }
