"""A look at a policy in the middle of its training, after which nothing tells that anybody looked. Imports torch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from harness.models.prefixes import apart


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Within it ``model`` is in eval mode and may sample; afterwards all is as it was.

    That is: the random state of Python, NumPy, torch and CUDA; the mode of every module, one by one, since roles that
    share the policy's base have modes of their own; and which parameters are trained, since switching an adapter off
    and on again sets that anew. Checkpointing of activations and ``use_cache`` are left alone: in eval mode nothing is
    checkpointed, and ``generate`` goes by a configuration of its own (``generation``).
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    in_training = [module for module in model.modules() if module.training]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    try:
        with apart(model):  # judged as everything is judged
            yield
    finally:
        for module in in_training:
            module.training = True
        for parameter, asked in trained:
            parameter.requires_grad_(asked)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_cuda:
            torch.cuda.set_rng_state_all(on_cuda)
