"""Every live storage counted, operation by operation, with its owner. Imports torch.

Works on real tensors as on fake ones, so that a prediction can be held against the same step run for real.
"""

from __future__ import annotations

import math
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode

from harness.rehearsal.timeline import OWNERS, Mark, Timeline

aten = torch.ops.aten


def exact(size: int) -> int:
    """Bytes as asked for."""
    return size


def as_cuda_rounds(size: int) -> int:
    """Bytes that CUDA's caching allocator books for a request: multiples of 512 (c10's ``kMinBlockSize``)."""
    return -(-size // 512) * 512


@dataclass
class _Held:
    """A storage that is alive: what it takes, whose it is, and what tells of its end."""

    size: int
    owner: int
    reference: Any


class Tracker(TorchDispatchMode):
    """Counts the bytes of live storages by owner after every operation within it.

    A tensor that was made outside counts from the first operation that returns a view of it, or from ``own``.

    Args:
        rounded: bytes booked for a request of so many.
        vocabulary: a new tensor whose last dimension has this size is ``logits``; 0 for none.

    Attributes:
        lets_through: shape of a mask without data -> how many positions it selects; None: all of them.
    """

    def __init__(self, rounded: Callable[[int], int] = exact, vocabulary: int = 0):
        """Start with nothing."""
        super().__init__()
        _of_the_engine_alone()  # looked at now: within the mode there is no autograd to look at
        self._rounded, self._vocabulary = rounded, vocabulary
        self._held: dict[int, _Held] = {}
        self._bytes = [0] * len(OWNERS)
        self._creating = OWNERS.index("activations")
        self._ops = array("q")
        self._marks: list[Mark] = []
        self._looks = True
        self.phase = "load"
        self.lets_through: Callable[[tuple[int, ...]], int | None] = lambda _: None

    def timeline(self) -> Timeline:
        """All that was recorded."""
        return Timeline(tuple(self._marks), np.array(self._ops, dtype=np.int64).reshape(-1, len(OWNERS)))

    def mark(self, kind: str, layer: int | None = None) -> None:
        """A new stretch begins here."""
        self._marks.append(Mark(self.phase, kind, layer, len(self._ops) // len(OWNERS)))
        self._ops.extend(self._bytes)  # what is alive at its beginning, even if nothing happens in it

    def enter(self, phase: str) -> None:
        """What follows belongs to ``phase``."""
        self.phase = phase
        self.mark("begin")

    def own(self, tensors: Iterable[Tensor], owner: str) -> None:
        """Book the storages of ``tensors`` on ``owner``."""
        to = OWNERS.index(owner)
        for tensor in tensors:
            held = self._see(tensor)
            self._bytes[held.owner] -= held.size
            self._bytes[to] += held.size
            held.owner = to

    @contextmanager
    def creating(self, owner: str) -> Iterator[None]:
        """Storages made within belong to ``owner``."""
        before, self._creating = self._creating, OWNERS.index(owner)
        try:
            yield
        finally:
            self._creating = before

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """What is made within does not count, until ``own`` or an operation names it."""
        self._looks = False
        try:
            yield
        finally:
            self._looks = True

    @property
    def live(self) -> dict[str, int]:
        """Bytes alive now, by owner."""
        return dict(zip(OWNERS, self._bytes, strict=True))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then count."""
        if func is aten.add.Tensor and not kwargs and accumulates(*args):
            func = aten.add_.Tensor
        try:
            out = func(*args, **(kwargs or {}))
        except (DataDependentOutputException, DynamicOutputShapeException):
            out = worst_case(func, args, self.lets_through)
        if not self._looks or func is torch.ops.prim.device.default:
            return out
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        if (inside := scratch(func, args)) > 0:
            owner, before = self._creating, self._bytes[self._creating]
            self._bytes[owner] += self._rounded(inside)
            self._ops.extend(self._bytes)
            self._bytes[owner] = before
        self._ops.extend(self._bytes)
        return out

    def resized(self, tensor: Tensor) -> None:
        """The storage of ``tensor`` was made larger or smaller, which is no operation."""
        held = self._see(tensor)
        size = self._rounded(tensor.untyped_storage().nbytes())
        self._bytes[held.owner] += size - held.size
        held.size = size
        self._ops.extend(self._bytes)

    def _see(self, tensor: Any) -> _Held:
        tensor = getattr(tensor, "_local_tensor", tensor)  # what this process holds of one that is in pieces
        tensor = getattr(tensor, "elem", tensor)  # what a collective will have written
        storage = tensor.untyped_storage()
        key = storage._cdata
        held = self._held.get(key)
        if held is None:
            owner = self._creating
            if (
                self._vocabulary
                and tensor.ndim > 1
                and tensor.shape[-1] == self._vocabulary
                and OWNERS[owner] == "activations"
            ):
                owner = OWNERS.index("logits")
            size = self._rounded(storage.nbytes())
            held = self._held[key] = _Held(size, owner, weakref.ref(storage, partial(self._gone, key)))
            self._bytes[owner] += size
        return held

    def _gone(self, key: int, _: Any) -> None:
        held = self._held.pop(key)
        self._bytes[held.owner] -= held.size


def scratch(func: Any, args: Any) -> int:
    """Bytes that an operation of a library holds while it runs, and that the mode does not see.

    bitsandbytes multiplies by a 4-bit weight in one operation, in which the whole weight is unpacked where no kernel of
    its own does the work (on CPUs, and on GPUs from some number of rows on).
    """
    if func.namespace != "bitsandbytes" or func.name() != "bitsandbytes::gemm_4bit" or args[0].device.type != "cpu":
        return 0
    return math.prod(args[2]) * args[0].element_size()


def accumulates(old: Any, new: Any) -> bool:
    """Whether autograd adds two gradients of one tensor here, and would do so in place if nobody looked on.

    Its engine adds into a gradient that nobody else holds (``InputBuffer``), but not under a dispatch mode, where it
    makes a third tensor: of an embedding that is the output head too, as large as the vocabulary by the width.
    """
    if torch._C._current_graph_task_id() == -1 or torch.is_grad_enabled() or not isinstance(new, Tensor):
        return False
    return (old.shape, old.dtype) == (new.shape, new.dtype) and _holders(old) == _of_the_engine_alone()


def _holders(tensor: Tensor) -> tuple[int, int]:
    """Use counts of a tensor and of its storage, as an operation's argument."""
    return tensor._use_count(), torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)  # type: ignore[attr-defined]


@cache
def _of_the_engine_alone() -> tuple[int, int]:
    """What ``_holders`` says, in a dispatch mode, of a gradient that only the engine holds: seen, as it may change."""
    seen: list[tuple[int, int]] = []

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is aten.add.Tensor and torch._C._current_graph_task_id() != -1:
                seen.append(_holders(args[0]))
            return func(*args, **(kwargs or {}))

    twice = torch.ones(2, requires_grad=True) * 1
    with Look():
        (twice.sin() + twice.cos()).sum().backward()
    return seen[0]


def worst_case(func: Any, args: Any, lets_through: Callable[[tuple[int, ...]], int | None]) -> Any:
    """The answer that takes the most memory, where it depends on values that fake tensors do not have.

    A mask selects everything, or what ``lets_through`` says of its shape; a condition does not hold (so padding is
    never ruled out); a number is 1.
    """
    kind, tensor = func.overloadpacket, args[0]
    if kind is aten._local_scalar_dense:
        return False if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 1
    if kind is aten.nonzero:
        return tensor.new_empty((tensor.numel(), tensor.ndim), dtype=torch.long)
    if kind is aten.masked_select:
        return tensor.new_empty((tensor.numel(),))
    if kind is aten.index and len(args[1]) == 1 and args[1][0].dtype == torch.bool:
        mask = args[1][0]
        count = lets_through(tuple(mask.shape))
        return tensor.new_empty((mask.numel() if count is None else count, *tensor.shape[mask.ndim :]))
    if kind is aten.equal:
        return True
    raise NotImplementedError(f"the memory plan has no worst case for {func}, whose result depends on values")
