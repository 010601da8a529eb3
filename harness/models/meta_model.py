"""Models without their weights: modules on the meta device. Heavy imports happen when called."""

from __future__ import annotations

import copy
import traceback
from typing import TYPE_CHECKING, Any

from harness.base.errors import UserError
from harness.models import Model
from harness.models.loading import attention_option

if TYPE_CHECKING:
    from torch import nn


def skeleton(config: Any, model: Model) -> nn.Module:
    """The modules of ``model`` on the meta device.

    Args:
        config: of transformers.
        model: named in messages.

    Raises:
        UserError: it cannot be built there; the layer at which it stopped is named.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), **attention_option(model.attention))
    except Exception as error:  # anything: the code of an architecture is not ours
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        if model.attention is not None and "attention" in first.lower():
            fix = "model.attention=null leaves the choice to transformers"
            raise UserError(first, key="model.attention", value=model.attention, fix=fix) from error
        raise UserError(
            f"cannot be built without weights: stopped {_place_of(error)} ({type(error).__name__}: {first})",
            key="model",
            value=getattr(model, "path", None) or getattr(model, "label", model.name),
            fix="check the model's configuration",
        ) from error


def _place_of(error: Exception) -> str:
    """The modules within each other whose construction an error ended: ``in LlamaModel > LlamaDecoderLayer 0``."""
    from torch import nn

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


def layers_of(model: nn.Module, count: int) -> list[nn.Module]:
    """The repeated layers: the first list of modules that is as long as the configuration says; else nothing."""
    from torch import nn

    found = next((m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count), None)
    return list(found) if found is not None else []
