"""Loading weights onto one device, and the tokenizer that is made in memory. Heavy imports happen when called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.base.errors import UserError
from harness.config.identity import version_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FLEX = "flex_attention"
"""By its name in transformers: kernels that torch compiles for the mask at hand; no backward pass on a CPU."""
ATTENTION = {
    "eager": None, "sdpa": None, FLEX: None, "flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3",
    "flash_attention_4": "flash-attn-4",
}  # fmt: skip
"""Implementations of attention, and the package that each needs."""


def load_pretrained(
    path: str, *, dtype: torch.dtype, device: str, quantization: Any | None, attention: str | None, **options: Any
) -> PreTrainedModel:
    """``AutoModelForCausalLM.from_pretrained`` on one device, of a checkpoint with the model's weights and no others.

    Raises:
        UserError: weights are missing, not the model's, or of another shape. transformers would draw them at random.
    """
    if quantization is not None:
        options |= {"quantization_config": quantization, "device_map": {"": device}}
    loaded, found = _with_report(path, dtype=dtype, **attention_option(attention), **options)
    if (wrong := unlike(found)) is not None:
        raise UserError(
            wrong, key="model.path", value=path, fix="see that all files of the model are there and its own"
        )
    return trainable(loaded, quantization) if quantization is not None else loaded.to(device)


def _with_report(path: str, **options: Any) -> tuple[Any, Mapping[str, Any]]:
    """A model, and how its checkpoint differs from it; weights of another shape are part of that."""
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    return load(path, output_loading_info=True, ignore_mismatched_sizes=True, **options)


def checkpoint_report(path: str, **options: Any) -> str | None:
    """What is wrong with the names and shapes of a checkpoint's weights, by their headers alone; None if nothing is."""
    _, found = _with_report(path, device_map={"": "meta"}, **options)
    return unlike(found)


def unlike(found: Mapping[str, Any]) -> str | None:
    """How a checkpoint differs from the model, in words; transformers leaves tied and known leftover weights out."""
    kinds = []
    words_of = {"missing": "are missing", "unexpected": "are not the model's", "mismatched": "have another shape"}
    for kind, words in words_of.items():
        names = sorted(str(n[0] if isinstance(n, tuple) else n) for n in found.get(f"{kind}_keys") or ())
        if names:
            kinds.append(f"{len(names)} weights {words} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})")
    return "; ".join(kinds) or None


def let_go(device: str) -> None:
    """Have the memory of a model that nothing holds any more back at once."""
    import gc

    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def attention_option(attention: str | None) -> dict[str, Any]:
    """Transformers' keyword, left out where the choice is its own."""
    return {} if attention is None else {"attn_implementation": attention}


def attention_of(config: Any) -> str:
    """The implementation that a model of this configuration was loaded with, by transformers' name."""
    return str(config._attn_implementation)


def rehearsed(attention: str | None) -> str | None:
    """What a rehearsal takes for it: kernels that build no matrix of scores hold as much as PyTorch's own."""
    return attention if attention in (None, "eager") else "sdpa"


def attention_problem(attention: str | None) -> UserError | None:
    """What is wrong with an implementation before anything is loaded; None where nothing is. Torch-free."""
    if attention is None or "/" in attention:  # a kernel of the hub
        return None
    if attention not in ATTENTION:
        rule = f"transformers has no such attention, but {', '.join(ATTENTION)} and kernels of the hub (owner/name)"
        fix = "model.attention=null leaves the choice to transformers"
        return UserError(rule, key="model.attention", value=attention, fix=fix)
    package = ATTENTION[attention]
    if package is None or any(version_of(name) != "absent" for name in (package, "kernels")):  # kernels fetches it
        return None
    fix = f"pip install {package}, or model.attention=sdpa"
    return UserError(f"needs the package {package}", key="model.attention", value=attention, fix=fix)


def trainable(model: Any, quantization: Any) -> Any:
    """Keep bitsandbytes from computing in eval mode what it does not compute in training.

    4-bit weights: on a CPU with AVX512-BF16 the first forward in eval mode repacks them for good, and the kernel used
    from then on has no gradient: training would go on silently with most of it missing. 8-bit weights: see
    ``eight_bit``.
    """
    if quantization.load_in_8bit:
        from bitsandbytes.nn import Linear8bitLt

        from harness.models.eight_bit import Linear8bit

        for module in [m for m in model.modules() if isinstance(m, Linear8bitLt)]:
            Linear8bit.of(module, quantization.bnb_4bit_compute_dtype)
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
