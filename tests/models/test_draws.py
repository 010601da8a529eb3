"""Draws that belong to a sample: the model's distribution, whatever stands beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from harness.base.errors import Diverged
from harness.evaluators.scoring import sampling_from_numbers
from harness.models.draws import Draws, drawing, uniforms

PROMPTS = torch.tensor([[0, 0, 5, 6], [0, 7, 8, 9], [4, 5, 6, 7], [0, 0, 0, 11]])
TOKENS = 12


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=23, max_position_embeddings=64, initializer_range=0.3, pad_token_id=0, eos_token_id=None, **sizes
    )
    return LlamaForCausalLM(config).eval()


def sampled(model: Any, rows: list[int], numbers: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    how = GenerationConfig(max_new_tokens=TOKENS, do_sample=True, temperature=temperature, pad_token_id=0)
    ids = PROMPTS[rows]
    with torch.no_grad(), drawing(model, numbers, temperature):
        found = model.generate(input_ids=ids, attention_mask=(ids != 0).long(), generation_config=how)
    return found[:, ids.shape[1] :]


def test_a_sample_is_the_same_alone_and_among_others(model):
    whole = sampled(model, [0, 1, 2, 3], uniforms(3, range(4), TOKENS))
    for i in range(4):
        assert torch.equal(sampled(model, [i], uniforms(3, [i], TOKENS))[0], whole[i])
    parts = [sampled(model, rows, uniforms(3, rows, TOKENS)) for rows in ([3, 1], [2, 0])]
    assert torch.equal(torch.cat(parts), whole[[3, 1, 2, 0]])


def test_seed_and_number_decide(model):
    assert torch.equal(uniforms(3, [7], 50), uniforms(3, [5, 6, 7], 50)[2:])
    assert not torch.equal(uniforms(3, [7], 50), uniforms(4, [7], 50))
    two = sampled(model, [2, 2], uniforms(0, [0, 1], TOKENS))
    assert not torch.equal(two[0], two[1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_have_the_probabilities_of_the_model(temperature):
    torch.manual_seed(1)
    logits, draws = 2 * torch.randn(9), 200_000
    numbers = uniforms(0, [0], draws).T
    chosen = Draws(numbers, temperature, 1)(torch.zeros(draws, 1), logits.expand(draws, -1)).argmax(-1)
    seen = torch.bincount(chosen, minlength=9) / draws
    wanted = (logits / temperature).softmax(-1)
    assert ((seen - wanted).abs() < 4.5 * (wanted * (1 - wanted) / draws).sqrt()).all()


def test_a_token_without_probability_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, -torch.inf]])
    for number in (0.0, 0.5, 1.0 - 2**-53):
        found = Draws(torch.tensor([[number]], dtype=torch.float64), 1.0, 1)(torch.zeros(1, 1), logits)
        assert found.argmax(-1).item() == 1


def test_logits_that_are_no_numbers_are_a_divergence():
    with pytest.raises(Diverged), sampling_from_numbers(lambda: "they are not finite"):
        Draws(uniforms(0, [0], 1), 1.0, 1)(torch.zeros(1, 1), torch.tensor([[1.0, torch.nan]]))


@pytest.mark.parametrize("chunk", [1, 2, 3, 16])
def test_chunks_and_shared_prompts_change_no_sample(model, chunk):
    rows = [0, 0, 1, 2, 2, 2, 3]
    numbers = uniforms(3, range(len(rows)), TOKENS)
    whole = sampled(model, rows, numbers)
    ids = PROMPTS[rows]
    for ends in (None, [3, 9]):
        how = GenerationConfig(max_new_tokens=TOKENS, do_sample=True, pad_token_id=0, eos_token_id=ends)
        with torch.no_grad():
            with drawing(model, numbers, 1.0):
                plain = model.generate(input_ids=ids, attention_mask=(ids != 0).long(), generation_config=how)
            with drawing(model, numbers, 1.0, chunk):
                found = model.generate(input_ids=ids, attention_mask=(ids != 0).long(), generation_config=how)
        assert torch.equal(found, plain)
        assert ends is not None or torch.equal(found[:, ids.shape[1] :], whole)


def test_a_prompt_is_read_once_and_rows_that_have_ended_leave(model, monkeypatch):
    seen: list[tuple[int, int]] = []
    forward = model.forward

    def looked(*arguments: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        seen.append(tuple(input_ids.shape))
        return forward(*arguments, input_ids=input_ids, **options)

    monkeypatch.setattr(model, "forward", looked)
    ids = PROMPTS[[2] * 8 + [1] * 8]
    how = GenerationConfig(max_new_tokens=TOKENS, do_sample=True, pad_token_id=0, eos_token_id=[3, 9, 12, 17])
    with torch.no_grad(), drawing(model, uniforms(0, range(16), TOKENS), 1.0, 16):
        found = model.generate(input_ids=ids, attention_mask=(ids != 0).long(), generation_config=how)
    assert seen[0] == (2, 4) and seen[1][0] <= 16
    widths = [rows for rows, _ in seen[1:]]
    assert widths == sorted(widths, reverse=True) and widths[-1] < widths[0]
    ended = torch.isin(found[:, 4:], torch.tensor([3, 9, 12, 17])).any(1)
    assert ended.any() and not ended.all()
