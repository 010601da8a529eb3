"""A model of a few thousand weights with a tokenizer of bytes and a chat template, saved as a user's would be."""

from __future__ import annotations

from pathlib import Path

import torch

from harness.tasks.conversation import PLAIN_TEMPLATE


def save_small(folder: Path, *, seed: int = 0, mute: bool = False, context: int = 2048) -> Path:
    """Write it; ``mute`` gives every token the same probability, whatever it reads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    tokenizer.chat_template = PLAIN_TEMPLATE
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(letters), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=context, initializer_range=0.3, pad_token_id=0,
            eos_token_id=1, bos_token_id=None,
        )
    )  # fmt: skip
    if mute:
        torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
