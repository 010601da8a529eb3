"""A world of fake tensors: shapes, dtypes and storages without data. Imports torch.

The fakes stand on the CPU also where a GPU is planned for, since a build of torch without CUDA has no other. What
differs on CUDA is set right here (``as_on_cuda``) or by the stand-ins.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes


class World(FakeTensorMode):
    """Within it every new tensor is fake."""

    def __deepcopy__(self, _: Any) -> World:
        """Itself: tensors copied with a model stay in this world."""
        return self

    def take_in(self, value: Any) -> Any:
        """Real tensors of a batch, as fakes."""
        if isinstance(value, Tensor):
            return self.from_tensor(value, static_shapes=True)
        if isinstance(value, dict):
            return {key: self.take_in(item) for key, item in value.items()}
        return [self.take_in(item) for item in value] if isinstance(value, list) else value


@contextmanager
def fake_world(*, cuda: bool) -> Iterator[World]:
    """Enter a world of fakes; with ``cuda`` libraries take the course that they take there."""
    world = World(allow_non_fake_inputs=False)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # deepcopy does
        stack.enter_context(patch.object(nn.Module, "_apply", _apply))
        if cuda:
            for target in as_on_cuda():
                stack.enter_context(target)
        stack.enter_context(world)
        yield world


outside = _disable_current_modes
"""Back among real tensors for a while: ``with outside():``."""


def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """``nn.Module._apply`` for fakes, whose memory cannot be swapped: what changed becomes a new parameter."""
    if recurse:
        for child in self.children():
            child._apply(fn)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                made = fn(parameter)
            if made is not parameter:
                self._parameters[name] = nn.Parameter(made, parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


def as_on_cuda() -> list[Any]:
    """Patches that give TRL's output head its course on CUDA: Triton kernels, which make no tensors of their own."""
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    def nothing(*_: Any, **__: Any) -> None:
        """A kernel that works in place."""

    def add_product(acc: Tensor, a: Tensor, b: Tensor) -> None:
        acc.add_(1)

    return [
        patch.object(chunked_logprob, "_forward_tile", nothing),
        patch.object(chunked_logprob, "_backward_tile", nothing),
        patch.object(chunked_logprob, "_addmm_fp32", add_product),
        patch.object(utils, "_use_triton", lambda _: True),
    ]
