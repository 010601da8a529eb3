"""Completions of one prompt are scored together, and only the tokens that are scored reach the head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.evaluators.base import EvalContext
from harness.evaluators.scoring import batches, completion_log_probs
from harness.models import prefixes
from harness.models.loading import character_tokenizer
from harness.tasks.arithmetic import Arithmetic
from tests.toys import random_llama

TOKENIZER = character_tokenizer(96)
TASK = Arithmetic(pairs=4, eval_pairs=4, eval_prompts=4)


def context(model: Any, **more: Any) -> EvalContext:
    found = EvalContext(
        model=model, tokenizer=TOKENIZER, task=TASK, data=TASK.load(), rows=lambda rows: [dict(r) for r in rows],
        split="test", batch_size=8, max_length=96, max_completion_length=12, seed=0, device="cpu",
    )  # fmt: skip
    return replace(found, **more)


@pytest.fixture
def sequences() -> list[tuple[list[int], list[int]]]:
    draw = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(3, 20, (length,), generator=draw).tolist()

    prompts = [ids(length) for length in (30, 9, 41, 17)]
    return [(prompt, ids(length)) for length in (3, 7, 5) for prompt in prompts]


def test_scores_are_those_of_rows_read_apart_and_fewer_tokens_are_read(sequences):
    model = random_llama(0)
    apart, counts = completion_log_probs(context(model), sequences)
    shared = prefixes.ready(model, True, longest=96, device="cpu", precision="fp32")
    assert shared is not None and not shared.on
    together, same = completion_log_probs(context(model), sequences)
    assert torch.allclose(together, apart, atol=1e-5) and torch.equal(same, counts)
    assert shared.computed < 0.6 * shared.given and not shared.on


def test_completions_of_a_prompt_stand_in_one_batch_and_none_is_lost(sequences):
    lengths, prompts = [len(p) + len(c) for p, c in sequences], [p for p, _ in sequences]
    made = list(batches(context(random_llama(0), batch_size=3), lengths, prompts))
    assert sorted(i for batch in made for i in batch) == list(range(len(sequences)))
    assert all(len({tuple(prompts[i]) for i in batch}) == 1 for batch in made)


def test_a_model_that_gives_other_numbers_for_rows_read_together_reads_them_apart(sequences, monkeypatch):
    model = random_llama(0)
    apart, _ = completion_log_probs(context(model), sequences)
    monkeypatch.setattr(prefixes, "APART", {"fp32": -1.0})
    shared = prefixes.share(model, True)
    assert shared is not None
    assert not prefixes.agrees(model, shared, longest=96, device="cpu", precision="fp32")
    found, _ = completion_log_probs(context(model), sequences)
    assert torch.equal(found, apart) and shared.computed == 0


def test_the_head_sees_the_tokens_that_are_scored_alone():
    model, seen = random_llama(0), []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    completion_log_probs(context(model), [(list(range(3, 20)), [5, 6]), (list(range(4, 20)), [5, 6])])
    hook.remove()
    assert seen == [4]  # tokens from the shorter prompt's end on, and the one that is dropped
