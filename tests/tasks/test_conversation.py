"""Rows as token ids: the batched encoding against TRL's own, row by row."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOTrainer

from harness.tasks.conversation import encode_pairs
from tests.toys import build_model, conversational_rows

TEXT = [
    {"prompt": "the cat", "chosen": " sat on a mat", "rejected": " fell"},
    {"prompt": "two bir", "chosen": "ds saw rain", "rejected": "ch fell"},  # tokens merge across the border
    {"prompt": "old barn", "chosen": "", "rejected": " red<|end|>"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = build_model(tmp_path_factory.mktemp("model"), "qwen2")
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("rows", [TEXT, conversational_rows(5)], ids=["text", "messages"])
def test_pairs_are_encoded_as_trl_encodes_them(tokenizer, rows):
    theirs = DPOTrainer._prepare_dataset(
        SimpleNamespace(_tokenizer=tokenizer),  # type: ignore[arg-type]
        Dataset.from_list([{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in rows]),
        tokenizer,
        SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start"),  # type: ignore[arg-type]
        "train",
    )
    ours = encode_pairs(tokenizer, rows)
    assert len(ours["prompt_ids"]) == len(rows)
    for name, column in ours.items():
        assert column == theirs[name]


def test_a_border_that_tokens_merge_across_moves_into_the_prompt(tokenizer):
    ours = encode_pairs(tokenizer, TEXT)
    alone = tokenizer(TEXT[1]["prompt"])["input_ids"]
    assert len(ours["prompt_ids"][1]) < len(alone)
