"""A model from a local directory or the hub: whole weights, an adapter on its base, or a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.base.errors import UserError
from harness.config import closure, identity
from harness.models.base import Model, cannot_load, longest_in
from harness.models.generation import union
from harness.models.loading import load_pretrained

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.tasks.base import Task

ADAPTER = "adapter_config.json"
POINTER = b"version https://git-lfs"
"""How a file begins that stands for one which git-lfs has not fetched."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


@dataclass(frozen=True)
class HF(Model):
    """A model from a local directory or the hub.

    A folder that holds an adapter, as peft saves it, is its base with the adapter merged in; that and a GGUF file's
    weights are made once and kept in the cache.

    Attributes:
        path: directory or hub id.
        revision: hub revision.
        trust_remote_code: run code that ships with the model; off unless asked for.
        gguf_file: name of a GGUF file in ``path``, whose weights are dequantized to 32 bits.
        eos_token: end-of-sequence token to use where the tokenizer has none.
        stop_tokens: tokens that end a reply, beside those that tokenizer and model name.
    """

    name: ClassVar[str] = "hf"

    path: str = field(kw_only=True)
    revision: str | None = None
    trust_remote_code: bool = False
    gguf_file: str | None = None
    eos_token: str | None = None
    stop_tokens: tuple[str, ...] = ()

    @property
    def local(self) -> Path | None:
        """The directory, where the path is one (or looks like one)."""
        path = Path(self.path).expanduser()
        return path if path.is_dir() or self.path.startswith(identity.LOOKS_LOCAL) else None

    @cached_property
    def _adapter(self) -> Mapping[str, Any]:
        """What peft wrote of an adapter, where the directory holds one and no model."""
        if self.local is None or (self.local / "config.json").is_file():
            return {}
        with suppress(OSError, ValueError):
            found = json.loads((self.local / ADAPTER).read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
        return {}

    @property
    def adapter_base(self) -> str | None:
        """The base's path, where the directory holds an adapter."""
        return self._adapter.get("base_model_name_or_path")

    def problems(self) -> list[UserError]:
        """A local path must be a model directory with whole files."""
        folder = self.local
        if folder is None:
            return []
        if not folder.is_dir():
            where = folder.parent if folder.suffix == ".gguf" else None
            fix = f"model.path={where} model.gguf_file={folder.name}" if where else "name a model directory"
            return [UserError("no such directory", key="model.path", value=self.path, fix=fix)]
        if self.gguf_file is not None:
            if (folder / self.gguf_file).is_file():
                return self._pointers([folder / self.gguf_file])
            found = ", ".join(sorted(p.name for p in folder.glob("*.gguf"))) or "none"
            return [
                UserError(
                    f"no such file in {folder}; GGUF files there: {found}", key="model.gguf_file", value=self.gguf_file
                )
            ]
        pointers = self._pointers(p for p in folder.iterdir() if p.is_file())
        if pointers or (folder / "config.json").is_file():
            return pointers
        return self._adapter_problems(folder)

    def _pointers(self, files: Any) -> list[UserError]:
        """Files that git-lfs has not fetched."""
        found = sorted(p.name for p in files if p.stat().st_size < 1024 and p.read_bytes().startswith(POINTER))
        if not found:
            return []
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        return [
            UserError(
                f"{', '.join(found[:3])}{more}: a pointer of git-lfs, not the file itself",
                key="model.path",
                value=self.path,
                fix="run `git lfs pull` in the folder, or download the model with `hf download`",
            )
        ]

    def _adapter_problems(self, folder: Path) -> list[UserError]:
        if not (folder / ADAPTER).is_file():
            ggufs = sorted(p.name for p in folder.glob("*.gguf"))
            fix = f"model.gguf_file={ggufs[0]}" if ggufs else "name the folder that save_pretrained wrote"
            rule = "the directory holds no config.json, so it is no transformers model"
            return [UserError(rule, key="model.path", value=self.path, fix=fix)]
        if not self.adapter_base:
            rule = f"the directory holds an adapter, and its {ADAPTER} names no base model"
            return [UserError(rule, key="model.path", value=self.path, fix="set base_model_name_or_path there")]
        key = f"base_model_name_or_path in {folder / ADAPTER}"
        return [UserError(e.rule, key=key, value=self.adapter_base, fix=e.fix) for e in self._base().problems()]

    def _base(self) -> HF:
        """The model that the adapter is on."""
        assert self.adapter_base is not None
        revision = self._adapter.get("revision")
        return HF(path=self.adapter_base, revision=revision, trust_remote_code=self.trust_remote_code, dtype=self.dtype)

    # -- identity ----------------------------------------------------------------------------------------

    def recipe_digest(self, task: Task) -> str:
        """Content of a local directory or commit of a hub model (``identity.model_content``), an adapter's base too."""
        told: dict[str, Any] = {"model": self._content(), "chat_template": self.chat_template, "pad": self.pad_token}
        told |= {k: v for k in ("eos_token", "stop_tokens") if (v := getattr(self, k))}
        return identity.digest(told)

    def _content(self) -> str:
        if self.gguf_file is not None and self.local is not None:
            return closure.content_digest([self.local / self.gguf_file])
        own = identity.model_content(self.path, self.revision)
        return own if self.adapter_base is None else f"{own} on {self._base()._content()}"

    def ingredients(self) -> Mapping[str, Any] | None:
        """Of an adapter or a GGUF file its content."""
        if self.gguf_file is None and self.adapter_base is None:
            return None
        return {"content": self._content(), "file": self.gguf_file, "trust_remote_code": self.trust_remote_code}

    # -- making ------------------------------------------------------------------------------------------

    def make(self, folder: Path) -> None:
        """Merge the adapter into its base, or dequantize the GGUF file, and save the whole as transformers does."""
        import torch

        if self.gguf_file is not None:
            model: Any = self._dequantized()
            tokenizer = self._read_tokenizer(str(self.local or self.path), gguf_file=self.gguf_file)
        else:
            from peft import PeftModel

            base = self._base()
            model = base.load(None, dtype="auto", device="cpu")  # type: ignore[arg-type]  # as it is stored
            try:
                with torch.no_grad():
                    model = PeftModel.from_pretrained(model, str(self.local)).merge_and_unload()
            except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
                raise cannot_load("adapter", self.path, error) from error
            own = self.local is not None and any((self.local / name).is_file() for name in TOKENIZERS)
            tokenizer = self._read_tokenizer(str(self.local)) if own else base._read_tokenizer(*base._source(None))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def _dequantized(self) -> Any:
        """The GGUF file's weights in 32 bits, in a model that knows nothing of its quantization."""
        import torch
        from transformers import AutoModelForCausalLM

        try:
            read: Any = AutoModelForCausalLM.from_pretrained(
                str(self.local or self.path), gguf_file=self.gguf_file, revision=self.revision, dtype=torch.float32
            )
        except (OSError, ValueError, ImportError, RuntimeError, KeyError, NotImplementedError) as error:
            raise cannot_load("GGUF file", f"{self.path}/{self.gguf_file}", error) from error
        config = type(read.config).from_dict(
            {k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
        )
        with torch.device("meta"):
            made = type(read)(config)
        made.load_state_dict(read.state_dict(), assign=True)
        made.tie_weights()
        made.generation_config = read.generation_config
        return made

    # -- loading -----------------------------------------------------------------------------------------

    def _source(self, source: Path | None) -> tuple[str, dict[str, Any]]:
        """Where to load from, and the options that go with it."""
        if source is not None:
            return str(source), {"trust_remote_code": self.trust_remote_code}
        options = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        return str(self.local or self.path), options

    def _read_tokenizer(self, path: str, options: Mapping[str, Any] | None = None, **more: Any) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(path, **(options or {}), **more)
        except Exception as error:  # of a stranger's files: their own kinds of exceptions included
            raise cannot_load("tokenizer", self.path, error) from error

    def tokenizer(self, source: Path | None) -> PreTrainedTokenizerBase:
        """Its own tokenizer; a missing pad or end token is the user's to name."""
        tokenizer = self._read_tokenizer(*self._source(source))
        if len(tokenizer) - len(tokenizer.all_special_tokens) < 1:
            raise UserError(
                f"the tokenizer is empty: {len(tokenizer)} tokens, all of them special",
                key="model.path",
                value=self.path,
                fix="see that tokenizer.json (or tokenizer.model) is in the folder and whole",
            )
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

    def configuration(self, source: Path | None) -> Any:
        """The transformers configuration."""
        from transformers import AutoConfig

        path, options = self._source(source)
        try:
            return AutoConfig.from_pretrained(path, **options)
        except Exception as error:  # see ``_read_tokenizer``
            raise cannot_load("configuration", self.path, error) from error

    def context_length(self) -> int | None:
        """What its config.json says, in its folder or in the local cache of the hub."""
        if self.adapter_base is not None:
            return self._base().context_length()
        file = self.local / "config.json" if self.local else identity.hub_file(self.path, self.revision, "config.json")
        try:
            return longest_in(json.loads(file.read_text(encoding="utf-8"))) if file is not None else None
        except (OSError, ValueError):
            return None  # whoever loads the model says what is wrong with it

    def stops(self, tokenizer: Any, config: Any, source: Path | None = None) -> list[int]:
        """Those of its generation configuration and of ``stop_tokens`` too."""
        from transformers import GenerationConfig

        named = [_token_id(tokenizer, "stop_tokens", token) for token in self.stop_tokens]
        path, options = self._source(source)
        with suppress(OSError, ValueError):  # it has none
            own: Any = GenerationConfig.from_pretrained(path, revision=options.get("revision") or "main")
            named += union(own.eos_token_id)
        return union(super().stops(tokenizer, config), named)

    def load(
        self, source: Path | None, *, dtype: torch.dtype, device: str, quantization: Any | None = None
    ) -> PreTrainedModel:
        """Load the causal language model; it stops at ``stop_tokens`` too, and so does what is saved of it."""
        path, options = self._source(source)
        try:
            loaded: Any = load_pretrained(
                path, dtype=dtype, device=device, quantization=quantization, attention=self.attention, **options
            )
        except UserError:
            raise
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise cannot_load("model", self.path, error) from error
        if self.stop_tokens:
            loaded.generation_config.eos_token_id = self.stops(self.tokenizer(source), loaded.config, source)
        return loaded

    def checkpoint_problems(self, source: Path | None) -> list[UserError]:
        """What is wrong with the weights' files, by their headers: nothing is read into memory, nothing downloaded."""
        from harness.models.loading import checkpoint_report

        path, options = self._source(source)
        try:
            report = checkpoint_report(path, **options, local_files_only=True)
        except Exception as error:  # see ``_read_tokenizer``
            if self.local is None and isinstance(error, OSError):
                return []  # it is yet to be downloaded
            return [cannot_load("model", self.path, error)]
        return [] if report is None else [UserError(report, key="model.path", value=self.path, fix=MEND)]


MEND = "save the model again with save_pretrained, unwrapped (torch.compile's `_orig_mod.`, a trainer's wrapper)"


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
