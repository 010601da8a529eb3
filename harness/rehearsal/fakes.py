"""A world of fake tensors: shapes, dtypes and storages without data. Imports torch.

The fakes stand on the CPU also where a GPU is planned for, since a build of torch without CUDA has no other. What
differs on CUDA is set right by ``trl_head.as_on_cuda`` or by the stand-ins.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from harness.algorithms.trl_head import as_on_cuda
from harness.base.replacing import replaced


class FakeTensors(FakeTensorMode):
    """Within it every new tensor is fake."""

    def __deepcopy__(self, _: Any) -> FakeTensors:
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
def fake_tensors(*, cuda: bool) -> Iterator[FakeTensors]:
    """Enter a world of fakes; with ``cuda`` libraries take the course that they take there."""
    fakes = FakeTensors(allow_non_fake_inputs=False)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # deepcopy does
        stack.enter_context(replaced(nn.Module, "_apply", _apply))
        if cuda:
            stack.enter_context(as_on_cuda())
        stack.enter_context(fakes)
        yield fakes


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
