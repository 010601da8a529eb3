"""Base models: the embedded tiny one, a local or hub model, and random weights at a real shape.

Import-light: torch and transformers are imported when a model is loaded.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt

from harness import closure, identity
from harness.errors import UserError
from harness.generation import union
from harness.loading import attention_option, character_tokenizer, load_pretrained, trainable_in_4_bit

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.tasks.base import Task

LONGEST = ("max_position_embeddings", "n_positions", "max_seq_len")
"""Where architectures say how long a sequence may be."""


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

    @abstractmethod
    def tokenizer(self, source: Path | None) -> PreTrainedTokenizerBase:
        """The tokenizer, padding on the left."""

    def context_length(self) -> int | None:
        """Longest sequence in tokens, as far as that is known without transformers."""
        return None

    def stops(self, tokenizer: Any, config: Any) -> list[int]:
        """Tokens that end a reply, before the model is loaded; ``config`` is its transformers configuration."""
        named = [getattr(c, "eos_token_id", None) for c in (config, config.get_text_config())]
        return union(tokenizer.eos_token_id, *named)

    @abstractmethod
    def load(
        self, source: Path | None, *, dtype: torch.dtype, device: str, quantization: Any | None = None
    ) -> PreTrainedModel:
        """The model on ``device`` in ``dtype``, 4-bit where ``quantization`` asks for it."""


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

    def configuration(self) -> Any:
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


@dataclass(frozen=True)
class HF(Model):
    """A model from a local directory or the hub.

    Attributes:
        path: directory or hub id.
        revision: hub revision.
        trust_remote_code: run code that ships with the model; off unless asked for.
        eos_token: end-of-sequence token to use where the tokenizer has none.
        stop_tokens: tokens that end a reply, beside those that tokenizer and model name.
    """

    name: ClassVar[str] = "hf"

    path: str = field(kw_only=True)
    revision: str | None = None
    trust_remote_code: bool = False
    eos_token: str | None = None
    stop_tokens: tuple[str, ...] = ()

    @property
    def local(self) -> Path | None:
        """The directory, where the path is one (or looks like one)."""
        path = Path(self.path).expanduser()
        return path if path.is_dir() or self.path.startswith(("/", "./", "../", "~")) else None

    def problems(self) -> list[UserError]:
        """A local path must be a model directory."""
        folder = self.local
        if folder is None:
            return []
        if not folder.is_dir():
            return [UserError("no such directory", key="model.path", value=self.path, fix="name a model directory")]
        if not (folder / "config.json").is_file():
            return [
                UserError(
                    "the directory holds no config.json, so it is no transformers model",
                    key="model.path",
                    value=self.path,
                    fix="name the folder that save_pretrained wrote",
                )
            ]
        return []

    def recipe_digest(self, task: Task) -> str:
        """Content of a local directory; commit of a hub model (``identity.model_content``)."""
        content = identity.model_content(self.path, self.revision)
        return identity.digest({"model": content, "chat_template": self.chat_template, "pad": self.pad_token})

    def tokenizer(self, source: Path | None) -> PreTrainedTokenizerBase:
        """Its own tokenizer; a missing pad token is the user's to name."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(self.local or self.path), revision=self.revision, trust_remote_code=self.trust_remote_code
            )
        except (OSError, ValueError, ImportError) as error:
            raise _cannot_load("tokenizer", self.path, error) from error
        for key in ("eos_token", "pad_token"):
            if (token := getattr(self, key)) is not None:
                _token_id(tokenizer, key, token)
                setattr(tokenizer, key, token)
        if tokenizer.eos_token_id is None:
            raise UserError(
                "the tokenizer has no end-of-sequence token, so no reply could ever end",
                key="model.eos_token",
                value=None,
                fix=f"name one: \"model.eos_token='{_likely_end(tokenizer)}'\"",
            )
        if tokenizer.pad_token is None:
            raise UserError(
                "the tokenizer has no pad token, and padding with a token that means something trains it away",
                key="model.pad_token",
                value=None,
                fix=f"name one: \"model.pad_token='{tokenizer.eos_token}'\"",
            )
        tokenizer.padding_side = "left"
        return tokenizer

    def context_length(self) -> int | None:
        """What its config.json says, in its folder or in the local cache of the hub."""
        file = self.local / "config.json" if self.local else identity.hub_file(self.path, self.revision, "config.json")
        try:
            return longest_in(json.loads(file.read_text(encoding="utf-8"))) if file is not None else None
        except (OSError, ValueError):
            return None  # whoever loads the model says what is wrong with it

    def stops(self, tokenizer: Any, config: Any) -> list[int]:
        """Those of its generation configuration and of ``stop_tokens`` too."""
        from transformers import GenerationConfig

        named = [_token_id(tokenizer, "stop_tokens", token) for token in self.stop_tokens]
        try:
            own: Any = GenerationConfig.from_pretrained(str(self.local or self.path), revision=self.revision)
            named += union(own.eos_token_id)
        except (OSError, ValueError):
            pass  # it has none
        return union(super().stops(tokenizer, config), named)

    def load(
        self, source: Path | None, *, dtype: torch.dtype, device: str, quantization: Any | None = None
    ) -> PreTrainedModel:
        """Load the causal language model; it stops at ``stop_tokens`` too, and so does what is saved of it."""
        try:
            loaded: Any = load_pretrained(
                str(self.local or self.path),
                dtype=dtype,
                device=device,
                quantization=quantization,
                attention=self.attention,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
            )
        except (OSError, ValueError) as error:
            raise _cannot_load("model", self.path, error) from error
        if self.stop_tokens:
            loaded.generation_config.eos_token_id = self.stops(self.tokenizer(None), loaded.config)
        return loaded


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

    def configuration(self) -> Any:
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


def base_entries(model: Model, task: Task) -> tuple[str, ...]:
    """Where the code begins that makes the embedded base: its stage, the model's class, the task that gives rows."""
    return ("harness.stages.sft", *identity.modules_of([model, task]))


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


def _token_id(tokenizer: Any, key: str, token: str) -> int:
    """Of a token that the user names."""
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise UserError(
            "is no token of this model's vocabulary",
            key=f"model.{key}",
            value=token,
            fix=f"for example \"model.{key}='{tokenizer.eos_token or _likely_end(tokenizer)}'\"",
        )
    return found


def _likely_end(tokenizer: Any) -> str:
    """A token that looks like an end."""
    vocabulary = tokenizer.get_vocab()
    usual = ("<|im_end|>", "<|end_of_text|>", "<|endoftext|>", "</s>", "<|eot_id|>", "<end_of_turn>", "<eos>")
    return next((token for token in usual if token in vocabulary), "TOKEN")


def _cannot_load(what: str, path: str, error: Exception) -> UserError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
        f"the {what} cannot be loaded ({first})",
        key="model.path",
        value=path,
        fix="check the path; for a hub model check the network (or HF_HOME), or name a local directory",
    )
