"""What samples in online training, and what vLLM may take where it does. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Gt

from harness.base.errors import UserError

if TYPE_CHECKING:
    from harness.config.train import Train

GB = 10**9
HALF_AGAIN, ROOM_BYTES = 1.5, 4 * GB
INSTALL = "pip install 'trl[vllm]', in an environment whose torch it agrees with; or train.rollout=hf"


@dataclass(frozen=True)
class VLLM:
    """vLLM in the trial's own process, on its GPU, with a copy of the policy that is renewed before each rollout.

    Its kernels round otherwise than the trainer's, so that what samples is not quite what is trained. Each token's part
    of a policy gradient is therefore weighted by π_trainer(token) / π_sampler(token), cut off at ``most_weight``
    (truncated importance sampling), and the series ``sampler_*`` say how far apart the two are.

    Attributes:
        memory_gb: of the GPU, in 10⁹ bytes, for weights, keys and values, and all else; null: half as much again as
            the policy's weights in 16 bits, and 4 GB.
        most_weight: the largest weight of a token; 0 weights none, and the series are there all the same.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    memory_gb: Annotated[float, Gt(0)] | None = None
    most_weight: Annotated[float, Ge(0)] = 2.0

    def bytes_for(self, weights: int) -> int:
        """What it takes of a GPU beside a policy of so many weights."""
        if self.memory_gb is not None:
            return round(self.memory_gb * GB)
        return round(HALF_AGAIN * 2 * weights) + ROOM_BYTES


def rollout_problems(train: Train, adapter: Any, model: Any) -> list[UserError]:
    """Why vLLM cannot sample for such a trial, on whatever machine; empty where it can, or is not asked."""
    if train.rollout == "hf":
        return []
    words = None
    if adapter.quantized:
        words = "vLLM is given the policy's weights before each rollout, and those of this adapter's base are quantized"
    elif adapter.cannot_merge is not None or not adapter.off_is_base:
        words = "vLLM samples from a base that the adapter was added to, and this one cannot be while it trains"
    elif getattr(model, "gguf_file", None) is not None:
        words = "vLLM reads a folder of whole weights, and these are packed"
    return [] if words is None else [_refused(words, "adapter=lora, or train.rollout=hf")]


def rollout_problems_here(train: Train, *, cpu: bool) -> list[UserError]:
    """The same of this machine."""
    if train.rollout == "hf":
        return []
    if cpu:
        return [_refused("vLLM shares a GPU with the trainer, and this trial computes on a CPU", "train.rollout=hf")]
    return [] if find_spec("vllm") is not None else [_refused("the package vllm is not installed", INSTALL)]


def _refused(words: str, fix: str) -> UserError:
    return UserError(words, key="train.rollout", value="vllm", fix=fix)
