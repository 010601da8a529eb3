"""A cache that grows by many tokens at a time holds what transformers' own holds, whatever is done to its rows."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig

from harness.models import roomy_cache
from harness.models.roomy_cache import RoomyLayer, with_room

SIZE = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
CONFIG = LlamaConfig(**SIZE)


def tokens(rows: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(rows, 1, count, 8), torch.randn(rows, 1, count, 8)


@pytest.mark.parametrize("room", [1, 3, 64])
def test_it_holds_what_transformers_cache_holds(monkeypatch, room):
    monkeypatch.setattr(roomy_cache, "ROOM", room)
    usual, roomy = DynamicCache(config=CONFIG), DynamicCache(config=CONFIG)
    for cache in (usual, roomy):
        for layer in range(2):
            cache.update(*tokens(4, 5, layer), layer)
    with_room(roomy, 12)
    assert all(type(layer) is RoomyLayer for layer in roomy.layers)
    for step in range(9):
        if step in (3, 6):  # rows that have ended leave, and others are repeated
            chosen = torch.tensor([2, 0, 0]) if step == 3 else torch.tensor([1])
            for cache in (usual, roomy):
                cache.batch_select_indices(chosen)
        rows = usual.layers[0].keys.shape[0]
        for layer in range(2):
            new = tokens(rows, 1 + step % 2, 10 * step + layer)
            kept = [t.clone() for t in roomy.update(*new, layer)]
            assert all(map(torch.equal, kept, usual.update(*new, layer)))
        assert roomy.get_seq_length() == usual.get_seq_length()


def test_what_was_handed_out_before_is_not_written_over():
    cache = DynamicCache(config=CONFIG)
    cache.update(*tokens(2, 3, 0), 0)
    with_room(cache, 5)
    first, _ = cache.update(*tokens(2, 1, 1), 0)
    before = first.clone()
    cache.update(*tokens(2, 1, 2), 0)
    assert torch.equal(first, before)


def test_no_more_room_is_taken_than_tokens_come():
    cache = DynamicCache(config=CONFIG)
    cache.update(*tokens(2, 3, 0), 0)
    with_room(cache, 2)
    for _ in range(2):
        keys, _ = cache.update(*tokens(2, 1, 1), 0)
    assert keys.untyped_storage().nbytes() == 2 * 5 * 8 * 4
    assert cache.update(*tokens(2, 1, 2), 0)[0].shape[-2] == 6  # more come than were announced


def test_layers_that_forget_are_left_as_they_are():
    windowed = MistralConfig(**SIZE, sliding_window=4)
    cache = DynamicCache(config=windowed)
    cache.update(*tokens(2, 3, 0), 0)
    kinds = [type(layer) for layer in cache.layers]
    with_room(cache, 5)
    assert [type(layer) for layer in cache.layers] == kinds and RoomyLayer not in kinds


def test_a_model_says_the_same_to_the_bit():
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    ids = torch.randint(0, 40, (3, 6))
    said = []
    for roomy in (False, True):
        cache = DynamicCache(config=CONFIG)
        with torch.no_grad():
            logits = [model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1]]
            if roomy:
                with_room(cache, 5)
            for _ in range(5):
                token = logits[-1].argmax(-1, keepdim=True)
                logits.append(model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1])
        said.append(torch.stack(logits))
    assert torch.equal(said[0], said[1])
