from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer import utils

from harness.algorithms.dpo import DPO
from harness.algorithms.grpo import GRPO
from harness.algorithms.kto import KTO
from harness.algorithms.orpo import ORPO
from harness.algorithms.ppo import PPO
from harness.algorithms.sft import SFT
from harness.algorithms.trainers import ready_trainer
from harness.algorithms.trl_head import IN_TORCH, TILE, as_on_cuda, narrow_tiles
from harness.models.adapters import Full, LoRA
from harness.tasks.base import TaskData
from tests.algorithms.world import PAIRS, PROMPTS, TOKENIZER, UNPAIRED
from tests.toys import Fixed, says


def test_tiles_are_as_wide_as_the_vocabulary_and_no_wider_than_suits_the_device():
    for vocabulary, width in ((40, 40), (2048, 2048), (128_256, IN_TORCH)):
        narrow_tiles(vocabulary, "cpu")
        assert utils._CHUNKED_LOGPROB_CHUNK_SIZE == width
    with as_on_cuda():  # a rehearsal of a GPU
        for vocabulary, width in ((40, 40), (32_768, 32_768), (128_256, 32_768)):
            narrow_tiles(vocabulary, "cpu")
            assert utils._CHUNKED_LOGPROB_CHUNK_SIZE == width


def test_the_width_is_trls_own():
    script = "from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as width; print(width)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split()[-1:] == [str(TILE)]


# -- what the output head works on -----------------------------------------------------------------------


@pytest.fixture
def headed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens TRL's head took, pass by pass."""
    taken: list[int] = []
    forward = ChunkedLogProbFunction.forward

    def counted(context: Any, hidden: torch.Tensor, *rest: Any) -> Any:
        taken.append(len(hidden))
        return forward(context, hidden, *rest)

    monkeypatch.setattr(ChunkedLogProbFunction, "forward", staticmethod(counted))
    return taken


def said(*texts: str) -> int:
    """Tokens of completions, each with the end of its sequence."""
    return sum(len(TOKENIZER(text)["input_ids"]) + 1 for text in texts)


OFFLINE = {
    "dpo": (DPO(), said(*(row[side] for row in PAIRS for side in ("chosen", "rejected")))),
    "kto": (KTO(), said(*(row["completion"] for row in UNPAIRED[:4]))),
    "orpo": (ORPO(), said(*(row[side] for row in PAIRS for side in ("chosen", "rejected")))),
    "sft": (SFT(), said(*(row["chosen"] for row in PAIRS))),
}


@pytest.mark.parametrize("adapter", [Full(), LoRA(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("name", OFFLINE)
def test_the_head_takes_the_tokens_that_a_loss_reads_and_no_prompt_or_padding(job, headed, name, adapter):
    algo, expected = OFFLINE[name]
    rows = TaskData(train_unpaired=UNPAIRED[:4]) if name == "kto" else job.data
    trainer = ready_trainer(algo, replace(job, adapter=adapter, data=rows)).trainer
    shared = headed.copy()
    trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader()))).backward()
    assert set(headed) == {expected}
    assert bool(shared) is (name in ("dpo", "kto")), "while the trainer is made, references are scored"


@pytest.mark.parametrize("algo", [GRPO(num_generations=2, beta=0.1), PPO(epochs=1)], ids=["grpo", "ppo"])
def test_the_head_takes_completions_alone_of_a_rollout(job, headed, algo):
    texts = ("19", "i dont know.", "2", "3 or 4")
    reward = Fixed(values=(1.0, 0.0, 1.0, 0.5))
    trainer = ready_trainer(algo, replace(job, reward=reward, data=TaskData(train_prompts=PROMPTS * 2))).trainer
    says(trainer, texts)
    headed.clear()
    trainer.train()
    assert headed and set(headed) == {said(*texts)}
