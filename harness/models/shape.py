"""Random weights at a real architecture's shape: memory and speed without a download."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge

from harness.base.errors import UserError
from harness.config import identity
from harness.models.base import Model, longest_in
from harness.models.loading import attention_option, character_tokenizer, trainable_in_4_bit

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.tasks.base import Task


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
        """Random weights, made on the device; those to be quantized on the host, and moved one by one."""
        import torch
        from transformers import AutoModelForCausalLM

        config = self.configuration()
        torch.manual_seed(self.seed)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device if quantization is None else "cpu"):
                made = AutoModelForCausalLM.from_config(config, dtype=dtype, **attention_option(self.attention))
        finally:
            torch.set_default_dtype(before)
        if quantization is None:
            return made.to(device)
        state = {k: v.contiguous() for k, v in made.state_dict().items()}
        made_class = type(made)
        del made
        return trainable_in_4_bit(
            made_class.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=dtype,
                quantization_config=quantization,
                device_map={"": device},
                **attention_option(self.attention),
            )
        )
