"""What people write instead of the harness, for a few steps: DPO or GRPO with TRL, nothing around it.

Arguments: dpo or grpo, folder of a model, rows (JSON lines), steps, rows of a step, rows of a micro-batch.
Prints the seconds of training, and of those the seconds of rollouts.
"""

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

COMPLETION, LENGTH, GROUP = 64, 512, 8


def main() -> None:
    algo, folder, rows, steps, batch, micro = sys.argv[1:7]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = Dataset.from_list([json.loads(line) for line in Path(rows).read_text().splitlines()])
    shared = {
        "output_dir": "/tmp/bare_trl", "max_steps": int(steps), "per_device_train_batch_size": int(micro),
        "gradient_accumulation_steps": int(batch) // int(micro), "learning_rate": 1e-5, "bf16": False, "use_cpu": True,
        "gradient_checkpointing": True, "logging_steps": 1, "save_strategy": "no", "report_to": [],
        "disable_tqdm": True, "optim": "adamw_torch_fused", "dataloader_pin_memory": False, "seed": 0,
    }  # fmt: skip
    options = {
        "model": model,
        "train_dataset": data,
        "processing_class": tokenizer,
        "peft_config": LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
    }
    rollouts = [0.0]
    if algo == "dpo":
        trainer = DPOTrainer(args=DPOConfig(**shared, beta=0.1, max_length=LENGTH), **options)
    else:
        config = GRPOConfig(**shared, beta=0.04, num_generations=GROUP, max_completion_length=COMPLETION)
        trainer = GRPOTrainer(args=config, reward_funcs=lengths, **options)
        whole = trainer._generate_and_score_completions

        def timed(inputs):
            begun = time.perf_counter()
            try:
                return whole(inputs)
            finally:
                rollouts[0] += time.perf_counter() - begun

        trainer._generate_and_score_completions = timed
    started = time.perf_counter()
    trainer.train()
    print(f"train_s={time.perf_counter() - started:.3f} rollout_s={rollouts[0]:.3f}")


def lengths(completions, **_):
    return [float(len(str(said))) for said in completions]


main()
