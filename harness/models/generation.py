"""How the harness samples: from the model's own distribution, whatever the model's folder asks for.

A folder's ``generation_config.json`` is how its owner wants the model served: penalties, truncation, beams, stop
strings. None of it may bend what is measured or trained on. Passing options or a configuration to ``generate`` is not
enough: transformers 5 fills what they leave open from the model's own. So the model has a plain one for the while.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from harness.models.virtual_tokens import seen_by_generate

MOST_CACHE = 2 * 2**30
"""Bytes of keys and values while evaluators sample. At 8B and 1,280 tokens that is twelve completions; a batch of 64
would take 11 GB, twice what a 4-bit base does."""
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def stop_ids(tokenizer: Any, model: Any) -> list[int]:
    """Tokens that end a completion, ascending: the tokenizer's end of sequence and all that the model names."""
    named = [tokenizer.eos_token_id]
    named += [getattr(config, "eos_token_id", None) for config in _configs(model)]
    named += [getattr(holder.generation_config, "eos_token_id", None) for holder in _holders(model)]
    return union(*named)


def union(*named: Any) -> list[int]:
    """Token ids named one by one, in lists, or not at all, ascending and each once."""
    found = {i for one in named for i in (one if isinstance(one, list | tuple) else [one]) if i is not None}
    return sorted(int(i) for i in found)


def text_of(tokenizer: Any, ids: Sequence[int], *, ended: bool) -> str:
    """What tokens of a completion say; the one that ``ended`` it says nothing, special in its tokenizer or not."""
    return str(tokenizer.decode(list(ids[:-1] if ended else ids), skip_special_tokens=True))


def keeps_logits(model: Any) -> bool:
    """Whether a model can be asked for the logits of some of its tokens alone."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def rows_within_cache(config: Any, width: int, most: int, *, wide: bool, layers: int | None = None) -> int:
    """Completions to sample at once: ``most``, or fewer where keys and values would take more than ``MOST_CACHE``.

    Args:
        config: the model's, of transformers; None says nothing of its size.
        width: tokens of prompt and completion.
        most: at most.
        wide: keys and values of four bytes each, else of two.
        layers: of the whole model, where ``config`` is of a part of it.
    """
    if config is None:
        return most
    text = config.get_text_config()
    depth = layers or getattr(text, "num_hidden_layers", None)
    if not depth or not getattr(text, "num_attention_heads", None):
        return most
    per_row = 2 * depth * _cached(text) * (4 if wide else 2) * max(1, width)
    return max(1, min(most, int(MOST_CACHE / per_row)))


def _cached(text: Any) -> float:
    """Keys of one token in a layer, numbers; the mean over the layers where they differ (Gemma 4)."""
    layers = text.per_layer_config if getattr(text, "is_heterogeneous", False) else [text]
    heads = [getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads for layer in layers]
    sizes = [getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads for layer in layers]
    return sum(n * size for n, size in zip(heads, sizes, strict=True)) / len(heads)


def sampling_options(*, max_new_tokens: int, temperature: float) -> dict[str, Any]:
    """Options of ``generate`` for the model's distribution at ``temperature``; 0 is greedy."""
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
    return options | ({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {})


def sampling_config(tokenizer: Any, model: Any, *, max_new_tokens: int, temperature: float, **more: Any) -> Any:
    """The same as a complete transformers configuration.

    Args:
        tokenizer: names the special tokens.
        model: names tokens that end a completion, beside the tokenizer's.
        max_new_tokens: per completion.
        temperature: divides the logits.
        more: further fields.
    """
    options = sampling_options(max_new_tokens=max_new_tokens, temperature=temperature)
    return _plain_config(tokenizer, model, **options, **more)


@contextmanager
def own_distribution(model: Any, tokenizer: Any, **defaults: Any) -> Iterator[None]:
    """Within it ``model`` generates with nothing of its own generation configuration but its special tokens.

    Afterwards it has its own again, and the special tokens of its configuration, which trainers overwrite with
    the tokenizer's: what is saved is served as it was.

    Args:
        model: a causal language model, wrapped by peft or not.
        tokenizer: its tokenizer.
        defaults: for callers of ``generate`` that leave them open.
    """
    holders = [(holder, holder.generation_config) for holder in _holders(model)]
    special = [(c, name, getattr(c, name)) for c in _configs(model) for name in SPECIAL if hasattr(c, name)]
    plain = _plain_config(tokenizer, model)
    for name, value in defaults.items():
        setattr(plain, name, value)  # given at once they would be held against each other
    try:
        for holder, _ in holders:
            holder.generation_config = plain
        with seen_by_generate(model):
            yield
    finally:
        for holder, own in holders:
            holder.generation_config = own
        for config, name, value in special:
            setattr(config, name, value)


def _plain_config(tokenizer: Any, model: Any, **fields: Any) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stop_ids(tokenizer, model),
        disable_compile=True,  # of generate's forward pass, as TRL has it: compiled kernels round otherwise
        **fields,
    )


def _holders(model: Any) -> list[Any]:
    """What has a generation configuration of its own: of a wrapped model, that is what is wrapped."""
    parts = model.modules() if hasattr(model, "modules") else [model]
    return [part for part in parts if vars(part).get("generation_config") is not None]


def _configs(model: Any) -> list[Any]:
    """The model's configuration and, where it stands apart, that of its text part."""
    config = getattr(model, "config", None)  # a wrapper may have none
    return [] if config is None else list({id(c): c for c in (config, config.get_text_config())}.values())
