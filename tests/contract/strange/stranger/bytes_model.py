"""A model that comes from nowhere but its configuration."""

from dataclasses import dataclass
from typing import ClassVar

from harness.config.identity import digest
from harness.models import Model


@dataclass(frozen=True)
class Bytes(Model):
    """An untrained GPT-2 over bytes."""

    name: ClassVar[str] = "bytes"

    def recipe_digest(self, task):
        """There is one."""
        return digest("bytes")

    def configuration(self, source):
        """Sizes."""
        from transformers import GPT2Config

        return GPT2Config(
            n_layer=2, n_embd=32, n_head=2, vocab_size=384, n_positions=128, bos_token_id=None, eos_token_id=1
        )

    def tokenizer(self, source):
        """A token per byte."""
        from transformers import ByT5Tokenizer

        return ByT5Tokenizer(padding_side="left")

    def load(self, source, *, dtype, device, quantization=None):
        """Fresh weights, the same each time."""
        import torch
        from transformers import GPT2LMHeadModel

        torch.manual_seed(0)
        return GPT2LMHeadModel(self.configuration(source)).to(device=device, dtype=dtype)
