"""The critic: weights of its own for full fine-tuning, a second adapter on the shared base for LoRA and QLoRA.

An adapter that leaves no base to share (PiSSA) has a critic that is plain LoRA on a copy of the base.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn

from harness.algorithms.roles import tensors_of
from harness.models.classifier import Head, acting, undropped

NAME = "critic"
"""Of the critic's adapter."""


class Critic:
    """A transformer body of its own with one output per position; it starts at V = 0 everywhere.

    Attributes:
        head: from a hidden state to a value, in 32 bits.
        trained: what the optimizer moves.
    """

    def __init__(self, policy: Any):
        """Copy the body of ``policy``, a causal language model."""
        self.body = copy.deepcopy(policy.base_model).requires_grad_(True).train()
        self.head = _value_head(policy)
        self.trained: list[nn.Parameter] = [*self.body.parameters(), *self.head.parameters()]

    @staticmethod
    def beside(policy: Any, base: Any = None) -> Critic:
        """The kind of critic that suits ``policy``: an adapter where it has one, weights of its own elsewhere.

        Args:
            policy: a causal language model, wrapped by peft or not.
            base: the base as it was, where the policy's adapter changed its own; it becomes the critic's.
        """
        config = getattr(policy, "peft_config", {}).get("default")
        if config is None:
            return Critic(policy)
        return AdapterCritic(policy, config) if base is None else ApartCritic(base, config)

    @property
    def held(self) -> list[Tensor]:
        """Tensors that are there for the critic alone."""
        return list(self.trained)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Forward and backward passes within this are the critic's."""
        yield

    def checkpoint(self, options: dict[str, Any] | None) -> None:
        """Compute activations again in the backward pass instead of keeping them, as the policy does."""
        self.body.gradient_checkpointing_enable(options)

    def release(self) -> None:
        """Leave the policy as if there had been no critic."""

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, keep: int) -> Tensor:
        """Values of the states before each of the last ``keep`` tokens: (B, keep). Call it in its turn."""
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return self.head(hidden[:, -keep - 1 : -1]).squeeze(-1)

    @torch.no_grad()
    def values(self, input_ids: Tensor, attention_mask: Tensor, keep: int, rows: int) -> Tensor:
        """The same without gradients, ``rows`` sequences at a time."""
        with self.turn():
            parts = [
                self(input_ids[i : i + rows], attention_mask[i : i + rows], keep)
                for i in range(0, input_ids.shape[0], rows)
            ]
        return torch.cat(parts)

    def state(self) -> dict[str, Tensor]:
        """Everything trained, for a checkpoint."""
        return {str(i): parameter.detach() for i, parameter in enumerate(self.trained)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what ``state`` gave."""
        for i, parameter in enumerate(self.trained):
            parameter.data.copy_(state[str(i)])


class AdapterCritic(Critic):
    """Shares the policy's frozen base: policy and critic take turns on it, each with its forward and backward pass.

    Turns matter beyond tidiness: gradient checkpointing repeats the forward pass during the backward pass, through
    whichever adapter is active then.
    """

    def __init__(self, policy: Any, config: Any):
        """Add an adapter of shape ``config`` to the peft model ``policy``."""
        self.policy = policy
        policy.add_adapter(NAME, undropped(config))
        adapter = [p for name, p in policy.named_parameters() if f".{NAME}." in name]
        for parameter in adapter:
            parameter.data = parameter.data.float()
        policy.set_adapter("default")
        self.body = policy.get_base_model().base_model
        self.head = _value_head(policy.get_base_model())
        self.trained = [*adapter, *self.head.parameters()]

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Activate the critic's adapter, then the policy's again."""
        with acting(self.policy, NAME):
            yield

    def checkpoint(self, options: dict[str, Any] | None) -> None:
        """The trainer does it for the layers that policy and critic share."""

    def release(self) -> None:
        """Remove the adapter."""
        self.policy.delete_adapter(NAME)


class ApartCritic(Critic):
    """Plain LoRA on a base of its own, of the shape of an adapter that took the policy's base apart."""

    def __init__(self, base: Any, config: Any):
        """Wrap ``base``, which is nobody else's, with an adapter of shape ``config``."""
        config = undropped(config)
        config.init_lora_weights = True
        wrapped: Any = get_peft_model(base.requires_grad_(False), config)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        self.body = base.base_model.train()
        self.head = _value_head(base)
        self.trained = [*(p for p in wrapped.parameters() if p.requires_grad), *self.head.parameters()]

    @property
    def held(self) -> list[Tensor]:
        """The base too."""
        return [*tensors_of(self.body), *self.head.parameters()]

    def checkpoint(self, options: dict[str, Any] | None) -> None:
        """As the policy does; the first layer's input needs a gradient for the backward pass to reach the adapter."""
        self.body.gradient_checkpointing_enable(options)
        self.body.enable_input_require_grads()


def _value_head(policy: Any) -> Head:
    return Head(policy.config.get_text_config().hidden_size, bias=True, device=policy.device)
