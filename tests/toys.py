"""Small models and data that tests make: nothing can be downloaded where they run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.rewards.base import Reward

WORDS = "the cat sat on a mat and saw two birds near old red barn while rain fell".split()
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def script(name: str) -> Any:
    """A module of ``scripts/``, which is no package."""
    import importlib.util
    import sys

    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def random_llama(seed: int, *, context: int = 96) -> Any:
    """Two layers over the embedded alphabet, with weights so large that two seeds disagree by several nats."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from harness.models.loading import character_tokenizer

    tokenizer = character_tokenizer(context)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def says(trainer: Any, texts: Sequence[str], *, ended: bool = True) -> None:
    """Let the rollouts of an online trainer be ``texts``, each with its end of sequence where ``ended``."""
    tokenizer = trainer.processing_class
    end = [tokenizer.eos_token_id] if ended else []
    tokens = [[*tokenizer(text)["input_ids"], *end] for text in texts]
    trainer.sampling.complete = lambda *args, **kwargs: (tokens, None)


@dataclass(frozen=True)
class Fixed(Reward):
    """Says the same numbers whatever it is asked."""

    values: tuple[Any, ...] = ()

    def __call__(self, rows: Any, completions: Any) -> Any:
        return list(self.values)


def build_model(folder: Path, architecture: str, *, chat: bool = True, pad: bool = True, context: int = 128) -> Path:
    """A random two-layer model with a byte-level BPE tokenizer, saved as a user's would be."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>" if pad else None, model_max_length=context
    )
    if chat:
        tokenizer.chat_template = CHAT
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": context,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    if architecture == "qwen2":
        sizes["num_key_value_heads"] = 2
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def conversational_rows(count: int) -> list[dict[str, Any]]:
    """Preference rows in the conversational format, each with a prompt of its own."""
    return [
        {
            "prompt": [{"role": "user", "content": f"say {WORDS[i % len(WORDS)]} number {i}"}],
            "chosen": [{"role": "assistant", "content": f"{WORDS[i % len(WORDS)]} {i}"}],
            "rejected": [{"role": "assistant", "content": "the rain fell on the old red barn"}],
        }
        for i in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path
