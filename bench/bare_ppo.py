"""PPO by TRL 1.12 alone, for a few steps, as ``bare_trl.py`` does DPO and GRPO by the TRL of today.

Arguments: folder of a model, rows with a ``prompt`` (JSON lines), steps, rows of a step, rows of a micro-batch. TRL's
1.12 has to come first in ``PYTHONPATH``. Paid by length. Prints the seconds of training, and of those of rollouts.
"""

import json
import sys
import time
from pathlib import Path

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOTrainer, ppo_trainer
from trl_ppo import LORA, Rule, config, pay_by_rule, rollouts_clocked

COMPLETION = 64


def main() -> None:
    assert trl.__version__ == "1.12.0", trl.__version__
    folder, rows, steps, batch, micro = sys.argv[1:6]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    critic = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    prompts = [json.loads(line)["prompt"] for line in Path(rows).read_text().splitlines()]
    shown = [tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p in prompts]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in shown]
    pay_by_rule(ppo_trainer, tokenizer, lambda _, said: [float(len(text)) for text in said])
    rollouts = rollouts_clocked(ppo_trainer)
    trainer = PPOTrainer(
        args=config(
            int(micro),
            output_dir="/tmp/bare_ppo",
            total_episodes=int(steps) * int(batch),
            gradient_accumulation_steps=int(batch) // int(micro),
            num_ppo_epochs=1,
            response_length=COMPLETION,
            kl_coef=0.05,
            learning_rate=1e-5,
            logging_steps=1,
            seed=0,
            optim="adamw_torch_fused",
        ),
        processing_class=tokenizer,
        model=model,
        ref_model=None,
        reward_model=Rule(),
        value_model=critic,
        train_dataset=Dataset.from_list([{"input_ids": row} for row in ids]),
        peft_config=LORA,
    )
    started = time.perf_counter()
    trainer.train()
    print(f"\ntrain_s={time.perf_counter() - started:.3f} rollout_s={sum(rollouts):.3f}")


main()
