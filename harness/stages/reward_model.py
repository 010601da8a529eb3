"""The stage that makes a reward model: Bradley-Terry training on the task's pairs, by TRL's RewardTrainer."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.base import calibration
from harness.config import identity
from harness.models.classifier import padding_for, score_sequences, sequences_of, with_score
from harness.rewards.model import RewardModelSpec
from harness.stages.classifying import BINS, StageGround, adapter_config, arguments, fitted, inputs_of
from harness.store.cache import Cache, Entry

CALIBRATION_PAIRS = 1000


def reward_model(spec: RewardModelSpec, ground: StageGround, cache: Cache) -> Entry:
    """The folder of the trained reward model, from the cache or built now.

    Its note holds, per held-out split, ``accuracy`` (ties as half), ``margin`` (mean difference of scores),
    ``brier`` and ``ece`` (of sigmoid(margin) as the probability that the chosen one is better; 10 equal bins),
    and ``mean`` and ``deviation`` of the scores of the training pairs' completions.
    """
    inputs = inputs_of(spec, ground, pairs=ground.data.digest)
    return cache.fetch(
        "reward_model", identity.digest(inputs), lambda folder: _build(spec, ground, folder), inputs=inputs
    )


def _build(spec: RewardModelSpec, ground: StageGround, folder: Path) -> Mapping[str, Any]:
    from datasets import Dataset
    from transformers import set_seed
    from trl import RewardConfig, RewardTrainer
    from trl.trainer.reward_trainer import DataCollatorForPreference

    set_seed(spec.seed)
    pairs = spec.drawn(ground.data.train_pairs)
    added = contrasting(pairs, round(spec.contrast * len(pairs)), spec.seed)
    chosen, rejected = _encoded(ground, [*pairs, *added])
    whole = [i for i in range(len(chosen)) if max(len(chosen[i]), len(rejected[i])) <= spec.max_length]
    shell = with_score(ground.load())
    pad = padding_for([*chosen, *rejected], ground.tokenizer.pad_token_id)

    def made(scratch: str, callbacks: list[Any]) -> Any:
        return RewardTrainer(
            model=shell,
            args=RewardConfig(output_dir=scratch, max_length=None, **arguments(spec, ground)),
            train_dataset=Dataset.from_dict(
                {"chosen_ids": [chosen[i] for i in whole], "rejected_ids": [rejected[i] for i in whole]}
            ),
            data_collator=DataCollatorForPreference(pad_token_id=pad),
            processing_class=ground.tokenizer,
            peft_config=adapter_config(spec, shell, "SEQ_CLS"),
            callbacks=callbacks,
        )

    trained, loss = fitted(spec, ground, folder, shell, pad, made)

    def scores(sequences: Sequence[Sequence[int]]) -> Tensor:
        return score_sequences(
            trained,
            sequences,
            pad=pad,
            batch_size=spec.batch_size,
            device=ground.device,
            precision=ground.precision,
        )

    note: dict[str, float] = {"loss": loss, "steps": spec.steps, "pairs": len(whole)}
    seen = [i for i in whole if i < len(pairs)][:CALIBRATION_PAIRS]
    known = torch.cat([scores([chosen[i] for i in seen]), scores([rejected[i] for i in seen])])
    note |= {"mean": float(known.mean()), "deviation": max(float(known.std()), 1e-6)}
    for split, pairs in ground.data.eval_pairs.items():
        if pairs:
            better, worse = _encoded(ground, pairs)
            note |= {f"{split}/{k}": v for k, v in judged(scores(better) - scores(worse)).items()}
    return note


def contrasting(pairs: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """``count`` pairs of a chosen completion and one that was chosen for another prompt; none where all are alike.

    Such losers are fluent and wrong for this prompt alone. Without them a reward model can win most pairs by the
    style of the answer, and a policy that is paid by it finds that out (RRM, arXiv 2409.13156, whose pairs of two
    completions of other prompts, tied, are left out here).
    """
    rng = random.Random(f"contrast-{seed}")
    found: list[dict[str, Any]] = []
    for _ in range(20 * count if pairs else 0):
        if len(found) == count:
            break
        own, other = rng.choice(pairs), rng.choice(pairs)
        if other["prompt"] != own["prompt"] and other["chosen"] != own["chosen"]:
            found.append({"prompt": own["prompt"], "chosen": own["chosen"], "rejected": other["chosen"]})
    return found


def judged(margins: Tensor) -> dict[str, float]:
    """Accuracy (ties as half), mean margin and calibration of the probabilities sigmoid(margin), (pairs,).

    ``ece`` is that of the preferred side's probability over ten equal bins from 0.5 to 1; ``brier`` the mean of
    (1 - sigmoid(margin))^2.
    """
    chosen = torch.sigmoid(margins.double()).tolist()
    sure, right = calibration.confidence(chosen)
    return {
        "accuracy": sum(right) / len(right),
        "margin": float(margins.mean()),
        "brier": calibration.brier(chosen, [1.0] * len(chosen)),
        "ece": calibration.expected_calibration_error(calibration.reliability(sure, right, bins=BINS, span=(0.5, 1.0))),
    }


def _encoded(ground: StageGround, pairs: Any) -> tuple[list[list[int]], list[list[int]]]:
    rows = ground.rows(pairs)
    chosen, rejected = (
        sequences_of(
            ground.tokenizer,
            [{"prompt": row["prompt"], "completion": row[side]} for row in rows],
            ended=[True] * len(rows),
            longest=None,
        )
        for side in ("chosen", "rejected")
    )
    return chosen, rejected
