"""TRL's output head: the tiles in which it works, the tokens that it scores, and what it is without data.

Read in the version that ``trl_seam.READ_IN`` names. Imports torch and trl.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from trl.kernels import chunked_logprob
from trl.trainer import utils

from harness.base.replacing import replaced

TILE, IN_TORCH = 32_768, 2_048
"""Columns of the tiles in which TRL's output head works through the vocabulary: TRL's, and ours where no kernel does
(a CPU): what takes several passes over a tile is quicker where the tile stays in the caches."""
OURS = "of_scored"


def narrow_tiles(vocabulary: int, device: str) -> None:
    """Make tiles no wider than the vocabulary: TRL reserves 4,096 whole rows, half a GB where 40 columns are used."""
    widest = TILE if utils._use_triton(torch.device(device)) else IN_TORCH
    utils._CHUNKED_LOGPROB_CHUNK_SIZE = min(widest, vocabulary)


def tile() -> int:
    """Columns of a tile."""
    return utils._CHUNKED_LOGPROB_CHUNK_SIZE


def only_scored(trainer: Any) -> None:
    """Let the output heads of a trainer's models work on the tokens that a loss reads, on every device.

    TRL leaves prompts and padding out where Triton's kernels do the work. Elsewhere it would score every position,
    since some devices compile anew for each number of tokens; a CPU doesn't.
    """
    for model in (trainer.model, getattr(trainer, "ref_model", None)):
        if model is None or model.device.type != "cpu":
            continue
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        forward = vars(base).get("forward")  # TRL's, over the model's own
        if isinstance(forward, MethodType) and forward.__func__.__name__ != OURS:
            base.forward = MethodType(_compact(forward.__func__), base)


def _compact(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def of_scored(model: Any, *arguments: Any, **options: Any) -> Any:
        with replaced(utils, "_use_triton", lambda _: True):
            return forward(model, *arguments, **options)

    of_scored.__name__ = OURS
    return of_scored


# -- for tensors without data ----------------------------------------------------------------------------


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Within it TRL's output head takes its course on CUDA: Triton kernels, which make no tensors of their own."""

    def nothing(*_: Any, **__: Any) -> None:
        """A kernel that works in place."""

    def add_product(acc: Tensor, a: Tensor, b: Tensor) -> None:
        acc.add_(1)

    with ExitStack() as stack:
        stack.enter_context(replaced(chunked_logprob, "_forward_tile", nothing))
        stack.enter_context(replaced(chunked_logprob, "_backward_tile", nothing))
        stack.enter_context(replaced(chunked_logprob, "_addmm_fp32", add_product))
        stack.enter_context(replaced(utils, "_use_triton", lambda _: True))
        yield


@contextmanager
def head_within(context: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Within it what TRL's output head does, forward and backward, is wrapped by ``context``."""
    head: Any = chunked_logprob.ChunkedLogProbFunction
    with ExitStack() as stack:
        for part in ("forward", "backward"):
            stack.enter_context(replaced(head, part, staticmethod(context(getattr(head, part)))))
        yield
