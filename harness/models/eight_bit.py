"""Frozen weights of 8 bits with activations as they are. Imports torch and bitsandbytes.

bitsandbytes multiplies 8-bit weights as LLM.int8 does (arXiv 2208.07339): activations are rounded to 8 bits too, but
for the columns in which any row of the batch has an outlier. So what a row is given depends on the rows beside it, and
on a CPU a model in eval mode computes something else than the same one in training. Here the weights alone are rounded,
and what they stand for is multiplied in the dtype of the activations: a row's value is its own, the gradient is that of
what was computed, and no copy of the activations is kept.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn

LEVELS = 127.0
"""The code of a row's largest weight; its scale is that weight."""


class Linear8bit(bnb.nn.Linear8bitLt):
    """bitsandbytes' layer, by whose type peft knows what to do with it, with a product of its own.

    Attributes:
        weight: codes (out, in), int8.
        scales: the largest weight of each row (out,), 32 bits.
        compute_dtype: in which the weights are multiplied.
    """

    scales: Tensor
    compute_dtype: torch.dtype

    @classmethod
    def of(cls, layer: Any, compute_dtype: torch.dtype) -> Linear8bit:
        """Make ``layer``, bitsandbytes' own and quantized, one of these."""
        if layer.weight.CB is not None:
            layer.init_8bit_state()
        layer.__class__ = cls
        return layer.coded(layer.state.SCB, compute_dtype)

    def coded(self, scales: Tensor, compute_dtype: torch.dtype) -> Linear8bit:
        """Note how the codes are read."""
        self.register_buffer("scales", scales, persistent=False)
        self.compute_dtype = compute_dtype
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out), in the dtype of ``x``."""
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        return _Product.apply(x.to(self.compute_dtype), self.weight, self.scales, bias).to(x.dtype)


def unpacked(layer: Linear8bit, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights (out, in) that the codes of a layer stand for."""
    return _unpacked(layer.weight, layer.scales, dtype)


def _unpacked(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return codes.to(dtype).mul_((scales / LEVELS).to(dtype).unsqueeze(1))


class _Product(torch.autograd.Function):
    """x Wᵀ + b; the weights are unpacked for it, and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.dtype = x.dtype
        return nn.functional.linear(x, _unpacked(codes, scales, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        codes, scales = ctx.saved_tensors
        return torch.matmul(gradients[0], _unpacked(codes, scales, ctx.dtype)), None, None, None
