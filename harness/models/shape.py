"""Random weights at a real architecture's shape: memory and speed without a download."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge

from harness.base.errors import UserError
from harness.config import identity
from harness.models.base import Model, longest_in
from harness.models.loading import attention_option, character_tokenizer, trainable

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.tasks.base import Task

BLOCK = 1_048_583
"""Random numbers that weights are made of; a prime."""


@dataclass(frozen=True)
class Shape(Model):
    """Random weights at a real architecture's shape, to measure memory and speed without a download.

    Attributes:
        label: the shape's name.
        architecture: transformers' ``model_type`` (``llama``, ``qwen2``).
        config: the architecture's configuration values.
        seed: of the random weights.
    """

    name: ClassVar[str] = "shape"

    label: str = "custom"
    architecture: str = "llama"
    config: dict[str, Any] = field(default_factory=dict)
    seed: Annotated[int, Ge(0)] = 0

    def recipe_digest(self, task: Task) -> str:
        """Shape and seed."""
        return identity.digest({"architecture": self.architecture, "config": self.config, "seed": self.seed})

    def context_length(self) -> int | None:
        """As the shape has it."""
        return longest_in(self.config)

    def tokenizer(self, source: Path | None) -> PreTrainedTokenizerBase:
        """The embedded character tokenizer: its ids fit into any vocabulary."""
        return character_tokenizer(int(self.config.get("max_position_embeddings", 4096)))

    def configuration(self, source: Path | None = None) -> Any:
        """The transformers configuration."""
        from transformers import AutoConfig

        tokenizer = self.tokenizer(None)
        try:
            return AutoConfig.for_model(
                self.architecture,
                **self.config,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
            )
        except (ValueError, TypeError) as error:
            raise UserError(
                f"transformers cannot make this configuration ({error})", key="model.config", value=self.label
            ) from error

    def load(
        self, source: Path | None, *, dtype: torch.dtype, device: str, quantization: Any | None = None
    ) -> PreTrainedModel:
        """Random weights: the same on every device, and before quantization; loaded as a checkpoint's are.

        Memory while loading is a checkpoint's too: weights go to the device one by one, and tied ones once.
        """
        import torch
        from transformers import AutoModelForCausalLM

        config = self.configuration()
        with torch.device("meta"):
            bare = AutoModelForCausalLM.from_config(config, dtype=dtype, **attention_option(self.attention))
        loaded = type(bare).from_pretrained(
            None,
            config=config,
            state_dict=self._weights(bare, dtype),
            dtype=dtype,
            device_map={"": device},
            **({} if quantization is None else {"quantization_config": quantization}),
            **attention_option(self.attention),
        )
        return loaded if quantization is None else trainable(loaded, quantization)

    def _weights(self, bare: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Values for every parameter: scales are 1, biases 0, all else runs through one block of normal numbers.

        Drawing each of 8 billion numbers takes a CPU minutes. The block's length is prime, so that no two rows of a
        matrix are alike.
        """
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        block = torch.randn(BLOCK, generator=generator) * (getattr(bare.config, "initializer_range", None) or 0.02)
        block, at, found = block.to(dtype), 0, {}
        for name, parameter in bare.named_parameters():  # names tied ones once
            if parameter.ndim < 2:
                found[name] = torch.full(parameter.shape, float(not name.endswith("bias")), dtype=dtype)
                continue
            values = torch.empty(parameter.numel(), dtype=dtype)
            for begin in range(0, len(values), BLOCK):
                piece = values[begin : begin + BLOCK]
                first = min(len(piece), BLOCK - at)
                piece[:first] = block[at : at + first]
                piece[first:] = block[: len(piece) - first]
            at = (at + len(values)) % BLOCK
            found[name] = values.view(parameter.shape)
        return found
