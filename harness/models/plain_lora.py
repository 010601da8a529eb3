"""From LoRA that took its base apart to plain LoRA on the base as it was. Imports torch.

PiSSA and OLoRA train W_res + s B A with W_res = W - s B0 A0. The change is s (B A - B0 A0), which is plain LoRA of
twice the rank: s [B, -B0] [A; A0]. Loaded onto W without this, PiSSA's adapter would add its start a second time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NAME = "default"
"""Of the policy's adapter."""


@dataclass(frozen=True)
class Change:
    """What training changed, on the host.

    Attributes:
        config: of the plain adapter.
        weights: its matrices by their parameters' names.
    """

    config: Any
    weights: Mapping[str, Tensor]


def matrices(model: Any) -> dict[str, Tensor]:
    """A and B of every adapted layer, copied to the host, in 32 bits."""
    marks = (f".lora_A.{NAME}.", f".lora_B.{NAME}.")
    named = ((n, p) for n, p in model.named_parameters() if any(mark in n for mark in marks))
    return {name: parameter.detach().float().cpu().clone() for name, parameter in named}


def change_of(trained: Any, start: Mapping[str, Tensor]) -> Change:
    """The difference between a trained peft model and its ``start`` (``matrices`` before the first step)."""
    from peft.tuners.lora import LoraLayer

    scales = {float(m.scaling[NAME]) for m in trained.modules() if isinstance(m, LoraLayer)}
    (scale,) = scales  # one for all: ranks do not differ between layers
    config = copy.deepcopy(trained.peft_config[NAME])
    config.r, config.use_rslora, config.init_lora_weights = 2 * config.r, False, True
    config.lora_alpha = scale * config.r
    weights = {}
    for name, now in matrices(trained).items():
        before = start[name]
        weights[name] = torch.cat([now, before], 0) if ".lora_A." in name else torch.cat([now, -before], 1)
    return Change(config, weights)


def on_base(change: Change, base: Any) -> Any:
    """The plain adapter on ``base``: a peft model in eval mode."""
    from peft import get_peft_model

    model = get_peft_model(base, change.config)
    taken = 0
    for name, parameter in model.named_parameters():
        if (found := change.weights.get(name)) is not None:
            parameter.data = found.to(parameter.device)
            taken += 1
    if taken != len(change.weights):
        raise RuntimeError(f"{len(change.weights) - taken} adapted layers have no counterpart in the base")
    return model.eval()
