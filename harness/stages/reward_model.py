"""The stage that makes a reward model: Bradley-Terry training on the task's pairs, by TRL's RewardTrainer."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.base import calibration
from harness.config import closure, identity
from harness.models import prefixes
from harness.models.classifier import load_head, padding_for, save_head, score_sequences, sequences_of, with_score
from harness.models.precision import STOCHASTIC, optimizer_arguments, without_autocast
from harness.rewards.model import RewardModelSpec
from harness.store.cache import Cache, Entry
from harness.tasks.base import TaskData

CALIBRATION_PAIRS = 1000
BINS = 10


@dataclass(frozen=True)
class StageGround:
    """What the stage is built from.

    Attributes:
        load: the base, 4-bit where the adapter asks for it.
        base_key: identity of the base's weights.
        rows: gives rows in the form the model wants.
        precision: ``fp32`` or ``bf16``.
        dtype: of the weights that ``load`` gives.
        frozen: torch's, in which the trained weights are kept and score.
        progress: called with step and total while building.
    """

    load: Callable[[], Any]
    base_key: str
    data: TaskData
    tokenizer: Any
    rows: Callable[[Any], list[dict[str, Any]]]
    device: str
    precision: str
    dtype: str
    frozen: Any
    chat: bool
    progress: Callable[[int, int], object]


def reward_model(spec: RewardModelSpec, ground: StageGround, cache: Cache) -> Entry:
    """The folder of the trained reward model, from the cache or built now.

    Its note holds, per held-out split, ``accuracy`` (ties as half), ``margin`` (mean difference of scores),
    ``brier`` and ``ece`` (of sigmoid(margin) as the probability that the chosen one is better; 10 equal bins),
    and ``mean`` and ``deviation`` of the scores of the training pairs' completions.
    """
    inputs = {
        "recipe": spec.key,
        "spec": asdict(spec),
        "base": ground.base_key,
        "pairs": ground.data.digest,
        "code": closure.code_digest(code_of(spec)),
        "versions": identity.library_versions(),
        "device": ground.device,
        "precision": ground.precision,
        "dtype": ground.dtype,
        "frozen": str(ground.frozen),
        "chat": ground.chat,
        "threads": torch.get_num_threads(),
    }
    return cache.fetch(
        "reward_model", identity.digest(inputs), lambda folder: _build(spec, ground, folder), inputs=inputs
    )


def code_of(spec: RewardModelSpec) -> dict[str, Path]:
    """The code that can change a reward model: this stage, how the base is loaded, and its adapter."""
    return closure.closure([__name__, "harness.models", *identity.modules_of([spec.adapter])])


def _build(spec: RewardModelSpec, ground: StageGround, folder: Path) -> Mapping[str, Any]:
    from datasets import Dataset
    from transformers import TrainerCallback, set_seed
    from trl import RewardConfig, RewardTrainer
    from trl.trainer.reward_trainer import DataCollatorForPreference

    set_seed(spec.seed)
    tokenizer = ground.tokenizer
    pairs = spec.drawn(ground.data.train_pairs)
    added = contrasting(pairs, round(spec.contrast * len(pairs)), spec.seed)
    chosen, rejected = _encoded(ground, [*pairs, *added])
    whole = [i for i in range(len(chosen)) if max(len(chosen[i]), len(rejected[i])) <= spec.max_length]
    shell = with_score(ground.load())
    pad = padding_for([*chosen, *rejected], tokenizer.pad_token_id)
    config: Any = spec.adapter.peft_config()
    if config is not None:
        config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]

    class Progress(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ground.progress(state.global_step, state.max_steps)

    in_bf16 = config is None and ground.dtype == "torch.bfloat16"
    optimizer = STOCHASTIC if in_bf16 else "adamw_torch_fused"
    with tempfile.TemporaryDirectory() as scratch:
        trainer: Any = RewardTrainer(
            model=shell,
            args=RewardConfig(
                output_dir=scratch,
                max_steps=spec.steps,
                per_device_train_batch_size=spec.batch_size,
                learning_rate=spec.learning_rate,
                warmup_steps=0.1 if spec.steps > 1 else 0,  # the share is rounded up: the only step would be idle
                lr_scheduler_type="linear",
                max_length=None,
                bf16=ground.precision == "bf16",
                use_cpu=ground.device == "cpu",
                gradient_checkpointing=False,
                seed=spec.seed,
                logging_steps=max(1, spec.steps // 20),
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                **optimizer_arguments(optimizer),
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_dict(
                {"chosen_ids": [chosen[i] for i in whole], "rejected_ids": [rejected[i] for i in whole]}
            ),
            data_collator=DataCollatorForPreference(pad_token_id=pad),
            processing_class=tokenizer,
            peft_config=config,
            callbacks=[Progress()],
        )
        shell.config.get_text_config().pad_token_id = pad  # the score is read at the last token that is another one
        for parameter in trainer.model.parameters():
            if parameter.requires_grad and config is not None:
                parameter.data = parameter.data.float()
        with prefixes.together(shell):
            trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        trained = without_autocast(trainer.accelerator.unwrap_model(trainer.model)).eval()
        if config is None:  # what is kept is what scores, here and in every trial
            save_head(trained, folder)
            trained.to(ground.frozen).score.float()
            load_head(trained, folder)
        trained.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def scores(sequences: Sequence[Sequence[int]]) -> Tensor:
        return score_sequences(
            trained,
            sequences,
            pad=pad,
            batch_size=spec.batch_size,
            device=ground.device,
            precision=ground.precision,
        )

    note: dict[str, float] = {"loss": losses[-1], "steps": spec.steps, "pairs": len(whole)}
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
