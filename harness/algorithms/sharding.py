"""A policy in pieces: each process of a trial holds a part of every weight (PyTorch's FSDP2). Imports torch.

The trainer is made as for one process, so that whatever it does beforehand (a check of the adapter, references scored
for the cache) meets whole tensors. Right before it takes its steps, accelerate is told to shard what it prepares. That
it did is looked at: on a machine without a GPU it would do without, and say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from harness.base.world import World


def shard(trainer: Any, world: World, tell: Callable[[], object]) -> None:
    """Have ``trainer`` train in pieces; a model of its own as a reference is taken apart at once.

    Args:
        trainer: TRL's, made, that has taken no step.
        world: of the trial.
        tell: called when the policy is in pieces, before the first step.
    """
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    state = trainer.accelerator.state
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        state_dict_type="SHARDED_STATE_DICT",  # of a checkpoint: each process writes its own part
        cpu_ram_efficient_loading=False,
        activation_checkpointing=False,  # the trainer's own is what ``train.gradient_checkpointing`` means
    )
    if state.mixed_precision != "no":
        plugin.set_mixed_precision(state.mixed_precision)
    state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
    trainer.is_fsdp_enabled = True
    if (reference := getattr(trainer, "ref_model", None)) is not None:
        trainer.ref_model = fsdp2_prepare_model(trainer.accelerator, reference)
    trainer.add_callback(_Looked(world, tell))


class _Looked(TrainerCallback):
    """Sees that the policy is in pieces once the trainer has prepared it."""

    def __init__(self, world: World, tell: Callable[[], object]):
        self.world, self.tell = world, tell

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Called by the trainer before its first step."""
        held, values = held_and_whole(model)
        if held * self.world.size > 1.5 * values:
            raise RuntimeError(f"the policy is not sharded: this process holds {held:,} of its {values:,} values")
        self.tell()


def held_and_whole(model: Any) -> tuple[int, int]:
    """How many values of a model's parameters this process holds, and how many there are."""
    parameters = list(model.parameters())
    return sum(local(p).numel() for p in parameters), sum(p.numel() for p in parameters)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together; all processes ask for the same ones, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def trained_weights(model: Any) -> Mapping[str, Tensor]:
    """The trained weights, put together on the CPU, by their names; all processes ask."""
    return {name: whole(p.detach()).cpu() for name, p in model.named_parameters() if p.requires_grad}


def put_together(base: Any, weights: Mapping[str, Tensor], wrap: Any | None) -> Any:
    """A policy in one piece.

    Args:
        base: the model that training started from, loaded anew.
        weights: of ``trained_weights``.
        wrap: peft's configuration; None where the base itself was trained.

    Raises:
        RuntimeError: the policy has other trained weights than those.
    """
    from peft import get_peft_model

    policy = base if wrap is None else get_peft_model(base, wrap)
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    if odd := sorted(trained.keys() ^ weights.keys())[:3]:
        raise RuntimeError(f"what was trained in pieces does not fit the policy: {', '.join(odd)}")
    for name, parameter in trained.items():
        parameter.data = weights[name].to(parameter.device)
    return policy.eval()
