"""The contract of a base model, and what all of them share. Import-light: torch is imported when a model is loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.base.errors import UserError
from harness.models.generation import union

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.store.cache import Cache, Entry
    from harness.tasks.base import Task

LONGEST = ("max_position_embeddings", "n_positions", "max_seq_len")
"""Where architectures say how long a sequence may be."""


@dataclass(frozen=True)
class Prepared:
    """A base that can be loaded.

    Attributes:
        path: its folder, where it was made; None where the model knows its own.
        stage: what made it, by its name in the journal.
        entry: of the cache.
        weights: identity of its weights, where those of one recipe differ; None is the recipe's.
    """

    path: Path | None = None
    stage: str | None = None
    entry: Entry | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Model(ABC):
    """A base model.

    Attributes:
        dtype: ``auto`` stores frozen weights in bf16 on CUDA that has it, and those that are trained in fp32.
        attention: transformers' attention implementation; null leaves the choice to transformers.
        chat_template: ``auto`` renders conversational rows, and text rows as one user turn, with the
            tokenizer's template where it has one; ``off`` leaves text rows as they are.
        pad_token: pad token to use where the tokenizer has none.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    name: ClassVar[str]

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: str | None = None
    chat_template: Literal["auto", "off"] = "auto"
    pad_token: str | None = None

    embedded: ClassVar[bool] = False
    """Whether this is the toy that the package brings: small, quick, and known to be well."""
    follows_device: ClassVar[bool] = True
    """Whether ``auto`` computes in bf16 where the device does so well; the embedded model stays in 32 bits."""

    @property
    def stage(self) -> Mapping[str, Any] | None:
        """Recipe of the stage that makes this base (an SFT run), or None where it exists already."""
        return None

    @abstractmethod
    def recipe_digest(self, task: Task) -> str:
        """Identity of the base for comparisons: its recipe, since weights of one recipe differ in bits."""

    def problems(self) -> list[UserError]:
        """What is wrong before anything is loaded; torch-free."""
        return []

    def task_problems(self, task: Task) -> list[UserError]:
        """Why this base cannot be had with such a task; empty where it can."""
        return []

    @abstractmethod
    def tokenizer(self, source: Path | None) -> PreTrainedTokenizerBase:
        """The tokenizer, padding on the left."""

    def context_length(self) -> int | None:
        """Longest sequence in tokens, as far as that is known without transformers."""
        return None

    def ingredients(self) -> Mapping[str, Any] | None:
        """What the folder of a model depends on that must be made first; None where the model is there already."""
        return None

    def make(self, folder: Path) -> None:
        """Make it there; only where there are ingredients."""
        raise TypeError(f"{type(self).__name__} is there already")

    def prepare(
        self, cache: Cache, task: Task, *, threads: int, progress: Callable[[str, int, int], object]
    ) -> Prepared:
        """Have it made where it is not there already, in the cache.

        Args:
            cache: of stages.
            task: gives rows to a base that is trained first.
            threads: torch's, which change the bits of trained weights.
            progress: told of what is done, how far, and of how much.
        """
        from harness.models.making import STAGE, made

        entry = made(self, cache)
        return Prepared() if entry is None else Prepared(entry.path, STAGE, entry)

    def checkpoint_problems(self, source: Path | None) -> list[UserError]:
        """What is wrong with the files of its weights, without reading them."""
        return []

    def configuration(self, source: Path | None) -> Any:
        """The transformers configuration; None where there is none, and then lengths and memory are not foreseen."""
        return None

    def stops(self, tokenizer: Any, config: Any, source: Path | None = None) -> list[int]:
        """Tokens that end a reply, before the model is loaded; ``config`` is its transformers configuration."""
        configs = [] if config is None else [config, config.get_text_config()]
        named = [getattr(c, "eos_token_id", None) for c in configs]
        return union(tokenizer.eos_token_id, *named)

    @abstractmethod
    def load(
        self, source: Path | None, *, dtype: torch.dtype, device: str, quantization: Any | None = None
    ) -> PreTrainedModel:
        """The model on ``device`` in ``dtype``, 4-bit where ``quantization`` asks for it."""


def context_length(config: Any) -> int | None:
    """Longest sequence in tokens that a transformers configuration allows, where it says so."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return longest_in({key: getattr(text, key, None) for key in LONGEST})


def longest_in(config: Any) -> int | None:
    """The same of the plain values of a config.json."""
    if not isinstance(config, Mapping):
        return None
    text = config.get("text_config")
    for values in (text if isinstance(text, Mapping) else {}, config):
        found = [values[key] for key in LONGEST if isinstance(values.get(key), int) and values[key] > 0]
        if found:
            return found[0]
    return None


def cannot_load(what: str, path: str, error: Exception) -> UserError:
    """Type and words of whatever a library said about the user's files."""
    words = " ".join(str(error).split())
    said = f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__
    return UserError(
        f"the {what} cannot be loaded ({said})",
        key="model.path",
        value=path,
        fix="see that its files are whole: a download may have been cut off"
        if Path(path).exists()
        else "check the path; for a hub model check the network (or HF_HOME), or name a local directory",
    )
