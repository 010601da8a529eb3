"""Steps of completions: where they end in characters and in tokens, and what their scores come to, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness.algorithms.ppo import mathematics
from harness.algorithms.ppo.trainer import early
from harness.models.loading import character_tokenizer
from harness.rewards.base import Payment
from harness.rewards.steps import aggregated, ending_tokens, read_as, shares, steps_of

CHARACTERS = character_tokenizer(64)


def byte_pairs() -> Any:
    """Bytes, with one token for a line break and the letter after it, and one for two line breaks."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    line = "Ċ"
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    for merged in ("ab", line + "c", line + line, "<end>"):
        vocabulary[merged] = len(vocabulary)
    made = Tokenizer(models.BPE(vocabulary, [("a", "b"), (line, "c"), (line, line)]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<end>")


# -- where steps end -----------------------------------------------------------------------------------


def test_a_step_ends_behind_its_separator_and_blank_ones_are_none():
    found = steps_of("19-3=16", "=")
    assert [(s.text, s.end, s.closed) for s in found] == [("19-3", 5, True), ("16", 7, False)]
    assert [(s.text, s.end) for s in steps_of("a\n\n \nb\n", "\n")] == [("a", 2), ("b", 7)]
    assert steps_of("", "=") == steps_of("==", "=") == steps_of("  ", "=") == []


def test_characters_are_their_own_tokens():
    ids = [*CHARACTERS("19-3=16")["input_ids"], CHARACTERS.eos_token_id]
    assert ending_tokens(CHARACTERS, ids, "19-3=16", [5, 7]) == [4, 6]


def test_a_step_that_ends_within_a_token_ends_with_it():
    tokenizer = byte_pairs()
    ids = tokenizer("ab\ncab")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["ab", "Ċc", "ab"]
    # The first step is "ab\n": three characters, the third of which comes with the second token.
    assert ending_tokens(tokenizer, [*ids, tokenizer.eos_token_id], "ab\ncab", [3, 6]) == [1, 2]


def test_two_steps_may_end_with_one_token_and_a_character_of_several_tokens_is_whole_with_its_last():
    tokenizer = byte_pairs()
    ids = tokenizer("é\n\nb")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["Ã", "©", "ĊĊ", "b"]
    assert ending_tokens(tokenizer, ids, "é\n\nb", [1, 2, 3, 4]) == [1, 2, 2, 3]


def test_tokens_are_those_that_were_sampled_and_not_those_of_the_text():
    tokenizer = byte_pairs()
    a, b, line, c = (tokenizer.convert_tokens_to_ids(t) for t in ("a", "b", "Ċ", "c"))
    assert ending_tokens(tokenizer, [a, b, line, c], "ab\nc", [3, 4]) == [2, 3]
    assert ending_tokens(tokenizer, [a, b], "something else", [3]) == [1]  # whatever it is, it is whole at the end


@pytest.mark.parametrize("tokenizer", [CHARACTERS, byte_pairs()], ids=["characters", "bytes"])
def test_every_step_is_encoded_by_itself_and_read_at_its_last_token(tokenizer):
    prompt = tokenizer("ab=")["input_ids"]
    (ids,), (places,) = read_as(tokenizer, [prompt], [["ab=", "cab=", "b"]], None)
    assert tokenizer.decode(ids) == "ab=ab=cab=b"
    assert [tokenizer.decode(ids[: place + 1]) for place in places] == ["ab=ab=", "ab=ab=cab=", "ab=ab=cab=b"]
    (cut,), (left,) = read_as(tokenizer, [prompt], [["ab=", "cab=", "b"]], 3)
    assert cut == ids[-3:] and [k >= 0 for k in left] == [False, True, True]
    assert left[1:] == [place - len(ids) + 3 for place in places[1:]]


def test_steps_of_different_completions_never_merge():
    tokenizer = byte_pairs()
    sequences, places = read_as(tokenizer, [[], []], [["ab\n", "c"], []], None)
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in sequences] == [["ab", "Ċ", "c"], []]
    assert places == [[1, 2], []]


# -- what they come to ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "whole", "parts"),
    [
        ("mean", 0.6, [0.3, 0.1, 0.2]),
        ("product", 0.9 * 0.3 * 0.6, [0.9, 0.27 - 0.9, 0.162 - 0.27]),
        ("min", 0.3, [0.9, -0.6, 0.0]),
        ("last", 0.6, [0.0, 0.0, 0.6]),
    ],
)
def test_what_steps_are_paid_comes_to_the_aggregate(how, whole, parts):
    scores = [0.9, 0.3, 0.6]
    assert aggregated(scores, how) == pytest.approx(whole)
    assert shares(scores, how) == pytest.approx(parts)
    assert sum(shares(scores, how)) == pytest.approx(whole)
    assert shares([0.4], how) == pytest.approx([0.4])


def test_steps_are_paid_at_their_tokens_and_a_completion_gets_its_score_whatever_else_changes_it():
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    kl = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 9, 9]])
    paid = torch.tensor([[0.0, 0.25, 0, 0.35], [0, 0, 0, 0]])
    # The second has no step; the first lost 0.1 for having no end, which its last token is charged.
    rewards = mathematics.token_rewards(torch.tensor([0.5, 0.2]), kl, mask, 0.5, paid)
    wanted = torch.tensor([[-0.05, 0.25 - 0.1, -0.15, 0.35 - 0.2 - 0.1], [-0.25, 0.2 - 0.3, 0, 0]])
    assert torch.allclose(rewards, wanted)
    assert torch.allclose(rewards.sum(1), torch.tensor([0.5, 0.2]) - 0.5 * (kl * mask).sum(1), atol=1e-6)


def test_parts_paid_early_change_no_bit_where_there_are_none():
    scores, kl, mask = torch.randn(3), torch.randn(3, 5), torch.ones(3, 5)
    plain = mathematics.token_rewards(scores, kl, mask, 0.1)
    assert torch.equal(mathematics.token_rewards(scores, kl, mask, 0.1, torch.zeros(3, 5)), plain)


def test_a_trainer_pays_the_tokens_of_text_and_of_messages():
    ids = [*CHARACTERS("19-3=16")["input_ids"], CHARACTERS.eos_token_id]
    parts = [Payment(5, 0.9), Payment(7, -0.2)]
    found = early(
        CHARACTERS, ["19-3=16", [{"role": "assistant", "content": "19-3=16"}], ""], [ids, ids, []], [parts, parts, []]
    )
    assert found == [[(4, 0.9), (6, -0.2)]] * 2 + [[]]
