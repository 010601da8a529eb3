"""Adapters that put learned tokens before the prompt (prompt, prefix and P-tuning), where completions are sampled.

Peft 0.21's own ``generate`` loses them with transformers 5: a prefix altogether, since the cache that it is in gives
way to another, and a prompt's positions from the second token on. What is sampled then is not what is trained and
scored, and nothing says so. Here learned tokens are read into a cache, and the base generates behind it, prompts padded
on the left or not. Heavy imports happen when called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from harness.base.replacing import replaced

SEES_TOKENS = ("stopping_criteria", "logits_processor")
"""Options of ``generate`` that are shown all tokens so far."""


def has_virtual_tokens(model: Any) -> bool:
    """Whether an adapter of the model puts learned tokens before the prompt."""
    return any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values())


@contextmanager
def seen_by_generate(model: Any) -> Iterator[None]:
    """Within it ``model.generate`` samples behind the learned tokens, where a model has any and they are not off."""
    if not has_virtual_tokens(model):
        yield
        return

    def generate(*, input_ids: Any, attention_mask: Any = None, **options: Any) -> Any:
        """Prompts and completions (B, P + T), as transformers gives them."""
        import torch

        base = model.get_base_model()
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if model._adapters_disabled:
            return base.generate(input_ids=input_ids, attention_mask=mask, **options)
        rows = input_ids.shape[0]
        cache = learned(model, rows)
        count = cache.get_seq_length()
        if options.get("max_length") is not None:
            options["max_length"] += count
        for name in set(SEES_TOKENS) & options.keys():
            options[name] = type(options[name])([_behind(each, count) for each in options[name] or ()])
        found = base.generate(
            input_ids=torch.cat([input_ids.new_zeros(rows, count), input_ids], 1),  # the cache knows what these are
            attention_mask=torch.cat([mask.new_ones(rows, count), mask], 1),
            past_key_values=cache,
            **options,
        )
        return found[:, count:]

    with replaced(model, "generate", generate):
        yield


def learned(model: Any, rows: int) -> Any:
    """Keys and values of the learned tokens, for so many rows: a prefix is some, and a prompt is read for them."""
    import torch
    from peft import PeftType
    from transformers import DynamicCache

    base, kind = model.get_base_model(), model.active_peft_config.peft_type
    with torch.no_grad():
        if kind in (PeftType.PREFIX_TUNING, PeftType.CARTRIDGE):
            return model.get_prompt(batch_size=rows)
        cache = DynamicCache(config=base.config)
        prompt = model.get_prompt(batch_size=1).to(base.get_input_embeddings().weight.dtype)
        base(inputs_embeds=prompt, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(rows)
    return cache


def _behind(each: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The same, shown the tokens after the learned ones."""
    return lambda ids, scores, **more: each(ids[:, count:], scores, **more)
