"""A toy world in which every loss can be computed by hand: a tokenizer of characters, a few rows, two random models."""

from __future__ import annotations

import math
from typing import Any

import torch

from harness.models.loading import character_tokenizer

TOKENIZER = character_tokenizer(64)
PAIRS = (
    {"prompt": "12+7=", "chosen": "19", "rejected": "well, the answer is 19."},
    {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
    {"prompt": "30-4=", "chosen": "26", "rejected": "i dont know."},
    {"prompt": "?+5=", "chosen": "i dont know.", "rejected": "7"},
)
UNPAIRED = (
    {"prompt": "12+7=", "completion": "19", "label": True},
    {"prompt": "1+1=", "completion": "well, 3", "label": False},
    {"prompt": "30-4=", "completion": "26", "label": True},
    {"prompt": "?+5=", "completion": "7", "label": False},
    {"prompt": "2+2=", "completion": "i dont know.", "label": False},
)
PROMPTS = ({"prompt": "12+7=", "answer": "19"}, {"prompt": "1+1=", "answer": "2"})


def log_prob(model: Any, prompt: str, completion: str) -> tuple[float, int]:
    """log p(completion, end of sequence | prompt), one sequence at a time, and its number of tokens."""
    before = TOKENIZER(prompt)["input_ids"]
    said = [*TOKENIZER(completion)["input_ids"], TOKENIZER.eos_token_id]
    ids = torch.tensor([before + said])
    with torch.no_grad():
        log_probs = torch.log_softmax(model(input_ids=ids).logits.double(), dim=-1)
    total = sum(log_probs[0, len(before) - 1 + i, token].item() for i, token in enumerate(said))
    return total, len(said)


def log_ratio(policy: Any, reference: Any, prompt: str, completion: str) -> tuple[float, int]:
    (new, tokens), (old, _) = log_prob(policy, prompt, completion), log_prob(reference, prompt, completion)
    return new - old, tokens


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def loss_of(trainer: Any) -> float:
    batch = next(iter(trainer.get_train_dataloader()))
    return trainer.compute_loss(trainer.model, batch).item()
