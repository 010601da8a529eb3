"""What tests of losses start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from harness.algorithms.base import TrainJob
from harness.config.train import Train
from harness.models.adapters import Full
from harness.tasks.arithmetic import Arithmetic
from harness.tasks.base import TaskData
from harness.telemetry.clock import PhaseClock
from tests.algorithms.world import PAIRS, PROMPTS, TOKENIZER
from tests.toys import random_llama


@pytest.fixture
def policy() -> LlamaForCausalLM:
    return random_llama(0)


@pytest.fixture
def reference() -> LlamaForCausalLM:
    return random_llama(1).requires_grad_(False)


@pytest.fixture
def job(policy: Any, reference: Any, tmp_path: Path) -> TrainJob:
    """One whole batch of four, full fine-tuning; tests replace what they are about."""
    return TrainJob(
        model=policy,
        reference=reference,
        tokenizer=TOKENIZER,
        adapter=Full(),
        task=Arithmetic(),
        data=TaskData(train_pairs=PAIRS, train_prompts=PROMPTS),
        rows=lambda rows: [dict(row) for row in rows],
        reward=None,
        train=Train(
            learning_rate=1e-2,
            steps=1,
            batch_size=4,
            micro_batch_size=4,
            max_length=64,
            max_completion_length=8,
            warmup_ratio=0.0,
            gradient_checkpointing=False,
        ),
        seed=0,
        output_dir=tmp_path,
        device="cpu",
        precision="fp32",
        clock=PhaseClock(lambda kind, data: None),
    )
