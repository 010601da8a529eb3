"""One side of ``bench/ppo_peer.py``: PPO by us or by TRL 1.12, in a process of its own, around the same loop.

Arguments: ours|theirs, a JSON object. Prints one JSON object: ``train_s``, ``update_s`` (of it, without what comes
before the first epoch of a batch: sampling, reference, critic's first look, rewards), ``peak_mb`` (highest resident
memory since just before the models were loaded, less the level then), ``true_reward`` and ``correct`` of completions
sampled for the held-out prompts.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed

from harness.evaluators.base import EvalContext
from harness.evaluators.scoring import sample
from harness.models import Shape
from harness.models.adapters import Full, LoRA
from harness.tasks.arithmetic import Arithmetic
from harness.telemetry.host import peak_resident_bytes, reset_peak
from harness.trial.heap import hold_freed_memory

TASK = Arithmetic()
EPOCHS, LENGTH = 4, 32


def resident_mb() -> float:
    reset_peak()
    return (peak_resident_bytes() or 0) / 1e6


def base(options: dict[str, Any]) -> tuple[Any, Any]:
    """The embedded base, or random weights at a shape where weights dominate."""
    if options["base"] is not None:
        tokenizer = AutoTokenizer.from_pretrained(options["base"], padding_side="left")
        return AutoModelForCausalLM.from_pretrained(options["base"], dtype=torch.float32), tokenizer
    model = Shape(label="peer", config=options["shape"])
    return model.load(None, dtype=torch.float32, device="cpu"), model.tokenizer(None)


def timed(started: float, rollout_s: float) -> dict[str, float]:
    """Seconds since ``started``, and those of them that were no rollout."""
    train_s = time.perf_counter() - started
    return {"train_s": train_s, "update_s": train_s - rollout_s}


def ours(options: dict[str, Any]) -> tuple[Any, Any, dict[str, float]]:
    from harness.algorithms.base import TrainJob
    from harness.algorithms.ppo.algorithm import PPO
    from harness.config.train import Train
    from harness.rewards.base import Verifier
    from harness.telemetry.clock import PhaseClock

    hold_freed_memory()  # as in a trial's process
    adapter = LoRA(rank=16) if options["adapter"] == "lora" else Full()
    model, tokenizer = base(options)
    clock = PhaseClock(lambda *_: None)
    trainer = (
        PPO(beta=options["beta"], epochs=EPOCHS)
        .trainer(
            TrainJob(
                model=model,
                reference=None if options["adapter"] == "lora" else copy.deepcopy(model).requires_grad_(False).eval(),
                tokenizer=tokenizer,
                adapter=adapter,
                task=TASK,
                data=TASK.load(),
                rows=lambda rows: [dict(row) for row in rows],
                reward=Verifier().bind(TASK, adapter, "tiny"),
                train=Train(
                    learning_rate=options["rate"],
                    steps=options["rollouts"] * EPOCHS,
                    batch_size=options["batch"],
                    micro_batch_size=options["batch"],
                    max_length=96,
                    max_completion_length=LENGTH,
                    warmup_ratio=0.0,
                    gradient_checkpointing=False,
                ),
                seed=options["seed"],
                output_dir=Path(options["scratch"]),
                device="cpu",
                precision="fp32",
                clock=clock,
                frozen=torch.float32,
            )
        )
        .trainer
    )
    started = time.perf_counter()
    trainer.train()
    return trainer.model, tokenizer, timed(started, clock.seconds()["rollout"])


def theirs(options: dict[str, Any]) -> tuple[Any, Any, dict[str, float]]:
    import trl
    from datasets import Dataset
    from trl.experimental.ppo import PPOTrainer, ppo_trainer
    from trl_ppo import LORA, Rule, config, pay_by_rule, rollouts_clocked

    assert trl.__version__ == "1.12.0", trl.__version__
    model, tokenizer = base(options)
    answers = {row["prompt"]: row for row in TASK.load().train_prompts}

    def by_rule(prompts: Sequence[str], said: Sequence[str]) -> list[float]:
        return [TASK.score(answers[p], s).reward for p, s in zip(prompts, said, strict=True)]

    pay_by_rule(ppo_trainer, tokenizer, by_rule)
    critic_base = options["base"]
    with tempfile.TemporaryDirectory() as folder:
        if critic_base is None:
            model.save_pretrained(folder)
            critic_base = folder
        critic = AutoModelForSequenceClassification.from_pretrained(critic_base, num_labels=1, dtype=torch.float32)
    torch.nn.init.zeros_(critic.score.weight)
    rows = [{"input_ids": tokenizer(row["prompt"])["input_ids"]} for row in TASK.load().train_prompts]
    trainer = PPOTrainer(
        args=config(
            options["batch"],
            output_dir=options["scratch"],
            total_episodes=options["rollouts"] * options["batch"],
            gradient_accumulation_steps=1,
            num_ppo_epochs=EPOCHS,
            response_length=LENGTH,
            kl_coef=options["beta"],
            learning_rate=options["rate"],
            lr_scheduler_type="linear",
            logging_steps=10,
            seed=options["seed"],
        ),
        processing_class=tokenizer,
        model=model,
        ref_model=None if options["adapter"] == "lora" else copy.deepcopy(model),
        reward_model=Rule(),
        value_model=critic,
        train_dataset=Dataset.from_list(rows),
        peft_config=LORA if options["adapter"] == "lora" else None,
    )
    rollouts = rollouts_clocked(ppo_trainer)
    started = time.perf_counter()
    trainer.train()
    return trainer.model.policy, tokenizer, timed(started, sum(rollouts))


def judge(model: Any, tokenizer: Any) -> dict[str, float]:
    """Mean true reward and share correct on the test prompts, four samples each, same draws for both sides."""
    data = TASK.load()
    rows = data.eval_prompts["test"]
    context = EvalContext(model=model.eval(), tokenizer=tokenizer, task=TASK, data=data, rows=lambda r: list(r),
                          split="test", batch_size=128, max_length=96, max_completion_length=LENGTH, seed=0,
                          device="cpu", beta=None, reference=None)  # fmt: skip
    found = sample(context, [row["prompt"] for row in rows], per_prompt=4, temperature=1.0)
    scores = [TASK.score(rows[s.row], s.text) for s in found]
    return {
        "true_reward": sum(s.reward for s in scores) / len(scores),
        "correct": sum(s.correct for s in scores) / len(scores),
    }


def main() -> None:
    side, options = sys.argv[1], json.loads(sys.argv[2])
    options["scratch"] = tempfile.mkdtemp()
    set_seed(options["seed"])
    before = resident_mb()
    model, tokenizer, times = (ours if side == "ours" else theirs)(options)
    found = times | {"peak_mb": (peak_resident_bytes() or 0) / 1e6 - before}
    if options["judge"]:
        found |= judge(model, tokenizer)
    print("RESULT " + json.dumps(found))


main()
