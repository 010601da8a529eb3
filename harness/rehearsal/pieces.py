"""A step of one process of several that hold a policy in pieces, rehearsed by itself. Imports torch.

PyTorch has a process group that nobody else is in: its collectives return at once, with tensors of the shapes that real
ones would have. So what one of eight processes holds is seen on a laptop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp._fully_shard import _fsdp_param, _fsdp_param_group, _fully_shard
from transformers import TrainerCallback

from harness.base.replacing import replaced
from harness.rehearsal.tracker import Tracker


@contextmanager
def one_of(processes: int) -> Iterator[None]:
    """Within it this process is the first of so many, and what they do together takes its course without the others.

    Entered among real tensors: a mesh of devices is a tensor of numbers that are read.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        mesh = init_device_mesh("cpu", (processes,))
        with replaced(_fully_shard, "_init_default_mesh", lambda *_, **__: mesh):
            yield
    finally:
        dist.destroy_process_group()


@contextmanager
def seen_by(tracker: Tracker) -> Iterator[None]:
    """Within it the tracker knows of what FSDP2 does without an operation: weights let go, and gradients kept."""

    def resizes(done: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        def resized(tensor: Tensor) -> None:
            done(tensor)
            tracker.resized(tensor)

        return resized

    reduce: Any = _fsdp_param_group.foreach_reduce

    def reduced(parameters: Any, *arguments: Any, **options: Any) -> Any:
        out = reduce(parameters, *arguments, **options)
        grads = [p.sharded_param.grad for p in parameters]
        tracker.own([grad for grad in grads if grad is not None], "gradients")
        return out

    with ExitStack() as stack:
        for module in (_fsdp_param, _fsdp_param_group):
            stack.enter_context(replaced(module, "alloc_storage", resizes(_fsdp_param.alloc_storage)))
        stack.enter_context(replaced(_fsdp_param, "free_storage", resizes(_fsdp_param.free_storage)))
        stack.enter_context(replaced(_fsdp_param_group, "foreach_reduce", reduced))
        yield


class ByName(TrainerCallback):
    """Gives an optimizer its parameters back: accelerate knows them by the address of data, and fakes have none."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._names: list[list[str]] = []

    def follow(self, trainer: Any) -> None:
        """Remember the names of what the trainer's optimizer is made of."""
        create = trainer.create_optimizer

        def created(*arguments: Any) -> Any:
            optimizer = create(*arguments)
            known = {id(p): name for name, p in trainer.model.named_parameters()}
            self._names = [[known[id(p)] for p in group["params"]] for group in optimizer.param_groups]
            return optimizer

        trainer.create_optimizer = created

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any):
        """Called when the policy is in pieces, before the first step."""
        named = dict(model.named_parameters())
        for group, names in zip(optimizer.param_groups, self._names, strict=True):
            group["params"] = [named[name] for name in names]
