"""From a composed configuration to a prediction: the model's shape, its few layers, the rehearsals. Imports torch."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from harness.conversation import is_conversational
from harness.errors import UserError
from harness.plan.predict import FEW_LAYERS, Prediction, Target
from harness.plan.rehearsal import Place, layers_of, rehearse
from harness.plan.timeline import Level, Uneven, extended
from harness.preflight import model_config
from harness.trial import Setup, assemble, check_data, stored_as


def prediction_of(plain: Mapping[str, Any], target: Target) -> Prediction:
    """Rehearse the trial of a composed configuration.

    Raises:
        UserError: its model cannot be built without weights.
    """
    torch.set_num_threads(1)
    setup = assemble(plain)
    data = check_data(setup)
    dtype, precision = stored_as(setup, bf16=target.cuda)
    place = Place(target.cuda, getattr(torch, dtype), precision, target.fill)
    config = model_config(setup.model)
    model = skeleton(config, setup)
    tokenizer = setup.model.tokenizer(None)
    some = data.train_pairs or data.train_unpaired or data.train_prompts or data.retention
    chat = is_conversational(some) or (bool(tokenizer.chat_template) and setup.model.chat_template == "auto")
    if chat and not tokenizer.chat_template:
        from harness.models import PLAIN_TEMPLATE

        tokenizer.chat_template = PLAIN_TEMPLATE
    layers = config.get_text_config().num_hidden_layers

    def rehearsed(count: int) -> Any:
        return rehearse(setup, data, with_layers(config, count), tokenizer, place, chat=chat)

    peaks: dict[str, Level]
    counts = [layers]
    if layers > FEW_LAYERS + 2 and alike(layers_of(model, layers)):
        try:
            peaks = extended(rehearsed(FEW_LAYERS), rehearsed(FEW_LAYERS + 1), FEW_LAYERS, layers)
            counts = [FEW_LAYERS, FEW_LAYERS + 1]
        except Uneven:
            peaks = rehearsed(layers).peaks()
    else:
        peaks = rehearsed(layers).peaks()
    return Prediction(
        phases={phase: {o: v for o, v in level.owners.items() if v} for phase, level in peaks.items()},
        parameters=sum(p.numel() for p in model.parameters()),
        layers=counts,
    )


def skeleton(config: Any, setup: Setup) -> nn.Module:
    """The model on the meta device.

    Raises:
        UserError: it cannot be built there; the layer at which it stopped is named.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config))
    except Exception as error:  # anything: the code of an architecture is not ours
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot be built without weights: stopped {_place_of(error)} ({type(error).__name__}: {first})",
            key="model",
            value=getattr(setup.model, "path", None) or getattr(setup.model, "label", setup.model.name),
            fix="check the model's configuration",
        ) from error


def _place_of(error: Exception) -> str:
    """The modules within each other whose construction an error ended: ``in LlamaModel > LlamaDecoderLayer 0``."""
    path: list[str] = []
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module, number = frame.f_locals.get("self"), frame.f_locals.get("layer_idx")
        if isinstance(module, nn.Module):
            name = type(module).__name__ + (f" {number}" if isinstance(number, int) else "")
            path += [name] if path[-1:] != [name] else []
    return f"in {' > '.join(path)}" if path else "before its first module"


def with_layers(config: Any, count: int) -> Any:
    """The configuration with ``count`` layers, the first of them."""
    changed = copy.deepcopy(config)
    text = changed.get_text_config()
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == text.num_hidden_layers:
            setattr(text, name, value[:count])  # one entry for each layer, such as its kind of attention
    text.num_hidden_layers = count
    return changed


def alike(layers: list[nn.Module]) -> bool:
    """Whether all layers have the same modules, with the same shapes and settings."""
    kinds = {
        tuple(
            (name, type(m).__name__, m.extra_repr(), getattr(m, "is_sliding", None))
            for name, m in layer.named_modules()
        )
        for layer in layers
    }
    return len(kinds) == 1
