"""A look at a policy in the middle of its training, after which nothing tells that anybody looked. Imports torch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Within it ``model`` is in eval mode and may sample; afterwards all is as it was.

    That is: the random state of Python, NumPy, torch and CUDA; the mode of every module, one by one, since roles that
    share the policy's base have modes of their own; which parameters are trained, since switching an adapter off and
    on again sets that anew; and whether the model keeps keys and values. In eval mode no activation is checkpointed,
    so that checkpointing itself stays as it is.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    in_training = [module for module in model.modules() if module.training]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    use_cache = model.config.use_cache
    model.eval()
    model.config.use_cache = True
    try:
        yield
    finally:
        model.config.use_cache = use_cache
        for module in in_training:
            module.training = True
        for parameter, asked in trained:
            parameter.requires_grad_(asked)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_cuda:
            torch.cuda.set_rng_state_all(on_cuda)
