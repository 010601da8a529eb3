"""The embedded model: a small Llama over characters, made by the SFT stage on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Gt

from harness.base.errors import UserError
from harness.config import closure, identity
from harness.models.base import Model, Prepared
from harness.models.loading import character_tokenizer, load_pretrained
from harness.store.cache import Cache
from harness.tasks.base import Task
from harness.tasks.curating.applying import uncurated

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tiny(Model):
    """The embedded model: a small Llama over characters, made by the SFT stage on first use.

    Attributes:
        seed: governs initial weights and the order of base training.
        layers, hidden, intermediate, heads: the Llama's shape (0.86 M parameters by default).
        context: longest sequence in tokens.
        steps, batch_size, learning_rate, warmup_ratio: of the SFT stage.
    """

    name: ClassVar[str] = "tiny"
    embedded: ClassVar[bool] = True
    follows_device: ClassVar[bool] = False

    seed: Annotated[int, Ge(0)] = 0
    layers: Annotated[int, Gt(0)] = 4
    hidden: Annotated[int, Gt(0)] = 128
    intermediate: Annotated[int, Gt(0)] = 384
    heads: Annotated[int, Gt(0)] = 4
    context: Annotated[int, Gt(31)] = 96
    steps: Annotated[int, Gt(0)] = 560
    batch_size: Annotated[int, Gt(0)] = 128
    learning_rate: Annotated[float, Gt(0)] = 3e-3
    warmup_ratio: Annotated[float, Ge(0)] = 0.08

    def problems(self) -> list[UserError]:
        """Heads must divide the width."""
        if self.hidden % self.heads == 0:
            return []
        return [
            UserError(
                f"must be a multiple of model.heads ({self.heads})",
                key="model.hidden",
                value=self.hidden,
                fix=f"model.hidden={self.hidden // self.heads * self.heads or self.heads}",
            )
        ]

    @property
    def stage(self) -> Mapping[str, Any]:
        """Everything about this class that can change the weights."""
        return {k: v for k, v in asdict(self).items() if k not in ("dtype", "attention", "chat_template")}

    def recipe_digest(self, task: Task) -> str:
        """Shape, SFT recipe, SFT data and the code that makes them."""
        return identity.digest(
            {
                "model": self.stage,
                "task": {"class": type(task).__qualname__, **task.base_recipe()},
                "code": closure.code_digest(closure.closure(base_entries(self, task))),
                "versions": identity.library_versions(),
            }
        )

    def task_problems(self, task: Task) -> list[UserError]:
        """The base is trained on rows that the task makes; data from a file makes none."""
        if type(task).base_rows is not Task.base_rows:
            return []
        try:
            task.base_rows(0)
        except UserError as error:
            return [error]
        return []

    def prepare(
        self, cache: Cache, task: Task, *, threads: int, progress: Callable[[str, int, int], object]
    ) -> Prepared:
        """Train it, on first use; its weights differ in bits between machines, so they have a key of their own."""
        from harness.models.embedded import embedded_base

        entry = embedded_base(
            self, task, cache, threads=threads, progress=lambda step, total: progress("base SFT", step, total)
        )
        return Prepared(entry.path, "sft", entry, entry.path.name)

    def configuration(self, source: Path | None = None) -> Any:
        """The transformers configuration."""
        from transformers import LlamaConfig

        tokenizer: Any = self.tokenizer(None)
        return LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            intermediate_size=self.intermediate,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.context,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            tie_word_embeddings=True,
        )

    def context_length(self) -> int:
        """As configured."""
        return self.context

    def fresh(self) -> PreTrainedModel:
        """The model before its SFT stage, seeded."""
        import torch
        from transformers import LlamaForCausalLM

        config = self.configuration()
        torch.manual_seed(self.seed)
        return LlamaForCausalLM(config)

    def tokenizer(self, source: Path | None) -> PreTrainedTokenizerBase:
        """One token per character of the embedded task's alphabet."""
        return character_tokenizer(self.context)

    def load(
        self, source: Path | None, *, dtype: torch.dtype, device: str, quantization: Any | None = None
    ) -> PreTrainedModel:
        """The weights that the SFT stage left in ``source``."""
        assert source is not None
        return load_pretrained(
            str(source), dtype=dtype, device=device, quantization=quantization, attention=self.attention
        )


def base_entries(model: Model, task: Task) -> tuple[str, ...]:
    """Where the code begins that makes the embedded base: its stage, the model's class, the task that gives rows."""
    return ("harness.models.embedded", *identity.modules_of([model, uncurated(task)]))
