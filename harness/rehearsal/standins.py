"""Stand-ins with the memory of the real thing, where that cannot run on fake tensors. Imports torch.

- 4-bit weights: bitsandbytes' ``Params4bit`` quantizes when it is made, so packed bytes of the same size stand in;
  layers of 8-bit weights are our own, without values.
- 8-bit AdamW: its kernels work on CUDA alone; its two states of a byte each, with their scales, stand in.
- Sampling: its first token is sampled for real, and its last one after a cache of the full length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn
from transformers.quantizers import AutoHfQuantizer

from harness.base.replacing import replaced
from harness.models.adapters import BLOCK
from harness.models.eight_bit import Linear8bit

SCALES_BLOCK = 256
"""Scales that share one of theirs (arXiv 2305.14314; bitsandbytes' default)."""
OPTIMIZER_BLOCK, LEAST_QUANTIZED, LEAST_PAGED = 256, 4096, 100_000
"""Of 8-bit AdamW: values that share a scale, and the sizes below which a state stays in 32 bits, or on the device."""


class Params4bit(nn.Parameter):
    """Packed 4-bit weights; peft and transformers know them by this name."""

    compress_statistics: bool
    quant_type: str


class Linear4bit(bnb.nn.Linear4bit):
    """A frozen 4-bit layer: unpacks its weights for each product, and again in the backward pass."""

    def __init__(self, layer: nn.Linear, compute_dtype: torch.dtype, quantization: Any):
        """Take the shape of ``layer``; its bias stays."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.compute_dtype, self.bias = compute_dtype, layer.bias
        sizes = four_bit_bytes(layer.weight.numel(), double=quantization.bnb_4bit_use_double_quant)
        packed = Params4bit(torch.empty(sizes["packed"], 1, dtype=torch.uint8), requires_grad=False)
        packed.compress_statistics = quantization.bnb_4bit_use_double_quant
        packed.quant_type = quantization.bnb_4bit_quant_type
        self.weight = packed
        self.register_buffer("constants", torch.empty(sizes["constants"], dtype=torch.uint8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The product in the compute dtype, given back in the dtype of ``x``."""
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        shape = (self.out_features, self.in_features)
        return _Product4bit.apply(x.to(self.compute_dtype), self.weight, shape, bias).to(x.dtype)


class EightBit(Linear8bit):
    """Our layer of 8 bits, its codes no ``Int8Params``, which cannot be made of tensors without data."""

    def __init__(self, layer: nn.Linear, compute_dtype: torch.dtype):
        """Take the shape of ``layer``; its bias stays."""
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        self.state, self.index = bnb.MatmulLtState(), None
        self.state.has_fp16_weights = False
        self.weight = nn.Parameter(torch.empty(layer.weight.shape, dtype=torch.int8), requires_grad=False)
        self.coded(torch.empty(layer.out_features), compute_dtype)


class _Product4bit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.shape, ctx.dtype = shape, x.dtype
        return nn.functional.linear(x, x.new_empty(shape), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        unpacked = gradients[0].new_empty(ctx.shape, dtype=ctx.dtype)
        return torch.matmul(gradients[0], unpacked), None, None, None


def four_bit_bytes(values: int, *, double: bool) -> dict[str, int]:
    """Bytes of ``values`` weights in 4 bits: packed, and their constants (scales and the tables to read them by).

    A scale of 32 bits for each block of 64 weights; with ``double`` quantization one byte for it, and a scale of 32
    bits for each 256 of those bytes: 0.5 against 0.127 bits per weight.
    """
    scales = math.ceil(values / BLOCK)
    table = 16 * 4  # one value for each code
    if not double:
        return {"packed": math.ceil(values / 2), "constants": 4 * scales + table}
    return {
        "packed": math.ceil(values / 2),
        "constants": scales + 4 * math.ceil(scales / SCALES_BLOCK) + table + 256 * 4 + 4,
    }


def quantize(model: Any, compute_dtype: torch.dtype, quantization: Any) -> Any:
    """Put quantized layers in the place of all linear layers but the output head, as transformers does when loading."""
    head, eight = model.get_output_embeddings(), quantization.load_in_8bit
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not head:
                made = EightBit(child, compute_dtype) if eight else Linear4bit(child, compute_dtype, quantization)
                setattr(parent, name, made)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.is_loaded_in_4bit, model.is_loaded_in_8bit, model.is_quantized = not eight, eight, True
    model.quantization_method = quantization.quant_method
    model.hf_quantizer = AutoHfQuantizer.from_config(quantization)
    model.config.quantization_config = quantization
    return model


def largest(model: Any) -> int:
    """Values of the largest quantized layer."""
    layers = (m for m in model.modules() if isinstance(m, Linear4bit | Linear8bit))
    return max((m.in_features * m.out_features for m in layers), default=0)


class EightBitAdamW(torch.optim.Optimizer):
    """Two states of a byte per value; paged ones live in host memory and come as they are needed, their scales stay."""

    def __init__(self, groups: Any, *, paged: bool):
        """Optimize ``groups``; with ``paged`` the states of large parameters take nothing of the device."""
        super().__init__(groups, {"lr": 0.0})
        self.paged = paged

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make the states when first called; the update itself works in place."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or self.state[parameter]:
                    continue
                values = parameter.numel()
                small = values < LEAST_QUANTIZED
                for name in ("state1", "state2"):
                    if not self.paged or values < LEAST_PAGED:
                        dtype = torch.float32 if small else torch.uint8
                        self.state[parameter][name] = torch.zeros(values, dtype=dtype)
                    if not small:
                        self.state[parameter][f"absmax_{name}"] = torch.zeros(math.ceil(values / OPTIMIZER_BLOCK))


@contextmanager
def ends_of_sampling(model: Any, each: int = 1) -> Iterator[None]:
    """Within it ``generate`` samples the first token and the last one, which bound the memory of all.

    Args:
        model: a causal language model, wrapped by peft or not.
        each: completions of a prompt, for all of which it is read once.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    whole = model.generate

    def ends(input_ids: Tensor, attention_mask: Tensor, generation_config: Any = None, **options: Any) -> Tensor:
        """Prompts (B, P) and their mask in; prompts and completions (B, P + T) out."""
        tokens = options.pop("max_new_tokens", None) or generation_config.max_new_tokens
        options.pop("min_new_tokens", None)
        rows, prompt = input_ids.shape
        options |= {"max_new_tokens": 1, "return_dict_in_generate": True}
        if generation_config is not None:
            options["generation_config"] = generation_config
        learned = {k: options.pop(k) for k in ("past_key_values",) if k in options}  # tokens before the prompt
        first = whole(input_ids=input_ids, attention_mask=attention_mask, **options, **learned)
        if each > 1:
            first.past_key_values.batch_repeat_interleave(each)
            rows *= each
        if tokens > 1:
            cache = stretched(first.past_key_values, prompt + tokens - 2, model.config)
            del first
            ids = input_ids.new_ones((rows, prompt + tokens - 1))
            whole(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **options)
        return input_ids.new_ones((rows, prompt + tokens))

    once = _every_other()
    with (
        replaced(model, "generate", ends),
        replaced(model, "_has_unfinished_sequences", lambda *_, **__: next(once)),
    ):
        yield


def _every_other() -> Iterator[bool]:
    while True:
        yield True
        yield False


def stretched(cache: Any, length: int, config: Any) -> Any:
    """A key-value cache like ``cache`` that holds ``length`` tokens."""
    from transformers import DynamicCache

    made = DynamicCache(config=config)
    for i, layer in enumerate(cache.layers):
        shape = (*layer.keys.shape[:-2], length, layer.keys.shape[-1])
        made.update(layer.keys.new_empty(shape), layer.values.new_empty(shape), i)
    return made


class _Kept:
    """In place of the share of steps in which a layer of LoHa or LoKr is left out: drawn numbers are all above it."""

    def __lt__(self, _: Any) -> bool:
        return True


def keep_layers(model: Any) -> None:
    """No adapter's layer is left out at random: which number was drawn cannot be seen without data."""
    for module in model.modules():
        if isinstance(shares := getattr(module, "module_dropout", None), dict):
            module.module_dropout = dict.fromkeys(shares, _Kept())
