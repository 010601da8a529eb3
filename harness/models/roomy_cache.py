"""A cache of keys and values that grows by many tokens at a time. Imports torch.

Transformers' puts each token behind the others by copying them all: a fifth of the time in which 16 completions of 64
tokens are sampled on a CPU, and for a moment two copies of a layer. Here a token is written into room that is there.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Tokens that a layer grows by."""


class RoomyLayer(DynamicLayer):
    """``DynamicLayer`` whose keys and values are the filled part of something larger.

    Args:
        layer: of a filled cache, whose tokens it takes over.
        more: tokens to come at most.
    """

    keys: Any  # tensors, always: transformers declares them None as long as nothing is held
    values: Any

    def __init__(self, layer: DynamicLayer, more: int):
        """Take over."""
        super().__init__()
        self.keys, self.values, self.is_initialized = layer.keys, layer.values, layer.is_initialized
        self.dtype, self.device = self.keys.dtype, self.keys.device
        self._rooms: tuple[Tensor, Tensor] | None = None
        self._filled: Tensor | None = None
        self._most = self.keys.shape[-2] + more

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write new tokens (B, heads, T, width) behind those that are there; all of them."""
        held = self.keys.shape[-2]
        end = held + key_states.shape[-2]
        if self._rooms is None or self.keys is not self._filled or end > self._rooms[0].shape[-2]:
            tokens = max(end, min(end + ROOM, self._most))
            self._rooms = _larger(self.keys, tokens), _larger(self.values, tokens)
        keys, values = self._rooms
        keys[..., held:end, :] = key_states
        values[..., held:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        self._filled = self.keys  # where rows were taken out, there are other keys than these
        return self.keys, self.values


def _larger(old: Tensor, tokens: int) -> Tensor:
    made = old.new_empty((*old.shape[:-2], tokens, old.shape[-1]))
    made[..., : old.shape[-2], :] = old
    return made


def with_room(cache: Any, more: int) -> None:
    """Let those layers of a filled cache that hold every token grow so, by ``more`` in all; others stay as they are."""
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[number] = RoomyLayer(layer, more)
