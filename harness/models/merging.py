"""An adapter added to the weights of a base, and quantized weights written out. Heavy imports happen when called."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class CannotMerge(Exception):
    """The adapter cannot be added to the weights; in the words of whoever says so."""


def merged(base: Any, adapter: Path) -> Any:
    """The plain model ``base`` with the adapter of a folder added to its weights; ``base`` itself is changed.

    The product of an adapter's matrices is made in the 32 bits that they are stored in, and rounded to the dtype of the
    weight that it is added to.

    Raises:
        CannotMerge: peft does not merge this kind, or what it gives are no numbers.
    """
    import torch
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTuner

    with torch.no_grad():
        model = PeftModel.from_pretrained(base, str(adapter), autocast_adapter_dtype=True)
        if not isinstance(model.base_model, BaseTuner):
            raise CannotMerge(f"peft cannot add {model.peft_type} to the weights of a base")
        _untie(model)
        try:
            return model.merge_and_unload(safe_merge=True).eval()
        except (NotImplementedError, ValueError) as error:
            raise CannotMerge(f"peft cannot merge it: {' '.join(str(error).split())[:200]}") from error


def _untie(model: Any) -> None:
    """Give the head weights of its own where a low-rank change of the embedding they are tied to is added in place."""
    import torch
    from peft.tuners.lora import LoraLayer

    base = model.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if not isinstance(embedding, LoraLayer) or getattr(head, "weight", None) is not embedding.base_layer.weight:
        return
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for config in (base.config, base.config.get_text_config()):
        config.tie_word_embeddings = False


def write_out(quantized: Any, base: Any) -> Any:
    """``base`` with the values that the quantized weights of ``quantized`` stand for; ``base`` itself is changed.

    Args:
        quantized: the same model with layers of bitsandbytes', below an adapter or not.
        base: the model with whole weights, on the same device.

    Raises:
        ValueError: ``quantized`` has no quantized weight.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    written = 0
    with torch.no_grad():
        for name, module in quantized.named_modules():
            if (values := _values(module)) is None:
                continue
            layer = base.get_submodule(name.removesuffix(".base_layer"))  # as peft calls what it wraps
            layer.weight.copy_(values.T if isinstance(layer, Conv1D) else values)
            written += 1
    if not written:
        raise ValueError("no weight of the model is quantized")
    return base


def _values(module: Any) -> Any | None:
    """The weights (out, in) that the codes of a layer stand for; None of one that has no codes."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    from harness.models.eight_bit import Linear8bit, unpacked

    if isinstance(module, Linear4bit):
        weight: Any = module.weight
        return dequantize_4bit(weight.data, weight.quant_state)
    return unpacked(module) if isinstance(module, Linear8bit) else None


def weight_bytes(model: Any) -> int:
    """Bytes of the weights as they are saved: tied ones once, buffers and the constants of quantization included."""
    found = {(v.data_ptr(), v.numel()): v.numel() * v.element_size() for v in model.state_dict().values()}
    return sum(found.values())
