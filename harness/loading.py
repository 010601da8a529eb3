"""Loading weights onto one device, and the tokenizer that is made in memory. Heavy imports happen when called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_pretrained(
    path: str, *, dtype: torch.dtype, device: str, quantization: Any | None, attention: str | None, **options: Any
) -> PreTrainedModel:
    """``AutoModelForCausalLM.from_pretrained`` on one device."""
    from transformers import AutoModelForCausalLM

    if quantization is not None:
        options |= {"quantization_config": quantization, "device_map": {"": device}}
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **attention_option(attention), **options)
    return trainable_in_4_bit(loaded) if quantization is not None else loaded.to(device)


def attention_option(attention: str | None) -> dict[str, Any]:
    """Transformers' keyword, left out where the choice is its own."""
    return {} if attention is None else {"attn_implementation": attention}


def trainable_in_4_bit(model: Any) -> Any:
    """Keep bitsandbytes from repacking 4-bit weights for inference.

    On a CPU with AVX512-BF16 its first forward in eval mode does so for good, and the kernel used from then on
    has no gradient: training would go on silently with most of it missing.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def character_tokenizer(context: int) -> PreTrainedTokenizerBase:
    """One token per character of the embedded task's alphabet, made in memory."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from harness.tasks.alphabet import ALPHABET

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *ALPHABET])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=context,
    )
