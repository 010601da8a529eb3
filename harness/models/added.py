"""LoRA added to the weights of its base for as long as something is sampled. Imports torch.

A decoding step reads every weight for a few tokens, and beside each adapted layer it runs four small operations more:
a sixth of the time in which 16 completions are sampled with 135 M weights on a CPU. So the sum is made once for a
rollout. Only where it is the same distribution up to rounding in 32 bits: rounded to 16 bits, a sum loses what an
adapter has learned in its first steps, and samples would come from another policy than the one that is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from harness.base.replacing import replaced

MOST = 2**30
"""Bytes of sums. A model that needs more spends its time on reading weights, and has no memory to spare."""


@contextmanager
def added(model: Any, *, layers: int | None = None) -> Iterator[int]:
    """Within it a policy's plain LoRA layers are linear layers with the sums for weights; afterwards as they were.

    The base's own weights stay where they are, so that they come back to the bit. Nothing is added where not all
    adapted layers can be: with DoRA or biases, in 16 or fewer bits or under autocast, in pieces (FSDP), with dropout at
    work, or where the sums take more than ``MOST``.

    Args:
        model: a policy, wrapped by peft or not; it must not train, nor lose its adapter, within.
        layers: of the whole model, where ``model`` is a part of it.

    Yields:
        Adapted layers with a sum.
    """
    adapted = _adapted(model)
    if any(not _plain(layer) for layer in adapted) or _bytes(model, adapted, layers) > MOST:
        adapted = []
    with ExitStack() as stack:
        for layer in adapted:
            names = [name for name in layer.active_adapters if name in layer.lora_A]
            stack.enter_context(_weights(layer.base_layer, _sum(layer, names)))
            stack.enter_context(replaced(layer, "merged_adapters", names))
        yield len(adapted)


def _adapted(model: Any) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [part for part in model.modules() if isinstance(part, LoraLayer)] if hasattr(model, "modules") else []


def _plain(layer: Any) -> bool:
    from peft.tuners.lora.layer import Linear

    if type(layer) is not Linear or layer.merged or layer.disable_adapters or layer.lora_variant:
        return False
    if "forward" in vars(layer):  # X-LoRA's, which weighs its experts token by token
        return False
    if any(layer.lora_bias.values()) or any(_drops(one) for one in layer.lora_dropout.values()):
        return False
    weight: Any = layer.base_layer.weight
    own = [weight, *(matrix.weight for held in (layer.lora_A, layer.lora_B) for matrix in held.values())]
    wide = all(one.dtype == torch.float32 and not isinstance(one, DTensor) for one in own)
    return wide and not torch.is_autocast_enabled(weight.device.type)


def _drops(dropout: Any) -> bool:
    return dropout.training and getattr(dropout, "p", 0) > 0


def _bytes(model: Any, adapted: list[Any], layers: int | None) -> float:
    """Of the sums; of a whole model as many times as it has more layers."""
    there = sum(layer.base_layer.weight.numel() * 4 for layer in adapted)
    return there if layers is None else there * layers / model.config.get_text_config().num_hidden_layers


@torch.no_grad()
def _sum(layer: Any, names: list[str]) -> Tensor:
    """The base's weight and each adapter's part, in 32 bits."""
    total = layer.base_layer.weight
    for name in names:
        first, second = layer.lora_A[name].weight, layer.lora_B[name].weight
        if layer.fan_in_fan_out:
            total = torch.addmm(total, first.T, second.T, alpha=layer.scaling[name])
        else:
            total = torch.addmm(total, second, first, alpha=layer.scaling[name])
    return total


@contextmanager
def _weights(linear: Any, values: Tensor) -> Iterator[None]:
    """Within it ``linear`` has other weights; a layer that is tied to it keeps its own."""
    own = linear.weight
    linear.weight = torch.nn.Parameter(values, requires_grad=False)
    try:
        yield
    finally:
        linear.weight = own
