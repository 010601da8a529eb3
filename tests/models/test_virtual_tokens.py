"""Completions behind learned tokens are those of the policy that is trained, which peft's ``generate`` gives not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, StoppingCriteriaList

from harness.models.generation import own_distribution
from tests.algorithms.world import TOKENIZER

COUNT, TOKENS = 8, 6
SIZE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
    "intermediate_size": 128, "initializer_range": 0.2, "max_position_embeddings": 128, "eos_token_id": None,
    "pad_token_id": None, "bos_token_id": None,
}  # fmt: skip
BASES = {"llama": LlamaConfig(**SIZE), "gemma3": Gemma3TextConfig(**SIZE, head_dim=16, tie_word_embeddings=False)}
WAYS = {
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=COUNT),
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=COUNT),
    "p-tuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=COUNT, encoder_hidden_size=32),
}


@pytest.fixture(params=[(base, way) for base in BASES for way in WAYS], ids="-".join)
def policy(request: pytest.FixtureRequest) -> Any:
    base, way = request.param
    torch.manual_seed(0)
    model: Any = get_peft_model(AutoModelForCausalLM.from_config(BASES[base]), WAYS[way]).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    return model


def by_forward_passes(model: Any, row: list[int]) -> list[int]:
    ids = torch.tensor([row])
    for _ in range(TOKENS):
        with torch.no_grad():
            last = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1]
        ids = torch.cat([ids, last.argmax(-1, keepdim=True)], 1)
    return ids[0, len(row) :].tolist()


def test_greedy_completions_are_those_of_forward_passes_padded_or_not(policy):
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 100, (size,), generator=draw).tolist() for size in (7, 4, 12)]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    seen: list[int] = []

    def watch(tokens: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
        seen.append(tokens.shape[1])
        return torch.zeros(len(tokens), dtype=torch.bool)

    options: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "do_sample": False}
    with own_distribution(policy, TOKENIZER):
        found = policy.generate(**options, max_new_tokens=TOKENS, stopping_criteria=StoppingCriteriaList([watch]))
        by_length = policy.generate(**options, max_length=width + TOKENS)
        with policy.disable_adapter():
            off = policy.generate(**options, max_new_tokens=TOKENS)
        plain = policy.get_base_model().generate(**options, max_new_tokens=TOKENS)
    assert found[:, :width].equal(ids) and seen == [width + k for k in range(1, TOKENS + 1)]
    wanted = [by_forward_passes(policy, row) for row in rows]
    ends = [next((k for k, token in enumerate(row) if token == TOKENIZER.eos_token_id), TOKENS) for row in wanted]
    for got, row, end in zip(found[:, width:].tolist(), wanted, ends, strict=True):
        assert got[:end] == row[:end]
    assert by_length.equal(found) and off.equal(plain) and not off.equal(found)
