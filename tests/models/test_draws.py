"""Draws that belong to a sample: the model's distribution, whatever stands beside it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from harness.base.errors import Diverged
from harness.evaluators.scoring import sampling_from_numbers
from harness.models import draws
from harness.models.draws import EVALUATION, Draws, drawing, drawn, uniforms
from harness.models.rollouts import plainly_prepared

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


def test_a_seed_of_any_size_gives_each_sample_its_own_draws():
    for seed in (0, 2**62, 2**63, 2**63 + 5, 2**64 - 1):
        found = uniforms(seed, [EVALUATION, EVALUATION + 1], 8)
        assert not torch.equal(found[0], found[1])
    assert not torch.equal(uniforms(2**63, [EVALUATION], 8), uniforms(2**63 + 5, [EVALUATION], 8))


def test_tokens_do_not_depend_on_how_many_probabilities_are_summed_at_once(monkeypatch):
    torch.manual_seed(0)
    logits, numbers = torch.randn(7, 50), uniforms(0, range(7), 1)[:, 0]
    whole = drawn(logits, numbers, 1.0)
    monkeypatch.setattr(draws, "MOST_SUMS", 100)
    assert torch.equal(drawn(logits, numbers, 1.0), whole)


def test_greedy_tokens_are_the_likeliest_and_what_is_no_number_is_said():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, -math.inf, 1.0]])
    assert drawn(logits, torch.zeros(2), 0).tolist() == [1, 0]
    for temperature in (0, 1.0):
        with pytest.raises(RuntimeError, match=draws.NO_PROBABILITIES):
            drawn(torch.full((2, 3), math.nan), torch.zeros(2), temperature)


def test_a_model_with_two_kinds_of_positions_is_sampled_in_its_own_way():
    """Phi-3 changes its positions where a text grows beyond the original length; the cache is read anew there."""
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "long_factor": [4.0] * 8, "short_factor": [1.0] * 8}
    config = Phi3Config(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, original_max_position_embeddings=16, pad_token_id=0,
        bos_token_id=None, eos_token_id=None, initializer_range=0.5,
        rope_parameters=rope | {"original_max_position_embeddings": 16},
    )  # fmt: skip
    model = Phi3ForCausalLM(config).eval()
    assert not plainly_prepared(model)
    ids = torch.randint(3, 40, (3, 10))
    how = GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0)
    numbers = uniforms(0, range(3), 12)
    with torch.no_grad():
        plain = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=how)
        for chunk in (None, 1, 2, 3):
            with drawing(model, numbers, 0.0, chunk):
                found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=how)
            assert torch.equal(found, plain)


def test_what_a_chunk_knows_nothing_of_is_an_error(model):
    how = GenerationConfig(max_new_tokens=2, pad_token_id=0)
    with drawing(model, uniforms(0, range(4), 2), 1.0, 2), pytest.raises(TypeError, match="past_key_values"):
        model.generate(input_ids=PROMPTS, attention_mask=PROMPTS, generation_config=how, past_key_values=object())
